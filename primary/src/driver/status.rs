//! What a running primary shows.

use serde::Serialize;

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
    /// Guest pause of the last checkpoint, in microseconds.
    pub checkpoint_pause_us: Option<u64>,
    /// The backup that joined or is joining.
    pub backup: Option<BackupView>,
}

/// The backup, as the primary sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct BackupView {
    /// Its name.
    pub node: String,
    /// Whether there is a connection.
    pub connected: bool,
    /// Whether it is in step.
    pub in_step: bool,
    /// Batches that it acknowledged, since boot.
    pub acked_sequence: u64,
    /// Instructions that it replayed, since boot.
    pub replayed_icount: u64,
    /// Bytes of log that it has not acknowledged.
    pub unacked_bytes: u64,
    /// Time from a heartbeat to its reply, in microseconds.
    pub round_trip_us: Option<u64>,
}
