//! Images as the machine's block stores: written to directly, or through an overlay.

use std::io;

use machine::disk::BlockStore;

use super::image::{Image, QCOW2_MAGIC, RawImage, SECTOR_BYTES};

const BLOCK_BYTES: u64 = 4096;

/// An image that the guest writes to directly: for a machine that is neither recorded nor
/// protected.
pub struct DirectDisk {
    image: Box<dyn Image>,
    hash: [u8; 32],
    is_written: bool,
    /// The image is raw because nobody said and it did not look otherwise: it must not begin
    /// to look otherwise.
    is_guessed_raw: bool,
}

/// An image that is only read; what the guest writes goes to a sparse file that ends with
/// this process. Replaying and joining need the image as it was at the boot.
pub struct OverlayDisk {
    image: Box<dyn Image>,
    hash: [u8; 32],
    overlay: RawImage,
    /// A bit per block: whether it is in the overlay.
    written: Vec<u64>,
}

impl DirectDisk {
    /// Takes an image whose contents have this hash.
    pub fn new(image: Box<dyn Image>, hash: [u8; 32], is_guessed_raw: bool) -> DirectDisk {
        DirectDisk { image, hash, is_written: false, is_guessed_raw }
    }
}

impl OverlayDisk {
    /// Takes an image whose contents have this hash, and an empty file for what is written.
    ///
    /// # Errors
    /// When the file cannot be made as large as the image.
    pub fn new(image: Box<dyn Image>, hash: [u8; 32], overlay: std::fs::File) -> io::Result<OverlayDisk> {
        let overlay = RawImage::sparse(overlay, image.len_bytes())?;
        let blocks = image.len_bytes().div_ceil(BLOCK_BYTES) as usize;
        Ok(OverlayDisk { image, hash, overlay, written: vec![0; blocks.div_ceil(64)] })
    }

    fn is_written(&self, block: u64) -> bool {
        self.written[(block / 64) as usize] >> (block % 64) & 1 == 1
    }

    /// Makes the blocks of a range stand in the overlay, those that it has only a part of
    /// with the contents of the image.
    fn bring_over(&mut self, at: u64, len_bytes: u64) -> io::Result<()> {
        let end = at + len_bytes;
        for block in at / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES) {
            let start = block * BLOCK_BYTES;
            let block_end = (start + BLOCK_BYTES).min(self.image.len_bytes());
            let is_whole = at <= start && block_end <= end;
            if !is_whole && !self.is_written(block) {
                let mut bytes = vec![0; (block_end - start) as usize];
                self.image.read_at(start, &mut bytes)?;
                self.overlay.write_at(start, &bytes)?;
            }
            self.written[(block / 64) as usize] |= 1 << (block % 64);
        }
        Ok(())
    }
}

impl BlockStore for DirectDisk {
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
        if self.is_guessed_raw && sector == 0 && from.starts_with(&QCOW2_MAGIC) {
            // The next run would take it for qcow2 and follow it to any file of the host.
            return Err(io::Error::other(
                "the guest writes a qcow2 header to the front of this raw image; say format=raw to let it",
            ));
        }
        self.is_written = true;
        self.image.write_at(sector * SECTOR_BYTES, from)
    }

    fn zero(&mut self, sector: u64, len_sectors: u64, release: bool) -> io::Result<()> {
        self.is_written = true;
        self.image.zero(sector * SECTOR_BYTES, len_sectors * SECTOR_BYTES, release)
    }

    fn known_zero_sectors(&mut self, sector: u64, limit_sectors: u64) -> io::Result<u64> {
        known_zero_sectors(&*self.image, sector, limit_sectors)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.image.flush()
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
        self.image.len_bytes() / SECTOR_BYTES
    }

    fn base_hash(&self) -> [u8; 32] {
        self.hash
    }

    fn read(&mut self, sector: u64, into: &mut [u8]) -> io::Result<()> {
        let mut at = sector * SECTOR_BYTES;
        let mut rest = into;
        while !rest.is_empty() {
            let is_written = self.is_written(at / BLOCK_BYTES);
            let mut bytes = (BLOCK_BYTES - at % BLOCK_BYTES).min(rest.len() as u64);
            while bytes < rest.len() as u64 && self.is_written((at + bytes) / BLOCK_BYTES) == is_written {
                bytes = (bytes + BLOCK_BYTES).min(rest.len() as u64);
            }
            let (piece, after) = rest.split_at_mut(bytes as usize);
            if is_written {
                self.overlay.read_at(at, piece)?
            } else {
                self.image.read_at(at, piece)?
            }
            at += bytes;
            rest = after;
        }
        Ok(())
    }

    fn write(&mut self, sector: u64, from: &[u8]) -> io::Result<()> {
        let at = sector * SECTOR_BYTES;
        self.bring_over(at, from.len() as u64)?;
        self.overlay.write_at(at, from)
    }

    fn zero(&mut self, sector: u64, len_sectors: u64, _: bool) -> io::Result<()> {
        let (at, len_bytes) = (sector * SECTOR_BYTES, len_sectors * SECTOR_BYTES);
        self.bring_over(at, len_bytes)?;
        if len_bytes == 0 {
            return Ok(());
        }
        // Nobody counts on the place of a file that ends with this process.
        self.overlay.zero(at, len_bytes, true)
    }

    fn known_zero_sectors(&mut self, sector: u64, limit_sectors: u64) -> io::Result<u64> {
        let block_sectors = BLOCK_BYTES / SECTOR_BYTES;
        let unwritten = (sector / block_sectors..(sector + limit_sectors).div_ceil(block_sectors))
            .find(|block| self.is_written(*block))
            .map_or(limit_sectors, |block| (block * block_sectors).saturating_sub(sector));
        if unwritten == 0 { Ok(0) } else { known_zero_sectors(&*self.image, sector, unwritten) }
    }

    fn flush(&mut self) -> io::Result<()> {
        // The overlay goes with the process; there is nothing that a sync would save.
        Ok(())
    }

    fn revert(&mut self) -> io::Result<()> {
        self.written.fill(0);
        self.overlay.clear()
    }

    fn revert_block(&mut self, block: u64) -> io::Result<()> {
        self.written[(block / 64) as usize] &= !(1 << (block % 64));
        Ok(())
    }
}

/// How many sectors an image knows to be zeros.
///
/// # Errors
/// When the host cannot say.
pub fn known_zero_sectors(image: &dyn Image, sector: u64, limit_sectors: u64) -> io::Result<u64> {
    if limit_sectors == 0 {
        return Ok(0);
    }
    let extent = image.extent(sector * SECTOR_BYTES, limit_sectors * SECTOR_BYTES)?;
    let sectors = (extent.len_bytes / SECTOR_BYTES).min(limit_sectors);
    Ok(if extent.is_zero { sectors } else { 0 })
}
