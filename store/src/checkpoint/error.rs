//! What can be wrong with a checkpoint file, its keys, or with writing it.

use std::io;
use std::path::{Path, PathBuf};

use log_format::checkpoint_file::FormatError;

/// What is wrong: what was found, what was expected and what to do, in one line.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system refuses.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The disk has no room.
    #[error("{}: no space for the checkpoint; free some, or write it to another disk", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// Another process writes the same file.
    #[error("another checkpoint is being written to {}; wait for it, or choose another file", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged, cut off, foreign or too new.
    #[error("{}: {cause}; it cannot be used", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: FormatError,
    },
    /// Its signature is not that of its signer for these bytes.
    #[error("{}: its signature does not hold; it was changed after it was signed and cannot be used", path.display())]
    Signature {
        /// The file.
        path: PathBuf,
    },
    /// Signed by a key that is not trusted.
    #[error(
        "{}: it was signed by the key {signer}, which is not trusted here; if it should be, name its public key with --trust",
        path.display()
    )]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// The key.
        signer: String,
    },
    /// Not the checkpoint that is wanted.
    #[error(
        "{}: it is another checkpoint ({found}) than the one that is needed ({expected}); put that one there",
        path.display()
    )]
    OtherRoot {
        /// The file.
        path: PathBuf,
        /// Its root.
        found: String,
        /// The root that is needed.
        expected: String,
    },
    /// Encrypted, and no secret key was given.
    #[error("{}: it is encrypted; give the secret key that it was made with (--decrypt FILE)", path.display())]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// Encrypted with another secret key.
    #[error("{}: it was encrypted with another secret key than the one given; give that one", path.display())]
    WrongSecret {
        /// The file.
        path: PathBuf,
    },
    /// Its base is not there.
    #[error(
        "{}: it builds on the checkpoint {file_name} ({root}), which is not beside it; put it there, or name it with --base",
        path.display()
    )]
    NoBase {
        /// The file.
        path: PathBuf,
        /// Name of the base's file when it was made.
        file_name: String,
        /// The base's root.
        root: String,
    },
    /// A chain that never ends, or is longer than anybody should make it.
    #[error("{}: it builds on more than {limit} checkpoints; make a full one", path.display())]
    LongChain {
        /// The file.
        path: PathBuf,
        /// Most there may be.
        limit: usize,
    },
    /// A base of another machine.
    #[error("{}: it is a checkpoint of another machine and cannot be a base here; name another, or leave out --base", path.display())]
    ForeignBase {
        /// The file.
        path: PathBuf,
    },
    /// A boot image that is referred to is not the one given.
    #[error("the {name} is not the one that was checkpointed; give that one with --{name}")]
    OtherImage {
        /// Which one.
        name: String,
    },
    /// A file that should hold a key.
    #[error("{}: {cause}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and the way out.
        cause: String,
    },
    /// The checkpoint does not come in order, or not whole.
    #[error("the machine gave its checkpoint {0}; this is a fault of the program")]
    Order(&'static str),
}

impl CheckpointError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> CheckpointError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                CheckpointError::Full { path: path.to_owned() }
            }
            _ => CheckpointError::Io { action, path: path.to_owned(), source },
        }
    }

    pub(crate) fn format(path: &Path, cause: FormatError) -> CheckpointError {
        CheckpointError::Format { path: path.to_owned(), cause }
    }

    pub(crate) fn key(path: &Path, cause: impl Into<String>) -> CheckpointError {
        CheckpointError::Key { path: path.to_owned(), cause: cause.into() }
    }
}
