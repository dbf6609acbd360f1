//! The bytes of a checkpoint file (docs/checkpoint-format.md): header, chunks, index, trailer.
//!
//! ```text
//!   header | description | image chunks | unit chunks | table chunks | index | trailer
//!                                                                      |        |
//!                         hash of each chunk <-------------------------+        |
//!                         root: hash of header and index, signed <--------------+
//! ```
//!
//! A reader begins at the end: the trailer's signature stands for the root, the root for the
//! header and the index, the index for every chunk. So each byte is vouched for before it is
//! decompressed or parsed, and chunks can be checked and unpacked by several threads. What
//! signs, encrypts and reads files is crate `store`.

mod description;
mod header;
mod index;
mod table;
mod trailer;

pub use description::{Base, Description, ImageReference};
pub use header::{Cipher, FileHeader, FileKind};
pub use index::{Chunk, ChunkKind, Index, Method, chunk_limit_bytes, chunk_root, unpack_chunk};
pub use table::{Run, Source, Table, TableShape, UnitHash, UnitPlace, unit_hash};
pub use trailer::{Trailer, signed_message};

/// Version that this program writes.
pub const VERSION: u16 = 1;
/// Oldest version that it reads.
pub const OLDEST_VERSION: u16 = 1;
/// Bytes of a unit: a page of memory or a block of a disk.
pub const UNIT_BYTES: usize = 4096;
/// Units in a chunk of them; the last chunk may have fewer.
pub const CHUNK_UNITS: usize = 256;
/// Bytes of an image in a chunk; an image's last chunk may have fewer.
pub const IMAGE_CHUNK_BYTES: usize = 1 << 20;

/// Identifies a checkpoint: the hash that its signature stands for. An incremental checkpoint
/// names its base by it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Root(pub [u8; 32]);

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What is wrong with the bytes of a checkpoint file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Another kind of file.
    #[error("it is not a checkpoint file: it begins with {found:02x?}")]
    NotACheckpoint {
        /// Its first bytes.
        found: Vec<u8>,
    },
    /// Written by a newer program.
    #[error(
        "its format has version {found}, this program reads {OLDEST_VERSION} to {VERSION}; use a newer program"
    )]
    FutureVersion {
        /// Its version.
        found: u16,
    },
    /// It ends early, or something was added to it.
    #[error("it has {found} bytes, expected {expected}; it was cut off or not written whole")]
    Length {
        /// Bytes it has.
        found: u64,
        /// Bytes it should have, or at least.
        expected: u64,
    },
    /// Bytes were changed.
    #[error("its {part} is damaged: {cause}")]
    Damaged {
        /// Where.
        part: &'static str,
        /// How that shows.
        cause: String,
    },
}

impl FormatError {
    fn damaged(part: &'static str, cause: impl Into<String>) -> FormatError {
        FormatError::Damaged { part, cause: cause.into() }
    }
}

/// The little-endian number at `offset` of bytes that were checked to be long enough.
fn number<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut number = [0; N];
    number.copy_from_slice(&bytes[offset..offset + N]);
    number
}
