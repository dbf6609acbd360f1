//! The log of a live machine, written on a thread of its own.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use anyhow::{Context, Result};
use log_format::{ChainHash, Position};
use primary::{Batcher, Recorded};
use store::LogWriter;

/// Recorded stretches that wait for the disk before the machine waits for them.
const WAITING_STRETCHES: usize = 1024;
/// A batch is closed at this size, or when its oldest stretch is this old.
const BATCH_BYTES: u64 = 64 << 10;
const BATCH_AGE_NS: u64 = 500_000_000;

/// A log with the place where it begins.
pub struct NewLog {
    /// Writes it.
    pub writer: LogWriter,
    /// The place before its first batch.
    pub position: Position,
    /// The chain hash there.
    pub chain: ChainHash,
    /// Outputs made before it, since boot.
    pub outputs_before: u64,
}

/// Writes the log on a thread of its own.
pub struct Recording {
    stretches: SyncSender<Recorded>,
    writer: std::thread::JoinHandle<Result<u64>>,
}

impl Recording {
    /// Begins to write.
    pub fn start(log: NewLog) -> Result<Recording> {
        let (stretches, received) = sync_channel(WAITING_STRETCHES);
        let thread = std::thread::Builder::new().name("log".into());
        let writer = thread.spawn(move || write_log(log, &received))?;
        Ok(Recording { stretches, writer })
    }

    /// Hands a stretch over.
    pub fn push(&self, recorded: Recorded) -> Result<()> {
        // The writer ends early only with an error, which `finish` gives.
        self.stretches.send(recorded).ok().context("the log could not be written")
    }

    /// Waits until all is on disk. Bytes of the log.
    pub fn finish(self) -> Result<u64> {
        drop(self.stretches);
        self.writer.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the log's writer failed")))
    }
}

fn write_log(log: NewLog, stretches: &Receiver<Recorded>) -> Result<u64> {
    let NewLog { mut writer, position, chain, outputs_before } = log;
    let epoch = Instant::now();
    let mut batcher = Batcher::new(position, chain, outputs_before);
    let mut bytes = 0;
    let mut seal = |batcher: &mut Batcher, writer: &mut LogWriter| -> Result<()> {
        let batch = batcher.seal(batcher.outputs());
        bytes += batch.bytes().len() as u64;
        Ok(writer.append(&batch)?)
    };
    while let Ok(recorded) = stretches.recv() {
        let now_ns = epoch.elapsed().as_nanos() as u64;
        batcher.push(recorded, now_ns);
        let old =
            batcher.opened_at_ns().is_some_and(|opened_ns| now_ns.saturating_sub(opened_ns) >= BATCH_AGE_NS);
        if batcher.open_bytes() >= BATCH_BYTES || old {
            seal(&mut batcher, &mut writer)?;
        }
    }
    if !batcher.is_empty() {
        seal(&mut batcher, &mut writer)?;
    }
    writer.finish()?;
    Ok(bytes)
}
