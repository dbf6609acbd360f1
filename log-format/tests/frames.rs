//! What a frame's reader says about bytes that are not what it expects.

// Helpers of tests may unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::reseal::reseal;
use log_format::*;

/// A sample frame with one byte of its header changed and its checksums made good again.
fn with_header_byte(offset: usize, value: u8) -> Bytes {
    let mut bytes = common::mark_batch().seal(common::chain()).unwrap().bytes().to_vec();
    bytes[offset] = value;
    reseal(&mut bytes);
    bytes.into()
}

/// A frame of this kind with this body.
fn with_body(kind: FrameKind, body: &[u8]) -> Bytes {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes[2] = FORMAT_VERSION;
    bytes[3] = kind as u8;
    bytes.extend_from_slice(body);
    reseal(&mut bytes);
    bytes.into()
}

#[test]
fn a_newer_version_is_told_from_damage() {
    let error = Frame::decode(&with_header_byte(2, FORMAT_VERSION + 1)).unwrap_err();
    assert_eq!(error, FrameError::FutureVersion { found: FORMAT_VERSION + 1, newest: FORMAT_VERSION });
    assert!(error.to_string().contains("use a newer program"));
}

#[test]
fn version_0_a_strange_kind_and_a_strange_flag_are_refused() {
    assert_eq!(
        Frame::decode(&with_header_byte(2, 0)).unwrap_err(),
        FrameError::PastVersion { found: 0, oldest: OLDEST_FORMAT_VERSION }
    );
    assert_eq!(
        Frame::decode(&with_header_byte(3, 200)).unwrap_err(),
        FrameError::UnknownKind { found: 200, version: FORMAT_VERSION }
    );
    assert_eq!(
        Frame::decode(&with_header_byte(7, 0x82)).unwrap_err(),
        FrameError::UnknownFlags { found: 0x82, version: FORMAT_VERSION }
    );
}

#[test]
fn foreign_bytes_are_foreign_from_the_first_on() {
    for foreign in [&b"\x7fELF"[..], b"G", b"GET / HTTP/1.1\r\n\r\n", &[0; 200]] {
        let error = Frame::decode(&Bytes::copy_from_slice(foreign)).unwrap_err();
        assert!(matches!(error, FrameError::Foreign { .. }), "{error}");
    }
}

#[test]
fn a_body_that_says_it_is_compressed_and_is_not_is_refused() {
    let error = SealedBatch::decode(&with_header_byte(7, 1)).unwrap_err();
    assert!(matches!(error, FrameError::Compression { .. }), "{error}");
}

#[test]
fn a_compressed_body_that_would_grow_past_the_limit_is_refused_before_it_does() {
    let bomb = zstd::bulk::compress(&vec![0; MAX_BODY_BYTES + 1], 1).unwrap();
    assert!(bomb.len() < 4096);
    let mut bytes = with_body(FrameKind::CheckpointPart, &bomb).to_vec();
    bytes[7] = 1;
    reseal(&mut bytes);
    let error = Message::decode(&bytes.into()).unwrap_err();
    assert_eq!(
        error,
        FrameError::TooLong {
            kind: FrameKind::CheckpointPart,
            found: MAX_BODY_BYTES + 1,
            limit: MAX_BODY_BYTES
        }
    );
}

#[test]
fn a_body_of_another_shape_is_refused() {
    for body in [&[][..], &[0xc0], &[0x90], &[0xff; 40], &[0xdd, 0xff, 0xff, 0xff, 0xff]] {
        let error = Message::decode(&with_body(FrameKind::Batch, body)).unwrap_err();
        assert!(matches!(error, FrameError::Malformed { .. }), "{error}");
    }
}

#[test]
fn bytes_after_the_end_of_a_body_are_refused() {
    let error = Message::decode(&with_body(FrameKind::Ready, &[0x90, 0])).unwrap_err();
    assert!(error.to_string().contains("1 bytes follow its end"), "{error}");
}

#[test]
fn an_event_outside_of_its_batch_is_refused() {
    // Its one event lies 5 instructions before the end, which is at 0.
    let body = [0x95, 0x91, 0x94, 3, 5, 0, 0, 0x90, 0, 0xc4, 0, 0];
    let error = Message::decode(&with_body(FrameKind::Batch, &body)).unwrap_err();
    assert!(error.to_string().contains("outside of the batch"), "{error}");
}

#[test]
fn an_unknown_event_is_refused() {
    let body = [0x95, 0x91, 0x94, 99, 0, 0, 0, 0x90, 0, 0xc4, 0, 0];
    let error = Message::decode(&with_body(FrameKind::Batch, &body)).unwrap_err();
    assert!(error.to_string().contains("found event kind 99"), "{error}");
}

#[test]
fn few_messages_are_records_and_a_record_is_no_message() {
    for (name, message) in common::messages() {
        let record = SegmentRecord::decode(&message.encode().unwrap());
        let is_kept = matches!(
            message.kind(),
            FrameKind::Batch | FrameKind::IncrementHead | FrameKind::IncrementPart | FrameKind::IncrementEnd
        );
        assert_eq!(record.is_ok(), is_kept, "{name}");
    }
    let header = common::segment_header().encode().unwrap();
    let error = Message::decode(&header).unwrap_err();
    assert!(matches!(error, FrameError::UnexpectedKind { .. }), "{error}");
}

#[test]
fn a_stream_with_too_long_a_body_is_refused_at_its_header() {
    let mut decoder = FrameDecoder::new(10);
    let frame = common::compressible_batch().seal(common::chain()).unwrap();
    decoder.push(&frame.bytes()[..HEADER_BYTES]);
    let error = decoder.poll().unwrap_err();
    assert!(matches!(error, FrameError::TooLong { limit: 10, .. }), "{error}");
}

#[test]
fn a_stream_stays_at_its_first_error() {
    let good = common::mark_batch().seal(common::chain()).unwrap();
    let mut decoder = MessageDecoder::default();
    decoder.push(good.bytes());
    decoder.push(b"GET / HTTP/1.1\r\n");
    assert!(decoder.poll().unwrap().is_some());
    let error = decoder.poll().unwrap_err();
    decoder.push(good.bytes());
    assert_eq!(decoder.poll().unwrap_err(), error);
}

#[test]
fn a_batch_too_long_for_a_frame_is_refused() {
    let mut batch = common::mark_batch();
    batch.output_hashes = vec![7; MAX_BODY_BYTES / 4 + 1];
    let error = batch.seal(common::chain()).unwrap_err();
    assert!(matches!(error, EncodeError::TooLong { .. }), "{error}");
}

#[test]
fn the_genesis_hash_depends_on_the_machine() {
    let identity = common::identity();
    let mut other = identity.clone();
    other.disks[1].1[31] ^= 1;
    assert_ne!(ChainHash::genesis(&identity), ChainHash::genesis(&other));
    assert_eq!(ChainHash::genesis(&identity), ChainHash::genesis(&identity.clone()));
}
