//! Address spaces: what of the caches outlives a change of `satp`.
//!
//! What U-mode reaches is kept for each of the last [`SPACES`] address spaces: a TLB and a fetch
//! context. What S-mode reaches in the upper half of the addresses is kept once, for all address
//! spaces whose root tables agree there, as those of one kernel do; whether they do is compared at each
//! change. What S-mode reaches in the lower half is dropped then.
//!
//! Every table that a walk read is marked in [`Ram`], which tells of changes of its entries; what
//! was derived from them is noted here by halves of a page: a root table's lower half belongs to one address
//! space, its upper half to the kernel.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::blocks::NumberHasher;
use super::csr::Privilege;
use super::mmu::{PTE_NUMBER, SATP_MODE_SHIFT, SATP_MODE_SV39, SATP_MODE_SV48};
use super::{FetchEntry, Hart};
use crate::ram::{PAGE_BYTES, PAGE_SHIFT, RAM_BASE, Ram, TableChange};

/// Address spaces kept at most.
const SPACES: usize = 8;
/// Notes of tables that are found again without a look into the map.
const NOTED: usize = 32;
/// Fetch contexts that the whole of a hart takes.
const CONTEXTS: u32 = SPACES as u32 + 2;
/// Binary logarithm of half a page: of a table's 512 entries, 256.
const HALF_SHIFT: u32 = PAGE_SHIFT - 1;
/// Binary logarithm of the bytes that half a table of pages maps.
const HALF_LEAF_SHIFT: u32 = PAGE_SHIFT + 8;
/// The bits of `satp` that choose a mapping: all but the ASID.
const SATP_SPACE: u64 = !0 << SATP_MODE_SHIFT | PTE_NUMBER;

/// Whose translations were derived from a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// Those of an address space: all of U-mode's, S-mode's of the lower half.
    Space(usize),
    /// S-mode's of the upper half.
    Kernel,
}

/// What half a page of entries was used for since translations were last dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TableUse {
    /// Maps pages from guest-virtual `first` on, and nothing else.
    Pages { first: u64, owner: Owner },
    /// Has entries of higher levels.
    Upper { owner: Owner },
    /// The upper half of a root table: counts for as long as `satp` selects it.
    KernelRoot,
    /// More than can be told.
    Many,
}

impl TableUse {
    fn belongs_to(self, place: usize) -> bool {
        let (TableUse::Pages { owner, .. } | TableUse::Upper { owner }) = self else { return false };
        owner == Owner::Space(place)
    }
}

/// Guest-virtual pages that code was fetched from: a Bloom filter with one hash.
struct PageFilter([u64; 64]);

impl PageFilter {
    fn new() -> PageFilter {
        PageFilter([0; 64])
    }

    fn insert(&mut self, address: u64) {
        let (word, bit) = PageFilter::place(address);
        self.0[word] |= bit;
    }

    fn may_contain(&self, address: u64) -> bool {
        let (word, bit) = PageFilter::place(address);
        self.0[word] & bit != 0
    }

    fn place(address: u64) -> (usize, u64) {
        let page = address >> PAGE_SHIFT;
        let hash = (page ^ page >> 12) % 4096;
        (hash as usize / 64, 1 << (hash % 64))
    }
}

/// What cached rights to write stand on.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Rights {
    pub write_generation: u64,
    pub watched_generation: u64,
}

impl Rights {
    #[inline]
    pub fn of(ram: &Ram) -> Rights {
        Rights { write_generation: ram.write_generation(), watched_generation: ram.watched_generation() }
    }
}

/// One address space. Its TLB has the same number in [`super::tlb::Tlb`].
struct Space {
    /// The bits of [`SATP_SPACE`].
    satp: u64,
    /// U-mode's fetch context. Numbers of contexts stand for one mapping of addresses to code each: an
    /// entry made under a number is right as long as that number is in use. 0 is never in use.
    context: u32,
    /// Every page that this context was translated for.
    fetched: PageFilter,
    /// What the rights in its TLB stand on, while it is not the present one.
    rights: Rights,
    last_use: u64,
}

/// The address spaces of a hart, and its fetch contexts.
pub(super) struct Spaces {
    kept: Vec<Space>,
    /// The one that `satp` selects.
    present: usize,
    /// Changes of `satp` so far.
    uses: u64,
    /// The newest fetch context.
    last_context: u32,
    /// Those of S-mode, of the kernel, and of M-mode.
    supervisor: u32,
    machine: u32,
    /// Every page that S-mode's context was translated for.
    fetched: PageFilter,
    /// One of them is in the lower half.
    fetched_low: bool,
    /// By half pages of RAM: the page tables that the TLBs and the fetch contexts stand on.
    tables: HashMap<u64, TableUse, BuildHasherDefault<NumberHasher>>,
    /// The latest that were noted there, by their lowest bits.
    noted: [Option<(u64, TableUse)>; NOTED],
}

impl Spaces {
    pub fn new() -> Spaces {
        let mut spaces = Spaces {
            kept: Vec::with_capacity(SPACES),
            present: 0,
            uses: 0,
            last_context: 0,
            supervisor: 0,
            machine: 0,
            fetched: PageFilter::new(),
            fetched_low: false,
            tables: HashMap::default(),
            noted: [None; NOTED],
        };
        spaces.keep_only(0);
        spaces.renew();
        spaces
    }

    /// Number of the address space that `satp` selects.
    pub fn present(&self) -> usize {
        self.present
    }

    /// The fetch context of a mode.
    pub fn context(&self, privilege: Privilege) -> u32 {
        match privilege {
            Privilege::User => self.kept[self.present].context,
            Privilege::Supervisor => self.supervisor,
            Privilege::Machine => self.machine,
        }
    }

    /// Notes that a page was translated for a fetch.
    pub fn note_fetched(&mut self, address: u64, privilege: Privilege) {
        match privilege {
            Privilege::User => self.kept[self.present].fetched.insert(address),
            Privilege::Supervisor => {
                self.fetched.insert(address);
                self.fetched_low |= !is_high(address);
            }
            // Nothing is translated.
            Privilege::Machine => {}
        }
    }

    /// Forgets every address space but one, of which nothing is cached.
    fn keep_only(&mut self, satp: u64) {
        self.tables.clear();
        self.noted = [None; NOTED];
        self.kept.clear();
        let rights = Rights::default();
        let satp = satp & SATP_SPACE;
        self.kept.push(Space { satp, context: 0, fetched: PageFilter::new(), rights, last_use: 0 });
        self.present = 0;
    }

    /// Makes the address space of `satp` the present one. Returns whether it took the place of another,
    /// whose caches must be dropped.
    fn choose(&mut self, satp: u64) -> bool {
        self.uses += 1;
        let satp = satp & SATP_SPACE;
        let found = self.kept.iter().position(|space| space.satp == satp);
        self.present = found.unwrap_or_else(|| self.oldest_place());
        let space = &mut self.kept[self.present];
        space.satp = satp;
        space.last_use = self.uses;
        found.is_none()
    }

    /// A place for one more address space.
    fn oldest_place(&mut self) -> usize {
        if self.kept.len() < SPACES {
            let rights = Rights::default();
            self.kept.push(Space { satp: 0, context: 0, fetched: PageFilter::new(), rights, last_use: 0 });
            return self.kept.len() - 1;
        }
        let ages = self.kept.iter().map(|space| space.last_use).enumerate();
        ages.min_by_key(|&(_, last_use)| last_use).map_or(0, |(place, _)| place)
    }

    /// Gives up all fetch contexts. Returns whether numbers begin anew: what was noted under one must then
    /// be forgotten.
    fn renew(&mut self) -> bool {
        let begins_anew = self.is_used_up();
        if begins_anew {
            self.last_context = 0;
        }
        (0..self.kept.len()).for_each(|place| self.renew_space(place));
        self.renew_supervisor();
        self.machine = self.next_context();
        begins_anew
    }

    /// Whether there may be too few numbers for what is to be renewed.
    fn is_used_up(&self) -> bool {
        self.last_context > u32::MAX - CONTEXTS
    }

    fn renew_space(&mut self, place: usize) {
        self.kept[place].context = self.next_context();
        self.kept[place].fetched = PageFilter::new();
    }

    fn renew_supervisor(&mut self) {
        self.supervisor = self.next_context();
        self.fetched = PageFilter::new();
        self.fetched_low = false;
    }

    fn next_context(&mut self) -> u32 {
        self.last_context += 1;
        self.last_context
    }
}

impl Hart {
    /// Follows a change of `satp`.
    pub(super) fn change_space(&mut self, ram: &mut Ram) {
        let from = self.spaces.kept[self.spaces.present].satp;
        let to = self.csrs.satp & SATP_SPACE;
        if from == to {
            return;
        }
        if !agree_above(ram, from, to) {
            self.drop_kernel();
        }
        let left = self.spaces.present;
        self.spaces.kept[left].rights = self.seen.rights;
        let is_new = self.spaces.choose(to);
        let present = self.spaces.present;
        self.tlb.make_space(present);
        self.drop_low();
        if is_new {
            self.drop_space(present);
        } else {
            let since = self.spaces.kept[present].rights;
            self.tlb.drop_rights_of_space(present, ram, since);
        }
        if let Some(root) = root_of(ram, to) {
            self.mark_kernel_root(ram, root);
        }
        self.tlb.select(self.tlb.regime(), present);
        self.select_context();
    }

    /// Drops all that depends on page tables, PMP or the rules of access.
    pub(super) fn drop_translations(&mut self) {
        self.tlb.flush();
        self.spaces.keep_only(self.csrs.satp);
        self.tlb.select(self.tlb.regime(), self.spaces.present);
        self.renew_contexts();
        self.attention = true;
    }

    /// Gives up all fetch contexts.
    pub(super) fn renew_contexts(&mut self) {
        if self.spaces.renew() {
            self.blocks.clear();
            self.fetched.fill(FetchEntry::default());
        }
        self.select_context();
    }

    pub(super) fn select_context(&mut self) {
        self.context = self.spaces.context(self.privilege);
    }

    /// Drops what S-mode reaches.
    fn drop_kernel(&mut self) {
        self.tlb.flush_supervisor();
        self.renew_supervisor();
    }

    /// Drops what S-mode reaches in the lower half.
    fn drop_low(&mut self) {
        self.tlb.flush_low();
        if self.spaces.fetched_low {
            self.renew_supervisor();
        }
    }

    /// Drops what was derived from the tables of an address space, and forgets them: what they held may
    /// become anything.
    fn drop_space(&mut self, place: usize) {
        self.tlb.flush_space(place);
        self.renew_space(place);
        self.spaces.tables.retain(|_, found| !found.belongs_to(place));
        self.spaces.noted = [None; NOTED];
        if place == self.spaces.present {
            self.drop_low();
        }
    }

    fn renew_supervisor(&mut self) {
        if self.spaces.is_used_up() {
            return self.renew_contexts();
        }
        self.spaces.renew_supervisor();
        self.select_context_in_chain();
    }

    fn renew_space(&mut self, place: usize) {
        if self.spaces.is_used_up() {
            return self.renew_contexts();
        }
        self.spaces.renew_space(place);
        self.select_context_in_chain();
    }

    /// As [`Hart::select_context`], where a chain may be executing: it ends if its context changed.
    fn select_context_in_chain(&mut self) {
        let before = self.context;
        self.select_context();
        self.attention |= self.context != before;
    }

    /// Notes that a walk for `address` under `mode` read the entry at an offset into RAM, in a table of
    /// `level`.
    pub(super) fn note_table(
        &mut self,
        ram: &mut Ram,
        entry: u64,
        address: u64,
        level: u32,
        mode: Privilege,
    ) {
        ram.mark_table(entry >> PAGE_SHIFT);
        let is_kernel = is_high(address) && mode == Privilege::Supervisor;
        let owner = if is_kernel { Owner::Kernel } else { Owner::Space(self.spaces.present) };
        let found = match level {
            0 => TableUse::Pages { first: address >> HALF_LEAF_SHIFT << HALF_LEAF_SHIFT, owner },
            _ if is_kernel && level + 1 == self.levels() => TableUse::KernelRoot,
            _ => TableUse::Upper { owner },
        };
        self.note_use(entry >> HALF_SHIFT, found);
    }

    fn note_use(&mut self, half: u64, found: TableUse) {
        let latest = &mut self.spaces.noted[half as usize % NOTED];
        if *latest == Some((half, found)) {
            return;
        }
        let noted = self.spaces.tables.entry(half).or_insert(found);
        if *noted != found {
            *noted = TableUse::Many;
        }
        *latest = Some((half, *noted));
    }

    /// Has changes of the upper half of a root table told: S-mode's translations now stand on it, too.
    fn mark_kernel_root(&mut self, ram: &mut Ram, page: u64) {
        ram.mark_table(page);
        self.note_use(page << 1 | 1, TableUse::KernelRoot);
        self.drop_stale_rights(ram);
    }

    /// Drops what was derived from page tables that changed.
    pub(super) fn follow_table_changes(&mut self, ram: &Ram) {
        match ram.changed_tables_since(self.seen.table_generation) {
            Some(changes) => changes.for_each(|change| self.follow_table_change(change)),
            None => self.drop_translations(),
        }
        self.seen.table_generation = ram.table_generation();
    }

    fn follow_table_change(&mut self, change: TableChange) {
        let TableChange::Entry(offset) = change else { return self.drop_translations() };
        match self.spaces.tables.get(&(offset >> HALF_SHIFT)) {
            // Marked for another hart, or before what this hart had was dropped.
            None => {}
            Some(TableUse::Many) => self.drop_translations(),
            Some(TableUse::KernelRoot) => {
                let satp = self.spaces.kept[self.spaces.present].satp;
                if offset >> PAGE_SHIFT == (satp & PTE_NUMBER).wrapping_sub(RAM_BASE >> PAGE_SHIFT) {
                    self.drop_translations();
                }
            }
            Some(&TableUse::Upper { owner: Owner::Kernel }) => self.drop_kernel(),
            Some(&TableUse::Upper { owner: Owner::Space(place) }) => self.drop_space(place),
            Some(&TableUse::Pages { first, owner }) => {
                let entry = offset % (PAGE_BYTES as u64 / 2) / 8;
                self.drop_page(first + (entry << PAGE_SHIFT), owner);
            }
        }
    }

    /// Drops what was derived from the entry that maps a page.
    fn drop_page(&mut self, address: u64, owner: Owner) {
        self.tlb.flush_supervisor_page(address);
        let may_be_code = match owner {
            Owner::Kernel => true,
            Owner::Space(_) => self.spaces.fetched_low,
        };
        if may_be_code && self.spaces.fetched.may_contain(address) {
            self.renew_supervisor();
        }
        if let Owner::Space(place) = owner {
            self.tlb.flush_space_page(place, address);
            if self.spaces.kept[place].fetched.may_contain(address) {
                self.renew_space(place);
            }
        }
    }
}

/// Whether an address is in the upper half: what root tables map by their last 256 entries.
pub(super) fn is_high(address: u64) -> bool {
    address >> 63 != 0
}

/// The RAM page that holds the root table which a `satp` selects.
fn root_of(ram: &Ram, satp: u64) -> Option<u64> {
    let translates = matches!(satp >> SATP_MODE_SHIFT, SATP_MODE_SV39 | SATP_MODE_SV48);
    let page = (satp & PTE_NUMBER).checked_sub(RAM_BASE >> PAGE_SHIFT)?;
    (translates && page < ram.pages()).then_some(page)
}

/// Whether two values of `satp` map the upper half of the addresses in the same way.
fn agree_above(ram: &Ram, one: u64, other: u64) -> bool {
    let upper_half = |satp| {
        let page = root_of(ram, satp)?;
        let address = RAM_BASE + (page << PAGE_SHIFT) + PAGE_BYTES as u64 / 2;
        ram.slice(address, PAGE_BYTES / 2).ok()
    };
    let (Some(one_half), Some(other_half)) = (upper_half(one), upper_half(other)) else { return false };
    one >> SATP_MODE_SHIFT == other >> SATP_MODE_SHIFT && one_half == other_half
}
