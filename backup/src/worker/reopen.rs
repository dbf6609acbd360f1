//! A log on disk replayed from its base: batches, and the increments that a standing backup kept.
//!
//! ```text
//!   batch up to the base of the next increment: replayed
//!   batch after it: kept aside ---- increment ----> dropped where it covers them, replayed where not
//! ```
//!
//! An increment holds what was written since its base, and its pages may be packed against what they
//! held there: so the machine must stand there, and nowhere else, when it is put into place.

use std::collections::VecDeque;

use log_format::{CheckpointStart, LogEntry, LoggedOutput, SealedBatch};
use machine::Machine;

use super::increment::apply;
use crate::replayer::{Counted, Divergence, Progress, Replayer};

/// Number of batches up to what an increment builds on, and up to where it leads.
pub type Skipped = (u64, u64);

/// Replays a log.
///
/// # Order of calls
///
/// For each entry of the log `push`, then `step` until all is replayed. At the end of the log the
/// machine stands at the end of all that was pushed.
pub struct LogReplay<M> {
    replayer: Replayer<M>,
    /// The increments that come, in their order.
    ahead: VecDeque<Skipped>,
    /// Batches after the base of the next increment.
    aside: VecDeque<SealedBatch>,
    unreleased: Vec<LoggedOutput>,
    released_before: u64,
}

impl<M: Machine> LogReplay<M> {
    /// Replays with this machine, which stands where the log begins: at `start`, or at the boot.
    /// `increments` are those of the log that are to be put into place, in their order; what others
    /// cover is executed.
    pub fn new(
        replayer: Replayer<M>,
        start: Option<&CheckpointStart>,
        increments: impl IntoIterator<Item = Skipped>,
    ) -> LogReplay<M> {
        let here = replayer.pushed_sequence();
        LogReplay {
            ahead: increments.into_iter().filter(|(_, to)| *to > here).collect(),
            replayer,
            aside: VecDeque::new(),
            unreleased: start.map_or(Vec::new(), |start| start.held.clone()),
            released_before: start.map_or(0, |start| start.released_outputs),
        }
    }

    /// Takes the next entry of the log. All before is replayed.
    ///
    /// # Errors
    /// When it is an increment that does not lead to the state that it should.
    pub fn push(&mut self, entry: LogEntry) -> Result<(), Divergence> {
        let here = self.replayer.pushed_sequence();
        match entry {
            // What lies before the base may be there still.
            entry if entry.sequence() <= here => {}
            LogEntry::Batch(batch) => match self.ahead.front() {
                Some((base, _)) if batch.sequence > *base => self.aside.push_back(batch),
                _ => self.replay(&batch),
            },
            LogEntry::Increment(whole) => {
                let to = whole.sequence();
                if self.ahead.front() != Some(&(whole.start.base, to)) {
                    return Ok(());
                }
                let taken = self.replayer.take_outputs();
                self.unreleased.extend(taken);
                apply(&mut self.replayer, &whole)?;
                self.unreleased.clone_from(&whole.start.held);
                self.drop_released(whole.start.released_outputs);
                self.ahead.pop_front();
                while self.aside.pop_front_if(|batch| batch.sequence <= to).is_some() {}
                let next_base = self.ahead.front().map_or(u64::MAX, |(base, _)| *base);
                while let Some(batch) = self.aside.pop_front_if(|batch| batch.sequence <= next_base) {
                    self.replay(&batch);
                }
            }
        }
        Ok(())
    }

    /// Replays about `budget` instructions of what was pushed.
    ///
    /// # Errors
    /// When the machine does not do what was recorded.
    pub fn step(&mut self, budget: u64) -> Result<Progress, Divergence> {
        let stepped = self.replayer.step(budget);
        let taken = self.replayer.take_outputs();
        self.unreleased.extend(taken);
        self.drop_released(0);
        stepped
    }

    /// Outputs that may not have been released, and how many were before them since boot.
    pub fn unreleased(&self) -> (&[LoggedOutput], u64) {
        (&self.unreleased, self.released_before)
    }

    /// Number of batches up to where the machine stands, or will when all that was pushed is replayed.
    pub fn sequence(&self) -> u64 {
        self.replayer.pushed_sequence()
    }

    /// Events and outputs up to where the machine stands.
    pub fn replayed(&self) -> Counted {
        self.replayer.replayed()
    }

    /// The replayer: who steps it and takes its outputs there does without [`LogReplay::unreleased`].
    pub fn replayer_mut(&mut self) -> &mut Replayer<M> {
        &mut self.replayer
    }

    /// The replayer, at the end of the log.
    pub fn into_replayer(self) -> Replayer<M> {
        self.replayer
    }

    fn replay(&mut self, batch: &SealedBatch) {
        self.replayer.push_batch(batch);
        self.drop_released(batch.released_outputs);
    }

    fn drop_released(&mut self, released: u64) {
        self.released_before = self.released_before.max(released);
        let before = self.released_before;
        self.unreleased.retain(|output| output.ordinal >= before);
    }
}
