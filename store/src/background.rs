//! A log that is written on a thread of its own.
//!
//! ```text
//!   push, begin --> queue --> [ append all that waits, sync once ] --> stored(position)
//! ```
//!
//! One sync serves everything that came while the one before it was under way (group commit),
//! so that a disk which takes its time costs latency and not throughput.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use log_format::{LogEntry, Position};

use crate::disk::{Directory, Disk};
use crate::error::StoreError;
use crate::writer::LogWriter;

/// Bytes appended before a sync, though more wait.
const GROUP_MAX_BYTES: u64 = 4 << 20;
/// Bytes that wait for the disk before the log counts as behind.
const BEHIND_BYTES: u64 = 16 << 20;
/// How soon a disk without room is tried again.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// What becomes of what is pushed.
pub enum Durability {
    /// It survives the death of the process. A disk that has no room, or fails, ends the log: what is
    /// pushed from then on is dropped, until another log begins.
    Written,
    /// It survives the loss of power, and then this is told the place after the last entry that
    /// does. A disk that has no room is waited for; one that fails is an error.
    Synced(Box<dyn Fn(Position) + Send>),
}

/// How the log is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LogHealth {
    /// Everything is written.
    #[default]
    Well,
    /// The disk has no room: it is tried again and again, for this reason.
    Waits(String),
    /// Nothing more is written to this log, for this reason ([`Durability::Written`] only).
    Ended(String),
}

impl LogHealth {
    /// What is wrong.
    pub fn trouble(&self) -> Option<&str> {
        match self {
            LogHealth::Well => None,
            LogHealth::Waits(text) | LogHealth::Ended(text) => Some(text),
        }
    }
}

/// Makes the log that takes the place of the present one.
pub type Begin<D = Directory> = Box<dyn FnOnce() -> Result<Option<LogWriter<D>>, StoreError> + Send>;

/// Done once all that was pushed before is on disk.
pub type After = Box<dyn FnOnce() -> Result<(), StoreError> + Send>;

/// Appends to a log and never keeps the caller waiting: who pushes looks at
/// [`BackgroundLog::is_behind`].
///
/// # Order of calls
///
/// `push` in the log's order, `begin` before the first entry of another log, then `finish` or
/// `into_writer`.
pub struct BackgroundLog<D: Disk = Directory> {
    commands: Sender<Command<D>>,
    state: Arc<State>,
    must_be_whole: bool,
    thread: JoinHandle<Result<Option<LogWriter<D>>, StoreError>>,
}

/// The log's thread ended with an error, which [`BackgroundLog::finish`] gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the log could not be written")]
pub struct LogEnded;

enum Command<D: Disk> {
    Append(LogEntry),
    Begin(Begin<D>),
    After(After),
}

/// What both sides look at.
#[derive(Default)]
struct State {
    waiting_bytes: AtomicU64,
    /// The log is to end: a disk without room is not waited for any more.
    ending: AtomicBool,
    health: Mutex<LogHealth>,
}

impl State {
    fn health(&self) -> MutexGuard<'_, LogHealth> {
        // The text is whole whatever the other side was doing.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Disk + Send + 'static> BackgroundLog<D>
where
    D::File: Send,
{
    /// Starts the thread. Without a writer, entries are dropped until [`BackgroundLog::begin`].
    ///
    /// # Errors
    /// When the operating system has no thread to give.
    pub fn start(writer: Option<LogWriter<D>>, durability: Durability) -> io::Result<BackgroundLog<D>> {
        let (commands, waiting) = channel();
        let state = Arc::new(State::default());
        let must_be_whole = matches!(durability, Durability::Synced(_));
        let mut appender = Appender { writer, durability, state: Arc::clone(&state) };
        let thread = std::thread::Builder::new().name("log".into()).spawn(move || {
            appender.run(&waiting)?;
            Ok(appender.writer)
        })?;
        Ok(BackgroundLog { commands, state, must_be_whole, thread })
    }

    /// Hands the next batch or increment over.
    ///
    /// # Errors
    /// When an earlier one could not be written ([`Durability::Synced`] only).
    pub fn push(&self, entry: impl Into<LogEntry>) -> Result<(), LogEnded> {
        let entry = entry.into();
        self.state.waiting_bytes.fetch_add(entry.size_bytes(), Ordering::AcqRel);
        self.commands.send(Command::Append(entry)).map_err(|_| LogEnded)
    }

    /// Lets another log take the place of the present one, behind all that was pushed. The present one
    /// is closed before `begin` is called, on the log's thread.
    ///
    /// # Errors
    /// As [`BackgroundLog::push`].
    pub fn begin(&self, begin: Begin<D>) -> Result<(), LogEnded> {
        self.commands.send(Command::Begin(begin)).map_err(|_| LogEnded)
    }

    /// Does something on the log's thread once all that was pushed so far is synced.
    ///
    /// # Errors
    /// As [`BackgroundLog::push`]. An error of `after` ends the log.
    pub fn after(&self, after: After) -> Result<(), LogEnded> {
        self.commands.send(Command::After(after)).map_err(|_| LogEnded)
    }

    /// Whether so much waits for the disk that no more should be made.
    pub fn is_behind(&self) -> bool {
        self.waiting_bytes() >= BEHIND_BYTES
    }

    /// Bytes that wait for the disk.
    pub fn waiting_bytes(&self) -> u64 {
        self.state.waiting_bytes.load(Ordering::Acquire)
    }

    /// How the log is doing.
    pub fn health(&self) -> LogHealth {
        self.state.health().clone()
    }

    /// Waits until all is on disk, and closes the log.
    ///
    /// # Errors
    /// What went wrong with the first entry that could not be written ([`Durability::Synced`] only).
    pub fn finish(self) -> Result<(), StoreError> {
        let must_be_whole = self.must_be_whole;
        match self.into_writer()?.map_or(Ok(()), LogWriter::finish) {
            // What was pushed is there; only the mark that it ends there is not.
            Err(error) if error.is_full() || !must_be_whole => Ok(()),
            finished => finished,
        }
    }

    /// Waits until all is written, and, where that is asked for, synced, and gives the log back.
    /// `None` where there is none, or where it has ended.
    ///
    /// # Errors
    /// As [`BackgroundLog::finish`].
    pub fn into_writer(self) -> Result<Option<LogWriter<D>>, StoreError> {
        self.state.ending.store(true, Ordering::Release);
        drop(self.commands);
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// What the thread works with.
struct Appender<D: Disk> {
    writer: Option<LogWriter<D>>,
    durability: Durability,
    state: Arc<State>,
}

impl<D: Disk> Appender<D> {
    fn run(&mut self, waiting: &Receiver<Command<D>>) -> Result<(), StoreError> {
        while let Ok(first) = waiting.recv() {
            let mut group_bytes = 0;
            let mut next = Some(first);
            while let Some(command) = next {
                group_bytes += self.obey(command)?;
                next = if group_bytes < GROUP_MAX_BYTES { waiting.try_recv().ok() } else { None };
            }
            if let (Durability::Synced(stored), Some(writer)) = (&self.durability, &mut self.writer) {
                writer.sync()?;
                stored(writer.end_position());
            }
        }
        Ok(())
    }

    /// Carries a command out, and says how many bytes it wrote.
    fn obey(&mut self, command: Command<D>) -> Result<u64, StoreError> {
        match command {
            Command::Append(entry) => {
                let bytes = entry.size_bytes();
                let appended = self.append(&entry);
                self.state.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
                self.or_ended(appended).map(|_| bytes)
            }
            Command::Begin(begin) => {
                // One that could not be marked as finished is as good: another takes its place.
                let finished = match self.writer.take().map_or(Ok(()), LogWriter::finish) {
                    Err(error) if !error.is_full() => Err(error),
                    _ => Ok(()),
                };
                self.or_ended(finished)?;
                *self.state.health() = LogHealth::Well;
                let begun = begin();
                self.writer = self.or_ended(begun)?.flatten();
                Ok(0)
            }
            Command::After(after) => {
                let synced = self.writer.as_mut().map_or(Ok(()), LogWriter::sync);
                let done = synced.and_then(|()| after());
                self.or_ended(done).map(|_| 0)
            }
        }
    }

    /// An error ends a log that need not be whole, and no more than that.
    fn or_ended<T>(&mut self, result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        match (result, &self.durability) {
            (Ok(value), _) => Ok(Some(value)),
            (Err(error), Durability::Synced(_)) => Err(error),
            (Err(error), Durability::Written) => {
                self.writer = None;
                *self.state.health() = LogHealth::Ended(error.to_string());
                Ok(None)
            }
        }
    }

    /// Appends an entry. A disk that has no room is tried again where the log must be whole.
    fn append(&mut self, entry: &LogEntry) -> Result<(), StoreError> {
        let Appender { writer: Some(writer), durability, state } = self else { return Ok(()) };
        let must_be_whole = matches!(durability, Durability::Synced(_));
        loop {
            match writer.append_entry(entry) {
                Err(error) if error.is_full() && must_be_whole && !state.ending.load(Ordering::Acquire) => {
                    *state.health() = LogHealth::Waits(error.to_string());
                    std::thread::sleep(FULL_RETRY);
                }
                other => {
                    *state.health() = LogHealth::Well;
                    return other;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LogOptions, LogReader};
    use log_format::{Batch, ChainHash, MachineIdentity, SealedBatch, SegmentHeader};
    use std::fs::File;
    use std::path::Path;

    fn header() -> SegmentHeader {
        let identity = MachineIdentity { semantics: 1, config: [1; 32], boot_images: [2; 32], disks: vec![] };
        SegmentHeader::at_boot("vm".into(), identity, 1, bytes::Bytes::new())
    }

    fn batches(count: u64) -> Vec<SealedBatch> {
        let mut chain = ChainHash::genesis(&header().identity);
        let seal = |sequence| {
            let mut batch = Batch { term: 1, sequence, ..Batch::default() };
            batch.end.icount = sequence * 100;
            let sealed = batch.seal(chain).unwrap();
            chain = sealed.chain();
            sealed
        };
        (1..=count).map(seal).collect()
    }

    fn read(path: &Path) -> Vec<SealedBatch> {
        LogReader::open(path).unwrap().map(Result::unwrap).collect()
    }

    /// A directory that has no room as long as it is told so.
    struct Narrow {
        directory: Directory,
        full: Arc<AtomicBool>,
    }

    struct NarrowFile(File, Arc<AtomicBool>);

    impl crate::DiskFile for NarrowFile {
        fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
            match self.1.load(Ordering::Acquire) {
                true => Err(io::ErrorKind::StorageFull.into()),
                false => crate::DiskFile::write_all_at(&self.0, bytes, offset),
            }
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }

        fn sync(&self) -> io::Result<()> {
            self.0.sync_data()
        }
    }

    impl Disk for Narrow {
        type File = NarrowFile;

        fn path(&self) -> &Path {
            self.directory.path()
        }

        fn names(&self) -> io::Result<Vec<String>> {
            self.directory.names()
        }

        fn create_new(&self, name: &str) -> io::Result<NarrowFile> {
            Ok(NarrowFile(self.directory.create_new(name)?, Arc::clone(&self.full)))
        }

        fn open(&self, name: &str) -> io::Result<NarrowFile> {
            Ok(NarrowFile(self.directory.open(name)?, Arc::clone(&self.full)))
        }

        fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            self.directory.rename(from, to)
        }

        fn remove(&self, name: &str) -> io::Result<()> {
            self.directory.remove(name)
        }

        fn sync_names(&self) -> io::Result<()> {
            self.directory.sync_names()
        }
    }

    /// A log on a disk that may be full, its switch, and what it says is stored.
    fn narrow(path: &Path) -> (BackgroundLog<Narrow>, Arc<AtomicBool>, Receiver<u64>) {
        let full = Arc::new(AtomicBool::new(false));
        let disk = Narrow { directory: Directory::lock(path).unwrap(), full: Arc::clone(&full) };
        let writer = LogWriter::create_on(disk, header(), LogOptions::default()).unwrap();
        let (told, stored) = channel();
        let durability = Durability::Synced(Box::new(move |end| told.send(end.sequence).unwrap()));
        (BackgroundLog::start(Some(writer), durability).unwrap(), full, stored)
    }

    #[test]
    fn what_is_stored_is_told_once_for_all_that_waited() {
        let folder = tempfile::tempdir().unwrap();
        let (log, full, stored) = narrow(folder.path());
        let all = batches(50);
        // The first is held up by a full disk, so that the others wait behind it.
        full.store(true, Ordering::Release);
        for batch in &all {
            log.push(batch.clone()).unwrap();
        }
        while log.health().trouble().is_none() {
            std::thread::yield_now();
        }
        assert!(stored.try_recv().is_err(), "nothing is stored on a full disk");
        assert_eq!(log.waiting_bytes(), all.iter().map(|batch| batch.bytes().len() as u64).sum::<u64>());
        full.store(false, Ordering::Release);
        assert_eq!(stored.recv().unwrap(), 50, "one sync for all");
        assert_eq!((log.health(), log.waiting_bytes()), (LogHealth::Well, 0));
        log.finish().unwrap();
        assert!(stored.recv().is_err(), "nothing was told twice");
        assert_eq!(read(folder.path()), all);
    }

    #[test]
    fn a_full_disk_is_not_waited_for_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let (log, full, _stored) = narrow(folder.path());
        full.store(true, Ordering::Release);
        log.push(batches(1).remove(0)).unwrap();
        assert!(log.finish().unwrap_err().is_full());
    }

    #[test]
    fn a_full_disk_ends_a_log_that_need_not_be_whole_and_the_next_one_begins() {
        let folder = tempfile::tempdir().unwrap();
        let full = Arc::new(AtomicBool::new(false));
        let disk = || {
            let directory = Directory::lock(folder.path()).unwrap();
            Narrow { directory, full: Arc::clone(&full) }
        };
        let writer = LogWriter::create_on(disk(), header(), LogOptions::default()).unwrap();
        let log = BackgroundLog::start(Some(writer), Durability::Written).unwrap();
        let all = batches(3);
        log.push(all[0].clone()).unwrap();
        while log.waiting_bytes() > 0 {
            std::thread::yield_now();
        }
        full.store(true, Ordering::Release);
        log.push(all[1].clone()).unwrap();
        while !matches!(log.health(), LogHealth::Ended(_)) {
            std::thread::yield_now();
        }
        full.store(false, Ordering::Release);
        // A hole is worse than an end.
        log.push(all[2].clone()).unwrap();
        let (writer, resumed) = LogWriter::resume_on(disk(), LogOptions::default()).unwrap();
        assert!(resumed.torn.is_none());
        assert_eq!(writer.end_position().sequence, 1);
        log.begin(Box::new(move || Ok(Some(writer)))).unwrap();
        log.push(all[1].clone()).unwrap();
        let writer = log.into_writer().unwrap().unwrap();
        assert_eq!(writer.end_position().sequence, 2);
        assert_eq!(read(folder.path()), all[..2]);
    }

    #[test]
    fn another_log_takes_the_place_of_the_first() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let log = BackgroundLog::start(None, Durability::Written).unwrap();
        let all = batches(6);
        // Without a log they are dropped.
        log.push(all[3].clone()).unwrap();
        for (path, range) in [(one.path(), 0..2), (two.path(), 0..6)] {
            let path = path.to_owned();
            let begin = move || LogWriter::create(&path, header(), LogOptions::default()).map(Some);
            log.begin(Box::new(begin)).unwrap();
            for batch in &all[range] {
                log.push(batch.clone()).unwrap();
            }
        }
        let writer = log.into_writer().unwrap().unwrap();
        assert_eq!(writer.end_position().sequence, 6);
        assert_eq!(read(one.path()), all[..2]);
        assert_eq!(read(two.path()), all);
    }

    #[test]
    fn a_batch_that_does_not_follow_ends_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let (log, _full, _stored) = narrow(folder.path());
        log.push(batches(2).remove(1)).unwrap();
        assert!(matches!(log.finish(), Err(StoreError::NotNext(_))));
    }
}
