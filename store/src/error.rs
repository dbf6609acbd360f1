//! What can be wrong with a log on disk.

use std::io;
use std::path::{Path, PathBuf};

use log_format::{EncodeError, FrameError};

use crate::follower::NotNext;

/// What is wrong with a log on disk, or with writing it: what was found, what was expected
/// and what to do. Offsets are in bytes from the start of the file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk has no room. What was appended before is whole; nothing of this write is left.
    #[error(
        "{}: no space for {wanted_bytes} bytes; free some, or use a directory on another disk (what was written before is whole)",
        path.display()
    )]
    Full {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        wanted_bytes: u64,
    },
    /// The operating system refuses.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// An earlier write could not be undone or made durable, so this log takes no more.
    #[error(
        "{}: an earlier failure left the end of this log unknown; open it again to go on after its last whole batch",
        path.display()
    )]
    Broken {
        /// The directory.
        path: PathBuf,
    },
    /// There is a log already.
    #[error(
        "{}: found a log ({found}), expected an empty directory; remove it or choose another",
        path.display()
    )]
    Exists {
        /// The directory.
        path: PathBuf,
        /// A segment in it.
        found: String,
    },
    /// Another process writes there.
    #[error("{}: another process writes to this log; stop it or choose another directory", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// There is no log.
    #[error(
        "{}: found no segment of a log (a file like 00000000000000000001.log); check the directory's name",
        path.display()
    )]
    NoLog {
        /// The directory.
        path: PathBuf,
    },
    /// The last segment ends inside a record, as when its writer was killed.
    #[error(
        "{}: torn at offset {offset}: found {found} bytes of a record of {expected}; the log ends before it and can be used up to there",
        path.display()
    )]
    TornTail {
        /// The file.
        path: PathBuf,
        /// Where the torn record begins.
        offset: u64,
        /// Its bytes there are.
        found: u64,
        /// Its bytes there should be, as far as can be told.
        expected: u64,
    },
    /// Bytes were changed, or taken out of the middle.
    #[error("{}: damaged at offset {offset}: {cause}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the damaged record begins.
        offset: u64,
        /// What is wrong with it.
        cause: FrameError,
    },
    /// Written by a newer program.
    #[error(
        "{}: found format version {found} at offset {offset}, this program reads up to {newest}; use a newer program",
        path.display()
    )]
    FutureVersion {
        /// The file.
        path: PathBuf,
        /// Where the record begins.
        offset: u64,
        /// Its version.
        found: u8,
        /// The newest that is read here.
        newest: u8,
    },
    /// Not a segment of a log.
    #[error("{}: not a segment of a log: {found}; take the file out of the directory", path.display())]
    ForeignFile {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        found: String,
    },
    /// A segment is not there.
    #[error(
        "{}: segment {expected} is missing, found {} instead; put it back, or use the log up to there",
        path.display(), found.as_deref().unwrap_or("none")
    )]
    MissingSegment {
        /// The directory.
        path: PathBuf,
        /// The segment that should be there.
        expected: String,
        /// The segment that is there instead, if any.
        found: Option<String>,
    },
    /// A segment of another log, or of another machine.
    #[error(
        "{}: a segment of another log: found {what} {found}, expected {expected}; take the file out of the directory",
        path.display()
    )]
    OtherLog {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// In this segment.
        found: String,
        /// In the first segment.
        expected: String,
    },
    /// A whole record that does not follow the one before it.
    #[error(
        "{}: the record at offset {offset} does not follow the one before: {cause}; use the log up to there",
        path.display()
    )]
    BrokenChain {
        /// The file.
        path: PathBuf,
        /// Where the record begins.
        offset: u64,
        /// In what it does not follow.
        cause: NotNext,
    },
    /// Something follows the record that says that a segment, or the log, ends.
    #[error(
        "{}: found more after the end at offset {offset}, expected nothing; take it out, or use the log up to there",
        path.display()
    )]
    AfterEnd {
        /// The file.
        path: PathBuf,
        /// Where the end record begins.
        offset: u64,
    },
    /// A stretch of the log was kept as an increment, by a backup to which no batches came.
    #[error(
        "{}: found an increment from batch {from} to batch {to} at offset {offset}, expected batches: in mode checkpoint a backup gets none; `secondwind replay` goes over it, and so does a start again",
        path.display()
    )]
    NoBatches {
        /// The file.
        path: PathBuf,
        /// Where the increment begins.
        offset: u64,
        /// The last batch before it.
        from: u64,
        /// The batch at the end of which the log goes on.
        to: u64,
    },
    /// A batch to be appended does not follow the one before.
    #[error("a batch does not follow the log it is to be appended to: {0}")]
    NotNext(NotNext),
    /// A record cannot be written.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl StoreError {
    /// For an operation of the operating system that failed.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        StoreError::Io { action, path: path.to_owned(), source }
    }

    /// For a write that failed.
    pub(crate) fn write(path: &Path, wanted_bytes: usize, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                StoreError::Full { path: path.to_owned(), wanted_bytes: wanted_bytes as u64 }
            }
            _ => StoreError::io("write to", path, source),
        }
    }

    /// Whether the disk had no room.
    pub fn is_full(&self) -> bool {
        matches!(self, StoreError::Full { .. })
    }

    /// Whether the log only lacks the rest of its last record, so that it can be cut there
    /// and go on ([`crate::LogWriter::resume`]).
    pub fn is_torn_tail(&self) -> bool {
        matches!(self, StoreError::TornTail { .. })
    }
}
