//! What the machine's thread does between two waits: the same for a real thread and for the
//! simulator.

use std::collections::VecDeque;

use log_format::{CheckpointHead, CheckpointPart, Event};
use machine::Machine;

use crate::core::MachineRequest;
use crate::recorder::{CheckpointBegun, Recorded, Recorder, Step};
use crate::snapshot::{Advance, Snapshot, SnapshotOrder};

/// Inputs kept while the guest is held.
const WAITING_INPUTS: usize = 256;
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
    /// Pages of a checkpoint; empty at its end.
    CheckpointPart {
        /// Of which one.
        checkpoint: u64,
        /// The pages.
        part: CheckpointPart,
    },
    /// The guest ended.
    Halted {
        /// Its exit status.
        code: u32,
    },
    /// The host failed to read or write this disk: the machine stands still for good.
    HostFault {
        /// Index of the disk.
        disk: u8,
    },
}

/// A recorder, the requests of the core, and a brake.
///
/// # Order of calls
///
/// `handle_input` and `handle_request` for what came, `turn`, then `poll` until `None`, and
/// again after the time that `turn` says.
pub struct Vcpu<M> {
    recorder: Recorder<M>,
    checkpoint: Option<u64>,
    /// For somebody outside. While it is under way, the core's own checkpoint waits.
    snapshot: Option<Snapshot>,
    deferred: Option<u64>,
    /// The guest stands still at a snapshot.
    held: bool,
    braked: bool,
    /// Inputs that came while the guest was held.
    waiting: VecDeque<Event>,
    end_told: bool,
    told: VecDeque<FromMachine>,
}

impl<M: Machine> Vcpu<M> {
    /// Runs this recorder.
    pub fn new(recorder: Recorder<M>) -> Self {
        Vcpu {
            recorder,
            checkpoint: None,
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
            MachineRequest::BeginCheckpoint { checkpoint } if self.snapshot.is_some() => {
                self.deferred = Some(checkpoint);
            }
            MachineRequest::BeginCheckpoint { checkpoint } => {
                self.checkpoint = Some(checkpoint);
                let begun = Box::new(self.recorder.begin_checkpoint(now_ns));
                self.told.push_back(FromMachine::CheckpointBegun { checkpoint, begun });
            }
            MachineRequest::CancelCheckpoint { checkpoint } if self.deferred == Some(checkpoint) => {
                self.deferred = None;
            }
            MachineRequest::TakePages { checkpoint, limit } if self.checkpoint == Some(checkpoint) => {
                let part = self.recorder.take_checkpoint_pages(limit);
                if part.is_empty() {
                    self.checkpoint = None;
                }
                self.told.push_back(FromMachine::CheckpointPart { checkpoint, part });
            }
            MachineRequest::CancelCheckpoint { checkpoint } if self.checkpoint == Some(checkpoint) => {
                self.checkpoint = None;
                self.recorder.cancel_checkpoint();
            }
            MachineRequest::TakePages { .. } | MachineRequest::CancelCheckpoint { .. } => {}
        }
    }

    /// Begins a snapshot for somebody outside. The order is dropped, which its other end
    /// sees, while another checkpoint is under way.
    ///
    /// Whether it was begun.
    pub fn handle_snapshot(&mut self, order: SnapshotOrder, now_ns: u64) -> bool {
        if self.checkpoint.is_some() || self.snapshot.is_some() {
            return false;
        }
        self.held = order.hold;
        let (snapshot, before) = Snapshot::begin(&mut self.recorder, order, now_ns);
        self.told.push_back(FromMachine::Recorded(before));
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
                self.handle_request(MachineRequest::BeginCheckpoint { checkpoint }, now_ns);
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

    /// Runs one slice, unless there is a reason not to. [`Step::Stalled`] waits for a request
    /// or for the brake.
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
        self.told.extend(recorded.map(FromMachine::Recorded));
        let end = match step {
            Step::Halted { code } => Some(FromMachine::Halted { code }),
            Step::HostFault { disk } => Some(FromMachine::HostFault { disk }),
            Step::Continue | Step::Sleep { .. } | Step::Stalled => None,
        };
        if let Some(end) = end
            && !std::mem::replace(&mut self.end_told, true)
        {
            self.told.push_back(end);
        }
        step
    }

    /// Gives the present state to `keep`, for diagnosis: its head, and its parts until an
    /// empty one. The guest stands still meanwhile. Not while a checkpoint is under way.
    pub fn keep_state<T>(
        &mut self,
        now_ns: u64,
        keep: impl FnOnce(CheckpointHead, &mut dyn FnMut() -> CheckpointPart) -> T,
    ) -> Option<T> {
        if self.checkpoint.is_some() || self.snapshot.is_some() {
            return None;
        }
        let begun = self.recorder.begin_checkpoint(now_ns);
        self.told.push_back(FromMachine::Recorded(begun.before));
        let recorder = &mut self.recorder;
        Some(keep(begun.head, &mut || recorder.take_checkpoint_pages(KEPT_PAGES)))
    }

    /// What the core has to know next.
    pub fn poll(&mut self) -> Option<FromMachine> {
        self.told.pop_front()
    }

    /// Everything up to now, at the end of the thread.
    pub fn stop(&mut self, now_ns: u64) {
        self.told.extend(self.recorder.take_recorded(now_ns).map(FromMachine::Recorded));
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
