//! What a seed's cluster is made of: hosts, links, and how the operator configured it.

use log_format::ProtectionMode;
use primary::{ModeChoice, OnBackupLoss, Release, Trigger};

use super::faults::{FaultKind, Plan};
use super::random::Random;

/// A cluster and its configuration.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// How many hosts there are. One begins as the primary; the others stand by.
    pub hosts: usize,
    /// How many of them are counted on at most.
    pub backups_max: usize,
    /// How many of those must hold an output.
    pub release: Release,
    /// What a primary does without.
    pub policy: OnBackupLoss,
    /// The protection mode at the beginning.
    pub mode: ModeChoice,
    /// What begins an increment in `checkpoint` mode.
    pub trigger: Trigger,
    /// Output waits for the disks, too.
    pub durable: bool,
    /// Every host keeps a log.
    pub logs: bool,
    /// The arbiter gives leases, and tells of each new record.
    pub leases: bool,
    /// Shortest and longest way of a message.
    pub latency_ns: (u64, u64),
}

impl Shape {
    /// Draws one that the plan's faults can hit.
    pub fn draw(random: &mut Random, plan: &Plan) -> Shape {
        let latency_ns = *random.pick(&[(20_000, 120_000), (100_000, 2_000_000), (1_000_000, 9_000_000)]);
        // Only who waits needs the operator's word.
        let waits = random.chance(200) || plan.has(FaultKind::OperatorGoesAlone);
        let several = random.chance(450) || plan.has_both(FaultKind::CrashPrimary, FaultKind::CrashBackup);
        let hosts = if several { random.between(3, 4) as usize } else { 2 };
        let durable = random.chance(60) || plan.has(FaultKind::PowerCut);
        Shape {
            hosts,
            backups_max: random.between(1, hosts as u64 - 1) as usize,
            release: *random.pick(&[Release::All, Release::Quorum, Release::Any]),
            policy: if waits { OnBackupLoss::Pause } else { OnBackupLoss::Continue },
            mode: draw_mode(random),
            trigger: *random.pick(&[Trigger::Clock, Trigger::Output]),
            durable,
            logs: durable || plan.needs_logs() || random.chance(50),
            leases: random.chance(300),
            latency_ns,
        }
    }
}

/// A mode that an operator may choose.
pub fn draw_mode(random: &mut Random) -> ModeChoice {
    match random.between(0, 9) {
        0..4 => ModeChoice::Fixed(ProtectionMode::Replay),
        4..6 => ModeChoice::Fixed(ProtectionMode::Hybrid),
        6..9 => ModeChoice::Fixed(ProtectionMode::Checkpoint),
        _ => ModeChoice::Auto,
    }
}
