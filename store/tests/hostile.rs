//! Mutated segments through the reader: whole records or an error value, never a panic. The
//! fuzz target `segment` goes further; this part runs everywhere, from a fixed seed.

mod common;

use common::*;

#[test]
fn mutated_segments() {
    let directory = tempdir().unwrap();
    write_log(directory.path(), 9);
    let segments: Vec<Vec<u8>> =
        segments(directory.path()).iter().map(|path| std::fs::read(path).unwrap()).collect();
    let whole: u64 = segments.iter().map(|bytes| records::segment(bytes)).sum();
    assert_eq!(whole, 9 + 2 * segments.len() as u64);

    let mut seed = 1u64;
    let mut random = |limit: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % limit
    };
    let (mut records, runs) = (0, 10_000);
    for _ in 0..runs {
        let mut bytes = segments[random(segments.len())].clone();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] ^= 1 << random(8),
                1 => bytes[at] = random(256) as u8,
                2 => bytes.truncate(at + 1),
                _ => bytes.insert(at, random(256) as u8),
            }
            // A header with a good checksum lets a strange length, kind or place through.
            let offsets = whole_offsets(&bytes);
            let offset = offsets[random(offsets.len())];
            if random(2) == 0 && bytes.len() >= offset + 64 {
                reseal_header(&mut bytes, offset);
            }
        }
        records += records::segment(&bytes);
    }
    assert!(records > runs / 2, "only {records} records in {runs} mutants");
}

/// Where the records begin, as far as they are whole.
fn whole_offsets(bytes: &[u8]) -> Vec<usize> {
    let mut offsets = vec![0];
    let mut at = 0;
    while let Some(header) = bytes.get(at..).and_then(|rest| log_format::FrameHeader::decode(rest).ok()) {
        at += header.frame_bytes();
        if at < bytes.len() {
            offsets.push(at);
        }
    }
    offsets
}
