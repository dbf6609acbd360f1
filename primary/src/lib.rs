//! Runs the machine live: record, checkpoint, ship, commit output.

mod batcher;
mod core;
pub mod driver;
mod packer;
mod recorder;
mod snapshot;
mod vcpu;

pub use batcher::Batcher;
pub use core::{
    BackupDisks, BackupStatus, ConnectionId, CoreConfig, DiskComparison, Durability, EpochConfig, Finish,
    IncrementCounters, MachineRequest, ModeChoice, OnBackupLoss, Operator, Primary, PrimaryEvent, Release,
    ResyncCounts, Trigger,
};
pub use packer::{Packer, ToPacker};
pub use recorder::{CheckpointBegun, Recorded, Recorder, RecorderConfig, Step};
pub use snapshot::{Advance, Begun, Snapshot, SnapshotOrder, Taken};
pub use vcpu::{FromMachine, Told, Vcpu};
