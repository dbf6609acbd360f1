//! An image file, opened: raw ones here, qcow2 ones in [`super::qcow2`].

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

use super::lock::{self, Access};
use super::spec::Format;

/// Bytes of a sector.
pub const SECTOR_BYTES: u64 = 512;
/// First bytes of a qcow2 image.
pub const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// A stretch of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How far it goes; at least one byte.
    pub len_bytes: u64,
    /// Whether it is known, without reading it, to be zeros.
    pub is_zero: bool,
}

/// What a guest sees of an image. Ranges lie inside it.
pub trait Image: Send + Sync {
    /// Size in bytes, a multiple of 512.
    fn len_bytes(&self) -> u64;
    /// Reads from `at` on.
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()>;
    /// Writes from `at` on.
    fn write_at(&mut self, at: u64, from: &[u8]) -> io::Result<()>;
    /// Makes a range read as zeros; with `release` its place is given back.
    fn zero(&mut self, at: u64, len_bytes: u64, release: bool) -> io::Result<()>;
    /// Makes what was written durable.
    fn flush(&mut self) -> io::Result<()>;
    /// What is known of the stretch at `at`, which is looked at up to `limit_bytes`.
    fn extent(&self, at: u64, limit_bytes: u64) -> io::Result<Extent>;
}

/// A raw image.
pub struct RawImage {
    file: File,
    len_bytes: u64,
}

/// An image file, opened and locked, before anybody looked into it.
pub struct OpenedFile {
    /// The file.
    pub file: File,
    /// Where it is.
    pub path: PathBuf,
    /// What it is opened for.
    pub access: Access,
}

impl OpenedFile {
    /// Opens and locks an image file.
    ///
    /// # Errors
    /// When it is not there, may not be used that way, or is in use.
    pub fn open(path: &Path, access: Access) -> Result<OpenedFile> {
        let shown = path.display();
        let file =
            OpenOptions::new().read(true).write(access == Access::Write).open(path).with_context(|| {
                format!("cannot open the disk image {shown}; check --disk and its permissions")
            })?;
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            bail!("{shown} is no disk image; give a file or a block device");
        }
        match lock::lock(&file, access) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let does = if access == Access::Write { "uses" } else { "writes to" };
                bail!(
                    "another machine {does} the disk image {shown}; end that one, or give this one a copy or \
                     an overlay of its own (overlay=FILE)"
                )
            }
            result => result.with_context(|| format!("cannot lock the disk image {shown}"))?,
        }
        Ok(OpenedFile { file, path: path.to_owned(), access })
    }

    /// The format that the first bytes tell: qcow2, or raw for anything else.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn guess_format(&self) -> Result<Format> {
        let mut first = [0; 4];
        let shown = self.path.display();
        match self.file.read_exact_at(&mut first, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Format::Raw),
            result => {
                result.with_context(|| format!("cannot read the disk image {shown}"))?;
                Ok(if first == QCOW2_MAGIC { Format::Qcow2 } else { Format::Raw })
            }
        }
    }

    /// Size of the file, or of the block device, in bytes.
    ///
    /// # Errors
    /// When the host does not tell.
    pub fn len_bytes(&self) -> Result<u64> {
        let metadata = self.file.metadata()?;
        if metadata.file_type().is_block_device() {
            return Ok((&self.file).seek(SeekFrom::End(0))?);
        }
        Ok(metadata.len())
    }
}

impl RawImage {
    /// Takes a file as a raw image.
    ///
    /// # Errors
    /// When its size is no disk's.
    pub fn new(opened: OpenedFile) -> Result<RawImage> {
        let len_bytes = opened.len_bytes()?;
        if len_bytes == 0 || len_bytes % SECTOR_BYTES != 0 {
            let shown = opened.path.display();
            bail!(
                "the disk image {shown} has {len_bytes} bytes, not a multiple of {SECTOR_BYTES}; \
                 enlarge it with truncate --size=%{SECTOR_BYTES} {shown}"
            );
        }
        Ok(RawImage { file: opened.file, len_bytes })
    }

    /// Takes a new, empty file of the host as an image of zeros.
    pub fn sparse(file: File, len_bytes: u64) -> io::Result<RawImage> {
        file.set_len(len_bytes)?;
        Ok(RawImage { file, len_bytes })
    }

    /// Makes all of it zeros again.
    pub fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.set_len(self.len_bytes)
    }
}

impl Image for RawImage {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, at)
    }

    fn write_at(&mut self, at: u64, from: &[u8]) -> io::Result<()> {
        self.file.write_all_at(from, at)
    }

    fn zero(&mut self, at: u64, len_bytes: u64, release: bool) -> io::Result<()> {
        let how =
            if release { FallocateFlags::FALLOC_FL_PUNCH_HOLE } else { FallocateFlags::FALLOC_FL_ZERO_RANGE };
        let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&self.file, how | keep, at as i64, len_bytes as i64) {
            // Not every file system can; zeros it must be all the same.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => write_zeros(self, at, len_bytes),
            result => Ok(result?),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn extent(&self, at: u64, limit_bytes: u64) -> io::Result<Extent> {
        let end = (at + limit_bytes).min(self.len_bytes);
        // No file system has to tell holes from data; then all of it is data.
        let data = match lseek(&self.file, at as i64, Whence::SeekData) {
            Ok(data) => data as u64,
            Err(Errno::ENXIO) => self.len_bytes,
            Err(_) => return Ok(Extent { len_bytes: end - at, is_zero: false }),
        };
        if data > at {
            return Ok(Extent { len_bytes: data.min(end) - at, is_zero: true });
        }
        let hole = lseek(&self.file, at as i64, Whence::SeekHole).map_or(end, |hole| hole as u64);
        Ok(Extent { len_bytes: hole.clamp(at + 1, end) - at, is_zero: false })
    }
}

/// Writes zeros, for want of a better way.
pub fn write_zeros(image: &mut dyn Image, at: u64, len_bytes: u64) -> io::Result<()> {
    let zeros = vec![0; len_bytes.min(1 << 20) as usize];
    let mut done = 0;
    while done < len_bytes {
        let bytes = (len_bytes - done).min(zeros.len() as u64);
        image.write_at(at + done, &zeros[..bytes as usize])?;
        done += bytes;
    }
    Ok(())
}
