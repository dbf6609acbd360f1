//! What goes wrong, and when. Only what a fault-tolerant cluster must survive: the last copy of
//! the machine is never killed.

use super::network::WireFault;
use super::random::Random;

const MILLISECOND_NS: u64 = 1_000_000;

/// A kind of thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// The primary's process is killed.
    CrashPrimary,
    /// A backup's process is killed.
    CrashBackup,
    /// A process stands still.
    Pause,
    /// Nothing gets through both ways.
    Partition,
    /// Nothing gets through one way.
    OneWayPartition,
    /// All connections break.
    Reset,
    /// A bit of a frame flips.
    Corruption,
    /// A frame comes twice.
    Duplication,
    /// Two frames change places.
    Reordering,
    /// A frame is lost.
    Loss,
    /// A host cannot reach the arbiter.
    ArbiterCut,
    /// The next answer of the arbiter is lost, though it acted.
    ArbiterAnswerLost,
    /// Nobody can reach the arbiter.
    ArbiterDown,
    /// The arbiter takes long.
    ArbiterSlow,
    /// The next answer of the arbiter comes to a host that stood still meanwhile.
    AnswerAfterPause,
    /// A host's processor is slow.
    SlowMachine,
    /// A host's disk has no room.
    DiskFull,
    /// A host's disk fails.
    DiskFailing,
    /// A host's disk is slow.
    DiskSlow,
    /// A bit of a log flips on disk.
    BitRot,
    /// A host's monotonic clock runs at another rate.
    ClockRate,
    /// A host's monotonic clock jumps forward.
    ClockJump,
    /// The operator says to go on alone, where policy is to wait.
    OperatorGoesAlone,
    /// The operator stops the primary in an orderly way: its backup takes over.
    OperatorStopsPrimary,
    /// The operator hands the machine to a backup.
    OperatorSwitchesOver,
    /// The operator chooses another protection mode.
    OperatorChangesMode,
    /// All hosts lose their power at once, where output waits for the disks.
    PowerCut,
}

impl FaultKind {
    /// Every kind.
    pub const ALL: [FaultKind; 27] = [
        FaultKind::CrashPrimary,
        FaultKind::CrashBackup,
        FaultKind::Pause,
        FaultKind::Partition,
        FaultKind::OneWayPartition,
        FaultKind::Reset,
        FaultKind::Corruption,
        FaultKind::Duplication,
        FaultKind::Reordering,
        FaultKind::Loss,
        FaultKind::ArbiterCut,
        FaultKind::ArbiterAnswerLost,
        FaultKind::ArbiterDown,
        FaultKind::ArbiterSlow,
        FaultKind::AnswerAfterPause,
        FaultKind::SlowMachine,
        FaultKind::DiskFull,
        FaultKind::DiskFailing,
        FaultKind::DiskSlow,
        FaultKind::BitRot,
        FaultKind::ClockRate,
        FaultKind::ClockJump,
        FaultKind::OperatorGoesAlone,
        FaultKind::OperatorStopsPrimary,
        FaultKind::OperatorSwitchesOver,
        FaultKind::OperatorChangesMode,
        FaultKind::PowerCut,
    ];

    /// Its name in the coverage.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::CrashPrimary => "crash primary",
            FaultKind::CrashBackup => "crash backup",
            FaultKind::Pause => "pause",
            FaultKind::Partition => "partition",
            FaultKind::OneWayPartition => "one-way partition",
            FaultKind::Reset => "reset",
            FaultKind::Corruption => "corruption",
            FaultKind::Duplication => "duplication",
            FaultKind::Reordering => "reordering",
            FaultKind::Loss => "loss",
            FaultKind::ArbiterCut => "arbiter cut",
            FaultKind::ArbiterAnswerLost => "arbiter answer lost",
            FaultKind::ArbiterDown => "arbiter down",
            FaultKind::ArbiterSlow => "arbiter slow",
            FaultKind::AnswerAfterPause => "answer after a pause",
            FaultKind::SlowMachine => "slow machine",
            FaultKind::DiskFull => "disk full",
            FaultKind::DiskFailing => "disk failing",
            FaultKind::DiskSlow => "disk slow",
            FaultKind::BitRot => "bit rot",
            FaultKind::ClockRate => "clock rate",
            FaultKind::ClockJump => "clock jump",
            FaultKind::OperatorGoesAlone => "operator goes alone",
            FaultKind::OperatorStopsPrimary => "operator stops primary",
            FaultKind::OperatorSwitchesOver => "operator switches over",
            FaultKind::OperatorChangesMode => "operator changes mode",
            FaultKind::PowerCut => "power cut",
        }
    }

    /// Whether it needs a host with a log.
    pub fn is_of_disk(self) -> bool {
        use FaultKind::{BitRot, DiskFailing, DiskFull, DiskSlow};
        matches!(self, DiskFull | DiskFailing | DiskSlow | BitRot)
    }

    /// What it does to a frame, if it is a fault of the wire.
    pub fn wire(self) -> Option<WireFault> {
        match self {
            FaultKind::Corruption => Some(WireFault::Corrupt),
            FaultKind::Duplication => Some(WireFault::Duplicate),
            FaultKind::Reordering => Some(WireFault::Reorder),
            FaultKind::Loss => Some(WireFault::Drop),
            _ => None,
        }
    }

    /// How often it is drawn among the others.
    fn weight(self) -> u64 {
        match self {
            FaultKind::CrashPrimary => 18,
            FaultKind::CrashBackup | FaultKind::Pause => 12,
            FaultKind::Partition | FaultKind::Reset => 8,
            FaultKind::OneWayPartition | FaultKind::ArbiterCut => 6,
            FaultKind::Corruption | FaultKind::Duplication | FaultKind::Reordering | FaultKind::Loss => 4,
            FaultKind::ArbiterAnswerLost | FaultKind::SlowMachine => 4,
            FaultKind::ArbiterDown | FaultKind::ArbiterSlow | FaultKind::AnswerAfterPause => 4,
            FaultKind::ClockRate | FaultKind::ClockJump => 4,
            FaultKind::DiskFull | FaultKind::DiskFailing | FaultKind::DiskSlow | FaultKind::BitRot => 2,
            FaultKind::OperatorGoesAlone | FaultKind::OperatorStopsPrimary | FaultKind::PowerCut => 2,
            FaultKind::OperatorSwitchesOver => 3,
            FaultKind::OperatorChangesMode => 6,
        }
    }
}

/// Something that goes wrong for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// On this host, where it is one's.
    pub host: usize,
    /// And that one, where it is between two.
    pub other: usize,
    /// For how long, where it gets well by itself.
    pub for_ns: u64,
}

/// Draws the faults of a run. Each run has two kinds in focus, which it tries to bring together
/// in time; all others come too.
#[derive(Debug)]
pub struct Plan {
    focus: [FaultKind; 2],
    /// Which of the focus comes next, and whether it is to follow the other soon.
    next: usize,
    soon: bool,
}

impl Plan {
    /// A plan with this focus.
    pub fn new(focus: (FaultKind, FaultKind)) -> Self {
        Plan { focus: [focus.0, focus.1], next: 0, soon: false }
    }

    /// Whether a fault of the disk is in focus.
    pub fn needs_logs(&self) -> bool {
        self.focus.iter().any(|kind| kind.is_of_disk())
    }

    /// Whether these two are in focus.
    pub fn has_both(&self, one: FaultKind, other: FaultKind) -> bool {
        self.focus == [one, other] || self.focus == [other, one]
    }

    /// Whether this kind is in focus.
    pub fn has(&self, kind: FaultKind) -> bool {
        self.focus.contains(&kind)
    }

    /// The next thing to go wrong among so many hosts.
    pub fn draw(&mut self, random: &mut Random, hosts: usize) -> Fault {
        let focused = random.chance(if self.soon { 800 } else { 450 });
        let kind = if focused { self.focus[self.next] } else { draw_kind(random) };
        let host = random.between(0, hosts as u64 - 1) as usize;
        let other = (host + 1 + random.between(0, hosts as u64 - 2) as usize) % hosts;
        let short_ns = random.between(1, 90) * MILLISECOND_NS;
        let long_ns = random.between(20, 1_500) * MILLISECOND_NS;
        let for_ns = if random.chance(400) { short_ns } else { long_ns };
        Fault { kind, host, other, for_ns }
    }

    /// What became of the fault drawn last. Returns the wait before the next.
    pub fn outcome(&mut self, random: &mut Random, fault: Fault, done: bool) -> u64 {
        let focused = fault.kind == self.focus[self.next];
        if focused && done {
            self.soon = !self.soon;
            self.next = 1 - self.next;
        }
        match (focused, done) {
            // It could not be done just now: perhaps soon.
            (true, false) => random.between(3, 60) * MILLISECOND_NS,
            (true, true) if self.soon => random.between(0, 15 * MILLISECOND_NS),
            _ if random.chance(300) => random.between(0, 20 * MILLISECOND_NS),
            _ => random.between(50, 800) * MILLISECOND_NS,
        }
    }
}

fn draw_kind(random: &mut Random) -> FaultKind {
    let total: u64 = FaultKind::ALL.iter().map(|kind| kind.weight()).sum();
    let mut left = random.between(0, total - 1);
    for kind in FaultKind::ALL {
        match left.checked_sub(kind.weight()) {
            Some(rest) => left = rest,
            None => return kind,
        }
    }
    unreachable!("the weights sum up to their total")
}
