//! Loads, stores, `cbo.zero`.

use super::integer;
use crate::differential::encode::*;
use crate::differential::program::Block;

const LOADS: [u32; 7] = [0x03, 0x1003, 0x2003, 0x3003, 0x4003, 0x5003, 0x6003];
const STORES: [u32; 4] = [0x23, 0x1023, 0x2023, 0x3023];

pub(super) fn put_body(block: &mut Block<'_>) {
    block.items(|block| if block.random.chance(150) { integer::put_item(block) } else { put_item(block) });
}

pub(super) fn put_item(block: &mut Block<'_>) {
    let pointer = block.data_pointer();
    put_access(block, pointer);
}

/// An access relative to `pointer`.
fn put_access(block: &mut Block<'_>, pointer: u32) {
    if block.random.chance(60) {
        let operation = *block.random.pick(&[0, 1, 2, 4]);
        block.asm.word(i(0x200f, ZERO, pointer, operation));
    } else {
        put_load_or_store(block, pointer);
    }
}

/// A load or store relative to `pointer`.
pub(super) fn put_load_or_store(block: &mut Block<'_>, pointer: u32) {
    let imm = displacement(block);
    let word = match block.random.between(0, 14) {
        0..=6 => i(*block.random.pick(&LOADS), block.target(), pointer, imm),
        7..=12 => s(*block.random.pick(&STORES), pointer, block.register(), imm),
        13 => i(*block.random.pick(&[0x2007, 0x3007]), block.register(), pointer, imm),
        _ => s(*block.random.pick(&[0x2027, 0x3027]), pointer, block.register(), imm),
    };
    block.asm.word(word);
}

/// Mostly aligned.
fn displacement(block: &mut Block<'_>) -> i32 {
    let imm = block.immediate(12);
    if block.random.chance(600) { imm & !7 } else { imm }
}
