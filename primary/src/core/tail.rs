//! The newest part of the log, in memory.

use std::collections::VecDeque;

use log_format::{ChainHash, Position, SealedBatch};

/// Keeps the newest batches, so that a backup which was away can go on from what it has.
#[derive(Debug)]
pub(super) struct Tail {
    /// The place before the oldest batch kept.
    start: Position,
    start_chain: ChainHash,
    start_outputs: u64,
    kept: VecDeque<Kept>,
    /// Bytes of all batches ever pushed, and of those forgotten.
    pushed_bytes: u64,
    forgotten_bytes: u64,
}

#[derive(Debug)]
struct Kept {
    batch: SealedBatch,
    /// Bytes of all batches up to and with this one.
    bytes_to_end: u64,
}

impl Tail {
    /// An empty tail at this place, before which lie this many outputs.
    pub(super) fn new(start: Position, start_chain: ChainHash, start_outputs: u64) -> Self {
        Tail { start, start_chain, start_outputs, kept: VecDeque::new(), pushed_bytes: 0, forgotten_bytes: 0 }
    }

    /// Adds the next batch, and forgets old ones beyond `max_bytes`, but none after
    /// `keep_after_sequence`.
    pub(super) fn push(&mut self, batch: SealedBatch, max_bytes: u64, keep_after_sequence: u64) {
        self.pushed_bytes += batch.bytes().len() as u64;
        self.kept.push_back(Kept { batch, bytes_to_end: self.pushed_bytes });
        while self.pushed_bytes - self.forgotten_bytes > max_bytes
            && self.kept.front().is_some_and(|oldest| oldest.batch.sequence <= keep_after_sequence)
            && let Some(oldest) = self.kept.pop_front()
        {
            self.forgotten_bytes = oldest.bytes_to_end;
            self.start = oldest.batch.end_position();
            self.start_chain = oldest.batch.chain();
            self.start_outputs = oldest.batch.outputs_after();
        }
    }

    /// Number of the newest batch.
    pub(super) fn last_sequence(&self) -> u64 {
        self.start.sequence + self.kept.len() as u64
    }

    /// The place before the oldest batch kept, and the chain hash there.
    pub(super) fn start(&self) -> (Position, ChainHash) {
        (self.start, self.start_chain)
    }

    /// Whether the log had this chain hash after this many batches, as far as is remembered.
    pub(super) fn knows(&self, sequence: u64, chain: ChainHash) -> bool {
        match sequence == self.start.sequence {
            true => chain == self.start_chain,
            false => self.numbered(sequence).is_some_and(|kept| kept.batch.chain() == chain),
        }
    }

    /// The batches after this many.
    pub(super) fn after(&self, sequence: u64) -> impl Iterator<Item = &SealedBatch> {
        let skipped = sequence.saturating_sub(self.start.sequence);
        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
        self.kept.iter().skip(skipped).map(|kept| &kept.batch)
    }

    /// Outputs since boot up to a place that is remembered.
    pub(super) fn outputs_after(&self, sequence: u64) -> Option<u64> {
        match sequence == self.start.sequence {
            true => Some(self.start_outputs),
            false => self.numbered(sequence).map(|kept| kept.batch.outputs_after()),
        }
    }

    /// Bytes of the batches after this many, as far as they are kept.
    pub(super) fn bytes_after(&self, sequence: u64) -> u64 {
        let before = self.numbered(sequence).map_or(self.forgotten_bytes, |kept| kept.bytes_to_end);
        match sequence >= self.last_sequence() {
            true => 0,
            false => self.pushed_bytes - before,
        }
    }

    /// Bytes of all batches ever pushed.
    pub(super) fn pushed_bytes(&self) -> u64 {
        self.pushed_bytes
    }

    fn numbered(&self, sequence: u64) -> Option<&Kept> {
        let index = sequence.checked_sub(self.start.sequence + 1)?;
        self.kept.get(usize::try_from(index).ok()?)
    }
}
