//! Stands by: store, replay, verify, detect failure, take over.

mod core;
pub mod driver;
mod replayer;
mod resync;
mod worker;

pub use core::{Backup, BackupEvent, ConnectionId, CoreConfig, Finish, Operator};
pub use log_format::WholeIncrement;
pub use replayer::{Counted, Course, Divergence, DivergenceKind, Progress, Replayer};
pub use worker::reopen::{LogReplay, Skipped};
pub use worker::{FromReplayer, ReplayReport, ReplayWorker, ToReplayer};
