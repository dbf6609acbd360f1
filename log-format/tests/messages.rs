//! Every message and record comes back from its bytes as it was, and damage is noticed.

mod common;

use std::collections::HashSet;

use bytes::Bytes;
use log_format::*;

#[test]
fn every_message_comes_back_as_it_was() {
    for (name, message) in common::messages() {
        let bytes = message.encode().unwrap();
        assert_eq!(Message::decode(&bytes).unwrap(), message, "{name}");
    }
}

#[test]
fn every_record_of_a_segment_comes_back_as_it_was() {
    let header = common::segment_header();
    let bytes = header.encode().unwrap();
    assert_eq!(SegmentRecord::decode(&bytes).unwrap(), SegmentRecord::Header(header));
    let end = common::segment_end();
    let bytes = end.encode().unwrap();
    assert_eq!(SegmentRecord::decode(&bytes).unwrap(), SegmentRecord::End(end));
    let batch = common::full_batch().seal(common::chain()).unwrap();
    assert_eq!(SegmentRecord::decode(batch.bytes()).unwrap(), SegmentRecord::Batch(batch));
}

#[test]
fn the_samples_cover_every_kind() {
    let kinds: HashSet<FrameKind> =
        common::frames().iter().map(|(_, bytes)| FrameHeader::decode(bytes).unwrap().kind).collect();
    assert_eq!(kinds, HashSet::from(FrameKind::ALL));
}

#[test]
fn every_flipped_bit_is_noticed() {
    for (name, bytes) in common::frames() {
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let error = Frame::decode(&Bytes::from(damaged)).unwrap_err();
            let expected = if bit / 8 < HEADER_BYTES {
                matches!(error, FrameError::HeaderChecksum { .. })
            } else {
                matches!(error, FrameError::BodyChecksum { .. })
            };
            assert!(expected, "{name}, bit {bit}: {error}");
        }
    }
}

#[test]
fn every_cut_is_torn_and_nothing_else() {
    for (name, bytes) in common::frames() {
        for cut in 0..bytes.len() {
            let error = Frame::decode(&bytes.slice(..cut)).unwrap_err();
            assert!(error.is_torn(), "{name}, cut at {cut}: {error}");
        }
    }
}

#[test]
fn small_batches_stay_small() {
    let mark = common::mark_batch().seal(common::chain()).unwrap();
    assert!(mark.bytes().len() <= 78, "{} bytes", mark.bytes().len());
}
