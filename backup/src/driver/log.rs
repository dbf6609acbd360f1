//! The log on a backup's disk. A new one begins with each machine that is followed: at its boot,
//! or with the checkpoint that it came from, which is kept beside the log.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};

use log_format::{CheckpointStart, LogEntry};
use store::{BackgroundLog, Durability, LogEnded, LogFolder, LogHealth, LogWriter, StoreError};

use crate::worker::ToReplayer;

/// The state of a machine that was just restored is to be kept: the log begins with it.
#[derive(Debug)]
pub struct KeepStart {
    /// The place in the log.
    pub start: Box<CheckpointStart>,
    /// Where to write it.
    pub path: PathBuf,
    /// Told when it is there. Dropped when it will never be.
    pub done: SyncSender<()>,
}

/// See the module.
pub struct Log {
    folder: LogFolder,
    durable: bool,
    log: BackgroundLog,
}

impl Log {
    /// Starts the thread that writes. With [`Durability::Synced`] nothing is acknowledged that is
    /// not in the log, which the folder then says of it.
    ///
    /// # Errors
    /// When the operating system has no thread to give.
    pub fn start(folder: LogFolder, durability: Durability) -> io::Result<Log> {
        let durable = matches!(durability, Durability::Synced(_));
        Ok(Log { folder, durable, log: BackgroundLog::start(None, durability)? })
    }

    /// Looks at a command on its way to the replay thread: a machine that begins, begins a log. Gives
    /// what that thread has to do for it.
    pub fn follow(&self, command: &ToReplayer, term: u64) -> Option<KeepStart> {
        let folder = self.folder.clone();
        // An error of the log's thread shows at the next batch.
        match command {
            ToReplayer::Boot { .. } => {
                let _ = self.log.begin(Box::new(move || folder.begin_at_boot(term).map(Some)));
                None
            }
            ToReplayer::RestoreBegin { start, .. } => {
                let (done, is_done) = sync_channel(1);
                let keep = KeepStart { start: start.clone(), path: folder.new_start_path(), done };
                let start = start.clone();
                let begin = move || match is_done.recv() {
                    Ok(()) => folder.begin_at(&start).map(Some),
                    // The checkpoint was given up: so are the batches after it.
                    Err(_) => Ok(None),
                };
                let _ = self.log.begin(Box::new(begin));
                Some(keep)
            }
            _ => None,
        }
    }

    /// This side is in step in `term`: the log holds all that it ever acknowledged, and says so from now
    /// on.
    pub fn note_in_step(&self, term: u64) {
        if self.durable {
            let path = self.folder.path().to_owned();
            // An error of the log's thread shows at the next batch.
            let _ = self.log.after(Box::new(move || LogFolder::promise_durable(&path, term)));
        }
    }

    /// Appends the next batch or increment.
    ///
    /// # Errors
    /// When an earlier one could not be written, and acknowledgements wait for it.
    pub fn push(&self, entry: LogEntry) -> Result<(), LogEnded> {
        self.log.push(entry)
    }

    /// How it is doing.
    pub fn health(&self) -> LogHealth {
        self.log.health()
    }

    /// Waits until all is written, and gives the log back.
    ///
    /// # Errors
    /// What went wrong with the first batch that could not be written.
    pub fn end(self) -> Result<Option<LogWriter>, StoreError> {
        self.log.into_writer()
    }
}
