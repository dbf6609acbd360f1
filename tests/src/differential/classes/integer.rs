//! RV64I without memory.

use crate::differential::encode::*;
use crate::differential::program::Block;

const REGISTER: [u32; 15] = [
    op(0x33, 0, 0),
    op(0x33, 0, 0x20),
    op(0x33, 1, 0),
    op(0x33, 2, 0),
    op(0x33, 3, 0),
    op(0x33, 4, 0),
    op(0x33, 5, 0),
    op(0x33, 5, 0x20),
    op(0x33, 6, 0),
    op(0x33, 7, 0),
    op(0x3b, 0, 0),
    op(0x3b, 0, 0x20),
    op(0x3b, 1, 0),
    op(0x3b, 5, 0),
    op(0x3b, 5, 0x20),
];
/// `addi`, `slti`, `sltiu`, `xori`, `ori`, `andi`, `addiw`.
const IMMEDIATE: [u32; 7] = [0x13, 0x2013, 0x3013, 0x4013, 0x6013, 0x7013, 0x1b];
/// Base and bits of the shift amount.
const SHIFT: [(u32, u64); 6] = [
    (op(0x13, 1, 0), 6),
    (op(0x13, 5, 0), 6),
    (op(0x13, 5, 0x20), 6),
    (op(0x1b, 1, 0), 5),
    (op(0x1b, 5, 0), 5),
    (op(0x1b, 5, 0x20), 5),
];

pub(super) fn put_body(block: &mut Block<'_>) {
    block.items(put_item);
}

pub(super) fn put_item(block: &mut Block<'_>) {
    match block.random.between(0, 19) {
        0..=7 => put_register(block, &REGISTER),
        8..=11 => {
            let base = *block.random.pick(&IMMEDIATE);
            let (rd, rs1, imm) = (block.target(), block.register(), block.immediate(12));
            block.asm.word(i(base, rd, rs1, imm));
        }
        12..=14 => put_shift(block, &SHIFT),
        15 => {
            let base = *block.random.pick(&[0x37, 0x17]);
            let (rd, imm) = (block.target(), block.random.next_u64() as u32);
            block.asm.word(u(base, rd, imm));
        }
        16 => {
            let base = *block.random.pick(&[FENCE, 0x8330_000f, 0x0000_000f, FENCE_I, 0x0100_000f]);
            block.asm.word(base);
        }
        _ => put_jump(block),
    }
}

/// One of some R-type instructions.
pub(super) fn put_register(block: &mut Block<'_>, bases: &[u32]) {
    let base = *block.random.pick(bases);
    let (rd, rs1, rs2) = (block.target(), block.register(), block.register());
    block.asm.word(r(base, rd, rs1, rs2));
}

/// One of some shifts by a constant.
pub(super) fn put_shift(block: &mut Block<'_>, bases: &[(u32, u64)]) {
    let &(base, bits) = block.random.pick(bases);
    let (rd, rs1) = (block.target(), block.register());
    let shift = block.random.between(0, (1 << bits) - 1) as u32;
    block.asm.word(r(base, rd, rs1, 0) | shift << 20);
}

/// A branch or a jump forward, over a few items.
pub(super) fn put_jump(block: &mut Block<'_>) {
    let to = block.label_ahead();
    match block.random.between(0, 5) {
        0 => {
            let rd = block.target();
            block.asm.jump(rd, to);
        }
        1 => {
            let (pointer, rd) = (block.scratch(ZERO), block.target());
            block.asm.relative(pointer, to, jalr(rd, pointer, 0));
        }
        _ => {
            let funct3 = *block.random.pick(&[0, 1, 4, 5, 6, 7]);
            let (rs1, rs2) = (block.register(), block.register());
            block.asm.branch(funct3, rs1, rs2, to);
        }
    }
}
