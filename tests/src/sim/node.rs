//! One host: its cores and threads, driven as the real drivers do it.

use std::collections::BTreeMap;

use backup::{Backup, FromReplayer, ReplayWorker, ToReplayer};
use link::arbitration::Record;
use log_format::{Event, Life, LogEntry};
use machine::PrimacyStart;
use primary::{FromMachine, MachineRequest, Primary, Recorder, RecorderConfig, Vcpu};

use super::clock::HostClock;
use super::log::HostLog;
use super::toy::{Defect, ToyConfig, ToyMachine};
use super::world::Base;

/// Makes machines at their boot.
pub type NewMachine = Box<dyn FnMut() -> ToyMachine>;

/// What a host runs.
pub enum Role {
    /// Nothing: it crashed, or its process ended.
    Down,
    /// The machine, live.
    Primary(Box<LivePrimary>),
    /// A copy that follows.
    Backup(Box<StandingBackup>),
}

/// A primary's core and its machine's thread.
pub struct LivePrimary {
    /// The core.
    pub core: Primary,
    /// The machine's thread.
    pub vcpu: Vcpu<ToyMachine>,
    /// What the thread was told last.
    pub braked: bool,
}

/// A backup's core and its replay thread.
pub struct StandingBackup {
    /// The core.
    pub core: Backup,
    /// The replay thread.
    pub worker: ReplayWorker<ToyMachine, NewMachine>,
}

/// A message to the machine's thread.
#[derive(Debug)]
pub enum ToVcpu {
    /// An input for the guest.
    Input(Event),
    /// The core wants something.
    Request(MachineRequest),
    /// The guest is held, or let go on.
    Brake(bool),
}

/// What moves between the threads of one host.
#[derive(Debug)]
pub enum Hop {
    /// To the machine's thread.
    ToVcpu(ToVcpu),
    /// From it.
    FromVcpu(FromMachine),
    /// To the replay thread.
    ToReplayer(ToReplayer),
    /// From it.
    FromReplayer(FromReplayer),
}

impl Hop {
    /// Which queue it takes: each keeps its order.
    pub fn queue(&self) -> usize {
        match self {
            Hop::ToVcpu(_) => 0,
            Hop::FromVcpu(_) => 1,
            Hop::ToReplayer(_) => 2,
            Hop::FromReplayer(_) => 3,
        }
    }
}

/// A host.
pub struct Node {
    /// Its name, as the arbiter knows it.
    pub name: String,
    /// What it runs.
    pub role: Role,
    /// Which life: what was meant for an earlier one is lost.
    pub epoch: u64,
    /// The same, as the arbiter knows it.
    pub life: Life,
    /// Its monotonic clock.
    pub clock: HostClock,
    /// Its log, in a run that keeps logs, and whether that has something to do already.
    pub log: Option<HostLog>,
    /// See `log`.
    pub log_busy: bool,
    /// The machine that its last life ran, or followed with.
    pub left: Option<ToyMachine>,
    /// By term: the block that was not right, if one was, when its disk was last hashed for a comparison.
    pub hashed_rotten: BTreeMap<u64, Option<u64>>,
    /// The machine before its log, on its disk, where output waits for the disks.
    pub base: Option<Base>,
    /// What its disk held when its power failed.
    pub durable: Option<(Base, Vec<LogEntry>)>,
    /// The arbiter keeps its lease until then (virtual time).
    pub lease_until_ns: u64,
    /// The set of backups that the arbiter was asked for, and has not answered.
    pub asked_set: Option<Record>,
    /// Counts its attempts to connect: each begins with another host.
    pub dials: usize,
    /// Stands still until then.
    pub paused_until_ns: u64,
    /// Runs slowly until then.
    pub slow_until_ns: u64,
    /// Cannot reach the arbiter until then.
    pub arbiter_cut_until_ns: u64,
    /// The arbiter's next answer to it is lost.
    pub lose_answer: bool,
    /// The arbiter's next answer to it finds it standing still, for so long.
    pub pause_before_answer_ns: Option<u64>,
    /// The arbiter said that another node leads, and the answer is on its way.
    pub refused: bool,
    /// Numbers of the last timer and thread wake-ups asked for: older ones are void.
    pub timer: u64,
    /// See `timer`.
    pub thread: u64,
    /// When the last message of each queue arrives.
    pub last_hop_ns: [u64; 4],
    /// Outputs that it covered as the backup of a term, when it stopped to be it.
    pub covered: BTreeMap<u64, u64>,
}

impl Node {
    /// A host that runs nothing.
    pub fn new(name: &str, clock: HostClock) -> Self {
        Node {
            name: name.to_owned(),
            role: Role::Down,
            epoch: 0,
            life: Life::UNKNOWN,
            clock,
            log: None,
            log_busy: false,
            left: None,
            hashed_rotten: BTreeMap::new(),
            base: None,
            durable: None,
            lease_until_ns: 0,
            asked_set: None,
            dials: 0,
            paused_until_ns: 0,
            slow_until_ns: 0,
            arbiter_cut_until_ns: 0,
            lose_answer: false,
            pause_before_answer_ns: None,
            refused: false,
            timer: 0,
            thread: 0,
            last_hop_ns: [0; 4],
            covered: BTreeMap::new(),
        }
    }

    /// Its primary, if that is what it runs.
    pub fn primary(&mut self) -> Option<&mut LivePrimary> {
        match &mut self.role {
            Role::Primary(live) => Some(live),
            _ => None,
        }
    }

    /// Its backup, if that is what it runs.
    pub fn backup(&mut self) -> Option<&mut StandingBackup> {
        match &mut self.role {
            Role::Backup(standing) => Some(standing),
            _ => None,
        }
    }

    /// Outputs that it can make again as the backup in `term`.
    pub fn covers(&self, term: u64) -> Option<u64> {
        let live = match &self.role {
            Role::Backup(standing) if standing.core.term() == term => Some(standing.core.outputs_covered()),
            // Taking over, it has the next term already.
            Role::Backup(standing)
                if standing.core.term() == term + 1 && standing.core.state_name() == "taking over" =>
            {
                Some(standing.core.outputs_covered())
            }
            _ => None,
        };
        live.max(self.covered.get(&term).copied())
    }

    /// Whether it could take over by this record, or is doing so. One that was refused gives up,
    /// though the record may have come to name it meanwhile.
    pub fn is_heir(&self, record: &Record) -> bool {
        let is_named = record.counts_on(&self.name) && record.may_mean(&self.name, self.life);
        match &self.role {
            Role::Backup(_) if self.refused || !is_named => false,
            Role::Backup(standing) => standing.core.is_in_step() && standing.core.finished().is_none(),
            _ => false,
        }
    }

    /// Keeps in mind what it covers as a backup: it may stop to be one, or follow another primary,
    /// and what it acknowledged before may leave nevertheless.
    pub fn remember_covered(&mut self) {
        if let Role::Backup(standing) = &self.role {
            let covered = self.covered.entry(standing.core.term()).or_default();
            *covered = (*covered).max(standing.core.outputs_covered());
        }
    }
}

/// How the recorder works in a simulation: small slices, frequent digests.
pub fn recorder_config() -> RecorderConfig {
    RecorderConfig {
        slice_instructions: 128,
        digest_interval_instructions: 3_000,
        digest_interval_ns: 60_000_000,
        digest_min_instructions: 200,
        checkpoint_held_max_bytes: 12 * 4096,
        ..RecorderConfig::default()
    }
}

/// A primary that begins here.
pub fn live_primary(
    config: primary::CoreConfig,
    machine: ToyMachine,
    start: PrimacyStart,
    now_ns: u64,
) -> Box<LivePrimary> {
    let events = start.events_before;
    let recorder = match start.clock_offset_ns {
        Some(offset_ns) => Recorder::take_over(machine, recorder_config(), events, offset_ns, now_ns),
        None => Recorder::new(machine, recorder_config(), events, now_ns),
    };
    let core = Primary::new(config, start, now_ns);
    Box::new(LivePrimary { core, vcpu: Vcpu::new(recorder), braked: false })
}

/// A backup that knows nothing.
pub fn standing_backup(
    config: backup::CoreConfig,
    toy: ToyConfig,
    (defect, mut first): (Option<Defect>, Option<ToyMachine>),
    now_ns: u64,
) -> Box<StandingBackup> {
    let new_machine: NewMachine =
        Box::new(move || first.take().unwrap_or_else(|| ToyMachine::new(toy)).with_defect(defect));
    Box::new(StandingBackup { core: Backup::new(config, now_ns), worker: ReplayWorker::new(new_machine) })
}
