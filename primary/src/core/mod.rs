//! The primary's side of protection: what is shipped, what may leave, who is counted on.
//!
//! # States
//!
//! ```text
//!                 the backup is in step            it holds all that was released
//!   new --> Alone ----------------------> Syncing --------------------------> Registering
//!             ^ ^                           | ^                                |       |
//!             | |    lost, not registered   | | in step again     arbiter: yes |       | lost
//!             | +---------------------------+ |                                v       |
//!             |                               |                  lost     Protected    |
//!             |                               +-- Degraded <----------------+ |        |
//!             |                                  (policy pause:               |        |
//!             | arbiter: yes                      output held)                | lost   |
//!             |                                      | operator      (policy  |        |
//!             |                                      v               continue)v        v
//!             +--------------------------------------+------------------- GoingAlone <-+
//!
//!   any -- arbiter: another node is the primary --> Fenced      (for good: output never leaves)
//!   any -- the guest ended, the operator stops  --> Ending --> Finished
//! ```
//!
//! Law 2 in one place: output leaves in `Alone` and `Ending` from there, and in `Protected` once
//! the backup named in the arbiter's record acknowledged the batch that covers it. In every
//! other state it is held. From `Registering` on the record may name the backup, whatever
//! became of the question; only the arbiter's word leads back to `Alone`.
//!
//! How the backup joins is a machine of its own ([`peer::Phase`]): plan *resume* and *log from
//! boot* ship the log at once, plan *checkpoint* asks the vCPU for a copy-on-write
//! checkpoint and ships the log beside it.

mod commit;
mod join;
mod peer;
mod tail;

use std::collections::{BTreeMap, VecDeque};

use link::arbitration::Step;
use link::detector::{Detector, DetectorConfig};
use link::lane::Lane;
use log_format::{
    Ack, ChainHash, Divergence, Goodbye, GoodbyeReason, Heartbeat, HeartbeatReply, LoggedOutput,
    MachineIdentity, Message, Moment, Position, SealedBatch,
};
use machine::PrimacyStart;
use netbuf::{BufferLimits, BufferStatistics, OutputBuffer};

use crate::batcher::Batcher;
use crate::recorder::Recorded;
use crate::vcpu::FromMachine;
use commit::Commit;
use peer::{Connection, Peer, Phase};
use tail::Tail;

pub use peer::ConnectionId;

const MILLISECOND_NS: u64 = 1_000_000;

/// A backup that joins and says nothing for this long is given up.
const JOIN_SILENCE_NS: u64 = 10_000 * MILLISECOND_NS;

/// What a primary does when it loses its backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnBackupLoss {
    /// Goes on alone, once the arbiter agrees.
    #[default]
    Continue,
    /// Stands still until a backup is in step again, or the operator says to go on alone.
    Pause,
}

/// How a [`Primary`] works. The defaults are for two hosts on one LAN.
#[derive(Debug, Clone)]
pub struct CoreConfig {
    /// Name of the virtual machine.
    pub vm: String,
    /// This node's name, as the arbiter knows it.
    pub node: String,
    /// What the machine is made of.
    pub identity: MachineIdentity,
    /// What to do without a backup.
    pub on_backup_loss: OnBackupLoss,
    /// Time between heartbeats.
    pub heartbeat_interval_ns: u64,
    /// How a silent backup is judged.
    pub detector: DetectorConfig,
    /// How long events without outputs wait for a batch.
    pub batch_interval_ns: u64,
    /// Size at which a batch is sealed.
    pub batch_max_bytes: u64,
    /// Log kept in memory for a backup that comes back.
    pub tail_max_bytes: u64,
    /// Log that a backup may leave unacknowledged: beyond it, it is too slow.
    pub unacked_max_bytes: u64,
    /// How long a backup may leave the oldest batch unacknowledged.
    pub unacked_max_ns: u64,
    /// A machine that has executed more than this is joined by a checkpoint, though the log
    /// may reach back to its boot: replaying takes as long as executing did.
    pub log_from_boot_max_icount: u64,
    /// What may wait in memory to be sent to a backup that joins.
    pub join_backlog_max_bytes: u64,
    /// Pages and blocks of a checkpoint taken in one bite.
    pub checkpoint_bite_pages: usize,
    /// No more of a checkpoint is taken while this much waits to be sent.
    pub checkpoint_window_bytes: u64,
    /// Outputs held before the machine must rest.
    pub buffer: BufferLimits,
    /// Whether batches are handed to [`Primary::poll_store`].
    pub store: bool,
    /// How long a step of the ending may wait for the other side or the arbiter.
    pub ending_max_ns: u64,
}

impl CoreConfig {
    /// The defaults for this VM on this node.
    pub fn new(vm: &str, node: &str, identity: MachineIdentity) -> Self {
        CoreConfig {
            vm: vm.to_owned(),
            node: node.to_owned(),
            identity,
            on_backup_loss: OnBackupLoss::default(),
            heartbeat_interval_ns: 20 * MILLISECOND_NS,
            detector: DetectorConfig::default(),
            batch_interval_ns: 2 * MILLISECOND_NS,
            batch_max_bytes: 64 << 10,
            tail_max_bytes: 8 << 20,
            unacked_max_bytes: 8 << 20,
            unacked_max_ns: 5_000 * MILLISECOND_NS,
            log_from_boot_max_icount: 50_000_000,
            join_backlog_max_bytes: 12 << 20,
            checkpoint_bite_pages: 64,
            checkpoint_window_bytes: 1 << 20,
            buffer: BufferLimits { bytes: 8 << 20, ..BufferLimits::default() },
            store: false,
            ending_max_ns: 2_000 * MILLISECOND_NS,
        }
    }
}

/// What the core wants of the machine's thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineRequest {
    /// Begin a checkpoint, and say so.
    BeginCheckpoint {
        /// Which one: answers carry it.
        checkpoint: u64,
    },
    /// Give the next pages of the checkpoint.
    TakePages {
        /// Of which one. Without effect when it is not the one under way.
        checkpoint: u64,
        /// How many at most.
        limit: usize,
    },
    /// Give the checkpoint up.
    CancelCheckpoint {
        /// Which one. Without effect when it is not the one under way.
        checkpoint: u64,
    },
}

/// A command of the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// Go on without the backup that was lost (policy pause).
    GoAlone,
    /// Leave in an orderly way: a registered backup takes over.
    Stop,
}

/// What happened, for the timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrimaryEvent {
    /// A backup asked to join and was refused.
    JoinRefused {
        /// The backup.
        node: String,
        /// Why.
        text: String,
    },
    /// A backup joins.
    Joining {
        /// The backup.
        node: String,
        /// How it comes into step.
        plan: log_format::JoinPlan,
    },
    /// All pages of the checkpoint are on their way.
    CheckpointShipped {
        /// Messages it took.
        parts: u64,
    },
    /// The registered backup is counted on from now on.
    Protected {
        /// The backup.
        backup: String,
    },
    /// The backup is lost.
    BackupLost {
        /// The backup.
        node: String,
        /// Why.
        reason: String,
    },
    /// The guest stands still until a backup is back (policy pause).
    Paused,
    /// Output leaves without a backup.
    Alone,
    /// The arbiter cannot be asked; the question is repeated.
    ArbiterUnreachable {
        /// The question.
        step: String,
        /// What went wrong.
        text: String,
    },
    /// Another node is the primary: this one stops for good.
    Fenced {
        /// How that is known.
        text: String,
    },
    /// The backup's state differs from this one's: both are to be kept for diagnosis.
    Diverged {
        /// The backup.
        node: String,
        /// What it found.
        report: Divergence,
    },
    /// The other side broke the protocol, and its connection was ended.
    ProtocolError {
        /// What it did.
        text: String,
    },
    /// The guest ended.
    GuestEnded {
        /// Its exit status.
        code: u32,
    },
    /// Everything is done; see [`Primary::finished`].
    Finished,
}

/// How a primacy ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// The guest powered itself off.
    GuestEnded {
        /// Its exit status.
        code: u32,
    },
    /// The operator stopped this side. A registered backup takes over.
    Stopped,
    /// The host failed to read or write this disk. A registered backup takes over.
    HostFault {
        /// Index of the disk.
        disk: u8,
    },
    /// Another node is the primary.
    Fenced {
        /// How that is known.
        text: String,
    },
}

impl Finish {
    /// Whether the virtual machine is to live on elsewhere.
    fn wants_heir(&self) -> bool {
        matches!(self, Finish::Stopped | Finish::HostFault { .. })
    }
}

/// The replication core of a primary.
///
/// # Order of calls
///
/// Any `handle_*` with the time, in any order; after each, `poll_release` until `None` with
/// every output handed to its port, then the other `poll_*` until they return `None`. Call
/// `handle_timeout` when [`Primary::poll_timeout`] is reached. All times are the host's
/// monotonic nanoseconds.
pub struct Primary {
    config: CoreConfig,
    commit: Commit,
    lane: Lane,
    batcher: Batcher,
    tail: Tail,
    buffer: OutputBuffer,
    connections: BTreeMap<ConnectionId, Connection>,
    peer: Option<Peer>,
    /// The checkpoint that the machine was asked for, and how many there were.
    checkpoint: Option<u64>,
    checkpoints: u64,
    store: VecDeque<SealedBatch>,
    requests: VecDeque<MachineRequest>,
    events: VecDeque<PrimaryEvent>,
    heartbeat_due_ns: u64,
    /// When a primary that stands still asks again whether it still is one.
    probe_due_ns: u64,
    ending: Option<Ending>,
    finished: Option<Finish>,
    batches_sealed: u64,
}

/// How the primacy is about to end.
#[derive(Debug, Clone)]
struct Ending {
    finish: Finish,
    due_ns: u64,
    /// The batch that covers everything.
    last_sequence: u64,
    goodbye_said: bool,
}

impl Primary {
    /// Begins a primacy, for which the arbiter's record names this node alone.
    pub fn new(config: CoreConfig, start: PrimacyStart, now_ns: u64) -> Self {
        let PrimacyStart { from, chain, outputs_logged, outputs_released, reissue, .. } = start;
        let mut buffer = OutputBuffer::new(config.buffer);
        buffer.drop_released_before(outputs_released);
        buffer.release_all();
        let mut primary = Primary {
            lane: Lane::default(),
            commit: Commit::Alone,
            batcher: Batcher::new(from, chain, outputs_logged),
            tail: Tail::new(from, chain, outputs_logged),
            buffer,
            connections: BTreeMap::new(),
            peer: None,
            checkpoint: None,
            checkpoints: 0,
            store: VecDeque::new(),
            requests: VecDeque::new(),
            events: VecDeque::new(),
            heartbeat_due_ns: now_ns,
            probe_due_ns: now_ns,
            ending: None,
            finished: None,
            batches_sealed: 0,
            config,
        };
        // Made at the end of the last term's log, but not covered by it: hashed in this one.
        let outputs: Vec<LoggedOutput> =
            reissue.iter().filter(|output| output.ordinal >= outputs_logged).cloned().collect();
        primary.batcher.push(Recorded { outputs, end: from.moment, ..Recorded::default() }, now_ns);
        reissue.into_iter().for_each(|output| primary.buffer.hold(output, now_ns));
        primary
    }

    /// The machine's thread has something for the core.
    pub fn handle_machine(&mut self, message: FromMachine, now_ns: u64) {
        match message {
            FromMachine::Recorded(recorded) => self.handle_recorded(recorded, now_ns),
            FromMachine::CheckpointBegun { checkpoint, begun } => {
                self.handle_checkpoint_begun(checkpoint, *begun, now_ns);
            }
            FromMachine::CheckpointPart { checkpoint, part } => {
                self.handle_checkpoint_part(checkpoint, part, now_ns);
            }
            FromMachine::Halted { code } => self.handle_halted(code, now_ns),
            FromMachine::HostFault { disk } => self.begin_ending(Finish::HostFault { disk }, now_ns),
        }
    }

    /// Takes what the machine did. Outputs are held until they may leave.
    pub(super) fn handle_recorded(&mut self, recorded: Recorded, now_ns: u64) {
        if self.is_over() {
            return;
        }
        for output in &recorded.outputs {
            self.buffer.hold(output.clone(), now_ns);
        }
        let urgent = !recorded.outputs.is_empty() && self.buffer.is_protected();
        self.batcher.push(recorded, now_ns);
        if urgent || self.batcher.open_bytes() >= self.config.batch_max_bytes {
            self.seal(now_ns);
        }
        self.settle(now_ns);
    }

    /// The guest ended; everything it did was handed in before.
    fn handle_halted(&mut self, code: u32, now_ns: u64) {
        self.events.push_back(PrimaryEvent::GuestEnded { code });
        self.begin_ending(Finish::GuestEnded { code }, now_ns);
    }

    /// A connection was made.
    ///
    /// `certified_node` is the node that the peer's certificate names; `None` without TLS.
    pub fn handle_connected(&mut self, id: ConnectionId, certified_node: Option<String>, now_ns: u64) {
        const HELLO_WITHIN_NS: u64 = 5_000 * MILLISECOND_NS;
        let hello_due_ns = now_ns.saturating_add(HELLO_WITHIN_NS);
        self.connections.insert(id, Connection::new(certified_node, hello_due_ns));
    }

    /// A connection ended.
    pub fn handle_closed(&mut self, id: ConnectionId, now_ns: u64) {
        self.connections.remove(&id);
        if let Some(peer) = self.peer.as_mut().filter(|peer| peer.connection == Some(id)) {
            peer.connection = None;
            peer.detector.closed(now_ns);
            let kept = peer.ready && peer.phase == Phase::Following;
            if !kept {
                self.lose_peer("its connection ended while it joined", now_ns);
            }
        }
        self.settle(now_ns);
    }

    /// A message came.
    pub fn handle_message(&mut self, id: ConnectionId, message: Message, now_ns: u64) {
        if self.connections.get(&id).is_none_or(|connection| connection.closing) {
            return;
        }
        match message {
            Message::Hello(hello) => self.handle_hello(id, &hello, now_ns),
            message if self.is_peer(id) => self.handle_peer_message(message, now_ns),
            other => self.protocol_error(id, &format!("a {:?} before its Hello", other.kind())),
        }
        self.settle(now_ns);
    }

    /// The operator said something.
    pub fn handle_operator(&mut self, command: Operator, now_ns: u64) {
        match command {
            Operator::GoAlone => self.operator_goes_alone(now_ns),
            Operator::Stop => self.begin_ending(Finish::Stopped, now_ns),
        }
        self.settle(now_ns);
    }

    /// Time has come to [`Primary::poll_timeout`].
    pub fn handle_timeout(&mut self, now_ns: u64) {
        if self.batch_due_ns().is_some_and(|due_ns| due_ns <= now_ns) {
            self.seal(now_ns);
        }
        if self.heartbeat_due_ns <= now_ns {
            self.heartbeat_due_ns = now_ns.saturating_add(self.config.heartbeat_interval_ns);
            self.send_heartbeat(now_ns);
        }
        self.probe(now_ns);
        self.judge_peer(now_ns);
        self.drop_silent_connections(now_ns);
        self.settle(now_ns);
    }

    /// When [`Primary::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<u64> {
        if self.finished.is_some() {
            return None;
        }
        let peer = self.peer.as_ref();
        let hellos = self.connections.values().filter_map(|connection| connection.hello_due_ns);
        [
            self.batch_due_ns(),
            peer.map(|_| self.heartbeat_due_ns),
            peer.map(|peer| self.judged_at_ns(peer)),
            peer.and_then(|peer| peer.unacked_since_ns)
                .map(|since_ns| since_ns.saturating_add(self.config.unacked_max_ns)),
            self.lane.retry_at_ns(),
            Some(self.probe_due_ns).filter(|_| matches!(self.commit, Commit::Degraded { .. })),
            self.ending.as_ref().map(|ending| ending.due_ns),
        ]
        .into_iter()
        .flatten()
        .chain(hellos)
        .min()
    }

    /// The next output that may leave.
    pub fn poll_release(&mut self, now_ns: u64) -> Option<LoggedOutput> {
        self.buffer.poll_release(now_ns)
    }

    /// The next message for this connection; one of a checkpoint only if the transport's bulk
    /// lane has room. Ask only while its log lane has.
    pub fn poll_transmit(&mut self, id: ConnectionId, bulk_has_room: bool) -> Option<Message> {
        let message = self.connections.get_mut(&id)?.pop(bulk_has_room);
        if message.is_some() {
            self.ask_for_pages();
        }
        message
    }

    /// Connections that have something to send.
    pub fn sending(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        self.connections.iter().filter(|(_, connection)| !connection.is_drained()).map(|(id, _)| *id)
    }

    /// A connection that is to be closed, now that everything for it was taken.
    pub fn poll_close(&mut self) -> Option<ConnectionId> {
        let (id, connection) = self.connections.iter_mut().find(|(_, connection)| {
            connection.closing && connection.is_drained() && !connection.close_told
        })?;
        connection.close_told = true;
        Some(*id)
    }

    /// The next request to the machine's thread.
    pub fn poll_machine_request(&mut self) -> Option<MachineRequest> {
        self.requests.pop_front()
    }

    /// The next step to ask of the arbiter. One at a time; the answer goes to
    /// [`Primary::handle_arbiter_reply`].
    pub fn poll_arbiter_request(&mut self, now_ns: u64) -> Option<Step> {
        self.lane.poll(now_ns)
    }

    /// The next batch for the log on this side's disk.
    pub fn poll_store(&mut self) -> Option<SealedBatch> {
        self.store.pop_front()
    }

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<PrimaryEvent> {
        self.events.pop_front()
    }

    /// Whether the machine must rest: until output left, log was acknowledged, or a backup
    /// is back.
    pub fn wants_stall(&self) -> bool {
        let waits = match &self.commit {
            Commit::Degraded { .. } | Commit::Fenced { .. } => true,
            Commit::Alone => false,
            _ => self.unacked_bytes() >= self.config.unacked_max_bytes,
        };
        waits || self.is_over() || self.buffer.is_full()
    }

    /// How the primacy ended, once it has.
    pub fn finished(&self) -> Option<&Finish> {
        self.finished.as_ref()
    }

    /// The primacy's number.
    pub fn term(&self) -> u64 {
        self.batcher.position().term
    }

    /// The place after the last batch, and the chain hash there.
    pub fn position(&self) -> (Position, ChainHash) {
        (self.batcher.position(), self.batcher.chain())
    }

    /// In a word, for people.
    pub fn state_name(&self) -> &'static str {
        match (&self.finished, &self.ending) {
            (Some(_), _) => "finished",
            (None, Some(_)) => "ending",
            (None, None) => self.commit.name(),
        }
    }

    /// Whether the arbiter's record names a backup that is counted on.
    pub fn is_protected(&self) -> bool {
        matches!(self.commit, Commit::Protected { .. })
    }

    /// The backup that joined or is joining.
    pub fn backup(&self) -> Option<BackupStatus> {
        let peer = self.peer.as_ref()?;
        Some(BackupStatus {
            node: peer.node.clone(),
            connected: peer.connection.is_some(),
            in_step: peer.ready,
            acked_sequence: peer.acked,
            replayed: peer.replayed,
            unacked_bytes: self.unacked_bytes(),
            round_trip_ns: peer.round_trip_ns,
        })
    }

    /// What the output buffer did and holds.
    pub fn buffer_statistics(&self) -> BufferStatistics {
        self.buffer.statistics()
    }

    /// Batches sealed in this primacy, and their bytes.
    pub fn log_written(&self) -> (u64, u64) {
        (self.batches_sealed, self.tail.pushed_bytes())
    }

    fn is_over(&self) -> bool {
        self.finished.is_some()
    }

    fn is_peer(&self, id: ConnectionId) -> bool {
        self.peer.as_ref().is_some_and(|peer| peer.connection == Some(id))
    }

    fn unacked_bytes(&self) -> u64 {
        self.peer
            .as_ref()
            .map_or_else(|| self.tail.bytes_after(self.acked_when_lost()), |peer| peer.unacked_bytes)
    }

    fn batch_due_ns(&self) -> Option<u64> {
        let opened_at_ns = self.batcher.opened_at_ns()?;
        Some(opened_at_ns.saturating_add(self.config.batch_interval_ns))
    }

    /// Seals the open batch and sends it everywhere.
    fn seal(&mut self, now_ns: u64) {
        let batch = self.batcher.seal(self.buffer.released_before());
        self.batches_sealed += 1;
        if self.config.store {
            self.store.push_back(batch.clone());
        }
        if let Some(peer) = &mut self.peer
            && peer.phase != Phase::CheckpointAwaited
            && let Some(connection) = peer.connection.and_then(|id| self.connections.get_mut(&id))
        {
            peer.note_sent(batch.sequence, batch.bytes().len() as u64, now_ns);
            connection.push(Message::Batch(batch.clone()));
        }
        let keep_after = match self.commit.may_be_registered() {
            true => self.peer.as_ref().map_or(self.acked_when_lost(), |peer| peer.acked),
            false => u64::MAX,
        };
        self.tail.push(batch, self.config.tail_max_bytes, keep_after);
    }

    fn send_heartbeat(&mut self, now_ns: u64) {
        let required = self.is_protected();
        let heartbeat = Heartbeat {
            term: self.term(),
            after_sequence: self.tail.last_sequence(),
            sent_ns: now_ns,
            mark: Some(self.batcher.safe_mark()),
            released_outputs: self.buffer.released_before(),
            required,
        };
        let Some(peer) = &self.peer else { return };
        // A mark is for who has every batch before it; a backup that still receives its
        // checkpoint does not.
        let mark = heartbeat.mark.filter(|_| peer.phase == Phase::Following);
        if let Some(connection) = peer.connection.and_then(|id| self.connections.get_mut(&id)) {
            connection.push(Message::Heartbeat(Heartbeat { mark, ..heartbeat }));
        }
    }

    fn handle_peer_message(&mut self, message: Message, now_ns: u64) {
        let Some(peer) = &mut self.peer else { return };
        match message {
            Message::HeartbeatReply(reply) => {
                peer.detector.heartbeat(now_ns);
                peer.replayed = reply.replayed;
                peer.round_trip_ns = Some(now_ns.saturating_sub(reply.echo_ns));
                let HeartbeatReply { term, held, .. } = reply;
                self.handle_held(term, held, now_ns);
            }
            Message::Ack(Ack { term, sequence, .. }) => {
                peer.detector.alive(now_ns);
                self.handle_held(term, sequence, now_ns);
            }
            Message::Ready(ready) => {
                peer.detector.alive(now_ns);
                self.handle_held(ready.term, ready.sequence, now_ns);
                self.handle_ready();
            }
            Message::Divergence(report) => self.handle_divergence(report, now_ns),
            Message::Goodbye(goodbye) => {
                let text = format!("it left: {}", goodbye.text);
                self.lose_peer(&text, now_ns);
            }
            other => {
                let text = format!("a {:?}, which only a primary sends", other.kind());
                if let Some(id) = peer.connection {
                    self.protocol_error(id, &text);
                }
                self.lose_peer("it broke the protocol", now_ns);
            }
        }
    }

    /// The backup holds every batch up to `sequence`.
    fn handle_held(&mut self, term: u64, sequence: u64, now_ns: u64) {
        let own_term = self.term();
        let Some(peer) = &mut self.peer else { return };
        if term != own_term || sequence > peer.sent {
            let sent = peer.sent;
            let text = format!(
                "an acknowledgement of batch {sequence} in term {term}, but {sent} in term {own_term} is the last sent"
            );
            if let Some(id) = peer.connection {
                self.protocol_error(id, &text);
            }
            return self.lose_peer("it broke the protocol", now_ns);
        }
        peer.note_acked(sequence, now_ns);
        self.commit_acknowledged();
    }

    fn handle_divergence(&mut self, report: Divergence, now_ns: u64) {
        if let Some(peer) = &self.peer {
            let node = peer.node.clone();
            self.events.push_back(PrimaryEvent::Diverged { node, report });
        }
        self.lose_peer("its state diverged", now_ns);
    }

    /// Ends a connection that says what it must not.
    fn protocol_error(&mut self, id: ConnectionId, text: &str) {
        self.events.push_back(PrimaryEvent::ProtocolError { text: text.to_owned() });
        self.say_goodbye(id, GoodbyeReason::ProtocolError, text);
    }

    fn say_goodbye(&mut self, id: ConnectionId, reason: GoodbyeReason, text: &str) {
        let term = self.term();
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.push(Message::Goodbye(Goodbye { term, reason, text: text.to_owned() }));
            connection.close();
        }
    }

    fn judged_at_ns(&self, peer: &Peer) -> u64 {
        match peer.ready {
            true => peer.detector.suspect_at_ns(),
            false => peer.detector.heard_ns().saturating_add(JOIN_SILENCE_NS),
        }
    }

    /// Looks whether the backup is alive and fast enough.
    fn judge_peer(&mut self, now_ns: u64) {
        let Some(peer) = &mut self.peer else { return };
        if !peer.ready {
            // Its replies wait behind a checkpoint that a thin link takes long to carry.
            if now_ns >= peer.detector.heard_ns().saturating_add(JOIN_SILENCE_NS) {
                self.lose_peer("it was silent while it joined", now_ns);
            }
        } else if let Some(suspicion) = peer.detector.poll_suspicion(now_ns) {
            return self.lose_peer(&suspicion.to_string(), now_ns);
        }
        let Some(peer) = &self.peer else { return };
        let waited_ns = peer.unacked_since_ns.map_or(0, |since_ns| now_ns.saturating_sub(since_ns));
        if waited_ns >= self.config.unacked_max_ns {
            self.lose_peer("it acknowledges nothing", now_ns);
        }
    }

    fn drop_silent_connections(&mut self, now_ns: u64) {
        for connection in self.connections.values_mut() {
            if connection.hello_due_ns.is_some_and(|due_ns| due_ns <= now_ns) {
                connection.close();
            }
        }
    }
}

/// The backup as its primary sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupStatus {
    /// Its name.
    pub node: String,
    /// Whether there is a connection now.
    pub connected: bool,
    /// Whether it said that it is in step.
    pub in_step: bool,
    /// Every batch up to this one is held by it.
    pub acked_sequence: u64,
    /// How far its machine has come.
    pub replayed: Moment,
    /// Bytes of log that it has not acknowledged.
    pub unacked_bytes: u64,
    /// Time from a heartbeat to its reply.
    pub round_trip_ns: Option<u64>,
}

/// A new detector for a backup that has just been heard.
fn listen(config: &CoreConfig, now_ns: u64) -> Detector {
    Detector::new(config.detector, now_ns)
}
