//! When output may leave: the steps between alone and protected, and the arbiter's word.

use link::arbitration::{ArbitrationError, Record, Refusal, Step};
use log_format::GoodbyeReason;

use super::peer::Phase;
use super::{Ending, Finish, MILLISECOND_NS, MachineRequest, OnBackupLoss, Primary, PrimaryEvent};

/// Who is counted on. See the state diagram of the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Commit {
    /// The record names no backup: output leaves at once.
    Alone,
    /// A backup is in step. Once it holds batch `barrier`, it holds all that was released.
    Syncing {
        barrier: u64,
        /// Named in the record already, perhaps: the way back to `Alone` is closed.
        registered: Option<Registered>,
    },
    /// The arbiter was asked to name the backup.
    Registering {
        registered: Registered,
        /// Named before it was asked, perhaps.
        before: Option<Registered>,
    },
    /// The record names the backup.
    Protected { registered: Registered },
    /// The backup is lost, and policy says to wait.
    Degraded { registered: Registered },
    /// The backup is lost, and the arbiter was asked for the word to go on.
    GoingAlone { registered: Registered },
    /// Another node is the primary.
    Fenced { text: String },
}

/// A backup that the record names, or may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registered {
    pub(super) backup: String,
    /// What it was known to hold when it was last heard.
    pub(super) acked: u64,
}

impl Commit {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Commit::Alone => "alone",
            Commit::Syncing { .. } => "syncing",
            Commit::Registering { .. } => "registering",
            Commit::Protected { .. } => "protected",
            Commit::Degraded { .. } => "degraded",
            Commit::GoingAlone { .. } => "going alone",
            Commit::Fenced { .. } => "fenced",
        }
    }

    fn registered(&self) -> Option<&Registered> {
        match self {
            Commit::Alone | Commit::Fenced { .. } => None,
            Commit::Syncing { registered, .. } => registered.as_ref(),
            Commit::Registering { registered, .. }
            | Commit::Protected { registered }
            | Commit::Degraded { registered }
            | Commit::GoingAlone { registered } => Some(registered),
        }
    }

    /// Whether the record may name a backup.
    pub(super) fn may_be_registered(&self) -> bool {
        self.registered().is_some()
    }
}

impl Primary {
    /// The arbiter answered the step that [`Primary::poll_arbiter_request`] gave last.
    pub fn handle_arbiter_reply(&mut self, reply: Result<Record, ArbitrationError>, now_ns: u64) {
        let Some(step) = self.lane.answered() else { return };
        match (reply, step) {
            (Ok(_), Step::RegisterBackup { backup, .. }) => self.registered(&backup),
            (Ok(_), Step::GoAlone { .. }) => self.gone_alone(),
            (Ok(_), _) => {}
            (Err(ArbitrationError::Refused(Refusal::OtherBackup { .. })), _) => self.go_alone(),
            (Err(ArbitrationError::Refused(refusal)), _) => self.fence(refusal.to_string()),
            (Err(ArbitrationError::Unreachable(error)), step) => {
                let event =
                    PrimaryEvent::ArbiterUnreachable { step: step.to_string(), text: error.to_string() };
                self.events.push_back(event);
                self.lane.postpone(step, now_ns);
                return self.settle(now_ns);
            }
        }
        self.lane.reached();
        self.settle(now_ns);
    }

    /// Goes on to the next state where its condition is met.
    pub(super) fn settle(&mut self, now_ns: u64) {
        self.drop_backlogged_peer(now_ns);
        let (ready, acked) = self.peer.as_ref().map_or((false, 0), |peer| (peer.ready, peer.acked));
        match &self.commit {
            Commit::Alone | Commit::Degraded { .. } if ready && self.ending.is_none() => {
                self.begin_sync(now_ns)
            }
            Commit::Syncing { barrier, .. } if ready && acked >= *barrier => self.register(),
            _ => {}
        }
        self.judge_slowness(now_ns);
        self.ask_for_pages();
        self.progress_ending(now_ns);
    }

    /// The backup says that it is in step.
    pub(super) fn handle_ready(&mut self) {
        if let Some(peer) = &mut self.peer
            && peer.phase == Phase::Following
        {
            peer.ready = true;
        }
    }

    /// Lets go what the registered backup holds.
    pub(super) fn commit_acknowledged(&mut self) {
        let Commit::Protected { registered } = &mut self.commit else { return };
        let Some(peer) = self.peer.as_ref().filter(|peer| peer.node == registered.backup) else { return };
        registered.acked = registered.acked.max(peer.acked);
        if let Some(outputs) = self.tail.outputs_after(registered.acked) {
            self.buffer.commit_before(outputs);
        }
    }

    /// What the registered backup held when it was last heard.
    pub(super) fn acked_when_lost(&self) -> u64 {
        self.commit.registered().map_or_else(|| self.tail.last_sequence(), |registered| registered.acked)
    }

    /// The backup is lost: what that means depends on whether it could take over.
    pub(super) fn lose_peer(&mut self, reason: &str, now_ns: u64) {
        let Some(peer) = self.peer.take() else { return };
        if let Some(id) = peer.connection {
            self.say_goodbye(id, GoodbyeReason::BackupRemoved, reason);
        }
        if peer.phase != Phase::Following {
            self.cancel_checkpoint();
        }
        let event = PrimaryEvent::BackupLost { node: peer.node, reason: reason.to_owned() };
        self.events.push_back(event);
        match self.commit.clone() {
            Commit::Syncing { registered: None, .. } => self.become_alone(),
            Commit::Registering { registered, before } => {
                let never_asked = self.lane.withdraw();
                match (never_asked, before) {
                    (true, None) => self.become_alone(),
                    (true, Some(before)) => self.degrade(before),
                    (false, _) => self.degrade(registered),
                }
            }
            Commit::Syncing { registered: Some(registered), .. } | Commit::Protected { registered } => {
                self.degrade(registered);
            }
            Commit::Alone | Commit::Degraded { .. } | Commit::GoingAlone { .. } | Commit::Fenced { .. } => {}
        }
        self.settle(now_ns);
    }

    /// The operator says to go on without the backup.
    pub(super) fn operator_goes_alone(&mut self, now_ns: u64) {
        if matches!(self.commit, Commit::Degraded { .. }) {
            self.go_alone();
        }
        self.settle(now_ns);
    }

    /// Stops for good: nothing that is held may ever leave.
    pub(super) fn fence(&mut self, text: String) {
        if matches!(self.commit, Commit::Fenced { .. }) {
            return;
        }
        self.buffer.protect();
        self.buffer.take_held();
        self.commit = Commit::Fenced { text: text.clone() };
        self.events.push_back(PrimaryEvent::Fenced { text: text.clone() });
        self.cancel_checkpoint();
        self.peer = None;
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            self.say_goodbye(id, GoodbyeReason::Fenced, &text);
        }
        self.ending = None;
        self.finish(Finish::Fenced { text });
    }

    pub(super) fn begin_ending(&mut self, finish: Finish, now_ns: u64) {
        if self.ending.is_some() || self.finished.is_some() {
            return;
        }
        if !self.batcher.is_empty() {
            self.seal(now_ns);
        }
        self.ending = Some(Ending {
            finish,
            due_ns: now_ns.saturating_add(self.config.ending_max_ns),
            last_sequence: self.tail.last_sequence(),
            goodbye_said: false,
        });
        self.settle(now_ns);
    }

    /// An ending waits until the backup holds everything and output has left, but not longer
    /// than it may.
    fn progress_ending(&mut self, now_ns: u64) {
        let Some(ending) = self.ending.clone() else { return };
        let overdue = now_ns >= ending.due_ns;
        let held = self.peer.as_ref().is_none_or(|peer| peer.acked >= ending.last_sequence);
        if !ending.goodbye_said && (held || overdue) {
            self.say_last_goodbye(&ending.finish);
            if let Some(ending) = &mut self.ending {
                ending.goodbye_said = true;
                ending.due_ns = now_ns.saturating_add(self.config.ending_max_ns);
            }
            return self.progress_ending(now_ns);
        }
        // A guest that ended needs no heir: the record must let the next start happen.
        let heir_wanted = ending.finish.wants_heir();
        let settled = heir_wanted || !self.commit.may_be_registered();
        let left = heir_wanted || self.buffer.uncommitted_outputs() == 0;
        if ending.goodbye_said && (settled && left || overdue) {
            self.finish(ending.finish);
        }
    }

    fn say_last_goodbye(&mut self, finish: &Finish) {
        let (reason, text) = match finish {
            Finish::GuestEnded { code } => {
                (GoodbyeReason::GuestEnded, format!("the guest ended with status {code}"))
            }
            Finish::HostFault { disk } => {
                (GoodbyeReason::Stopping, format!("the host failed to read or write disk {disk}"))
            }
            Finish::Stopped | Finish::Fenced { .. } => {
                (GoodbyeReason::Stopping, "the operator stopped this side".to_owned())
            }
        };
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            self.say_goodbye(id, reason, &text);
        }
        self.peer = None;
        match self.commit.clone() {
            Commit::Syncing { registered: None, .. } => self.become_alone(),
            _ if finish.wants_heir() => {}
            Commit::Syncing { .. }
            | Commit::Registering { .. }
            | Commit::Protected { .. }
            | Commit::Degraded { .. } => self.go_alone(),
            Commit::Alone | Commit::GoingAlone { .. } | Commit::Fenced { .. } => {}
        }
    }

    fn finish(&mut self, finish: Finish) {
        if self.finished.is_none() {
            self.finished = Some(finish);
            self.events.push_back(PrimaryEvent::Finished);
        }
    }

    /// Holds output from now on, and waits until the backup holds what was released before.
    fn begin_sync(&mut self, now_ns: u64) {
        self.buffer.protect();
        if !self.batcher.is_empty() {
            self.seal(now_ns);
        }
        let registered = self.commit.registered().cloned();
        self.commit = Commit::Syncing { barrier: self.tail.last_sequence(), registered };
        let (ready, acked) = self.peer.as_ref().map_or((false, 0), |peer| (peer.ready, peer.acked));
        if ready && acked >= self.tail.last_sequence() {
            self.register();
        }
    }

    fn register(&mut self) {
        let Some(peer) = &self.peer else { return };
        let (backup, acked) = (peer.node.clone(), peer.acked);
        self.lane.ask(Step::RegisterBackup {
            node: self.config.node.clone(),
            term: self.term(),
            backup: backup.clone(),
        });
        let before = self.commit.registered().cloned();
        self.commit = Commit::Registering { registered: Registered { backup, acked }, before };
    }

    /// The record names the backup.
    fn registered(&mut self, backup: &str) {
        let Commit::Registering { registered, .. } = &self.commit else { return };
        let present = self.peer.as_ref().is_some_and(|peer| peer.node == backup);
        if registered.backup != backup || !present {
            return;
        }
        self.events.push_back(PrimaryEvent::Protected { backup: backup.to_owned() });
        self.commit = Commit::Protected { registered: registered.clone() };
        self.commit_acknowledged();
        // The backup learns at once that it is counted on.
        self.heartbeat_due_ns = 0;
    }

    fn degrade(&mut self, registered: Registered) {
        // Who leaves for good needs the heir that the record names, even one out of sight.
        let leaves = self.ending.as_ref().is_some_and(|ending| ending.finish.wants_heir());
        match self.config.on_backup_loss {
            _ if leaves => self.commit = Commit::Degraded { registered },
            OnBackupLoss::Continue => {
                self.commit = Commit::Degraded { registered };
                self.go_alone();
            }
            OnBackupLoss::Pause => {
                self.commit = Commit::Degraded { registered };
                self.events.push_back(PrimaryEvent::Paused);
            }
        }
    }

    /// Standing still, nothing else would tell this primary that its backup took over.
    pub(super) fn probe(&mut self, now_ns: u64) {
        const PROBE_INTERVAL_NS: u64 = 500 * MILLISECOND_NS;
        if now_ns < self.probe_due_ns {
            return;
        }
        self.probe_due_ns = now_ns.saturating_add(PROBE_INTERVAL_NS);
        if let Commit::Degraded { registered } = &self.commit {
            let (node, term) = (self.config.node.clone(), self.term());
            self.lane.ask(Step::RegisterBackup { node, term, backup: registered.backup.clone() });
        }
    }

    fn go_alone(&mut self) {
        let Some(registered) = self.commit.registered().cloned() else { return };
        self.commit = Commit::GoingAlone { registered };
        self.lane.ask(Step::GoAlone { node: self.config.node.clone(), term: self.term() });
    }

    /// The record names no backup any more.
    fn gone_alone(&mut self) {
        if matches!(self.commit, Commit::GoingAlone { .. }) {
            self.become_alone();
        }
    }

    fn become_alone(&mut self) {
        self.commit = Commit::Alone;
        self.buffer.release_all();
        self.events.push_back(PrimaryEvent::Alone);
    }

    /// A backup whose log piles up here is no protection: policy pause waits for it (see
    /// [`Primary::wants_stall`]), policy continue goes on without.
    fn judge_slowness(&mut self, now_ns: u64) {
        let slow = self
            .peer
            .as_ref()
            .is_some_and(|peer| peer.ready && peer.unacked_bytes >= self.config.unacked_max_bytes);
        if slow && self.config.on_backup_loss == OnBackupLoss::Continue {
            self.lose_peer("it is too slow: too much log is unacknowledged", now_ns);
        }
    }

    /// A join that cannot keep up with the log is given up; it may be tried again.
    fn drop_backlogged_peer(&mut self, now_ns: u64) {
        let joining = self.peer.as_ref().filter(|peer| !peer.ready);
        if joining.is_some_and(|peer| peer.unacked_bytes > self.config.join_backlog_max_bytes) {
            self.lose_peer("it receives more slowly than the log grows", now_ns);
        }
    }

    pub(super) fn cancel_checkpoint(&mut self) {
        if let Some(checkpoint) = self.checkpoint.take() {
            self.requests.push_back(MachineRequest::CancelCheckpoint { checkpoint });
        }
    }
}
