//! The deterministic computer: RV64GC harts, memory and devices as a pure state machine.
//!
//! Execution is a function of (initial state, log of events). No I/O, no clock, no thread:
//! a driver decides how far to run, injects events, and carries outputs away.

pub mod boot;
pub mod bus;
pub mod clock;
mod config;
mod contract;
pub mod device;
pub mod disk;
pub mod fdt;
pub mod hart;
pub mod map;
pub mod output;
pub mod ram;
pub mod sbi;
pub mod softfloat;

pub use config::*;
pub use contract::*;
