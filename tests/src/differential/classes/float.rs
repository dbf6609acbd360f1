//! F and D.

use super::{integer, memory};
use crate::differential::encode::{csr::*, *};
use crate::differential::program::Block;

pub(super) fn put_singles(block: &mut Block<'_>) {
    block.items(|block| match block.random.between(0, 29) {
        0 => integer::put_item(block),
        1 => memory::put_item(block),
        2 | 3 => put_status(block),
        _ => put_single(block),
    });
}

pub(super) fn put_doubles(block: &mut Block<'_>) {
    block.items(|block| match block.random.between(0, 29) {
        0 => integer::put_item(block),
        1 => memory::put_item(block),
        2 | 3 => put_status(block),
        _ => put_double(block),
    });
}

pub(super) fn put_single(block: &mut Block<'_>) {
    put_operation(block, 0);
}

pub(super) fn put_double(block: &mut Block<'_>) {
    put_operation(block, 1);
}

/// A rounding mode: mostly one that exists.
fn rounding(block: &mut Block<'_>) -> u32 {
    match block.random.between(0, 31) {
        0 => *block.random.pick(&[5, 6]),
        1..=10 => 7,
        _ => block.random.between(0, 4) as u32,
    }
}

/// One operation of a format: 0 is single, 1 double.
fn put_operation(block: &mut Block<'_>, format: u32) {
    let base = 0x53 | format << 25;
    let mode = rounding(block) << 12;
    let (float_rd, rs1, rs2, rs3) = (block.register(), block.register(), block.register(), block.register());
    let rd = block.target();
    let funct5 = |value: u32| base | value << 27;
    let word = match block.random.between(0, 19) {
        0..=4 => {
            let funct = *block.random.pick(&[0, 1, 2, 3]);
            r(funct5(funct) | mode, float_rd, rs1, rs2)
        }
        5 | 6 => r(funct5(0x0b) | mode, float_rd, rs1, 0),
        7..=10 => {
            let opcode = *block.random.pick(&[0x43, 0x47, 0x4b, 0x4f]);
            r4(opcode | format << 25 | mode, float_rd, rs1, rs2, rs3)
        }
        11 => r(funct5(0x04) | pick_funct3(block, 2), float_rd, rs1, rs2),
        12 => r(funct5(0x05) | pick_funct3(block, 1), float_rd, rs1, rs2),
        13 => r(funct5(0x14) | pick_funct3(block, 2), rd, rs1, rs2),
        14 | 15 => r(funct5(0x18) | mode, rd, rs1, block.random.between(0, 3) as u32),
        16 => r(funct5(0x1a) | mode, float_rd, rs1, block.random.between(0, 3) as u32),
        17 => r(funct5(0x08) | mode, float_rd, rs1, 1 - format),
        18 => r(funct5(0x1c) | pick_funct3(block, 1), rd, rs1, 0),
        _ => r(funct5(0x1e), float_rd, rs1, 0),
    };
    block.asm.word(word);
}

fn pick_funct3(block: &mut Block<'_>, last: u64) -> u32 {
    (block.random.between(0, last) as u32) << 12
}

/// Reads and writes of fflags, frm and fcsr.
fn put_status(block: &mut Block<'_>) {
    let number = *block.random.pick(&[FFLAGS, FRM, FCSR]);
    let rd = block.target();
    if block.random.chance(500) {
        // Mostly a rounding mode that exists.
        let modes: &[u32] =
            if number == FRM { &[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 7] } else { &[0, 4, 17, 31] };
        let imm = *block.random.pick(modes);
        let funct3 = *block.random.pick(&[5, 5, 6, 7]);
        block.asm.word(i(0x73 | funct3 << 12, rd, imm, number as i32));
    } else {
        block.asm.word(csrrs(rd, number, ZERO));
    }
}
