//! Address translation, physical memory protection, and the slow way to memory.
//!
//! Accessed and dirty bits are updated by the hart (Svadu, as QEMU's default CPU does).
//! Every page-table page that a walk read is marked in [`Ram`]; a store that changes a valid
//! entry there drops what was derived from it before the next instruction. The TLB is
//! therefore never seen: `sfence.vma` has nothing left to do.

use super::csr::{MENVCFG_ADUE, Privilege, STATUS_MXR, STATUS_SUM};
use super::spaces::Rights;
use super::tlb::Regime;
use super::trap::{Cause, Trap};
use super::{Hart, Watched};
use crate::bus::Bus;
use crate::ram::{PAGE_BYTES, PAGE_SHIFT, RAM_BASE, Ram};
use crate::semantics::Semantics;

/// What memory is accessed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Fetch,
    Load,
    Store,
}

impl Access {
    fn page_fault(self, address: u64) -> Trap {
        let cause = match self {
            Access::Fetch => Cause::FetchPageFault,
            Access::Load => Cause::LoadPageFault,
            Access::Store => Cause::StorePageFault,
        };
        Trap::new(cause, address)
    }

    fn access_fault(self, address: u64) -> Trap {
        let cause = match self {
            Access::Fetch => Cause::FetchAccessFault,
            Access::Load => Cause::LoadAccessFault,
            Access::Store => Cause::StoreAccessFault,
        };
        Trap::new(cause, address)
    }
}

const PTE_VALID: u64 = 1 << 0;
const PTE_READ: u64 = 1 << 1;
const PTE_WRITE: u64 = 1 << 2;
const PTE_EXECUTE: u64 = 1 << 3;
const PTE_USER: u64 = 1 << 4;
const PTE_ACCESSED: u64 = 1 << 6;
const PTE_DIRTY: u64 = 1 << 7;
/// Bits 54 to 60 are reserved; 61 and 62 (Svpbmt), 63 (Svnapot) are so without the extension.
const PTE_RESERVED: u64 = !0 << 54;
const PTE_NUMBER_SHIFT: u32 = 10;
pub(super) const PTE_NUMBER: u64 = (1 << 44) - 1;

pub(super) const SATP_MODE_SHIFT: u32 = 60;
pub(super) const SATP_MODE_SV39: u64 = 8;
pub(super) const SATP_MODE_SV48: u64 = 9;
/// Levels of an Sv39 page table.
const SV39_LEVELS: u32 = 3;
/// Levels of an Sv48 page table.
const SV48_LEVELS: u32 = 4;
const INDEX_BITS: u32 = 9;
/// Physical addresses have 56 bits.
const PHYSICAL_LIMIT: u64 = 1 << 56;
const PAGE_OFFSET: u64 = PAGE_BYTES as u64 - 1;

/// Whether `satp` may hold this value: Bare, Sv39 or Sv48.
pub(super) fn is_satp_supported(satp: u64, semantics: Semantics) -> bool {
    match satp >> SATP_MODE_SHIFT {
        0 | SATP_MODE_SV39 => true,
        SATP_MODE_SV48 => semantics.has_sv48(),
        _ => false,
    }
}

impl Hart {
    /// Guest-physical address of an access that does not cross a page.
    pub(super) fn translate(
        &mut self,
        bus: &mut dyn Bus,
        address: u64,
        size: usize,
        access: Access,
    ) -> Result<u64, Trap> {
        let mode = match access {
            Access::Fetch => self.privilege,
            _ => self.csrs.data_privilege(self.privilege),
        };
        let physical = if mode == Privilege::Machine || self.csrs.satp >> SATP_MODE_SHIFT == 0 {
            address
        } else {
            let walked = self.walk(bus.ram(), address, access, mode);
            self.drop_stale_rights(bus.ram());
            walked?
        };
        if physical >= PHYSICAL_LIMIT || !self.csrs.pmp.allows(physical, size as u64, access, mode) {
            return Err(access.access_fault(address));
        }
        Ok(physical)
    }

    /// Walks the page table.
    fn walk(&mut self, ram: &mut Ram, address: u64, access: Access, mode: Privilege) -> Result<u64, Trap> {
        let levels = self.levels();
        if !is_canonical(address, levels) {
            return Err(access.page_fault(address));
        }
        let mut table = (self.csrs.satp & PTE_NUMBER) << PAGE_SHIFT;
        for level in (0..levels).rev() {
            let shift = PAGE_SHIFT + level * INDEX_BITS;
            let index = address >> shift & ((1 << INDEX_BITS) - 1);
            let entry_address = table + index * 8;
            if !self.csrs.pmp.allows(entry_address, 8, Access::Load, Privilege::Supervisor) {
                return Err(access.access_fault(address));
            }
            let bytes = ram.slice(entry_address, 8).map_err(|_| access.access_fault(address))?;
            let entry = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
            if entry & PTE_VALID == 0 || entry & PTE_RESERVED != 0 {
                return Err(access.page_fault(address));
            }
            self.note_table(ram, entry_address - RAM_BASE, address, level, mode);
            let target = (entry >> PTE_NUMBER_SHIFT & PTE_NUMBER) << PAGE_SHIFT;
            if entry & (PTE_READ | PTE_WRITE | PTE_EXECUTE) == 0 {
                if entry & (PTE_USER | PTE_ACCESSED | PTE_DIRTY) != 0 {
                    return Err(access.page_fault(address));
                }
                table = target;
                continue;
            }
            let offset = (1u64 << shift) - 1;
            if target & offset != 0 || !self.is_allowed(entry, access, mode) {
                return Err(access.page_fault(address));
            }
            self.update_entry(ram, entry_address, entry, access).map_err(|fault| fault(access, address))?;
            return Ok(target | address & offset);
        }
        Err(access.page_fault(address))
    }

    /// Levels of the page table that `satp` selects.
    pub(super) fn levels(&self) -> u32 {
        if self.csrs.satp >> SATP_MODE_SHIFT == SATP_MODE_SV48 { SV48_LEVELS } else { SV39_LEVELS }
    }

    /// Guest-physical address of a guest-virtual one, to look at: as a load of the present mode
    /// finds it, whatever the permissions, and without a trace.
    pub fn translate_to_look(&self, ram: &Ram, address: u64) -> Option<u64> {
        let mode = self.csrs.data_privilege(self.privilege);
        if mode == Privilege::Machine || self.csrs.satp >> SATP_MODE_SHIFT == 0 {
            return Some(address);
        }
        let levels = self.levels();
        if !is_canonical(address, levels) {
            return None;
        }
        let mut table = (self.csrs.satp & PTE_NUMBER) << PAGE_SHIFT;
        for level in (0..levels).rev() {
            let shift = PAGE_SHIFT + level * INDEX_BITS;
            let bytes = ram.slice(table + (address >> shift & ((1 << INDEX_BITS) - 1)) * 8, 8).ok()?;
            let entry = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
            if entry & PTE_VALID == 0 {
                return None;
            }
            let target = (entry >> PTE_NUMBER_SHIFT & PTE_NUMBER) << PAGE_SHIFT;
            if entry & (PTE_READ | PTE_WRITE | PTE_EXECUTE) != 0 {
                let offset = (1u64 << shift) - 1;
                return Some(target & !offset | address & offset);
            }
            table = target;
        }
        None
    }

    /// Whether a leaf entry permits the access.
    fn is_allowed(&self, entry: u64, access: Access, mode: Privilege) -> bool {
        let has = |bit| entry & bit != 0;
        if has(PTE_WRITE) && !has(PTE_READ) {
            return false;
        }
        let user_matches = match mode {
            Privilege::User => has(PTE_USER),
            _ => !has(PTE_USER) || access != Access::Fetch && self.csrs.mstatus & STATUS_SUM != 0,
        };
        user_matches
            && match access {
                Access::Fetch => has(PTE_EXECUTE),
                Access::Load => has(PTE_READ) || has(PTE_EXECUTE) && self.csrs.mstatus & STATUS_MXR != 0,
                Access::Store => has(PTE_WRITE),
            }
    }

    /// Sets the accessed and dirty bits. Fails with what the access gets: a page fault where it
    /// is left to software, an access fault where the entry may not be written to.
    fn update_entry(
        &mut self,
        ram: &mut Ram,
        address: u64,
        entry: u64,
        access: Access,
    ) -> Result<(), fn(Access, u64) -> Trap> {
        let wanted = PTE_ACCESSED | if access == Access::Store { PTE_DIRTY } else { 0 };
        if entry & wanted == wanted {
            return Ok(());
        }
        if self.csrs.menvcfg & MENVCFG_ADUE == 0 {
            return Err(Access::page_fault);
        }
        if self.options.semantics.protects_entry_updates()
            && !self.csrs.pmp.allows(address, 8, Access::Store, Privilege::Supervisor)
        {
            return Err(Access::access_fault);
        }
        ram.write_entry_bits(address, entry | wanted).map_err(|_| Access::page_fault as fn(_, _) -> _)?;
        self.attention |= self.seen.code_generation != ram.code_generation();
        Ok(())
    }

    /// Fills the TLB for a page that was just translated for a data access.
    pub(super) fn fill(&mut self, ram: &mut Ram, address: u64, physical: u64, access: Access) {
        let Some(page) = self.ram_page(ram, physical) else { return };
        if !self.csrs.pmp.is_uniform(physical & !PAGE_OFFSET) || !self.is_unwatched(address) {
            return;
        }
        let writable = access == Access::Store;
        if writable {
            if ram.is_watched(page) || self.watches(physical & !PAGE_OFFSET, PAGE_BYTES) {
                return;
            }
            ram.prepare_write(page);
        }
        let host_page = ram.host_base().expose_provenance() + page as usize * PAGE_BYTES;
        // SAFETY: `page` is one of `ram`'s. The hart flushes when it meets another RAM or
        // another write generation, and never runs without a RAM.
        unsafe { self.tlb.fill(address, host_page, writable) };
    }

    /// The RAM page that holds a guest-physical address.
    fn ram_page(&self, ram: &Ram, physical: u64) -> Option<u64> {
        let page = physical.checked_sub(RAM_BASE)? >> PAGE_SHIFT;
        (page < ram.pages()).then_some(page)
    }

    /// Gives up rights to write that no longer hold.
    pub(super) fn drop_stale_rights(&mut self, ram: &Ram) {
        let now = Rights::of(ram);
        if self.seen.rights != now {
            self.tlb.drop_rights(ram, self.seen.rights);
            self.seen.rights = now;
        }
    }

    /// Loads `size` bytes, zero-extended.
    pub(super) fn load(
        &mut self,
        bus: &mut dyn Bus,
        icount: u64,
        address: u64,
        size: usize,
    ) -> Result<u64, Trap> {
        if !address.is_multiple_of(size as u64) {
            return self.load_misaligned(bus, address, size);
        }
        if self.tlb.promote(address, false)
            && let Some(value) = self.tlb.read_sized(address, size)
        {
            return Ok(value);
        }
        let physical = self.translate(bus, address, size, Access::Load)?;
        if let Some(value) = self.read_ram(bus, physical, size) {
            self.fill(bus.ram(), address, physical, Access::Load);
            return Ok(value);
        }
        self.attention = true;
        self.check_interrupts = true;
        bus.mmio_read(self.id, icount, physical, size as u8).map_err(|_| Access::Load.access_fault(address))
    }

    /// Stores the low `size` bytes of `value`.
    pub(super) fn store(
        &mut self,
        bus: &mut dyn Bus,
        icount: u64,
        address: u64,
        value: u64,
        size: usize,
    ) -> Result<(), Trap> {
        if !address.is_multiple_of(size as u64) {
            return self.store_misaligned(bus, address, value, size);
        }
        if self.tlb.promote(address, true) && self.tlb.write_sized(address, value, size) {
            return Ok(());
        }
        let physical = self.translate(bus, address, size, Access::Store)?;
        if self.is_plain_memory(bus, physical, size) {
            self.write_ram(bus, address, physical, value, size);
            self.follow_store(bus.ram());
            return Ok(());
        }
        self.attention = true;
        self.check_interrupts = true;
        let value = value & (u64::MAX >> (64 - 8 * size));
        bus.mmio_write(self.id, icount, physical, size as u8, value)
            .map_err(|_| Access::Store.access_fault(address))
    }

    /// Whether stores of `size` bytes to an address, within a page, go to RAM and not to the bus.
    pub(super) fn is_plain_memory(&self, bus: &mut dyn Bus, physical: u64, size: usize) -> bool {
        self.ram_page(bus.ram(), physical).is_some() && !self.watches(physical, size)
    }

    fn watches(&self, physical: u64, size: usize) -> bool {
        let overlaps = |watched: Watched| physical < watched.end && watched.start < physical + size as u64;
        self.options.watched.is_some_and(overlaps)
    }

    /// Reads aligned from RAM; `None` outside.
    pub(super) fn read_ram(&self, bus: &mut dyn Bus, physical: u64, size: usize) -> Option<u64> {
        let mut bytes = [0; 8];
        bus.ram().read(physical, &mut bytes[..size]).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    /// Writes to RAM, within a page, at a physical address that was just translated from
    /// `address` for a store and lies in RAM. [`Hart::follow_store`] must come behind, once nothing that
    /// was translated before is used any more.
    pub(super) fn write_ram(
        &mut self,
        bus: &mut dyn Bus,
        address: u64,
        physical: u64,
        value: u64,
        size: usize,
    ) {
        let ram = bus.ram();
        let page = (physical - RAM_BASE) >> PAGE_SHIFT;
        let bytes = &value.to_le_bytes()[..size];
        if ram.is_watched(page) {
            ram.write_watched(physical, bytes).expect("checked to be in RAM");
        } else {
            self.fill(ram, address, physical, Access::Store);
            ram.write(physical, bytes).expect("checked to be in RAM");
        }
    }

    /// Follows what this hart stored to watched pages. The chain ends if it executes what is stale.
    pub(super) fn follow_store(&mut self, ram: &Ram) {
        if self.seen.table_generation != ram.table_generation() {
            self.follow_table_changes(ram);
        }
        self.attention |= self.seen.code_generation != ram.code_generation();
    }

    /// A misaligned load. Memory only: devices give an access fault. A fault in the second of two
    /// pages names that page's first byte.
    fn load_misaligned(&mut self, bus: &mut dyn Bus, address: u64, size: usize) -> Result<u64, Trap> {
        let mut bytes = [0; 8];
        for (at, part) in self.translate_parts(bus, address, size, Access::Load)?.into_iter().flatten() {
            bus.ram()
                .read(part.physical, &mut bytes[at..at + part.len])
                .map_err(|_| Access::Load.access_fault(part.address))?;
            self.fill(bus.ram(), part.address, part.physical, Access::Load);
        }
        Ok(u64::from_le_bytes(bytes))
    }

    fn store_misaligned(
        &mut self,
        bus: &mut dyn Bus,
        address: u64,
        value: u64,
        size: usize,
    ) -> Result<(), Trap> {
        let parts = self.translate_parts(bus, address, size, Access::Store)?;
        for (_, part) in parts.iter().flatten() {
            if !self.is_plain_memory(bus, part.physical, part.len) {
                return Err(Access::Store.access_fault(part.address));
            }
        }
        for (at, part) in parts.into_iter().flatten() {
            self.write_ram(bus, part.address, part.physical, value >> (8 * at), part.len);
        }
        self.follow_store(bus.ram());
        Ok(())
    }

    /// Translates a misaligned access: one part, or two if it crosses into another page. Each
    /// comes with the number of bytes before it. Nothing is accessed unless all parts may be.
    fn translate_parts(
        &mut self,
        bus: &mut dyn Bus,
        address: u64,
        size: usize,
        access: Access,
    ) -> Result<[Option<(usize, Part)>; 2], Trap> {
        let first_len = size.min(PAGE_BYTES - (address & PAGE_OFFSET) as usize);
        let physical = self.translate(bus, address, first_len, access)?;
        let first = Part { address, physical, len: first_len };
        if first_len == size {
            return Ok([Some((0, first)), None]);
        }
        let address = address.wrapping_add(first_len as u64);
        let physical = self.translate(bus, address, size - first_len, access)?;
        let second = Part { address, physical, len: size - first_len };
        Ok([Some((0, first)), Some((first_len, second))])
    }

    /// Selects the TLB by privilege and `mstatus`.
    pub(super) fn select_regime(&mut self) {
        let regime = match self.csrs.data_privilege(self.privilege) {
            Privilege::User => Regime::User,
            Privilege::Supervisor if self.csrs.mstatus & STATUS_SUM != 0 => Regime::SupervisorUser,
            Privilege::Supervisor => Regime::Supervisor,
            Privilege::Machine => Regime::Machine,
        };
        if regime != self.tlb.regime() {
            self.tlb.select(regime, self.spaces.present());
        }
    }
}

/// Whether the bits of an address that `levels` of tables do not translate repeat the highest one
/// that they do.
fn is_canonical(address: u64, levels: u32) -> bool {
    let unused_bits = 64 - (PAGE_SHIFT + levels * INDEX_BITS);
    ((address << unused_bits) as i64 >> unused_bits) as u64 == address
}

/// The part of a misaligned access that lies in one page.
struct Part {
    address: u64,
    physical: u64,
    len: usize,
}
