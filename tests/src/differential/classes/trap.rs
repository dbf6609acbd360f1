//! Exceptions in all modes, delegated or not, and returns from them.

use super::{atomic, integer, memory};
use crate::differential::encode::{csr::*, *};
use crate::differential::frame::STATUS_FS;
use crate::differential::program::{Block, Entry, Mode};

/// Nothing answers there, on either board. Not at the very end of physical addresses: of an
/// access that crosses it we name the part beyond, which is no address, QEMU the part before.
const NOWHERE: [u64; 5] = [0x9000_0000, 0xf000_0000, 0x8800_0000, (1 << 56) + 0x1000, 0xffff_ffff_ffff_f000];

/// Illegal on both: no instruction, or one of an extension that neither has.
const ILLEGAL: [u32; 8] =
    [0xffff_ffff, 0x0000_000b, 0x0200_0057, 0x6000_0073, 0x00d0_0073, 0x2200_0073, 0x7b20_0073, 0x0a00_1033];

pub(super) fn put_body(block: &mut Block<'_>) {
    let mode = *block.random.pick(&[Mode::Machine, Mode::Supervisor, Mode::User, Mode::User]);
    for number in [MENVCFG, SENVCFG] {
        let source = block.scratch(ZERO);
        let value = block.random.next_u64() & 0xf1;
        block.asm.constant(source, value);
        block.asm.word(csrrw(ZERO, number, source));
    }
    // Direct or vectored: exceptions enter at the base.
    let funct3 = *block.random.pick(&[6, 7]);
    let number = *block.random.pick(&[MTVEC, STVEC]);
    block.asm.word(i(0x73 | funct3 << 12, ZERO, 1, number as i32));
    if mode != Mode::Machine {
        let medeleg = *block.random.pick(&[0, block.random.clone().next_u64() & !0x200]);
        // TVM and TW; TSR where no handler needs `sret`.
        let trapped = if medeleg == 0 { 7 << 20 } else { 3 << 20 };
        let status = block.random.next_u64() & trapped | *block.random.pick(&[STATUS_FS, 0]);
        block.enter(Entry { mode, status, medeleg, mideleg: 0, satp: 0 });
    }
    block.items(|block| put_item(block, mode));
    if mode != Mode::Machine {
        block.leave();
    }
}

fn put_item(block: &mut Block<'_>, mode: Mode) {
    match block.random.between(0, 15) {
        0..=2 => integer::put_item(block),
        3 => memory::put_item(block),
        4 => atomic::put_item(block),
        5 => {
            let call = *block.random.pick(&[ECALL, EBREAK]);
            block.asm.word(call);
        }
        6 => {
            let half = *block.random.pick(&[C_EBREAK, 0, 0x8000, 0x9c41]);
            block.asm.half(half);
        }
        7 => {
            let word = *block.random.pick(&ILLEGAL);
            block.asm.word(word);
        }
        8 | 9 => put_access_fault(block),
        10 => put_fetch_fault(block),
        11 => put_return(block, mode),
        12 => put_fence(block),
        13 => put_cache_block(block),
        14 => {
            let (rd, number) = (block.target(), *block.random.pick(&[CYCLE, TIME, INSTRET, SATP, MSTATUS]));
            // Counters are closed to lower modes, and not to be compared in M-mode.
            let rd = if mode == Mode::Machine { ZERO } else { rd };
            block.asm.word(csrrs(rd, number, ZERO));
        }
        _ => {
            let (rd, rs1) = (block.register(), block.register());
            block.asm.word(r(0xf200_0053, rd, rs1, 0));
        }
    }
}

/// Not the `cbo` instructions: QEMU lets some of them pass where nothing is.
fn put_access_fault(block: &mut Block<'_>) {
    let pointer = block.scratch(ZERO);
    let address = *block.random.pick(&NOWHERE) + block.random.between(0, 0xfff);
    block.asm.constant(pointer, address);
    if block.random.chance(300) {
        atomic::put_access(block, pointer);
    } else {
        memory::put_load_or_store(block, pointer);
    }
}

fn put_fetch_fault(block: &mut Block<'_>) {
    let pointer = block.scratch(RA);
    let address = *block.random.pick(&NOWHERE) + (block.random.between(0, 0xfff) & !1);
    block.asm.constant(pointer, address);
    let behind = block.asm.label();
    block.asm.address_of(RA, behind);
    let rd = *block.random.pick(&[ZERO, RA, pointer]);
    block.asm.word(jalr(rd, pointer, 0));
    block.asm.bind(behind);
}

/// A return to the very next instruction, where it is one; illegal elsewhere.
fn put_return(block: &mut Block<'_>, mode: Mode) {
    let pointer = block.scratch(ZERO);
    let behind = block.asm.label();
    block.asm.address_of(pointer, behind);
    if mode == Mode::Machine {
        let status = block.scratch(pointer);
        block.asm.word(csrrw(ZERO, MEPC, pointer));
        block.asm.constant(status, 3 << 11);
        block.asm.words(&[csrrs(ZERO, MSTATUS, status), MRET]);
    } else {
        // SPP stays as the last trap left it; code may go on in U-mode.
        let status = block.scratch(pointer);
        block.asm.word(csrrw(ZERO, SEPC, pointer));
        block.asm.constant(status, 1 << 8);
        let to_user = block.random.chance(50);
        let change = if to_user { csrrc(ZERO, SSTATUS, status) } else { csrrs(ZERO, SSTATUS, status) };
        let back = *block.random.pick(&[SRET, SRET, SRET, MRET]);
        block.asm.words(&[change, back]);
    }
    block.asm.bind(behind);
}

fn put_fence(block: &mut Block<'_>) {
    let (rs1, rs2) = (block.register(), block.register());
    block.asm.word(r(SFENCE_VMA, ZERO, rs1, rs2));
}

fn put_cache_block(block: &mut Block<'_>) {
    let pointer = block.data_pointer();
    let operation = *block.random.pick(&[0, 1, 2, 4]);
    block.asm.word(i(0x200f, 0, pointer, operation));
}
