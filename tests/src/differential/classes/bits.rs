//! M, Zba, Zbb, Zbs and Zicond.

use super::integer::{put_register, put_shift};
use crate::differential::encode::*;
use crate::differential::program::Block;

const MULTIPLICATION: [u32; 13] = [
    op(0x33, 0, 1),
    op(0x33, 1, 1),
    op(0x33, 2, 1),
    op(0x33, 3, 1),
    op(0x33, 4, 1),
    op(0x33, 5, 1),
    op(0x33, 6, 1),
    op(0x33, 7, 1),
    op(0x3b, 0, 1),
    op(0x3b, 4, 1),
    op(0x3b, 5, 1),
    op(0x3b, 6, 1),
    op(0x3b, 7, 1),
];

const REGISTER: [u32; 26] = [
    // Zba.
    op(0x3b, 0, 0x04),
    op(0x33, 2, 0x10),
    op(0x33, 4, 0x10),
    op(0x33, 6, 0x10),
    op(0x3b, 2, 0x10),
    op(0x3b, 4, 0x10),
    op(0x3b, 6, 0x10),
    // Zbb.
    op(0x33, 7, 0x20),
    op(0x33, 6, 0x20),
    op(0x33, 4, 0x20),
    op(0x33, 6, 0x05),
    op(0x33, 7, 0x05),
    op(0x33, 4, 0x05),
    op(0x33, 5, 0x05),
    op(0x33, 1, 0x30),
    op(0x3b, 1, 0x30),
    op(0x33, 5, 0x30),
    op(0x3b, 5, 0x30),
    // Zbs.
    op(0x33, 1, 0x24),
    op(0x33, 5, 0x24),
    op(0x33, 1, 0x34),
    op(0x33, 1, 0x14),
    // Zicond.
    op(0x33, 5, 0x07),
    op(0x33, 7, 0x07),
    // Again, as they stand next to an illegal neighbour.
    op(0x33, 5, 0x24),
    op(0x3b, 0, 0x04),
];

/// `clz`, `ctz`, `cpop`, `sext.b`, `sext.h`, their 32-bit forms, `zext.h`, `orc.b`, `rev8`.
const UNARY: [u32; 11] = [
    0x6000_1013,
    0x6010_1013,
    0x6020_1013,
    0x6040_1013,
    0x6050_1013,
    0x6000_101b,
    0x6010_101b,
    0x6020_101b,
    0x0800_403b,
    0x2870_5013,
    0x6b80_5013,
];

/// `rori`, `roriw`, `slli.uw`, `bclri`, `bexti`, `binvi`, `bseti`.
const SHIFT: [(u32, u64); 7] = [
    (op(0x13, 5, 0x30), 6),
    (op(0x1b, 5, 0x30), 5),
    (op(0x1b, 1, 0x04), 6),
    (op(0x13, 1, 0x24), 6),
    (op(0x13, 5, 0x24), 6),
    (op(0x13, 1, 0x34), 6),
    (op(0x13, 1, 0x14), 6),
];

pub(super) fn put_body(block: &mut Block<'_>) {
    block.items(put_item);
}

pub(super) fn put_multiplications(block: &mut Block<'_>) {
    block.items(put_multiplication);
}

pub(super) fn put_multiplication(block: &mut Block<'_>) {
    put_register(block, &MULTIPLICATION);
}

pub(super) fn put_item(block: &mut Block<'_>) {
    match block.random.between(0, 3) {
        0 => {
            let base = *block.random.pick(&UNARY);
            let (rd, rs1) = (block.target(), block.register());
            block.asm.word(r(base, rd, rs1, 0));
        }
        1 => put_shift(block, &SHIFT),
        _ => put_register(block, &REGISTER),
    }
}
