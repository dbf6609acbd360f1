//! Loads and stores.
//!
//! The fast path is a TLB hit on an aligned access. Everything else (a miss, a misaligned
//! access, a device, a page that is watched) goes through `*_slow`, which also decides
//! whether the chain can go on.

use super::Hart;
use super::float::{FS_CHECK, box_single};
use super::op::{OpRef, go_on};
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
            let icount = hart.icount_of(op, slack);
            match hart.load(bus, icount, address, size_of::<$type>()) {
                Ok(value) => hart.set_rd(op, value as $type as u64),
                Err(trap) => return hart.leave_with_trap(op, slack, trap),
            }
            if hart.attention {
                return hart.leave_after(op, slack);
            }
            go_on(hart, op, slack, bus)
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
            hart.store_then_go_on(op, slack, bus, address, value, size_of::<$type>())
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
                None => {
                    let icount = hart.icount_of(op, slack);
                    match hart.load(bus, icount, address, size_of::<$type>()) {
                        Ok(value) => value as $type,
                        Err(trap) => return hart.leave_with_trap(op, slack, trap),
                    }
                }
            };
            hart.set_float(op.rd, $boxed);
            if hart.attention {
                return hart.leave_after(op, slack);
            }
            go_on(hart, op, slack, bus)
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
            hart.store_then_go_on(op, slack, bus, address, value, size_of::<$type>())
        }
    )* };
}

float_stores! {
    fsw: u32;
    fsd: u64;
}

impl Hart {
    #[cold]
    #[inline(never)]
    fn store_then_go_on(
        &mut self,
        op: OpRef,
        slack: i64,
        bus: &mut dyn Bus,
        address: u64,
        value: u64,
        size: usize,
    ) {
        let icount = self.icount_of(op, slack);
        if let Err(trap) = self.store(bus, icount, address, value, size) {
            return self.leave_with_trap(op, slack, trap);
        }
        if self.attention {
            return self.leave_after(op, slack);
        }
        go_on(self, op, slack, bus)
    }
}
