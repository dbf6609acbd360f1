//! Runs the machine live: record, checkpoint, ship, commit output.

mod batcher;
mod core;
pub mod driver;
mod recorder;
mod snapshot;
mod vcpu;

pub use batcher::Batcher;
pub use core::{
    BackupStatus, ConnectionId, CoreConfig, Finish, MachineRequest, OnBackupLoss, Operator, Primary,
    PrimaryEvent,
};
pub use recorder::{CheckpointBegun, Recorded, Recorder, RecorderConfig, Step};
pub use snapshot::{Advance, Begun, Snapshot, SnapshotOrder, Taken};
pub use vcpu::{FromMachine, Vcpu};
