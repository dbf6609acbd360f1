//! Random and mutated bytes through every decoder: an error value or a value, never a panic,
//! and a value that is written again reads back the same. The fuzz targets under `fuzz/` go
//! further; this part runs everywhere, from fixed seeds.

// Helpers of tests may unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::decoders;
use common::reseal::reseal;
use log_format::*;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

#[test]
fn random_bytes() {
    let mut random = Random(1);
    for _ in 0..5_000 {
        let len = random.below(300);
        let input = random.bytes(len);
        assert!(!decoders::all(&input.into()));
    }
}

#[test]
fn random_bodies_behind_good_checksums() {
    let mut random = Random(2);
    for _ in 0..5_000 {
        let len = HEADER_BYTES + random.below(100);
        let mut input = random.bytes(len);
        input[2] = FORMAT_VERSION;
        input[3] = FrameKind::ALL[random.below(FrameKind::ALL.len())] as u8;
        input[7] = u8::from(random.below(8) == 0);
        reseal(&mut input);
        assert!(decoders::all(&input.into()), "its header is good");
    }
}

#[test]
fn random_packed_pages() {
    let mut random = Random(4);
    for _ in 0..20_000 {
        let len = 1 + random.below(40);
        let mut input = random.bytes(len);
        input[0] %= 6;
        decoders::packed_pages(&input.into());
    }
}

#[test]
fn mutated_frames() {
    let frames = common::frames();
    let mut random = Random(3);
    let mut read = 0;
    for _ in 0..20_000 {
        let (_, frame) = &frames[random.below(frames.len())];
        let mut input = frame.to_vec();
        for _ in 0..=random.below(4) {
            mutate(&mut input, &mut random);
        }
        if random.below(4) > 0 {
            reseal(&mut input);
        }
        if Message::decode(&Bytes::copy_from_slice(&input)).is_ok() {
            read += 1;
        }
        decoders::all(&input.into());
    }
    assert!(read > 1_000, "only {read} mutants got through to the bodies");
}

fn mutate(input: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(input.len());
    match random.below(6) {
        0 => input[at..].iter_mut().take(1).for_each(|byte| *byte ^= 1 << random.below(8)),
        1 => input[at..].iter_mut().take(8).for_each(|byte| *byte = random.next() as u8),
        2 => input.truncate(at),
        3 => input.insert(at, random.next() as u8),
        // The body is where the shapes are.
        4 if input.len() > HEADER_BYTES => {
            let at = HEADER_BYTES + random.below(input.len() - HEADER_BYTES);
            input[at] = random.next() as u8;
        }
        _ => {
            let extra = random.below(20);
            input.extend(random.bytes(extra));
        }
    }
}
