//! What the replay thread does between two waits: the same for a real thread and for the
//! simulator.
//!
//! ```text
//!            Boot                             Discard
//!   empty --------------------> following ------------> empty
//!     |                             ^   |
//!     | RestoreBegin   RestoreEnd   |   | the machine does not do what was recorded
//!     +-----------> restoring ------+   v
//!                                    diverged (kept for diagnosis until Discard)
//! ```

use std::collections::VecDeque;

use log_format::{CheckpointPart, CheckpointStart, Digest, LoggedOutput, Moment, SealedBatch};
use machine::Machine;

use crate::replayer::{Counted, Divergence, Progress, Replayer};

/// What the core wants of the replay thread, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToReplayer {
    /// Begin with a machine at its boot.
    Boot {
        /// Which machine: answers carry it.
        generation: u64,
    },
    /// Begin with a machine from a checkpoint.
    RestoreBegin {
        /// Which machine: answers carry it.
        generation: u64,
        /// The checkpoint's head.
        start: Box<CheckpointStart>,
    },
    /// Pages and blocks of the checkpoint.
    RestorePart(CheckpointPart),
    /// The checkpoint is whole.
    RestoreEnd,
    /// The next batch of the log.
    Batch(SealedBatch),
    /// No event that is not in a batch so far lies before this moment.
    Mark(Moment),
    /// Replay to the end of what is known, and stop there.
    Finish,
    /// Give the machine up.
    Discard,
}

/// What the replay thread tells the core, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FromReplayer {
    /// Which machine it is about.
    pub generation: u64,
    /// What.
    pub report: ReplayReport,
}

/// See [`FromReplayer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayReport {
    /// The checkpoint is in place, and its digest is right.
    Restored,
    /// The checkpoint cannot be used.
    RestoreFailed {
        /// Why, and the way out.
        text: String,
    },
    /// The replay went on.
    Progress {
        /// How far.
        progress: Progress,
        /// What the machine sent meanwhile.
        outputs: Vec<LoggedOutput>,
    },
    /// The machine does not do what was recorded.
    Diverged(Divergence),
    /// Everything known is replayed, as [`ToReplayer::Finish`] asked.
    Finished {
        /// Where the machine stands.
        moment: Moment,
        /// What lies before, since boot.
        counted: Counted,
        /// Exit status of the guest, when it has ended.
        halted: Option<u32>,
    },
}

/// A machine that follows, however it came to be.
///
/// # Order of calls
///
/// `handle` for each command that came, `turn` while it says that there is more to do, then
/// `poll` until `None`.
pub struct ReplayWorker<M, F> {
    new_machine: F,
    generation: u64,
    state: State<M>,
    finishing: bool,
    told: VecDeque<FromReplayer>,
}

// There is one worker per process: the size of its variants is of no concern.
#[allow(clippy::large_enum_variant)]
enum State<M> {
    Empty,
    Restoring { machine: M, start: Box<CheckpointStart>, waiting: Vec<SealedBatch> },
    Following(Replayer<M>),
    Diverged(M),
}

impl<M: Machine, F: FnMut() -> M> ReplayWorker<M, F> {
    /// A worker without a machine. `new_machine` makes one as it is at its boot.
    pub fn new(new_machine: F) -> Self {
        ReplayWorker {
            new_machine,
            generation: 0,
            state: State::Empty,
            finishing: false,
            told: VecDeque::new(),
        }
    }

    /// The core wants something.
    pub fn handle(&mut self, command: ToReplayer) {
        match command {
            ToReplayer::Boot { generation } => {
                self.begin(generation);
                let machine = (self.new_machine)();
                self.state = State::Following(Replayer::new(machine, 0, Counted::default()));
            }
            ToReplayer::RestoreBegin { generation, start } => {
                self.begin(generation);
                self.restore_begin(start);
            }
            ToReplayer::RestorePart(part) => {
                if let State::Restoring { machine, .. } = &mut self.state
                    && let Err(error) = machine.restore_part(&part)
                {
                    self.fail_restore(error.to_string());
                }
            }
            ToReplayer::RestoreEnd => self.restore_end(),
            ToReplayer::Batch(batch) => match &mut self.state {
                State::Following(replayer) => replayer.push_batch(&batch),
                State::Restoring { waiting, .. } => waiting.push(batch),
                State::Empty | State::Diverged(_) => {}
            },
            ToReplayer::Mark(moment) => {
                if let State::Following(replayer) = &mut self.state {
                    replayer.push_mark(moment);
                }
            }
            ToReplayer::Finish => self.finishing = true,
            ToReplayer::Discard => self.begin(self.generation),
        }
    }

    /// Replays about `budget` instructions. Whether there is more to replay.
    pub fn turn(&mut self, budget: u64) -> bool {
        let State::Following(replayer) = &mut self.state else { return false };
        let result = replayer.step(budget);
        let outputs = replayer.take_outputs();
        match result {
            Ok(progress) => {
                self.tell(ReplayReport::Progress { progress, outputs });
                if progress.caught_up && std::mem::take(&mut self.finishing) {
                    self.tell_finished();
                }
                !progress.caught_up
            }
            Err(divergence) => {
                self.tell(ReplayReport::Diverged(divergence));
                let before = std::mem::replace(&mut self.state, State::Empty);
                if let State::Following(replayer) = before {
                    self.state = State::Diverged(replayer.into_machine());
                }
                false
            }
        }
    }

    /// What the core has to know next.
    pub fn poll(&mut self) -> Option<FromReplayer> {
        self.told.pop_front()
    }

    /// The machine whose state diverged, for diagnosis.
    pub fn diverged_machine(&mut self) -> Option<&mut M> {
        match &mut self.state {
            State::Diverged(machine) => Some(machine),
            _ => None,
        }
    }

    /// Where the machine stands, if there is one that follows.
    pub fn moment(&self) -> Option<Moment> {
        match &self.state {
            State::Following(replayer) => Some(replayer.moment()),
            _ => None,
        }
    }

    /// Gives the machine away, to go live.
    pub fn into_machine(self) -> Option<M> {
        match self.state {
            State::Following(replayer) => Some(replayer.into_machine()),
            _ => None,
        }
    }

    /// Drops the machine before another takes its memory.
    fn begin(&mut self, generation: u64) {
        self.state = State::Empty;
        self.finishing = false;
        self.generation = generation;
    }

    fn restore_begin(&mut self, start: Box<CheckpointStart>) {
        let mut machine = (self.new_machine)();
        match machine.restore_begin(&start.head) {
            Ok(()) => self.state = State::Restoring { machine, start, waiting: Vec::new() },
            Err(error) => self.fail_restore(error.to_string()),
        }
    }

    fn restore_end(&mut self) {
        let (mut machine, start, waiting) = match std::mem::replace(&mut self.state, State::Empty) {
            State::Restoring { machine, start, waiting } => (machine, start, waiting),
            other => {
                self.state = other;
                return;
            }
        };
        let found = machine.digest();
        let Digest(expected) = start.head.digest;
        if found.0 != expected {
            let text = format!(
                "the checkpoint's state has digest {found}, expected {}; take a new checkpoint",
                start.head.digest
            );
            return self.fail_restore(text);
        }
        let counted = Counted { events: start.events_before, outputs: start.head.outputs_before };
        let mut replayer = Replayer::new(machine, start.position.sequence, counted);
        waiting.iter().for_each(|batch| replayer.push_batch(batch));
        self.state = State::Following(replayer);
        self.tell(ReplayReport::Restored);
    }

    fn fail_restore(&mut self, text: String) {
        self.state = State::Empty;
        self.tell(ReplayReport::RestoreFailed { text });
    }

    fn tell_finished(&mut self) {
        let State::Following(replayer) = &mut self.state else { return };
        let halted = replayer.halted();
        let (moment, counted) = (replayer.moment(), replayer.replayed());
        self.tell(ReplayReport::Finished { moment, counted, halted });
    }

    fn tell(&mut self, report: ReplayReport) {
        self.told.push_back(FromReplayer { generation: self.generation, report });
    }
}
