//! Values that are worth computing with.

use super::layout::POOL_ENTRIES;
use crate::sim::random::Random;

/// Entries of a pool beyond [`POOL_ENTRIES`], so that a reload near the end need not wrap.
const SPARE_ENTRIES: u64 = 64;

/// Fills the pool of the integer registers.
pub fn integers(random: &mut Random) -> Vec<u64> {
    (0..POOL_ENTRIES + SPARE_ENTRIES).map(|_| integer(random)).collect()
}

/// Fills the pool of the float registers.
pub fn floats(random: &mut Random) -> Vec<u64> {
    (0..POOL_ENTRIES + SPARE_ENTRIES).map(|_| float(random)).collect()
}

/// A 64-bit value: often near a boundary.
pub fn integer(random: &mut Random) -> u64 {
    let any = random.next_u64();
    match random.between(0, 9) {
        0 => any & 0xff,
        1 => (1 << (any & 63)) - (any >> 8 & 1),
        2 => (1u64 << (any & 63)).wrapping_neg(),
        3 => *random.pick(&[0, 1, u64::MAX, i64::MAX as u64, i64::MIN as u64, 2]),
        4 => *random.pick(&[0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0xffff_ffff_8000_0000, 1 << 32]),
        5 => any as i32 as u64,
        6 => u64::from(any as u32),
        7 => any << 32,
        _ => any,
    }
}

/// A double, a boxed single, or a single in a wrong box.
pub fn float(random: &mut Random) -> u64 {
    match random.between(0, 9) {
        0..=4 => double(random),
        5..=8 => 0xffff_ffff_0000_0000 | u64::from(single(random)),
        _ => random.next_u64() << 32 | u64::from(single(random)),
    }
}

fn double(random: &mut Random) -> u64 {
    const SPECIAL: [u64; 14] = [
        0,
        0x3ff0_0000_0000_0000,
        0x7ff0_0000_0000_0000,
        0x7ff8_0000_0000_0000,
        0x7ff0_0000_0000_0001,
        0x7fef_ffff_ffff_ffff,
        0x0010_0000_0000_0000,
        0x000f_ffff_ffff_ffff,
        1,
        0x43e0_0000_0000_0000,
        0x43f0_0000_0000_0000,
        0x41e0_0000_0000_0000,
        0x41df_ffff_ffe0_0000,
        0x36a0_0000_0000_0000,
    ];
    let any = random.next_u64();
    let sign = any & 1 << 63;
    let fraction = any & ((1 << 52) - 1);
    match random.between(0, 9) {
        0 | 1 => sign | random.pick(&SPECIAL),
        // Near one another, so that sums cancel.
        2 | 3 => sign | random.between(1020, 1026) << 52 | fraction & !0 << random.between(0, 51),
        // Near the range of singles and of integers.
        4 => sign | random.between(870, 900) << 52 | fraction,
        5 => sign | random.between(1023, 1090) << 52 | fraction,
        6 => sign | fraction >> random.between(0, 51),
        7 => sign | random.between(2030, 2047) << 52 | fraction,
        8 => sign | random.between(0, 60) << 52 | fraction,
        _ => any,
    }
}

fn single(random: &mut Random) -> u32 {
    const SPECIAL: [u32; 10] = [
        0,
        0x3f80_0000,
        0x7f80_0000,
        0x7fc0_0000,
        0x7f80_0001,
        0x7f7f_ffff,
        0x0080_0000,
        0x007f_ffff,
        1,
        0x4f00_0000,
    ];
    let any = random.next_u64() as u32;
    let sign = any & 1 << 31;
    let fraction = any & 0x7f_ffff;
    let exponent = |random: &mut Random, from, to| (random.between(from, to) as u32) << 23;
    match random.between(0, 7) {
        0 | 1 => sign | random.pick(&SPECIAL),
        2 => sign | exponent(random, 124, 130) | fraction & !0 << random.between(0, 22),
        3 => sign | exponent(random, 127, 192) | fraction,
        4 => sign | fraction >> random.between(0, 22),
        5 => sign | exponent(random, 240, 255) | fraction,
        6 => sign | exponent(random, 0, 30) | fraction,
        _ => any,
    }
}
