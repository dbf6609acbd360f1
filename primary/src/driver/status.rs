//! What a running primary shows.

use std::sync::Arc;

use serde::Serialize;

/// Gives what there is to show, when somebody asks.
pub type Look = Arc<dyn Fn() -> PrimaryStatus + Send + Sync>;

/// Shows this.
pub fn showing(status: PrimaryStatus) -> Look {
    Arc::new(move || status.clone())
}

/// The state of a primary, for `secondwind status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PrimaryStatus {
    /// In a word: alone, syncing, registering, protected, degraded, ...
    pub state: String,
    /// Whether output waits for a backup's acknowledgement.
    pub protected: bool,
    /// Number of the primacy.
    pub term: u64,
    /// Instructions since boot, up to the last stretch handed on.
    pub icount: u64,
    /// Guest time since boot, in milliseconds.
    pub guest_ms: u64,
    /// Batches of the log since boot.
    pub sequence: u64,
    /// Batches sealed in this primacy.
    pub batches_sealed: u64,
    /// Their bytes.
    pub log_bytes: u64,
    /// Outputs held now.
    pub held_outputs: u64,
    /// Outputs that left in this primacy.
    pub released_outputs: u64,
    /// How long outputs were held: median, in microseconds.
    pub held_p50_us: u64,
    /// How long outputs were held: 99th percentile, in microseconds.
    pub held_p99_us: u64,
    /// How long the lease of this term is provably good, in milliseconds: at 0 nothing leaves.
    /// None where the arbiter gives no leases.
    pub lease_left_ms: Option<u64>,
    /// Guest pause of the last checkpoint, in microseconds.
    pub checkpoint_pause_us: Option<u64>,
    /// The protection mode: replay, hybrid or checkpoint.
    pub mode: String,
    /// Why it is this one.
    pub mode_why: String,
    /// Percent of the time for which the guest rests, so that its backups can keep up.
    pub slowed_percent: u8,
    /// Increments shipped in this primacy.
    pub increments: u64,
    /// Their bytes.
    pub increment_bytes: u64,
    /// Bytes sent to backups in this primacy, on all connections.
    pub sent_bytes: u64,
    /// Bytes that wait for the disk under this side's own log; `None` without one.
    pub log_waiting_bytes: Option<u64>,
    /// Why this side's own log cannot be written at present.
    pub log_trouble: Option<String>,
    /// The first of `backups`.
    pub backup: Option<BackupView>,
    /// The backups that joined or are joining.
    pub backups: Vec<BackupView>,
}

/// The backup, as the primary sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct BackupView {
    /// Its name.
    pub node: String,
    /// Whether there is a connection.
    pub connected: bool,
    /// Where it will listen as the primary.
    pub address: Option<String>,
    /// Whether it is in step.
    pub in_step: bool,
    /// Whether the arbiter's record names it, so that it is counted on.
    pub registered: bool,
    /// Batches that it acknowledged, since boot.
    pub acked_sequence: u64,
    /// Instructions that it replayed, since boot.
    pub replayed_icount: u64,
    /// Guest time by which it is behind; where it stands at a checkpoint, by which a takeover would
    /// have to replay. In milliseconds.
    pub lag_ms: u64,
    /// Bytes of log that it has not acknowledged.
    pub unacked_bytes: u64,
    /// Time from a heartbeat to its reply, in microseconds.
    pub round_trip_us: Option<u64>,
    /// How it joined, where that was by a checkpoint.
    pub resync: Option<ResyncView>,
}

/// What a join by a checkpoint shipped, and what hashes spared, so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ResyncView {
    /// Pages whose hashes were offered.
    pub offered_pages: u64,
    /// Those of them that the backup had.
    pub saved_pages: u64,
    /// Disk blocks whose hashes were offered.
    pub offered_blocks: u64,
    /// Those of them that the backup had.
    pub saved_blocks: u64,
    /// Bytes of all these.
    pub offered_bytes: u64,
    /// Bytes of those that the backup had.
    pub saved_bytes: u64,
    /// Bytes of pages and blocks that were shipped, offered or not.
    pub shipped_bytes: u64,
}
