//! Whole clusters on virtual time: the production [`primary::Primary`], [`primary::Vcpu`],
//! [`backup::Backup`] and [`backup::ReplayWorker`] around a toy machine, on a simulated network
//! with a simulated arbiter, before simulated clients.
//!
//! - [`world`] is the clock and the queue of what happens next.
//! - [`node`] drives one host's cores, as the real drivers do.
//! - [`network`] carries the pair's messages, as bytes.
//! - [`faults`] decides what goes wrong, and never kills the last copy of the machine.
//! - [`client`] asks the machine and keeps the history.
//! - [`check`] knows the laws, and nothing of the scenarios.
//!
//! Everything is a function of the seed. `SIM_SEED=n cargo test -p secondwind-tests --test sim
//! -- one_seed --nocapture` repeats a run and prints what happened.

pub mod check;
pub mod client;
pub mod faults;
pub mod ledger;
pub mod network;
pub mod node;
pub mod random;
pub mod toy;
pub mod world;

pub use world::{Coverage, Mutation, Options, run};
