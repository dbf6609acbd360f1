//! Follows a recorded execution and checks every step of it.
//!
//! ```text
//!                push_batch, push_mark
//!                        |
//!                        v             everything known is replayed
//!   new -> replaying: step(budget) --------------------------------> caught up
//!              |         ^                                              |
//!              |         +---------------- push_batch, push_mark -------+
//!              v
//!           diverged       (for good: the machine is kept as it is, for diagnosis)
//! ```
//!
//! A replayer never runs past what it was promised: the end of the newest batch, or a
//! transient mark. Time that the machine spent waiting costs nothing to replay.

use std::collections::VecDeque;

use log_format::{Batch, Digest, LoggedDigest, LoggedEvent, LoggedOutput, Moment};
use machine::{Exit, HostPart, Machine};

/// Follows the log with a machine.
///
/// # Order of calls
///
/// `push_batch` and `push_mark` in the log's order, `step` until it has caught up,
/// `take_outputs` now and then. After a divergence only `into_machine` makes sense.
pub struct Replayer<M> {
    machine: M,
    course: Course,
    stop_icount: Option<u64>,
    /// Whether the machine's last run ended with [`Exit::Stopped`].
    stopped: bool,
}

/// Where a replay stands in its log, and what it still has to compare there: with the state of
/// the machine, all that a replayer is. [`Replayer::resume`] goes on from it.
#[derive(Debug, Clone)]
pub struct Course {
    items: VecDeque<Item>,
    /// How far it is safe to run.
    limit: Moment,
    pushed_sequence: u64,
    /// Where the last pushed batch ends.
    pushed_end: Moment,
    /// Events and outputs up to the last pushed batch, since boot.
    pushed: Counted,
    /// Events injected and outputs compared, since boot.
    replayed: Counted,
    replayed_sequence: u64,
    expected_hashes: VecDeque<u32>,
    /// Outputs made and not compared yet.
    unverified: VecDeque<Made>,
    /// Outputs made and not taken yet.
    outputs: Vec<LoggedOutput>,
    digests_verified: u64,
    verified_at: Moment,
    halted: Option<u32>,
    /// Whether digests and outputs are compared.
    compares: bool,
}

impl Course {
    fn new(here: Moment, sequence: u64, counted: Counted) -> Self {
        Course {
            items: VecDeque::new(),
            limit: here,
            pushed_sequence: sequence,
            pushed_end: here,
            pushed: counted,
            replayed: counted,
            replayed_sequence: sequence,
            expected_hashes: VecDeque::new(),
            unverified: VecDeque::new(),
            outputs: Vec::new(),
            digests_verified: 0,
            verified_at: here,
            halted: None,
            compares: true,
        }
    }

    /// Batches pushed since boot.
    pub fn pushed_sequence(&self) -> u64 {
        self.pushed_sequence
    }
}

/// What lies before a place in the log, since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// Events.
    pub events: u64,
    /// Outputs.
    pub outputs: u64,
}

/// How far a replay is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Where the machine stands.
    pub moment: Moment,
    /// Batches replayed and compared to their end.
    pub sequence: u64,
    /// Digests that were equal.
    pub digests_verified: u64,
    /// Outputs whose hashes were equal, since boot or the checkpoint.
    pub outputs_verified: u64,
    /// Whether everything pushed so far is replayed.
    pub caught_up: bool,
    /// Exit status of the guest, once it is known to have ended.
    pub halted: Option<u32>,
}

/// Two executions of one log differ.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the replay differs from the recording between icount {} and {}: {kind}; keep both states for diagnosis, and rebuild this side from a checkpoint",
    verified_at.icount, found_at.icount
)]
pub struct Divergence {
    /// Up to here, digests were equal.
    pub verified_at: Moment,
    /// Here the difference was seen.
    pub found_at: Moment,
    /// What differs.
    pub kind: DivergenceKind,
}

/// What differs between a recording and its replay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DivergenceKind {
    /// State digests.
    #[error("state digest {found}, recorded {expected}")]
    Digest {
        /// Recorded.
        expected: Digest,
        /// Of the replaying machine.
        found: Digest,
    },
    /// The bytes of an output.
    #[error("output {ordinal} has hash {found:08x}, recorded {expected:08x}")]
    Output {
        /// Its number since boot.
        ordinal: u64,
        /// Recorded.
        expected: u32,
        /// Of the replaying machine.
        found: u32,
    },
    /// The number of outputs up to the end of a batch.
    #[error("{found} outputs since boot, recorded {expected}")]
    OutputCount {
        /// Recorded.
        expected: u64,
        /// Made by the replaying machine.
        found: u64,
    },
    /// The machine does not come by a recorded moment.
    #[error("the machine stands at {found:?}, the log goes on at {expected:?}")]
    Moment {
        /// In the log.
        expected: Moment,
        /// Where the machine stands instead.
        found: Moment,
    },
    /// A digest was recorded after another number of events.
    #[error("{found} events since boot, recorded {expected}")]
    EventCount {
        /// Recorded.
        expected: u64,
        /// Injected here.
        found: u64,
    },
    /// An increment of a checkpoint does not go with this machine.
    #[error("the increment to batch {sequence} cannot be applied: {text}")]
    Increment {
        /// Number of batches up to the state that it leads to.
        sequence: u64,
        /// Why not.
        text: String,
    },
    /// The host failed at something of the machine's on this side.
    #[error("this host failed to read or write {part}; see to it, and join again")]
    HostFault {
        /// What.
        part: HostPart,
    },
    /// The guest ended, but the log goes on.
    #[error("the guest ended with status {code}, the log goes on to icount {expected_icount}")]
    Halted {
        /// Its exit status.
        code: u32,
        /// Where the log goes on.
        expected_icount: u64,
    },
}

#[derive(Debug, Clone)]
enum Item {
    Event(LoggedEvent),
    Digest(LoggedDigest),
    End { sequence: u64, end: Moment, outputs: u64 },
}

impl Item {
    fn at(&self) -> Moment {
        match self {
            Item::Event(logged) => logged.at,
            Item::Digest(logged) => logged.at,
            Item::End { end, .. } => *end,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Made {
    ordinal: u64,
    hash: u32,
    at: Moment,
}

/// What came of an attempt to reach a moment.
enum Reach {
    Reached,
    BudgetSpent,
}

impl<M: Machine> Replayer<M> {
    /// Follows the log from where `machine` stands: after `sequence` batches, before which
    /// lie the events and outputs `counted`.
    pub fn new(machine: M, sequence: u64, counted: Counted) -> Self {
        let course = Course::new(machine.moment(), sequence, counted);
        Replayer { machine, course, stop_icount: None, stopped: false }
    }

    /// Goes on where another replayer stood. The caller brings the machine to the state it had
    /// there.
    pub fn resume(&mut self, course: Course) {
        self.course = course;
        self.stop_icount = None;
        self.stopped = false;
    }

    /// Where it stands, for [`Replayer::resume`].
    pub fn course(&self) -> &Course {
        &self.course
    }

    /// Follows the log from here on without comparing digests and outputs: to look at an execution
    /// that is known to differ from the recorded one.
    pub fn stop_comparing(&mut self) {
        self.course.compares = false;
    }

    /// Adds the next batch of the log. Its place in the chain is the caller's to check.
    ///
    /// # Panics
    /// When it is not the batch after the last one pushed.
    pub fn push_batch(&mut self, batch: &Batch) {
        assert_eq!(batch.sequence, self.course.pushed_sequence + 1, "batches are pushed in order");
        let mut digests = batch.digests.iter().peekable();
        for event in &batch.events {
            while let Some(digest) =
                digests.next_if(|digest| digest.events_before <= self.course.pushed.events)
            {
                self.course.items.push_back(Item::Digest(*digest));
            }
            self.course.items.push_back(Item::Event(event.clone()));
            self.course.pushed.events += 1;
        }
        self.course.items.extend(digests.map(|digest| Item::Digest(*digest)));
        self.course.expected_hashes.extend(&batch.output_hashes);
        self.course.pushed.outputs += batch.output_hashes.len() as u64;
        self.course.pushed_sequence = batch.sequence;
        self.course.pushed_end = batch.end;
        let (sequence, end, outputs) = (batch.sequence, batch.end, batch.outputs_after());
        self.course.items.push_back(Item::End { sequence, end, outputs });
        self.course.limit = self.course.limit.max(end);
    }

    /// Learns that no event that is not pushed yet lies before `mark`.
    pub fn push_mark(&mut self, mark: Moment) {
        self.course.limit = self.course.limit.max(mark);
    }

    /// Replays about `budget` instructions, or less when it catches up before.
    ///
    /// # Errors
    /// When the machine does not do what was recorded.
    pub fn step(&mut self, budget: u64) -> Result<Progress, Divergence> {
        let mut budget = budget;
        self.stopped = false;
        loop {
            let target = self.course.items.front().map_or(self.course.limit, Item::at);
            match self.reach(target, &mut budget)? {
                Reach::BudgetSpent => return Ok(self.progress(false)),
                Reach::Reached => {}
            }
            match self.course.items.pop_front() {
                Some(item) => self.apply(item)?,
                None => return Ok(self.progress(true)),
            }
        }
    }

    /// Takes what the machine sent since the last call, oldest first.
    pub fn take_outputs(&mut self) -> Vec<LoggedOutput> {
        std::mem::take(&mut self.course.outputs)
    }

    /// Lets a machine that stands at the end of its log find out whether it has ended.
    /// Executes at most one instruction.
    pub fn probe_halt(&mut self) -> Option<u32> {
        if let Exit::Halted { code } = self.machine.run(self.machine.moment().icount + 1) {
            self.course.halted = Some(code);
        }
        self.course.halted
    }

    /// Stops the replay at this icount, whatever the log says: for a look at a state in the
    /// middle. `step` then reports that it has caught up.
    pub fn stop_at(&mut self, icount: u64) {
        self.stop_icount = Some(icount);
    }

    /// Whether [`Replayer::stop_at`]'s icount is reached.
    pub fn has_stopped(&self) -> bool {
        self.stop_icount.is_some_and(|icount| self.machine.moment().icount >= icount)
    }

    /// Whether the last [`Replayer::step`] ended because the machine came back with
    /// [`Exit::Stopped`].
    pub fn machine_stopped(&self) -> bool {
        self.stopped
    }

    /// The machine was brought to another state: after `sequence` batches, before which lie the
    /// events and outputs `counted`. That state's digest was verified. What was pushed is
    /// forgotten; outputs are to be taken before.
    pub fn rebase(&mut self, sequence: u64, counted: Counted) {
        let here = self.machine.moment();
        let digests_verified = self.course.digests_verified + 1;
        self.course = Course { digests_verified, ..Course::new(here, sequence, counted) };
        self.stop_icount = None;
        self.stopped = false;
    }

    /// Up to here, digests were equal.
    pub fn verified_at(&self) -> Moment {
        self.course.verified_at
    }

    /// How far it is.
    pub fn progress_now(&self) -> Progress {
        let here = self.machine.moment();
        self.progress(self.course.items.is_empty() && here == self.course.limit)
    }

    /// Events and outputs replayed since boot.
    pub fn replayed(&self) -> Counted {
        Counted {
            outputs: self.course.replayed.outputs + self.course.unverified.len() as u64,
            ..self.course.replayed
        }
    }

    /// Exit status of the guest, when its end was come by.
    pub fn halted(&self) -> Option<u32> {
        self.course.halted
    }

    /// Batches pushed since boot.
    pub fn pushed_sequence(&self) -> u64 {
        self.course.pushed_sequence
    }

    /// Where the last pushed batch ends.
    pub fn pushed_end(&self) -> Moment {
        self.course.pushed_end
    }

    /// Where execution stands.
    pub fn moment(&self) -> Moment {
        self.machine.moment()
    }

    /// How far it may run with what it knows.
    pub fn limit(&self) -> Moment {
        self.course.limit
    }

    /// The machine, to look at it.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// The machine, to take its digest or a checkpoint. It must not be run or changed.
    pub fn machine_mut(&mut self) -> &mut M {
        &mut self.machine
    }

    /// Gives the machine back: to go live with it, or to diagnose it.
    pub fn into_machine(self) -> M {
        self.machine
    }

    fn progress(&self, caught_up: bool) -> Progress {
        Progress {
            moment: self.machine.moment(),
            sequence: self.course.replayed_sequence,
            digests_verified: self.course.digests_verified,
            outputs_verified: self.course.replayed.outputs,
            caught_up: caught_up || self.has_stopped(),
            halted: self.course.halted,
        }
    }

    /// Brings the machine to `target` exactly.
    fn reach(&mut self, target: Moment, budget: &mut u64) -> Result<Reach, Divergence> {
        loop {
            let here = self.machine.moment();
            if here == target {
                return Ok(Reach::Reached);
            }
            if here.icount > target.icount || here.time_ns > target.time_ns {
                return Err(self.missed(target));
            }
            if *budget == 0 || self.stopped || self.has_stopped() {
                return Ok(Reach::BudgetSpent);
            }
            if here.icount == target.icount {
                self.wait(target)?;
                *budget -= 1;
                continue;
            }
            let stop_icount = self.stop_icount.unwrap_or(u64::MAX).min(target.icount);
            let exit = self.run(here.icount.saturating_add(*budget).min(stop_icount));
            *budget = budget.saturating_sub((self.machine.moment().icount - here.icount).max(1));
            match exit {
                Exit::Limit | Exit::Output | Exit::Stopped => {}
                Exit::Idle { wake_ns } => self.skip_idle(wake_ns, target)?,
                Exit::HostFault { part } => {
                    return Err(self.divergence(DivergenceKind::HostFault { part }));
                }
                Exit::Halted { .. } if self.machine.moment() == target => {}
                Exit::Halted { code } => {
                    let expected_icount = target.icount;
                    return Err(self.divergence(DivergenceKind::Halted { code, expected_icount }));
                }
            }
        }
    }

    /// Moves an idle clock towards a target at the present icount.
    fn wait(&mut self, target: Moment) -> Result<(), Divergence> {
        let before_ns = self.machine.moment().time_ns;
        if self.machine.advance_idle(target.time_ns) > before_ns {
            return Ok(());
        }
        // A device has come to its deadline, which only execution can see; or the machine is
        // not idle here, as it was when it was recorded, and one instruction shows it.
        let exit = self.run(target.icount + 1);
        let moved = self.machine.advance_idle(target.time_ns) > before_ns;
        let paused = matches!(exit, Exit::Output | Exit::Stopped);
        if self.machine.moment().icount == target.icount && (moved || paused) {
            return Ok(());
        }
        Err(self.missed(target))
    }

    /// Jumps to the next timer of an idle machine that has instructions to execute before
    /// `target`.
    fn skip_idle(&mut self, wake_ns: Option<u64>, target: Moment) -> Result<(), Divergence> {
        let here = self.machine.moment();
        if here.icount == target.icount {
            return Ok(());
        }
        match wake_ns {
            Some(wake_ns) if wake_ns <= target.time_ns => {
                self.machine.advance_idle(wake_ns);
                Ok(())
            }
            _ => Err(self.missed(target)),
        }
    }

    fn run(&mut self, icount: u64) -> Exit {
        let exit = self.machine.run(icount);
        self.collect_outputs();
        if let Exit::Halted { code } = exit {
            self.course.halted = Some(code);
        }
        self.stopped = exit == Exit::Stopped;
        exit
    }

    fn collect_outputs(&mut self) {
        let before = self.course.outputs.len();
        self.machine.append_outputs(&mut self.course.outputs);
        let made = self.course.outputs[before..].iter();
        self.course.unverified.extend(made.map(|output| {
            let hash = output.output.hash();
            Made { ordinal: output.ordinal, hash, at: output.at }
        }));
    }

    fn apply(&mut self, item: Item) -> Result<(), Divergence> {
        match item {
            Item::Event(logged) => {
                self.machine.inject(&logged.event);
                self.course.replayed.events += 1;
                self.collect_outputs();
                Ok(())
            }
            Item::Digest(logged) => self.compare_digest(&logged),
            Item::End { sequence, end, outputs } => {
                self.compare_outputs(end, outputs)?;
                self.course.replayed_sequence = sequence;
                Ok(())
            }
        }
    }

    fn compare_digest(&mut self, logged: &LoggedDigest) -> Result<(), Divergence> {
        if !self.course.compares {
            return Ok(());
        }
        let (expected, found) = (logged.events_before, self.course.replayed.events);
        if expected != found {
            return Err(self.divergence(DivergenceKind::EventCount { expected, found }));
        }
        let (expected, found) = (logged.digest, self.machine.digest());
        if expected != found {
            return Err(self.divergence(DivergenceKind::Digest { expected, found }));
        }
        self.course.digests_verified += 1;
        self.course.verified_at = logged.at;
        Ok(())
    }

    /// Compares the outputs of a batch that was replayed to its `end`, with which the machine
    /// has made `outputs` since boot.
    fn compare_outputs(&mut self, end: Moment, outputs: u64) -> Result<(), Divergence> {
        if !self.course.compares {
            return Ok(());
        }
        while self.course.replayed.outputs < outputs {
            let Some(made) = self.course.unverified.pop_front() else {
                let found = self.course.replayed.outputs;
                return Err(self.divergence(DivergenceKind::OutputCount { expected: outputs, found }));
            };
            // The batch says how many there are, so there is a hash for each.
            let expected = self.course.expected_hashes.pop_front().unwrap_or_default();
            let (ordinal, found) = (made.ordinal, made.hash);
            if ordinal != self.course.replayed.outputs || found != expected {
                return Err(self.divergence(DivergenceKind::Output { ordinal, expected, found }));
            }
            self.course.replayed.outputs += 1;
        }
        let extra = self.course.unverified.iter().filter(|made| made.at < end).count() as u64;
        if extra > 0 {
            let found = outputs + extra;
            return Err(self.divergence(DivergenceKind::OutputCount { expected: outputs, found }));
        }
        Ok(())
    }

    fn missed(&self, expected: Moment) -> Divergence {
        let found = self.machine.moment();
        self.divergence(DivergenceKind::Moment { expected, found })
    }

    fn divergence(&self, kind: DivergenceKind) -> Divergence {
        Divergence { verified_at: self.course.verified_at, found_at: self.machine.moment(), kind }
    }
}
