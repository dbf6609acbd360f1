//! The deterministic computer: RV64GC harts, memory and devices as a pure state machine.
//!
//! Execution is a function of (initial state, log of events). No I/O, no clock, no thread:
//! a driver decides how far to run, injects events, and carries outputs away.

mod board;
pub mod boot;
pub mod bus;
mod clock;
mod config;
mod contract;
pub mod device;
mod difference;
pub mod disk;
mod engine;
mod fdt;
mod handover;
pub mod hart;
mod machine;
mod map;
pub mod output;
pub mod ram;
pub mod registers;
mod run;
mod sbi;
mod semantics;
mod signature;
pub mod softfloat;
mod state;
mod stops;

pub use boot::{ImageKeeper, KeptImage};
pub use config::*;
pub use contract::*;
pub use difference::Difference;
pub use engine::{Engine, EngineError, Translation};
pub use handover::{Handover, PrimacyStart};
pub use machine::RiscvMachine;
pub use semantics::Semantics;
pub use signature::{Signature, SignatureError};
pub use stops::{Stop, StopReason};
