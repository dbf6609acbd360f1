//! The agent's side of `secondwind switchover` and `migrate`.
//!
//! ```text
//!   Joining --------------------> Switching -----------------> done
//!     |  the node is in step, and   |   it answers as the primary
//!     |  little log is on its way   |
//!     |                             | the core says that it did not take over
//!     +--- lost, or nobody waits    v
//!          for the answer -----> failed: the machine goes on here
//! ```

use std::time::{Duration, Instant};

use primary::driver::PrimaryStatus;
use primary::{Operator, PrimaryEvent};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;

use super::settings::Settings;
use crate::control::TransferRequest;

/// Log on its way to the node that a migration still waits for.
const REST_BYTES: u64 = 64 << 10;
/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// How long an answer may take to be read.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is tried whether the new primary answers.
const PROBE_INTERVAL: Duration = Duration::from_millis(1);

/// A transfer that is under way.
pub struct Transfer {
    request: TransferRequest,
    replies: UnboundedSender<Value>,
    vm: String,
    /// Where the new primary may answer.
    peers: Vec<String>,
    /// Port of this node, which answers too.
    own_port: Option<u16>,
    began: Instant,
    told: Instant,
    /// Bytes sent before it began.
    sent_before: u64,
    sent_bytes: u64,
    /// The node asked to join.
    seen: bool,
    switching: Option<Switching>,
}

/// The backup was told to take over.
struct Switching {
    to: Option<String>,
    at: Instant,
    /// When somebody answers as the primary.
    answered: JoinHandle<Instant>,
}

impl Transfer {
    /// Begins, with what a primary shows of itself.
    pub fn begin(
        request: TransferRequest,
        replies: UnboundedSender<Value>,
        settings: &Settings,
        status: &PrimaryStatus,
    ) -> Transfer {
        let now = Instant::now();
        Transfer {
            request,
            replies,
            vm: settings.name.clone(),
            peers: settings.peers.clone(),
            own_port: settings.listen.rsplit_once(':').and_then(|(_, port)| port.parse().ok()),
            began: now,
            told: now,
            sent_before: status.sent_bytes,
            sent_bytes: status.sent_bytes,
            seen: false,
            switching: None,
        }
    }

    /// What the primary is told first: a migration's target is taken in beside the backups that are there.
    pub fn opening(&self) -> Operator {
        let node = self.request.to.clone().filter(|_| self.request.join_within_ms.is_some());
        Operator::Expect { node }
    }

    /// Whether this side goes on as a backup afterwards.
    pub fn keeps_source(&self) -> bool {
        self.request.keep_source
    }

    /// Looks at the primary's state: gives the command to it, once that is due. An error ends the
    /// transfer: the machine goes on here.
    pub fn advance(&mut self, status: &PrimaryStatus) -> Result<Option<Operator>, String> {
        self.sent_bytes = status.sent_bytes;
        if self.switching.is_some() {
            self.tell("switching");
            return Ok(None);
        }
        if self.replies.is_closed() {
            return Err("cancelled".to_owned());
        }
        let Some(to) = self.heir(status)? else { return Ok(None) };
        let heir = status.backups.iter().find(|backup| backup.node == to);
        if let Some(address) = heir.and_then(|backup| backup.address.clone())
            && !self.peers.contains(&address)
        {
            self.peers.push(address);
        }
        self.switching = Some(Switching {
            to: Some(to.clone()),
            at: Instant::now(),
            answered: tokio::spawn(answer_of_a_primary(self.peers.clone(), self.own_port)),
        });
        self.tell("switching");
        Ok(Some(Operator::SwitchOver { to: Some(to) }))
    }

    /// The backup that may take over now, where that is so.
    fn heir(&mut self, status: &PrimaryStatus) -> Result<Option<String>, String> {
        let ready =
            |backup: &&primary::driver::BackupView| backup.registered && backup.in_step && backup.connected;
        let Some(to) = self.request.to.clone() else {
            let any = status.backups.iter().find(ready);
            return match any {
                Some(backup) => Ok(Some(backup.node.clone())),
                None => Err("no backup is registered and in step; see secondwind status".to_owned()),
            };
        };
        let backup = status.backups.iter().find(|backup| backup.node == to);
        let is_ready = backup.filter(ready).is_some();
        let Some(join_within_ms) = self.request.join_within_ms else {
            return match is_ready {
                true => Ok(Some(to)),
                false => {
                    Err(format!("{to} is no backup that is registered and in step; see secondwind status"))
                }
            };
        };
        match backup {
            Some(backup) if is_ready && backup.unacked_bytes <= REST_BYTES => return Ok(Some(to)),
            Some(backup) => {
                self.seen = true;
                self.tell(if backup.in_step { "coming into step" } else { "joining" });
            }
            None if self.seen => return Err(format!("{to} was lost before it had the machine; try again")),
            None if self.began.elapsed() >= Duration::from_millis(join_within_ms) => {
                return Err(format!(
                    "{to} does not ask to join; start `secondwind backup` there with this node's address"
                ));
            }
            None => self.tell(&format!("waiting for {to}")),
        }
        Ok(None)
    }

    /// Something happened. An error ends the transfer.
    pub fn note(&mut self, event: &PrimaryEvent) -> Result<(), String> {
        match (event, &self.request.to) {
            (PrimaryEvent::SwitchoverFailed { text }, _) => Err(format!("{text}; the machine goes on here")),
            (PrimaryEvent::BackupLost { node, reason }, Some(to))
                if node == to && self.switching.is_none() && self.seen =>
            {
                Err(format!("{node} was lost ({reason}); the machine goes on here"))
            }
            (PrimaryEvent::JoinRefused { node, text }, Some(to)) if node == to && self.seen => {
                Err(format!("{node} was refused ({text}); the machine goes on here"))
            }
            _ => Ok(()),
        }
    }

    /// It failed: the machine goes on here.
    pub fn fail(self, why: &str) {
        if let Some(switching) = &self.switching {
            switching.answered.abort();
        }
        let _ = self.replies.send(json!({ "error": why }));
    }

    /// The other node has the machine. Waits until it answers, for the time without the guest.
    pub async fn succeed(self) {
        let Some(switching) = self.switching else { return };
        let answered = match !self.peers.is_empty() {
            true => tokio::time::timeout(Duration::from_secs(5), switching.answered).await.ok(),
            false => {
                switching.answered.abort();
                None
            }
        };
        let downtime = answered.and_then(Result::ok).map(|at| at.duration_since(switching.at));
        let milliseconds = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let _ = self.replies.send(json!({
            "vm": self.vm,
            "to": switching.to,
            "total_ms": milliseconds(self.began.elapsed()),
            "downtime_ms": downtime.map(milliseconds),
            "sent_bytes": self.sent_bytes.saturating_sub(self.sent_before),
            "source_is_backup": self.request.keep_source,
        }));
        // The process may end now: not before the answer was read.
        let _ = tokio::time::timeout(ANSWER_TIMEOUT, self.replies.closed()).await;
    }

    fn tell(&mut self, phase: &str) {
        if self.told.elapsed() < PROGRESS_INTERVAL {
            return;
        }
        self.told = Instant::now();
        let progress = json!({
            "phase": phase,
            "total_ms": self.began.elapsed().as_millis() as u64,
            "sent_bytes": self.sent_bytes.saturating_sub(self.sent_before),
        });
        let _ = self.replies.send(json!({ "progress": progress }));
    }
}

/// When one of these addresses answers: only a primary listens.
async fn answer_of_a_primary(peers: Vec<String>, own_port: Option<u16>) -> Instant {
    // The list may hold this node under another name.
    let is_own = |stream: &TcpStream| {
        let ends = (stream.local_addr(), stream.peer_addr());
        matches!(ends, (Ok(here), Ok(there)) if here.ip() == there.ip() && Some(there.port()) == own_port)
    };
    loop {
        for peer in &peers {
            // A host that says nothing is no primary that has just begun.
            let dialled = TcpStream::connect(peer);
            match tokio::time::timeout(PROBE_INTERVAL * 250, dialled).await {
                Ok(Ok(stream)) if !is_own(&stream) => return Instant::now(),
                _ => {}
            }
        }
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
}
