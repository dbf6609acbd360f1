//! A checkpoint for somebody outside, taken while the guest runs: a file, for instance.
//!
//! ```text
//!   begin -> note -> advance -> More ... -> Done
//!                       |  ^
//!                       +--+ Waiting: the taker is behind
//! ```
//!
//! The taker sits on a thread of its own, behind a bounded channel: the machine's thread
//! never waits for it. A taker that goes away ends the snapshot.

use std::sync::mpsc::{SyncSender, TrySendError};

use log_format::{CheckpointHead, CheckpointPart};
use machine::{CheckpointExtent, Machine};

use crate::recorder::{CheckpointBegun, Recorded, Recorder};

/// Pages and blocks taken at once: some 20 us of copying.
const BITE_UNITS: usize = 64;

/// What the taker of a snapshot is given, in this order: begun, parts, an empty part at the end.
#[derive(Debug)]
pub enum Taken {
    /// The machine was frozen, and goes on.
    Begun(Box<Begun>),
    /// Pages and blocks; empty at the end. Without it, the snapshot was given up.
    Part(CheckpointPart),
}

/// A snapshot that was begun.
#[derive(Debug)]
pub struct Begun {
    /// Everything but pages and blocks.
    pub head: CheckpointHead,
    /// Events injected before it, since boot.
    pub events_before: u64,
    /// The host's wall clock then: nanoseconds since 1970-01-01 UTC.
    pub unix_ns: u64,
    /// How long the guest stood still for it.
    pub pause_ns: u64,
}

/// Asks for a snapshot.
#[derive(Debug)]
pub struct SnapshotOrder {
    /// Takes it. Dropping the other end gives it up.
    pub taken: SyncSender<Taken>,
    /// Whether the guest stands still from here on, until it is released or stopped.
    pub hold: bool,
}

/// How far a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advance {
    /// There is more to take.
    More,
    /// There is more, but its taker is behind: try again a little later.
    Waiting,
    /// It is whole, or its taker went away.
    Done,
}

/// A snapshot under way.
pub struct Snapshot {
    taken: SyncSender<Taken>,
    waiting: Option<Taken>,
}

impl Snapshot {
    /// Freezes the present state. No other full checkpoint may be under way.
    pub fn begin<M: Machine>(
        recorder: &mut Recorder<M>,
        order: SnapshotOrder,
        now_ns: u64,
    ) -> (Snapshot, Recorded) {
        let begun = recorder.begin_checkpoint(CheckpointExtent::Full, now_ns);
        let CheckpointBegun { before, events_before, head, .. } = begun;
        let begun = Begun { head, events_before, unix_ns: 0, pause_ns: 0 };
        (Snapshot { taken: order.taken, waiting: Some(Taken::Begun(Box::new(begun))) }, before)
    }

    /// Adds what only the driver knows. Right after [`Snapshot::begin`].
    pub fn note(&mut self, unix_ns: u64, pause_ns: u64) {
        if let Some(Taken::Begun(begun)) = &mut self.waiting {
            (begun.unix_ns, begun.pause_ns) = (unix_ns, pause_ns);
        }
    }

    /// Takes a bite.
    pub fn advance<M: Machine>(&mut self, recorder: &mut Recorder<M>) -> Advance {
        let next = self.waiting.take();
        let next = next.unwrap_or_else(|| {
            Taken::Part(recorder.take_checkpoint_pages(CheckpointExtent::Full, BITE_UNITS))
        });
        let is_last = matches!(&next, Taken::Part(part) if part.is_empty());
        match self.taken.try_send(next) {
            Ok(()) if is_last => Advance::Done,
            Ok(()) => Advance::More,
            Err(TrySendError::Full(next)) => {
                self.waiting = Some(next);
                Advance::Waiting
            }
            Err(TrySendError::Disconnected(_)) => {
                recorder.cancel_checkpoint(CheckpointExtent::Full);
                Advance::Done
            }
        }
    }
}
