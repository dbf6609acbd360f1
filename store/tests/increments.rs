//! A log of batches and increments, torn and failing at every place.

// Helpers of tests unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use bytes::Bytes;
use common::faulty::{Fault, FaultyDisk, Plan};
use common::*;
use log_format::*;
use store::*;

/// An increment between two batches of the log.
fn increment(batches: &[SealedBatch], base: usize, to: usize) -> LogEntry {
    let end = &batches[to - 1];
    let head = CheckpointHead {
        identity: header().identity,
        moment: end.end,
        outputs_before: end.outputs_after(),
        ram_bytes: 1 << 20,
        digest: Digest::default(),
        state: vec![7; 40].into(),
    };
    let start = IncrementStart {
        position: end.end_position(),
        chain: end.chain(),
        base: base as u64,
        events_before: 0,
        released_outputs: 0,
        held: Vec::new(),
        head,
    };
    let page = |index| EncodedPage { index, encoding: 0, packed: Bytes::from(vec![index as u8 + 1; 90]) };
    let parts = vec![EncodedPart { pages: vec![page(to as u64)], blocks: Vec::new() }; 2];
    let end = IncrementEnd { parts: 2, digest: Digest([to as u8; 16]) };
    WholeIncrement { start, parts, end }.into()
}

/// What a backup keeps that goes from replay to hybrid, to checkpoint, and back.
fn entries() -> Vec<LogEntry> {
    let all = batches(&header(), 16);
    let batch = |number: usize| LogEntry::from(all[number - 1].clone());
    vec![
        batch(1),
        batch(2),
        batch(3),
        increment(&all, 1, 2),
        batch(4),
        increment(&all, 2, 9),
        increment(&all, 9, 10),
        batch(11),
        batch(12),
        increment(&all, 10, 12),
        increment(&all, 12, 12 + 2),
        batch(15),
        batch(16),
    ]
}

fn read(path: &Path) -> (Vec<LogEntry>, Option<StoreError>) {
    let mut reader = match LogReader::open(path) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut found = Vec::new();
    loop {
        match reader.next_entry() {
            Some(Ok(entry)) => found.push(entry),
            Some(Err(error)) => return (found, Some(error)),
            None => return (found, None),
        }
    }
}

fn write(path: &Path, entries: &[LogEntry]) -> LogWriter {
    let mut writer = LogWriter::create(path, header(), options()).unwrap();
    entries.iter().for_each(|entry| writer.append_entry(entry).unwrap());
    writer
}

/// The log goes on to the whole of what was to be written.
fn goes_on(path: &Path, at_least: usize, what: &str) {
    let all = entries();
    let (found, error) = read(path);
    assert!(found.len() >= at_least, "{what}: {} of {at_least}", found.len());
    assert_eq!(found, all[..found.len()], "{what}");
    let mut writer = match error {
        Some(StoreError::NoLog { .. }) => LogWriter::create(path, header(), options()).unwrap(),
        None | Some(StoreError::TornTail { .. }) => LogWriter::resume(path, options()).unwrap().0,
        Some(error) => panic!("{what}: {error}"),
    };
    all[found.len()..].iter().for_each(|entry| writer.append_entry(entry).unwrap());
    writer.finish().unwrap();
    let (found, error) = read(path);
    assert!(error.is_none(), "{what}: {error:?}");
    assert_eq!(found, all, "{what}");
}

#[test]
fn batches_and_increments_are_read_as_they_were_written() {
    let directory = tempdir().unwrap();
    write(directory.path(), &entries()).finish().unwrap();
    assert_eq!(read(directory.path()).0, entries());
    let report = verify(directory.path()).unwrap();
    assert!(report.end.is_whole(), "{:?}", report.end);
    assert_eq!((report.batches, report.increments, report.last.sequence), (8, 5, 16));
    let (writer, resumed) = LogWriter::resume(directory.path(), options()).unwrap();
    assert_eq!(resumed.increments, [(1, 2), (2, 9), (9, 10), (10, 12), (12, 14)]);
    assert_eq!(writer.end_position().sequence, 16);
}

#[test]
fn who_reads_batches_is_told_where_there_are_none() {
    let directory = tempdir().unwrap();
    write(directory.path(), &entries()).finish().unwrap();
    let (found, error) = read_log(directory.path());
    assert_eq!(found.last().map(|batch| batch.sequence), Some(4));
    assert!(matches!(error, Err(StoreError::NoBatches { from: 4, to: 9, .. })), "{error:?}");
    let mut later = LogReader::open_after(directory.path(), 14).unwrap();
    assert_eq!(later.next().unwrap().unwrap().sequence, 15);
}

#[test]
fn an_increment_is_there_whole_or_not_at_all_wherever_it_is_torn() {
    let all = entries();
    for count in [6, 7, 10] {
        let parent = tempdir().unwrap();
        let whole = parent.path().join("whole");
        drop(write(&whole, &all[..count]));
        let last = segments(&whole).pop().unwrap();
        let bytes = fs::read(&last).unwrap();
        for cut in 1..all[count - 1].size_bytes() as usize {
            let cut_at = bytes.len().saturating_sub(cut);
            fs::write(&last, &bytes[..cut_at]).unwrap();
            let (found, error) = read(&whole);
            if found.len() < count - 1 {
                break;
            }
            assert_eq!(found, all[..count - 1], "cut {cut}");
            assert!(cut_at == 0 || error.is_none_or(|error| error.is_torn_tail()), "cut {cut}");
        }
        fs::write(&last, &bytes[..bytes.len() - 5]).unwrap();
        goes_on(&whole, count - 1, "torn");
    }
}

#[test]
fn an_increment_that_does_not_follow_is_refused() {
    let directory = tempdir().unwrap();
    let all = batches(&header(), 16);
    let mut writer = write(directory.path(), &entries()[..3]);
    let error = writer.append_entry(&increment(&all, 4, 6)).unwrap_err();
    assert!(matches!(error, StoreError::NotNext(_)), "{error}");
    writer.append_entry(&increment(&all, 3, 6)).unwrap();
    let error = writer.append_entry(&LogEntry::from(all[3].clone())).unwrap_err();
    assert!(matches!(error, StoreError::NotNext(_)), "{error}");
    writer.append_entry(&LogEntry::from(all[6].clone())).unwrap();
}

#[test]
fn a_log_with_increments_goes_on_after_a_failure_at_every_step() {
    for (fault, sync_every) in
        [(Fault::Killed, 3), (Fault::PowerLost, 1), (Fault::PowerLost, 4), (Fault::Full, 2)]
    {
        for step in 0.. {
            let mut struck = false;
            for (quarters, seed) in (0..=4).flat_map(|quarters| (0..4).map(move |seed| (quarters, seed))) {
                let directory = tempdir().unwrap();
                let plan = Plan { step, fault, quarters, seed };
                let (disk, witness) = FaultyDisk::new(directory.path(), plan);
                let synced = write_on(disk, sync_every);
                if !witness.struck() {
                    continue;
                }
                struck = true;
                if fault == Fault::PowerLost {
                    witness.lose_power(directory.path());
                }
                goes_on(directory.path(), synced, &format!("{plan:?} {sync_every}"));
            }
            if !struck {
                assert!(step > 15, "only {step} steps");
                break;
            }
        }
    }
}

/// Writes until the first error. How many entries are synced.
fn write_on(disk: FaultyDisk, sync_every: usize) -> usize {
    let Ok(mut writer) = LogWriter::create_on(disk, header(), options()) else { return 0 };
    let mut synced = 0;
    for (number, entry) in (1..).zip(entries()) {
        if writer.append_entry(&entry).is_err() {
            return synced;
        }
        if number % sync_every == 0 {
            if writer.sync().is_err() {
                return synced;
            }
            synced = number;
        }
    }
    let all = entries().len();
    if writer.finish().is_ok() { all } else { synced }
}
