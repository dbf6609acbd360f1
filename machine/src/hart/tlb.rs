//! The software TLB: guest-virtual pages to host memory, for data.
//!
//! Entries exist for pages of RAM only, and only while they agree with the page tables, PMP
//! and the page flags in memory: [`super::Hart`] drops them whenever one of these changes. So no program can tell
//! whether an entry is there, and a machine restored with an empty TLB behaves the same.

use std::ptr;

use crate::ram::{PAGE_BYTES, PAGE_SHIFT};

/// Entries of one TLB: 8 MiB of reach with direct mapping.
const ENTRIES: usize = 2048;
/// A tag that no address has.
const NO_TAG: u64 = u64::MAX;
const PAGE_OFFSET: u64 = PAGE_BYTES as u64 - 1;

/// Under which rules data is accessed. Each has TLBs of its own, so that a system call
/// costs no misses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Regime {
    /// U-mode.
    User,
    /// S-mode without access to user pages.
    Supervisor,
    /// S-mode with access to user pages (SUM).
    SupervisorUser,
    /// M-mode: no translation.
    Machine,
}

/// Number of [`Regime`]s.
const REGIMES: usize = 4;

/// `va + addend` is the host address.
#[derive(Clone, Copy)]
#[repr(C)]
struct Entry {
    tag: u64,
    addend: u64,
}

/// What translated code must know of the layout.
#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    expect(dead_code, reason = "no translator")
)]
pub(super) mod native {
    use super::*;
    use std::mem::offset_of;

    /// Binary logarithm of an entry's size.
    pub const ENTRY_SHIFT: u32 = size_of::<Entry>().trailing_zeros();
    /// From an address, shifted such that its page number counts entries, to its entry.
    pub const INDEX_MASK: i32 = ((ENTRIES - 1) << ENTRY_SHIFT) as i32;
    /// Places in an entry.
    pub const TAG: i32 = offset_of!(Entry, tag) as i32;
    pub const ADDEND: i32 = offset_of!(Entry, addend) as i32;
    /// From a regime's read TLB to its write TLB.
    pub const WRITES: i32 = (ENTRIES * size_of::<Entry>()) as i32;
    /// Where the address of the present read TLB is.
    pub const READ: usize = offset_of!(Tlb, read);
    const _: () = assert!(size_of::<Entry>() == 1 << ENTRY_SHIFT);
}

const EMPTY: Entry = Entry { tag: NO_TAG, addend: 0 };

/// An integer that a load or store moves. All bit patterns are values.
pub(super) trait Scalar: Copy {}
impl Scalar for i8 {}
impl Scalar for u8 {}
impl Scalar for i16 {}
impl Scalar for u16 {}
impl Scalar for i32 {}
impl Scalar for u32 {}
impl Scalar for i64 {}
impl Scalar for u64 {}

pub(super) struct Tlb {
    /// For each regime the read TLB, then the write TLB.
    entries: Box<[Entry]>,
    /// Places in `entries` that are filled; more than are there when it overflowed.
    filled: Vec<u32>,
    /// The TLBs of the present regime.
    read: *const Entry,
    write: *const Entry,
    regime: Regime,
}

/// Fills noted one by one; past that a flush sweeps all.
const FILLED_LIMIT: usize = 512;

// SAFETY: the pointers are into `entries`, which moves with the struct as a box does, and
// host addresses in entries are used only as long as the RAM they point into lives.
unsafe impl Send for Tlb {}

impl Tlb {
    pub fn new() -> Tlb {
        let entries = vec![EMPTY; REGIMES * 2 * ENTRIES].into_boxed_slice();
        let start = entries.as_ptr();
        let mut tlb = Tlb {
            entries,
            filled: Vec::with_capacity(FILLED_LIMIT),
            read: start,
            write: start,
            regime: Regime::Machine,
        };
        tlb.select(Regime::Machine);
        tlb
    }

    /// Makes `regime` the present one.
    pub fn select(&mut self, regime: Regime) {
        let (read, write) = places(regime);
        self.regime = regime;
        self.read = self.entries[read..][..ENTRIES].as_ptr();
        self.write = self.entries[write..][..ENTRIES].as_ptr();
    }

    /// The present regime.
    pub fn regime(&self) -> Regime {
        self.regime
    }

    /// Reads at a guest-virtual address if that is aligned and its page is here.
    #[inline(always)]
    pub fn read<T: Scalar>(&self, address: u64) -> Option<T> {
        // SAFETY: `read` points to ENTRIES entries, and the index is below that.
        let entry = unsafe { &*self.read.add(index(address)) };
        if !hits::<T>(entry, address) {
            return None;
        }
        let host = ptr::with_exposed_provenance::<T>(entry.addend.wrapping_add(address) as usize);
        // SAFETY: an entry stands for a whole page of live RAM (`fill`), and an access whose
        // alignment was tested lies within its page.
        Some(unsafe { host.read_unaligned() })
    }

    /// As [`Tlb::read`], aligned or not, within a page.
    pub fn read_misaligned<T: Scalar>(&self, address: u64) -> Option<T> {
        // SAFETY: `read` points to ENTRIES entries, and the index is below that.
        let entry = unsafe { &*self.read.add(index(address)) };
        if !hits_misaligned::<T>(entry, address) {
            return None;
        }
        let host = ptr::with_exposed_provenance::<T>(entry.addend.wrapping_add(address) as usize);
        // SAFETY: an entry stands for a whole page of live RAM (`fill`), and the access was tested
        // to lie within it.
        Some(unsafe { host.read_unaligned() })
    }

    /// As [`Tlb::write`], aligned or not, within a page.
    pub fn write_misaligned<T: Scalar>(&mut self, address: u64, value: T) -> bool {
        // SAFETY: `write` points to ENTRIES entries, and the index is below that.
        let entry = unsafe { &*self.write.add(index(address)) };
        if !hits_misaligned::<T>(entry, address) {
            return false;
        }
        let host = ptr::with_exposed_provenance_mut::<T>(entry.addend.wrapping_add(address) as usize);
        // SAFETY: as in `read_misaligned`.
        unsafe { host.write_unaligned(value) };
        true
    }

    /// Writes at a guest-virtual address if that is aligned and the right to write to its
    /// page is here. Returns whether it did.
    #[inline(always)]
    pub fn write<T: Scalar>(&mut self, address: u64, value: T) -> bool {
        let Some(host) = self.writable::<T>(address) else { return false };
        // SAFETY: as in `read`.
        unsafe { host.write_unaligned(value) };
        true
    }

    /// Replaces a value by `change` of it, where [`Tlb::write`] could write. Returns the old one.
    #[inline(always)]
    pub fn update<T: Scalar>(&mut self, address: u64, change: impl FnOnce(T) -> T) -> Option<T> {
        let host = self.writable::<T>(address)?;
        // SAFETY: as in `read`.
        let old = unsafe { host.read_unaligned() };
        // SAFETY: as in `read`.
        unsafe { host.write_unaligned(change(old)) };
        Some(old)
    }

    #[inline(always)]
    fn writable<T: Scalar>(&mut self, address: u64) -> Option<*mut T> {
        // SAFETY: `write` points to ENTRIES entries, and the index is below that.
        let entry = unsafe { &*self.write.add(index(address)) };
        hits::<T>(entry, address)
            .then(|| ptr::with_exposed_provenance_mut(entry.addend.wrapping_add(address) as usize))
    }

    /// Adds the page of guest-virtual `address` to the present regime's read TLB, or to its
    /// write TLB.
    ///
    /// # Safety
    /// `host_page` is the address, with exposed provenance, of PAGE_BYTES bytes of RAM that stay
    /// valid, and for writing stay writable by this hart, until they are flushed from here.
    pub unsafe fn fill(&mut self, address: u64, host_page: usize, writable: bool) {
        let (read, write) = places(self.regime);
        let place = index(address) + if writable { write } else { read };
        let page = address & !PAGE_OFFSET;
        self.entries[place] = Entry { tag: page, addend: (host_page as u64).wrapping_sub(page) };
        if self.filled.len() < FILLED_LIMIT {
            self.filled.push(place as u32);
        }
    }

    /// Drops every entry.
    pub fn flush(&mut self) {
        if self.filled.len() < FILLED_LIMIT {
            self.filled.drain(..).for_each(|place| self.entries[place as usize] = EMPTY);
        } else {
            self.filled.clear();
            self.entries.fill(EMPTY);
        }
    }

    /// Drops the page of guest-virtual `address` under every regime.
    pub fn flush_page(&mut self, address: u64) {
        let page = address & !PAGE_OFFSET;
        for place in (index(address)..self.entries.len()).step_by(ENTRIES) {
            if self.entries[place].tag == page {
                self.entries[place] = EMPTY;
            }
        }
    }

    /// Drops every right to write to the page at a host address.
    pub fn flush_writes_to(&mut self, host_page: usize) {
        let is_stale = |entry: &Entry| entry.addend.wrapping_add(entry.tag) == host_page as u64;
        if self.filled.len() < FILLED_LIMIT {
            for &place in self.filled.iter().filter(|&&place| is_write(place as usize)) {
                let entry = &mut self.entries[place as usize];
                if is_stale(entry) {
                    *entry = EMPTY;
                }
            }
        } else {
            let writes = self.entries.chunks_exact_mut(ENTRIES).skip(1).step_by(2);
            writes.flatten().filter(|entry| is_stale(entry)).for_each(|entry| *entry = EMPTY);
        }
    }

    /// Drops every right to write.
    pub fn flush_writes(&mut self) {
        if self.filled.len() < FILLED_LIMIT {
            let entries = &mut self.entries;
            self.filled.retain(|&place| {
                let write = is_write(place as usize);
                if write {
                    entries[place as usize] = EMPTY;
                }
                !write
            });
        } else {
            self.entries.chunks_exact_mut(ENTRIES).skip(1).step_by(2).for_each(|writes| writes.fill(EMPTY));
        }
    }
}

/// Whether a place in the entries is in a write TLB.
fn is_write(place: usize) -> bool {
    place / ENTRIES % 2 == 1
}

/// Where the read and the write TLB of a regime begin.
fn places(regime: Regime) -> (usize, usize) {
    let read = regime as usize * 2 * ENTRIES;
    (read, read + ENTRIES)
}

#[inline(always)]
fn index(address: u64) -> usize {
    (address >> PAGE_SHIFT) as usize % ENTRIES
}

#[inline(always)]
fn hits<T>(entry: &Entry, address: u64) -> bool {
    address & (!PAGE_OFFSET | (size_of::<T>() as u64 - 1)) == entry.tag
}

fn hits_misaligned<T>(entry: &Entry, address: u64) -> bool {
    let last_offset = (PAGE_BYTES - size_of::<T>()) as u64;
    address & !PAGE_OFFSET == entry.tag && address & PAGE_OFFSET <= last_offset
}
