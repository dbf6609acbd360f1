//! Where a disk's sectors are kept.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;

use super::{BLOCK_SECTORS, SECTOR_BYTES};

/// What a store without a way of its own writes at once to zero a range.
const ZEROED_AT_ONCE_SECTORS: u64 = 2048;

/// Where a disk's sectors are kept: a base image that never changes, with the guest's
/// writes laid over it.
///
/// Reads and writes are whole sectors inside the disk; the caller has checked that. An
/// error stops the machine ([`crate::Exit::HostFault`]): reads are not logged, so a machine
/// that went on after an error would differ from its replay.
pub trait BlockStore: Send {
    /// Size in sectors of 512 bytes.
    fn len_sectors(&self) -> u64;

    /// BLAKE3 of the base image, as the guest reads it.
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

    /// Makes `len_sectors` from `sector` on read as zeros. With `release` they need no place
    /// on the host any more; without, it stays reserved where the store can do so.
    ///
    /// # Errors
    /// When the host cannot.
    fn zero(&mut self, sector: u64, len_sectors: u64, release: bool) -> io::Result<()> {
        let _ = release;
        let zeros = vec![0; ZEROED_AT_ONCE_SECTORS.min(len_sectors) as usize * SECTOR_BYTES];
        let end = sector + len_sectors;
        let mut at = sector;
        while at < end {
            let len = ZEROED_AT_ONCE_SECTORS.min(end - at);
            self.write(at, &zeros[..len as usize * SECTOR_BYTES])?;
            at += len;
        }
        Ok(())
    }

    /// How many sectors from `sector` on, up to `limit_sectors`, the store knows to be zeros
    /// without reading them. Hosts may differ in what they know.
    ///
    /// # Errors
    /// When the host cannot say.
    fn known_zero_sectors(&mut self, sector: u64, limit_sectors: u64) -> io::Result<u64> {
        let _ = (sector, limit_sectors);
        Ok(0)
    }

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

    /// Makes a block of 4096 bytes its base image's again.
    ///
    /// # Errors
    /// When the host cannot.
    fn revert_block(&mut self, block: u64) -> io::Result<()> {
        let _ = block;
        Err(io::Error::other("this disk cannot give up the writes to a single block"))
    }

    /// The blocks, ascending, that the store kept from an earlier run and that differ from the
    /// base image.
    ///
    /// # Errors
    /// When the host cannot read them.
    fn kept_blocks(&mut self) -> io::Result<Vec<u64>> {
        Ok(Vec::new())
    }

    /// What is written from here on is one change: whatever dies before
    /// [`BlockStore::end_change`], a store that keeps its writes is found without any of it, or
    /// marked as not whole. Called again before that, the change goes on.
    ///
    /// # Errors
    /// When the host cannot.
    fn begin_change(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// The change is whole.
    ///
    /// # Errors
    /// When the host cannot write it.
    fn end_change(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk in host memory.
pub struct MemDisk {
    base: Bytes,
    /// `None` for zeros.
    written: BTreeMap<u64, Option<Box<[u8; SECTOR_BYTES]>>>,
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
                Some(Some(written)) => chunk.copy_from_slice(&written[..]),
                Some(None) => chunk.fill(0),
                None => chunk.copy_from_slice(&self.base[number as usize * SECTOR_BYTES..][..SECTOR_BYTES]),
            }
        }
        Ok(())
    }

    fn write(&mut self, sector: u64, from: &[u8]) -> io::Result<()> {
        for (number, chunk) in (sector..).zip(from.chunks_exact(SECTOR_BYTES)) {
            let slot = self.written.entry(number).or_default();
            slot.get_or_insert_with(|| Box::new([0; SECTOR_BYTES])).copy_from_slice(chunk);
        }
        Ok(())
    }

    fn zero(&mut self, sector: u64, len_sectors: u64, _: bool) -> io::Result<()> {
        self.written.extend((sector..sector + len_sectors).map(|number| (number, None)));
        Ok(())
    }

    fn known_zero_sectors(&mut self, sector: u64, limit_sectors: u64) -> io::Result<u64> {
        let zeroed = (sector..sector + limit_sectors)
            .take_while(|number| self.written.get(number).is_some_and(Option::is_none));
        Ok(zeroed.count() as u64)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn revert(&mut self) -> io::Result<()> {
        self.written.clear();
        Ok(())
    }

    fn revert_block(&mut self, block: u64) -> io::Result<()> {
        let first = block * BLOCK_SECTORS;
        (first..first + BLOCK_SECTORS).for_each(|sector| drop(self.written.remove(&sector)));
        Ok(())
    }
}
