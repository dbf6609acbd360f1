//! Runs a machine live and writes down what a replay needs.
//!
//! ```text
//!             step: ran a slice                 wake time or input
//!           +-------------------+     step: Sleep    +------------+
//!           v                   |   +-------------+  |            |
//!   new -> running -------------+-->|   sleeping  |--+-> running  |
//!           |   ^                   +-------------+
//!           |   | take_checkpoint_pages
//!           |  stalled          (checkpoints hold too many old pages)
//!           v
//!         halted                (the guest powered off: for good)
//! ```
//!
//! The guest's clock counts instructions; this type keeps it in step with real time. Ahead of
//! real time, it asks its driver to sleep. While every hart waits, guest time follows real
//! time, and a timer that fires is no log entry: a replay finds it by itself. Only where
//! execution cannot keep up, a coarse [`Event::ClockAdvance`] is logged.
//!
//! # How close the clocks are
//!
//! Whenever the guest executes, and only then can it look, its time is at most
//!
//! - *ahead* by the guest time of one slice: no slice begins ahead of real time;
//! - *behind* by [`RecorderConfig::lag_hard_max_ns`] and the real time of one slice: no slice
//!   begins further behind.
//!
//! A slice is 8 us of guest time, and takes the host well under a millisecond, so guest time is
//! within 10 ms of real time as long as the host gives the thread a processor. When it did not,
//! the first slice afterwards is right again.

use log_format::{
    CheckpointHead, CheckpointPart, Digest, Event, LoggedDigest, LoggedEvent, LoggedOutput, Moment,
};
use machine::{BegunCheckpoint, CheckpointExtent, Exit, HostPart, Machine};

/// How a [`Recorder`] cuts time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecorderConfig {
    /// Instructions executed by one [`Recorder::step`]: how long an input waits at most.
    pub slice_instructions: u64,
    /// By how much guest time may fall behind during a stretch of execution before a clock
    /// advance is logged.
    pub lag_max_ns: u64,
    /// Lag with which no slice begins: it is not left to the next idle moment to make good.
    pub lag_hard_max_ns: u64,
    /// A digest is taken after this many instructions...
    pub digest_interval_instructions: u64,
    /// ... or after this much guest time, if at least `digest_min_instructions` ran, or if
    /// something is to be logged anyway.
    pub digest_interval_ns: u64,
    /// See `digest_interval_ns`. Keeps an idle guest from logging.
    pub digest_min_instructions: u64,
    /// Recorded pieces without outputs are handed on after this much real time.
    pub hand_on_interval_ns: u64,
    /// Old pages held for a checkpoint under way, in bytes, beyond which the guest stands
    /// still until some were taken.
    pub checkpoint_held_max_bytes: u64,
}

impl Default for RecorderConfig {
    fn default() -> Self {
        RecorderConfig {
            slice_instructions: 32 * 1024,
            lag_max_ns: 5_000_000,
            lag_hard_max_ns: 8_000_000,
            digest_interval_instructions: 1 << 28,
            digest_interval_ns: 1_000_000_000,
            digest_min_instructions: 1 << 22,
            hand_on_interval_ns: 1_000_000,
            checkpoint_held_max_bytes: 24 << 20,
        }
    }
}

/// A stretch of recorded execution.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recorded {
    /// What was injected, in order.
    pub events: Vec<LoggedEvent>,
    /// Digests taken, in order.
    pub digests: Vec<LoggedDigest>,
    /// What the machine sent, in order.
    pub outputs: Vec<LoggedOutput>,
    /// Where the stretch ends: no later event lies before it.
    pub end: Moment,
    /// Host time that executing it took, in nanoseconds, as far as it is known at its end: from
    /// each slice to the next call with a time. A replay takes about as long.
    pub busy_ns: u64,
}

impl Recorded {
    /// Whether the stretch holds nothing but its end.
    pub fn is_mark(&self) -> bool {
        self.events.is_empty() && self.digests.is_empty() && self.outputs.is_empty()
    }
}

/// What the driver does after [`Recorder::step`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Step again.
    Continue,
    /// Nothing to do until this time (monotonic nanoseconds of the host), or until an input
    /// comes; `None` waits for an input alone.
    Sleep {
        /// When to step again.
        until_ns: Option<u64>,
    },
    /// Step again after [`Recorder::take_checkpoint_pages`] or
    /// [`Recorder::cancel_checkpoint`].
    Stalled,
    /// The guest powered itself off.
    Halted {
        /// Exit status: 0 is success.
        code: u32,
    },
    /// The host failed to read or write something of the machine's: the machine stopped for good, and only a
    /// backup can go on. What was recorded before is right.
    HostFault {
        /// What.
        part: HostPart,
    },
}

/// A checkpoint that was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointBegun {
    /// How much it holds.
    pub extent: CheckpointExtent,
    /// All that was recorded before it.
    pub before: Recorded,
    /// How many events lie before it, since boot.
    pub events_before: u64,
    /// The checkpoint's head. Its pages come from [`Recorder::take_checkpoint_pages`].
    pub head: CheckpointHead,
    /// Pages and blocks written to in the epoch that ended with it; 0 for a full one.
    pub dirty_units: u64,
    /// How long the guest stood still for it, in nanoseconds of the host; 0 where nobody
    /// measured it.
    pub pause_ns: u64,
}

/// Owns a live machine: runs it in slices, in step with real time, and records.
///
/// # Order of calls
///
/// `handle_input` for each input, `step`, then `poll_recorded`, and again; before a sleep and
/// at the end, `take_recorded`. All times are the host's monotonic nanoseconds.
pub struct Recorder<M> {
    machine: M,
    config: RecorderConfig,
    clock: GuestClock,
    events_before: u64,
    pending: Recorded,
    handed_on: HandedOn,
    digest_at: Moment,
    waiting: Option<Waiting>,
    /// Guest time was ahead of real time, so that the driver was asked to sleep.
    ahead: bool,
    /// Lag that stood already when the present stretch of execution began.
    lag_at_wake_ns: u64,
    halted: Option<u32>,
    /// The disk that the host failed at.
    faulted: Option<HostPart>,
    started: bool,
    /// When the last slice began, if nobody has said the time since.
    slice_began_ns: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct HandedOn {
    end: Moment,
    at_ns: u64,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    wake_ns: Option<u64>,
}

impl<M: Machine> Recorder<M> {
    /// Goes live with `machine`, before which the log holds `events_before` events. Its guest
    /// time equals real time now.
    pub fn new(machine: M, config: RecorderConfig, events_before: u64, now_ns: u64) -> Self {
        let time_ns = machine.moment().time_ns;
        Self::with_clock(machine, config, events_before, GuestClock::anchored(time_ns, now_ns))
    }

    /// Goes live with a machine that another host ran before. Its guest time is behind; one
    /// clock advance makes that good.
    ///
    /// `clock_offset_ns` is guest time minus this host's monotonic time, as it was while the
    /// other host was alive. Guest time never goes back, whatever the offset says.
    pub fn take_over(
        machine: M,
        config: RecorderConfig,
        events_before: u64,
        clock_offset_ns: i64,
        now_ns: u64,
    ) -> Self {
        let present = GuestClock::anchored(machine.moment().time_ns, now_ns);
        let offset_ns = present.offset_ns.max(i128::from(clock_offset_ns));
        Self::with_clock(machine, config, events_before, GuestClock { offset_ns })
    }

    /// Goes live with a machine that stood still for `away_ns`: its guest time jumps by as much,
    /// which is recorded.
    pub fn resume(machine: M, config: RecorderConfig, events_before: u64, away_ns: u64, now_ns: u64) -> Self {
        let time_ns = machine.moment().time_ns.saturating_add(away_ns);
        let clock = GuestClock::anchored(time_ns, now_ns);
        let mut recorder = Self::with_clock(machine, config, events_before, clock);
        if away_ns > 0 {
            recorder.inject(Event::ClockAdvance { delta_ns: away_ns });
        }
        recorder
    }

    fn with_clock(machine: M, config: RecorderConfig, events_before: u64, clock: GuestClock) -> Self {
        let here = machine.moment();
        Recorder {
            machine,
            config,
            clock,
            events_before,
            pending: Recorded { end: here, ..Recorded::default() },
            handed_on: HandedOn { end: here, at_ns: 0 },
            digest_at: here,
            waiting: None,
            ahead: false,
            lag_at_wake_ns: 0,
            halted: None,
            faulted: None,
            started: false,
            slice_began_ns: None,
        }
    }

    /// Injects an input at the present moment and records it.
    pub fn handle_input(&mut self, event: Event, now_ns: u64) {
        if self.halted.is_some() || self.faulted.is_some() {
            return;
        }
        if self.waiting.is_some() {
            let target_ns = self.clock.guest_ns(now_ns);
            let reached_ns = self.machine.advance_idle(target_ns);
            self.lag_at_wake_ns = target_ns.saturating_sub(reached_ns);
        }
        self.inject(event);
    }

    /// Runs one slice, or says what to wait for.
    pub fn step(&mut self, now_ns: u64) -> Step {
        self.note_busy(now_ns);
        if let Some(step) = self.ended() {
            return step;
        }
        if self.machine.checkpoint_held_bytes() > self.config.checkpoint_held_max_bytes {
            return Step::Stalled;
        }
        let target_ns = self.clock.guest_ns(now_ns);
        if let Some(waiting) = self.waiting
            && !self.pass_waiting(waiting, target_ns)
        {
            let until_ns = waiting.wake_ns.map(|wake_ns| self.clock.host_ns(wake_ns));
            return Step::Sleep { until_ns };
        }
        self.keep_up(target_ns);
        let here = self.machine.moment();
        if here.time_ns > target_ns {
            self.ahead = true;
            return Step::Sleep { until_ns: Some(self.clock.host_ns(here.time_ns)) };
        }
        self.slice_began_ns = Some(now_ns);
        self.run_slice(here);
        self.ended().unwrap_or(Step::Continue)
    }

    fn ended(&self) -> Option<Step> {
        let faulted = self.faulted.map(|part| Step::HostFault { part });
        faulted.or(self.halted.map(|code| Step::Halted { code }))
    }

    /// What was recorded, when it is worth handing on: at once with outputs, else every
    /// [`RecorderConfig::hand_on_interval_ns`].
    pub fn poll_recorded(&mut self, now_ns: u64) -> Option<Recorded> {
        let due = now_ns.saturating_sub(self.handed_on.at_ns) >= self.config.hand_on_interval_ns;
        if self.pending.outputs.is_empty() && !due && self.halted.is_none() {
            return None;
        }
        self.take_recorded(now_ns)
    }

    /// What was recorded since the last call, if anything happened: before a sleep, a
    /// checkpoint, and at the end.
    pub fn take_recorded(&mut self, now_ns: u64) -> Option<Recorded> {
        self.note_busy(now_ns);
        let end = self.machine.moment();
        if self.pending.is_mark() && end == self.handed_on.end {
            return None;
        }
        self.handed_on = HandedOn { end, at_ns: now_ns };
        self.pending.end = end;
        Some(std::mem::take(&mut self.pending))
    }

    /// Counts the time since the last slice began.
    fn note_busy(&mut self, now_ns: u64) {
        // The call right after the slice may have the time of the one before it.
        if let Some(began_ns) = self.slice_began_ns.filter(|began_ns| *began_ns < now_ns) {
            self.pending.busy_ns += now_ns - began_ns;
            self.slice_began_ns = None;
        }
    }

    /// Freezes a checkpoint of the present state; the guest goes on while its pages are
    /// taken.
    pub fn begin_checkpoint(&mut self, extent: CheckpointExtent, now_ns: u64) -> CheckpointBegun {
        self.note_busy(now_ns);
        let end = self.machine.moment();
        self.handed_on = HandedOn { end, at_ns: now_ns };
        self.pending.end = end;
        let BegunCheckpoint { head, dirty_units } = self.machine.begin_checkpoint(extent);
        CheckpointBegun {
            extent,
            before: std::mem::take(&mut self.pending),
            events_before: self.events_before,
            head,
            dirty_units,
            pause_ns: 0,
        }
    }

    /// Freezes the disks, at the moment of the checkpoint that was begun just now.
    pub fn freeze_disks(&mut self) {
        self.machine.begin_checkpoint(CheckpointExtent::Disks);
    }

    /// Takes the next pages of the checkpoint of this extent; empty at its end. A bite of some dozen pages
    /// between two steps keeps the guest responsive.
    pub fn take_checkpoint_pages(&mut self, extent: CheckpointExtent, limit: usize) -> CheckpointPart {
        self.machine.take_checkpoint_pages(extent, limit)
    }

    /// Digest of the state that the increment begun last froze, once all of it was taken.
    pub fn checkpoint_digest(&self) -> Option<Digest> {
        self.machine.checkpoint_digest()
    }

    /// Gives up the checkpoint of this extent.
    pub fn cancel_checkpoint(&mut self, extent: CheckpointExtent) {
        self.machine.cancel_checkpoint(extent);
    }

    /// Takes a digest now and records it.
    pub fn record_digest(&mut self) {
        let at = self.machine.moment();
        self.digest_at = at;
        let (events_before, digest) = (self.events_before, self.machine.digest());
        self.pending.digests.push(LoggedDigest { at, events_before, digest });
    }

    /// Where execution stands.
    pub fn moment(&self) -> Moment {
        self.machine.moment()
    }

    /// Events injected since boot.
    pub fn events_before(&self) -> u64 {
        self.events_before
    }

    /// Guest time minus real time, for [`Recorder::take_over`] elsewhere.
    pub fn clock_offset_ns(&self) -> i64 {
        self.clock.offset_ns.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }

    /// The machine, to look at it.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// Gives the machine back.
    pub fn into_machine(self) -> M {
        self.machine
    }

    /// Lets guest time pass while every hart waits. Whether a hart woke.
    fn pass_waiting(&mut self, waiting: Waiting, target_ns: u64) -> bool {
        let Some(wake_ns) = waiting.wake_ns else { return false };
        if wake_ns > target_ns {
            return false;
        }
        let reached_ns = self.machine.advance_idle(target_ns);
        self.waiting = None;
        self.lag_at_wake_ns = target_ns.saturating_sub(reached_ns);
        true
    }

    /// Logs a clock advance when execution lags too far behind real time.
    fn keep_up(&mut self, target_ns: u64) {
        let lag_ns = target_ns.saturating_sub(self.machine.moment().time_ns);
        if std::mem::take(&mut self.ahead) {
            // The driver woke late; a guest that was ahead makes that good by itself.
            self.lag_at_wake_ns = lag_ns;
        }
        let first = !std::mem::replace(&mut self.started, true);
        let fell_behind = lag_ns > self.lag_at_wake_ns.saturating_add(self.config.lag_max_ns);
        if fell_behind || lag_ns > self.config.lag_hard_max_ns || (first && lag_ns > self.config.lag_max_ns) {
            self.inject(Event::ClockAdvance { delta_ns: lag_ns });
            self.lag_at_wake_ns = 0;
        }
    }

    fn inject(&mut self, event: Event) {
        let at = self.machine.moment();
        self.machine.inject(&event);
        self.events_before += 1;
        self.waiting = None;
        self.pending.events.push(LoggedEvent { at, event });
    }

    fn run_slice(&mut self, here: Moment) {
        let digest_icount = self.digest_at.icount.saturating_add(self.config.digest_interval_instructions);
        let slice_end = here.icount.saturating_add(self.config.slice_instructions);
        let exit = self.machine.run(slice_end.min(digest_icount.max(here.icount + 1)));
        self.machine.append_outputs(&mut self.pending.outputs);
        match exit {
            // Nobody debugs a machine while it is recorded, so it never stops for that.
            Exit::Limit | Exit::Output | Exit::Stopped => {}
            Exit::Idle { wake_ns } => {
                self.waiting = Some(Waiting { wake_ns });
                self.lag_at_wake_ns = 0;
            }
            Exit::Halted { code } => {
                self.record_digest();
                self.halted = Some(code);
            }
            Exit::HostFault { part } => {
                // From here the state no longer follows from the log: no digest of it.
                self.faulted = Some(part);
                return;
            }
        }
        if self.digest_is_due() {
            self.record_digest();
        }
    }

    fn digest_is_due(&self) -> bool {
        let here = self.machine.moment();
        let instructions = here.icount - self.digest_at.icount;
        let waited_ns = here.time_ns.saturating_sub(self.digest_at.time_ns);
        // Beside events and outputs, which are logged anyway, a digest costs next to nothing.
        let worth_it = instructions >= self.config.digest_min_instructions || !self.pending.is_mark();
        instructions >= self.config.digest_interval_instructions
            || worth_it && waited_ns >= self.config.digest_interval_ns
    }
}

/// Guest time as a function of the host's monotonic time.
#[derive(Debug, Clone, Copy)]
struct GuestClock {
    /// Guest time minus host time.
    offset_ns: i128,
}

impl GuestClock {
    fn anchored(guest_ns: u64, host_ns: u64) -> Self {
        GuestClock { offset_ns: i128::from(guest_ns) - i128::from(host_ns) }
    }

    fn guest_ns(self, host_ns: u64) -> u64 {
        clamp(i128::from(host_ns) + self.offset_ns)
    }

    fn host_ns(self, guest_ns: u64) -> u64 {
        clamp(i128::from(guest_ns) - self.offset_ns)
    }
}

fn clamp(time_ns: i128) -> u64 {
    time_ns.clamp(0, i128::from(u64::MAX)) as u64
}
