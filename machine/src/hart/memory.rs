//! Loads and stores.
//!
//! The fast path is a TLB hit on an aligned access. Everything else (a miss, a misaligned
//! access, a device, a page that is watched) goes through `*_slow`, which also decides
//! whether the chain can go on.

use super::Hart;
use super::float::{FS_CHECK, box_single};
use super::mmu::Access;
use super::op::{OpRef, go_on, go_on_unless_attention};
use crate::bus::Bus;

macro_rules! loads {
    ($($name:ident, $slow:ident: $type:ty;)*) => { $(
        pub(super) fn $name(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
            let address = hart.rs1(op).wrapping_add(op.imm as u64);
            if let Some(value) = hart.tlb.read::<$type>(address) {
                hart.set_rd(op, value as u64);
                return go_on(hart, op, slack, bus);
            }
            $slow(hart, op, slack, bus)
        }

        #[cold]
        #[inline(never)]
        fn $slow(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
            let address = hart.rs1(op).wrapping_add(op.imm as u64);
            if let Some(value) = hart.tlb.read_misaligned::<$type>(address) {
                hart.set_rd(op, value as u64);
                return go_on(hart, op, slack, bus);
            }
            let Some(value) = hart.load_or_leave(op, slack, bus, size_of::<$type>()) else { return };
            hart.set_rd(op, value as $type as u64);
            go_on_unless_attention(hart, op, slack, bus)
        }
    )* };
}

loads! {
    lb, lb_slow: i8;
    lh, lh_slow: i16;
    lw, lw_slow: i32;
    ld, ld_slow: u64;
    lbu, lbu_slow: u8;
    lhu, lhu_slow: u16;
    lwu, lwu_slow: u32;
}

macro_rules! stores {
    ($($name:ident, $slow:ident: $type:ty;)*) => { $(
        pub(super) fn $name(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
            let address = hart.rs1(op).wrapping_add(op.imm as u64);
            if hart.tlb.write(address, hart.rs2(op) as $type) {
                return go_on(hart, op, slack, bus);
            }
            $slow(hart, op, slack, bus)
        }

        #[cold]
        #[inline(never)]
        fn $slow(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
            let address = hart.rs1(op).wrapping_add(op.imm as u64);
            let value = hart.rs2(op);
            if hart.tlb.write_misaligned(address, value as $type) {
                return go_on(hart, op, slack, bus);
            }
            if hart.store_or_leave(op, slack, bus, value, size_of::<$type>()) {
                go_on_unless_attention(hart, op, slack, bus)
            }
        }
    )* };
}

stores! {
    sb, sb_slow: u8;
    sh, sh_slow: u16;
    sw, sw_slow: u32;
    sd, sd_slow: u64;
}

macro_rules! float_loads {
    ($($name:ident: $type:ty, |$value:ident| $boxed:expr;)*) => { $(
        pub(super) fn $name(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
            if hart.csrs.mstatus & FS_CHECK == 0 {
                return hart.leave_with_illegal(op, slack);
            }
            let address = hart.rs1(op).wrapping_add(op.imm as u64);
            let $value = match hart.tlb.read::<$type>(address) {
                Some(value) => value,
                None => match hart.load_or_leave(op, slack, bus, size_of::<$type>()) {
                    Some(value) => value as $type,
                    None => return,
                },
            };
            hart.set_float(op.rd, $boxed);
            go_on_unless_attention(hart, op, slack, bus)
        }
    )* };
}

float_loads! {
    flw: u32, |value| box_single(value);
    fld: u64, |value| value;
}

macro_rules! float_stores {
    ($($name:ident: $type:ty;)*) => { $(
        pub(super) fn $name(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
            if hart.csrs.mstatus & FS_CHECK == 0 {
                return hart.leave_with_illegal(op, slack);
            }
            let address = hart.rs1(op).wrapping_add(op.imm as u64);
            let value = hart.f[op.rs2 as usize & 31];
            if hart.tlb.write(address, value as $type) {
                return go_on(hart, op, slack, bus);
            }
            if hart.store_or_leave(op, slack, bus, value, size_of::<$type>()) {
                go_on_unless_attention(hart, op, slack, bus)
            }
        }
    )* };
}

float_stores! {
    fsw: u32;
    fsd: u64;
}

// These two keep what is returned through memory out of the handlers: a handler with a
// place on its stack whose address was given away cannot end in a jump.
impl Hart {
    /// Loads what `op` says, zero-extended. `None` if the chain was left with an exception.
    #[cold]
    #[inline(never)]
    fn load_or_leave(&mut self, op: OpRef, slack: i64, bus: &mut dyn Bus, size: usize) -> Option<u64> {
        let address = self.rs1(op).wrapping_add(op.imm as u64);
        if self.stops_for_access(op, slack, address, size, Access::Load) {
            return None;
        }
        let icount = self.icount_of(op, slack);
        let result = self.load(bus, icount, address, size);
        self.value_or_leave(op, slack, result)
    }

    /// Stores what `op` says. `false` if the chain was left with an exception.
    #[cold]
    #[inline(never)]
    fn store_or_leave(&mut self, op: OpRef, slack: i64, bus: &mut dyn Bus, value: u64, size: usize) -> bool {
        let address = self.rs1(op).wrapping_add(op.imm as u64);
        if self.stops_for_access(op, slack, address, size, Access::Store) {
            return false;
        }
        let icount = self.icount_of(op, slack);
        let result = self.store(bus, icount, address, value, size);
        self.value_or_leave(op, slack, result).is_some()
    }
}
