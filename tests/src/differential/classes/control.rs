//! CSRs. What may not be changed for good is put back right away; what depends on real time,
//! or names the implementation, is not read.

use super::integer;
use crate::differential::encode::{csr::*, *};
use crate::differential::frame::STATUS_FS;
use crate::differential::program::{Block, Entry, Mode};
use crate::differential::values;

/// Take any value at any time.
const FREE: [u32; 11] = [FFLAGS, FRM, FCSR, SCOUNTEREN, SENVCFG, SEPC, STVAL, MCOUNTEREN, MEPC, MTVAL, MISA];
/// Take some values at any time: interrupts and causes that both machines have. Only one
/// interrupt is ever enabled: see the class of interrupts.
const MASKED: [(u32, u64); 8] = [
    (SIP, 0x222),
    (SIE, 0x2),
    (MIDELEG, 0x222),
    (MIE, 0x2),
    (MIP, 0x222),
    (SCAUSE, 0xf),
    (MCAUSE, 0xf),
    (MEDELEG, 0xb3ff),
];
/// Take any value for a moment, in M-mode with interrupts off; then 0. With the bits that
/// differ: `docs/conformance.md` says how.
const MOMENTARY: [(u32, u64); 8] =
    [(MEDELEG, 0), (MIDELEG, 0), (MIE, 0), (MIP, 0), (SIE, 0), (SIP, 0), (MCAUSE, 0), (SCAUSE, 0)];
/// The handlers need them.
const BORROWED: [u32; 4] = [MTVEC, STVEC, MSCRATCH, SSCRATCH];
/// UXL and SXL, which a machine may let be written or not.
const STATUS_XLEN: u64 = 0xf << 32;
const STATUS_XLEN_64: u64 = 0xa << 32;
/// `pmpcfg` with the first entry's lock bit only.
const LOCKED: u64 = 0x80;
/// `menvcfg.STCE`.
const TIMER_ENABLE: u64 = 1 << 63;

pub(super) fn put_body(block: &mut Block<'_>) {
    let mode = *block.random.pick(&[Mode::Machine, Mode::Machine, Mode::Supervisor, Mode::User]);
    // What software wrote to STIP is gone or comes back when Sstc is switched off: it is
    // switched with nothing pending, and not again in this block.
    let timer = *block.random.pick(&[0, TIMER_ENABLE]);
    put_value(block, MENVCFG, 0);
    block.asm.word(csrrw(ZERO, MIP, ZERO));
    put_value(block, MENVCFG, timer);
    if mode != Mode::Machine {
        block.asm.words(&[csrrw(ZERO, MIE, ZERO), csrrw(ZERO, MIP, ZERO)]);
        put_value(block, MCOUNTEREN, 0);
        // TVM.
        let status = *block.random.pick(&[STATUS_FS, STATUS_FS, STATUS_FS | 1 << 20]);
        let medeleg = block.random.next_u64() & !0x300;
        let mideleg = block.random.next_u64() & 0x222;
        block.enter(Entry { mode, status, medeleg, mideleg, satp: 0 });
    }
    block.items(|block| put_item(block, mode, timer));
    if mode == Mode::Machine {
        put_value(block, MSTATUS, STATUS_FS);
    } else {
        block.leave();
    }
}

fn put_item(block: &mut Block<'_>, mode: Mode, timer: u64) {
    match block.random.between(0, 15) {
        0 => integer::put_item(block),
        1..=6 => put_free(block),
        7 | 8 => put_borrowed(block),
        9 => put_status(block),
        10 => put_protection(block),
        11 => put_translation(block, mode),
        12 => put_timer(block),
        13 => put_environment(block, timer),
        14 => put_counter(block),
        15 if mode == Mode::Machine => put_momentary(block),
        _ => put_survey(block),
    }
}

/// Writes a constant.
fn put_value(block: &mut Block<'_>, number: u32, value: u64) {
    let source = block.scratch(ZERO);
    block.asm.constant(source, value);
    block.asm.word(csrrw(ZERO, number, source));
}

/// Any of the six instructions, from any register, then a look at what came of it.
fn put_free(block: &mut Block<'_>) {
    let (rd, source) = (block.target(), block.register());
    let funct3 = *block.random.pick(&[1, 2, 3, 5, 6, 7]);
    let number = if block.random.chance(600) {
        let number = *block.random.pick(&FREE);
        // Whether setting or clearing no bit at all makes FS dirty is up to the machine.
        let is_float = number <= FCSR;
        let funct3 = if is_float && matches!(funct3, 2 | 3) { 1 } else { funct3 };
        block.asm.word(i(0x73 | funct3 << 12, rd, source, number as i32));
        number
    } else {
        let (number, mask) = *block.random.pick(&MASKED);
        let masked = block.scratch(source);
        block.asm.constant(masked, mask);
        block.asm.word(r(0x7033, masked, masked, source));
        block.asm.word(i(0x73 | (funct3 & 3) << 12, rd, masked, number as i32));
        number
    };
    let rd = block.target();
    block.asm.word(csrrs(rd, number, ZERO));
}

/// Writes any value, looks at what came of it, and clears it.
fn put_momentary(block: &mut Block<'_>) {
    let &(number, common) = block.random.pick(&MOMENTARY);
    let rd = block.target();
    let value = values::integer(&mut block.random) & common;
    let before = values::integer(&mut block.random) & common;
    let source = block.scratch(ZERO);
    // MIE: `csrrci` of 8.
    block.asm.word(i(0x7073, ZERO, 8, MSTATUS as i32));
    put_value(block, number, before);
    block.asm.constant(source, value);
    let funct3 = block.random.between(1, 3) as u32;
    block.asm.word(i(0x73 | funct3 << 12, rd, source, number as i32));
    let rd = block.target();
    block.asm.words(&[csrrs(rd, number, ZERO), csrrw(ZERO, number, ZERO)]);
}

fn put_borrowed(block: &mut Block<'_>) {
    let number = *block.random.pick(&BORROWED);
    let saved = block.scratch(ZERO);
    let (source, seen) = (block.scratch(saved), block.scratch(saved));
    if matches!(number, MTVEC | STVEC) {
        // What becomes of a reserved mode is up to the machine.
        block.asm.word(andi(source, source, -3));
    }
    // Where the CSR is out of reach all three are illegal. `saved` is not read in between.
    block.asm.words(&[csrrw(saved, number, source), csrrs(seen, number, ZERO), csrrw(ZERO, number, saved)]);
}

fn put_status(block: &mut Block<'_>) {
    let number = *block.random.pick(&[MSTATUS, SSTATUS]);
    let value = block.random.next_u64() & !STATUS_XLEN | STATUS_XLEN_64;
    let (source, rd) = (block.scratch(ZERO), block.target());
    let (instruction, value) = match block.random.between(0, 2) {
        0 => (csrrw(rd, number, source), value),
        1 => (csrrs(rd, number, source), value),
        _ => (csrrc(rd, number, source), value & !STATUS_XLEN),
    };
    block.asm.constant(source, value);
    block.asm.word(instruction);
    let rd = block.target();
    block.asm.word(csrrs(rd, number, ZERO));
}

/// PMP entries 1 to 15: entry 0 keeps everything open.
fn put_protection(block: &mut Block<'_>) {
    let rd = block.target();
    if block.random.chance(400) {
        // Entries from 16 on exist as zeros.
        let last = if block.random.chance(900) { 15 } else { 63 };
        let number = PMPADDR0 + block.random.between(1, last) as u32;
        let source = block.register();
        block.asm.words(&[csrrw(ZERO, number, source), csrrs(rd, number, ZERO)]);
        return;
    }
    let (number, mask, open) = *block.random.pick(&[(PMPCFG0, 0xff, 0x1f), (PMPCFG0 + 2, 0, 0)]);
    // Now and then locked entries.
    let unlocked = if block.random.chance(950) { 0x8080_8080_8080_8080 } else { LOCKED };
    let value = block.random.next_u64() & !mask & !unlocked | open;
    // W without R is reserved.
    let value = value | (value & 0x0202_0202_0202_0202) >> 1;
    put_value(block, number, value);
    block.asm.word(csrrs(rd, number, ZERO));
}

fn put_translation(block: &mut Block<'_>, mode: Mode) {
    let rd = block.target();
    // In S-mode, a mode that does not exist changes nothing.
    let modes: &[u64] = if mode == Mode::Machine { &[0, 8, 9, 1, 10, 15] } else { &[1, 7, 10, 15] };
    let scheme = *block.random.pick(modes);
    let rest = if scheme == 0 { 0 } else { block.random.next_u64() >> 4 };
    put_value(block, SATP, scheme << 60 | rest);
    block.asm.word(csrrs(rd, SATP, ZERO));
}

fn put_timer(block: &mut Block<'_>) {
    let rd = block.target();
    // Past, or far from now.
    let any = block.random.next_u64() | 1 << 50;
    let value = *block.random.pick(&[0, u64::MAX, any]);
    put_value(block, STIMECMP, value);
    block.asm.word(csrrs(rd, STIMECMP, ZERO));
    put_value(block, STIMECMP, u64::MAX);
}

fn put_environment(block: &mut Block<'_>, timer: u64) {
    let number = *block.random.pick(&[MENVCFG, SENVCFG, MCOUNTINHIBIT]);
    let rd = block.target();
    let value = values::integer(&mut block.random) & !TIMER_ENABLE | timer;
    put_value(block, number, value);
    block.asm.word(csrrs(rd, number, ZERO));
}

/// Counters that stand still: writes one and reads it back. Reads what names the hart.
fn put_counter(block: &mut Block<'_>) {
    let number = *block.random.pick(&[MCYCLE, MINSTRET]);
    let (rd, source) = (block.target(), block.register());
    let funct3 = *block.random.pick(&[1, 2, 3, 5, 6, 7]);
    put_value(block, MCOUNTINHIBIT, 5);
    // What it held is not to be compared.
    block.asm.word(csrrw(ZERO, number, source));
    block.asm.word(i(0x73 | funct3 << 12, rd, block.random.between(0, 31) as u32, number as i32));
    let rd = block.target();
    block.asm.word(csrrs(rd, number, ZERO));
    put_value(block, MCOUNTINHIBIT, 0);
    let number = *block.random.pick(&[MHARTID, MCONFIGPTR]);
    let rd = block.target();
    block.asm.word(csrrs(rd, number, ZERO));
}

/// Reads any CSR, or writes one that is read-only.
fn put_survey(block: &mut Block<'_>) {
    let number = block.random.between(0, 0xfff) as u32;
    let rd = block.target();
    if is_telling(number) {
        return put_survey(block);
    }
    if number >= 0xc00 && block.random.chance(300) {
        let source = block.register();
        block.asm.word(csrrw(rd, number, source));
    } else {
        block.asm.word(csrrs(rd, number, ZERO));
    }
}

/// Whether a CSR tells real time or the implementation's name, or is one that a machine may
/// have without any extension, as those that say that there are no triggers.
fn is_telling(number: u32) -> bool {
    matches!(number, 0x7a0..=0x7a4 | 0xb00..=0xb9f | 0xc00..=0xc9f | 0xf11..=0xf13 | 0x320..=0x33f | 0x720..=0x73f)
}
