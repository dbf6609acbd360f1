//! Disk images on the host, as the machine's block stores.
//!
//! ```text
//!   --disk ──> spec ──> image (raw, or qcow2 over a chain) ──> store ──> machine
//!                         │ lock: ours and QEMU's                ├ DirectDisk: run
//!                         │                                      ├ KeptDisk: primary and backup
//!                         └ hash: of what the guest sees         └ OverlayDisk: all others
//! ```

mod hash;
mod header;
mod image;
mod kept;
mod lock;
mod qcow2;
mod spec;
mod store;
#[cfg(test)]
mod tests;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use machine::HostPart;
use machine::disk::BlockStore;

pub use image::Image;
pub use kept::sync_folder;
pub use spec::{DiskSpec, Format};

use image::{OpenedFile, RawImage};
use kept::KeptDisk;
use lock::Access;
use qcow2::Qcow2Image;
use store::{DirectDisk, OverlayDisk};

/// How the guest's writes to its disks are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskMode {
    /// In the image itself, or in the overlay that goes with it.
    Direct,
    /// Beside it: all files stay as they were at the boot.
    Overlay,
}

/// What is copied at once.
const COPIED_BYTES: u64 = 1 << 20;
/// Nobody waits this long without being told.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);

/// Opens a disk.
///
/// # Errors
/// When a file of it is not there, is in use, is damaged or cannot be served.
pub fn open(spec: &DiskSpec, mode: DiskMode) -> Result<Box<dyn BlockStore>> {
    if let Some(overlay) = &spec.kept {
        return open_kept(spec, overlay);
    }
    let keeps = mode == DiskMode::Direct && !spec.snapshot;
    if keeps && let Some(overlay) = &spec.overlay {
        make_overlay(spec, overlay)?;
    }
    let access = if keeps && !spec.read_only { Access::Write } else { Access::Read };
    let (image, is_guessed_raw) = open_image(spec, access)?;
    let hash = hash_of(&*image, &spec.path)?;
    if keeps {
        return Ok(Box::new(DirectDisk::new(image, hash, is_guessed_raw)));
    }
    let shown = spec.path.display();
    let folder = spec.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let overlay = tempfile::tempfile_in(folder)
        .or_else(|_| tempfile::tempfile())
        .and_then(|overlay| OverlayDisk::new(image, hash, overlay))
        .with_context(|| format!("cannot make an overlay for {shown}; free some space"))?;
    Ok(Box::new(overlay))
}

/// Opens a disk to look at what the guest would see.
///
/// # Errors
/// When a file of it is not there, is written to, is damaged or cannot be served.
pub fn open_to_read(spec: &DiskSpec) -> Result<Box<dyn Image>> {
    Ok(open_image(spec, Access::Read)?.0)
}

/// Writes a new qcow2 image, which stands on no other, with these contents. What was at `path` is
/// written over: nobody may use it.
///
/// # Errors
/// When the host cannot.
pub fn write_qcow2(path: &Path, from: &dyn Image) -> Result<()> {
    let refused = || format!("cannot write {}; free some space", path.display());
    qcow2::create_image(path, from.len_bytes()).with_context(refused)?;
    let mut image = Qcow2Image::new(OpenedFile::open(path, Access::Write)?)?;
    let mut buffer = vec![0; COPIED_BYTES as usize];
    let mut at = 0;
    while at < from.len_bytes() {
        let extent = from.extent(at, from.len_bytes() - at)?;
        let bytes = extent.len_bytes.min(if extent.is_zero { u64::MAX } else { COPIED_BYTES });
        let piece = &mut buffer[..bytes.min(COPIED_BYTES) as usize];
        if !extent.is_zero {
            from.read_at(at, piece)?;
            if piece.iter().any(|byte| *byte != 0) {
                image.write_at(at, piece).with_context(refused)?;
            }
        }
        at += bytes;
    }
    image.flush().with_context(refused)?;
    drop(image);
    std::fs::File::open(path).and_then(|file| file.sync_all()).with_context(refused)
}

/// What of a machine's with these disks the host failed at, for a message.
pub fn shown(part: HostPart, disks: &[DiskSpec]) -> String {
    match part {
        HostPart::Disk(disk) => format!("{part} ({})", disks[usize::from(disk)].path.display()),
        HostPart::BootImages => part.to_string(),
    }
}

/// Opens a disk of a protected machine. Its hash is that of the image below the overlay.
fn open_kept(spec: &DiskSpec, overlay: &Path) -> Result<Box<dyn BlockStore>> {
    make_overlay(spec, overlay)?;
    let (base, _) = open_image(spec, Access::Read)?;
    let hash = hash_of(&*base, &spec.path)?;
    Ok(Box::new(KeptDisk::open(overlay, &spec.path, base, hash)?))
}

/// Refuses disks that cannot be begun with, since they are part of one state and part of another.
///
/// # Errors
/// When there is one.
pub fn check_complete(specs: &[DiskSpec]) -> Result<()> {
    for overlay in specs.iter().filter_map(|spec| spec.kept.as_deref()) {
        if kept::is_incomplete(overlay)? {
            bail!("{}", kept::Incomplete(overlay));
        }
    }
    Ok(())
}

impl DiskSpec {
    /// The file that stands for this disk in a recording, and its format.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn recorded(&self) -> Result<(PathBuf, Format)> {
        if let Some(overlay) = &self.overlay {
            return Ok((overlay.clone(), Format::Qcow2));
        }
        let format = match self.format {
            Some(format) => format,
            None => OpenedFile::open(&self.path, Access::Read)?.guess_format()?,
        };
        Ok((self.path.clone(), format))
    }
}

/// The image of a disk or the overlay over it, and whether it was only guessed to be raw.
fn open_image(spec: &DiskSpec, access: Access) -> Result<(Box<dyn Image>, bool)> {
    if let Some(overlay) = &spec.overlay {
        if !overlay.exists() {
            bail!(
                "the overlay {} is not there; leave it out (nothing is written to the image here), or \
                 make it: secondwind run makes those that are missing",
                overlay.display()
            );
        }
        kept::recover(overlay)?;
        let opened = OpenedFile::open(overlay, access)?;
        qcow2::check_overlay(&opened, &spec.path)?;
        return Ok((Box::new(Qcow2Image::new(opened)?), false));
    }
    let opened = OpenedFile::open(&spec.path, access)?;
    let format = match spec.format {
        Some(format) => format,
        None => opened.guess_format()?,
    };
    Ok(match format {
        Format::Raw => (Box::new(RawImage::new(opened)?), spec.format.is_none()),
        Format::Qcow2 => (Box::new(Qcow2Image::new(opened)?), false),
    })
}

/// Makes the overlay of a disk, where it is missing.
fn make_overlay(spec: &DiskSpec, overlay: &Path) -> Result<()> {
    if overlay.exists() {
        return Ok(());
    }
    let below = DiskSpec { overlay: None, ..spec.clone() };
    let (_, format) = below.recorded()?;
    let (image, _) = open_image(&below, Access::Read)?;
    qcow2::create_overlay(overlay, &spec.path, format, image.len_bytes())
}

/// Hashes what the guest sees; tells a terminal how far it is when that takes long.
///
/// # Errors
/// When the image cannot be read.
pub fn hash_of(image: &dyn Image, path: &Path) -> Result<[u8; 32]> {
    let started = Instant::now();
    let shown = Mutex::new(started);
    let is_shown = std::io::stderr().is_terminal();
    let progress = |done_bytes: u64| {
        if !is_shown || started.elapsed() < PROGRESS_AFTER {
            return;
        }
        if let Ok(mut last) = shown.lock()
            && last.elapsed() >= PROGRESS_AFTER / 4
        {
            *last = Instant::now();
            let percent = done_bytes.saturating_mul(100) / image.len_bytes().max(1);
            eprint!("\r\x1b[Kreading the disk image {}: {} %", path.display(), percent.min(100));
        }
    };
    let hash = hash::of_contents(image, &progress);
    if is_shown && started.elapsed() >= PROGRESS_AFTER {
        eprint!("\r\x1b[K");
    }
    hash.with_context(|| format!("cannot read the disk image {}", path.display()))
}
