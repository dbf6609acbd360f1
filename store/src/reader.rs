//! Reads a log: batch after batch, over all its segments, up to its end or its damage.

use std::collections::VecDeque;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use log_format::{
    ChainHash, FrameError, HEADER_BYTES, IncrementStart, LogEntry, Position, SealedBatch, SegmentEnd,
    SegmentHeader, SegmentRecord, WholeIncrement,
};

use crate::checkpoint_file::read_head;
use crate::disk::names_in;
use crate::error::StoreError;
use crate::folder::LogFolder;
use crate::follower::Follower;
use crate::name::{first_sequence_of, segment_name};
use crate::segment::{ReadError, SegmentReader};

const BUFFER_BYTES: usize = 256 << 10;

/// How an undamaged log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its writer closed it.
    Finished,
    /// Its writer still writes, or was killed between two batches.
    Unfinished,
}

/// Reads a log, in order.
///
/// [`LogReader::next_entry`] gives each whole batch and increment, then at most one error: what is
/// wrong with the log there. Without an error, [`LogReader::ending`] says how it ends. As an
/// iterator it gives batches only, and an error where an increment stands in their place.
#[derive(Debug)]
pub struct LogReader {
    directory: PathBuf,
    /// Segments not opened yet: number of the first batch, name.
    later: VecDeque<(u64, String)>,
    /// A file that has no business among the segments.
    foreign: Option<String>,
    first_header: SegmentHeader,
    current: Segment,
    follower: Follower,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    Ended(Ending),
    Failed,
}

/// An open segment, behind its header.
#[derive(Debug)]
struct Segment {
    path: PathBuf,
    name: String,
    reader: SegmentReader<BufReader<File>>,
    header: SegmentHeader,
    batches: u64,
    /// Where the last whole batch ends, or the header if there is none.
    end_offset: u64,
}

/// What comes after a segment that is torn.
enum AfterTorn {
    /// The next segment goes on where reading stands: what was torn can only be the record
    /// that closes the segment, and nothing is lost.
    Follows,
    /// A last segment that has not even a whole header: the log ends where it is torn.
    Nothing,
    /// Batches that were written after others that are lost.
    Other,
}

/// What a step through a segment met.
enum Step {
    Entry(LogEntry),
    Ended(Ending),
    NextSegment,
}

impl LogReader {
    /// Opens the log in a directory at its start.
    ///
    /// # Errors
    /// [`StoreError::NoLog`], [`StoreError::MissingSegment`] when the log's first is, or what
    /// is wrong with the header of its first segment.
    pub fn open(directory: &Path) -> Result<LogReader, StoreError> {
        let listing = Listing::of(directory)?;
        let path = LogFolder::start_path(directory);
        if !listing.segments.is_empty() && path.exists() {
            let base = read_head(&path)?;
            return LogReader::open_at_base(directory, listing, (base.position, base.chain));
        }
        let reader = LogReader::start(directory, listing)?;
        let header = reader.header();
        if header.position.sequence != header.log_start {
            return Err(reader.missing(header.log_start));
        }
        Ok(reader)
    }

    /// Opens a log that begins at the state `start.checkpoint` beside it: what lies before may be there
    /// still, or be gone.
    fn open_at_base(
        directory: &Path,
        listing: Listing,
        (position, chain): (Position, ChainHash),
    ) -> Result<LogReader, StoreError> {
        let sequence = position.sequence;
        let reader = LogReader::skip_to(directory, listing, sequence)?;
        let header = reader.header();
        if header.position.sequence > sequence || header.log_start > sequence {
            return Err(reader.missing(sequence));
        }
        if reader.end_position().sequence < sequence {
            return Err(StoreError::MissingSegment {
                path: directory.to_owned(),
                expected: segment_name(sequence.saturating_add(1)),
                found: None,
            });
        }
        if reader.end_position().sequence == sequence && reader.follower.chain() != chain {
            return Err(StoreError::OtherLog {
                path: LogFolder::start_path(directory),
                what: "the state after a batch with chain hash",
                found: chain.to_string(),
                expected: reader.follower.chain().to_string(),
            });
        }
        Ok(reader)
    }

    /// The segment after this batch should have been the first.
    fn missing(&self, sequence: u64) -> StoreError {
        StoreError::MissingSegment {
            path: self.directory.clone(),
            expected: segment_name(sequence.saturating_add(1)),
            found: Some(self.current.name.clone()),
        }
    }

    /// Opens the log in a directory so that the first batch read is the one after `sequence`
    /// (or the log's first, if that is later). Segments that lie wholly before are not
    /// looked at.
    ///
    /// # Errors
    /// As [`LogReader::open`], and those of the batches that are skipped.
    pub fn open_after(directory: &Path, sequence: u64) -> Result<LogReader, StoreError> {
        LogReader::skip_to(directory, Listing::of(directory)?, sequence)
    }

    fn skip_to(directory: &Path, mut listing: Listing, sequence: u64) -> Result<LogReader, StoreError> {
        let wanted = sequence.saturating_add(1);
        let segments = &mut listing.segments;
        while segments.get(1).is_some_and(|(first, _)| *first <= wanted) {
            segments.pop_front();
        }
        let mut reader = LogReader::start(directory, listing)?;
        while reader.end_position().sequence < sequence {
            match reader.next_entry() {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => break,
            }
        }
        Ok(reader)
    }

    fn start(directory: &Path, listing: Listing) -> Result<LogReader, StoreError> {
        let Listing { mut segments, foreign } = listing;
        let Some((first, name)) = segments.pop_front() else {
            return Err(match foreign {
                Some(name) => misnamed(directory, &name),
                None => StoreError::NoLog { path: directory.to_owned() },
            });
        };
        let is_last = segments.is_empty();
        let current = Segment::open(directory, first, name, is_last)?;
        Ok(LogReader {
            directory: directory.to_owned(),
            later: segments,
            foreign,
            first_header: current.header.clone(),
            follower: Follower::at(&current.header),
            current,
            state: State::Reading,
        })
    }

    /// The header of the segment that reading began with.
    pub fn header(&self) -> &SegmentHeader {
        &self.first_header
    }

    /// The place after the last batch read.
    pub fn end_position(&self) -> Position {
        self.follower.end_position()
    }

    /// The chain hash there.
    pub fn chain(&self) -> ChainHash {
        self.follower.chain()
    }

    /// How the log ends; `None` before the end is reached and when an error ended it.
    pub fn ending(&self) -> Option<Ending> {
        match self.state {
            State::Ended(ending) => Some(ending),
            State::Reading | State::Failed => None,
        }
    }

    /// Name of the segment being read.
    pub fn segment_name(&self) -> &str {
        &self.current.name
    }

    /// Offset in that segment at which its last batch read ends.
    pub fn segment_offset(&self) -> u64 {
        self.current.end_offset
    }

    /// The place where a writer goes on after the last whole batch.
    pub(crate) fn into_tail(self) -> Tail {
        Tail {
            header: self.current.header,
            name: self.current.name,
            batches: self.current.batches,
            end_offset: self.current.end_offset,
            follower: self.follower,
            later: self.later.into_iter().map(|(_, name)| name).collect(),
        }
    }

    fn step(&mut self) -> Result<Step, StoreError> {
        let is_last = self.later.is_empty();
        let offset = self.current.reader.offset();
        match self.current.reader.read() {
            Ok(Some(SegmentRecord::Batch(batch))) => {
                self.follower.accept(&batch).map_err(|cause| self.current.broken_chain(offset, cause))?;
                self.current.batches += 1;
                self.current.end_offset = self.current.reader.offset();
                Ok(Step::Entry(LogEntry::Batch(batch)))
            }
            Ok(Some(SegmentRecord::IncrementStart(start))) => self.increment(*start, offset),
            Ok(Some(SegmentRecord::IncrementPart(_) | SegmentRecord::IncrementEnd(_))) => {
                Err(foreign(self.current.path.clone(), "a part of an increment stands where none began"))
            }
            Ok(Some(SegmentRecord::End(end))) => self.end_of_segment(&end, offset),
            Ok(Some(SegmentRecord::Header(_))) => {
                Err(StoreError::AfterEnd { path: self.current.path.clone(), offset })
            }
            Ok(None) if is_last => Ok(Step::Ended(Ending::Unfinished)),
            Ok(None) => Ok(Step::NextSegment),
            Err(error) => self.unreadable(offset, error),
        }
    }

    /// A record, or an increment, that begins there cannot be read.
    fn unreadable(&self, offset: u64, error: ReadError) -> Result<Step, StoreError> {
        let is_last = self.later.is_empty();
        match error {
            ReadError::Frame(torn @ FrameError::Torn { .. }) if !is_last => match self.next_after_torn() {
                AfterTorn::Follows => Ok(Step::NextSegment),
                AfterTorn::Nothing => Err(self.current.error(offset, torn.into(), true)),
                AfterTorn::Other => Err(self.current.error(offset, torn.into(), false)),
            },
            error => Err(self.current.error(offset, error, is_last)),
        }
    }

    /// Reads the rest of an increment, the head of which lies at `offset`. Without its end it is torn.
    fn increment(&mut self, start: IncrementStart, offset: u64) -> Result<Step, StoreError> {
        let mut parts = Vec::new();
        loop {
            match self.current.reader.read() {
                Ok(Some(SegmentRecord::IncrementPart(part))) => parts.push(part),
                Ok(Some(SegmentRecord::IncrementEnd(end))) if end.parts == parts.len() as u64 => {
                    let accepted = self.follower.accept_increment(&start);
                    accepted.map_err(|cause| self.current.broken_chain(offset, cause))?;
                    self.current.end_offset = self.current.reader.offset();
                    return Ok(Step::Entry(WholeIncrement { start, parts, end }.into()));
                }
                Ok(Some(_)) => {
                    let found = "an increment in it is not followed by its own parts and end";
                    return Err(foreign(self.current.path.clone(), found));
                }
                Ok(None) => {
                    let found = (self.current.reader.offset() - offset) as usize;
                    let torn = FrameError::Torn { found, expected: found + HEADER_BYTES };
                    return self.unreadable(offset, torn.into());
                }
                Err(error @ ReadError::Frame(FrameError::Torn { .. })) => {
                    return self.unreadable(offset, error);
                }
                Err(error) => {
                    let at = self.current.reader.offset();
                    return Err(self.current.error(at, error, self.later.is_empty()));
                }
            }
        }
    }

    fn end_of_segment(&mut self, end: &SegmentEnd, offset: u64) -> Result<Step, StoreError> {
        self.follower
            .accept_end(end, self.current.batches)
            .map_err(|cause| self.current.broken_chain(offset, cause))?;
        let after_end = || StoreError::AfterEnd { path: self.current.path.clone(), offset };
        if !matches!(self.current.reader.read(), Ok(None)) {
            return Err(after_end());
        }
        match (end.last, self.later.front()) {
            (true, None) => Ok(Step::Ended(Ending::Finished)),
            (true, Some(_)) => Err(after_end()),
            (false, Some(_)) => Ok(Step::NextSegment),
            (false, None) => Err(StoreError::MissingSegment {
                path: self.directory.clone(),
                expected: self.next_name(),
                found: None,
            }),
        }
    }

    fn next_segment(&mut self) -> Result<(), StoreError> {
        let expected = self.next_name();
        let Some((first, name)) = self.later.front().cloned() else {
            return Ok(());
        };
        if first > self.end_position().sequence.saturating_add(1) {
            return Err(StoreError::MissingSegment {
                path: self.directory.clone(),
                expected,
                found: Some(name),
            });
        }
        let segment = Segment::open(&self.directory, first, name, self.later.len() == 1)?;
        segment.check_same_log(&self.first_header)?;
        self.follower.accept_header(&segment.header).map_err(|cause| segment.broken_chain(0, cause))?;
        self.later.pop_front();
        self.current = segment;
        Ok(())
    }

    /// Looks behind a torn record of a segment that is not the last.
    fn next_after_torn(&self) -> AfterTorn {
        let Some((first, name)) = self.later.front() else {
            return AfterTorn::Nothing;
        };
        let is_last = self.later.len() == 1;
        match Segment::open(&self.directory, *first, name.clone(), is_last) {
            Ok(next) if self.follower.accept_header(&next.header).is_ok() => AfterTorn::Follows,
            Err(StoreError::TornTail { .. }) => AfterTorn::Nothing,
            Ok(_) | Err(_) => AfterTorn::Other,
        }
    }

    fn next_name(&self) -> String {
        segment_name(self.end_position().sequence.saturating_add(1))
    }
}

impl Iterator for LogReader {
    type Item = Result<SealedBatch, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (before, offset) = (self.end_position().sequence, self.current.reader.offset());
            match self.next_entry()? {
                Ok(LogEntry::Batch(batch)) => return Some(Ok(batch)),
                // The batches up to there are here as well.
                Ok(LogEntry::Increment(whole)) if whole.sequence() <= before => {}
                Ok(LogEntry::Increment(whole)) => {
                    self.state = State::Failed;
                    return Some(Err(StoreError::NoBatches {
                        path: self.current.path.clone(),
                        offset,
                        from: before,
                        to: whole.sequence(),
                    }));
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl LogReader {
    /// The next batch or increment, or what is wrong with the log here; `None` at its end.
    pub fn next_entry(&mut self) -> Option<Result<LogEntry, StoreError>> {
        while self.state == State::Reading {
            let stepped = match self.step() {
                Ok(Step::Entry(entry)) => return Some(Ok(entry)),
                Ok(Step::Ended(ending)) => match &self.foreign {
                    Some(name) => Err(misnamed(&self.directory, name)),
                    None => {
                        self.state = State::Ended(ending);
                        Ok(())
                    }
                },
                Ok(Step::NextSegment) => self.next_segment(),
                Err(error) => Err(error),
            };
            if let Err(error) = stepped {
                self.state = State::Failed;
                return Some(Err(error));
            }
        }
        None
    }
}

/// Where a writer goes on.
pub(crate) struct Tail {
    pub(crate) header: SegmentHeader,
    pub(crate) name: String,
    pub(crate) batches: u64,
    pub(crate) end_offset: u64,
    pub(crate) follower: Follower,
    /// Segments behind it. After a torn tail they hold nothing.
    pub(crate) later: Vec<String>,
}

impl Segment {
    fn open(directory: &Path, first: u64, name: String, is_last: bool) -> Result<Segment, StoreError> {
        let path = directory.join(&name);
        let file = File::open(&path).map_err(|error| StoreError::io("open", &path, error))?;
        let mut reader = SegmentReader::new(BufReader::with_capacity(BUFFER_BYTES, file));
        let header = match reader.read() {
            Ok(Some(SegmentRecord::Header(header))) => header,
            Ok(Some(_)) => {
                return Err(foreign(path, "it does not begin with a segment header"));
            }
            Ok(None) => {
                let torn = FrameError::Torn { found: 0, expected: log_format::HEADER_BYTES };
                return Err(record_error(path, 0, torn.into(), is_last));
            }
            Err(error) => return Err(record_error(path, 0, error, is_last)),
        };
        let begins = header.position.sequence.saturating_add(1);
        if begins != first {
            let found = format!("its batches begin with {begins}, its name says {first}");
            return Err(foreign(path, &found));
        }
        if header.position.sequence < header.log_start {
            return Err(foreign(path, "it begins before its own log does"));
        }
        Ok(Segment { path, name, end_offset: reader.offset(), reader, header, batches: 0 })
    }

    fn check_same_log(&self, first: &SegmentHeader) -> Result<(), StoreError> {
        let differs = |what, found: String, expected: String| StoreError::OtherLog {
            path: self.path.clone(),
            what,
            found,
            expected,
        };
        let found = &self.header;
        if found.vm != first.vm {
            return Err(differs("the log of", found.vm.clone(), first.vm.clone()));
        }
        if found.identity != first.identity {
            let found = format!("{:02x?}", found.identity);
            return Err(differs("a machine", found, format!("{:02x?}", first.identity)));
        }
        if found.log_start != first.log_start {
            let found = found.log_start.to_string();
            return Err(differs("log start", found, first.log_start.to_string()));
        }
        Ok(())
    }

    fn error(&self, offset: u64, error: ReadError, is_last: bool) -> StoreError {
        record_error(self.path.clone(), offset, error, is_last)
    }

    fn broken_chain(&self, offset: u64, cause: crate::follower::NotNext) -> StoreError {
        StoreError::BrokenChain { path: self.path.clone(), offset, cause }
    }
}

/// What a record that could not be read says about its log.
fn record_error(path: PathBuf, offset: u64, error: ReadError, is_last: bool) -> StoreError {
    match error {
        ReadError::Io(source) => StoreError::io("read", &path, source),
        ReadError::Frame(FrameError::Torn { found, expected }) if is_last => {
            StoreError::TornTail { path, offset, found: found as u64, expected: expected as u64 }
        }
        ReadError::Frame(FrameError::FutureVersion { found, newest }) => {
            StoreError::FutureVersion { path, offset, found, newest }
        }
        ReadError::Frame(FrameError::Foreign { found }) if offset == 0 => {
            let found = format!("it begins with {found:02x?}, a segment with [b2, 57]");
            foreign(path, &found)
        }
        ReadError::Frame(cause) => StoreError::Damaged { path, offset, cause },
    }
}

fn foreign(path: PathBuf, found: &str) -> StoreError {
    StoreError::ForeignFile { path, found: found.to_owned() }
}

fn misnamed(directory: &Path, name: &str) -> StoreError {
    foreign(directory.join(name), "its name is not 20 digits and .log")
}

/// The files of a log.
struct Listing {
    /// In order: number of the first batch, name.
    segments: VecDeque<(u64, String)>,
    /// Ends like a segment, and is none.
    foreign: Option<String>,
}

impl Listing {
    fn of(directory: &Path) -> Result<Listing, StoreError> {
        let names =
            names_in(directory).map_err(|error| StoreError::io("read directory", directory, error))?;
        let mut segments = Vec::new();
        let mut foreign = None;
        for name in names.into_iter().filter(|name| name.ends_with(".log")) {
            match first_sequence_of(&name) {
                Some(first) => segments.push((first, name)),
                None => foreign = Some(name),
            }
        }
        segments.sort_unstable();
        Ok(Listing { segments: segments.into(), foreign })
    }
}
