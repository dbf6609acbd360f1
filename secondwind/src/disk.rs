//! Raw disk images on the host, as the machine's block stores.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use machine::disk::BlockStore;

const SECTOR_BYTES: u64 = 512;
const BLOCK_BYTES: u64 = 4096;

/// A raw image that the guest writes to directly: for a machine that is neither recorded nor
/// protected.
pub struct DirectDisk {
    image: File,
    is_written: bool,
    len_bytes: u64,
    hash: [u8; 32],
}

/// A raw image that is only read; what the guest writes goes to a sparse file beside it.
/// Replaying and joining need the image as it was at the boot.
pub struct OverlayDisk {
    image: File,
    overlay: File,
    /// A bit per block: whether it is in the overlay.
    written: Vec<u64>,
    len_bytes: u64,
    hash: [u8; 32],
}

impl DirectDisk {
    /// Opens `path` for reading and writing.
    pub fn open(path: &Path) -> Result<DirectDisk> {
        let (image, len_bytes, hash) = open_image(path, true)?;
        Ok(DirectDisk { image, is_written: false, len_bytes, hash })
    }
}

impl OverlayDisk {
    /// Opens `path` for reading. The overlay has no name and goes with this process.
    pub fn open(path: &Path) -> Result<OverlayDisk> {
        let (image, len_bytes, hash) = open_image(path, false)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let overlay = tempfile::tempfile_in(folder)
            .or_else(|_| tempfile::tempfile())
            .with_context(|| format!("cannot make an overlay for {}; free some space", path.display()))?;
        overlay.set_len(len_bytes)?;
        let blocks = (len_bytes / BLOCK_BYTES) as usize;
        Ok(OverlayDisk { image, overlay, written: vec![0; blocks.div_ceil(64)], len_bytes, hash })
    }

    fn is_written(&self, block: u64) -> bool {
        self.written[(block / 64) as usize] >> (block % 64) & 1 == 1
    }

    /// Makes `block` stand in the overlay as a whole.
    fn bring_over(&mut self, block: u64) -> io::Result<()> {
        if !self.is_written(block) {
            let start = block * BLOCK_BYTES;
            let mut bytes = [0; BLOCK_BYTES as usize];
            self.image.read_exact_at(&mut bytes, start)?;
            self.overlay.write_all_at(&bytes, start)?;
            self.written[(block / 64) as usize] |= 1 << (block % 64);
        }
        Ok(())
    }
}

impl BlockStore for DirectDisk {
    fn len_sectors(&self) -> u64 {
        self.len_bytes / SECTOR_BYTES
    }

    fn base_hash(&self) -> [u8; 32] {
        self.hash
    }

    fn read(&mut self, sector: u64, into: &mut [u8]) -> io::Result<()> {
        self.image.read_exact_at(into, sector * SECTOR_BYTES)
    }

    fn write(&mut self, sector: u64, from: &[u8]) -> io::Result<()> {
        self.is_written = true;
        self.image.write_all_at(from, sector * SECTOR_BYTES)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.image.sync_data()
    }

    fn revert(&mut self) -> io::Result<()> {
        if self.is_written {
            let lost = "the image was written to directly and cannot go back to its state at the boot";
            return Err(io::Error::other(lost));
        }
        Ok(())
    }
}

impl BlockStore for OverlayDisk {
    fn len_sectors(&self) -> u64 {
        self.len_bytes / SECTOR_BYTES
    }

    fn base_hash(&self) -> [u8; 32] {
        self.hash
    }

    fn read(&mut self, sector: u64, into: &mut [u8]) -> io::Result<()> {
        let mut at = sector * SECTOR_BYTES;
        let mut rest = into;
        while !rest.is_empty() {
            let in_block = (BLOCK_BYTES - at % BLOCK_BYTES).min(rest.len() as u64) as usize;
            let (piece, after) = rest.split_at_mut(in_block);
            let file = if self.is_written(at / BLOCK_BYTES) { &self.overlay } else { &self.image };
            file.read_exact_at(piece, at)?;
            at += in_block as u64;
            rest = after;
        }
        Ok(())
    }

    fn write(&mut self, sector: u64, from: &[u8]) -> io::Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        let at = sector * SECTOR_BYTES;
        for block in at / BLOCK_BYTES..=(at + from.len() as u64 - 1) / BLOCK_BYTES {
            self.bring_over(block)?;
        }
        self.overlay.write_all_at(from, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        // The overlay goes with the process; there is nothing that a sync would save.
        Ok(())
    }

    fn revert(&mut self) -> io::Result<()> {
        self.written.fill(0);
        self.overlay.set_len(0)?;
        self.overlay.set_len(self.len_bytes)
    }
}

fn open_image(path: &Path, writable: bool) -> Result<(File, u64, [u8; 32])> {
    let shown = path.display();
    let image =
        OpenOptions::new().read(true).write(writable).open(path).with_context(|| {
            format!("cannot open the disk image {shown}; check --disk and its permissions")
        })?;
    let len_bytes = image.metadata()?.len();
    if len_bytes == 0 || len_bytes % BLOCK_BYTES != 0 {
        bail!(
            "the disk image {shown} has {len_bytes} bytes, not a multiple of {BLOCK_BYTES}; \
             enlarge it with truncate --size=%{BLOCK_BYTES} {shown}"
        );
    }
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < len_bytes {
        let bytes = (len_bytes - at).min(buffer.len() as u64) as usize;
        image.read_exact_at(&mut buffer[..bytes], at).with_context(|| format!("cannot read {shown}"))?;
        hasher.update(&buffer[..bytes]);
        at += bytes as u64;
    }
    Ok((image, len_bytes, *hasher.finalize().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_leaves_the_image_alone_and_can_go_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let before: Vec<u8> = (0..6 * 4096).map(|byte| byte as u8).collect();
        std::fs::write(&path, &before).unwrap();
        let mut disk = OverlayDisk::open(&path).unwrap();
        assert_eq!(disk.len_sectors(), 48);

        disk.write(7, &[9; 1024]).unwrap();
        disk.write(47, &[8; 512]).unwrap();
        let mut expected = before.clone();
        expected[7 * 512..9 * 512].fill(9);
        expected[47 * 512..].fill(8);
        let mut found = vec![0; before.len()];
        disk.read(0, &mut found).unwrap();
        assert_eq!(found, expected);
        assert_eq!(std::fs::read(&path).unwrap(), before, "the image is not written to");

        disk.revert().unwrap();
        disk.read(0, &mut found).unwrap();
        assert_eq!(found, before);
    }

    #[test]
    fn a_direct_disk_makes_a_machine_and_keeps_what_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        std::fs::write(&path, vec![1; 8192]).unwrap();
        let mut disk = DirectDisk::open(&path).unwrap();
        disk.revert().expect("an untouched image is its base, as a machine that is made wants it");
        disk.write(3, &[9; 512]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[3 * 512..4 * 512], [9; 512]);
        assert!(disk.revert().is_err(), "what it was is gone");
    }

    #[test]
    fn a_size_that_is_no_disk_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        for bytes in [0, 100] {
            std::fs::write(&path, vec![0; bytes]).unwrap();
            assert!(OverlayDisk::open(&path).is_err());
        }
    }
}
