//! Guest memory with a state per page: what the digest, a copy-on-write checkpoint and the
//! decoded-block cache must know about writes is settled once per page, before the first
//! write to it, and never again per store.

mod content;
mod freeze;
mod memory;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use log_format::Page;
use nix::errno::Errno;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use freeze::{FullFreeze, IncrementFreeze};
use memory::Memory;

/// Guest-physical address of the first byte of RAM, as on QEMU's `virt` board.
pub const RAM_BASE: u64 = 0x8000_0000;
/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Binary logarithm of [`PAGE_BYTES`].
pub const PAGE_SHIFT: u32 = 12;

/// Written since the last digest.
const HASH_STALE: u8 = 1 << 0;
/// Written since the epoch began; without an epoch, since power-on.
const DIRTY: u8 = 1 << 1;
/// Holds decoded code: a write must drop the blocks decoded from it.
const CODE: u8 = 1 << 2;
/// Holds page-table entries that some hart's TLB stands on.
const TABLE: u8 = 1 << 3;
/// Belongs to the full checkpoint under way and was not taken yet.
const FULL_PENDING: u8 = 1 << 4;
/// Belongs to the increment under way and was not taken yet.
const INCREMENT_PENDING: u8 = 1 << 5;
/// All flags of a page that has nothing more to settle before a write. DIRTY is set whether or
/// not anybody is to ask for it, so that a write's test is a single comparison.
const WRITTEN: u8 = HASH_STALE | DIRTY;

/// Bytes of a page that one bit of `code_chunks` stands for.
const CHUNK_SHIFT: usize = 6;
/// Writes to code that a hart may lag behind before it has to drop all it decoded.
const CODE_JOURNAL_ENTRIES: usize = 256;
/// Pages that became watched which a hart may lag behind before it gives up all rights to write.
const WATCHED_JOURNAL_ENTRIES: usize = 64;
/// Changes of page tables that a hart may lag behind before it has to drop all it derived.
const TABLE_JOURNAL_ENTRIES: usize = 64;
/// Changed page-table entries after which all TABLE flags are given up: pages that no
/// longer are page tables stop costing anything.
const TABLE_SWEEP_INTERVAL: u64 = 4096;
/// Bit 0 of a page-table entry: valid.
const ENTRY_VALID: u64 = 1;

/// Guest memory.
///
/// A hart may cache the right to write to a page (a write TLB entry) only after
/// [`Ram::prepare_write`] for that page, and only while [`Ram::write_generation`] stays the
/// same, and never for a page of which [`Ram::is_watched`] is true, which
/// [`Ram::watched_since`] tells of: a watched page holds
/// code or page tables that a hart caches, and every store to it goes through
/// [`Ram::write`] or [`Ram::write_watched`]. That makes those caches invisible: they agree
/// with memory at every instruction.
pub struct Ram {
    id: u64,
    bytes: Memory,
    flags: Box<[u8]>,
    write_generation: u64,
    /// The latest pages that became watched.
    watched: VecDeque<u64>,
    /// How many pages were ever pushed to `watched`.
    watched_generation: u64,
    /// The latest pages with code that were written to: what was decoded from them is stale.
    written_code: VecDeque<u64>,
    /// How many pages were ever pushed to `written_code`.
    code_generation: u64,
    /// For pages with CODE: which chunks were decoded.
    code_chunks: BTreeMap<u64, u64>,
    /// The latest changes of page-table entries that a TLB may stand on.
    changed_tables: VecDeque<TableChange>,
    /// How many were ever pushed to `changed_tables`.
    table_generation: u64,
    /// Pages with TABLE.
    tables: Vec<u64>,
    /// Hash of each page at the last digest; 0 for a page of zeros.
    hashes: Box<[u128]>,
    /// Wrapping sum of `hashes`.
    hash_sum: u128,
    /// The full checkpoint under way, if there is one.
    full: Option<FullFreeze>,
    /// The increment begun last, if there is one.
    increment: Option<IncrementFreeze>,
}

/// A change of a page table that a TLB may stand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableChange {
    /// Of the entry at this offset into RAM.
    Entry(u64),
    /// Of anything: all that was derived from any page table must go.
    All,
}

/// A guest-physical range does not lie in RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutsideRam;

impl Ram {
    /// Memory of `pages` pages of zeros. The host gives pages only as they are touched.
    ///
    /// # Panics
    /// Where [`Ram::try_new`] fails.
    pub fn new(pages: u64) -> Ram {
        Ram::try_new(pages).expect("the host has room for the guest's memory")
    }

    /// The same.
    ///
    /// # Errors
    /// When the host has no room for it.
    pub fn try_new(pages: u64) -> io::Result<Ram> {
        let pages = usize::try_from(pages).map_err(|_| Errno::ENOMEM)?;
        let bytes = pages.checked_mul(PAGE_BYTES).ok_or(Errno::ENOMEM)?;
        let bytes = Memory::new(bytes)?;
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Ok(Ram {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            bytes,
            flags: vec![0; pages].into_boxed_slice(),
            write_generation: 0,
            watched: VecDeque::new(),
            watched_generation: 0,
            written_code: VecDeque::new(),
            code_generation: 0,
            code_chunks: BTreeMap::new(),
            changed_tables: VecDeque::new(),
            table_generation: 0,
            tables: Vec::new(),
            hashes: vec![0; pages].into_boxed_slice(),
            hash_sum: 0,
            full: None,
            increment: None,
        })
    }

    /// Tells this memory from every other of this process: pointers into it are worth
    /// nothing for another. Never part of the machine's state.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.flags.len() as u64
    }

    /// Size in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Changes whenever cached rights to write must be given up.
    pub fn write_generation(&self) -> u64 {
        self.write_generation
    }

    /// Changes whenever a page becomes watched.
    #[inline]
    pub fn watched_generation(&self) -> u64 {
        self.watched_generation
    }

    /// Pages that became watched since `generation`, or `None` if that is too long ago to tell.
    pub fn watched_since(&self, generation: u64) -> Option<impl Iterator<Item = u64>> {
        let missed = usize::try_from(self.watched_generation - generation).ok()?;
        let known = self.watched.len().checked_sub(missed)?;
        Some(self.watched.iter().skip(known).copied())
    }

    fn note_watched(&mut self, page: u64) {
        if self.watched.len() == WATCHED_JOURNAL_ENTRIES {
            self.watched.pop_front();
        }
        self.watched.push_back(page);
        self.watched_generation += 1;
    }

    /// First byte of RAM on the host, for the harts' TLBs. Valid as long as this `Ram`
    /// is neither dropped nor cleared; writes through it follow the rule on [`Ram`].
    pub fn host_base(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }

    /// The bytes at guest-physical `address`.
    pub fn slice(&self, address: u64, len: usize) -> Result<&[u8], OutsideRam> {
        let range = self.range(address, len)?;
        Ok(&self.bytes[range])
    }

    /// Copies from guest-physical `address`.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), OutsideRam> {
        into.copy_from_slice(self.slice(address, into.len())?);
        Ok(())
    }

    /// Copies to guest-physical `address`, as a device's DMA does.
    pub fn write(&mut self, address: u64, from: &[u8]) -> Result<(), OutsideRam> {
        let range = self.range(address, from.len())?;
        if from.is_empty() {
            return Ok(());
        }
        let first = range.start >> PAGE_SHIFT;
        let last = (range.end - 1) >> PAGE_SHIFT;
        (first..=last).for_each(|page| self.prepare_write(page as u64));
        self.bytes[range].copy_from_slice(from);
        Ok(())
    }

    /// Settles all that must happen before `page` is written to.
    ///
    /// # Panics
    /// When there is no such page.
    #[inline]
    pub fn prepare_write(&mut self, page: u64) {
        if self.flags[page as usize] != WRITTEN {
            self.prepare_first_write(page);
        }
    }

    #[cold]
    fn prepare_first_write(&mut self, page: u64) {
        let flags = self.flags[page as usize];
        self.hold_frozen(page, flags);
        if flags & CODE != 0 {
            self.note_written_code(page);
        }
        self.flags[page as usize] = WRITTEN;
        if flags & TABLE != 0 {
            self.note_changed_table(TableChange::All);
        }
    }

    /// Whether a store to `page` must go through [`Ram::write_watched`].
    #[inline]
    pub fn is_watched(&self, page: u64) -> bool {
        self.flags[page as usize] & (CODE | TABLE) != 0
    }

    /// A hart's store to a watched page, within that page. Unlike [`Ram::write`], it looks
    /// at what is written, so that the page may stay watched and caches are dropped only
    /// where they stood on these bytes.
    pub fn write_watched(&mut self, address: u64, from: &[u8]) -> Result<(), OutsideRam> {
        let range = self.range(address, from.len())?;
        let page = (range.start >> PAGE_SHIFT) as u64;
        let offset = range.start % PAGE_BYTES;
        assert!(offset + from.len() <= PAGE_BYTES, "a store to a watched page lies within it");
        let mut flags = self.flags[page as usize];
        self.hold_frozen(page, flags);
        flags &= !(FULL_PENDING | INCREMENT_PENDING);
        if flags & CODE != 0
            && self.code_chunks.get(&page).is_none_or(|chunks| chunks & chunk_mask(offset, from.len()) != 0)
        {
            flags &= !CODE;
            self.note_written_code(page);
        }
        self.flags[page as usize] = flags | WRITTEN;
        if flags & TABLE != 0 && self.bytes[range.clone()] != *from {
            self.note_changed_entries(range.start, from.len());
        }
        self.bytes[range].copy_from_slice(from);
        Ok(())
    }

    /// Notes that `len` bytes at `start` change. Of page-table entries that were not valid
    /// nothing is cached.
    fn note_changed_entries(&mut self, start: usize, len: usize) {
        let last = (start + len - 1) & !7;
        for entry in (start & !7..=last).step_by(8) {
            if u64::from(self.bytes[entry]) & ENTRY_VALID != 0 {
                self.note_changed_table(TableChange::Entry(entry as u64));
            }
        }
    }

    fn note_written_code(&mut self, page: u64) {
        self.code_chunks.remove(&page);
        if self.written_code.len() == CODE_JOURNAL_ENTRIES {
            self.written_code.pop_front();
        }
        self.written_code.push_back(page);
        self.code_generation += 1;
    }

    fn note_changed_table(&mut self, change: TableChange) {
        self.table_generation += 1;
        let sweeps = self.table_generation.is_multiple_of(TABLE_SWEEP_INTERVAL);
        if sweeps || change == TableChange::All {
            for page in std::mem::take(&mut self.tables) {
                self.flags[page as usize] &= !TABLE;
            }
        }
        if self.changed_tables.len() == TABLE_JOURNAL_ENTRIES {
            self.changed_tables.pop_front();
        }
        self.changed_tables.push_back(if sweeps { TableChange::All } else { change });
    }

    /// Notes that `len` bytes of code at `offset` in `page` were decoded: writes to them are
    /// reported by [`Ram::written_code_since`].
    pub fn mark_code(&mut self, page: u64, offset: usize, len: usize) {
        *self.code_chunks.entry(page).or_insert(0) |= chunk_mask(offset, len);
        if self.flags[page as usize] & CODE == 0 {
            self.flags[page as usize] |= CODE;
            self.note_watched(page);
        }
    }

    /// Changes whenever code marked by [`Ram::mark_code`] was written to.
    #[inline]
    pub fn code_generation(&self) -> u64 {
        self.code_generation
    }

    /// Pages with decoded code that were written to since `generation`, or `None` if that is
    /// too long ago to tell.
    pub fn written_code_since(&self, generation: u64) -> Option<impl Iterator<Item = u64>> {
        let missed = usize::try_from(self.code_generation - generation).ok()?;
        let known = self.written_code.len().checked_sub(missed)?;
        Some(self.written_code.iter().skip(known).copied())
    }

    /// Notes that a hart caches something derived from page-table entries in `page`.
    pub fn mark_table(&mut self, page: u64) {
        if self.flags[page as usize] & TABLE == 0 {
            self.flags[page as usize] |= TABLE;
            self.tables.push(page);
            self.note_watched(page);
        }
    }

    /// Changes whenever a page-table entry changed that a TLB may stand on.
    #[inline]
    pub fn table_generation(&self) -> u64 {
        self.table_generation
    }

    /// Changes of page tables since `generation`, or `None` if that is too long ago to tell.
    pub fn changed_tables_since(&self, generation: u64) -> Option<impl Iterator<Item = TableChange>> {
        let missed = usize::try_from(self.table_generation - generation).ok()?;
        let known = self.changed_tables.len().checked_sub(missed)?;
        Some(self.changed_tables.iter().skip(known).copied())
    }

    /// Sets the accessed and dirty bits in the page-table entry at `address`, as the page
    /// walk of a hart does. No TLB has to know: what it holds stays true.
    pub fn write_entry_bits(&mut self, address: u64, entry: u64) -> Result<(), OutsideRam> {
        let range = self.range(address, 8)?;
        let page = (range.start >> PAGE_SHIFT) as u64;
        if self.flags[page as usize] & TABLE == 0 {
            return self.write(address, &entry.to_le_bytes());
        }
        self.flags[page as usize] &= !TABLE;
        let result = self.write(address, &entry.to_le_bytes());
        self.flags[page as usize] |= TABLE;
        result
    }

    /// Hash over all pages: the wrapping sum of XXH3-128 of each page that is not zero,
    /// seeded with its number. Costs a hash of the pages written since the last call.
    pub fn digest(&mut self) -> u128 {
        self.settle_increment();
        for page in 0..self.flags.len() {
            if self.flags[page] & HASH_STALE != 0 {
                self.flags[page] &= !HASH_STALE;
                let hash = page_hash(page as u64, self.page_bytes(page as u64));
                let before = std::mem::replace(&mut self.hashes[page], hash);
                self.hash_sum = self.hash_sum.wrapping_sub(before).wrapping_add(hash);
            }
        }
        self.write_generation += 1;
        self.hash_sum
    }

    /// Puts a page of a restored checkpoint (or of a boot image) into place.
    pub fn put_page(&mut self, page: &Page) -> Result<(), OutsideRam> {
        let address = RAM_BASE.saturating_add(page.index.saturating_mul(PAGE_BYTES as u64));
        match &page.data {
            Some(data) if data.len() != PAGE_BYTES => Err(OutsideRam),
            Some(data) => self.write(address, data),
            None => self.write(address, &[0; PAGE_BYTES]),
        }
    }

    fn page_bytes(&self, page: u64) -> &[u8] {
        &self.bytes[page as usize * PAGE_BYTES..][..PAGE_BYTES]
    }

    fn range(&self, address: u64, len: usize) -> Result<std::ops::Range<usize>, OutsideRam> {
        let start = address.checked_sub(RAM_BASE).ok_or(OutsideRam)?;
        let end = start.checked_add(len as u64).ok_or(OutsideRam)?;
        if end > self.len_bytes() {
            return Err(OutsideRam);
        }
        Ok(start as usize..end as usize)
    }
}

/// The bits of `code_chunks` that `len` bytes at `offset` in a page touch.
fn chunk_mask(offset: usize, len: usize) -> u64 {
    let first = offset >> CHUNK_SHIFT;
    let last = (offset + len.max(1) - 1).min(PAGE_BYTES - 1) >> CHUNK_SHIFT;
    (u64::MAX >> (63 - (last - first))) << first
}

/// A page's part in the digest: 0 for zeros.
fn page_hash(page: u64, bytes: &[u8]) -> u128 {
    if is_zero(bytes) { 0 } else { xxh3_128_with_seed(bytes, page) }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}
