//! The A extension.
//!
//! Harts take turns in slices of whole instructions, so each of these is atomic as it
//! stands. A reservation is the physical address and the value that `lr` read; `sc`
//! succeeds when the same address still holds that value. The board ends it when another hart had
//! a turn, so that a store of that very value is not overlooked. As in QEMU, an `sc` to
//! another address may raise page faults but does not access memory.

use serde::{Deserialize, Serialize};

use super::Hart;
use super::mmu::Access;
use super::op::{OpRef, go_on, go_on_unless_attention};
use super::trap::{Cause, Trap};
use crate::bus::Bus;
use crate::ram::RAM_BASE;

/// What `lr` leaves for `sc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Guest-physical address.
    pub address: u64,
    /// What it held, zero-extended.
    pub value: u64,
    /// Bytes: 4 or 8.
    pub size: u8,
}

/// From the old value in memory and that of `rs2` to the new value; what exceeds the
/// operation's size is dropped.
type Update = fn(u64, u64) -> u64;

macro_rules! memory_operations {
    ($($name:ident: $type:ty, |$old:ident, $new:ident| $value:expr;)*) => { $(
        pub(super) fn $name(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
            let address = hart.rs1(op);
            let $new = hart.rs2(op) as $type;
            match hart.tlb.update(address, |$old: $type| $value) {
                Some(old) => {
                    hart.set_rd(op, old as u64);
                    go_on(hart, op, slack, bus)
                }
                None => {
                    let update: Update = |old, new| {
                        let ($old, $new) = (old as $type, new as $type);
                        ($value) as u64
                    };
                    let size = size_of::<$type>();
                    let Some(old) = hart.modify_or_leave(op, slack, bus, size, update) else { return };
                    hart.set_rd(op, old as $type as u64);
                    go_on_unless_attention(hart, op, slack, bus)
                }
            }
        }
    )* };
}

memory_operations! {
    amoswap_w: i32, |_old, new| new;
    amoadd_w: i32, |old, new| old.wrapping_add(new);
    amoxor_w: i32, |old, new| old ^ new;
    amoand_w: i32, |old, new| old & new;
    amoor_w: i32, |old, new| old | new;
    amomin_w: i32, |old, new| old.min(new);
    amomax_w: i32, |old, new| old.max(new);
    amominu_w: i32, |old, new| (old as u32).min(new as u32) as i32;
    amomaxu_w: i32, |old, new| (old as u32).max(new as u32) as i32;
    amoswap_d: i64, |_old, new| new;
    amoadd_d: i64, |old, new| old.wrapping_add(new);
    amoxor_d: i64, |old, new| old ^ new;
    amoand_d: i64, |old, new| old & new;
    amoor_d: i64, |old, new| old | new;
    amomin_d: i64, |old, new| old.min(new);
    amomax_d: i64, |old, new| old.max(new);
    amominu_d: i64, |old, new| (old as u64).min(new as u64) as i64;
    amomaxu_d: i64, |old, new| (old as u64).max(new as u64) as i64;
}

fn extend(value: u64, size: usize) -> u64 {
    if size == 4 { value as i32 as u64 } else { value }
}

/// `lr.w` and `lr.d`; the immediate is the size.
pub(super) fn load_reserved(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    let Some(value) = hart.reserve_or_leave(op, slack, bus) else { return };
    hart.set_rd(op, extend(value, op.imm as usize));
    go_on_unless_attention(hart, op, slack, bus)
}

/// `sc.w` and `sc.d`; the immediate is the size.
pub(super) fn store_conditional(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    let Some(failed) = hart.store_conditionally_or_leave(op, slack, bus) else { return };
    hart.set_rd(op, failed);
    go_on_unless_attention(hart, op, slack, bus)
}

impl Hart {
    #[cold]
    #[inline(never)]
    fn modify_or_leave(
        &mut self,
        op: OpRef,
        slack: i64,
        bus: &mut dyn Bus,
        size: usize,
        update: Update,
    ) -> Option<u64> {
        // Watched reads count as such, and so do watched writes.
        let address = self.rs1(op);
        if [Access::Load, Access::Store]
            .into_iter()
            .any(|access| self.stops_for_access(op, slack, address, size, access))
        {
            return None;
        }
        let result = self.modify(bus, self.rs1(op), self.rs2(op), size, update);
        self.value_or_leave(op, slack, result)
    }

    #[inline(never)]
    fn reserve_or_leave(&mut self, op: OpRef, slack: i64, bus: &mut dyn Bus) -> Option<u64> {
        if self.stops_for_access(op, slack, self.rs1(op), op.imm as usize, Access::Load) {
            return None;
        }
        let result = self.reserve(bus, self.rs1(op), op.imm as usize);
        self.value_or_leave(op, slack, result)
    }

    #[inline(never)]
    fn store_conditionally_or_leave(&mut self, op: OpRef, slack: i64, bus: &mut dyn Bus) -> Option<u64> {
        if self.stops_for_access(op, slack, self.rs1(op), op.imm as usize, Access::Store) {
            return None;
        }
        let result = self.store_if_reserved(bus, self.rs1(op), self.rs2(op), op.imm as usize);
        self.value_or_leave(op, slack, result.map(|stored| u64::from(!stored)))
    }

    /// Reads, changes and writes back. Memory only: a device gives an access fault.
    fn modify(
        &mut self,
        bus: &mut dyn Bus,
        address: u64,
        operand: u64,
        size: usize,
        update: Update,
    ) -> Result<u64, Trap> {
        if !address.is_multiple_of(size as u64) {
            return Err(Trap::new(Cause::StoreMisaligned, address));
        }
        let physical = self.translate(bus, address, size, Access::Store)?;
        let old = self.read_to_store(bus, address, physical, size)?;
        self.write_ram(bus, address, physical, update(old, operand), size);
        self.follow_store(bus.ram());
        Ok(old)
    }

    fn reserve(&mut self, bus: &mut dyn Bus, address: u64, size: usize) -> Result<u64, Trap> {
        if !address.is_multiple_of(size as u64) {
            return Err(Trap::new(Cause::LoadMisaligned, address));
        }
        if let Some((physical, value)) = self.find_in_tlb(bus, address, size, false) {
            self.reservation = Some(Reservation { address: physical, value, size: size as u8 });
            return Ok(value);
        }
        let physical = self.translate(bus, address, size, Access::Load)?;
        let value = self.read_ram(bus, physical, size).ok_or(Trap::new(Cause::LoadAccessFault, address))?;
        self.fill(bus.ram(), address, physical, Access::Load);
        self.reservation = Some(Reservation { address: physical, value, size: size as u8 });
        Ok(value)
    }

    fn store_if_reserved(
        &mut self,
        bus: &mut dyn Bus,
        address: u64,
        value: u64,
        size: usize,
    ) -> Result<bool, Trap> {
        if !address.is_multiple_of(size as u64) {
            return Err(Trap::new(Cause::StoreMisaligned, address));
        }
        if let Some((physical, now)) = self.find_in_tlb(bus, address, size, true) {
            let found = Reservation { address: physical, value: now, size: size as u8 };
            return Ok(self.reservation.take() == Some(found) && self.tlb.write_sized(address, value, size));
        }
        let physical = self.translate(bus, address, size, Access::Store)?;
        let Some(reservation) = self.reservation.take().filter(|held| held.address == physical) else {
            return Ok(false);
        };
        let now = self.read_to_store(bus, address, physical, size)?;
        let stored = reservation == Reservation { address: physical, value: now, size: size as u8 };
        if stored {
            self.write_ram(bus, address, physical, value, size);
            self.follow_store(bus.ram());
        }
        Ok(stored)
    }

    /// The guest-physical address of aligned bytes whose page is in the TLB, and what they hold.
    fn find_in_tlb(
        &self,
        bus: &mut dyn Bus,
        address: u64,
        size: usize,
        writable: bool,
    ) -> Option<(u64, u64)> {
        let host = match size {
            4 => self.tlb.host_address::<u32>(address, writable),
            _ => self.tlb.host_address::<u64>(address, writable),
        }?;
        let physical = RAM_BASE + (host - bus.ram().host_base().addr() as u64);
        self.read_ram(bus, physical, size).map(|value| (physical, value))
    }

    /// Reads at a translated address what is to be replaced.
    fn read_to_store(
        &self,
        bus: &mut dyn Bus,
        address: u64,
        physical: u64,
        size: usize,
    ) -> Result<u64, Trap> {
        let value = self.read_ram(bus, physical, size).filter(|_| self.is_plain_memory(bus, physical, size));
        value.ok_or(Trap::new(Cause::StoreAccessFault, address))
    }
}
