//! Words of which the decoder must say whether they are instructions. Bits are random where
//! no encoding leads away, to reserved registers, or to memory elsewhere.

use crate::differential::encode::*;
use crate::differential::frame::STATUS_FS;
use crate::differential::program::{Block, Entry, Mode};

/// Major opcodes; those of branches and jumps only with a reserved funct3.
const OPCODES: [u32; 29] = [
    0x03, 0x07, 0x0b, 0x0f, 0x13, 0x1b, 0x1f, 0x23, 0x27, 0x2b, 0x2f, 0x33, 0x3b, 0x3f, 0x43, 0x47, 0x4b,
    0x4f, 0x53, 0x57, 0x5b, 0x5f, 0x63, 0x67, 0x6b, 0x73, 0x77, 0x7b, 0x7f,
];
/// Values of funct7 near which instructions are.
const FUNCT7: [u32; 16] =
    [0x00, 0x01, 0x04, 0x05, 0x07, 0x08, 0x0a, 0x10, 0x14, 0x20, 0x24, 0x30, 0x34, 0x35, 0x09, 0x7f];

pub(super) fn put_body(block: &mut Block<'_>) {
    let mode = *block.random.pick(&[None, Some(Mode::Supervisor), Some(Mode::User)]);
    let status = *block.random.pick(&[STATUS_FS, STATUS_FS, 0]);
    if let Some(mode) = mode {
        block.enter(Entry { mode, status, medeleg: 0, mideleg: 0, satp: 0 });
    }
    block.items(|block| if block.random.chance(250) { put_half(block) } else { put_word(block) });
    if mode.is_some() {
        block.leave();
    }
}

fn put_word(block: &mut Block<'_>) {
    let opcode = *block.random.pick(&OPCODES);
    let mut word = (block.random.next_u64() as u32 & !0xf80) | block.target() << 7;
    if block.random.chance(600) {
        word = word & 0x01ff_ffff | *block.random.pick(&FUNCT7) << 25;
    }
    if block.random.chance(300) {
        word = word & !(31 << 20) | (block.random.between(0, 7) as u32) << 20;
    }
    word = word & !0x7f | opcode;
    let funct3 = word >> 12 & 7;
    let reaches_memory = matches!(opcode, 0x03 | 0x07 | 0x0f | 0x23 | 0x27 | 0x2f);
    if reaches_memory {
        word = word & !(31 << 15) | SP << 15;
    }
    let leads_away = match opcode {
        0x63 => !matches!(funct3, 2 | 3),
        0x67 => funct3 == 0,
        // Whether a reservation outlives a trap is up to the machine: none is made.
        0x2f => word >> 27 == 2,
        // CSRs are another class.
        0x73 if funct3 == 0 => matches!(word, SRET | MRET | WFI),
        0x73 => funct3 != 4,
        _ => false,
    };
    if leads_away {
        return put_word(block);
    }
    block.asm.word(word);
}

fn put_half(block: &mut Block<'_>) {
    let half = block.random.next_u64() as u16;
    let small_target = (block.small_target() as u16) << 2;
    let target = (block.target() as u16) << 7;
    let half = match (half & 3, half >> 13) {
        // Everything is relative to `s0`, whose number is 0.
        (0, 0) => half & !0x1c | small_target,
        (0, _) => half & !0x39c | small_target,
        (1, 4) => half & !0x380 | small_target << 5,
        (1, 5..) => return put_half(block),
        (1, _) => half & !0xf80 | target,
        (2, 4) if half >> 2 & 31 == 0 => half & !0xf80,
        (2, 0..=4) => half & !0xf80 | target,
        (2, _) => half,
        _ => return put_half(block),
    };
    block.asm.half(half);
}
