//! Says what is in a log, and where and why it ends.

use std::path::Path;

use log_format::{Event, LogEntry, Moment, Position, SealedBatch, SegmentHeader};

use crate::error::StoreError;
use crate::reader::{Ending, LogReader};

/// What is in a log.
#[derive(Debug)]
pub struct Report {
    /// What it is of, from its first segment.
    pub header: SegmentHeader,
    /// Its segments, as far as they could be read.
    pub segments: Vec<SegmentReport>,
    /// Whole batches.
    pub batches: u64,
    /// Batches that hold neither event, digest nor output hash.
    pub pure_marks: u64,
    /// Events by kind.
    pub events: EventCounts,
    /// Digests.
    pub digests: u64,
    /// Hashes of outputs.
    pub outputs: u64,
    /// Bytes of all whole batches, as stored.
    pub batch_bytes: u64,
    /// Increments, of a backup to which no batches came or that stood.
    pub increments: u64,
    /// Bytes of those, as stored, about.
    pub increment_bytes: u64,
    /// Where the log begins.
    pub first: Position,
    /// Where the last whole batch ends.
    pub last: Position,
    /// How, or why, it ends there.
    pub end: LogEnd,
}

/// How a log ends.
#[derive(Debug)]
pub enum LogEnd {
    /// Nothing is wrong with it.
    Whole(Ending),
    /// Something is wrong with it here; all before is good.
    Damaged(StoreError),
}

impl LogEnd {
    /// Whether nothing is wrong.
    pub fn is_whole(&self) -> bool {
        matches!(self, LogEnd::Whole(_))
    }
}

/// A segment's share of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentReport {
    /// Its file's name.
    pub name: String,
    /// Its whole batches.
    pub batches: u64,
    /// Bytes of its whole batches, as stored.
    pub batch_bytes: u64,
    /// Where its last whole batch ends.
    pub last: Moment,
}

/// How many events there are of each kind, and what came with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventCounts {
    /// Network frames.
    pub network_in: u64,
    /// Bytes of those frames.
    pub network_in_bytes: u64,
    /// Console inputs.
    pub console_in: u64,
    /// Bytes of those.
    pub console_in_bytes: u64,
    /// Clock advances.
    pub clock_advances: u64,
    /// By how much in all, in nanoseconds.
    pub clock_advance_ns: u64,
    /// Entropy seeds.
    pub entropy: u64,
    /// Wall-clock times.
    pub wall_clock: u64,
    /// Operator's commands.
    pub control: u64,
}

impl EventCounts {
    /// Events of all kinds.
    pub fn total(&self) -> u64 {
        self.network_in
            + self.console_in
            + self.clock_advances
            + self.entropy
            + self.wall_clock
            + self.control
    }

    /// Counts one more.
    pub fn add(&mut self, event: &Event) {
        match event {
            Event::NetworkIn { frame, .. } => {
                self.network_in += 1;
                self.network_in_bytes += frame.len() as u64;
            }
            Event::ConsoleIn(bytes) => {
                self.console_in += 1;
                self.console_in_bytes += bytes.len() as u64;
            }
            Event::ClockAdvance { delta_ns } => {
                self.clock_advances += 1;
                self.clock_advance_ns = self.clock_advance_ns.saturating_add(*delta_ns);
            }
            Event::Entropy(_) => self.entropy += 1,
            Event::WallClock { .. } => self.wall_clock += 1,
            Event::Control(_) => self.control += 1,
        }
    }
}

/// Reads a whole log and checks every record of it.
///
/// # Errors
/// Only when not even the header of its first segment can be read; what is wrong further on is
/// part of the report.
pub fn verify(directory: &Path) -> Result<Report, StoreError> {
    let mut reader = LogReader::open(directory)?;
    let start = reader.end_position();
    let mut report = Report {
        header: reader.header().clone(),
        segments: vec![SegmentReport::begin(&reader)],
        batches: 0,
        pure_marks: 0,
        events: EventCounts::default(),
        digests: 0,
        outputs: 0,
        batch_bytes: 0,
        increments: 0,
        increment_bytes: 0,
        first: start,
        last: start,
        end: LogEnd::Whole(Ending::Unfinished),
    };
    loop {
        let next = reader.next_entry();
        if report.segments.last().map(|segment| segment.name.as_str()) != Some(reader.segment_name()) {
            report.segments.push(SegmentReport::begin(&reader));
        }
        match next {
            Some(Ok(LogEntry::Batch(batch))) => report.add(&batch),
            Some(Ok(LogEntry::Increment(whole))) => {
                report.increments += 1;
                report.increment_bytes += whole.size_bytes();
                report.last = reader.end_position();
            }
            Some(Err(error)) => {
                report.end = LogEnd::Damaged(error);
                return Ok(report);
            }
            None => {
                report.end = LogEnd::Whole(reader.ending().unwrap_or(Ending::Unfinished));
                return Ok(report);
            }
        }
    }
}

impl Report {
    fn add(&mut self, batch: &SealedBatch) {
        let bytes = batch.bytes().len() as u64;
        self.batches += 1;
        self.pure_marks += u64::from(batch.is_pure_mark());
        for logged in &batch.events {
            self.events.add(&logged.event);
        }
        self.digests += batch.digests.len() as u64;
        self.outputs += batch.output_hashes.len() as u64;
        self.batch_bytes += bytes;
        self.last = batch.end_position();
        if let Some(segment) = self.segments.last_mut() {
            segment.batches += 1;
            segment.batch_bytes += bytes;
            segment.last = batch.end;
        }
    }
}

impl SegmentReport {
    fn begin(reader: &LogReader) -> Self {
        SegmentReport {
            name: reader.segment_name().to_owned(),
            batches: 0,
            batch_bytes: 0,
            last: reader.end_position().moment,
        }
    }
}
