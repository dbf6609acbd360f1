//! Writes a log: appends batches, begins new segments, leaves nothing half-done.
//!
//! ```text
//!            create, resume
//!                  |
//!                  v     append, sync
//!                Open ----------------+
//!                 | ^                 |
//!                 | +-----------------+
//!          finish |
//!                 v
//!              Finished
//! ```
//!
//! A failed append leaves the log as it was before; after a failure that cannot be undone
//! (a cut or a sync that fails) every call gives [`StoreError::Broken`].

use std::path::Path;

use log_format::{ChainHash, LogEntry, Position, SealedBatch, SegmentEnd, SegmentHeader, WholeIncrement};

use crate::disk::{Directory, Disk, DiskFile};
use crate::error::StoreError;
use crate::follower::Follower;
use crate::name::segment_name;
use crate::reader::LogReader;

/// Ending of a segment's name while its header is not whole yet.
const NEW_SUFFIX: &str = ".new";

/// How a log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOptions {
    /// A new segment is begun before one would grow past this many bytes.
    pub segment_bytes: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions { segment_bytes: 64 << 20 }
    }
}

/// Writes a log into a directory, which it locks against other writers.
///
/// What was appended survives the death of the process; after [`LogWriter::sync`] it survives
/// the loss of power.
#[derive(Debug)]
pub struct LogWriter<D: Disk = Directory> {
    disk: D,
    options: LogOptions,
    header: SegmentHeader,
    follower: Follower,
    current: Segment<D::File>,
    /// The segment before, with the end that is to be written to it: only when it is sure
    /// that the next one is there, so that a segment that says so is never without it.
    closing: Option<(Segment<D::File>, SegmentEnd)>,
    names_unsynced: bool,
    broken: bool,
}

#[derive(Debug)]
struct Segment<F> {
    name: String,
    file: F,
    bytes: u64,
    batches: u64,
}

/// A write that failed.
struct FailedWrite {
    error: std::io::Error,
    /// Whether nothing of it is left.
    undone: bool,
}

impl<F: DiskFile> Segment<F> {
    /// Writes at the end, all or nothing.
    fn write(&mut self, bytes: &[u8]) -> Result<(), FailedWrite> {
        match self.file.write_all_at(bytes, self.bytes) {
            Ok(()) => {
                self.bytes += bytes.len() as u64;
                Ok(())
            }
            Err(error) => Err(FailedWrite { error, undone: self.file.set_len(self.bytes).is_ok() }),
        }
    }
}

/// What [`LogWriter::resume`] found.
#[derive(Debug)]
pub struct Resumed {
    /// What was wrong with the tail that was cut off, if it was torn.
    pub torn: Option<StoreError>,
    /// Whether its writer had closed it.
    pub was_finished: bool,
    /// The increments in it, in their order: number of batches up to what each builds on, and up to
    /// where it leads. Whoever replays the log goes by them over the batches in between.
    pub increments: Vec<(u64, u64)>,
}

impl LogWriter<Directory> {
    /// Begins a log in a directory, which is made if it is not there.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when there is a log, [`StoreError::Locked`], and what the disk
    /// says. Nothing is left of it then.
    pub fn create(directory: &Path, header: SegmentHeader, options: LogOptions) -> Result<Self, StoreError> {
        let is_new = !directory.exists();
        if is_new {
            std::fs::create_dir_all(directory)
                .map_err(|error| StoreError::io("make directory", directory, error))?;
        }
        let created = lock(directory).and_then(|disk| LogWriter::create_on(disk, header, options));
        if created.is_err() && is_new {
            // Only the empty directory made above can be removed so; the error says more.
            let _ = std::fs::remove_dir(directory);
        }
        created
    }

    /// Goes on with the log in a directory after its last whole batch. A torn tail is cut
    /// off, and the mark that it was finished is taken away.
    ///
    /// # Errors
    /// Any damage but a torn tail: what lies behind it is not thrown away. The directory is
    /// as it was then.
    pub fn resume(directory: &Path, options: LogOptions) -> Result<(Self, Resumed), StoreError> {
        LogWriter::resume_on(lock(directory)?, options)
    }
}

impl<D: Disk> LogWriter<D> {
    /// As [`LogWriter::create`], on a directory that is there and any [`Disk`].
    ///
    /// # Errors
    /// As there.
    pub fn create_on(disk: D, header: SegmentHeader, options: LogOptions) -> Result<Self, StoreError> {
        let path = disk.path();
        let names = disk.names().map_err(|error| StoreError::io("read directory", path, error))?;
        if let Some(found) = names.into_iter().find(|name| name.ends_with(".log")) {
            return Err(StoreError::Exists { path: path.to_owned(), found });
        }
        // Synced, so that not even a loss of power leaves a log without its first header.
        let current = begin_segment(&disk, &header, true)?;
        if let Err(error) = disk.sync_names() {
            // Nothing is in it; the error says more.
            let _ = disk.remove(&current.name);
            return Err(StoreError::write(disk.path(), 0, error));
        }
        Ok(LogWriter {
            follower: Follower::at(&header),
            disk,
            options,
            header,
            current,
            closing: None,
            names_unsynced: false,
            broken: false,
        })
    }

    /// As [`LogWriter::resume`], on any [`Disk`].
    ///
    /// # Errors
    /// As there.
    pub fn resume_on(disk: D, options: LogOptions) -> Result<(Self, Resumed), StoreError> {
        let mut reader = LogReader::open(disk.path())?;
        let mut increments = Vec::new();
        let torn = loop {
            match reader.next_entry() {
                None => break None,
                Some(Ok(LogEntry::Batch(_))) => {}
                Some(Ok(LogEntry::Increment(whole))) => increments.push((whole.start.base, whole.sequence())),
                Some(Err(error)) if error.is_torn_tail() => break Some(error),
                Some(Err(error)) => return Err(error),
            }
        };
        let was_finished = reader.ending() == Some(crate::Ending::Finished);
        let tail = reader.into_tail();
        for name in &tail.later {
            disk.remove(name).map_err(|error| StoreError::io("remove", &disk.path().join(name), error))?;
        }
        let path = disk.path().join(&tail.name);
        let file = disk.open(&tail.name).map_err(|error| StoreError::io("open", &path, error))?;
        file.set_len(tail.end_offset).map_err(|error| StoreError::io("cut", &path, error))?;
        let writer = LogWriter {
            disk,
            options,
            header: tail.header,
            follower: tail.follower,
            current: Segment { name: tail.name, file, bytes: tail.end_offset, batches: tail.batches },
            closing: None,
            names_unsynced: true,
            broken: false,
        };
        Ok((writer, Resumed { torn, was_finished, increments }))
    }

    /// The place after the last batch appended.
    pub fn end_position(&self) -> Position {
        self.follower.end_position()
    }

    /// The chain hash there.
    pub fn chain(&self) -> ChainHash {
        self.follower.chain()
    }

    /// What the log is of.
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Appends the batch that follows.
    ///
    /// # Errors
    /// [`StoreError::NotNext`] when it does not follow, [`StoreError::Full`] and
    /// [`StoreError::Io`]: the log is as it was before, and the batch can be tried again.
    pub fn append(&mut self, batch: &SealedBatch) -> Result<(), StoreError> {
        self.check_usable()?;
        let mut after = self.follower.clone();
        after.accept(batch).map_err(StoreError::NotNext)?;
        self.make_room(batch.bytes().len())?;
        self.write(batch.bytes())?;
        self.current.batches += 1;
        self.follower = after;
        Ok(())
    }

    /// Appends an increment, the whole of it or nothing.
    ///
    /// # Errors
    /// As [`LogWriter::append`].
    pub fn append_increment(&mut self, whole: &WholeIncrement) -> Result<(), StoreError> {
        self.check_usable()?;
        let mut after = self.follower.clone();
        after.accept_increment(&whole.start).map_err(StoreError::NotNext)?;
        let bytes = whole.encode()?;
        self.make_room(bytes.len())?;
        self.write(&bytes)?;
        self.follower = after;
        Ok(())
    }

    /// As [`LogWriter::append`] or [`LogWriter::append_increment`].
    ///
    /// # Errors
    /// As there.
    pub fn append_entry(&mut self, entry: &LogEntry) -> Result<(), StoreError> {
        match entry {
            LogEntry::Batch(batch) => self.append(batch),
            LogEntry::Increment(whole) => self.append_increment(whole),
        }
    }

    /// Begins the next segment where the present one would grow too large. One that goes no further
    /// than it began stays: the next would have its name.
    fn make_room(&mut self, bytes: usize) -> Result<(), StoreError> {
        let grown = self.current.bytes.saturating_add(bytes as u64);
        let is_begun = self.follower.end_position().sequence > self.header.position.sequence;
        if grown > self.options.segment_bytes && is_begun {
            self.rotate()?;
        }
        Ok(())
    }

    /// Makes all that was appended survive the loss of power.
    ///
    /// # Errors
    /// After one, what survives is not known, and the writer takes no more.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        self.check_usable()?;
        let synced = self.sync_all();
        self.broken = synced.is_err();
        synced
    }

    /// Closes the log: syncs, and says that it ends here.
    ///
    /// # Errors
    /// As [`LogWriter::append`] and [`LogWriter::sync`]. After [`StoreError::Full`] all batches
    /// are there, only the end is not marked.
    pub fn finish(mut self) -> Result<(), StoreError> {
        self.sync()?;
        let end = self.segment_end(true).encode()?;
        self.write(&end)?;
        self.current.file.sync().map_err(|error| StoreError::io("sync", self.disk.path(), error))
    }

    /// Begins the next segment.
    fn rotate(&mut self) -> Result<(), StoreError> {
        // Before there is a next one: else a loss of power could leave that, and a hole before it.
        self.sync()?;
        let header = SegmentHeader {
            position: self.follower.end_position(),
            chain: self.follower.chain(),
            ..self.header.clone()
        };
        let next = begin_segment(&self.disk, &header, false)?;
        let end = self.segment_end(false);
        let previous = std::mem::replace(&mut self.current, next);
        self.closing = Some((previous, end));
        self.names_unsynced = true;
        self.header = header;
        Ok(())
    }

    /// Writes at the end of the present segment, all or nothing.
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.current.write(bytes);
        written.map_err(|failed| {
            self.broken = !failed.undone;
            let path = self.disk.path().join(&self.current.name);
            StoreError::write(&path, bytes.len(), failed.error)
        })
    }

    fn sync_all(&mut self) -> Result<(), StoreError> {
        let closing = self.closing.iter().map(|(segment, _)| segment);
        for segment in closing.chain([&self.current]) {
            segment
                .file
                .sync()
                .map_err(|error| StoreError::io("sync", &self.disk.path().join(&segment.name), error))?;
        }
        if self.names_unsynced {
            self.disk.sync_names().map_err(|error| StoreError::io("sync", self.disk.path(), error))?;
            self.names_unsynced = false;
        }
        if let Some((mut segment, end)) = self.closing.take() {
            // Without its end, or with a part of it, a segment is as good: the next one goes
            // on from its last batch.
            let _ = segment.write(&end.encode()?);
        }
        Ok(())
    }

    fn segment_end(&self, last: bool) -> SegmentEnd {
        SegmentEnd {
            position: self.follower.end_position(),
            chain: self.follower.chain(),
            last,
            batches: self.current.batches,
        }
    }

    fn check_usable(&self) -> Result<(), StoreError> {
        if self.broken {
            return Err(StoreError::Broken { path: self.disk.path().to_owned() });
        }
        Ok(())
    }
}

/// Locks a directory against other writers.
pub(crate) fn lock(directory: &Path) -> Result<Directory, StoreError> {
    Directory::lock(directory).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => StoreError::Locked { path: directory.to_owned() },
        _ => StoreError::io("open directory", directory, error),
    })
}

/// Makes a segment that holds its header, all or nothing: the file gets its name when the
/// header is whole, and `synced` if that is asked for.
fn begin_segment<D: Disk>(
    disk: &D,
    header: &SegmentHeader,
    synced: bool,
) -> Result<Segment<D::File>, StoreError> {
    let bytes = header.encode()?;
    let name = segment_name(header.position.sequence.saturating_add(1));
    let new_name = format!("{name}{NEW_SUFFIX}");
    let path = disk.path().join(&name);
    // What a writer left that was killed right here.
    if let Err(error) = disk.remove(&new_name)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(StoreError::io("remove", &path, error));
    }
    let made = disk.create_new(&new_name).and_then(|file| {
        file.write_all_at(&bytes, 0)?;
        if synced {
            file.sync()?;
        }
        disk.rename(&new_name, &name)?;
        Ok(file)
    });
    match made {
        Ok(file) => Ok(Segment { name, file, bytes: bytes.len() as u64, batches: 0 }),
        Err(error) => {
            // It is not a segment as long as it has the other name.
            let _ = disk.remove(&new_name);
            Err(StoreError::write(&path, bytes.len(), error))
        }
    }
}
