//! A log that is written on a thread of its own.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use log_format::SealedBatch;

use crate::disk::Directory;
use crate::error::StoreError;
use crate::writer::LogWriter;

/// Batches that wait for the disk before [`BackgroundLog::push`] waits too.
const WAITING_BATCHES: usize = 4096;

/// Appends to a log without keeping the caller waiting, as long as the disk keeps up.
///
/// # Order of calls
///
/// `push` in the log's order, then `finish`.
pub struct BackgroundLog {
    batches: SyncSender<SealedBatch>,
    thread: JoinHandle<Result<(), StoreError>>,
}

/// The log's thread ended with an error, which [`BackgroundLog::finish`] gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the log could not be written")]
pub struct LogEnded;

impl BackgroundLog {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the operating system has no thread to give.
    pub fn start(mut writer: LogWriter<Directory>) -> io::Result<BackgroundLog> {
        let (batches, waiting) = sync_channel::<SealedBatch>(WAITING_BATCHES);
        let thread = std::thread::Builder::new().name("log".into()).spawn(move || {
            while let Ok(batch) = waiting.recv() {
                writer.append(&batch)?;
            }
            writer.finish()
        })?;
        Ok(BackgroundLog { batches, thread })
    }

    /// Hands the next batch over.
    ///
    /// # Errors
    /// When an earlier one could not be written.
    pub fn push(&self, batch: SealedBatch) -> Result<(), LogEnded> {
        self.batches.send(batch).map_err(|_| LogEnded)
    }

    /// Waits until all is on disk, and closes the log.
    ///
    /// # Errors
    /// What went wrong with the first batch that could not be written.
    pub fn finish(self) -> Result<(), StoreError> {
        drop(self.batches);
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}
