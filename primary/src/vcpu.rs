//! What the machine's thread does between two waits: the same for a real thread and for the
//! simulator.

use std::collections::VecDeque;

use log_format::{CheckpointHead, CheckpointPart, Digest, EncodedPart, Event};
use machine::{CheckpointExtent, HostPart, Machine};

use crate::core::MachineRequest;
use crate::packer::{Packer, ToPacker};
use crate::recorder::{CheckpointBegun, Recorded, Recorder, Step};
use crate::snapshot::{Advance, Snapshot, SnapshotOrder};

/// Inputs kept while the guest is held.
const WAITING_INPUTS: usize = 256;
/// Pages and blocks of an increment taken between two slices: some 20 us of hashing and copying.
const BITE_UNITS: usize = 64;
/// Pages in a part of a state that is kept for diagnosis.
const KEPT_PAGES: usize = 256;

/// What the machine's thread tells the core, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromMachine {
    /// A stretch of execution.
    Recorded(Recorded),
    /// A checkpoint was begun.
    CheckpointBegun {
        /// Which one.
        checkpoint: u64,
        /// Its head.
        begun: Box<CheckpointBegun>,
    },
    /// Pages of a full checkpoint; empty at its end.
    CheckpointPart {
        /// Of which one.
        checkpoint: u64,
        /// The pages.
        part: CheckpointPart,
    },
    /// Packed pages of an increment. Never empty.
    IncrementPart {
        /// Of which one.
        checkpoint: u64,
        /// The pages.
        part: EncodedPart,
    },
    /// The increment is whole. An increment that is given up, or during which the host fails at
    /// a disk, has no end.
    IncrementEnd {
        /// Which one.
        checkpoint: u64,
        /// How many parts it had.
        parts: u64,
        /// Digest of the state that it leads to.
        digest: Digest,
        /// Bytes that its pages and blocks were packed to.
        packed_bytes: u64,
    },
    /// The guest ended.
    Halted {
        /// Its exit status.
        code: u32,
    },
    /// The host failed to read or write something of the machine's: the machine stands still for good.
    HostFault {
        /// What.
        part: HostPart,
    },
}

/// What the machine's thread tells, in order, where increments are packed elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// For the core.
    ToCore(FromMachine),
    /// For a [`Packer`], and what that answers for the core.
    ToPacker(ToPacker),
}

/// An increment that is being taken.
#[derive(Debug, Clone, Copy)]
struct Increment {
    checkpoint: u64,
    parts: u64,
}

/// A recorder, the requests of the core, and a brake.
///
/// # Order of calls
///
/// `handle_input` and `handle_request` for what came, `turn`, then `poll` until `None`, and
/// again after the time that `turn` says. A driver that packs increments on another thread uses
/// `poll_unpacked` instead of `poll`, and `hold_increment` while that thread is behind.
pub struct Vcpu<M> {
    recorder: Recorder<M>,
    /// The core's full checkpoint under way.
    checkpoint: Option<u64>,
    increment: Option<Increment>,
    /// A checkpoint of the disks alone: to be begun with the next one, and under way.
    disks_next: Option<u64>,
    disks: Option<u64>,
    /// No more of the increment is taken for now.
    increment_held: bool,
    packer: Packer,
    /// For somebody outside. While it is under way, the core's own full checkpoint waits.
    snapshot: Option<Snapshot>,
    deferred: Option<u64>,
    /// The guest stands still at a snapshot.
    held: bool,
    braked: bool,
    /// Inputs that came while the guest was held.
    waiting: VecDeque<Event>,
    end_told: bool,
    told: VecDeque<Told>,
}

impl<M: Machine> Vcpu<M> {
    /// Runs this recorder.
    pub fn new(recorder: Recorder<M>) -> Self {
        Vcpu {
            recorder,
            checkpoint: None,
            increment: None,
            disks_next: None,
            disks: None,
            increment_held: false,
            packer: Packer::new(None),
            snapshot: None,
            deferred: None,
            held: false,
            braked: false,
            waiting: VecDeque::new(),
            end_told: false,
            told: VecDeque::new(),
        }
    }

    /// An input for the guest. While the guest is held, inputs wait, and more than a network
    /// card's ring of them are dropped.
    pub fn handle_input(&mut self, event: Event, now_ns: u64) {
        if !self.braked && !self.held {
            self.recorder.handle_input(event, now_ns);
        } else if self.waiting.len() < WAITING_INPUTS {
            self.waiting.push_back(event);
        }
    }

    /// The core wants something.
    pub fn handle_request(&mut self, request: MachineRequest, now_ns: u64) {
        match request {
            MachineRequest::BeginCheckpoint { checkpoint, extent: CheckpointExtent::Full, .. }
                if self.snapshot.is_some() =>
            {
                self.deferred = Some(checkpoint);
            }
            MachineRequest::BeginCheckpoint { checkpoint, extent, fresh } => {
                self.begin_checkpoint(checkpoint, extent, fresh, now_ns);
            }
            MachineRequest::FreezeDisks { checkpoint } => self.disks_next = Some(checkpoint),
            MachineRequest::LinkRate { bytes_per_s } => {
                self.told.push_back(Told::ToPacker(ToPacker::LinkRate { bytes_per_s }));
            }
            MachineRequest::CancelCheckpoint { checkpoint } if self.deferred == Some(checkpoint) => {
                self.deferred = None;
            }
            MachineRequest::TakePages { checkpoint, limit } if self.checkpoint == Some(checkpoint) => {
                let part = self.recorder.take_checkpoint_pages(CheckpointExtent::Full, limit);
                if part.is_empty() {
                    self.checkpoint = None;
                }
                self.tell(FromMachine::CheckpointPart { checkpoint, part });
            }
            MachineRequest::TakePages { checkpoint, limit } if self.disks == Some(checkpoint) => {
                let part = self.recorder.take_checkpoint_pages(CheckpointExtent::Disks, limit);
                self.disks = self.disks.filter(|_| !part.is_empty());
                self.tell(FromMachine::CheckpointPart { checkpoint, part });
            }
            MachineRequest::CancelCheckpoint { checkpoint } if self.disks == Some(checkpoint) => {
                self.disks = None;
                self.recorder.cancel_checkpoint(CheckpointExtent::Disks);
            }
            MachineRequest::CancelCheckpoint { checkpoint } if self.checkpoint == Some(checkpoint) => {
                self.checkpoint = None;
                self.recorder.cancel_checkpoint(CheckpointExtent::Full);
            }
            MachineRequest::CancelCheckpoint { checkpoint }
                if self.increment.is_some_and(|increment| increment.checkpoint == checkpoint) =>
            {
                self.increment = None;
                self.recorder.cancel_checkpoint(CheckpointExtent::Increment);
            }
            MachineRequest::TakePages { .. } | MachineRequest::CancelCheckpoint { .. } => {}
        }
    }

    fn begin_checkpoint(&mut self, checkpoint: u64, extent: CheckpointExtent, fresh: bool, now_ns: u64) {
        let begun = Box::new(self.recorder.begin_checkpoint(extent, now_ns));
        self.tell(FromMachine::CheckpointBegun { checkpoint, begun });
        if let Some(disks) = self.disks_next.take() {
            self.recorder.freeze_disks();
            self.disks = Some(disks);
        }
        match extent {
            CheckpointExtent::Full => self.checkpoint = Some(checkpoint),
            CheckpointExtent::Disks => self.disks = Some(checkpoint),
            CheckpointExtent::Epoch => {
                // What its receivers hold from now on was not packed here.
                self.increment = None;
                self.told.push_back(Told::ToPacker(ToPacker::Begin { fresh: true }));
            }
            CheckpointExtent::Increment => {
                self.increment = Some(Increment { checkpoint, parts: 0 });
                self.told.push_back(Told::ToPacker(ToPacker::Begin { fresh }));
            }
        }
    }

    /// Adds what only the driver can measure: how long the guest stood still for the checkpoint
    /// that was begun just now.
    pub fn note_pause(&mut self, measured_ns: u64) {
        let begun = self.told.iter_mut().rev().find_map(|told| match told {
            Told::ToCore(FromMachine::CheckpointBegun { begun, .. }) => Some(begun),
            _ => None,
        });
        if let Some(begun) = begun {
            begun.pause_ns = measured_ns;
        }
    }

    /// Takes no more of an increment until it is let go on: what was taken is not packed yet.
    pub fn hold_increment(&mut self, held: bool) {
        self.increment_held = held;
    }

    /// Whether pages of an increment are still to be taken.
    pub fn is_taking_increment(&self) -> bool {
        self.increment.is_some()
    }

    /// Takes a bite of the increment under way. Whether there may be more.
    fn advance_increment(&mut self) -> bool {
        let Some(increment) = self.increment.as_mut().filter(|_| !self.increment_held) else { return false };
        let checkpoint = increment.checkpoint;
        let part = self.recorder.take_checkpoint_pages(CheckpointExtent::Increment, BITE_UNITS);
        if !part.is_empty() {
            increment.parts += 1;
            self.told.push_back(Told::ToPacker(ToPacker::Pages { checkpoint, part }));
            return true;
        }
        let parts = increment.parts;
        self.increment = None;
        if let Some(digest) = self.recorder.checkpoint_digest() {
            self.told.push_back(Told::ToPacker(ToPacker::End { checkpoint, parts, digest }));
        }
        false
    }

    /// Begins a snapshot for somebody outside. The order is dropped, which its other end
    /// sees, while another full checkpoint is under way.
    ///
    /// Whether it was begun.
    pub fn handle_snapshot(&mut self, order: SnapshotOrder, now_ns: u64) -> bool {
        if self.checkpoint.is_some() || self.snapshot.is_some() {
            return false;
        }
        self.held = order.hold;
        let (snapshot, before) = Snapshot::begin(&mut self.recorder, order, now_ns);
        self.tell(FromMachine::Recorded(before));
        self.snapshot = Some(snapshot);
        true
    }

    /// Lets a guest go on that stands still at a snapshot.
    pub fn release(&mut self, now_ns: u64) {
        self.held = false;
        self.inject_waiting(now_ns);
    }

    /// Adds what only the driver knows of a snapshot that was begun just now.
    pub fn note_snapshot(&mut self, unix_ns: u64, pause_ns: u64) {
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.note(unix_ns, pause_ns);
        }
    }

    /// Takes a bite of the snapshot under way; [`Advance::Done`] where there is none.
    pub fn advance_snapshot(&mut self, now_ns: u64) -> Advance {
        let Some(snapshot) = &mut self.snapshot else { return Advance::Done };
        let advance = snapshot.advance(&mut self.recorder);
        if advance == Advance::Done {
            self.snapshot = None;
            if let Some(checkpoint) = self.deferred.take() {
                self.begin_checkpoint(checkpoint, CheckpointExtent::Full, false, now_ns);
            }
        }
        advance
    }

    /// Holds the guest, or lets it go on.
    pub fn brake(&mut self, braked: bool, now_ns: u64) {
        self.braked = braked;
        self.inject_waiting(now_ns);
    }

    fn inject_waiting(&mut self, now_ns: u64) {
        while !self.braked
            && !self.held
            && let Some(event) = self.waiting.pop_front()
        {
            self.recorder.handle_input(event, now_ns);
        }
    }

    /// Runs one slice, unless there is a reason not to, and takes a bite of an increment.
    /// [`Step::Stalled`] waits for a request or for the brake.
    pub fn turn(&mut self, now_ns: u64) -> Step {
        let step = match self.braked || self.held {
            true => Step::Stalled,
            false => self.recorder.step(now_ns),
        };
        let recorded = match step {
            Step::Continue => self.recorder.poll_recorded(now_ns),
            Step::Sleep { .. } | Step::Stalled | Step::Halted { .. } | Step::HostFault { .. } => {
                self.recorder.take_recorded(now_ns)
            }
        };
        self.told.extend(recorded.map(FromMachine::Recorded).map(Told::ToCore));
        let end = match step {
            Step::Halted { code } => Some(FromMachine::Halted { code }),
            Step::HostFault { part } => Some(FromMachine::HostFault { part }),
            Step::Continue | Step::Sleep { .. } | Step::Stalled => None,
        };
        if let Some(end) = end
            && !std::mem::replace(&mut self.end_told, true)
        {
            self.tell(end);
        }
        match self.advance_increment() {
            true => Step::Continue,
            false => step,
        }
    }

    /// Gives the present state to `keep`, for diagnosis: its head, and its parts until an
    /// empty one. The guest stands still meanwhile. Not while a full checkpoint is under way.
    pub fn keep_state<T>(
        &mut self,
        now_ns: u64,
        keep: impl FnOnce(CheckpointHead, &mut dyn FnMut() -> CheckpointPart) -> T,
    ) -> Option<T> {
        if self.checkpoint.is_some() || self.snapshot.is_some() {
            return None;
        }
        let begun = self.recorder.begin_checkpoint(CheckpointExtent::Full, now_ns);
        self.tell(FromMachine::Recorded(begun.before));
        let recorder = &mut self.recorder;
        let mut next = || recorder.take_checkpoint_pages(CheckpointExtent::Full, KEPT_PAGES);
        Some(keep(begun.head, &mut next))
    }

    /// What the core has to know next. Increments are packed here and now.
    pub fn poll(&mut self) -> Option<FromMachine> {
        while let Some(told) = self.told.pop_front() {
            let message = match told {
                Told::ToCore(message) => Some(message),
                Told::ToPacker(input) => self.packer.handle(input),
            };
            if message.is_some() {
                return message;
            }
        }
        None
    }

    /// What the core, or a packer elsewhere, has to know next.
    pub fn poll_unpacked(&mut self) -> Option<Told> {
        self.told.pop_front()
    }

    fn tell(&mut self, message: FromMachine) {
        self.told.push_back(Told::ToCore(message));
    }

    /// Everything up to now, at the end of the thread.
    pub fn stop(&mut self, now_ns: u64) {
        self.told.extend(self.recorder.take_recorded(now_ns).map(FromMachine::Recorded).map(Told::ToCore));
    }

    /// The recorder, to look at it.
    pub fn recorder(&self) -> &Recorder<M> {
        &self.recorder
    }

    /// Gives the machine back.
    pub fn into_machine(self) -> M {
        self.recorder.into_machine()
    }
}
