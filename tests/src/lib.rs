//! What crosses crates: simulator, drills, differential and conformance tests.

pub mod differential;
pub mod sim;
pub mod work;
