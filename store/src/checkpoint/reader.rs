//! Opens a checkpoint file, and gives out what it holds once that is known to be what was
//! signed.
//!
//! ```text
//!   open: trailer -> signature, trust -> header, index -> description, table
//!   Chain::open: the same for each base
//!   Chain::load: chunks, each against its hash -> parts of the machine's state
//! ```

use std::path::Path;

use bytes::Bytes;
use log_format::checkpoint_file::{
    ChunkKind, Cipher, Description, Root, Source, Table, TableShape, UNIT_BYTES,
};

use super::chunks::Chunks;
use super::error::CheckpointError;
use super::keys::{PublicKey, SecretKey, Trust};

/// An open checkpoint file: signed by somebody who is trusted, with description and table read.
pub struct CheckpointFile {
    chunks: Chunks,
    description: Description,
    table: Table,
}

/// What a checkpoint file holds, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Contents {
    /// Pages that are not zero and disk blocks that were written to.
    pub units: u64,
    /// Those of them that the file itself holds.
    pub own_units: u64,
    /// Those that are in boot images.
    pub image_units: u64,
    /// Those that are in the base.
    pub base_units: u64,
}

impl CheckpointFile {
    /// Opens a file.
    ///
    /// # Errors
    /// What is wrong with it, or why it is not trusted, or that it needs a secret key.
    pub fn open(path: &Path, trust: &Trust, secret: Option<&SecretKey>) -> Result<Self, CheckpointError> {
        let chunks = Chunks::open(path, trust, secret)?;
        let description = read_description(&chunks)?;
        let table = read_table(&chunks, &description)?;
        Ok(CheckpointFile { chunks, description, table })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.chunks.path
    }

    /// What identifies it.
    pub fn root(&self) -> Root {
        self.chunks.trailer.root
    }

    /// Who signed it.
    pub fn signer(&self) -> PublicKey {
        PublicKey(self.chunks.trailer.signer)
    }

    /// Its size in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.chunks.trailer.file_bytes()
    }

    /// Whether it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.chunks.header.cipher != Cipher::None
    }

    /// What it is of.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Where its pages and blocks are.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// What it holds.
    pub fn contents(&self) -> Contents {
        let mut contents = Contents { units: self.table.units(), ..Contents::default() };
        for run in &self.table.runs {
            let count = match run.source {
                Source::Own(_) | Source::Patched { .. } => &mut contents.own_units,
                Source::Base(_) => &mut contents.base_units,
                Source::Image { .. } => &mut contents.image_units,
            };
            *count += u64::from(run.count);
        }
        contents
    }

    /// A boot image that comes along in the file; `None` when this one does not.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn bundled_image(&self, name: &str) -> Result<Option<Bytes>, CheckpointError> {
        let mut chunks = self.chunks.of_kind(ChunkKind::Image);
        for image in self.description.images.iter().filter(|image| image.bundled) {
            let mut bytes = Vec::new();
            while (bytes.len() as u64) < image.bytes {
                let Some((number, offset, chunk)) = chunks.next() else { break };
                bytes.extend(self.chunks.read(number, offset, chunk)?);
            }
            if image.name == name {
                if bytes.len() as u64 != image.bytes || *blake3::hash(&bytes).as_bytes() != image.hash {
                    let cause = "its bytes are not those described".to_owned();
                    return Err(self.chunks.damaged("boot image", cause));
                }
                return Ok(Some(bytes.into()));
            }
        }
        Ok(None)
    }

    pub(crate) fn chunks(&self) -> &Chunks {
        &self.chunks
    }
}

fn read_description(chunks: &Chunks) -> Result<Description, CheckpointError> {
    let Some((number, offset, chunk)) = chunks.of_kind(ChunkKind::Description).next() else {
        return Err(chunks.damaged("index", "found no description".to_owned()));
    };
    let bytes = chunks.read(number, offset, chunk)?;
    Description::decode(&bytes, chunks.header.kind)
        .map_err(|cause| CheckpointError::format(&chunks.path, cause))
}

fn read_table(chunks: &Chunks, description: &Description) -> Result<Table, CheckpointError> {
    let format = |cause| CheckpointError::format(&chunks.path, cause);
    let mut table = Table::default();
    for (number, offset, chunk) in chunks.of_kind(ChunkKind::Table) {
        table.decode_piece(&chunks.read(number, offset, chunk)?).map_err(format)?;
    }
    let head = &description.head;
    let unit_bytes = UNIT_BYTES as u64;
    let shape = TableShape {
        pages: head.ram_bytes / unit_bytes,
        disk_blocks: head.identity.disks.iter().map(|(bytes, _)| bytes.div_ceil(unit_bytes)).collect(),
        image_bytes: description.images.iter().map(|image| image.bytes).collect(),
        has_base: description.base.is_some(),
        own_units: chunks.units(),
    };
    table.check(&shape).map_err(format)?;
    Ok(table)
}
