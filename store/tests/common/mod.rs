//! A small log that the tests write, damage and read.

// Every test file uses its own part of this, and helpers of tests unwrap as tests do.
#![allow(dead_code, clippy::unwrap_used)]

pub mod faulty;
pub mod records;

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use log_format::*;
use store::*;

/// A directory for one test, in memory where there is such a place: the tests write and sync
/// many thousand times.
pub fn tempdir() -> std::io::Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir())
}

pub fn header() -> SegmentHeader {
    let identity =
        MachineIdentity { semantics: 1, config: [1; 32], boot_images: [2; 32], disks: vec![(4096, [3; 32])] };
    SegmentHeader::at_boot("ledger".into(), identity, 1, Bytes::from_static(b"boot"))
}

/// The first `count` batches of a log, all different, some without events.
pub fn batches(header: &SegmentHeader, count: u64) -> Vec<SealedBatch> {
    let mut chain = header.chain;
    (1..=count)
        .map(|sequence| {
            let end = moment(1000 * sequence);
            let events = (0..sequence % 3)
                .map(|n| LoggedEvent {
                    at: moment(1000 * sequence - 500 + n),
                    event: Event::NetworkIn { port: 0, frame: vec![sequence as u8; 20 + n as usize].into() },
                })
                .collect();
            let batch = Batch {
                term: 1,
                sequence,
                end,
                events,
                first_output: sequence - 1,
                output_hashes: vec![sequence as u32],
                released_outputs: sequence / 2,
                ..Batch::default()
            };
            let sealed = batch.seal(chain).unwrap();
            chain = sealed.chain();
            sealed
        })
        .collect()
}

fn moment(icount: u64) -> Moment {
    Moment { icount, time_ns: 3 * icount }
}

/// A segment takes about three of the batches.
pub fn options() -> LogOptions {
    LogOptions { segment_bytes: 600 }
}

/// Writes a log of `count` batches, finished.
pub fn write_log(directory: &Path, count: u64) -> Vec<SealedBatch> {
    let header = header();
    let batches = batches(&header, count);
    let mut writer = LogWriter::create(directory, header, options()).unwrap();
    for batch in &batches {
        writer.append(batch).unwrap();
    }
    writer.finish().unwrap();
    batches
}

/// Writes a log of `count` batches, as a writer leaves it that is killed.
pub fn write_unfinished(directory: &Path, count: u64) -> Vec<SealedBatch> {
    let header = header();
    let batches = batches(&header, count);
    let mut writer = LogWriter::create(directory, header, options()).unwrap();
    for batch in &batches {
        writer.append(batch).unwrap();
    }
    batches
}

/// All that can be read, and how it ends.
pub fn read_log(directory: &Path) -> (Vec<SealedBatch>, Result<Ending, StoreError>) {
    let mut reader = match LogReader::open(directory) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Err(error)),
    };
    let mut batches = Vec::new();
    loop {
        match reader.next() {
            Some(Ok(batch)) => batches.push(batch),
            Some(Err(error)) => {
                assert!(reader.next().is_none(), "an error ends the log");
                assert_eq!(reader.ending(), None);
                return (batches, Err(error));
            }
            None => return (batches, Ok(reader.ending().unwrap())),
        }
    }
}

/// The segments in a directory, in order.
pub fn segments(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Where the records of a segment begin, and where the last ends.
pub fn record_offsets(bytes: &[u8]) -> Vec<usize> {
    let mut offsets = vec![0];
    let mut rest = bytes;
    while !rest.is_empty() {
        let (record, later) = rest.split_at(FrameHeader::decode(rest).unwrap().frame_bytes());
        offsets.push(offsets[offsets.len() - 1] + record.len());
        rest = later;
    }
    offsets
}

/// Makes the checksum of the header at `offset` good again.
pub fn reseal_header(bytes: &mut [u8], offset: usize) {
    let crc = crc32fast::hash(&bytes[offset..offset + 60]);
    bytes[offset + 60..offset + 64].copy_from_slice(&crc.to_le_bytes());
}
