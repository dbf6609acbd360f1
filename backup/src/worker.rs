//! What the replay thread does between two waits: the same for a real thread and for the
//! simulator.
//!
//! ```text
//!            Boot                             Discard
//!   empty --------------------> following ------------> empty
//!     |                          ^  |  ^ |
//!     | RestoreBegin  RestoreEnd |  |  | | the machine does not do what was recorded
//!     +-----------> restoring ---+  |  | v
//!                                   |  | diverged (kept for diagnosis until Discard)
//!      Stand, once all before it is |  |       ^
//!      replayed                     v  |       | an increment is not what it should be
//!                               standing ------+
//!                          Increment |^ Follow, Finish
//!                                    +|
//! ```
//!
//! Where it stands, the machine keeps the log after its state, unreplayed. An increment takes it
//! to a later state, all of it or nothing, and the log up to there is dropped.
//!
//! Commands are obeyed in order: what comes after a [`ToReplayer::Stand`] waits until the machine
//! stands, and what comes while a checkpoint is restored waits for its end.

mod hashing;
mod increment;
pub mod reopen;

use std::collections::VecDeque;

use log_format::{
    CheckpointPart, CheckpointStart, Digest, DiskHashes, Donor, LoggedOutput, Moment, Offer, SealedBatch,
    Want, WholeIncrement,
};
use machine::{Kept, Machine};

use crate::replayer::{Counted, Divergence, Progress, Replayer};
use crate::resync::Mentioned;
use hashing::Hashing;

/// What the core wants of the replay thread, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToReplayer {
    /// Begin with a machine at its boot.
    Boot {
        /// Which machine: answers carry it.
        generation: u64,
    },
    /// Say what there is of an earlier state, and keep it for the checkpoint that comes.
    Donate {
        /// Which machine it will be: answers carry it.
        generation: u64,
    },
    /// Begin with a machine from a checkpoint: after [`ToReplayer::Donate`], in place of what
    /// there is.
    RestoreBegin {
        /// Which machine: answers carry it.
        generation: u64,
        /// The checkpoint's head.
        start: Box<CheckpointStart>,
    },
    /// Hashes of pages and blocks of the checkpoint, of which some may be there.
    Offer(Offer),
    /// Pages and blocks of the checkpoint.
    RestorePart(CheckpointPart),
    /// The checkpoint is whole.
    RestoreEnd,
    /// The next batch of the log.
    Batch(SealedBatch),
    /// No event that is not in a batch so far lies before this moment.
    Mark(Moment),
    /// Replay to the end of the batch with this number, which is the newest one, and stand
    /// there. Also where it stands already, at an earlier one.
    Stand {
        /// The batch's number.
        sequence: u64,
    },
    /// Go on from where the machine stands to where this increment leads.
    Increment(Box<WholeIncrement>),
    /// Hash what was written to the disks, where the machine stands.
    HashDisks {
        /// Number of the check: the answers carry it.
        check: u64,
    },
    /// Follow the log from where the machine stands.
    Follow,
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
    /// What there is of an earlier state, as [`ToReplayer::Donate`] asked.
    Donor(Donor),
    /// What of an offer is not there.
    Want(Want),
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
    /// The machine stands after this many batches, as [`ToReplayer::Stand`] asked.
    Standing {
        /// Batches before.
        sequence: u64,
    },
    /// An increment is in place, and its digest is right: the machine stands after this many
    /// batches.
    Applied {
        /// Batches before.
        sequence: u64,
    },
    /// Hashes of the disks, as [`ToReplayer::HashDisks`] asked.
    DiskHashes(DiskHashes),
    /// The machine does not do what was recorded, or an increment does not lead to the state
    /// that it should.
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
    /// The machine of an earlier state: the next one is made of it.
    spare: Option<M>,
    /// The next checkpoint is put over what the spare has.
    is_donating: bool,
    /// Commands that wait for their turn.
    queue: VecDeque<ToReplayer>,
    /// The disks are being hashed, as they were at a place that is past.
    hashing: Option<Hashing>,
    /// To stand at the end of this batch, which is not reached yet.
    stand_at: Option<u64>,
    finishing: bool,
    told: VecDeque<FromReplayer>,
}

// There is one worker per process: the size of its variants is of no concern.
#[allow(clippy::large_enum_variant)]
enum State<M> {
    Empty,
    Restoring(Restoring<M>),
    Following(Replayer<M>),
    Standing(Standing<M>),
    Diverged(M),
}

/// A checkpoint that is put into place.
struct Restoring<M> {
    machine: M,
    start: Box<CheckpointStart>,
    over: Mentioned,
}

/// A machine that stands at the end of a batch, and the log after it.
struct Standing<M> {
    /// Was pushed nothing beyond where it stands.
    replayer: Replayer<M>,
    log: VecDeque<SealedBatch>,
    /// The latest mark, for when the log is followed.
    mark: Option<Moment>,
}

impl<M: Machine, F: FnMut() -> M> ReplayWorker<M, F> {
    /// A worker without a machine. `new_machine` makes one as it is at its boot.
    pub fn new(new_machine: F) -> Self {
        ReplayWorker {
            new_machine,
            generation: 0,
            state: State::Empty,
            spare: None,
            is_donating: false,
            queue: VecDeque::new(),
            hashing: None,
            stand_at: None,
            finishing: false,
            told: VecDeque::new(),
        }
    }

    /// The core wants something.
    pub fn handle(&mut self, command: ToReplayer) {
        match command {
            ToReplayer::Boot { generation } => {
                self.begin(generation);
                let mut machine = self.machine_at_boot();
                machine.revert_disks();
                self.state = State::Following(Replayer::new(machine, 0, Counted::default()));
            }
            ToReplayer::Donate { generation } => {
                self.begin(generation);
                self.donate();
            }
            ToReplayer::RestoreBegin { generation, start } => {
                let is_donating = self.is_donating;
                self.begin(generation);
                self.restore_begin(start, is_donating);
            }
            ToReplayer::Offer(offer) => {
                if let State::Restoring(restoring) = &mut self.state {
                    let want = restoring.over.want(&mut restoring.machine, &offer);
                    self.tell(ReplayReport::Want(want));
                }
            }
            ToReplayer::RestorePart(part) => {
                if let State::Restoring(Restoring { machine, over, .. }) = &mut self.state {
                    over.note(&part);
                    if let Err(error) = machine.restore_part(&part) {
                        self.fail_restore(error.to_string());
                    }
                }
            }
            ToReplayer::RestoreEnd => self.restore_end(),
            ToReplayer::Discard => self.begin(self.generation),
            ToReplayer::Batch(_)
            | ToReplayer::Mark(_)
            | ToReplayer::Stand { .. }
            | ToReplayer::Increment(_)
            | ToReplayer::HashDisks { .. }
            | ToReplayer::Follow
            | ToReplayer::Finish => {
                self.queue.push_back(command);
                self.obey_queue();
            }
        }
    }

    /// Obeys what waits, as far as its turn has come. An increment waits for
    /// [`ReplayWorker::turn`].
    fn obey_queue(&mut self) {
        while let Some(command) = self.queue.pop_front() {
            match (command, &mut self.state) {
                (_, State::Empty | State::Diverged(_)) => {}
                (command, State::Restoring(_)) => return self.queue.push_front(command),
                (command, _) if self.stand_at.is_some() => return self.queue.push_front(command),
                (command @ ToReplayer::Increment(_), _) => return self.queue.push_front(command),
                (ToReplayer::Batch(batch), State::Following(replayer)) => replayer.push_batch(&batch),
                (ToReplayer::Batch(batch), State::Standing(standing)) => standing.log.push_back(batch),
                (ToReplayer::Mark(moment), State::Following(replayer)) => replayer.push_mark(moment),
                (ToReplayer::Mark(moment), State::Standing(standing)) => standing.mark = Some(moment),
                (ToReplayer::Stand { sequence }, _) => self.stand_later(sequence),
                (ToReplayer::HashDisks { check }, _) => self.begin_hashing(check),
                (ToReplayer::Follow, _) => self.follow(),
                (ToReplayer::Finish, _) => {
                    self.follow();
                    self.finishing = true;
                }
                // These are obeyed as they come, and never wait.
                (
                    ToReplayer::Boot { .. }
                    | ToReplayer::Donate { .. }
                    | ToReplayer::RestoreBegin { .. }
                    | ToReplayer::Offer(_)
                    | ToReplayer::RestorePart(_)
                    | ToReplayer::RestoreEnd
                    | ToReplayer::Discard,
                    _,
                ) => {}
            }
        }
    }

    /// To stand at the end of this batch once it is replayed.
    fn stand_later(&mut self, sequence: u64) {
        self.follow();
        let State::Following(replayer) = &self.state else { return };
        let pushed = replayer.pushed_sequence();
        if pushed != sequence {
            let text = format!(
                "it is to stand at batch {sequence}, but holds the log up to batch {pushed}; join anew"
            );
            return self.fail_restore(text);
        }
        self.stand_at = Some(sequence);
    }

    /// Follows the log from where the machine stands.
    fn follow(&mut self) {
        match std::mem::replace(&mut self.state, State::Empty) {
            State::Standing(Standing { mut replayer, log, mark }) => {
                log.iter().for_each(|batch| replayer.push_batch(batch));
                mark.into_iter().for_each(|mark| replayer.push_mark(mark));
                self.state = State::Following(replayer);
            }
            other => self.state = other,
        }
    }

    /// Replays about `budget` instructions, or puts an increment into place, and hashes some of the
    /// disks if that was asked for. Whether there is more to do.
    pub fn turn(&mut self, budget: u64) -> bool {
        let more = self.go_on(budget);
        self.hash_some() || more
    }

    fn go_on(&mut self, budget: u64) -> bool {
        if matches!(self.queue.front(), Some(ToReplayer::Increment(_)))
            && matches!(self.state, State::Standing(_))
        {
            if let Some(ToReplayer::Increment(whole)) = self.queue.pop_front() {
                self.apply_increment(*whole);
            }
            self.obey_queue();
        }
        let caught_up = match self.replay(budget) {
            Some(caught_up) => caught_up,
            None => return self.has_increment_to_apply(),
        };
        if caught_up && let Some(sequence) = self.stand_at.take() {
            self.stand(sequence);
            self.obey_queue();
            return self.has_increment_to_apply() || matches!(self.state, State::Following(_));
        }
        if caught_up && std::mem::take(&mut self.finishing) {
            self.tell_finished();
        }
        self.refuse_early_increment();
        !caught_up
    }

    fn has_increment_to_apply(&self) -> bool {
        matches!((&self.state, self.queue.front()), (State::Standing(_), Some(ToReplayer::Increment(_))))
    }

    /// Replays about `budget` instructions, if the machine follows. Whether it has caught up.
    fn replay(&mut self, budget: u64) -> Option<bool> {
        let State::Following(replayer) = &mut self.state else { return None };
        let result = replayer.step(budget);
        let outputs = replayer.take_outputs();
        match result {
            Ok(progress) => {
                self.tell(ReplayReport::Progress { progress, outputs });
                Some(progress.caught_up)
            }
            Err(divergence) => {
                self.diverge(divergence);
                None
            }
        }
    }

    /// The machine stands where it is, at the end of this batch.
    fn stand(&mut self, sequence: u64) {
        match std::mem::replace(&mut self.state, State::Empty) {
            State::Following(replayer) if replayer.moment() != replayer.pushed_end() => {
                let (found, expected) = (replayer.moment(), replayer.pushed_end());
                self.fail_restore(format!(
                    "it is to stand at the end of batch {sequence}, {expected:?}, but was promised that nothing happens up to {found:?} and is there; join anew"
                ));
            }
            State::Following(replayer) => {
                self.state = State::Standing(Standing { replayer, log: VecDeque::new(), mark: None });
                self.tell(ReplayReport::Standing { sequence });
            }
            other => self.state = other,
        }
    }

    /// Gives up a machine that is not what it should be; it is kept for diagnosis.
    fn diverge(&mut self, divergence: Divergence) {
        self.end_hashing();
        self.queue.clear();
        self.stand_at = None;
        self.tell(ReplayReport::Diverged(divergence));
        self.state = match std::mem::replace(&mut self.state, State::Empty) {
            State::Following(replayer) | State::Standing(Standing { replayer, .. }) => {
                State::Diverged(replayer.into_machine())
            }
            other => other,
        };
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

    /// The machine that follows or stands, to look at its state.
    pub fn following_machine(&mut self) -> Option<&mut M> {
        match &mut self.state {
            State::Following(replayer) | State::Standing(Standing { replayer, .. }) => {
                Some(replayer.machine_mut())
            }
            _ => None,
        }
    }

    /// Where the machine is, if there is one that follows or stands.
    pub fn moment(&self) -> Option<Moment> {
        match &self.state {
            State::Following(replayer) | State::Standing(Standing { replayer, .. }) => {
                Some(replayer.moment())
            }
            _ => None,
        }
    }

    /// Gives the machine away, to go live.
    pub fn into_machine(mut self) -> Option<M> {
        self.end_hashing();
        match self.state {
            State::Following(replayer) => Some(replayer.into_machine()),
            _ => None,
        }
    }

    /// Gives up the machine; the next one may be made of it.
    fn begin(&mut self, generation: u64) {
        self.set_aside();
        self.queue.clear();
        self.stand_at = None;
        self.finishing = false;
        self.is_donating = false;
        self.generation = generation;
    }

    /// Keeps the machine that there is, as a spare.
    fn set_aside(&mut self) {
        self.end_hashing();
        let machine = match std::mem::replace(&mut self.state, State::Empty) {
            State::Following(replayer) | State::Standing(Standing { replayer, .. }) => {
                replayer.into_machine()
            }
            State::Restoring(Restoring { machine, .. }) | State::Diverged(machine) => machine,
            State::Empty => return,
        };
        self.spare = Some(machine);
    }

    /// A machine that executed nothing yet.
    fn machine_at_boot(&mut self) -> M {
        let spare = self.spare.take().unwrap_or_else(&mut self.new_machine);
        if spare.moment() == Moment::BOOT {
            return spare;
        }
        // Its memory and its disks are given back before another takes them.
        drop(spare);
        (self.new_machine)()
    }

    /// Says what there is, and keeps it for the checkpoint that comes.
    fn donate(&mut self) {
        let machine = self.spare.get_or_insert_with(&mut self.new_machine);
        let Kept { memory, disks } = machine.kept();
        self.is_donating = memory || disks;
        self.tell(ReplayReport::Donor(Donor { term: 0, memory, disks }));
    }

    fn restore_begin(&mut self, start: Box<CheckpointStart>, in_place: bool) {
        let mut machine = self.spare.take().unwrap_or_else(&mut self.new_machine);
        let begun = match in_place {
            true => machine.restore_over(&start.head),
            false => machine.restore_begin(&start.head),
        };
        match begun {
            Ok(()) => {
                let over = Mentioned::new(in_place.then_some(start.head.ram_bytes));
                self.state = State::Restoring(Restoring { machine, start, over });
            }
            Err(error) => self.fail_restore(error.to_string()),
        }
    }

    fn restore_end(&mut self) {
        let Restoring { mut machine, start, over } = match std::mem::replace(&mut self.state, State::Empty) {
            State::Restoring(restoring) => restoring,
            other => {
                self.state = other;
                return;
            }
        };
        over.finish(&mut machine);
        let found = machine.digest();
        let Digest(expected) = start.head.digest;
        if found.0 != expected {
            let text = format!(
                "the checkpoint's state has digest {found}, expected {}; take a new checkpoint",
                start.head.digest
            );
            return self.fail_restore(text);
        }
        machine.restore_end();
        let counted = Counted { events: start.events_before, outputs: start.head.outputs_before };
        self.state = State::Following(Replayer::new(machine, start.position.sequence, counted));
        self.tell(ReplayReport::Restored);
        self.obey_queue();
    }

    fn fail_restore(&mut self, text: String) {
        self.set_aside();
        self.queue.clear();
        self.stand_at = None;
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
