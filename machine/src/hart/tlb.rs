//! The software TLB: guest-virtual pages to host memory, for data.
//!
//! Entries exist for pages of RAM only, and only while they agree with the page tables, PMP
//! and the page flags in memory: [`super::Hart`] drops them whenever one of these changes. So no program can tell
//! whether an entry is there, and a machine restored with an empty TLB behaves the same.

use std::ptr;

use super::spaces::{Rights, is_high};
use crate::ram::{PAGE_BYTES, PAGE_SHIFT, RAM_BASE, Ram};

/// Entries of one TLB: 8 MiB of reach with direct mapping.
const ENTRIES: usize = 2048;
/// A tag that no address has.
const NO_TAG: u64 = u64::MAX;
const PAGE_OFFSET: u64 = PAGE_BYTES as u64 - 1;

/// Under which rules data is accessed. Each has TLBs of its own, so that a system call
/// costs no misses; U-mode has one per address space ([`super::spaces`]).
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

/// Regimes whose TLBs are the same in every address space: in the order Machine, Supervisor,
/// SupervisorUser.
const SHARED_REGIMES: usize = 3;

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

/// Entries that are dropped together: for each regime a read TLB and a write TLB, and then the second ways
/// of both. Every access looks at the first way; what is in the second is swapped into it on the slow path.
struct Set {
    entries: Box<[Entry]>,
    /// Places in `entries` that are filled; more than are there when it overflowed.
    filled: Vec<u32>,
}

pub(super) struct Tlb {
    /// M-mode's, S-mode's and S-mode's with user pages.
    shared: Set,
    /// U-mode's, one per address space.
    spaces: Vec<Set>,
    /// Places in `shared` that S-mode filled for addresses in the lower half; more than are there when it
    /// overflowed.
    low: Vec<u32>,
    /// The TLBs of the present regime.
    read: *const Entry,
    write: *const Entry,
    regime: Regime,
    /// The present address space.
    space: usize,
}

/// Entries of a regime.
const REGIME: usize = 2 * WAY;
/// From an entry's place to that of the second way.
const WAY: usize = 2 * ENTRIES;
/// Fills noted one by one; past that a flush sweeps all.
const FILLED_LIMIT: usize = 512;
/// The same of S-mode's in the lower half.
const LOW_LIMIT: usize = 64;

// SAFETY: the pointers are into the entries of a set, which move with the struct as a box does, and
// host addresses in entries are used only as long as the RAM they point into lives.
unsafe impl Send for Tlb {}

impl Tlb {
    pub fn new() -> Tlb {
        let shared = Set::new(SHARED_REGIMES);
        let start = shared.entries.as_ptr();
        let mut tlb = Tlb {
            shared,
            spaces: vec![Set::new(1)],
            low: Vec::with_capacity(LOW_LIMIT),
            read: start,
            write: start,
            regime: Regime::Machine,
            space: 0,
        };
        tlb.select(Regime::Machine, 0);
        tlb
    }

    /// Sees to it that there is a TLB for an address space.
    pub fn make_space(&mut self, space: usize) {
        while self.spaces.len() <= space {
            self.spaces.push(Set::new(1));
        }
    }

    /// Makes a regime and an address space, which there is, the present ones.
    pub fn select(&mut self, regime: Regime, space: usize) {
        self.regime = regime;
        self.space = space;
        let (set, read) = self.present_set();
        let (read, write) =
            (set.entries[read..][..ENTRIES].as_ptr(), set.entries[read + ENTRIES..][..ENTRIES].as_ptr());
        self.read = read;
        self.write = write;
    }

    /// The set of the present regime, and where in it the read TLB begins.
    fn present_set(&mut self) -> (&mut Set, usize) {
        match self.regime {
            Regime::User => (&mut self.spaces[self.space], 0),
            Regime::Machine => (&mut self.shared, 0),
            Regime::Supervisor => (&mut self.shared, REGIME),
            Regime::SupervisorUser => (&mut self.shared, 2 * REGIME),
        }
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

    /// As [`Tlb::read`], of `size` bytes (1, 2, 4 or 8), zero-extended.
    pub fn read_sized(&self, address: u64, size: usize) -> Option<u64> {
        match size {
            1 => self.read::<u8>(address).map(u64::from),
            2 => self.read::<u16>(address).map(u64::from),
            4 => self.read::<u32>(address).map(u64::from),
            _ => self.read::<u64>(address),
        }
    }

    /// As [`Tlb::write`], of the low `size` bytes (1, 2, 4 or 8).
    pub fn write_sized(&mut self, address: u64, value: u64, size: usize) -> bool {
        match size {
            1 => self.write(address, value as u8),
            2 => self.write(address, value as u16),
            4 => self.write(address, value as u32),
            _ => self.write(address, value),
        }
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

    /// Where on the host the aligned bytes at a guest-virtual address are, if they may be read, or
    /// written to, and their page is here.
    pub fn host_address<T: Scalar>(&self, address: u64, writable: bool) -> Option<u64> {
        let way = if writable { self.write } else { self.read };
        // SAFETY: both point to ENTRIES entries, and the index is below that.
        let entry = unsafe { &*way.add(index(address)) };
        hits::<T>(entry, address).then(|| entry.addend.wrapping_add(address))
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
        let page = address & !PAGE_OFFSET;
        self.put(address, Entry { tag: page, addend: (host_page as u64).wrapping_sub(page) }, writable);
    }

    /// Looks at the second way. Returns whether the page of guest-virtual `address` is in the first one now.
    pub fn promote(&mut self, address: u64, writable: bool) -> bool {
        let (set, read) = self.present_set();
        let place = index(address) + read + if writable { ENTRIES } else { 0 };
        let entry = set.entries[place + WAY];
        if entry.tag != address & !PAGE_OFFSET {
            return false;
        }
        self.put(address, entry, writable);
        true
    }

    /// Puts an entry into the first way, and what was there into the second.
    fn put(&mut self, address: u64, entry: Entry, writable: bool) {
        let is_supervisor = matches!(self.regime, Regime::Supervisor | Regime::SupervisorUser);
        let (set, read) = self.present_set();
        let place = index(address) + read + if writable { ENTRIES } else { 0 };
        let mut before = std::mem::replace(&mut set.entries[place], entry);
        set.note_filled(place, before);
        let moves = before.tag != NO_TAG && before.tag != entry.tag;
        if moves {
            std::mem::swap(&mut set.entries[place + WAY], &mut before);
            set.note_filled(place + WAY, before);
        }
        if is_supervisor {
            self.note_low(place);
            self.note_low(place + WAY);
        }
    }

    fn note_low(&mut self, place: usize) {
        if !is_high(self.shared.entries[place].tag) && self.low.len() < LOW_LIMIT {
            self.low.push(place as u32);
        }
    }

    /// Drops every entry.
    pub fn flush(&mut self) {
        self.shared.flush();
        self.low.clear();
        self.spaces.iter_mut().for_each(Set::flush);
    }

    /// Drops S-mode's entries.
    pub fn flush_supervisor(&mut self) {
        self.shared.entries[REGIME..].fill(EMPTY);
        self.low.clear();
    }

    /// Drops S-mode's entries of the lower half.
    pub fn flush_low(&mut self) {
        let entries = &mut self.shared.entries;
        if self.low.len() < LOW_LIMIT {
            // Another address may have taken the place since.
            let low = self.low.drain(..).map(|place| place as usize);
            low.for_each(|place| {
                if !is_high(entries[place].tag) {
                    entries[place] = EMPTY;
                }
            });
        } else {
            self.low.clear();
            entries[REGIME..].iter_mut().filter(|entry| !is_high(entry.tag)).for_each(|entry| *entry = EMPTY);
        }
    }

    /// Drops U-mode's entries of an address space.
    pub fn flush_space(&mut self, space: usize) {
        self.spaces[space].flush();
    }

    /// Drops S-mode's entries for the page of guest-virtual `address`.
    pub fn flush_supervisor_page(&mut self, address: u64) {
        self.shared.flush_page(address, REGIME);
    }

    /// Drops U-mode's entries in an address space for the page of guest-virtual `address`.
    pub fn flush_space_page(&mut self, space: usize, address: u64) {
        self.spaces[space].flush_page(address, 0);
    }

    /// Drops the rights to write that no longer hold, of those at hand, given when `since` was so.
    pub fn drop_rights(&mut self, ram: &Ram, since: Rights) {
        self.shared.drop_rights(ram, since);
        self.spaces[self.space].drop_rights(ram, since);
    }

    /// The same of an address space.
    pub fn drop_rights_of_space(&mut self, space: usize, ram: &Ram, since: Rights) {
        self.spaces[space].drop_rights(ram, since);
    }
}

impl Set {
    fn new(regimes: usize) -> Set {
        let entries = vec![EMPTY; regimes * REGIME].into_boxed_slice();
        Set { entries, filled: Vec::with_capacity(FILLED_LIMIT) }
    }

    /// Notes that a place was filled which held an entry before.
    fn note_filled(&mut self, place: usize, before: Entry) {
        if before.tag == NO_TAG && self.filled.len() < FILLED_LIMIT {
            self.filled.push(place as u32);
        }
    }

    fn flush(&mut self) {
        if self.filled.len() < FILLED_LIMIT {
            self.filled.drain(..).for_each(|place| self.entries[place as usize] = EMPTY);
        } else {
            self.filled.clear();
            self.entries.fill(EMPTY);
        }
    }

    /// Drops the page of guest-virtual `address` from a place on.
    fn flush_page(&mut self, address: u64, from: usize) {
        let page = address & !PAGE_OFFSET;
        for place in (from + index(address)..self.entries.len()).step_by(ENTRIES) {
            if self.entries[place].tag == page {
                self.entries[place] = EMPTY;
            }
        }
    }

    fn drop_rights(&mut self, ram: &Ram, since: Rights) {
        let now = Rights::of(ram);
        let pages = match now.write_generation == since.write_generation {
            true => ram.watched_since(since.watched_generation),
            false => None,
        };
        match pages {
            Some(pages) => pages.for_each(|page| {
                let bytes =
                    ram.slice(RAM_BASE + (page << PAGE_SHIFT), PAGE_BYTES).expect("a page of this memory");
                self.flush_writes_to(bytes.as_ptr().addr());
            }),
            None => self.flush_writes(),
        }
    }

    /// Drops every right to write to the page at a host address.
    fn flush_writes_to(&mut self, host_page: usize) {
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
    fn flush_writes(&mut self) {
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

/// Whether a place in the entries of a set is in a write TLB.
fn is_write(place: usize) -> bool {
    place / ENTRIES % 2 == 1
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
