//! A disk that keeps what its guest writes, over a base image that stays as it is: the disks of
//! a protected machine.
//!
//! ```text
//!   base image (hashed: the disk's identity)      only read
//!        ^
//!   overlay FILE, qcow2 ──> imago ──> AtomicFile ──> FILE.journal, then FILE
//! ```
//!
//! The overlay changes from one whole state to another only: at a flush of the guest (then for
//! good), when much was written, at the end of a change that was begun as one
//! ([`BlockStore::begin_change`]), and at a clean end. A process that is killed leaves the last
//! of these states, a power cut at least that of the last flush.

mod atomic;
#[cfg(test)]
mod crash_tests;
mod journal;
mod medium;
mod storage;

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use machine::disk::BlockStore;

use super::image::{Image, OpenedFile, SECTOR_BYTES};
use super::lock::Access;
use super::qcow2::{self, Qcow2Image};
use super::store::known_zero_sectors;
use atomic::AtomicFile;
use medium::Medium;
use storage::{Shared, SharedStorage};

const BLOCK_BYTES: u64 = 4096;
/// How much may wait in memory.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// What is written is committed when it is more than this.
    commit_at_bytes: u64,
    /// A change that was begun as one and is larger than this goes to the overlay in parts, with
    /// a mark that says so.
    change_at_once_bytes: u64,
}

const LIMITS: Limits = Limits { commit_at_bytes: 4 << 20, change_at_once_bytes: 128 << 20 };
/// What is read at once to find what the overlay keeps.
const COMPARED_AT_ONCE_BYTES: u64 = 1 << 20;

/// See the module.
pub struct KeptDisk<F: Medium + 'static = File, J: Medium + 'static = File> {
    image: Qcow2Image,
    file: Shared<F, J>,
    base: Box<dyn Image>,
    hash: [u8; 32],
    /// `None` in tests without files.
    journal_path: Option<PathBuf>,
    limits: Limits,
    /// A change was begun.
    is_changing: bool,
    /// Something may differ from the base.
    is_written: bool,
}

/// Where the journal of an overlay is.
pub fn journal_of(overlay: &Path) -> PathBuf {
    let mut path = overlay.as_os_str().to_owned();
    path.push(".journal");
    path.into()
}

/// Puts what a machine that died left in an overlay's journal into the overlay: for whoever
/// reads it without a journal.
///
/// # Errors
/// When the overlay is in use, or is part of one state and part of another.
pub fn recover(overlay: &Path) -> Result<()> {
    if !journal_of(overlay).exists() {
        return Ok(());
    }
    let opened = OpenedFile::open(overlay, Access::Write)?;
    let (mut file, journal_path) = open_journaled(opened)?;
    if file.is_incomplete() {
        bail!("{}", Incomplete(overlay));
    }
    file.close().and_then(|_| std::fs::remove_file(journal_path)).with_context(|| {
        format!("cannot finish what was being written to {}; free some space", overlay.display())
    })
}

/// Whether an overlay is part of one state and part of another, because its host died while it
/// joined a primary.
///
/// # Errors
/// When its journal cannot be read.
pub fn is_incomplete(overlay: &Path) -> Result<bool> {
    let path = journal_of(overlay);
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        file => file
            .and_then(|file| journal::is_incomplete(&file))
            .with_context(|| format!("cannot read {}; check its permissions", path.display())),
    }
}

/// Says what is wrong with an overlay that is between two states, and the way out.
pub struct Incomplete<'a>(pub &'a Path);

impl std::fmt::Display for Incomplete<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (overlay, journal) = (self.0.display(), journal_of(self.0));
        write!(
            formatter,
            "the overlay {overlay} is part of one state and part of another: its host died while it joined \
             a primary; start this node as a backup, or remove {overlay} and {} to begin from the base image",
            journal.display()
        )
    }
}

fn open_journaled(opened: OpenedFile) -> Result<(AtomicFile<File, File>, PathBuf)> {
    let journal_path = journal_of(&opened.path);
    let shown = journal_path.display();
    let refused = || format!("cannot use the journal {shown}; check its permissions, and free some space");
    let is_new = !journal_path.exists();
    let journal = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&journal_path)
        .with_context(refused)?;
    if is_new {
        sync_folder(&journal_path).with_context(refused)?;
    }
    let mut random = [0; 8];
    let mut source = File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    source.read_exact(&mut random).context("cannot read /dev/urandom")?;
    let fresh = u64::from_le_bytes(random);
    let file = AtomicFile::open(opened.file, journal, fresh)
        .with_context(|| format!("cannot put {shown} into {}; free some space", opened.path.display()))?;
    Ok((file, journal_path))
}

/// Makes a new name in a file's folder durable.
///
/// # Errors
/// When the host fails.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

impl KeptDisk {
    /// The disk of `overlay` over `base`, whose contents have this hash.
    ///
    /// # Errors
    /// When a file of it is in use, is damaged or stands on something else.
    pub fn open(overlay: &Path, base_path: &Path, base: Box<dyn Image>, hash: [u8; 32]) -> Result<KeptDisk> {
        let opened = OpenedFile::open(overlay, Access::Write)?;
        let again =
            OpenedFile { file: opened.file.try_clone()?, path: opened.path.clone(), access: opened.access };
        let (file, journal_path) = open_journaled(opened)?;
        qcow2::check_overlay(&again, base_path)?;
        KeptDisk::over(file, again, base, hash, Some(journal_path))
    }
}

impl<F: Medium + 'static, J: Medium + 'static> KeptDisk<F, J> {
    /// The disk in an open file; `header` reads the same file, which the journal was put into.
    fn over(
        file: AtomicFile<F, J>,
        header: OpenedFile,
        base: Box<dyn Image>,
        hash: [u8; 32],
        journal_path: Option<PathBuf>,
    ) -> Result<KeptDisk<F, J>> {
        let file = Shared::new(file);
        let storage = Box::new(SharedStorage::new(file.clone(), header.path.clone()));
        let image = Qcow2Image::with_storage(header, storage)?;
        if image.len_bytes() != base.len_bytes() {
            bail!(
                "the overlay has a disk of {} bytes, the image below it one of {}; make a new overlay",
                image.len_bytes(),
                base.len_bytes()
            );
        }
        let limits = LIMITS;
        Ok(KeptDisk { image, file, base, hash, journal_path, limits, is_changing: false, is_written: true })
    }

    /// Commits, so that the tables fit the data.
    fn commit(&mut self, durable: bool) -> io::Result<()> {
        self.image.flush()?;
        self.file.lock().commit(durable)
    }

    /// After a write: commits when it is time.
    fn settle(&mut self) -> io::Result<()> {
        self.is_written = true;
        let mut file = self.file.lock();
        let is_held_back = self.is_changing && !file.is_incomplete();
        let Limits { commit_at_bytes, change_at_once_bytes } = self.limits;
        let limit_bytes = if is_held_back { change_at_once_bytes } else { commit_at_bytes };
        if file.uncommitted_bytes() <= limit_bytes {
            return Ok(());
        }
        if is_held_back {
            file.set_incomplete(true)?;
        }
        drop(file);
        self.commit(false)
    }

    /// Block by block: whether the overlay keeps it and it differs from the base.
    fn compare(&self, at: u64, len_bytes: u64, kept: &mut Vec<u64>) -> io::Result<()> {
        let (mut own, mut below) = (vec![0; len_bytes as usize], vec![0; len_bytes as usize]);
        self.image.read_at(at, &mut own)?;
        self.base.read_at(at, &mut below)?;
        let blocks = own.chunks(BLOCK_BYTES as usize).zip(below.chunks(BLOCK_BYTES as usize));
        let differing = (at / BLOCK_BYTES..).zip(blocks).filter(|(_, (own, below))| own != below);
        kept.extend(differing.map(|(block, _)| block));
        Ok(())
    }
}

impl<F: Medium + 'static, J: Medium + 'static> BlockStore for KeptDisk<F, J> {
    fn len_sectors(&self) -> u64 {
        self.image.len_bytes() / SECTOR_BYTES
    }

    fn base_hash(&self) -> [u8; 32] {
        self.hash
    }

    fn read(&mut self, sector: u64, into: &mut [u8]) -> io::Result<()> {
        self.image.read_at(sector * SECTOR_BYTES, into)
    }

    fn write(&mut self, sector: u64, from: &[u8]) -> io::Result<()> {
        self.image.write_at(sector * SECTOR_BYTES, from)?;
        self.settle()
    }

    fn zero(&mut self, sector: u64, len_sectors: u64, release: bool) -> io::Result<()> {
        self.image.zero(sector * SECTOR_BYTES, len_sectors * SECTOR_BYTES, release)?;
        self.settle()
    }

    fn known_zero_sectors(&mut self, sector: u64, limit_sectors: u64) -> io::Result<u64> {
        known_zero_sectors(&self.image, sector, limit_sectors)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.commit(true)
    }

    fn revert(&mut self) -> io::Result<()> {
        if !self.is_written {
            return Ok(());
        }
        self.image.discard_all()?;
        if !self.is_changing {
            self.commit(false)?;
        }
        self.is_written = false;
        Ok(())
    }

    fn revert_block(&mut self, block: u64) -> io::Result<()> {
        let at = block * BLOCK_BYTES;
        let mut bytes = vec![0; BLOCK_BYTES.min(self.image.len_bytes() - at) as usize];
        self.base.read_at(at, &mut bytes)?;
        self.write(at / SECTOR_BYTES, &bytes)
    }

    fn kept_blocks(&mut self) -> io::Result<Vec<u64>> {
        let mut kept = Vec::new();
        let len_bytes = self.image.len_bytes();
        let mut at = 0;
        while at < len_bytes {
            let (is_own, run_bytes) = self.image.own_extent(at, len_bytes - at)?;
            if !is_own && (run_bytes >= BLOCK_BYTES || at + run_bytes == len_bytes) {
                // Clusters may be smaller than blocks: what is left of one is looked at.
                at = if at + run_bytes == len_bytes {
                    len_bytes
                } else {
                    at + run_bytes / BLOCK_BYTES * BLOCK_BYTES
                };
                continue;
            }
            let bytes =
                run_bytes.next_multiple_of(BLOCK_BYTES).min(COMPARED_AT_ONCE_BYTES).min(len_bytes - at);
            self.compare(at, bytes, &mut kept)?;
            at += bytes;
        }
        self.is_written = !kept.is_empty();
        Ok(kept)
    }

    fn begin_change(&mut self) -> io::Result<()> {
        if !self.is_changing {
            self.commit(false)?;
            self.is_changing = true;
        }
        Ok(())
    }

    fn end_change(&mut self) -> io::Result<()> {
        self.is_changing = false;
        let is_incomplete = self.file.lock().is_incomplete();
        self.commit(is_incomplete)?;
        self.file.lock().set_incomplete(false)
    }
}

impl<F: Medium + 'static, J: Medium + 'static> Drop for KeptDisk<F, J> {
    fn drop(&mut self) {
        let shown = self.journal_path.as_deref().unwrap_or(Path::new("a journal"));
        if self.is_changing {
            // Half a change is nobody's state: the one before it stays, or the mark that says so.
            return;
        }
        let closed = self.image.flush().and_then(|()| self.file.lock().close());
        match (closed, &self.journal_path) {
            (Ok(true), Some(path)) => {
                if let Err(error) = std::fs::remove_file(path) {
                    tracing::warn!("{} could not be removed: {error}", path.display());
                }
            }
            (Ok(_), _) => {}
            (Err(error), _) => {
                tracing::error!("{} could not be closed cleanly, and is kept: {error}", shown.display());
            }
        }
    }
}
