//! A golden recording: a directory of segments as format version 1 has them, committed as
//! bytes. A change that breaks one of these tests breaks recordings in use; see
//! `log-format/tests/golden.rs` for what it takes instead.

mod common;

use std::fs;
use std::path::PathBuf;

use common::*;
use store::*;

fn golden() -> PathBuf {
    let recording = format!("tests/golden/v{}-recording", log_format::FORMAT_VERSION);
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(recording)
}

#[test]
fn todays_writer_reproduces_the_golden_recording() {
    let directory = tempdir().unwrap();
    write_log(directory.path(), 8);
    let written = segments(directory.path());
    let expected = segments(&golden());
    assert_eq!(written.len(), expected.len());
    for (written, expected) in written.iter().zip(&expected) {
        assert_eq!(written.file_name(), expected.file_name());
        assert_eq!(fs::read(written).unwrap(), fs::read(expected).unwrap(), "{}", expected.display());
    }
}

#[test]
fn todays_reader_reads_the_golden_recording() {
    let report = verify(&golden()).unwrap();
    assert!(matches!(report.end, LogEnd::Whole(Ending::Finished)));
    assert_eq!(report.batches, 8);
    assert_eq!(report.header, header());
    let (read, _) = read_log(&golden());
    assert_eq!(read, batches(&header(), 8));
}

#[test]
#[ignore = "writes the golden recording of a new format version; refuses to change an old one"]
fn write_missing_golden_recording() {
    if !golden().join(segment_name(1)).exists() {
        write_log(&golden(), 8);
    }
}
