//! Runs the machine live: record, checkpoint, ship, commit output.

mod batcher;
mod core;
pub mod driver;
mod recorder;
mod vcpu;

pub use batcher::Batcher;
pub use core::{
    BackupStatus, ConnectionId, CoreConfig, Finish, MachineRequest, OnBackupLoss, Operator, Primary,
    PrimaryEvent,
};
pub use recorder::{CheckpointBegun, Recorded, Recorder, RecorderConfig, Step};
pub use vcpu::{FromMachine, Vcpu};
