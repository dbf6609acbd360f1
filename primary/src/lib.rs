//! Runs the machine live: record, checkpoint, ship, commit output.

mod batcher;
mod recorder;

pub use batcher::Batcher;
pub use recorder::{CheckpointBegun, Recorded, Recorder, RecorderConfig, Step};
