//! The timeline of an agent: a line of JSON for each event of the protocol, on request.
//!
//! Each line has `unix_ns`, `node`, `event` (a word, see docs/operations.md) and the event's
//! own fields.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use backup::BackupEvent;
use link::clock::monotonic_ns;
use primary::PrimaryEvent;
use serde_json::{Value, json};

use crate::vm::unix_ns;

/// Where the timeline goes.
pub struct Timeline {
    file: Option<File>,
    node: String,
}

impl Timeline {
    /// Begins (or goes on with) the timeline at `path`; without a path, nothing is written.
    pub fn open(path: Option<&Path>, node: &str) -> Result<Timeline> {
        let file = path
            .map(|path| {
                File::options().create(true).append(true).open(path).with_context(|| {
                    format!("cannot write the timeline {}; choose another --timeline", path.display())
                })
            })
            .transpose()?;
        Ok(Timeline { file, node: node.to_owned() })
    }

    /// Another handle on the same timeline.
    pub fn share(&self) -> Result<Timeline> {
        let file =
            self.file.as_ref().map(File::try_clone).transpose().context("cannot share the timeline")?;
        Ok(Timeline { file, node: self.node.clone() })
    }

    /// Writes what happened at `at_ns` of the host's monotonic clock.
    pub fn write(&mut self, at_ns: u64, event: &str, details: Value) {
        let Some(file) = &mut self.file else { return };
        let age_ns = monotonic_ns().saturating_sub(at_ns);
        let mut line =
            json!({ "unix_ns": unix_ns().saturating_sub(age_ns), "node": self.node, "event": event });
        if let (Value::Object(line), Value::Object(details)) = (&mut line, details) {
            line.extend(details);
        }
        // A full disk does not stop the machine; one write keeps lines whole.
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}

/// Name and fields of a primary's event.
pub fn of_primary(event: &PrimaryEvent) -> (&'static str, Value) {
    match event {
        PrimaryEvent::JoinRefused { node, text } => ("join-refused", json!({ "backup": node, "why": text })),
        PrimaryEvent::Joining { node, plan } => {
            ("joining", json!({ "backup": node, "plan": format!("{plan:?}").to_lowercase() }))
        }
        PrimaryEvent::CheckpointShipped { parts, counts } => (
            "checkpoint-shipped",
            json!({
                "parts": parts, "shipped_bytes": counts.shipped_bytes(),
                "offered_bytes": counts.offered_bytes, "saved_bytes": counts.saved_bytes(),
            }),
        ),
        PrimaryEvent::DisksCompared(found) => ("disks-compared", super::orders::describe_comparison(found)),
        PrimaryEvent::Protected { backup } => ("protected", json!({ "backup": backup })),
        PrimaryEvent::BackupLost { node, reason } => {
            ("backup-lost", json!({ "backup": node, "why": reason }))
        }
        PrimaryEvent::Paused => ("paused", json!({})),
        PrimaryEvent::Alone => ("alone", json!({})),
        PrimaryEvent::ArbiterUnreachable { step, text } => {
            ("arbiter-unreachable", json!({ "step": step, "why": text }))
        }
        PrimaryEvent::Fenced { text } => ("fenced", json!({ "why": text })),
        PrimaryEvent::Diverged { node, report } => {
            ("diverged", json!({ "backup": node, "at_icount": report.at.icount, "what": report.what }))
        }
        PrimaryEvent::ProtocolError { text } => ("protocol-error", json!({ "why": text })),
        PrimaryEvent::GuestEnded { code } => ("guest-ended", json!({ "code": code })),
        PrimaryEvent::Finished => ("finished", json!({})),
        PrimaryEvent::ModeChanged { mode, why } => {
            ("mode-changed", json!({ "mode": mode.name(), "why": why }))
        }
        PrimaryEvent::LogWaits { text } => ("log-waits", json!({ "why": text })),
        PrimaryEvent::LogEnded { text } => ("log-ended", json!({ "why": text })),
        PrimaryEvent::LogGoesOn => ("log-goes-on", json!({})),
        PrimaryEvent::LeaseLost => ("lease-lost", json!({})),
        PrimaryEvent::LeaseHeld => ("lease-held", json!({})),
        PrimaryEvent::SwitchoverFailed { text } => ("switchover-failed", json!({ "why": text })),
    }
}

/// Name and fields of a backup's event.
pub fn of_backup(event: &BackupEvent) -> (&'static str, Value) {
    match event {
        BackupEvent::Joining { primary, term, plan } => (
            "joining",
            json!({ "primary": primary, "term": term, "plan": format!("{plan:?}").to_lowercase() }),
        ),
        BackupEvent::JoinRefused { text } => ("join-refused", json!({ "why": text })),
        BackupEvent::Restored => ("restored", json!({})),
        BackupEvent::Ready => ("ready", json!({})),
        BackupEvent::Registered { record } => ("registered", json!({ "term": record.term })),
        BackupEvent::ConnectionLost => ("connection-lost", json!({})),
        BackupEvent::Suspected { text } => ("suspected", json!({ "why": text })),
        BackupEvent::ArbiterUnreachable { text } => ("arbiter-unreachable", json!({ "why": text })),
        BackupEvent::ClaimRefused { text } => ("claim-refused", json!({ "why": text })),
        BackupEvent::ModeChanged { mode } => ("mode-changed", json!({ "mode": mode.name() })),
        BackupEvent::BidPlaced { held } => ("bid-placed", json!({ "held_sequence": held })),
        BackupEvent::TakingOver { term, unreplayed_bytes } => {
            ("taking-over", json!({ "term": term, "unreplayed_bytes": unreplayed_bytes }))
        }
        BackupEvent::Live { reissued } => ("took-over", json!({ "reissued": reissued })),
        BackupEvent::Diverged(divergence) => ("diverged", json!({ "what": divergence.to_string() })),
        BackupEvent::ProtocolError { text } => ("protocol-error", json!({ "why": text })),
        BackupEvent::LogWaits { text } => ("log-waits", json!({ "why": text })),
        BackupEvent::LogEnded { text } => ("log-ended", json!({ "why": text })),
        BackupEvent::LogGoesOn => ("log-goes-on", json!({})),
        BackupEvent::Finished => ("finished", json!({})),
    }
}
