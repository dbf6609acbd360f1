//! The description: what was checkpointed, when, and what is needed to make the machine again.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{ChunkKind, FileKind, FormatError, Root, chunk_limit_bytes};
use crate::CheckpointHead;

/// Most boot images of a machine.
const MAX_IMAGES: usize = 16;

/// Everything about a checkpoint but pages and blocks. MessagePack, a map by names, so that a
/// later program may add to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Name of the virtual machine.
    pub vm: String,
    /// Version of the program that wrote it, for people.
    pub program: String,
    /// The host's wall clock at the checkpoint: nanoseconds since 1970-01-01 UTC.
    pub taken_unix_ns: u64,
    /// Events injected before it, since boot.
    pub events_before: u64,
    /// The checkpoint that this one builds on.
    pub base: Option<Base>,
    /// Machine identity, moment, and the state of harts and devices.
    pub head: CheckpointHead,
    /// What the command line needs to make the machine again. Opaque here.
    pub recipe: Bytes,
    /// The boot images, in the order in which the machine's identity has them.
    pub images: Vec<ImageReference>,
}

/// The checkpoint that an incremental one builds on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Its root.
    #[serde(with = "serde_bytes")]
    pub root: [u8; 32],
    /// The name of its file then, without folders: where to look first.
    pub file_name: String,
}

/// A boot image whose pages the table may refer to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageReference {
    /// What it is: `kernel`, `initrd` or `firmware`.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of it.
    #[serde(with = "serde_bytes")]
    pub hash: [u8; 32],
    /// Whether the file holds it.
    pub bundled: bool,
}

impl Description {
    /// Its bytes.
    ///
    /// # Errors
    /// When it is longer than a description may be.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let bytes = rmp_serde::to_vec_named(self)
            .map_err(|error| FormatError::damaged("description", error.to_string()))?;
        let limit = chunk_limit_bytes(ChunkKind::Description) as usize;
        if bytes.len() > limit {
            let cause = format!("it would have {} bytes, at most {limit} can be", bytes.len());
            return Err(FormatError::damaged("description", cause));
        }
        Ok(bytes)
    }

    /// Reads the description of a file of this kind.
    ///
    /// # Errors
    /// When it does not decode, or its parts do not agree.
    pub fn decode(bytes: &[u8], kind: FileKind) -> Result<Description, FormatError> {
        let damaged = |cause: String| FormatError::damaged("description", cause);
        let description: Description =
            rmp_serde::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if description.base.is_some() != (kind == FileKind::Incremental) {
            return Err(damaged("it names a base if and only if it is none's".to_owned()));
        }
        if description.images.len() > MAX_IMAGES {
            let found = description.images.len();
            return Err(damaged(format!("found {found} boot images, expected at most {MAX_IMAGES}")));
        }
        let base = description.base.as_ref();
        if base.is_some_and(|base| base.file_name.contains(['/', '\0']) || base.file_name == "..") {
            return Err(damaged("the name of its base is none of a file in the same folder".to_owned()));
        }
        Ok(description)
    }

    /// Root of the base, if it has one.
    pub fn base_root(&self) -> Option<Root> {
        self.base.as_ref().map(|base| Root(base.root))
    }
}
