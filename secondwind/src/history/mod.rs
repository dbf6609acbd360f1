//! A recording's execution, to go to any place in: forth by replaying, back by restoring the
//! nearest snapshot and replaying from there.
//!
//! A place is an icount: right before that instruction executes. All that comes before it has
//! happened then, also what takes no instruction: waiting, events, and the entry to an
//! interrupt's handler. So whoever comes to a place finds the same state, whether it came there
//! from before or from behind.
//!
//! ```text
//!            seek, resume                    the log ends, or differs
//!   poised ----------------> replaying ----------------------------> at the end
//!      ^                        |                                        |
//!      +--- icount, or stop ----+          seek, resume_back             |
//!      +-----------------------------------------------------------------+
//! ```
//!
//! Breakpoints and watchpoints are met by replaying, forth and back, and change nothing in the
//! machine; every digest on the way is compared with the recorded one.

mod batches;
mod snapshots;
#[cfg(test)]
mod tests;

use anyhow::Result;
use backup::{Divergence, Replayer};
use log_format::{Batch, LoggedEvent, LoggedOutput, Moment, Output};
use machine::hart::Watchpoint;
use machine::{RiscvMachine, Stop, StopReason};

use crate::recording::Recording;
use batches::Batches;
use snapshots::Snapshots;

/// Instructions replayed between two questions whether to go on: a few tens of milliseconds.
const STEP_INSTRUCTIONS: u64 = 4_000_000;
/// What a look at the log counts as, so that a log of many small batches leaves room for
/// questions, too.
const BATCH_INSTRUCTIONS: u64 = 20_000;
/// Snapshots are at least this far apart: closer, taking one costs more than replaying.
const LEAST_SPACING_INSTRUCTIONS: u64 = 16_000_000;
/// Where nobody knows how far it goes, snapshots are this part of the way apart.
const SPACING_PART: u64 = 16;
/// Bytes that snapshots may take unless somebody says otherwise.
pub const DEFAULT_SNAPSHOT_BYTES: u64 = 1 << 30;

/// A bit of a register that flips right before an instruction, on purpose: for tests and drills.
/// Written as `ICOUNT:HART:xN:BIT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flip {
    /// The instruction.
    pub icount: u64,
    /// Whose register.
    pub hart: usize,
    /// The integer register's number, 1 to 31.
    pub register: usize,
    /// The bit's number.
    pub bit: u32,
}

impl std::str::FromStr for Flip {
    type Err = String;

    fn from_str(text: &str) -> Result<Flip, String> {
        let wrong = || format!("{text:?} is no place of a bit; write ICOUNT:HART:xN:BIT, as 1000000:0:x10:3");
        let parts: Vec<&str> = text.split(':').collect();
        let [icount, hart, register, bit] = parts[..] else { return Err(wrong()) };
        let register = register.strip_prefix('x').and_then(|number| number.parse().ok());
        match (icount.parse(), hart.parse(), register, bit.parse()) {
            (Ok(icount), Ok(hart), Some(register @ 1..=31), Ok(bit @ 0..=63)) => {
                Ok(Flip { icount, hart, register, bit })
            }
            _ => Err(wrong()),
        }
    }
}

impl std::fmt::Display for Flip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:x{}:{}", self.icount, self.hart, self.register, self.bit)
    }
}

/// Asked now and then on the way; `true` ends it.
pub type Interrupt<'a> = &'a mut dyn FnMut() -> bool;

/// How a way through the history ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// At the place asked for.
    There,
    /// At what [`Until`] asks to stop for. Forth, that is right before the instruction at a
    /// breakpoint and the one that accesses what is watched, and behind the instruction of a step. Back,
    /// it is before an instruction but for a watchpoint: then it is right behind the
    /// access, which is the next to be undone.
    Stopped(Stop),
    /// At the start of the recording.
    Start,
    /// At its end, or where the replay differs from it ([`History::divergence`]).
    End,
    /// Where it was interrupted.
    Interrupted,
}

/// What to stop for on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Breakpoints and watchpoints.
    Stop,
    /// These, and an instruction of this hart.
    Step {
        /// The hart.
        hart: usize,
    },
}

/// A recording's execution. See the module's documentation.
pub struct History {
    replayer: Replayer<RiscvMachine>,
    batches: Batches,
    snapshots: Snapshots,
    start_icount: u64,
    /// What the guest printed, as far as it was ever replayed.
    printed: Vec<LoggedOutput>,
    /// Where events are: icount and number of the batch, as far as the log was ever read.
    events: Vec<(u64, u64)>,
    /// The last batch whose events are noted.
    noted_sequence: u64,
    breakpoints: Vec<u64>,
    watchpoints: Vec<Watchpoint>,
    /// Where it stands because of the watchpoint of this instruction: before it or, on the way
    /// back, behind it.
    watchpoint_icount: Option<u64>,
    flip: Option<Flip>,
    flipped: bool,
    compares: bool,
    divergence: Option<Divergence>,
    /// Instructions since the last question whether to go on.
    unasked_instructions: u64,
}

impl History {
    /// The history of a recording, standing before its first instruction. Snapshots may take about
    /// `snapshot_bytes`.
    pub fn new(recording: Recording, snapshot_bytes: u64) -> History {
        let Recording { dir, reader, replayer, .. } = recording;
        let start_icount = replayer.moment().icount;
        let noted_sequence = replayer.pushed_sequence();
        let mut history = History {
            replayer,
            batches: Batches::new(dir, reader),
            snapshots: Snapshots::new(snapshot_bytes),
            start_icount,
            printed: Vec::new(),
            events: Vec::new(),
            noted_sequence,
            breakpoints: Vec::new(),
            watchpoints: Vec::new(),
            watchpoint_icount: None,
            flip: None,
            flipped: false,
            compares: true,
            divergence: None,
            unasked_instructions: 0,
        };
        history.take_snapshot();
        history
    }

    /// Where it stands.
    pub fn moment(&self) -> Moment {
        self.replayer.moment()
    }

    /// Its first place.
    pub fn start_icount(&self) -> u64 {
        self.start_icount
    }

    /// The machine at this place, to look at.
    pub fn machine(&self) -> &RiscvMachine {
        self.replayer.machine()
    }

    /// The machine, to take its digest. It must not be run or changed.
    pub fn machine_mut(&mut self) -> &mut RiscvMachine {
        self.replayer.machine_mut()
    }

    /// Where the replay was seen to differ from the recording.
    pub fn divergence(&self) -> Option<&Divergence> {
        self.divergence.as_ref()
    }

    /// What ends the log, if it is damaged and was replayed up to there.
    pub fn damage(&self) -> Option<&store::StoreError> {
        self.batches.damage()
    }

    /// Events replayed up to this place.
    pub fn events_before(&self) -> u64 {
        self.replayer.replayed().events
    }

    /// What the guest printed before this place, oldest first.
    pub fn printed(&self) -> impl Iterator<Item = &LoggedOutput> {
        let made = self.replayer.replayed().outputs;
        self.printed.iter().filter(move |output| output.ordinal < made)
    }

    /// The first event at a later icount.
    ///
    /// # Errors
    /// When the log can no longer be read.
    pub fn event_after(&mut self) -> Result<Option<LoggedEvent>> {
        let here = self.moment().icount;
        loop {
            let place = self.events.partition_point(|(icount, _)| *icount <= here);
            if let Some((_, sequence)) = self.events.get(place).copied() {
                let batch = self.batches.get(sequence)?;
                let found = batch.and_then(|batch| {
                    batch.batch().events.iter().find(|event| event.at.icount > here).cloned()
                });
                return Ok(found);
            }
            let Some(batch) = self.batches.get(self.noted_sequence + 1)? else { return Ok(None) };
            self.note_events(batch.batch());
        }
    }

    /// The last event at an earlier icount.
    ///
    /// # Errors
    /// When the log can no longer be read.
    pub fn event_before(&mut self) -> Result<Option<LoggedEvent>> {
        let here = self.moment().icount;
        let place = self.events.partition_point(|(icount, _)| *icount < here);
        let Some((_, sequence)) = place.checked_sub(1).map(|place| self.events[place]) else {
            return Ok(None);
        };
        let batch = self.batches.get(sequence)?;
        Ok(batch.and_then(|batch| batch.batch().events.iter().rfind(|event| event.at.icount < here).cloned()))
    }

    fn note_events(&mut self, batch: &Batch) {
        if batch.sequence == self.noted_sequence + 1 {
            self.noted_sequence = batch.sequence;
            self.events.extend(batch.events.iter().map(|event| (event.at.icount, batch.sequence)));
        }
    }

    /// Sets the guest-virtual addresses to stop before.
    pub fn set_breakpoints(&mut self, addresses: Vec<u64>) {
        self.breakpoints = addresses;
    }

    /// Sets the bytes whose accesses to stop at.
    pub fn set_watchpoints(&mut self, watchpoints: Vec<Watchpoint>) {
        self.watchpoints = watchpoints;
    }

    /// Makes this history one in which a bit flips; that place must still lie ahead.
    pub fn set_flip(&mut self, flip: Option<Flip>) {
        self.flip = flip;
    }

    /// From now on follows the log without comparing anything with it: to look at an execution
    /// that is known to differ. May go back.
    ///
    /// # Errors
    /// When a snapshot cannot be restored.
    pub fn stop_comparing(&mut self) -> Result<()> {
        self.compares = false;
        self.replayer.stop_comparing();
        // A replayer that met a difference does not go on from there.
        if self.divergence.is_some() { self.restore_before(self.moment().icount + 1) } else { Ok(()) }
    }

    /// Goes to a place, past all breakpoints.
    ///
    /// # Errors
    /// When the log can no longer be read.
    pub fn seek(&mut self, icount: u64, interrupt: Interrupt<'_>) -> Result<Arrival> {
        let icount = icount.max(self.start_icount);
        self.watchpoint_icount = None;
        self.arm(false);
        self.approach(icount)?;
        self.advance(Some(icount), interrupt)
    }

    /// Goes on until there is something to stop for.
    ///
    /// # Errors
    /// When the log can no longer be read.
    pub fn resume(&mut self, until: Until, interrupt: Interrupt<'_>) -> Result<Arrival> {
        self.arm(true);
        let dealt_with = self.watchpoint_icount.take();
        self.pass_here(dealt_with);
        if let Until::Step { hart } = until {
            self.machine_mut().stop_after_hart(Some(hart));
        }
        let arrival = self.advance(None, interrupt);
        self.machine_mut().stop_after_hart(None);
        match arrival? {
            Arrival::Stopped(stop) if stop.reason == StopReason::HartStepped => {
                // It stands behind an instruction; the place is before the next one.
                let here = self.moment().icount;
                match self.advance(Some(here), interrupt)? {
                    Arrival::Interrupted => Ok(Arrival::Interrupted),
                    _ => Ok(Arrival::Stopped(stop)),
                }
            }
            Arrival::Stopped(stop) => {
                let is_watchpoint = matches!(stop.reason, StopReason::Watchpoint(_));
                self.watchpoint_icount = is_watchpoint.then_some(self.moment().icount);
                Ok(Arrival::Stopped(stop))
            }
            Arrival::Interrupted => self.poise(Arrival::Interrupted),
            other => Ok(other),
        }
    }

    /// Goes back until there is something to stop for ([`Arrival::Stopped`]).
    ///
    /// # Errors
    /// When the log can no longer be read.
    pub fn resume_back(&mut self, until: Until, interrupt: Interrupt<'_>) -> Result<Arrival> {
        let mut end = self.moment().icount;
        let passed = self.watchpoint_icount.take();
        while let Some(snapshot_icount) = self.snapshots.before(end).map(|snapshot| snapshot.icount) {
            let (found, interrupted) = match until {
                Until::Stop => self.last_stop_before(end, passed, interrupt)?,
                Until::Step { hart } => self.last_step_before(end, hart, interrupt)?,
            };
            if interrupted {
                return self.poise(Arrival::Interrupted);
            }
            if let Some((icount, stop)) = found {
                if self.seek(icount, interrupt)? == Arrival::Interrupted {
                    return Ok(Arrival::Interrupted);
                }
                let is_watchpoint = matches!(stop.reason, StopReason::Watchpoint(_));
                self.watchpoint_icount = is_watchpoint.then(|| icount - 1);
                return Ok(Arrival::Stopped(stop));
            }
            end = snapshot_icount;
        }
        self.seek(self.start_icount, interrupt)?;
        Ok(Arrival::Start)
    }

    /// The last stop at a breakpoint or watchpoint between the last snapshot before `end` and
    /// there, with the place to go back to, but not at the watchpoint of the instruction at
    /// `passed`. Also whether it was interrupted.
    fn last_stop_before(
        &mut self,
        end: u64,
        passed: Option<u64>,
        interrupt: Interrupt<'_>,
    ) -> Result<(Option<(u64, Stop)>, bool)> {
        self.restore_before(end)?;
        self.arm(true);
        self.machine_mut().pass_breakpoint(None);
        self.machine_mut().pass_watchpoint(None);
        let mut last = None;
        loop {
            match self.advance(Some(end), interrupt)? {
                Arrival::Stopped(stop) => {
                    let here = self.moment().icount;
                    let is_watchpoint = matches!(stop.reason, StopReason::Watchpoint(_));
                    if !is_watchpoint || passed != Some(here) {
                        last = Some((here + u64::from(is_watchpoint), stop));
                    }
                    self.pass_here(is_watchpoint.then_some(here));
                }
                Arrival::Interrupted => return Ok((None, true)),
                Arrival::There | Arrival::Start | Arrival::End => return Ok((last, false)),
            }
        }
    }

    /// The last instruction of a hart between the last snapshot before `end` and there. Also
    /// whether it was interrupted.
    fn last_step_before(
        &mut self,
        end: u64,
        hart: usize,
        interrupt: Interrupt<'_>,
    ) -> Result<(Option<(u64, Stop)>, bool)> {
        let stop = Stop { hart, reason: StopReason::HartStepped };
        let known = |history: &History| {
            let icount = history.machine().last_executed_icount(hart)?;
            (icount < end).then_some((icount, stop))
        };
        if self.moment().icount == end
            && let Some(found) = known(self)
        {
            return Ok((Some(found), false));
        }
        self.restore_before(end)?;
        self.arm(false);
        let arrival = self.advance(Some(end), interrupt)?;
        Ok((known(self), arrival == Arrival::Interrupted))
    }

    /// Comes to stand right before the next instruction, wherever that is.
    fn poise(&mut self, arrival: Arrival) -> Result<Arrival> {
        self.arm(false);
        let here = self.moment().icount;
        self.advance(Some(here), &mut || false)?;
        Ok(arrival)
    }

    /// Brings the machine to the best place at or before `icount` from which to go on to it.
    fn approach(&mut self, icount: u64) -> Result<()> {
        let here = self.moment().icount;
        let nearest = self.snapshots.at_or_before(icount).map_or(0, |snapshot| snapshot.icount);
        let is_ahead = here <= icount && nearest <= here.saturating_add(LEAST_SPACING_INSTRUCTIONS);
        if is_ahead { Ok(()) } else { self.restore_before(icount.saturating_add(1)) }
    }

    /// Goes back to the last snapshot before an icount.
    fn restore_before(&mut self, icount: u64) -> Result<()> {
        if let Some(snapshot) = self.snapshots.before(icount) {
            snapshot.restore(self.replayer.machine_mut())?;
            self.replayer.resume(snapshot.course.clone());
            self.flipped = snapshot.flipped;
            self.divergence = None;
            if !self.compares {
                self.replayer.stop_comparing();
            }
        }
        Ok(())
    }

    /// Has the machine stop at the breakpoints and watchpoints, or pass them all.
    fn arm(&mut self, armed: bool) {
        let (breakpoints, watchpoints): (&[u64], &[Watchpoint]) =
            if armed { (&self.breakpoints, &self.watchpoints) } else { (&[], &[]) };
        let machine = self.replayer.machine_mut();
        machine.set_breakpoints(breakpoints);
        machine.set_watchpoints(watchpoints);
    }

    /// Lets the next instruction pass its breakpoint, and its watchpoint if that was dealt with.
    fn pass_here(&mut self, watchpoint_icount: Option<u64>) {
        let here = self.moment().icount;
        let machine = self.machine_mut();
        machine.pass_breakpoint(Some(here));
        machine.pass_watchpoint(watchpoint_icount);
    }

    /// Replays up to right before `target`, or until a stop, the end or an interrupt.
    fn advance(&mut self, target: Option<u64>, interrupt: Interrupt<'_>) -> Result<Arrival> {
        if self.divergence.is_some() {
            return Ok(Arrival::End);
        }
        loop {
            let before = self.replayer.moment().icount;
            let flip = self.flip.filter(|flip| !self.flipped && flip.icount >= before);
            let stop_icount = flip.map(|flip| flip.icount).into_iter().chain(target).min();
            self.machine_mut().stop_before(stop_icount);
            let progress = match self.replayer.step(STEP_INSTRUCTIONS) {
                Ok(progress) => progress,
                Err(divergence) => {
                    self.divergence = Some(divergence);
                    return Ok(Arrival::End);
                }
            };
            self.collect_printed();
            if self.replayer.machine_stopped() {
                match (self.machine().stop(), flip) {
                    (Some(Stop { reason: StopReason::BeforeIcount, .. }), flip) => {
                        let here = self.moment().icount;
                        if target == Some(here) {
                            return Ok(Arrival::There);
                        }
                        self.apply(flip);
                    }
                    (Some(stop), _) => return Ok(Arrival::Stopped(stop)),
                    (None, _) => {}
                }
                continue;
            }
            self.unasked_instructions += self.moment().icount - before;
            if progress.caught_up {
                let Some(batch) = self.batches.get(self.replayer.pushed_sequence() + 1)? else {
                    return Ok(Arrival::End);
                };
                self.replayer.push_batch(batch.batch());
                self.note_events(batch.batch());
                self.unasked_instructions += BATCH_INSTRUCTIONS;
            } else if self.is_snapshot_due(target) {
                self.take_snapshot();
            }
            if self.unasked_instructions >= STEP_INSTRUCTIONS {
                self.unasked_instructions = 0;
                if interrupt() {
                    return Ok(Arrival::Interrupted);
                }
            }
        }
    }

    fn apply(&mut self, flip: Option<Flip>) {
        if let Some(Flip { hart, register, bit, .. }) = flip {
            self.machine_mut().flip_register_bit(hart, register, bit);
            self.flipped = true;
        }
    }

    /// On the way to a target, snapshots lie ever closer to it; on the way to nobody knows where,
    /// a part of the way apart.
    fn is_snapshot_due(&self, target: Option<u64>) -> bool {
        let here = self.moment().icount;
        let last = self.snapshots.at_or_before(here).map_or(0, |snapshot| snapshot.icount);
        let spacing = match target {
            Some(target) => target.saturating_sub(last) / 2,
            None => here / SPACING_PART,
        };
        here - last >= spacing.max(LEAST_SPACING_INSTRUCTIONS)
    }

    fn take_snapshot(&mut self) {
        let course = self.replayer.course().clone();
        self.snapshots.take(self.replayer.machine_mut(), &course, self.flipped);
    }

    fn collect_printed(&mut self) {
        let known = self.printed.last().map(|output| output.ordinal);
        let made = self.replayer.take_outputs().into_iter();
        let console = made.filter(|made| matches!(made.output, Output::Console(_)));
        self.printed.extend(console.filter(|made| known.is_none_or(|known| made.ordinal > known)));
    }
}
