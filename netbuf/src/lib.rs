//! Output buffer and network ports: hold frames until committed; tap, tunnel, in-process switch.

mod buffer;
mod delay;

pub use buffer::{BufferLimits, BufferStatistics, OutputBuffer};
pub use delay::DelayHistogram;
