//! Writes a checkpoint file.
//!
//! ```text
//!   create -> push* -> finish        the file is there under its name, whole and on disk
//!      |        |
//!      +--------+-> dropped          nothing is left, and what had the name before still has it
//! ```
//!
//! The bytes go to `NAME.partial` beside the file. Only when they are on disk does that become
//! the file, in one step, so that a crash at any moment leaves the old file or the new one. What
//! a killed process leaves of `NAME.partial` the next checkpoint to that file replaces.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use log_format::CheckpointPart;
use log_format::checkpoint_file::{
    Base, CHUNK_UNITS, ChunkKind, Cipher, Description, FileHeader, FileKind, IMAGE_CHUNK_BYTES, Index, Root,
    Source, Table, Trailer, UNIT_BYTES, UnitPlace, chunk_root, signed_message, unit_hash,
};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::error::CheckpointError;
use super::keys::{ChunkCipher, SecretKey, SigningKey};
use super::packer::{PackedChunk, Packer};
use super::reader::CheckpointFile;
use super::units::{Images, Placement};

/// How a checkpoint file is made.
pub struct Plan<'a> {
    /// What it is of; `base` and `images` are filled in from what follows.
    pub description: Description,
    /// The boot images.
    pub images: &'a Images,
    /// The checkpoint it builds on.
    pub base: Option<&'a CheckpointFile>,
    /// Signs it.
    pub signer: &'a SigningKey,
    /// Encrypts it.
    pub secret: Option<&'a SecretKey>,
}

/// A checkpoint file that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Identifies it.
    pub root: Root,
    /// Its size.
    pub bytes: u64,
    /// Pages that are not zero and disk blocks that were written to.
    pub units: u64,
    /// Those of them that the file itself holds.
    pub own_units: u64,
    /// Those that are in boot images.
    pub image_units: u64,
    /// Those that are in the base.
    pub base_units: u64,
}

/// Writes a checkpoint file. See the module for the order of calls.
pub struct CheckpointWriter<'a> {
    partial: Partial,
    header: FileHeader,
    index: Index,
    offset: u64,
    packer: Packer,
    images: &'a Images,
    placement: Placement,
    base: Option<&'a CheckpointFile>,
    signer: &'a SigningKey,
    table: Table,
    last: Option<UnitPlace>,
    /// Units of the chunk being filled.
    filling: Vec<u8>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    own: u64,
    image: u64,
    base: u64,
}

impl<'a> CheckpointWriter<'a> {
    /// Begins a file. What `path` names stays as it is until [`CheckpointWriter::finish`].
    ///
    /// # Errors
    /// [`CheckpointError::Busy`], [`CheckpointError::ForeignBase`], or what the disk says.
    pub fn create(path: &Path, plan: Plan<'a>) -> Result<CheckpointWriter<'a>, CheckpointError> {
        let mut description = plan.description;
        if let Some(base) = plan.base {
            let (own, other) = (&description.head, &base.description().head);
            if own.identity != other.identity || own.ram_bytes != other.ram_bytes {
                return Err(CheckpointError::ForeignBase { path: base.path().to_owned() });
            }
        }
        description.base = plan.base.map(|base| Base {
            root: base.root().0,
            file_name: base.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
        });
        description.images = plan.images.references().to_vec();
        let kind = if plan.base.is_some() { FileKind::Incremental } else { FileKind::Full };
        let cipher = plan.secret.map_or(Ok(Cipher::None), |secret| secret.new_cipher(path))?;
        let header = FileHeader::new(kind, cipher);
        let chunk_cipher = ChunkCipher::new(&header, plan.secret, path)?;
        let packer = Packer::start(chunk_cipher).map_err(|error| CheckpointError::io("pack", path, error))?;
        let encoded = description.encode().map_err(|cause| CheckpointError::format(path, cause))?;
        let mut writer = CheckpointWriter {
            partial: Partial::create(path)?,
            header,
            index: Index::default(),
            offset: 0,
            packer,
            images: plan.images,
            placement: Placement::default(),
            base: plan.base,
            signer: plan.signer,
            table: Table::default(),
            last: None,
            filling: Vec::with_capacity(CHUNK_UNITS * UNIT_BYTES),
            counts: Counts::default(),
        };
        writer.write(&header.encode())?;
        writer.packer.push(ChunkKind::Description, encoded);
        for image in plan.images.images().iter().filter(|image| image.bundled) {
            for piece in image.bytes.chunks(IMAGE_CHUNK_BYTES) {
                writer.packer.push(ChunkKind::Image, piece.to_vec());
                writer.write_packed()?;
            }
        }
        Ok(writer)
    }

    /// Adds the next pages and blocks: pages first, then the disks' blocks, each in order.
    ///
    /// # Errors
    /// What the disk says.
    pub fn push(&mut self, part: &CheckpointPart) -> Result<(), CheckpointError> {
        for page in &part.pages {
            if let Some(data) = &page.data {
                self.push_unit(UnitPlace::Page(page.index), data)?;
            }
        }
        for block in &part.blocks {
            self.push_unit(UnitPlace::Block { disk: block.disk, index: block.index }, &block.data)?;
        }
        self.write_packed()
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.offset
    }

    /// Ends the file, and gives it its name.
    ///
    /// # Errors
    /// What the disk says. Nothing is left then, and what had the name before still has it.
    pub fn finish(mut self) -> Result<Written, CheckpointError> {
        if !self.filling.is_empty() {
            let units = std::mem::take(&mut self.filling);
            self.packer.push(ChunkKind::Units, units);
        }
        for piece in self.table.encode() {
            self.packer.push(ChunkKind::Table, piece);
        }
        while let Some(chunk) = self.packer.wait() {
            self.write_chunk(chunk)?;
        }
        let index_offset = self.offset;
        let index = self.index.encode();
        self.write(&index)?;
        let root = chunk_root(&self.header.encode(), &index);
        let trailer = Trailer {
            index_offset,
            index_bytes: index.len() as u64,
            root,
            signer: self.signer.public().0,
            signature: self.signer.sign(&signed_message(&root)),
        };
        self.write(&trailer.encode())?;
        let written = Written {
            root,
            bytes: self.offset,
            units: self.table.units(),
            own_units: self.counts.own,
            image_units: self.counts.image,
            base_units: self.counts.base,
        };
        self.partial.become_file()?;
        Ok(written)
    }

    fn push_unit(&mut self, place: UnitPlace, data: &[u8]) -> Result<(), CheckpointError> {
        if data.len() != UNIT_BYTES {
            return Err(CheckpointError::Order("in units of another size"));
        }
        if self.last.is_some_and(|last| last >= place) {
            return Err(CheckpointError::Order("out of order"));
        }
        self.last = Some(place);
        let source = self.source_of(place, data);
        self.table.push(place, &source);
        if self.filling.len() == CHUNK_UNITS * UNIT_BYTES {
            let full = std::mem::replace(&mut self.filling, Vec::with_capacity(CHUNK_UNITS * UNIT_BYTES));
            self.packer.push(ChunkKind::Units, full);
            self.write_packed()?;
        }
        Ok(())
    }

    /// Where the bytes of a unit are; those that are nowhere yet are added to the file's own.
    fn source_of(&mut self, place: UnitPlace, data: &[u8]) -> Source {
        if let UnitPlace::Page(index) = place
            && let Some((image, first_page)) = self.images.find(data)
        {
            self.placement.note(index, image, first_page);
            self.counts.image += 1;
            return Source::Image { image, first_page };
        }
        let hash = unit_hash(data);
        if self.base.is_some_and(|base| base.table().hash_of(place) == Some(hash)) {
            self.counts.base += 1;
            return Source::Base(vec![hash]);
        }
        self.counts.own += 1;
        if let UnitPlace::Page(index) = place
            && let Some((image, first_page, difference)) = self.placement.difference(self.images, index, data)
        {
            self.filling.extend(difference);
            return Source::Patched { image, first_page, hashes: vec![hash] };
        }
        self.filling.extend_from_slice(data);
        Source::Own(vec![hash])
    }

    fn write_packed(&mut self) -> Result<(), CheckpointError> {
        while let Some(chunk) = self.packer.poll() {
            self.write_chunk(chunk)?;
        }
        Ok(())
    }

    fn write_chunk(&mut self, chunk: PackedChunk) -> Result<(), CheckpointError> {
        self.write(&chunk.stored)?;
        self.index.chunks.push(chunk.row);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.offset += bytes.len() as u64;
        self.partial.write(bytes)
    }
}

/// The file while it is not whole; removed unless it becomes the file.
struct Partial {
    /// Locked, so that no other process writes there.
    file: Option<Flock<File>>,
    path: PathBuf,
    target: PathBuf,
}

impl Partial {
    fn create(target: &Path) -> Result<Partial, CheckpointError> {
        let mut name = target.file_name().map(OsString::from).unwrap_or_default();
        if name.is_empty() || target.is_dir() {
            let cause = std::io::Error::from(std::io::ErrorKind::IsADirectory);
            return Err(CheckpointError::io("write", target, cause));
        }
        name.push(".partial");
        let path = target.with_file_name(name);
        loop {
            let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
            let file = opened.map_err(|error| CheckpointError::io("write", &path, error))?;
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, Errno::EWOULDBLOCK)) => {
                    return Err(CheckpointError::Busy { path: target.to_owned() });
                }
                Err((_, errno)) => return Err(CheckpointError::io("lock", &path, errno.into())),
            };
            // Its last owner may have given it its name, or removed it, before it was locked here.
            let io = |error| CheckpointError::io("write", &path, error);
            let own = file.metadata().map_err(io)?;
            if std::fs::metadata(&path)
                .is_ok_and(|named| named.ino() == own.ino() && named.dev() == own.dev())
            {
                file.set_len(0).map_err(io)?;
                return Ok(Partial { file: Some(file), path, target: target.to_owned() });
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        let Some(file) = &self.file else { return Ok(()) };
        (&**file).write_all(bytes).map_err(|error| CheckpointError::io("write", &self.path, error))
    }

    /// Syncs it, renames it, and syncs the folder.
    fn become_file(&mut self) -> Result<(), CheckpointError> {
        let Some(file) = self.file.take() else { return Ok(()) };
        let renamed = file.sync_all().and_then(|()| std::fs::rename(&self.path, &self.target));
        if let Err(error) = renamed {
            self.file = Some(file);
            return Err(CheckpointError::io("write", &self.target, error));
        }
        let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|error| CheckpointError::io("sync", folder, error))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.file.is_some() {
            // It is locked, so it is ours; half a checkpoint is of no use.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
