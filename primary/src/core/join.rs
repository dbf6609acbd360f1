//! How a backup comes into step: hello, plan, checkpoint.

use link::handshake::{Availability, Join, LocalFacts, check_hello, welcome};
use log_format::{
    ChainHash, CheckpointEnd, CheckpointPart, CheckpointStart, Have, Hello, JoinPlan, Message, Position,
    Refuse, RefuseReason, VersionRange,
};

use super::peer::{ConnectionId, Peer, Phase};
use super::{Commit, MILLISECOND_NS, MachineRequest, Primary, PrimaryEvent, listen};
use crate::recorder::CheckpointBegun;

impl Primary {
    /// The machine began a checkpoint, as [`MachineRequest::BeginCheckpoint`] asked.
    pub(super) fn handle_checkpoint_begun(&mut self, checkpoint: u64, begun: CheckpointBegun, now_ns: u64) {
        self.handle_recorded(begun.before, now_ns);
        let awaited = self.peer.as_ref().is_some_and(|peer| peer.phase == Phase::CheckpointAwaited);
        if !awaited || self.checkpoint != Some(checkpoint) {
            // Its backup is gone meanwhile.
            return;
        }
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
        let Some(peer) = &mut self.peer else { return };
        peer.phase = Phase::Checkpoint { parts: 0, asked: false };
        peer.start_from(position.sequence);
        self.send_to_peer(Message::CheckpointHead(start));
        self.settle(now_ns);
    }

    /// The machine gave a bite of its checkpoint; an empty one is its end.
    pub(super) fn handle_checkpoint_part(&mut self, checkpoint: u64, part: CheckpointPart, now_ns: u64) {
        if self.checkpoint != Some(checkpoint) {
            return;
        }
        let Some(Peer { phase: Phase::Checkpoint { parts, asked }, .. }) = &mut self.peer else { return };
        *asked = false;
        let message = match part.is_empty() {
            false => {
                *parts += 1;
                Message::CheckpointPart(part)
            }
            true => {
                let parts = *parts;
                self.events.push_back(PrimaryEvent::CheckpointShipped { parts });
                self.checkpoint = None;
                if let Some(peer) = &mut self.peer {
                    peer.phase = Phase::Following;
                }
                Message::CheckpointEnd(CheckpointEnd { parts })
            }
        };
        self.send_to_peer(message);
        self.settle(now_ns);
    }

    pub(super) fn handle_hello(&mut self, id: ConnectionId, hello: &Hello, now_ns: u64) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.hello_due_ns = None;
        }
        if self.is_peer(id) {
            return self.protocol_error(id, "a second Hello on one connection");
        }
        let certified_node =
            self.connections.get(&id).and_then(|connection| connection.certified_node.clone());
        let availability = self.availability(&hello.node);
        let version = match check_hello(hello, certified_node.as_deref(), &self.facts(), availability) {
            Ok(version) => version,
            Err(refuse) => return self.refuse(id, hello, refuse),
        };
        let came_back = self.peer.as_ref().is_some_and(|peer| peer.node == hello.node);
        if came_back && !self.resume_peer(id, hello, now_ns) {
            self.lose_peer("it came back without what it held", now_ns);
        }
        if self.peer.is_none() {
            self.admit(id, hello, version, now_ns);
        }
    }

    /// Asks for pages of the checkpoint while there is room to send them.
    pub(super) fn ask_for_pages(&mut self) {
        let Some(peer) = &mut self.peer else { return };
        let Phase::Checkpoint { asked, .. } = &mut peer.phase else { return };
        let connection = peer.connection.and_then(|id| self.connections.get(&id));
        let waiting_bytes = connection.map_or(u64::MAX, super::peer::Connection::bulk_bytes);
        if !*asked && waiting_bytes < self.config.checkpoint_window_bytes {
            *asked = true;
            let limit = self.config.checkpoint_bite_pages;
            let checkpoint = self.checkpoints;
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
            versions: VersionRange::SUPPORTED,
            heartbeat_interval_ms: u32::try_from(self.config.heartbeat_interval_ns / MILLISECOND_NS)
                .unwrap_or(u32::MAX)
                .max(1),
        }
    }

    fn availability(&self, node: &str) -> Availability {
        let occupied = self.peer.as_ref().is_some_and(|peer| peer.node != node);
        match &self.commit {
            Commit::Fenced { .. } => Availability::Fenced,
            _ if self.ending.is_some() || self.finished.is_some() => Availability::NotPrimary,
            _ if occupied => Availability::Busy,
            _ => Availability::Open,
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

    /// What the backup holds, if the log can go on from there. What it was promised in another
    /// term need not hold in this one.
    fn resumable(&self, hello: &Hello) -> Option<Have> {
        let have = hello.have.filter(|_| hello.term == self.term())?;
        self.tail.knows(have.position.sequence, have.chain).then_some(have)
    }

    /// The backup is back on a new connection. Whether it still has what it held.
    fn resume_peer(&mut self, id: ConnectionId, hello: &Hello, now_ns: u64) -> bool {
        let Some(have) = self.resumable(hello) else { return false };
        let Some(peer) = &mut self.peer else { return false };
        let following = peer.phase == Phase::Following;
        if !following || have.position.sequence < peer.acked {
            return false;
        }
        if let Some(old) = peer.connection.replace(id).and_then(|old| self.connections.get_mut(&old)) {
            old.close();
        }
        peer.detector.alive(now_ns);
        self.start_log(id, JoinPlan::Resume, have.position, have.chain, now_ns);
        self.commit_acknowledged();
        true
    }

    fn admit(&mut self, id: ConnectionId, hello: &Hello, version: u8, now_ns: u64) {
        let (start, start_chain) = self.tail.start();
        let have = self.resumable(hello);
        self.peer = Some(Peer {
            node: hello.node.clone(),
            connection: Some(id),
            version,
            phase: Phase::Following,
            acked: 0,
            sent: 0,
            ready: false,
            detector: listen(&self.config, now_ns),
            replayed: log_format::Moment::BOOT,
            round_trip_ns: None,
            unacked_since_ns: None,
            unacked: std::collections::VecDeque::new(),
            unacked_bytes: 0,
        });
        self.heartbeat_due_ns = now_ns;
        match have {
            Some(have) => self.start_log(id, JoinPlan::Resume, have.position, have.chain, now_ns),
            None if self.is_young() && start.sequence == 0 && hello.has_boot_images => {
                self.start_log(id, JoinPlan::LogFromBoot, start, start_chain, now_ns);
            }
            None => {
                let (position, chain) = (self.batcher.position(), self.batcher.chain());
                self.welcome(id, JoinPlan::Checkpoint, position, chain);
                if let Some(peer) = &mut self.peer {
                    peer.phase = Phase::CheckpointAwaited;
                }
                self.checkpoints += 1;
                self.checkpoint = Some(self.checkpoints);
                let checkpoint = self.checkpoints;
                self.requests.push_back(MachineRequest::BeginCheckpoint { checkpoint });
            }
        }
    }

    /// Whether the log since the boot is replayed sooner than a checkpoint is shipped.
    fn is_young(&self) -> bool {
        self.batcher.position().moment.icount <= self.config.log_from_boot_max_icount
    }

    fn start_log(&mut self, id: ConnectionId, plan: JoinPlan, from: Position, chain: ChainHash, now_ns: u64) {
        self.welcome(id, plan, from, chain);
        let Some(peer) = &mut self.peer else { return };
        peer.start_from(from.sequence);
        if let Some(connection) = self.connections.get_mut(&id) {
            for batch in self.tail.after(from.sequence) {
                peer.note_sent(batch.sequence, batch.bytes().len() as u64, now_ns);
                connection.push(Message::Batch(batch.clone()));
            }
        }
    }

    fn welcome(&mut self, id: ConnectionId, plan: JoinPlan, from: Position, chain: ChainHash) {
        let version = self.peer.as_ref().map_or(VersionRange::SUPPORTED.min, |peer| peer.version);
        let welcome = welcome(&self.facts(), version, Join { plan, from, chain });
        let node = self.peer.as_ref().map_or_else(String::new, |peer| peer.node.clone());
        self.events.push_back(PrimaryEvent::Joining { node, plan });
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.push(Message::Welcome(welcome));
        }
    }

    fn send_to_peer(&mut self, message: Message) {
        let id = self.peer.as_ref().and_then(|peer| peer.connection);
        if let Some(connection) = id.and_then(|id| self.connections.get_mut(&id)) {
            connection.push(message);
        }
    }
}
