//! Cuts recorded execution into batches, and the batches into a chain.

use log_format::{Batch, ChainHash, Event, LoggedEvent, LoggedOutput, Moment, Position, SealedBatch};

use crate::recorder::Recorded;

/// Estimated bytes of a logged event beyond its payload.
const EVENT_BYTES: u64 = 12;
/// Estimated bytes of a logged digest.
const DIGEST_BYTES: u64 = 32;
/// Bytes of an output's hash.
const HASH_BYTES: u64 = 4;

/// Gathers what was recorded and seals it into batches, each tied to the one before.
///
/// Order of calls: `push` in the order of recording, `seal` whenever a batch is due.
#[derive(Debug)]
pub struct Batcher {
    open: Batch,
    chain: ChainHash,
    open_bytes: u64,
    opened_at_ns: Option<u64>,
}

impl Batcher {
    /// Continues the log after `from`, where its chain hash is `chain` and the machine has made
    /// `outputs_before` outputs since boot. Batches carry `from.term`.
    pub fn new(from: Position, chain: ChainHash, outputs_before: u64) -> Self {
        let open = Batch {
            term: from.term,
            sequence: from.sequence + 1,
            end: from.moment,
            first_output: outputs_before,
            ..Batch::default()
        };
        Batcher { open, chain, open_bytes: 0, opened_at_ns: None }
    }

    /// Adds a stretch of execution. Of its outputs, the hashes are kept: they are given back.
    pub fn push(&mut self, recorded: Recorded, now_ns: u64) -> Vec<LoggedOutput> {
        let Recorded { events, digests, outputs, end, busy_ns: _ } = recorded;
        let payload_bytes: u64 = events.iter().map(event_bytes).sum();
        self.open_bytes +=
            payload_bytes + digests.len() as u64 * DIGEST_BYTES + outputs.len() as u64 * HASH_BYTES;
        if self.open.events.is_empty() {
            self.open.events = events;
        } else {
            self.open.events.extend(events);
        }
        self.open.digests.extend(digests);
        self.open.output_hashes.extend(outputs.iter().map(|logged| logged.output.hash()));
        self.open.end = end;
        if !self.open.is_pure_mark() {
            self.opened_at_ns.get_or_insert(now_ns);
        }
        outputs
    }

    /// Seals what was gathered, also if that is nothing but a mark.
    pub fn seal(&mut self, released_outputs: u64) -> SealedBatch {
        let next = Batch {
            term: self.open.term,
            sequence: self.open.sequence + 1,
            end: self.open.end,
            first_output: self.open.outputs_after(),
            ..Batch::default()
        };
        let mut batch = std::mem::replace(&mut self.open, next);
        batch.released_outputs = released_outputs;
        // The recorder's order and the owner's size limit are our own invariants.
        let sealed = batch.seal(self.chain).expect("recorded batches are in order and small");
        self.chain = sealed.chain();
        self.open_bytes = 0;
        self.opened_at_ns = None;
        sealed
    }

    /// Whether nothing but a mark was gathered.
    pub fn is_empty(&self) -> bool {
        self.open.is_pure_mark()
    }

    /// Whether events or outputs were gathered: digests alone can wait.
    pub fn is_pressing(&self) -> bool {
        !self.open.events.is_empty() || !self.open.output_hashes.is_empty()
    }

    /// Estimated bytes of what was gathered.
    pub fn open_bytes(&self) -> u64 {
        self.open_bytes
    }

    /// When the first item of the open batch came.
    pub fn opened_at_ns(&self) -> Option<u64> {
        self.opened_at_ns
    }

    /// The latest moment before which nothing waits to be sealed.
    pub fn safe_mark(&self) -> Moment {
        let first_event = self.open.events.first().map(|logged| logged.at);
        let first_digest = self.open.digests.first().map(|logged| logged.at);
        [first_event, first_digest].into_iter().flatten().fold(self.open.end, Moment::min)
    }

    /// The place after the last sealed batch, in this term, with the moment of the open one.
    pub fn position(&self) -> Position {
        Position { term: self.open.term, moment: self.open.end, sequence: self.open.sequence - 1 }
    }

    /// Chain hash after the last sealed batch.
    pub fn chain(&self) -> ChainHash {
        self.chain
    }

    /// Outputs since boot, those of the open batch included.
    pub fn outputs(&self) -> u64 {
        self.open.outputs_after()
    }
}

fn event_bytes(logged: &LoggedEvent) -> u64 {
    let payload = match &logged.event {
        Event::NetworkIn { frame, .. } => frame.len(),
        Event::ConsoleIn(bytes) | Event::Entropy(bytes) => bytes.len(),
        Event::ClockAdvance { .. } | Event::WallClock { .. } | Event::Control(_) => 8,
    };
    payload as u64 + EVENT_BYTES
}
