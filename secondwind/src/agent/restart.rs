//! Starting again with a log on this node's own disk (`--durability disk`).
//!
//! A node whose log holds all that was acknowledged or released may go on from it: the primary of
//! the record's term by itself, a backup that the record names as any takeover goes. The arbiter
//! decides, so that of several nodes that start again one goes on, and the others follow.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use link::arbitration::{ArbitrationError, Authority, Record, Step, arbitrate};
use log_format::Life;
use machine::RiscvMachine;
use serde_json::json;
use store::{LogFolder, LogReader, StoreError};

use super::node::{Agent, FirstRole, Leadership, Role};
use super::reopen::{Reopened, reopen};
use crate::control::{Order, Request, showing};
use crate::disk::DiskMode;

/// How long a primary is looked for before a backup that starts again goes on in its place.
pub const RECLAIM_AFTER: Duration = Duration::from_secs(3);
/// How often the arbiter is asked again while other backups must speak first.
const BID_INTERVAL: Duration = Duration::from_millis(300);

/// What a node may do with the log on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnLog {
    /// There is none.
    None,
    /// Others may know more than it holds.
    Stale,
    /// This node was the primary of this term, and its log holds all that left.
    OfPrimary {
        /// The term.
        term: u64,
    },
    /// This node was registered in this term, and its log holds all that it acknowledged.
    OfBackup {
        /// The term.
        term: u64,
    },
}

/// What the record lets `node` do with a log that is whole up to and in the term `durable_term`.
fn judge(node: &str, durable_term: Option<u64>, record: Option<&Record>) -> OwnLog {
    let (Some(durable_term), Some(record)) = (durable_term, record) else { return OwnLog::Stale };
    let term = record.term;
    // It died between taking the term and writing that down: nothing left in it.
    let just_taken = record.backups.is_empty() && durable_term + 1 == term;
    match record.holder == node {
        true if durable_term == term || just_taken => OwnLog::OfPrimary { term },
        false if durable_term == term && record.counts_on(node) => OwnLog::OfBackup { term },
        _ => OwnLog::Stale,
    }
}

impl Agent {
    /// What this node may do with the log on its disk.
    pub(super) async fn own_log(&self) -> Result<OwnLog> {
        let Some(path) = &self.settings.log_dir else { return Ok(OwnLog::None) };
        match LogReader::open(path) {
            Err(StoreError::NoLog { .. }) => return Ok(OwnLog::None),
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(OwnLog::None);
            }
            _ if !self.settings.is_durable() => return Ok(OwnLog::Stale),
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        let record = self.record().await?;
        Ok(judge(&self.settings.node, LogFolder::durable_term(path), record.as_ref()))
    }

    /// Goes on as the primary of `term` from this node's own log, in a new term.
    pub(super) async fn start_again(
        &mut self,
        machine: RiscvMachine,
        term: u64,
        first: FirstRole,
    ) -> Result<Role> {
        let reopened = self.reopen_log(machine).await?;
        match self.claim_start(Authority::Log { term }).await {
            Ok(record) => Ok(self.go_on(reopened, &record)),
            Err(ArbitrationError::Refused(refusal)) if matches!(first, FirstRole::AsRecorded { .. }) => {
                tracing::info!("{refusal}");
                drop(reopened);
                self.follow_next()
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Goes on in the place of a primary that is not there, from the log that this node kept as
    /// its backup in `term`.
    pub(super) async fn reclaim(&mut self, term: u64) -> Result<Role> {
        tracing::warn!("no primary answers; this node goes on from its own log if the arbiter agrees");
        self.reclaim = None;
        let reopened = self.reopen_log(self.vm.build(DiskMode::Overlay)?).await?;
        let held = reopened.handover.start.from.sequence;
        loop {
            // The log holds what any earlier life of this node held.
            let step = Step::TakeOver { node: self.settings.node.clone(), life: Life::UNKNOWN, term, held };
            let arbiter = self.settings.arbiter.shared();
            match tokio::task::spawn_blocking(move || arbitrate(&*arbiter, &step)).await? {
                Ok(record) if record.term > term => return Ok(self.go_on(reopened, &record)),
                Ok(_) => tracing::info!("other backups must speak first"),
                Err(ArbitrationError::Refused(refusal)) => {
                    tracing::warn!("{refusal}");
                    drop(reopened);
                    return self.follow_next();
                }
                Err(error) => tracing::warn!("{error}"),
            }
            tokio::select! {
                () = tokio::time::sleep(BID_INTERVAL) => {}
                Some(order) = self.requests.recv() => {
                    if matches!(order, Order::Simple(Request::Stop)) {
                        return Ok(Role::End(std::process::ExitCode::SUCCESS));
                    }
                }
            }
        }
    }

    fn go_on(&self, reopened: Reopened, record: &Record) -> Role {
        let Reopened { mut handover, log } = reopened;
        handover.start.from.term = record.term;
        handover.start.life = record.life_of(&self.settings.node);
        Role::Lead(Box::new(Leadership { handover, learners: self.learners(), store: Some(log) }))
    }

    /// Replays this node's own log to its end.
    async fn reopen_log(&self, machine: RiscvMachine) -> Result<Reopened> {
        let Some(path) = self.settings.log_dir.clone() else {
            bail!("there is no log to go on from; name its folder with --log-dir");
        };
        let status = self.status.clone();
        let show = self.settings.describe("starting", json!({ "state": "replaying the log on disk" }));
        status.send_replace(showing(show.clone()));
        let progress = move |sequence: u64| {
            let mut show = show.clone();
            show["sequence"] = sequence.into();
            status.send_replace(showing(show));
        };
        tokio::task::spawn_blocking(move || reopen(&path, machine, progress)).await?
    }
}

/// What is to be said to who would begin anew where a log lies.
pub fn in_the_way(path: &Path, is_durable: bool) -> anyhow::Error {
    let path = path.display();
    match is_durable {
        true => anyhow::anyhow!(
            "the log in {path} lacks what happened since: another node went on with the machine; start this \
             one as a backup, or remove the log and repeat with --force to begin at the boot"
        ),
        false => anyhow::anyhow!("{path} holds a log; remove it or choose another --log-dir"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_log_that_holds_everything_is_gone_on_from() {
        let pair = Record::pair(4, "a", "b");
        let alone = Record::alone(5, "a");
        for (node, durable_term, record, expected) in [
            ("a", Some(4), Some(&pair), OwnLog::OfPrimary { term: 4 }),
            ("b", Some(4), Some(&pair), OwnLog::OfBackup { term: 4 }),
            ("a", Some(3), Some(&pair), OwnLog::Stale),
            ("b", Some(3), Some(&pair), OwnLog::Stale),
            ("c", Some(4), Some(&pair), OwnLog::Stale),
            ("a", None, Some(&pair), OwnLog::Stale),
            ("a", Some(5), Some(&alone), OwnLog::OfPrimary { term: 5 }),
            ("a", Some(4), Some(&alone), OwnLog::OfPrimary { term: 5 }),
            ("a", Some(3), Some(&alone), OwnLog::Stale),
            ("b", Some(5), Some(&alone), OwnLog::Stale),
            ("a", Some(4), None, OwnLog::Stale),
        ] {
            assert_eq!(judge(node, durable_term, record), expected, "{node} {durable_term:?} {record:?}");
        }
    }
}
