//! A.

use super::{integer, memory};
use crate::differential::encode::*;
use crate::differential::program::Block;

/// funct5 of the AMOs.
const AMO: [u32; 9] = [0x00, 0x01, 0x04, 0x08, 0x0c, 0x10, 0x14, 0x18, 0x1c];
const LR: u32 = 0x02;
const SC: u32 = 0x03;

pub(super) fn put_body(block: &mut Block<'_>) {
    block.items(|block| match block.random.between(0, 9) {
        0 => integer::put_item(block),
        1 => memory::put_item(block),
        _ => put_item(block),
    });
}

fn word(funct5: u32, size: u32, order: u32, [rd, rs1, rs2]: [u32; 3]) -> u32 {
    r(0x2f | size << 12 | funct5 << 27 | order << 25, rd, rs1, rs2)
}

pub(super) fn put_item(block: &mut Block<'_>) {
    let pointer = block.data_pointer();
    if block.random.chance(300) {
        return put_reservation(block, pointer);
    }
    let aligned = block.scratch(pointer);
    // One in eight is misaligned, if the pointer was.
    let mask = if block.random.chance(875) { -8 } else { -1 };
    block.asm.word(andi(aligned, pointer, mask));
    put_access(block, aligned);
}

/// An AMO, or a reservation and a store, at any address.
///
/// What comes of a store without a reservation to an address that may not be written to is
/// left open by the specification, and differs: after a load that trapped there is none.
pub(super) fn put_access(block: &mut Block<'_>, pointer: u32) {
    let size = block.random.between(2, 3) as u32;
    let order = block.random.between(0, 3) as u32;
    if block.random.chance(800) {
        let funct5 = *block.random.pick(&AMO);
        let (rd, rs2) = (block.target(), block.register());
        return block.asm.word(word(funct5, size, order, [rd, pointer, rs2]));
    }
    const NOTHING_LOADED: u64 = 0x5eed_0000_0000_5eed;
    let loaded = block.scratch(pointer);
    let nothing = loop {
        let nothing = block.scratch(pointer);
        if nothing != loaded {
            break nothing;
        }
    };
    block.asm.constant(nothing, NOTHING_LOADED);
    block.asm.word(addi(loaded, nothing, 0));
    block.asm.word(word(LR, size, order, [loaded, pointer, 0]));
    let behind = block.asm.label();
    block.asm.branch(0, loaded, nothing, behind);
    let (rd, rs2) = (block.target(), block.register());
    block.asm.word(word(SC, size, order, [rd, pointer, rs2]));
    block.asm.bind(behind);
}

/// A reservation, used and gone, at an address in the data area.
fn put_reservation(block: &mut Block<'_>, pointer: u32) {
    let size = block.random.between(2, 3) as u32;
    let order = block.random.between(0, 3) as u32;
    let (aligned, loaded) = (block.scratch(pointer), block.scratch(pointer));
    let aligned = if aligned == loaded { return put_reservation(block, pointer) } else { aligned };
    block.asm.word(andi(aligned, pointer, -8));
    block.asm.word(word(LR, size, order, [loaded, aligned, 0]));
    let (rd, rs2) = (block.scratch(aligned), block.register());
    if block.random.chance(200) {
        // To another address.
        let other = block.scratch(aligned);
        block.asm.word(addi(other, aligned, *block.random.pick(&[-128, 256, 1024])));
        return block.asm.word(word(SC, size, order, [rd, other, rs2]));
    }
    // The constrained loop's shape: a few integer instructions between.
    for _ in 0..block.random.between(0, 3) {
        let (rd, rs1, rs2) = (block.scratch(aligned), block.register(), block.register());
        block.asm.word(add(rd, rs1, rs2));
    }
    if block.random.chance(200) {
        // A store of any width to the same place, or beside it: what counts is whether memory
        // holds another value than was loaded.
        let (value, width) = (block.register(), block.random.between(0, 3) as u32);
        let value = if block.random.chance(300) { loaded } else { value };
        let offset = *block.random.pick(&[0, 0, 0, 1, 4, 8, -8]);
        block.asm.word(s(0x23 | width << 12, aligned, value, offset));
    }
    block.asm.word(word(SC, size, order, [rd, aligned, rs2]));
    if block.random.chance(300) {
        // The reservation is gone.
        let (rd, rs2) = (block.target(), block.register());
        block.asm.word(word(SC, size, order, [rd, *block.random.pick(&[aligned, SP, S0]), rs2]));
    }
}
