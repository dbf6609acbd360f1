//! Golden files: what the format's version 1 looks like, committed as bytes.
//!
//! A change that breaks one of these tests breaks logs in use. It needs a new format
//! version (docs/log-format.md section 7), whose files are then added beside these with
//! `cargo test -p log-format --test golden -- --ignored`.

mod common;

use std::path::PathBuf;

use bytes::Bytes;
use log_format::*;

fn path(name: &str) -> PathBuf {
    let file = format!("v{FORMAT_VERSION}-{name}.bin");
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

fn golden(name: &str) -> Bytes {
    let path = path(name);
    match std::fs::read(&path) {
        Ok(bytes) => bytes.into(),
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

#[test]
fn todays_writer_reproduces_the_golden_files() {
    for (name, written) in common::frames() {
        let expected = golden(name);
        // Another zstd may pack in another way: then what is packed must be the same.
        let written_frame = Frame::decode(&written).unwrap();
        let expected_frame = Frame::decode(&expected).unwrap();
        assert_eq!(written_frame.body().unwrap(), expected_frame.body().unwrap(), "{name}");
        assert_eq!(written[7], expected[7], "{name}: flags");
        if written[7] == 0 {
            assert_eq!(written, expected, "{name}");
        } else {
            assert_eq!(written[..4], expected[..4], "{name}: version and kind");
            assert_eq!(written[8..56], expected[8..56], "{name}: place");
        }
    }
}

#[test]
fn todays_reader_reads_the_golden_files() {
    for (name, message) in common::messages() {
        assert_eq!(Message::decode(&golden(name)).unwrap(), message, "{name}");
    }
    assert_eq!(
        SegmentRecord::decode(&golden("segment-header")).unwrap(),
        SegmentRecord::Header(common::segment_header())
    );
    assert_eq!(
        SegmentRecord::decode(&golden("segment-end")).unwrap(),
        SegmentRecord::End(common::segment_end())
    );
}

#[test]
fn chain_hashes_stay_what_they_were() {
    let sealed = SealedBatch::decode(&golden("batch")).unwrap();
    assert_eq!(sealed.chain().to_string(), "f92401a7a341a938cd1590354fc8c942");
    let sealed = SealedBatch::decode(&golden("batch-compressed")).unwrap();
    assert_eq!(sealed.chain().to_string(), "8d5ffde9df9df974a625143ad5f85e57");
    let genesis = ChainHash::genesis(&common::identity());
    assert_eq!(genesis.to_string(), "c5be3a3d0d37511ff5eb15e292001f6c");
}

#[test]
#[ignore = "writes the golden files of a new format version; refuses to change old ones"]
fn write_missing_golden_files() {
    for (name, bytes) in common::frames() {
        let path = path(name);
        if !path.exists() {
            std::fs::write(&path, bytes).unwrap();
        }
    }
}
