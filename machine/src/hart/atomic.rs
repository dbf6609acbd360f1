//! The A extension.
//!
//! Harts take turns in slices of whole instructions, so each of these is atomic as it
//! stands. A reservation is the physical address and the value that `lr` read; `sc`
//! succeeds when the same address still holds that value. This depends neither on where
//! slices end nor on what other harts did in between and undid again, as in QEMU.

use serde::{Deserialize, Serialize};

use super::Hart;
use super::mmu::Access;
use super::op::{OpRef, go_on};
use super::trap::{Cause, Trap};
use crate::bus::Bus;

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
                    let update = |old: u64| {
                        let $old = old as $type;
                        ($value) as u64
                    };
                    amo_slow(hart, op, slack, bus, size_of::<$type>(), &update)
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

#[cold]
#[inline(never)]
fn amo_slow(
    hart: &mut Hart,
    op: OpRef,
    slack: i64,
    bus: &mut dyn Bus,
    size: usize,
    update: &dyn Fn(u64) -> u64,
) {
    match hart.modify(bus, hart.rs1(op), size, update) {
        Ok(old) => hart.set_rd(op, extend(old, size)),
        Err(trap) => return hart.leave_with_trap(op, slack, trap),
    }
    if hart.attention {
        return hart.leave_after(op, slack);
    }
    go_on(hart, op, slack, bus)
}

fn extend(value: u64, size: usize) -> u64 {
    if size == 4 { value as i32 as u64 } else { value }
}

/// `lr.w` and `lr.d`; the immediate is the size.
pub(super) fn load_reserved(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    let size = op.imm as usize;
    match hart.reserve(bus, hart.rs1(op), size) {
        Ok(value) => hart.set_rd(op, extend(value, size)),
        Err(trap) => return hart.leave_with_trap(op, slack, trap),
    }
    if hart.attention {
        return hart.leave_after(op, slack);
    }
    go_on(hart, op, slack, bus)
}

/// `sc.w` and `sc.d`; the immediate is the size.
pub(super) fn store_conditional(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    let (address, value) = (hart.rs1(op), hart.rs2(op));
    match hart.store_if_reserved(bus, address, value, op.imm as usize) {
        Ok(stored) => hart.set_rd(op, u64::from(!stored)),
        Err(trap) => return hart.leave_with_trap(op, slack, trap),
    }
    if hart.attention {
        return hart.leave_after(op, slack);
    }
    go_on(hart, op, slack, bus)
}

impl Hart {
    /// Reads, changes and writes back. Memory only: a device gives an access fault.
    fn modify(
        &mut self,
        bus: &mut dyn Bus,
        address: u64,
        size: usize,
        update: &dyn Fn(u64) -> u64,
    ) -> Result<u64, Trap> {
        if !address.is_multiple_of(size as u64) {
            return Err(Trap::new(Cause::StoreMisaligned, address));
        }
        let physical = self.translate(bus, address, size, Access::Store)?;
        let old = self.read_ram(bus, physical, size).ok_or(Trap::new(Cause::StoreAccessFault, address))?;
        self.write_ram(bus, address, physical, update(old), size);
        Ok(old)
    }

    fn reserve(&mut self, bus: &mut dyn Bus, address: u64, size: usize) -> Result<u64, Trap> {
        if !address.is_multiple_of(size as u64) {
            return Err(Trap::new(Cause::LoadMisaligned, address));
        }
        let physical = self.translate(bus, address, size, Access::Load)?;
        let value = self.read_ram(bus, physical, size).ok_or(Trap::new(Cause::LoadAccessFault, address))?;
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
        let physical = self.translate(bus, address, size, Access::Store)?;
        let fault = Trap::new(Cause::StoreAccessFault, address);
        let now = self.read_ram(bus, physical, size).ok_or(fault)?;
        let wanted = Reservation { address: physical, value: now, size: size as u8 };
        let stored = self.reservation.take() == Some(wanted);
        if stored {
            self.write_ram(bus, address, physical, value, size);
        }
        Ok(stored)
    }
}
