//! How a backup comes into step: hello, plan, checkpoint.

use link::detector::Detector;
use link::handshake::{Availability, Join, LocalFacts, check_hello, welcome};
use log_format::{
    ChainHash, CheckpointEnd, CheckpointPart, CheckpointStart, Donor, Have, Hello, JoinPlan, MODES_VERSION,
    Message, ModeChange, Position, ProtectionMode, Refuse, RefuseReason, VersionRange, Want,
};

use super::epoch::Purpose;
use super::peer::{ConnectionId, Peer, Phase};
use super::{CoreConfig, MILLISECOND_NS, MachineRequest, Primary, PrimaryEvent};
use crate::recorder::CheckpointBegun;

/// As many windows of contents are kept while their hashes are on the way: 40 MB/s at a round
/// trip of 100 ms.
const OFFERED_WINDOWS: u64 = 4;

impl Primary {
    /// The machine began a checkpoint, as [`MachineRequest::BeginCheckpoint`] asked.
    pub(super) fn handle_checkpoint_begun(
        &mut self,
        checkpoint: u64,
        mut begun: CheckpointBegun,
        now_ns: u64,
    ) {
        self.handle_recorded(std::mem::take(&mut begun.before), now_ns);
        match self.checkpoints.purpose(checkpoint) {
            // Whoever it was for is gone meanwhile.
            None => {}
            Some(Purpose::Join { node }) => self.join_begun(&node, begun, now_ns),
            Some(Purpose::Epoch) => {
                self.checkpoints.done(checkpoint);
                self.handle_epoch(now_ns);
            }
            Some(Purpose::Increment) => self.increment_begun(checkpoint, begun, now_ns),
            Some(Purpose::DiskCheck) => self.disk_check_begun(checkpoint, now_ns),
        }
        self.settle(now_ns);
    }

    fn join_begun(&mut self, node: &str, begun: CheckpointBegun, now_ns: u64) {
        // The place of a checkpoint lies between two batches.
        if !self.batcher.is_empty() {
            self.seal(now_ns);
        }
        let position = Position { moment: begun.head.moment, ..self.batcher.position() };
        let start = CheckpointStart {
            position,
            chain: self.batcher.chain(),
            events_before: begun.events_before,
            released_outputs: self.buffer.released_before(),
            held: self.buffer.held().cloned().collect(),
            head: begun.head,
        };
        let Some(peer) = self.peers.get_mut(node) else { return };
        peer.phase = Phase::Checkpoint { asked: false };
        peer.start_from(position.sequence);
        self.send_to(node, Message::CheckpointHead(start));
        if self.modes.present.stands() {
            self.tell_mode(node, ProtectionMode::Replay, now_ns);
        }
    }

    /// The machine gave a bite of its checkpoint; an empty one is its end.
    pub(super) fn handle_checkpoint_part(&mut self, checkpoint: u64, part: CheckpointPart, now_ns: u64) {
        let node = match self.checkpoints.purpose(checkpoint) {
            Some(Purpose::Join { node }) => node,
            Some(Purpose::DiskCheck) => return self.disk_check_part(checkpoint, &part),
            _ => return,
        };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Phase::Checkpoint { asked } = &mut peer.phase else { return };
        *asked = false;
        let messages = match part.is_empty() {
            false => peer.resync.handle_part(part),
            true => {
                peer.resync.handle_end();
                self.checkpoints.done(checkpoint);
                Vec::new()
            }
        };
        messages.into_iter().for_each(|message| self.send_to(&node, message));
        self.end_join(&node);
        self.settle(now_ns);
    }

    /// A backup that joins says what it has of an earlier state.
    pub(super) fn handle_donor(&mut self, node: &str, donor: Donor) {
        if let Some(peer) = self.peers.get_mut(node) {
            peer.resync.handle_donor(donor);
        }
    }

    /// A backup that joins says what of an offer it does not have.
    pub(super) fn handle_want(&mut self, id: ConnectionId, node: &str, want: &Want) {
        let Some(peer) = self.peers.get_mut(node) else { return };
        match peer.resync.handle_want(want) {
            Ok(message) => {
                message.into_iter().for_each(|message| self.send_to(node, message));
                self.end_join(node);
            }
            Err(text) => self.protocol_error(id, &text),
        }
    }

    /// Ends a checkpoint of which all was taken, and every offer answered.
    fn end_join(&mut self, node: &str) {
        let Some(peer) = self.peers.get_mut(node) else { return };
        if !matches!(peer.phase, Phase::Checkpoint { .. }) || !peer.resync.is_settled() {
            return;
        }
        peer.phase = Phase::Following;
        let (parts, counts) = (peer.resync.parts(), peer.resync.counts());
        self.events.push_back(PrimaryEvent::CheckpointShipped { parts, counts });
        self.send_to(node, Message::CheckpointEnd(CheckpointEnd { parts }));
    }

    /// The checkpoint for a backup that is gone is given up.
    pub(super) fn forget_join(&mut self, node: &str) {
        if let Some((checkpoint, _)) = self.checkpoints.joining().filter(|(_, joining)| *joining == node) {
            self.requests.push_back(MachineRequest::CancelCheckpoint { checkpoint });
            self.checkpoints.done(checkpoint);
        }
        self.drop_orphaned_increment();
        self.forget_increments();
    }

    pub(super) fn handle_hello(&mut self, id: ConnectionId, hello: &Hello, now_ns: u64) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.hello_due_ns = None;
        }
        if self.peer_of(id).is_some() {
            return self.protocol_error(id, "a second Hello on one connection");
        }
        let certified_node =
            self.connections.get(&id).and_then(|connection| connection.certified_node.clone());
        let availability = self.availability(&hello.node);
        let version = match check_hello(hello, certified_node.as_deref(), &self.facts(), availability) {
            Ok(version) => version,
            Err(refuse) => return self.refuse(id, hello, refuse),
        };
        let came_back = self.peers.contains_key(&hello.node);
        if came_back && !self.resume_peer(id, hello, now_ns) {
            self.lose_peer(&hello.node, "it came back without what it held", now_ns);
        }
        if !self.peers.contains_key(&hello.node) {
            self.admit(id, hello, version, now_ns);
        }
    }

    /// Asks for pages of the checkpoint while there is room to send them.
    pub(super) fn ask_for_pages(&mut self) {
        let Some((checkpoint, node)) = self.checkpoints.joining() else { return };
        let Some(peer) = self.peers.get_mut(node) else { return };
        let Phase::Checkpoint { asked } = &mut peer.phase else { return };
        let connection = peer.connection.and_then(|id| self.connections.get(&id));
        let waiting_bytes = connection.map_or(u64::MAX, super::peer::Connection::bulk_bytes);
        // What was offered is kept here until the answer comes: at most a few windows of it.
        let offered_bytes = peer.resync.waiting_bytes() / OFFERED_WINDOWS;
        let has_room = waiting_bytes.max(offered_bytes) < self.config.checkpoint_window_bytes;
        if !*asked && has_room && peer.resync.is_ready() {
            *asked = true;
            let limit = self.config.checkpoint_bite_pages;
            self.requests.push_back(MachineRequest::TakePages { checkpoint, limit });
        }
    }

    /// What this side is, for the handshake.
    fn facts(&self) -> LocalFacts {
        LocalFacts {
            vm: self.config.vm.clone(),
            node: self.config.node.clone(),
            term: self.term(),
            identity: self.config.identity.clone(),
            versions: self.versions(),
            heartbeat_interval_ms: u32::try_from(self.config.heartbeat_interval_ns / MILLISECOND_NS)
                .unwrap_or(u32::MAX)
                .max(1),
        }
    }

    /// What this side speaks.
    fn versions(&self) -> VersionRange {
        let supported = VersionRange::SUPPORTED;
        VersionRange { max: self.config.protocol_max.clamp(supported.min, supported.max), ..supported }
    }

    fn availability(&self, node: &str) -> Availability {
        let others = self.peers.keys().filter(|name| *name != node).count();
        // One checkpoint for one joiner at a time.
        let joining = self.checkpoints.joining().is_some_and(|(_, joining)| joining != node);
        let expected = usize::from(self.expected.as_deref() == Some(node));
        if self.commit.fenced {
            Availability::Fenced
        } else if self.ending.is_some() || self.finished.is_some() {
            Availability::NotPrimary
        } else if others >= self.config.backups_max + expected || joining {
            Availability::Busy
        } else {
            Availability::Open
        }
    }

    fn refuse(&mut self, id: ConnectionId, hello: &Hello, refuse: Refuse) {
        let event = PrimaryEvent::JoinRefused { node: hello.node.clone(), text: refuse.text.clone() };
        self.events.push_back(event);
        let stale = hello.term > self.term() && refuse.reason == RefuseReason::Fenced;
        let text = refuse.text.clone();
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.push(Message::Refuse(refuse));
            connection.close();
        }
        if stale {
            self.fence(text);
        }
    }

    /// A backup whose acknowledgements do not wait for its disk is none, where output waits for the disks.
    pub(super) fn refuse_memory(&mut self, id: ConnectionId, node: &str, now_ns: u64) {
        let text = format!(
            "found --durability memory at {node}, expected disk, as at the primary {}; start {node} with \
             --durability disk --log-dir DIR",
            self.config.node
        );
        self.events.push_back(PrimaryEvent::JoinRefused { node: node.to_owned(), text: text.clone() });
        let refuse = Refuse { term: self.term(), reason: RefuseReason::Durability, text: text.clone() };
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.push(Message::Refuse(refuse));
            connection.close();
        }
        self.lose_peer(node, &text, now_ns);
    }

    /// What the backup holds, if the log can go on from there. What it was promised in another
    /// term need not hold in this one.
    fn resumable(&self, hello: &Hello) -> Option<Have> {
        let have = hello.have.filter(|_| hello.term == self.term())?;
        self.tail.knows(have.position.sequence, have.chain).then_some(have)
    }

    /// The backup is back on a new connection. Whether it still has what it held.
    fn resume_peer(&mut self, id: ConnectionId, hello: &Hello, now_ns: u64) -> bool {
        let Some(have) = self.resumable(hello) else { return false };
        let Some(peer) = self.peers.get_mut(&hello.node) else { return false };
        let following = peer.phase == Phase::Following;
        // An increment that was cut off is sent again.
        let reached = peer.stands.is_none() || self.epochs.reaches(peer.stood);
        if !following || !reached || have.position.sequence < peer.acked {
            return false;
        }
        if let Some(old) = peer.connection.replace(id).and_then(|old| self.connections.get_mut(&old)) {
            old.close();
        }
        // It may have asked for the term meanwhile: the arbiter's word is wanted anew.
        self.incarnations += 1;
        peer.incarnation = self.incarnations;
        peer.life = hello.life;
        peer.detector.alive(now_ns);
        self.start_log(id, &hello.node, JoinPlan::Resume, have.position, have.chain, now_ns);
        self.send_increments_again(&hello.node, now_ns);
        self.commit_acknowledged();
        true
    }

    /// What a connection that broke took with it.
    fn send_increments_again(&mut self, node: &str, now_ns: u64) {
        let Some(peer) = self.peers.get_mut(node).filter(|peer| peer.stands.is_some()) else { return };
        let (lacking, whole) = self.epochs.lacking(peer.stood);
        if whole > peer.sent {
            peer.note_sent(whole, 0, now_ns);
        }
        lacking.into_iter().for_each(|message| self.send_to(node, message));
    }

    fn admit(&mut self, id: ConnectionId, hello: &Hello, version: u8, now_ns: u64) {
        let (start, start_chain) = self.tail.start();
        let node = hello.node.clone();
        self.incarnations += 1;
        self.peers.insert(
            node.clone(),
            Peer::new(&node, id, version, (self.incarnations, hello.life), listen(&self.config, now_ns)),
        );
        self.heartbeat_due_ns = now_ns;
        // Who is to stand must know at which state: only a checkpoint tells.
        let replays = !self.modes.present.stands();
        match self.resumable(hello).filter(|_| replays) {
            Some(have) => self.start_log(id, &node, JoinPlan::Resume, have.position, have.chain, now_ns),
            None if replays && self.is_young() && start.sequence == 0 && hello.has_boot_images => {
                self.start_log(id, &node, JoinPlan::LogFromBoot, start, start_chain, now_ns);
            }
            None => {
                let (position, chain) = (self.batcher.position(), self.batcher.chain());
                self.welcome(id, &node, JoinPlan::Checkpoint, position, chain);
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.phase = Phase::CheckpointAwaited;
                }
                let base = self.epochs.base;
                let stands = self.peers.values().any(|peer| base.is_some() && peer.stands == base);
                if !replays && !stands && !self.checkpoints.is_freezing() {
                    // What is written from before the checkpoint on belongs to the next increment.
                    self.request(Purpose::Epoch);
                }
                self.request(Purpose::Join { node });
            }
        }
    }

    /// Whether the log since the boot is replayed sooner than a checkpoint is shipped.
    fn is_young(&self) -> bool {
        self.batcher.position().moment.icount <= self.config.log_from_boot_max_icount
    }

    fn start_log(
        &mut self,
        id: ConnectionId,
        node: &str,
        plan: JoinPlan,
        from: Position,
        chain: ChainHash,
        now_ns: u64,
    ) {
        self.welcome(id, node, plan, from, chain);
        let (ships_log, term, mode) = (self.modes.present.ships_log(), self.term(), self.modes.present);
        let Some(peer) = self.peers.get_mut(node) else { return };
        peer.start_from(from.sequence);
        if peer.version >= MODES_VERSION && plan == JoinPlan::Resume {
            // What was said of it may have been lost with the connection.
            let change = ModeChange { term, sequence: from.sequence, mode };
            self.connections.entry(id).and_modify(|connection| connection.push(Message::Mode(change)));
        }
        if let Some(connection) = self.connections.get_mut(&id).filter(|_| ships_log) {
            for batch in self.tail.after(from.sequence) {
                peer.note_sent(batch.sequence, batch.bytes().len() as u64, now_ns);
                connection.push(Message::Batch(batch.clone()));
            }
        }
    }

    fn welcome(&mut self, id: ConnectionId, node: &str, plan: JoinPlan, from: Position, chain: ChainHash) {
        let version = self.peers.get(node).map_or(VersionRange::SUPPORTED.min, |peer| peer.version);
        let welcome = welcome(&self.facts(), version, Join { plan, from, chain });
        self.events.push_back(PrimaryEvent::Joining { node: node.to_owned(), plan });
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.push(Message::Welcome(welcome));
        }
    }

    pub(super) fn send_to(&mut self, node: &str, message: Message) {
        let id = self.peers.get(node).and_then(|peer| peer.connection);
        if let Some(connection) = id.and_then(|id| self.connections.get_mut(&id)) {
            connection.push(message);
        }
    }
}

/// A new detector for a backup that has just been heard.
fn listen(config: &CoreConfig, now_ns: u64) -> Detector {
    Detector::new(config.detector, now_ns)
}
