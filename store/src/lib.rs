//! The log in a directory: append, rotate, recover, read, verify.
//!
//! A recording is a directory of segment files, `00000000000000000001.log` and so on, each
//! named after the number of its first batch; `docs/log-format.md` section 5 has their bytes.
//! [`LogWriter`] makes one, [`LogReader`] reads one, [`verify`] says what is in one and where
//! and why it ends.
//!
//! A log ends at its last whole batch. Each way in which it can be damaged has its own
//! [`StoreError`]; whatever lies before the damage is read as usual.

mod background;
pub mod checkpoint;
mod checkpoint_file;
mod disk;
mod error;
pub mod fault;
mod folder;
mod follower;
mod name;
mod reader;
mod segment;
mod verify;
mod writer;

pub use background::{After, BackgroundLog, Begin, Durability, LogEnded, LogHealth};
pub use checkpoint_file::{read_checkpoint, write_checkpoint, write_start};
pub use disk::{Directory, Disk, DiskFile};
pub use error::StoreError;
pub use folder::LogFolder;
pub use follower::{Follower, NotNext};
pub use name::{first_sequence_of, segment_name};
pub use reader::{Ending, LogReader};
pub use segment::{ReadError, SegmentReader};
pub use verify::{EventCounts, LogEnd, Report, SegmentReport, verify};
pub use writer::{LogOptions, LogWriter, Resumed};
