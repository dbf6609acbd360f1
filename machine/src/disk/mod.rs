//! Disks: where sectors are kept, and which of them differ from the base image.

mod content;
mod freeze;
mod store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use freeze::{IncrementFreeze, WholeFreeze};

pub use store::{BlockStore, MemDisk};

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;
/// Bytes of a block, the unit of digests and checkpoints.
pub const BLOCK_BYTES: usize = 4096;
/// Sectors of a block. The last block of a disk may have fewer: for a digest and a
/// checkpoint it is filled up with zeros.
pub const BLOCK_SECTORS: u64 = (BLOCK_BYTES / SECTOR_BYTES) as u64;
/// What every block of zeros is kept as.
static ZERO_BLOCK: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// A disk of the machine: a [`BlockStore`] and what a digest and a checkpoint must know
/// about the writes to it.
pub struct Disk {
    store: Box<dyn BlockStore>,
    /// The blocks that were written to.
    written: BTreeMap<u64, Written>,
    hash_sum: u128,
    /// Blocks written to since the last digest.
    stale: BTreeSet<u64>,
    /// Blocks written to since the epoch began; `None` before the first: those ever written to.
    dirty: Option<BTreeSet<u64>>,
    /// How many checkpoints of all written blocks were begun.
    checkpoints: u64,
    /// The full checkpoint under way, if there is one.
    full: Option<WholeFreeze>,
    /// The same of the disks alone.
    alone: Option<WholeFreeze>,
    /// The increment begun last, if there is one.
    increment: Option<IncrementFreeze>,
}

/// A block that was written to.
struct Written {
    /// Its hash as of the last digest; 0 before.
    hash: u128,
    /// How many checkpoints of all written blocks were begun before the first write to it: it
    /// belongs to later ones.
    checkpoints_before: u64,
    /// It was zeroed as a whole since: nobody needs to read it. Only a shortcut; a block of
    /// zeros without it is the same.
    is_zero: bool,
}

impl Disk {
    /// A disk whose contents are the store's base image, and what the store kept from an earlier
    /// run: that counts as written, so that digests and checkpoints cover it.
    ///
    /// # Errors
    /// When the host cannot read what was kept, or forget what was not.
    pub fn new(store: Box<dyn BlockStore>) -> io::Result<Disk> {
        let mut disk = Disk {
            store,
            written: BTreeMap::new(),
            hash_sum: 0,
            stale: BTreeSet::new(),
            dirty: None,
            checkpoints: 0,
            full: None,
            alone: None,
            increment: None,
        };
        let kept = disk.store.kept_blocks()?;
        if kept.is_empty() {
            disk.revert()?;
        }
        for block in kept {
            disk.mark(block, false)?;
        }
        // Nobody waits for a machine that does not run yet, as for one at its first digest.
        disk.digest()?;
        Ok(disk)
    }

    /// Whether the disk is its base image, as far as writes are known.
    pub fn is_base(&self) -> bool {
        self.written.is_empty()
    }

    /// Begins a change that a store which keeps its writes makes whole or not at all.
    ///
    /// # Errors
    /// When the store fails.
    pub fn begin_change(&mut self) -> io::Result<()> {
        self.store.begin_change()
    }

    /// Ends the change.
    ///
    /// # Errors
    /// When the store fails.
    pub fn end_change(&mut self) -> io::Result<()> {
        self.store.end_change()
    }

    /// Size in sectors.
    pub fn len_sectors(&self) -> u64 {
        self.store.len_sectors()
    }

    /// Size in blocks.
    pub fn len_blocks(&self) -> u64 {
        self.store.len_sectors().div_ceil(BLOCK_SECTORS)
    }

    /// Size in bytes and hash of the base image.
    pub fn identity(&self) -> (u64, [u8; 32]) {
        (self.len_sectors() * SECTOR_BYTES as u64, self.store.base_hash())
    }

    /// Whether `len_bytes` from `sector` on lie inside the disk and are whole sectors.
    pub fn holds(&self, sector: u64, len_bytes: u64) -> bool {
        len_bytes.is_multiple_of(SECTOR_BYTES as u64)
            && sector
                .checked_add(len_bytes / SECTOR_BYTES as u64)
                .is_some_and(|end| end <= self.len_sectors())
    }

    /// Reads whole sectors inside the disk.
    ///
    /// # Errors
    /// When the store fails.
    pub fn read(&mut self, sector: u64, into: &mut [u8]) -> io::Result<()> {
        assert!(self.holds(sector, into.len() as u64), "the device checks ranges");
        self.store.read(sector, into)
    }

    /// Writes whole sectors inside the disk.
    ///
    /// # Errors
    /// When the store fails.
    pub fn write(&mut self, sector: u64, from: &[u8]) -> io::Result<()> {
        assert!(self.holds(sector, from.len() as u64), "the device checks ranges");
        if from.is_empty() {
            return Ok(());
        }
        let last = sector + (from.len() / SECTOR_BYTES) as u64 - 1;
        for block in sector / BLOCK_SECTORS..=last / BLOCK_SECTORS {
            self.mark(block, false)?;
        }
        self.store.write(sector, from)
    }

    /// Makes whole sectors inside the disk read as zeros; with `release`, they need no place
    /// on the host.
    ///
    /// What a digest and a checkpoint see follows from contents alone, not from how a host
    /// keeps them: a block that was never written to and holds zeros stays unwritten.
    ///
    /// # Errors
    /// When the store fails.
    pub fn zero(&mut self, sector: u64, len_sectors: u64, release: bool) -> io::Result<()> {
        let end = sector + len_sectors;
        assert!(end <= self.len_sectors(), "the device checks ranges");
        let end_block = if end == self.len_sectors() { self.len_blocks() } else { end / BLOCK_SECTORS };
        let whole = sector.div_ceil(BLOCK_SECTORS)..end_block;
        if whole.is_empty() {
            // At most a block, or the border of two.
            return self.write(sector, &vec![0; len_sectors as usize * SECTOR_BYTES]);
        }
        let head = sector..whole.start * BLOCK_SECTORS;
        let tail = (whole.end * BLOCK_SECTORS).min(end)..end;
        for part in [head, tail] {
            self.write(part.start, &ZERO_BLOCK[..(part.end - part.start) as usize * SECTOR_BYTES])?;
        }
        self.mark_zeroed(whole.clone())?;
        let end = (whole.end * BLOCK_SECTORS).min(end);
        let start = whole.start * BLOCK_SECTORS;
        self.store.zero(start, end - start, release)
    }

    /// Puts back a block as [`Disk::take_blocks`] gave it.
    ///
    /// # Errors
    /// When the store fails.
    pub fn put_block(&mut self, block: u64, data: &[u8; BLOCK_BYTES]) -> io::Result<()> {
        assert!(block < self.len_blocks(), "the caller checks the index");
        let sectors = self.sectors_of(block);
        let len_sectors = sectors.end - sectors.start;
        if *data == ZERO_BLOCK {
            self.mark(block, true)?;
            return self.store.zero(sectors.start, len_sectors, true);
        }
        self.write(sectors.start, &data[..len_sectors as usize * SECTOR_BYTES])
    }

    /// Notes the blocks that zeroing changes.
    fn mark_zeroed(&mut self, blocks: Range<u64>) -> io::Result<()> {
        let mut block = blocks.start;
        while block < blocks.end {
            let next = self.written.range(block..blocks.end).next().map_or(blocks.end, |(next, _)| *next);
            while block < next {
                let limit = (next - block) * BLOCK_SECTORS;
                let known = self.store.known_zero_sectors(block * BLOCK_SECTORS, limit)?;
                match known.min(limit) / BLOCK_SECTORS {
                    0 => {
                        if self.read_block(block)? != ZERO_BLOCK[..] {
                            self.mark(block, true)?;
                        }
                        block += 1;
                    }
                    blocks => block += blocks,
                }
            }
            if block < blocks.end {
                self.mark(block, true)?;
                block += 1;
            }
        }
        Ok(())
    }

    /// Notes that a block is about to change.
    fn mark(&mut self, block: u64, is_zero: bool) -> io::Result<()> {
        self.hold_frozen(block)?;
        let checkpoints_before = self.checkpoints;
        let written = self.written.entry(block).or_insert(Written { hash: 0, checkpoints_before, is_zero });
        written.is_zero = is_zero;
        self.stale.insert(block);
        if let Some(dirty) = &mut self.dirty {
            dirty.insert(block);
        }
        Ok(())
    }

    /// Makes earlier writes durable.
    ///
    /// # Errors
    /// When the store fails.
    pub fn flush(&mut self) -> io::Result<()> {
        self.store.flush()
    }

    /// Hash over the blocks that were written to: the wrapping sum of XXH3-128 of each,
    /// seeded with its number.
    ///
    /// # Errors
    /// When the store fails.
    pub fn digest(&mut self) -> io::Result<u128> {
        self.settle_increment()?;
        while let Some(block) = self.stale.first().copied() {
            let data = self.read_block(block)?;
            self.replace_hash(block, &data);
            self.stale.remove(&block);
        }
        Ok(self.hash_sum)
    }

    /// Hashes a block's contents anew. Returns its old and its new hash.
    fn replace_hash(&mut self, block: u64, data: &[u8]) -> (u128, u128) {
        let Some(written) = self.written.get_mut(&block) else { return (0, 0) };
        let hash = xxh3_128_with_seed(data, block);
        let before = std::mem::replace(&mut written.hash, hash);
        self.hash_sum = self.hash_sum.wrapping_sub(before).wrapping_add(hash);
        (before, hash)
    }

    /// Makes the disk its base image again.
    ///
    /// # Errors
    /// When the store fails.
    pub fn revert(&mut self) -> io::Result<()> {
        self.store.revert()?;
        self.written.clear();
        self.stale.clear();
        self.hash_sum = 0;
        self.dirty = None;
        self.full = None;
        self.alone = None;
        self.increment = None;
        Ok(())
    }

    fn read_block(&mut self, block: u64) -> io::Result<Bytes> {
        if self.written.get(&block).is_some_and(|written| written.is_zero) {
            return Ok(Bytes::from_static(&ZERO_BLOCK));
        }
        let mut data = vec![0; BLOCK_BYTES];
        let sectors = self.sectors_of(block);
        let len_bytes = (sectors.end - sectors.start) as usize * SECTOR_BYTES;
        self.store.read(sectors.start, &mut data[..len_bytes])?;
        Ok(data.into())
    }

    /// The sectors of a block inside the disk.
    fn sectors_of(&self, block: u64) -> Range<u64> {
        let start = block * BLOCK_SECTORS;
        start..(start + BLOCK_SECTORS).min(self.len_sectors())
    }
}
