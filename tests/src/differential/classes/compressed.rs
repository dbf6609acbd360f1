//! C.

use super::integer;
use crate::differential::encode::*;
use crate::differential::program::Block;

pub(super) fn put_body(block: &mut Block<'_>) {
    block.items(|block| match block.random.between(0, 9) {
        0 => integer::put_item(block),
        1 => put_jump(block),
        _ => put_item(block),
    });
}

/// Bit `from` of `value` at bit `to`.
fn bit(value: u32, from: u32, to: u32) -> u16 {
    ((value >> from & 1) << to) as u16
}

/// Bits `from` and up of `value`, `count` of them, at bit `to`.
fn bits(value: u32, from: u32, count: u32, to: u32) -> u16 {
    ((value >> from & ((1 << count) - 1)) << to) as u16
}

/// One that neither jumps nor traps.
pub(super) fn put_item(block: &mut Block<'_>) {
    let half = match block.random.between(0, 9) {
        0 => stack_access(block),
        1 => frame_access(block),
        2..=4 => immediate(block),
        5 | 6 => small_arithmetic(block),
        7 => quadrant_two_move(block),
        8 => shift(block),
        _ => stack_address(block),
    };
    block.asm.half(half);
}

/// A register for `rd` that is not `x0`.
fn rd(block: &mut Block<'_>) -> u16 {
    (block.scratch(ZERO) as u16) << 7
}

/// `c.lwsp`, `c.ldsp`, `c.fldsp`, `c.swsp`, `c.sdsp`, `c.fsdsp`.
fn stack_access(block: &mut Block<'_>) -> u16 {
    let imm = block.random.next_u64() as u32 & 0x1ff;
    let source = (block.register() as u16) << 2;
    let float_target = (block.register() as u16) << 7;
    let word_load = bit(imm, 5, 12) | bits(imm, 2, 3, 4) | bits(imm, 6, 2, 2);
    let double_load = bit(imm, 5, 12) | bits(imm, 3, 2, 5) | bits(imm, 6, 3, 2);
    let word_store = bits(imm, 2, 4, 9) | bits(imm, 6, 2, 7);
    let double_store = bits(imm, 3, 3, 10) | bits(imm, 6, 3, 7);
    match block.random.between(0, 5) {
        0 => 0x4002 | word_load | rd(block),
        1 => 0x6002 | double_load | rd(block),
        2 => 0x2002 | double_load | float_target,
        3 => 0xc002 | word_store | source,
        4 => 0xe002 | double_store | source,
        _ => 0xa002 | double_store | source,
    }
}

/// `c.lw`, `c.ld`, `c.fld`, `c.sw`, `c.sd`, `c.fsd`, all relative to `s0`.
fn frame_access(block: &mut Block<'_>) -> u16 {
    let imm = block.random.next_u64() as u32 & 0xff;
    let target = (block.small_target() as u16) << 2;
    let any = (block.small_register() as u16) << 2;
    let word = bits(imm, 3, 3, 10) | bit(imm, 2, 6) | bit(imm, 6, 5);
    let double = bits(imm, 3, 3, 10) | bits(imm, 6, 2, 5);
    match block.random.between(0, 5) {
        0 => 0x4000 | word | target,
        1 => 0x6000 | double | target,
        2 => 0x2000 | double | any,
        3 => 0xc000 | word | any,
        4 => 0xe000 | double | any,
        _ => 0xa000 | double | any,
    }
}

/// `c.addi`, `c.addiw`, `c.li`, `c.lui`, `c.andi`, `c.nop` and hints.
fn immediate(block: &mut Block<'_>) -> u16 {
    let imm = block.immediate(6) as u32;
    let field = bit(imm, 5, 12) | bits(imm, 0, 5, 2);
    let non_zero = if field == 0 { 4 } else { field };
    match block.random.between(0, 5) {
        0 => 0x0001 | field | rd(block),
        1 => 0x2001 | field | rd(block),
        2 => 0x4001 | field | rd(block),
        3 => 0x6001 | non_zero | rd(block),
        4 => 0x8801 | field | (block.small_target() as u16) << 7,
        // Hints: c.nop, c.li and c.lui to x0.
        _ => *block.random.pick(&[0x0001, 0x4001, 0x6001]) | non_zero,
    }
}

/// `c.sub`, `c.xor`, `c.or`, `c.and`, `c.subw`, `c.addw`.
fn small_arithmetic(block: &mut Block<'_>) -> u16 {
    let base = *block.random.pick(&[0x8c01, 0x8c21, 0x8c41, 0x8c61, 0x9c01, 0x9c21]);
    base | (block.small_target() as u16) << 7 | (block.small_register() as u16) << 2
}

/// `c.mv`, `c.add`.
fn quadrant_two_move(block: &mut Block<'_>) -> u16 {
    let base = *block.random.pick(&[0x8002, 0x9002]);
    base | rd(block) | (block.random.between(1, 31) as u16) << 2
}

/// `c.slli`, `c.srli`, `c.srai`.
fn shift(block: &mut Block<'_>) -> u16 {
    let amount = block.random.between(0, 63) as u32;
    let field = bit(amount, 5, 12) | bits(amount, 0, 5, 2);
    match block.random.between(0, 2) {
        0 => 0x0002 | field | rd(block),
        1 => 0x8001 | field | (block.small_target() as u16) << 7,
        _ => 0x8401 | field | (block.small_target() as u16) << 7,
    }
}

/// `c.addi4spn`; `c.addi16sp` would move the stack.
fn stack_address(block: &mut Block<'_>) -> u16 {
    let imm = (block.random.next_u64() as u32 & 0x3fc).max(4);
    let field = bits(imm, 4, 2, 11) | bits(imm, 6, 4, 7) | bit(imm, 2, 6) | bit(imm, 3, 5);
    field | (block.small_target() as u16) << 2
}

/// `c.j`, `c.beqz`, `c.bnez`, `c.jr`, `c.jalr` over the items right behind; `c.addi16sp` and
/// back.
fn put_jump(block: &mut Block<'_>) {
    match block.random.between(0, 4) {
        0 => {
            // Over one instruction of 2 bytes: offset 4, whose bits 3:1 are bits 5:3.
            block.asm.half(0xa001 | 2 << 3);
            put_item(block);
        }
        1 | 2 => {
            let base = *block.random.pick(&[0xc001, 0xe001]);
            let tested = (block.small_register() as u16) << 7;
            // Offset 6: bits 2:1 of the offset are bits 4:3.
            block.asm.half(base | tested | 3 << 3);
            put_item(block);
            put_item(block);
        }
        3 => {
            let base = *block.random.pick(&[0x8002, 0x9002]);
            let pointer = block.scratch(ZERO);
            let to = block.asm.label();
            block.asm.address_of(pointer, to);
            block.asm.half(base | (pointer as u16) << 7);
            put_item(block);
            block.asm.bind(to);
        }
        _ => {
            let imm = block.immediate(10) as u32 & 0x3f0;
            let by = |imm: u32| {
                let imm = if imm & 0x3f0 == 0 { 16 } else { imm };
                0x6101
                    | bit(imm, 9, 12)
                    | bit(imm, 4, 6)
                    | bit(imm, 6, 5)
                    | bits(imm, 7, 2, 3)
                    | bit(imm, 5, 2)
            };
            let rd = block.scratch(ZERO);
            block.asm.half(by(imm));
            block.asm.word(addi(rd, SP, 0));
            let source = block.register();
            let rest = block.random.next_u64() as u32;
            block.asm.half(0xe002 | bits(rest, 0, 6, 7) | (source as u16) << 2);
            block.asm.constant(SP, crate::differential::layout::STACK);
        }
    }
}
