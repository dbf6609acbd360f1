//! Code that writes code.

use super::integer;
use crate::differential::encode::*;
use crate::differential::layout;
use crate::differential::program::Block;

pub(super) fn put_body(block: &mut Block<'_>) {
    block.some_items(32, |block| match block.random.between(0, 5) {
        0 | 1 => integer::put_item(block),
        2 | 3 => put_patch(block),
        _ => put_routine(block),
    });
}

/// An instruction without effect on reserved registers whose sources are bits 15 to 24 of
/// a register's value: leaves it in `word`.
fn put_instruction(block: &mut Block<'_>, word: u32, mask: u32) {
    let source = block.register();
    let base = *block.random.pick(&[op(0x33, 0, 0), op(0x33, 4, 0), op(0x33, 0, 1), op(0x3b, 0, 0x20)]);
    let rd = block.scratch(RA);
    // Bits 15 to 24, alone.
    block.asm.words(&[slli(word, source, 39), srli(word, word, 54), slli(word, word, 15)]);
    block.asm.constant(mask, u64::from(r(base, rd, 0, 0)));
    block.asm.word(r(0x6033, word, word, mask));
}

/// Replaces an instruction right ahead, whole or in halves.
fn put_patch(block: &mut Block<'_>) {
    let word = block.scratch(ZERO);
    let pointer = block.scratch(word);
    put_instruction(block, word, pointer);
    let slot = block.asm.label();
    block.asm.address_of(pointer, slot);
    if block.random.chance(500) {
        block.asm.word(sw(word, pointer, 0));
    } else {
        let store_half = |source, offset| s(0x1023, pointer, source, offset);
        block.asm.words(&[store_half(word, 0), srli(word, word, 16), store_half(word, 2)]);
    }
    block.asm.word(FENCE_I);
    if block.random.chance(500) {
        block.asm.half(C_NOP);
    }
    block.asm.bind(slot);
    block.asm.word(NOP);
}

/// Writes a routine of a few instructions to the data area and calls it, now and then
/// across the end of a page.
fn put_routine(block: &mut Block<'_>) {
    let word = block.scratch(RA);
    let mask = loop {
        let mask = block.scratch(word);
        if mask != RA {
            break mask;
        }
    };
    let pointer = loop {
        let pointer = block.scratch(word);
        if pointer != mask && pointer != RA {
            break pointer;
        }
    };
    let place = *block.random.pick(&[0x1000, 0x1ffa, 0x1ffe, 0x2f00]);
    block.asm.constant(pointer, layout::DATA + place);
    let count = block.random.between(1, 4) as i32;
    for index in 0..count {
        put_instruction(block, word, mask);
        block.asm.word(sw(word, pointer, 4 * index));
    }
    block.asm.constant(word, u64::from(C_RET));
    block.asm.word(s(0x1023, pointer, word, 4 * count));
    if block.random.chance(500) {
        block.asm.word(FENCE_I);
    }
    let behind = block.asm.label();
    block.asm.address_of(RA, behind);
    block.asm.word(jalr(ZERO, pointer, 0));
    block.asm.bind(behind);
}
