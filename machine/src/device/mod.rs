//! The board's devices. Each is a state machine with a register file; time comes in as an
//! argument, interrupts go out as levels.

pub mod aclint;
pub mod gpio;
pub mod plic;
pub mod rtc;
pub mod syscon;
pub mod uart;
pub mod virtio;
pub mod vmgenid;
