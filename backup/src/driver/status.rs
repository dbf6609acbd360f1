//! What a running backup shows.

use std::sync::Arc;

use serde::Serialize;

/// Gives what there is to show, when somebody asks.
pub type Look = Arc<dyn Fn() -> BackupStatus + Send + Sync>;

/// Shows this.
pub fn showing(status: BackupStatus) -> Look {
    Arc::new(move || status.clone())
}

/// The state of a backup, for `secondwind status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct BackupStatus {
    /// In a word: connecting, receiving, following, suspecting, ...
    pub state: String,
    /// Whether the primary counts on this node.
    pub registered: bool,
    /// Whether it would take over if the primary died now.
    pub in_step: bool,
    /// Highest primacy seen.
    pub term: u64,
    /// The primary that was followed last.
    pub primary: String,
    /// Batches held, since boot.
    pub held_sequence: u64,
    /// Instructions up to the end of what is held.
    pub held_icount: u64,
    /// Instructions replayed, since boot.
    pub replayed_icount: u64,
    /// Bytes of log held and not replayed.
    pub lag_bytes: u64,
    /// Digests that were equal, on the present machine.
    pub digests_compared: u64,
    /// Outputs whose hashes were equal.
    pub outputs_verified: u64,
    /// Outputs kept because the primary may not have sent them.
    pub held_outputs: u64,
    /// Divergences seen in this process.
    pub digests_diverged: u64,
    /// How the primary protects: replay, hybrid or checkpoint.
    pub mode: String,
    /// Why this side's own log cannot be written at present.
    pub log_trouble: Option<String>,
    /// Why the last attempt to connect failed, while there is no connection.
    pub last_dial_error: Option<String>,
}
