//! A log that was damaged in every way there is: all before the damage is read, and the error
//! says which damage it is.

// Helpers of tests unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::*;
use log_format::*;
use store::*;

#[test]
fn a_whole_log_is_read_as_it_was_written() {
    let directory = tempdir().unwrap();
    let written = write_log(directory.path(), 10);
    assert!(segments(directory.path()).len() > 2);
    let (read, end) = read_log(directory.path());
    assert_eq!(read, written);
    assert_eq!(end.unwrap(), Ending::Finished);
}

#[test]
fn a_log_without_end_is_unfinished() {
    let directory = tempdir().unwrap();
    let written = write_unfinished(directory.path(), 10);
    let (read, end) = read_log(directory.path());
    assert_eq!(read, written);
    assert_eq!(end.unwrap(), Ending::Unfinished);
}

#[test]
fn every_cut_of_the_last_segment_is_a_torn_tail_or_an_unfinished_log() {
    let directory = tempdir().unwrap();
    let written = write_log(directory.path(), 8);
    let last = segments(directory.path()).pop().unwrap();
    let whole = fs::read(&last).unwrap();
    let offsets = record_offsets(&whole);
    // The records are a header, the last batches, and the end.
    let before = written.len() - (offsets.len() - 3);
    for cut in (0..whole.len()).rev() {
        fs::write(&last, &whole[..cut]).unwrap();
        let (read, end) = read_log(directory.path());
        let records = offsets.iter().filter(|offset| **offset <= cut).count() - 1;
        let expected = before + records.saturating_sub(1);
        assert_eq!(read, written[..expected], "cut at {cut}");
        if cut > 0 && offsets.contains(&cut) {
            assert_eq!(end.unwrap(), Ending::Unfinished, "cut at {cut}");
            continue;
        }
        let StoreError::TornTail { path, offset, found, expected } = end.unwrap_err() else {
            panic!("cut at {cut} is no torn tail");
        };
        assert_eq!(path, last);
        assert_eq!(offset, offsets[records] as u64);
        assert_eq!(found, cut as u64 - offset);
        assert!(expected > found);
    }
}

#[test]
fn a_cut_of_an_earlier_segment_is_damage_unless_it_took_only_its_end() {
    let directory = tempdir().unwrap();
    let written = write_log(directory.path(), 8);
    let first = segments(directory.path()).remove(0);
    let whole = fs::read(&first).unwrap();
    let offsets = record_offsets(&whole);
    let end_offset = offsets[offsets.len() - 2];
    for cut in 0..whole.len() {
        fs::write(&first, &whole[..cut]).unwrap();
        let (read, end) = read_log(directory.path());
        if cut >= end_offset {
            assert_eq!(read, written, "cut at {cut}");
            assert_eq!(end.unwrap(), Ending::Finished);
            continue;
        }
        let records = offsets.iter().filter(|offset| **offset <= cut).count() - 1;
        assert_eq!(read, written[..records.saturating_sub(1)], "cut at {cut}");
        let error = end.unwrap_err();
        let is_named = match &error {
            StoreError::Damaged { offset, cause, .. } => {
                cause.is_torn() && *offset == offsets[records] as u64
            }
            StoreError::MissingSegment { found, .. } => found.is_some() && offsets.contains(&cut),
            _ => false,
        };
        assert!(is_named, "cut at {cut}: {error}");
    }
}

#[test]
fn every_flipped_bit_is_found_where_it_is() {
    let directory = tempdir().unwrap();
    let written = write_log(directory.path(), 5);
    let mut before = 0;
    for path in segments(directory.path()) {
        let whole = fs::read(&path).unwrap();
        let offsets = record_offsets(&whole);
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &damaged).unwrap();
            let (read, end) = read_log(directory.path());
            let record = offsets.iter().filter(|offset| **offset <= bit / 8).count() - 1;
            let expected = before + record.saturating_sub(1);
            assert_eq!(read, written[..expected], "{path:?}, bit {bit}");
            let StoreError::Damaged { path: found_path, offset, cause } = end.unwrap_err() else {
                panic!("{path:?}, bit {bit}: not found as damage");
            };
            assert_eq!(found_path, path);
            assert_eq!(offset, offsets[record] as u64);
            let is_header = bit / 8 < offsets[record] + HEADER_BYTES;
            assert_eq!(
                matches!(cause, FrameError::HeaderChecksum { .. }),
                is_header,
                "{path:?}, bit {bit}: {cause}"
            );
        }
        fs::write(&path, &whole).unwrap();
        before += offsets.len() - 3;
    }
}

#[test]
fn a_future_version_is_told_from_damage() {
    let directory = tempdir().unwrap();
    let written = write_log(directory.path(), 2);
    let path = segments(directory.path()).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let second_batch = record_offsets(&bytes)[2];
    bytes[second_batch + 2] = FORMAT_VERSION + 1;
    reseal_header(&mut bytes, second_batch);
    fs::write(&path, bytes).unwrap();
    let (read, end) = read_log(directory.path());
    assert_eq!(read, written[..1]);
    let error = end.unwrap_err();
    let StoreError::FutureVersion { offset, found, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(offset, second_batch as u64);
    assert_eq!(found, FORMAT_VERSION + 1);
}

#[test]
fn a_foreign_file_is_named() {
    for (name, content) in [
        ("00000000000000000001.log", &b"2026-11-20 boot ok\n"[..]),
        ("00000000000000000001.log", &[0; 4096]),
        ("messages.log", b"2026-11-20 boot ok\n"),
    ] {
        let directory = tempdir().unwrap();
        fs::write(directory.path().join(name), content).unwrap();
        let error = LogReader::open(directory.path()).unwrap_err();
        let StoreError::ForeignFile { path, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*path, directory.path().join(name));
    }
}

#[test]
fn a_foreign_file_beside_a_log_is_named_after_the_log_was_read() {
    let directory = tempdir().unwrap();
    let written = write_log(directory.path(), 5);
    fs::write(directory.path().join("messages.log"), "boot ok\n").unwrap();
    fs::write(directory.path().join("notes.txt"), "left alone").unwrap();
    let (read, end) = read_log(directory.path());
    assert_eq!(read, written);
    let error = end.unwrap_err();
    assert!(matches!(error, StoreError::ForeignFile { .. }), "{error}");
    assert!(error.to_string().contains("messages.log"));
}

#[test]
fn a_segment_under_another_name_is_foreign() {
    let directory = tempdir().unwrap();
    write_log(directory.path(), 2);
    let path = segments(directory.path()).remove(0);
    fs::rename(path, directory.path().join(segment_name(7))).unwrap();
    let error = LogReader::open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::ForeignFile { .. }), "{error}");
}

#[test]
fn a_directory_without_a_log_is_told() {
    let directory = tempdir().unwrap();
    let error = LogReader::open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::NoLog { .. }), "{error}");
    let error = LogReader::open(&directory.path().join("nowhere")).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
}

#[test]
fn every_missing_segment_is_named() {
    let directory = tempdir().unwrap();
    let written = write_log(directory.path(), 12);
    let paths = segments(directory.path());
    assert!(paths.len() >= 4);
    for path in &paths {
        let name = path.file_name().unwrap().to_str().unwrap();
        let bytes = fs::read(path).unwrap();
        fs::remove_file(path).unwrap();
        let (read, end) = read_log(directory.path());
        let before = first_sequence_of(name).unwrap() - 1;
        assert_eq!(read, written[..before as usize], "{name}");
        let error = end.unwrap_err();
        let StoreError::MissingSegment { expected, found, .. } = error else {
            panic!("{name}: {error}");
        };
        assert_eq!(expected, name);
        assert_eq!(found.is_none(), Some(path) == paths.last());
        fs::write(path, bytes).unwrap();
    }
}

#[test]
fn a_log_may_start_at_a_checkpoint() {
    let directory = tempdir().unwrap();
    let from_boot = batches(&header(), 10);
    let joined = SegmentHeader {
        position: from_boot[3].end_position(),
        chain: from_boot[3].chain(),
        log_start: 4,
        ..header()
    };
    let mut writer = LogWriter::create(directory.path(), joined, options()).unwrap();
    for batch in &from_boot[4..] {
        writer.append(batch).unwrap();
    }
    writer.finish().unwrap();
    let (read, end) = read_log(directory.path());
    assert_eq!(read, from_boot[4..]);
    assert_eq!(end.unwrap(), Ending::Finished);
}

#[test]
fn a_segment_of_another_log_is_named() {
    let directory = tempdir().unwrap();
    let other = tempdir().unwrap();
    let written = write_log(directory.path(), 6);
    let other_header = SegmentHeader { vm: "other".into(), ..header() };
    let mut writer = LogWriter::create(other.path(), other_header, options()).unwrap();
    for batch in &written {
        writer.append(batch).unwrap();
    }
    writer.finish().unwrap();
    let second = segments(directory.path()).remove(1);
    fs::copy(other.path().join(second.file_name().unwrap()), &second).unwrap();
    let (_, end) = read_log(directory.path());
    let error = end.unwrap_err();
    assert!(matches!(error, StoreError::OtherLog { .. }), "{error}");
}

#[test]
fn a_batch_taken_out_doubled_or_moved_breaks_the_chain() {
    let directory = tempdir().unwrap();
    let written = write_log(directory.path(), 3);
    let path = segments(directory.path()).remove(0);
    let whole = fs::read(&path).unwrap();
    let offsets = record_offsets(&whole);
    let record = |n: usize| &whole[offsets[n]..offsets[n + 1]];
    for (order, good) in [(&[0, 2, 3][..], 0), (&[0, 1, 1, 2, 3], 1), (&[0, 2, 1, 3], 0), (&[0, 1, 3], 1)] {
        let changed: Vec<u8> = order.iter().flat_map(|n| record(*n)).copied().collect();
        fs::write(&path, changed).unwrap();
        let (read, end) = read_log(directory.path());
        assert_eq!(read, written[..good], "{order:?}");
        let error = end.unwrap_err();
        assert!(matches!(error, StoreError::BrokenChain { .. }), "{error}");
    }
}

#[test]
fn a_batch_of_another_history_breaks_the_chain() {
    let directory = tempdir().unwrap();
    let header = header();
    let good = batches(&header, 2);
    let mut other = good[1].batch().clone();
    other.released_outputs += 1;
    let other_before = good[0].batch().clone().seal(ChainHash([9; 16])).unwrap();
    let other = other.seal(other_before.chain()).unwrap();
    let bytes = [header.encode().unwrap(), good[0].bytes().clone(), other.bytes().clone()];
    fs::write(directory.path().join(segment_name(1)), bytes.concat()).unwrap();
    let (read, end) = read_log(directory.path());
    assert_eq!(read, good[..1]);
    let StoreError::BrokenChain { cause, .. } = end.unwrap_err() else {
        panic!("not found");
    };
    assert_eq!(cause.what, "chain hash");
}

#[test]
fn bytes_after_the_end_are_told() {
    let directory = tempdir().unwrap();
    let written = write_log(directory.path(), 2);
    let path = segments(directory.path()).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes.push(0);
    fs::write(&path, bytes).unwrap();
    let (read, end) = read_log(directory.path());
    assert_eq!(read, written);
    let error = end.unwrap_err();
    assert!(matches!(error, StoreError::AfterEnd { .. }), "{error}");
}

#[test]
fn a_tail_of_zeros_is_damage() {
    let directory = tempdir().unwrap();
    let written = write_unfinished(directory.path(), 2);
    let path = segments(directory.path()).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes.resize(bytes.len() + 4096, 0);
    fs::write(&path, bytes).unwrap();
    let (read, end) = read_log(directory.path());
    assert_eq!(read, written);
    let error = end.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}

#[test]
fn reading_may_begin_anywhere() {
    let directory = tempdir().unwrap();
    let written = write_log(directory.path(), 12);
    for sequence in 0..=12 {
        let mut reader = LogReader::open_after(directory.path(), sequence).unwrap();
        assert_eq!(reader.end_position().sequence, sequence);
        let read: Vec<SealedBatch> = reader.by_ref().map(Result::unwrap).collect();
        assert_eq!(read, written[sequence as usize..]);
        assert_eq!(reader.ending(), Some(Ending::Finished));
    }
}

#[test]
fn a_report_says_what_is_in_a_log_and_why_it_ends() {
    let directory = tempdir().unwrap();
    let written = write_log(directory.path(), 9);
    let report = verify(directory.path()).unwrap();
    assert!(report.end.is_whole());
    assert_eq!(report.batches, 9);
    assert_eq!(report.events.total(), 9);
    assert_eq!(report.events.network_in_bytes, 6 * 20 + 3 * 21);
    assert_eq!(report.outputs, 9);
    assert_eq!(report.last, written[8].end_position());
    assert_eq!(report.segments.len(), segments(directory.path()).len());
    let bytes: usize = written.iter().map(|batch| batch.bytes().len()).sum();
    assert_eq!(report.batch_bytes, bytes as u64);

    let second = segments(directory.path()).remove(1);
    let mut bytes = fs::read(&second).unwrap();
    let last = bytes.len() - 70;
    bytes[last] ^= 1;
    fs::write(&second, bytes).unwrap();
    let report = verify(directory.path()).unwrap();
    let LogEnd::Damaged(StoreError::Damaged { path, .. }) = &report.end else {
        panic!("{:?}", report.end);
    };
    assert_eq!(*path, second);
    assert!(report.batches < 9 && report.batches > 0);
    assert_eq!(report.last.sequence, report.batches);
}
