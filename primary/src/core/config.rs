//! How a primary works: what an operator may set, with defaults for two hosts on one LAN.

use link::detector::DetectorConfig;
use log_format::{MachineIdentity, PROTOCOL_VERSION, ProtectionMode};
use netbuf::BufferLimits;

use super::MILLISECOND_NS;

/// What a primary does when it loses its backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnBackupLoss {
    /// Goes on alone, once the arbiter agrees.
    #[default]
    Continue,
    /// Stands still until a backup is in step again, or the operator says to go on alone.
    Pause,
}

/// How many of the backups must hold an output before it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Release {
    /// All of them: any one can take over, at once.
    #[default]
    All,
    /// More than half: a slow one holds nothing up, and most must speak before a takeover.
    Quorum,
    /// One: the quickest decides, and all must speak before a takeover.
    Any,
}

impl Release {
    /// How many of this many backups.
    pub fn required(self, backups: usize) -> usize {
        match self {
            Release::All => backups,
            Release::Quorum => (backups / 2 + 1).min(backups),
            Release::Any => backups.min(1),
        }
    }
}

/// When log counts as held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// When it is in the memory of the backups: one host may fail.
    #[default]
    Memory,
    /// When it is on the disks of the backups and of this host: all may fail at once.
    Disk,
}

/// Which protection mode is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModeChoice {
    /// This one.
    Fixed(ProtectionMode),
    /// What fits the link, the load and the backup, chosen anew all the time.
    Auto,
}

impl Default for ModeChoice {
    fn default() -> Self {
        ModeChoice::Fixed(ProtectionMode::Replay)
    }
}

/// What begins an increment in `checkpoint` mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trigger {
    /// The clock (Remus).
    #[default]
    Clock,
    /// An output that waits, or the clock at its slowest rate (Kemari).
    Output,
}

/// When increments are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochConfig {
    /// Shortest time from one to the next in `checkpoint` mode.
    pub shortest_ns: u64,
    /// Longest time from one to the next in `checkpoint` mode.
    pub longest_ns: u64,
    /// Aim for the time that the guest stands still at one.
    pub pause_ns: u64,
    /// Aim for the time that an output waits.
    pub delay_ns: u64,
    /// What begins one.
    pub trigger: Trigger,
    /// In `hybrid` mode: time that a takeover may need to replay the log. Half of it is left to
    /// the next increment.
    pub takeover_within_ns: u64,
    /// In `hybrid` mode: bytes of log after which one is taken in any case.
    pub log_max_bytes: u64,
}

impl Default for EpochConfig {
    fn default() -> Self {
        EpochConfig {
            shortest_ns: 10 * MILLISECOND_NS,
            longest_ns: 100 * MILLISECOND_NS,
            pause_ns: MILLISECOND_NS,
            delay_ns: 30 * MILLISECOND_NS,
            trigger: Trigger::default(),
            takeover_within_ns: 1_000 * MILLISECOND_NS,
            log_max_bytes: 8 << 20,
        }
    }
}

/// How a [`Primary`](super::Primary) works. The defaults are for two hosts on one LAN.
#[derive(Debug, Clone)]
pub struct CoreConfig {
    /// Name of the virtual machine.
    pub vm: String,
    /// This node's name, as the arbiter knows it.
    pub node: String,
    /// What the machine is made of.
    pub identity: MachineIdentity,
    /// What to do without a backup.
    pub on_backup_loss: OnBackupLoss,
    /// Time between heartbeats.
    pub heartbeat_interval_ns: u64,
    /// How a silent backup is judged.
    pub detector: DetectorConfig,
    /// How long events without outputs wait for a batch.
    pub batch_interval_ns: u64,
    /// Size at which a batch is sealed.
    pub batch_max_bytes: u64,
    /// Log kept in memory for a backup that comes back.
    pub tail_max_bytes: u64,
    /// Log that a backup may leave unacknowledged: beyond it, it is too slow.
    pub unacked_max_bytes: u64,
    /// How long a backup may leave the oldest batch unacknowledged.
    pub unacked_max_ns: u64,
    /// A machine that has executed more than this is joined by a checkpoint, though the log
    /// may reach back to its boot: replaying takes as long as executing did.
    pub log_from_boot_max_icount: u64,
    /// What may wait in memory to be sent to a backup that joins.
    pub join_backlog_max_bytes: u64,
    /// Pages and blocks of a checkpoint taken in one bite.
    pub checkpoint_bite_pages: usize,
    /// No more of a checkpoint is taken while this much waits to be sent.
    pub checkpoint_window_bytes: u64,
    /// Outputs held before the machine must rest.
    pub buffer: BufferLimits,
    /// Whether batches are handed to [`super::Primary::poll_store`].
    pub store: bool,
    /// How long a step of the ending may wait for the other side or the arbiter.
    pub ending_max_ns: u64,
    /// How many backups are taken. More may stand by: they are refused as long as there is no
    /// room.
    pub backups_max: usize,
    /// How many of them must hold an output.
    pub release: Release,
    /// When log counts as held.
    pub durability: Durability,
    /// Which protection mode is wanted.
    pub mode: ModeChoice,
    /// When increments are taken.
    pub epoch: EpochConfig,
    /// The newest protocol version to speak: older ones are for tests of an upgrade.
    pub protocol_max: u8,
}

impl CoreConfig {
    /// The defaults for this VM on this node.
    pub fn new(vm: &str, node: &str, identity: MachineIdentity) -> Self {
        CoreConfig {
            vm: vm.to_owned(),
            node: node.to_owned(),
            identity,
            on_backup_loss: OnBackupLoss::default(),
            heartbeat_interval_ns: 40 * MILLISECOND_NS,
            detector: DetectorConfig::default(),
            batch_interval_ns: 2 * MILLISECOND_NS,
            batch_max_bytes: 64 << 10,
            tail_max_bytes: 8 << 20,
            unacked_max_bytes: 8 << 20,
            unacked_max_ns: 5_000 * MILLISECOND_NS,
            log_from_boot_max_icount: 50_000_000,
            join_backlog_max_bytes: 12 << 20,
            checkpoint_bite_pages: 64,
            checkpoint_window_bytes: 1 << 20,
            buffer: BufferLimits { bytes: 8 << 20, ..BufferLimits::default() },
            store: false,
            ending_max_ns: 2_000 * MILLISECOND_NS,
            backups_max: 1,
            release: Release::default(),
            durability: Durability::default(),
            mode: ModeChoice::default(),
            epoch: EpochConfig::default(),
            protocol_max: PROTOCOL_VERSION,
        }
    }
}
