//! A host's log: the production [`store::LogWriter`] and [`store::LogReader`] on a disk that can
//! fail, and the check that what is read is what was written.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use log_format::{ChainHash, LogEntry, MachineIdentity, Position, SegmentHeader};
use store::{LogOptions, LogReader, LogWriter, StoreError};

use super::disk::{DiskHandle, DiskHealth, SimDisk};
use super::random::Random;

/// Small segments, so that runs of a few seconds begin new ones.
const OPTIONS: LogOptions = LogOptions { segment_bytes: 6_000 };

/// The logs of one host, one directory for each life of its process.
#[derive(Debug)]
pub struct HostLog {
    root: PathBuf,
    disk: DiskHandle,
    /// The disk takes long until then.
    pub slow_until_ns: u64,
    /// The disk is not well until then.
    pub ill_until_ns: u64,
    life: Option<Life>,
    lives: u64,
}

/// The log of one life.
#[derive(Debug)]
struct Life {
    directory: PathBuf,
    writer: Option<LogWriter<SimDisk>>,
    identity: MachineIdentity,
    /// Batches before it.
    begins_after: u64,
    waiting: VecDeque<LogEntry>,
    /// What was handed to the writer: the chain hash after each entry. A write that fails may
    /// have been done wholly.
    tried: BTreeMap<u64, ChainHash>,
    /// The last batch whose write succeeded.
    appended: u64,
    appended_outputs: u64,
    /// On disk up to this batch, with so many outputs since boot.
    synced: u64,
    synced_outputs: u64,
    rotten: bool,
    broken: bool,
}

/// What a turn of the log's thread did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogTurn {
    /// On disk up to this batch.
    pub synced: Option<u64>,
    /// More is to be done.
    pub more: bool,
    /// The log takes no more.
    pub ended: bool,
}

impl HostLog {
    /// No log yet, in a directory of its own.
    pub fn new(root: PathBuf, random: Random) -> Self {
        let disk = DiskHandle::new(random);
        HostLog { root, disk, slow_until_ns: 0, ill_until_ns: 0, life: None, lives: 0 }
    }

    /// A log begins after this batch and these outputs, which something durable holds.
    pub fn begin(&mut self, identity: MachineIdentity, (sequence, outputs): (u64, u64)) {
        self.lives += 1;
        self.life = Some(Life {
            directory: self.root.join(self.lives.to_string()),
            writer: None,
            identity,
            begins_after: sequence,
            waiting: VecDeque::new(),
            tried: BTreeMap::new(),
            appended: sequence,
            appended_outputs: outputs,
            synced: sequence,
            synced_outputs: outputs,
            rotten: false,
            broken: false,
        });
    }

    /// The core has a batch or an increment for the log.
    pub fn push(&mut self, entry: impl Into<LogEntry>) {
        if let Some(life) = &mut self.life {
            life.waiting.push_back(entry.into());
        }
    }

    /// Appends what waits and syncs it.
    ///
    /// # Errors
    /// What is wrong with the log that a new one takes the place of.
    pub fn turn(&mut self) -> Result<LogTurn, String> {
        let Some(life) = &mut self.life else { return Ok(LogTurn::default()) };
        match life.write_waiting(&self.disk) {
            Ok(()) => Ok(LogTurn { synced: Some(life.synced), more: false, ended: false }),
            Err(error) if error.is_full() => Ok(LogTurn { more: true, ..LogTurn::default() }),
            // A backup that joined anew: its log begins anew.
            Err(StoreError::NotNext(_)) => {
                let (identity, waiting) = (life.identity.clone(), std::mem::take(&mut life.waiting));
                self.end(false)?;
                let before = match waiting.front() {
                    None => (0, 0),
                    Some(LogEntry::Batch(next)) => (next.sequence - 1, next.first_output),
                    // It covers at least these.
                    Some(LogEntry::Increment(next)) => (next.start.base, 0),
                };
                self.begin(identity, before);
                waiting.into_iter().for_each(|entry| self.push(entry));
                self.turn()
            }
            Err(_) => {
                life.broken = true;
                Ok(LogTurn { ended: true, ..LogTurn::default() })
            }
        }
    }

    /// Outputs since boot that are covered by what is on disk, in this life.
    pub fn durable_outputs(&self) -> Option<u64> {
        self.life.as_ref().map(|life| life.synced_outputs)
    }

    /// Whether all that is durable can be read again.
    pub fn is_sound(&self) -> bool {
        self.life.as_ref().is_some_and(|life| !life.rotten && !life.broken)
    }

    /// The power of the host fails: its process ends, and what its log holds is read.
    ///
    /// # Errors
    /// What is wrong with the log then.
    pub fn end_and_read(&mut self) -> Result<Vec<LogEntry>, String> {
        let Some(life) = &self.life else { return Ok(Vec::new()) };
        let directory = life.directory.clone();
        let lost = self.disk.lose_power(&directory);
        lost.map_err(|error| format!("the simulated disk itself: {error}"))?;
        // What is torn at its end was not durable.
        let read = LogReader::open(&directory)
            .map(|mut reader| std::iter::from_fn(|| reader.next_entry()).map_while(Result::ok).collect());
        self.end(true)?;
        Ok(read.unwrap_or_default())
    }

    /// The disk answers so until then.
    pub fn fall_ill(&mut self, health: DiskHealth, until_ns: u64) {
        self.disk.set_health(health);
        self.ill_until_ns = until_ns;
    }

    /// The disk is well and quick again.
    pub fn recover(&mut self) {
        self.disk.set_health(DiskHealth::Well);
        (self.slow_until_ns, self.ill_until_ns) = (0, 0);
    }

    /// A bit of the present life's log flips. Whether there was one.
    pub fn rot(&mut self) -> bool {
        let Some(life) = self.life.as_mut().filter(|life| life.writer.is_some()) else { return false };
        let rotten = self.disk.rot(&life.directory).unwrap_or(false);
        life.rotten |= rotten;
        rotten
    }

    /// The process ends, and perhaps the power of its host.
    ///
    /// # Errors
    /// What is wrong with the log then.
    pub fn end(&mut self, power_lost: bool) -> Result<LogEnd, String> {
        let Some(mut life) = self.life.take() else { return Ok(LogEnd::default()) };
        if life.writer.take().is_none() {
            self.disk.close();
            return Ok(LogEnd::default());
        }
        let failed = |error: std::io::Error| format!("the simulated disk itself: {error}");
        match power_lost {
            true => self.disk.lose_power(&life.directory).map_err(failed)?,
            false => self.disk.close(),
        }
        let end = life.check(power_lost);
        std::fs::remove_dir_all(&life.directory).map_err(failed)?;
        end
    }
}

/// How a log was found when its process had ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogEnd {
    /// Batches and increments that were there.
    pub entries: u64,
    /// Its last record was torn.
    pub torn: bool,
    /// The damage that was found in it.
    pub damaged: bool,
}

impl Life {
    fn write_waiting(&mut self, disk: &DiskHandle) -> Result<(), StoreError> {
        if self.broken {
            return Ok(());
        }
        let Some(first) = self.waiting.front() else { return Ok(()) };
        if self.writer.is_none() {
            let header = header_before(first, self.begins_after, &self.identity);
            self.writer = Some(create(disk, &self.directory, header)?);
        }
        let Some(writer) = &mut self.writer else { return Ok(()) };
        while let Some(entry) = self.waiting.front() {
            let (sequence, chain, outputs) = match entry {
                LogEntry::Batch(batch) => (batch.sequence, batch.chain(), batch.outputs_after()),
                LogEntry::Increment(whole) => {
                    (whole.sequence(), whole.start.chain, whole.start.head.outputs_before)
                }
            };
            let here = writer.end_position().sequence;
            let may_follow = match entry {
                LogEntry::Batch(_) => sequence == here + 1,
                LogEntry::Increment(whole) => whole.start.base <= here,
            };
            if may_follow {
                self.tried.insert(sequence, chain);
            }
            writer.append_entry(entry)?;
            self.appended = self.appended.max(sequence);
            self.appended_outputs = self.appended_outputs.max(outputs);
            self.waiting.pop_front();
        }
        writer.sync()?;
        (self.synced, self.synced_outputs) = (self.appended, self.appended_outputs);
        Ok(())
    }

    /// Reads the log as a process that starts again would: everything that was durable is
    /// there, nothing else than what was written, and damage is found.
    fn check(&self, power_lost: bool) -> Result<LogEnd, String> {
        let mut end = LogEnd::default();
        let mut read_to = self.begins_after;
        let error = match LogReader::open(&self.directory) {
            Ok(mut reader) => {
                let error = self.check_entries(&mut reader, &mut end)?;
                read_to = read_to.max(reader.end_position().sequence);
                error
            }
            Err(error) => Some(error),
        };
        end.torn = error.as_ref().is_some_and(StoreError::is_torn_tail);
        end.damaged = error.is_some() && !end.torn;
        let last = self.appended;
        let promised = if power_lost { self.synced } else { last };
        if read_to < promised && !(self.rotten && error.is_some()) {
            return Err(format!(
                "law 4: a log ends at batch {read_to} ({error:?}), {promised} was durable (of {last} written)"
            ));
        }
        if end.damaged && !self.rotten {
            return Err(format!("law 6: an honest log is called damaged: {error:?}"));
        }
        Ok(end)
    }

    fn check_entries(&self, reader: &mut LogReader, end: &mut LogEnd) -> Result<Option<StoreError>, String> {
        while let Some(entry) = reader.next_entry() {
            let (sequence, chain) = match entry {
                Ok(LogEntry::Batch(batch)) => (batch.sequence, batch.chain()),
                Ok(LogEntry::Increment(whole)) => (whole.sequence(), whole.start.chain),
                Err(error) => return Ok(Some(error)),
            };
            if self.tried.get(&sequence) != Some(&chain) {
                return Err(format!("law 5: batch {sequence} was read, and never written so"));
            }
            end.entries += 1;
        }
        Ok(None)
    }
}

fn create(
    disk: &DiskHandle,
    directory: &Path,
    header: SegmentHeader,
) -> Result<LogWriter<SimDisk>, StoreError> {
    let error = |source| StoreError::Io { action: "make", path: directory.to_owned(), source };
    std::fs::create_dir_all(directory).map_err(error)?;
    LogWriter::create_on(disk.open(directory).map_err(error)?, header, OPTIONS)
}

/// The header of a log that begins with this entry, after so many batches.
fn header_before(first: &LogEntry, begins_after: u64, identity: &MachineIdentity) -> SegmentHeader {
    let (sequence, term, chain) = match first {
        LogEntry::Batch(batch) => (batch.sequence - 1, batch.term, batch.previous()),
        LogEntry::Increment(whole) => (begins_after, whole.start.position.term, ChainHash::NONE),
    };
    let at_boot = SegmentHeader::at_boot("toy".to_owned(), identity.clone(), term, Bytes::new());
    let position = Position { sequence, ..at_boot.position };
    SegmentHeader { position, chain, log_start: sequence, ..at_boot }
}
