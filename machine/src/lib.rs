//! The deterministic computer: RV64GC harts, memory and devices as a pure state machine.
//!
//! Execution is a function of (initial state, log of events). No I/O, no clock, no thread:
//! a driver decides how far to run, injects events, and carries outputs away.

pub mod bus;
mod contract;
pub mod hart;
pub mod ram;
pub mod softfloat;

pub use contract::*;
