//! Whole clusters on virtual time: the production [`primary::Primary`], [`primary::Vcpu`],
//! [`backup::Backup`] and [`backup::ReplayWorker`] around a toy machine, on a simulated network
//! with a simulated arbiter, before simulated clients.
//!
//! - [`world`] is the clock and the queue of what happens next.
//! - [`node`] drives one host's cores, as the real drivers do.
//! - [`network`] carries the pair's messages, as bytes.
//! - [`faults`] decides what goes wrong, and never kills the last copy of the machine.
//! - [`client`] asks the machine and keeps the history.
//! - [`clock`] shows each host another time.
//! - [`log`] writes and reads each host's log, on a [`disk`] that fails.
//! - [`check`] knows the laws, and nothing of the scenarios.
//! - [`shape`] draws what a cluster is made of.
//! - [`coverage`] counts what the runs met, and which faults met each other.
//! - [`runner`] runs many seeds.
//!
//! Everything is a function of the seed. `cargo run -p secondwind-tests --bin soak -- --seed N`
//! repeats a run and prints what happened.

pub mod check;
pub mod client;
pub mod clock;
pub mod coverage;
pub mod disk;
pub mod faults;
pub mod ledger;
pub mod log;
pub mod network;
pub mod node;
pub mod random;
pub mod runner;
pub mod shape;
pub mod toy;
pub mod toy_disk;
pub mod world;

pub use coverage::Coverage;
pub use world::{Mutation, Options, run, scenario};
