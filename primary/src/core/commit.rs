//! When output may leave: who is counted on, the arbiter's word, and how the set changes.

use std::collections::BTreeMap;

use link::arbitration::{ArbitrationError, Record, Step};
use log_format::GoodbyeReason;

use super::counted::{Counted, Member};
use super::peer::Phase;
use super::{Durability, Finish, MILLISECOND_NS, MachineRequest, OnBackupLoss, Primary, PrimaryEvent};

/// Who is counted on. See the diagram of the module above.
#[derive(Debug, Default)]
pub(super) struct Commit {
    /// Those that the arbiter's record names.
    pub(super) counted: Counted,
    pub(super) change: Option<Change>,
    /// The operator said to go on without those that are lost.
    forsaken: bool,
    pub(super) fenced: bool,
}

/// Another set is to be counted on. Release obeys the old and the new rule from here on.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) to: Counted,
    /// Once enough of the new set hold this batch, they hold all that was released.
    barrier: u64,
    /// The arbiter was asked: the record may name the new set already.
    pub(super) asked: bool,
}

impl Commit {
    /// The record may name somebody, so that not all output leaves at once.
    pub(super) fn may_be_registered(&self) -> bool {
        !self.counted.is_empty() || self.change.as_ref().is_some_and(|change| change.asked)
    }

    /// Every batch up to this one is held by enough; `None` when nobody is counted on.
    fn held_by_enough(&self) -> Option<u64> {
        let to = self.change.as_ref().and_then(|change| change.to.held_by_enough());
        [self.counted.held_by_enough(), to].into_iter().flatten().min()
    }
}

impl Primary {
    /// The arbiter answered the step that [`Primary::poll_arbiter_request`] gave last.
    pub fn handle_arbiter_reply(&mut self, reply: Result<Record, ArbitrationError>, now_ns: u64) {
        let Some(step) = self.lane.answered() else { return };
        match (reply, step) {
            (Ok(_), Step::SetBackups { backups, required, .. }) => {
                self.lane.reached();
                let agreed = self.commit.change.as_ref().is_some_and(|change| {
                    change.asked && change.to.names() == backups && change.to.required() == required as usize
                });
                if agreed {
                    self.adopt(now_ns);
                }
            }
            (Ok(_), _) => self.lane.reached(),
            (Err(ArbitrationError::Refused(refusal)), _) => {
                self.lane.reached();
                self.fence(refusal.to_string());
            }
            (Err(ArbitrationError::Unreachable(error)), step) => {
                let event =
                    PrimaryEvent::ArbiterUnreachable { step: step.to_string(), text: error.to_string() };
                self.events.push_back(event);
                self.lane.postpone(step, now_ns);
            }
        }
        self.settle(now_ns);
    }

    /// The arbiter's record is this now, as a watch of it says. A later one ends the primacy;
    /// an earlier one is old news.
    pub fn handle_record(&mut self, record: &Record, now_ns: u64) {
        let is_own = record.holder == self.config.node && record.may_mean(&self.config.node, self.life);
        let replaced = record.term > self.term() || record.term == self.term() && !is_own;
        if replaced && !self.is_over() {
            self.fence(format!("the arbiter's record is {record}"));
        }
        self.settle(now_ns);
    }

    /// Output may leave until this time (host's monotonic nanoseconds): until then the arbiter
    /// keeps this node's lease for certain. Never called where the arbiter gives no leases.
    pub fn handle_lease(&mut self, valid_until_ns: u64, now_ns: u64) {
        let is_first = self.lease_until_ns.replace(valid_until_ns).is_none();
        if is_first && !self.lease_is_valid(now_ns) {
            // Not granted yet: that is no loss to speak of.
            self.lease_told = false;
        }
        self.note_lease(now_ns);
        self.settle(now_ns);
    }

    /// Says when the lease ends or is there again.
    pub(super) fn note_lease(&mut self, now_ns: u64) {
        let is_valid = self.lease_is_valid(now_ns);
        if self.lease_told != is_valid {
            self.lease_told = is_valid;
            self.events.push_back(match is_valid {
                true => PrimaryEvent::LeaseHeld,
                false => PrimaryEvent::LeaseLost,
            });
        }
    }

    /// Whether output may leave as far as the lease goes.
    pub(super) fn lease_is_valid(&self, now_ns: u64) -> bool {
        self.lease_until_ns.is_none_or(|until_ns| now_ns < until_ns)
    }

    /// This side's own log is on its disk up to this batch of this term.
    pub fn handle_stored(&mut self, term: u64, sequence: u64, now_ns: u64) {
        if term == self.term() {
            self.stored = self.stored.max(sequence);
        }
        self.commit_acknowledged();
        self.settle(now_ns);
    }

    /// Goes on to the next state where its condition is met.
    pub(super) fn settle(&mut self, now_ns: u64) {
        self.drop_backlogged_peers(now_ns);
        self.regroup(now_ns);
        self.judge_slowness(now_ns);
        self.drive_mode(now_ns);
        self.drive_disk_check();
        self.drive_epochs(now_ns);
        self.ask_for_pages();
        self.end_disk_check();
        self.progress_ending(now_ns);
        self.pace.advance(!self.peers.is_empty(), now_ns);
    }

    /// Changes who is counted on, one change at a time.
    fn regroup(&mut self, now_ns: u64) {
        if self.commit.fenced || self.is_over() {
            return;
        }
        if self.commit.change.as_ref().is_some_and(|change| change.asked) {
            return;
        }
        if self.is_wanted(&self.commit.counted) {
            if self.commit.change.take().is_some() {
                self.commit_acknowledged();
            }
            return;
        }
        let begun = self.commit.change.as_ref().is_some_and(|change| self.is_wanted(&change.to));
        if !begun {
            let members: BTreeMap<String, Member> =
                self.wanted().map(|(name, member)| (name.to_owned(), member)).collect();
            let required = self.required_of(members.len());
            self.begin_change(Counted::new(members, required), now_ns);
        }
        self.ask_when_covered();
    }

    /// Whether these are to be counted on, by the rule that is to be, whatever they hold.
    fn is_wanted(&self, set: &Counted) -> bool {
        let wanted = self.wanted().count();
        set.len() == wanted
            && set.required() == self.required_of(wanted)
            && self.wanted().all(|(name, member)| set.has(name, member.incarnation))
    }

    /// Who should be counted on, as things are: whoever is in step, and of those who were counted
    /// on and are not, as many as are waited for. Looked at with every event.
    fn wanted(&self) -> impl Iterator<Item = (&str, Member)> {
        let ready = |name: &str| self.peers.get(name).is_some_and(|peer| peer.ready);
        let joins = self.ending.is_none();
        let kept = self.commit.counted.members().filter(move |(name, _)| match &self.ending {
            None => !ready(name),
            Some(ending) => ending.counts_on(name),
        });
        let present = self.peers.values().filter(move |peer| joins && peer.ready);
        present
            .map(|peer| (peer.node.as_str(), peer.as_member()))
            .chain(kept.take(self.places_kept()).map(|(name, member)| (name.as_str(), *member)))
    }

    /// How many of those that are not in step are counted on all the same.
    fn places_kept(&self) -> usize {
        let waits = self.config.on_backup_loss == OnBackupLoss::Pause && !self.commit.forsaken;
        match (&self.ending, waits) {
            (Some(_), _) => usize::MAX,
            // Who is lost is waited for, unless others have taken the place.
            (None, true) => {
                self.config.backups_max.saturating_sub(self.peers.values().filter(|peer| peer.ready).count())
            }
            (None, false) => 0,
        }
    }

    /// How many of so many that are wanted must hold an output.
    fn required_of(&self, wanted: usize) -> usize {
        match self.ending {
            // The rule stays as it is for as long as nobody leaves.
            Some(_) => wanted.min(self.commit.counted.required()),
            None => self.config.release.required(wanted),
        }
    }

    /// Holds output from now on by both rules, until the new set holds what was released.
    fn begin_change(&mut self, to: Counted, now_ns: u64) {
        if self.commit.counted.is_empty() && !self.batcher.is_empty() {
            self.seal(now_ns);
        }
        let last = self.tail.last_sequence();
        let barrier = self.commit.counted.held_by_enough().map_or(last, |held| held.min(last));
        self.commit.change = Some(Change { to, barrier, asked: false });
        // From here on by both rules, whatever seals a batch before this.
        self.commit_acknowledged();
    }

    fn ask_when_covered(&mut self) {
        let Some(change) = self.commit.change.as_mut().filter(|change| !change.asked) else { return };
        if change.to.held_by_enough().is_none_or(|held| held >= change.barrier) {
            change.asked = true;
            self.ask_for_change();
        }
    }

    fn ask_for_change(&mut self) {
        let Some(change) = &self.commit.change else { return };
        let (node, term) = (self.config.node.clone(), self.term());
        let (backups, required) = (change.to.names(), change.to.required() as u32);
        let mut lives = change.to.lives();
        if self.life.is_known() {
            lives.insert(node.clone(), self.life);
        }
        self.lane.ask(Step::SetBackups { node, term, backups, lives, required });
    }

    /// The record names the new set.
    fn adopt(&mut self, now_ns: u64) {
        let Some(change) = self.commit.change.take() else { return };
        let before = std::mem::replace(&mut self.commit.counted, change.to);
        // The heir is off the record, so the machine stays here.
        self.handed_to = self.handed_to.take().filter(|to| self.commit.counted.has_name(to));
        self.commit.forsaken = false;
        let added: Vec<String> = self
            .commit
            .counted
            .members()
            .filter(|(name, member)| !before.has(name, member.incarnation))
            .map(|(name, _)| name.clone())
            .collect();
        self.events.extend(added.into_iter().map(|backup| PrimaryEvent::Protected { backup }));
        if self.commit.counted.is_empty() {
            self.events.push_back(PrimaryEvent::Alone);
        }
        self.commit_acknowledged();
        // The backups learn at once that they are counted on.
        self.heartbeat_due_ns = now_ns;
    }

    /// A backup says that it is in step, or stands at an increment.
    pub(super) fn handle_ready(&mut self, node: &str, sequence: u64) {
        if let Some(peer) = self.peers.get_mut(node)
            && peer.phase == Phase::Following
        {
            peer.ready = true;
            peer.stood = peer.stood.max(sequence);
        }
        self.forget_increments();
    }

    /// Lets go what enough backups, and where that is asked for this side's disk, hold.
    pub(super) fn commit_acknowledged(&mut self) {
        if self.commit.fenced {
            return;
        }
        match self.release_limit() {
            None => self.buffer.release_all(),
            Some(sequence) => {
                self.buffer.protect();
                if let Some(outputs) = self.tail.outputs_after(sequence) {
                    self.buffer.commit_before(outputs);
                }
            }
        }
    }

    /// Outputs of the batches up to this one may leave; `None`: all may.
    pub(super) fn release_limit(&self) -> Option<u64> {
        let own = (self.config.durability == Durability::Disk).then_some(self.stored);
        [self.commit.held_by_enough(), own].into_iter().flatten().min()
    }

    /// Batches after this one may still be asked for by a backup that is counted on.
    pub(super) fn keep_after(&self) -> u64 {
        let to = self.commit.change.as_ref().and_then(|change| change.to.held_by_all());
        let all = [self.commit.counted.held_by_all(), to, self.release_limit()];
        all.into_iter().flatten().min().unwrap_or(u64::MAX)
    }

    /// A backup is lost: what that means depends on whether it could take over.
    pub(super) fn lose_peer(&mut self, node: &str, reason: &str, now_ns: u64) {
        let Some(peer) = self.peers.remove(node) else { return };
        if let Some(id) = peer.connection {
            self.say_goodbye(id, GoodbyeReason::BackupRemoved, reason);
        }
        self.forget_join(node);
        let event = PrimaryEvent::BackupLost { node: peer.node, reason: reason.to_owned() };
        self.events.push_back(event);
        // A question that nobody heard need not be answered.
        let in_question =
            self.commit.change.as_ref().is_some_and(|change| change.asked && change.to.has_name(node));
        if in_question {
            match self.lane.withdraw() {
                true => {
                    self.commit.change = None;
                    self.commit_acknowledged();
                }
                false => self.ask_for_change(),
            }
        }
        let counted = self.commit.counted.has(node, peer.incarnation);
        if counted && self.config.on_backup_loss == OnBackupLoss::Pause && !self.commit.forsaken {
            self.events.push_back(PrimaryEvent::Paused);
        }
        self.settle(now_ns);
    }

    /// The operator says to go on without what is lost.
    pub(super) fn operator_goes_alone(&mut self, now_ns: u64) {
        self.commit.forsaken |= self.is_degraded();
        self.settle(now_ns);
    }

    /// Too few of those that are counted on are there, and policy says to wait for them.
    pub(super) fn is_degraded(&self) -> bool {
        let leaves = self.ending.as_ref().is_some_and(|ending| ending.finish.wants_heir());
        let waits = self.config.on_backup_loss == OnBackupLoss::Pause && !self.commit.forsaken;
        self.has_too_few() && (waits || leaves) && self.commit.change.is_none()
    }

    /// Whether fewer of those that are counted on are there than must hold an output.
    pub(super) fn has_too_few(&self) -> bool {
        let counted = &self.commit.counted;
        let present = counted.members().filter(|(name, member)| self.has_peer(name, member.incarnation));
        !counted.is_empty() && present.count() < counted.required()
    }

    fn has_peer(&self, name: &str, incarnation: u64) -> bool {
        self.peers.get(name).is_some_and(|peer| peer.incarnation == incarnation)
    }

    /// Stops for good: nothing that is held may ever leave.
    pub(super) fn fence(&mut self, text: String) {
        if self.commit.fenced {
            return;
        }
        self.buffer.protect();
        self.buffer.take_held();
        self.commit.fenced = true;
        self.events.push_back(PrimaryEvent::Fenced { text: text.clone() });
        self.cancel_checkpoints();
        self.peers.clear();
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            self.say_goodbye(id, GoodbyeReason::Fenced, &text);
        }
        self.ending = None;
        let finish = match self.handed_to.take() {
            // That is what was wanted.
            Some(to) => Finish::SwitchedOver { to },
            None => Finish::Fenced { text },
        };
        self.finish(finish);
    }

    /// Time between two looks at whether this is still the primary; `None` where others tell.
    pub(super) fn probe_interval_ns(&self) -> Option<u64> {
        let hands_over = self.handed_to.is_some().then_some(20 * MILLISECOND_NS);
        hands_over.or(self.is_degraded().then_some(500 * MILLISECOND_NS))
    }

    /// Standing still, nothing else would tell this primary that a backup took over.
    pub(super) fn probe(&mut self, now_ns: u64) {
        let Some(interval_ns) = self.probe_interval_ns().filter(|_| now_ns >= self.probe_due_ns) else {
            return;
        };
        self.probe_due_ns = now_ns.saturating_add(interval_ns);
        if self.commit.change.is_none() {
            let (node, term) = (self.config.node.clone(), self.term());
            self.lane.ask(Step::Confirm { node, life: self.life, term });
        }
    }

    /// A backup whose log piles up here is no protection: policy pause waits for it (see
    /// [`Primary::wants_stall`]), policy continue goes on without.
    fn judge_slowness(&mut self, now_ns: u64) {
        if self.config.on_backup_loss != OnBackupLoss::Continue {
            return;
        }
        let limit_bytes = self.config.unacked_max_bytes;
        let slow = self.peers.values().find(|peer| peer.ready && peer.unacked_bytes >= limit_bytes);
        if let Some(node) = slow.map(|peer| peer.node.clone()) {
            self.lose_peer(&node, "it is too slow: too much log is unacknowledged", now_ns);
        }
    }

    /// A join that cannot keep up with the log is given up; it may be tried again.
    fn drop_backlogged_peers(&mut self, now_ns: u64) {
        let limit_bytes = self.config.join_backlog_max_bytes;
        let behind = self.peers.values().find(|peer| !peer.ready && peer.unacked_bytes > limit_bytes);
        if let Some(node) = behind.map(|peer| peer.node.clone()) {
            self.lose_peer(&node, "it receives more slowly than the log grows", now_ns);
        }
    }

    /// Nothing is taken of the machine any more.
    fn cancel_checkpoints(&mut self) {
        for checkpoint in self.checkpoints.asked_for() {
            self.requests.push_back(MachineRequest::CancelCheckpoint { checkpoint });
        }
        self.checkpoints.clear();
    }
}
