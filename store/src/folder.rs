//! The folder in which an agent keeps its log, life after life of the machine it follows or runs.
//!
//! ```text
//!   00000000000000000001.log ...   the log; its first segment may begin anywhere in the machine's life
//!   start.checkpoint               the state at which it begins, where that is not the boot
//!   durable                        a number: in this term the node said nothing that this log lacks
//!   previous/                      the log before this one, until the next one begins
//! ```

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use log_format::{CheckpointStart, MachineIdentity, SegmentHeader};

use crate::error::StoreError;
use crate::writer::{LogOptions, LogWriter};

const START_FILE: &str = "start.checkpoint";
const START_NEW_FILE: &str = "start.checkpoint.new";
const DURABLE_FILE: &str = "durable";
const DURABLE_NEW_FILE: &str = "durable.new";
const PREVIOUS_FOLDER: &str = "previous";

/// Where an agent's log is, and what it is of.
#[derive(Debug, Clone)]
pub struct LogFolder {
    path: PathBuf,
    vm: String,
    identity: MachineIdentity,
    /// What the command line needs to build the machine again.
    boot: Bytes,
}

impl LogFolder {
    /// The folder `path` for the log of this machine. Nothing is looked at yet.
    pub fn new(path: &Path, vm: &str, identity: MachineIdentity, boot: Bytes) -> LogFolder {
        LogFolder { path: path.to_owned(), vm: vm.to_owned(), identity, boot }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the state is with which a log begins that does not begin at the boot.
    pub fn start_path(folder: &Path) -> PathBuf {
        folder.join(START_FILE)
    }

    /// Where that state is to be written before [`LogFolder::begin_at`].
    pub fn new_start_path(&self) -> PathBuf {
        self.path.join(START_NEW_FILE)
    }

    /// Begins a log at the boot of the machine, in this term. The log that was there is kept as
    /// the previous one.
    ///
    /// # Errors
    /// [`StoreError::Locked`] and what the disk says.
    pub fn begin_at_boot(&self, term: u64) -> Result<LogWriter, StoreError> {
        self.retire()?;
        let header = SegmentHeader::at_boot(self.vm.clone(), self.identity.clone(), term, self.boot.clone());
        LogWriter::create(&self.path, header, LogOptions::default())
    }

    /// Begins a log after `start`, whose whole state is in [`LogFolder::new_start_path`]. The log
    /// that was there is kept as the previous one.
    ///
    /// # Errors
    /// As [`LogFolder::begin_at_boot`].
    pub fn begin_at(&self, start: &CheckpointStart) -> Result<LogWriter, StoreError> {
        self.retire()?;
        let path = self.new_start_path();
        std::fs::rename(&path, LogFolder::start_path(&self.path))
            .map_err(|error| StoreError::io("rename", &path, error))?;
        let header = SegmentHeader {
            position: start.position,
            chain: start.chain,
            log_start: start.position.sequence,
            vm: self.vm.clone(),
            identity: self.identity.clone(),
            boot: self.boot.clone(),
        };
        LogWriter::create(&self.path, header, LogOptions::default())
    }

    /// The last term in which this node acknowledged and released nothing that the log lacks.
    pub fn durable_term(folder: &Path) -> Option<u64> {
        std::fs::read_to_string(folder.join(DURABLE_FILE)).ok()?.trim().parse().ok()
    }

    /// Says that from now on, in this term, nothing is acknowledged nor released that the log lacks.
    /// Survives the loss of power when it returns.
    ///
    /// # Errors
    /// What the disk says.
    pub fn promise_durable(folder: &Path, term: u64) -> Result<(), StoreError> {
        let path = folder.join(DURABLE_NEW_FILE);
        let written = std::fs::File::create(&path).and_then(|mut file| {
            writeln!(file, "{term}")?;
            file.sync_all()?;
            std::fs::rename(&path, folder.join(DURABLE_FILE))?;
            std::fs::File::open(folder)?.sync_all()
        });
        written.map_err(|error| StoreError::io("write to", &path, error))
    }

    /// Takes that word back.
    ///
    /// # Errors
    /// What the disk says.
    pub fn promise_nothing(folder: &Path) -> Result<(), StoreError> {
        let path = folder.join(DURABLE_FILE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", &path, error))
            }
            _ => Ok(()),
        }
    }

    /// Moves the log that is there out of the way. What it promised goes with it, before anything else.
    fn retire(&self) -> Result<(), StoreError> {
        let in_folder = |error| StoreError::io("put aside the log in", &self.path, error);
        std::fs::create_dir_all(&self.path)
            .map_err(|error| StoreError::io("make directory", &self.path, error))?;
        let names = crate::disk::names_in(&self.path).map_err(in_folder)?;
        let of_log = |name: &&String| name.ends_with(".log") || **name == START_FILE;
        if !names.iter().any(|name| of_log(&name)) {
            return LogFolder::promise_nothing(&self.path);
        }
        // Whoever writes to it goes on doing so otherwise, into the folder of the previous one.
        drop(crate::writer::lock(&self.path)?);
        LogFolder::promise_nothing(&self.path)?;
        let previous = self.path.join(PREVIOUS_FOLDER);
        match std::fs::remove_dir_all(&previous) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(in_folder(error)),
            _ => {}
        }
        std::fs::create_dir(&previous).map_err(in_folder)?;
        for name in names.iter().filter(of_log) {
            std::fs::rename(self.path.join(name), previous.join(name)).map_err(in_folder)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LogReader, write_start};
    use log_format::{ChainHash, CheckpointHead, CheckpointPart, Digest, Moment, Position};

    fn identity() -> MachineIdentity {
        MachineIdentity { semantics: 1, config: [1; 32], boot_images: [2; 32], disks: vec![] }
    }

    fn start(sequence: u64) -> CheckpointStart {
        let moment = Moment { icount: 500, time_ns: 600 };
        CheckpointStart {
            position: Position { term: 3, moment, sequence },
            chain: ChainHash([7; 16]),
            events_before: 9,
            released_outputs: 0,
            held: Vec::new(),
            head: CheckpointHead {
                identity: identity(),
                moment,
                outputs_before: 0,
                ram_bytes: 4096,
                digest: Digest::default(),
                state: Bytes::new(),
            },
        }
    }

    #[test]
    fn a_log_takes_the_place_of_another_which_is_kept_and_promises_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let folder = LogFolder::new(&parent.path().join("log"), "vm", identity(), Bytes::new());
        let first = folder.begin_at_boot(1).unwrap();
        assert_eq!(LogFolder::durable_term(folder.path()), None);
        LogFolder::promise_durable(folder.path(), 1).unwrap();
        LogFolder::promise_durable(folder.path(), 2).unwrap();
        assert_eq!(LogFolder::durable_term(folder.path()), Some(2));
        assert!(matches!(folder.begin_at_boot(3), Err(StoreError::Locked { .. })), "it is written to");
        assert_eq!(LogFolder::durable_term(folder.path()), Some(2));
        drop(first);

        write_start(&folder.new_start_path(), start(40), CheckpointPart::default).unwrap();
        let second = folder.begin_at(&start(40)).unwrap();
        assert_eq!(LogFolder::durable_term(folder.path()), None, "it was said of the log before");
        assert_eq!(second.end_position(), start(40).position);
        second.finish().unwrap();
        let reader = LogReader::open(folder.path()).unwrap();
        assert_eq!((reader.header().log_start, LogReader::chain(&reader)), (40, ChainHash([7; 16])));
        assert!(LogFolder::start_path(folder.path()).exists());
        assert_eq!(LogReader::open(&folder.path().join("previous")).unwrap().header().log_start, 0);

        folder.begin_at_boot(4).unwrap().finish().unwrap();
        assert!(!LogFolder::start_path(folder.path()).exists());
        let previous = folder.path().join("previous");
        assert_eq!(LogReader::open(&previous).unwrap().header().log_start, 40);
        assert!(LogFolder::start_path(&previous).exists());
    }

    #[test]
    fn a_log_without_its_state_is_not_begun() {
        let parent = tempfile::tempdir().unwrap();
        let folder = LogFolder::new(parent.path(), "vm", identity(), Bytes::new());
        assert!(folder.begin_at(&start(40)).is_err());
        assert!(matches!(LogReader::open(folder.path()), Err(StoreError::NoLog { .. })));
    }
}
