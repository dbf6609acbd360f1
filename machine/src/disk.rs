//! Disks: where sectors are kept, and which of them differ from the base image.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use log_format::DiskBlock;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;
/// Bytes of a block, the unit of digests and checkpoints.
pub const BLOCK_BYTES: usize = 4096;
const BLOCK_SECTORS: u64 = (BLOCK_BYTES / SECTOR_BYTES) as u64;

/// Where a disk's sectors are kept: a base image that never changes, with the guest's
/// writes laid over it.
///
/// Reads and writes are whole sectors inside the disk; the caller has checked that. An
/// error stops the machine ([`crate::Exit::HostFault`]): reads are not logged, so a machine
/// that went on after an error would differ from its replay.
pub trait BlockStore: Send {
    /// Size in sectors of 512 bytes: a multiple of 8.
    fn len_sectors(&self) -> u64;

    /// BLAKE3 of the base image.
    fn base_hash(&self) -> [u8; 32];

    /// Reads from `sector` on.
    ///
    /// # Errors
    /// When the host cannot read.
    fn read(&mut self, sector: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes from `sector` on.
    ///
    /// # Errors
    /// When the host cannot write.
    fn write(&mut self, sector: u64, from: &[u8]) -> io::Result<()>;

    /// Makes earlier writes durable.
    ///
    /// # Errors
    /// When the host cannot.
    fn flush(&mut self) -> io::Result<()>;

    /// Forgets all writes: the disk is its base image again.
    ///
    /// # Errors
    /// When the host cannot.
    fn revert(&mut self) -> io::Result<()>;
}

/// A disk of the machine: a [`BlockStore`] and what a digest and a checkpoint must know
/// about the writes to it.
pub struct Disk {
    store: Box<dyn BlockStore>,
    /// The blocks that were written to.
    written: BTreeMap<u64, Written>,
    hash_sum: u128,
    /// Blocks written to since the last digest.
    stale: BTreeSet<u64>,
    /// How many checkpoints were begun.
    checkpoints: u64,
    /// Next block that the checkpoint under way takes; `None` when there is none.
    checkpoint_cursor: Option<u64>,
    /// Old contents of blocks of the checkpoint that were written to before they were taken.
    held: BTreeMap<u64, Vec<u8>>,
}

/// A block that was written to.
struct Written {
    /// Its hash as of the last digest; 0 before.
    hash: u128,
    /// How many checkpoints were begun before the first write to it: it belongs to later ones.
    checkpoints_before: u64,
}

impl Disk {
    /// A disk whose contents are the store's base image.
    ///
    /// # Errors
    /// When writes left in the store cannot be forgotten.
    pub fn new(store: Box<dyn BlockStore>) -> io::Result<Disk> {
        let mut disk = Disk {
            store,
            written: BTreeMap::new(),
            hash_sum: 0,
            stale: BTreeSet::new(),
            checkpoints: 0,
            checkpoint_cursor: None,
            held: BTreeMap::new(),
        };
        disk.revert()?;
        Ok(disk)
    }

    /// Size in sectors.
    pub fn len_sectors(&self) -> u64 {
        self.store.len_sectors()
    }

    /// Size in blocks.
    pub fn len_blocks(&self) -> u64 {
        self.store.len_sectors() / BLOCK_SECTORS
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
            if self.is_pending(block) {
                let old = self.read_block(block)?;
                self.held.insert(block, old);
            }
            let checkpoints_before = self.checkpoints;
            self.written.entry(block).or_insert(Written { hash: 0, checkpoints_before });
            self.stale.insert(block);
        }
        self.store.write(sector, from)
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
        while let Some(block) = self.stale.first().copied() {
            let hash = xxh3_128_with_seed(&self.read_block(block)?, block);
            if let Some(written) = self.written.get_mut(&block) {
                let before = std::mem::replace(&mut written.hash, hash);
                self.hash_sum = self.hash_sum.wrapping_sub(before).wrapping_add(hash);
            }
            self.stale.remove(&block);
        }
        Ok(self.hash_sum)
    }

    /// Freezes the blocks that were written to, for [`Disk::take_blocks`].
    pub fn begin_checkpoint(&mut self) {
        self.held.clear();
        self.checkpoints += 1;
        self.checkpoint_cursor = Some(0);
    }

    /// Takes up to `limit` frozen blocks; empty at the end.
    ///
    /// # Errors
    /// When the store fails.
    pub fn take_blocks(&mut self, disk: u8, limit: usize) -> io::Result<Vec<DiskBlock>> {
        let mut taken = Vec::new();
        while let Some(cursor) = self.checkpoint_cursor.filter(|_| taken.len() < limit) {
            let frozen = |(_, written): &(&u64, &Written)| written.checkpoints_before < self.checkpoints;
            let Some((&index, _)) = self.written.range(cursor..).find(frozen) else {
                self.checkpoint_cursor = None;
                break;
            };
            let data = match self.held.remove(&index) {
                Some(old) => old,
                None => self.read_block(index)?,
            };
            self.checkpoint_cursor = Some(index + 1);
            taken.push(DiskBlock { disk, index, data: Bytes::from(data) });
        }
        Ok(taken)
    }

    /// Whether the checkpoint under way still has to take `block` as it is now.
    fn is_pending(&self, block: u64) -> bool {
        let belongs = |written: &Written| written.checkpoints_before < self.checkpoints;
        self.checkpoint_cursor.is_some_and(|cursor| cursor <= block)
            && self.written.get(&block).is_some_and(belongs)
            && !self.held.contains_key(&block)
    }

    /// Bytes of old block contents held for the checkpoint under way.
    pub fn held_bytes(&self) -> u64 {
        (self.held.len() * BLOCK_BYTES) as u64
    }

    /// Gives up the checkpoint under way.
    pub fn cancel_checkpoint(&mut self) {
        self.checkpoint_cursor = None;
        self.held.clear();
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
        self.cancel_checkpoint();
        Ok(())
    }

    fn read_block(&mut self, block: u64) -> io::Result<Vec<u8>> {
        let mut data = vec![0; BLOCK_BYTES];
        self.store.read(block * BLOCK_SECTORS, &mut data)?;
        Ok(data)
    }
}

/// A disk in host memory.
pub struct MemDisk {
    base: Bytes,
    written: BTreeMap<u64, [u8; SECTOR_BYTES]>,
}

impl MemDisk {
    /// A disk with this base image.
    pub fn new(base: impl Into<Bytes>) -> MemDisk {
        MemDisk { base: base.into(), written: BTreeMap::new() }
    }

    /// A disk of zeros.
    pub fn zeroed(len_bytes: usize) -> MemDisk {
        MemDisk::new(vec![0; len_bytes])
    }
}

impl BlockStore for MemDisk {
    fn len_sectors(&self) -> u64 {
        (self.base.len() / SECTOR_BYTES) as u64
    }

    fn base_hash(&self) -> [u8; 32] {
        *blake3::hash(&self.base).as_bytes()
    }

    fn read(&mut self, sector: u64, into: &mut [u8]) -> io::Result<()> {
        for (number, chunk) in (sector..).zip(into.chunks_exact_mut(SECTOR_BYTES)) {
            match self.written.get(&number) {
                Some(written) => chunk.copy_from_slice(written),
                None => chunk.copy_from_slice(&self.base[number as usize * SECTOR_BYTES..][..SECTOR_BYTES]),
            }
        }
        Ok(())
    }

    fn write(&mut self, sector: u64, from: &[u8]) -> io::Result<()> {
        for (number, chunk) in (sector..).zip(from.chunks_exact(SECTOR_BYTES)) {
            let slot = self.written.entry(number).or_insert([0; SECTOR_BYTES]);
            slot.copy_from_slice(chunk);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn revert(&mut self) -> io::Result<()> {
        self.written.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        Disk::new(Box::new(MemDisk::zeroed(16 * BLOCK_BYTES))).unwrap()
    }

    #[test]
    fn digest_follows_contents_only() {
        let (mut one, mut other) = (disk(), disk());
        let base = one.digest().unwrap();
        one.write(9, &[1; SECTOR_BYTES]).unwrap();
        assert_ne!(one.digest().unwrap(), base);
        other.write(9, &[2; SECTOR_BYTES]).unwrap();
        other.digest().unwrap();
        other.write(9, &[1; SECTOR_BYTES]).unwrap();
        assert_eq!(one.digest().unwrap(), other.digest().unwrap());
        one.revert().unwrap();
        assert_eq!(one.digest().unwrap(), base);
    }

    #[test]
    fn a_checkpoint_shows_the_frozen_contents() {
        let mut disk = disk();
        disk.write(0, &[1; BLOCK_BYTES]).unwrap();
        disk.write(80, &[2; SECTOR_BYTES]).unwrap();
        disk.begin_checkpoint();
        disk.write(0, &[9; SECTOR_BYTES]).unwrap();
        disk.write(40, &[9; SECTOR_BYTES]).unwrap();
        assert_eq!(disk.held_bytes(), BLOCK_BYTES as u64);
        let mut taken = Vec::new();
        loop {
            let part = disk.take_blocks(3, 1).unwrap();
            if part.is_empty() {
                break;
            }
            taken.extend(part);
        }
        assert_eq!(
            taken.iter().map(|block| (block.disk, block.index)).collect::<Vec<_>>(),
            [(3, 0), (3, 10)]
        );
        assert_eq!(disk.held_bytes(), 0);
        assert!(taken[0].data.iter().all(|byte| *byte == 1));
        assert_eq!((taken[1].data[0], taken[1].data[SECTOR_BYTES]), (2, 0));
    }

    #[test]
    fn ranges_past_the_end_are_refused() {
        let disk = disk();
        assert!(disk.holds(127, 512) && disk.holds(128, 0));
        assert!(!disk.holds(128, 512) && !disk.holds(u64::MAX, 512) && !disk.holds(0, 100));
    }
}
