//! What the core says: what happened, how it ended, what its backups look like.

use std::net::SocketAddr;

use log_format::{Divergence, Moment, ProtectionMode};
use machine::HostPart;

use super::{ConnectionId, DiskComparison, ResyncCounts};

/// What happened, for the timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrimaryEvent {
    /// A backup asked to join and was refused.
    JoinRefused {
        /// The backup.
        node: String,
        /// Why.
        text: String,
    },
    /// A backup joins.
    Joining {
        /// The backup.
        node: String,
        /// How it comes into step.
        plan: log_format::JoinPlan,
    },
    /// The disks were compared with the backups', or why they could not be.
    DisksCompared(Result<DiskComparison, String>),
    /// All pages of the checkpoint are on their way.
    CheckpointShipped {
        /// Messages it took.
        parts: u64,
        /// What of it the backup did not need.
        counts: ResyncCounts,
    },
    /// The registered backup is counted on from now on.
    Protected {
        /// The backup.
        backup: String,
    },
    /// The backup is lost.
    BackupLost {
        /// The backup.
        node: String,
        /// Why.
        reason: String,
    },
    /// The guest stands still until a backup is back (policy pause).
    Paused,
    /// Output leaves without a backup.
    Alone,
    /// The arbiter cannot be asked; the question is repeated.
    ArbiterUnreachable {
        /// The question.
        step: String,
        /// What went wrong.
        text: String,
    },
    /// Another node is the primary: this one stops for good.
    Fenced {
        /// How that is known.
        text: String,
    },
    /// The backup's state differs from this one's: both are to be kept for diagnosis.
    Diverged {
        /// The backup.
        node: String,
        /// What it found.
        report: Divergence,
    },
    /// The other side broke the protocol, and its connection was ended.
    ProtocolError {
        /// What it did.
        text: String,
    },
    /// The guest ended.
    GuestEnded {
        /// Its exit status.
        code: u32,
    },
    /// Everything is done; see [`super::Primary::finished`].
    Finished,
    /// The protection mode changed.
    ModeChanged {
        /// The mode from here on.
        mode: ProtectionMode,
        /// Why.
        why: String,
    },
    /// The log's disk has no room: nothing leaves until there is.
    LogWaits {
        /// What the disk says.
        text: String,
    },
    /// The log's disk has no room, or fails: the log ends, and protection goes on without it.
    LogEnded {
        /// What the disk says.
        text: String,
    },
    /// The log is written again.
    LogGoesOn,
    /// The lease at the arbiter is not provably valid: output is held.
    LeaseLost,
    /// The lease is valid again.
    LeaseHeld,
    /// A planned switchover did not happen; the machine goes on here.
    SwitchoverFailed {
        /// Why.
        text: String,
    },
}

/// How a primacy ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// The guest powered itself off.
    GuestEnded {
        /// Its exit status.
        code: u32,
    },
    /// The operator stopped this side. A registered backup takes over.
    Stopped,
    /// The host failed to read or write something of the machine's. A registered backup takes over.
    HostFault {
        /// What.
        part: HostPart,
    },
    /// Another node is the primary.
    Fenced {
        /// How that is known.
        text: String,
    },
    /// This backup took over, as the operator wanted.
    SwitchedOver {
        /// The new primary.
        to: String,
    },
}

impl Finish {
    /// Whether the virtual machine is to live on elsewhere.
    pub(super) fn wants_heir(&self) -> bool {
        matches!(self, Finish::Stopped | Finish::HostFault { .. } | Finish::SwitchedOver { .. })
    }
}

/// The backup as its primary sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupStatus {
    /// Its name.
    pub node: String,
    /// The connection to it, if there is one now.
    pub connection: Option<ConnectionId>,
    /// Where it will listen as the primary, if it said so; without an IP address of its own that is
    /// where its connection comes from.
    pub listen: Option<SocketAddr>,
    /// Whether it said that it is in step.
    pub in_step: bool,
    /// Every batch up to this one is held by it.
    pub acked_sequence: u64,
    /// How far its machine has come.
    pub replayed: Moment,
    /// Bytes of log that it has not acknowledged.
    pub unacked_bytes: u64,
    /// Time from a heartbeat to its reply.
    pub round_trip_ns: Option<u64>,
    /// Whether the arbiter's record names it, so that it is counted on.
    pub registered: bool,
    /// Guest time by which its machine is behind; where it stands at a checkpoint, by which a
    /// takeover would have to replay.
    pub lag_ns: u64,
    /// What its last join by a checkpoint shipped, and what that spared, so far.
    pub resync: ResyncCounts,
}
