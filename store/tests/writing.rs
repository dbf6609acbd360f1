//! What a writer does and refuses, on a disk that fails at every single step.

// Helpers of tests unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::faulty::{Fault, FaultyDisk, Plan};
use common::*;
use log_format::*;
use store::*;

#[test]
fn a_log_is_never_written_over() {
    let directory = tempdir().unwrap();
    let written = write_log(directory.path(), 3);
    let error = LogWriter::create(directory.path(), header(), options()).unwrap_err();
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");
    assert_eq!(read_log(directory.path()).0, written);
}

#[test]
fn a_directory_has_one_writer_at_a_time() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("deep/log");
    let writer = LogWriter::create(&path, header(), options()).unwrap();
    let error = LogWriter::resume(&path, options()).unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    drop(writer);
    LogWriter::resume(&path, options()).unwrap();
}

#[test]
fn nothing_is_left_of_a_log_that_could_not_be_begun() {
    let directory = tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let error = LogWriter::create(&file, header(), options()).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    let mut long = header();
    long.boot = vec![0; MAX_BODY_BYTES].into();
    let path = directory.path().join("log");
    let error = LogWriter::create(&path, long, options()).unwrap_err();
    assert!(matches!(error, StoreError::Encode(_)), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_batch_that_does_not_follow_is_refused() {
    let directory = tempdir().unwrap();
    let batches = batches(&header(), 3);
    let mut writer = LogWriter::create(directory.path(), header(), options()).unwrap();
    writer.append(&batches[0]).unwrap();
    let backwards = Batch { end: Moment::BOOT, events: Vec::new(), ..batches[1].batch().clone() };
    let stale = Batch { term: 0, ..batches[1].batch().clone() };
    let gap = Batch { first_output: 7, ..batches[1].batch().clone() };
    let wrong = [
        (batches[0].clone(), "batch"),
        (batches[2].clone(), "batch"),
        (backwards.seal(batches[0].chain()).unwrap(), "moment"),
        (stale.seal(batches[0].chain()).unwrap(), "term"),
        (gap.seal(batches[0].chain()).unwrap(), "first output"),
        (batches[1].batch().clone().seal(ChainHash::NONE).unwrap(), "chain hash"),
    ];
    for (batch, what) in wrong {
        let StoreError::NotNext(cause) = writer.append(&batch).unwrap_err() else {
            panic!("{what}");
        };
        assert_eq!(cause.what, what);
    }
    writer.append(&batches[1]).unwrap();
    writer.append(&batches[2]).unwrap();
    writer.finish().unwrap();
    assert_eq!(read_log(directory.path()).0, batches);
}

#[test]
fn a_finished_log_can_be_continued() {
    let directory = tempdir().unwrap();
    let written = write_log(directory.path(), 4);
    let (mut writer, resumed) = LogWriter::resume(directory.path(), options()).unwrap();
    assert!(resumed.was_finished && resumed.torn.is_none());
    assert_eq!(writer.end_position(), written[3].end_position());
    let batches = batches(&header(), 9);
    for batch in &batches[4..] {
        writer.append(batch).unwrap();
    }
    writer.finish().unwrap();
    let (read, end) = read_log(directory.path());
    assert_eq!(read, batches);
    assert_eq!(end.unwrap(), Ending::Finished);
}

#[test]
fn a_torn_tail_is_cut_off_wherever_it_was_torn() {
    let directory = tempdir().unwrap();
    let all = batches(&header(), 9);
    for cut in [1, 30, 64, 65, 100, 200, 250] {
        let path = directory.path().join(cut.to_string());
        write_unfinished(&path, 8);
        let last = segments(&path).pop().unwrap();
        let whole = fs::read(&last).unwrap();
        fs::write(&last, &whole[..whole.len() - cut]).unwrap();
        let (mut writer, resumed) = LogWriter::resume(&path, options()).unwrap();
        assert!(resumed.torn.is_some() && !resumed.was_finished);
        for batch in &all[writer.end_position().sequence as usize..] {
            writer.append(batch).unwrap();
        }
        drop(writer);
        let (read, end) = read_log(&path);
        assert_eq!(read, all, "cut {cut}");
        assert_eq!(end.unwrap(), Ending::Unfinished);
    }
}

#[test]
fn a_segment_torn_in_its_header_is_removed() {
    let directory = tempdir().unwrap();
    write_unfinished(directory.path(), 8);
    let paths = segments(directory.path());
    fs::write(&paths[paths.len() - 1], b"\xb2\x57").unwrap();
    let (writer, resumed) = LogWriter::resume(directory.path(), options()).unwrap();
    assert!(resumed.torn.is_some());
    drop(writer);
    assert_eq!(segments(directory.path()), paths[..paths.len() - 1]);
    read_log(directory.path()).1.unwrap();
}

#[test]
fn a_damaged_log_is_not_continued_and_not_touched() {
    let directory = tempdir().unwrap();
    write_log(directory.path(), 8);
    let first = segments(directory.path()).remove(0);
    let mut bytes = fs::read(&first).unwrap();
    bytes[300] ^= 4;
    fs::write(&first, &bytes).unwrap();
    let error = LogWriter::resume(directory.path(), options()).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    assert_eq!(fs::read(&first).unwrap(), bytes);
}

const BATCHES: u64 = 8;

/// Writes a log on a disk that fails as planned. Returns how many batches were appended,
/// and how many of them synced, before the first error that is not a full disk.
fn write_on(disk: FaultyDisk, sync_each: bool) -> (usize, usize, Vec<StoreError>) {
    let (mut appended, mut synced, mut errors) = (0, 0, Vec::new());
    let batches = batches(&header(), BATCHES);
    let mut writer = match LogWriter::create_on(disk, header(), options()) {
        Ok(writer) => writer,
        Err(error) => return (0, 0, vec![error]),
    };
    while appended < batches.len() {
        match writer.append(&batches[appended]) {
            Ok(()) => appended += 1,
            // Space was freed: the same batch again.
            Err(error) if error.is_full() => {
                errors.push(error);
                continue;
            }
            Err(error) => {
                errors.push(error);
                return (appended, synced, errors);
            }
        }
        if sync_each || appended % 3 == 0 {
            match writer.sync() {
                Ok(()) => synced = appended,
                Err(error) => {
                    errors.push(error);
                    return (appended, synced, errors);
                }
            }
        }
    }
    match writer.finish() {
        Ok(()) => synced = appended,
        Err(error) => errors.push(error),
    }
    (appended, synced, errors)
}

/// Runs `check` for a failure at every step and after every part of a write.
fn at_every_step(
    fault: Fault,
    seeds: u64,
    sync_each: bool,
    check: impl Fn(Plan, &Path, (usize, usize, Vec<StoreError>)),
) {
    for step in 0.. {
        let mut struck = false;
        for (quarters, seed) in (0..=4).flat_map(|quarters| (0..seeds).map(move |seed| (quarters, seed))) {
            let directory = tempdir().unwrap();
            let plan = Plan { step, fault, quarters, seed };
            let (disk, witness) = FaultyDisk::new(directory.path(), plan);
            let outcome = write_on(disk, sync_each);
            struck |= witness.struck();
            if witness.struck() {
                if fault == Fault::PowerLost {
                    witness.lose_power(directory.path());
                }
                check(plan, directory.path(), outcome);
            } else {
                assert!(outcome.2.is_empty());
            }
        }
        if !struck {
            assert!(step > 20, "only {step} steps");
            return;
        }
    }
}

#[test]
fn a_full_disk_at_any_step_leaves_nothing_half_done() {
    at_every_step(Fault::Full, 1, false, |plan, path, (appended, _, errors)| {
        let all = batches(&header(), BATCHES);
        let (read, end) = read_log(path);
        assert_eq!(read, all[..appended], "{plan:?}");
        if appended == 0 {
            // It failed before it was begun.
            assert!(matches!(errors[..], [StoreError::Full { .. }]), "{plan:?}");
            assert!(matches!(end, Err(StoreError::NoLog { .. })), "{plan:?}");
            assert_eq!(segments(path).len(), 0, "{plan:?}");
            return;
        }
        assert!(end.is_ok(), "{plan:?}: {end:?}");
        assert!(segments(path).iter().all(|path| path.extension().unwrap() == "log"), "{plan:?}");
    });
}

#[test]
fn a_writer_killed_at_any_step_leaves_a_log_that_goes_on() {
    at_every_step(Fault::Killed, 1, false, |plan, path, (appended, _, errors)| {
        assert_eq!(errors.len(), 1, "{plan:?}");
        goes_on(plan, path, appended);
    });
}

#[test]
fn what_was_synced_survives_a_loss_of_power_at_any_step_and_the_log_goes_on() {
    for sync_each in [true, false] {
        at_every_step(Fault::PowerLost, 5, sync_each, |plan, path, (_, synced, _)| {
            goes_on(plan, path, synced);
        });
    }
}

/// Checks that at least the first `at_least` batches are there and that the log can be
/// continued to the whole one.
fn goes_on(plan: Plan, path: &Path, at_least: usize) {
    let all = batches(&header(), BATCHES);
    let (read, end) = read_log(path);
    assert!(read.len() >= at_least, "{plan:?}");
    assert_eq!(read, all[..read.len()], "{plan:?}");
    let mut writer = match end {
        Err(StoreError::NoLog { .. }) => LogWriter::create(path, header(), options()).unwrap(),
        Ok(_) | Err(StoreError::TornTail { .. }) => LogWriter::resume(path, options()).unwrap().0,
        Err(error) => panic!("{plan:?}: {error}"),
    };
    for batch in &all[read.len()..] {
        writer.append(batch).unwrap();
    }
    writer.finish().unwrap();
    let (read, end) = read_log(path);
    assert_eq!(read, all, "{plan:?}");
    assert_eq!(end.unwrap(), Ending::Finished, "{plan:?}");
}
