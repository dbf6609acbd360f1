//! The primary's side of protection: what is shipped, what may leave, who is counted on.
//!
//! # Who is counted on
//!
//! ```text
//!            backups in step differ                enough of the new set
//!            from those counted on                 hold all that was released          arbiter: yes
//!   counted ----------------------> catching up --------------------------> asked ------------------> counted
//!   on S                            (S and S')                              (S and S')                on S'
//!
//!   any -- arbiter: another node is the primary --> fenced      (for good: output never leaves)
//!   any -- the guest ended, the operator stops  --> ending --> finished
//! ```
//!
//! Law 2 in one place ([`commit`]): an output leaves when it is covered by a batch that enough of
//! the backups counted on acknowledged, and, while the set changes, enough of the new ones too.
//! Nobody is counted on at first, and when all are lost: then output leaves at once. From the
//! question on the record may name the new set, whatever became of the question; only the
//! arbiter's word ends that.
//!
//! How a backup joins is a machine of its own ([`peer::Phase`]): plan *resume* and *log from
//! boot* ship the log at once, plan *checkpoint* asks the vCPU for a copy-on-write
//! checkpoint and ships the log beside it. [`modes`] says what is shipped after that.

mod auto;
mod commit;
mod config;
mod counted;
mod disk_check;
mod ending;
mod epoch;
mod join;
mod modes;
mod pace;
mod peer;
mod report;
mod resync;
mod tail;

use std::collections::{BTreeMap, VecDeque};

use link::arbitration::Step;
use link::lane::Lane;
use log_format::{
    Ack, ChainHash, Divergence, Goodbye, GoodbyeReason, Heartbeat, HeartbeatReply, Life, LoggedOutput,
    Message, Position, ProtectionMode, SealedBatch,
};
use machine::{CheckpointExtent, PrimacyStart};
use netbuf::{BufferStatistics, OutputBuffer};

use crate::batcher::Batcher;
use crate::recorder::Recorded;
use crate::vcpu::FromMachine;
use commit::Commit;
use ending::Ending;
use epoch::{Checkpoints, Epochs};
use modes::Modes;
use pace::Pace;
use peer::{Connection, Peer, Phase};
use tail::Tail;

pub use config::{CoreConfig, Durability, EpochConfig, ModeChoice, OnBackupLoss, Release, Trigger};
pub use disk_check::{BackupDisks, DiskComparison};
pub use epoch::IncrementCounters;
pub use peer::ConnectionId;
pub use report::{BackupStatus, Finish, PrimaryEvent};
pub use resync::ResyncCounts;

const MILLISECOND_NS: u64 = 1_000_000;

/// A backup that joins and says nothing for this long is given up.
const JOIN_SILENCE_NS: u64 = 10_000 * MILLISECOND_NS;

/// What the core wants of the machine's thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineRequest {
    /// Begin a checkpoint, and say so.
    BeginCheckpoint {
        /// Which one: answers carry it.
        checkpoint: u64,
        /// What it holds. A full one's pages come as [`MachineRequest::TakePages`] asks, an
        /// increment's at once.
        extent: CheckpointExtent,
        /// An increment for somebody who has not what the one before held: each page by itself.
        fresh: bool,
    },
    /// Freeze the disks, too, when the next checkpoint is begun, at the same moment. Their blocks
    /// come as [`MachineRequest::TakePages`] asks.
    FreezeDisks {
        /// Which one: answers carry it.
        checkpoint: u64,
    },
    /// Pack increments for a link that takes so much.
    LinkRate {
        /// Bytes per second.
        bytes_per_s: u64,
    },
    /// Give the next pages of the full checkpoint.
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operator {
    /// Go on without the backup that was lost (policy pause).
    GoAlone,
    /// Leave in an orderly way: a registered backup takes over.
    Stop,
    /// Hand the machine to a registered backup, and stop when it has it.
    SwitchOver {
        /// Which one; `None` for any.
        to: Option<String>,
    },
    /// Protect in another way from now on.
    SetMode(ModeChoice),
    /// Take this node as a backup though there may be no room; `None`: nobody is expected any more.
    Expect {
        /// Which one.
        node: Option<String>,
    },
    /// Compare the disks with the backups': [`PrimaryEvent::DisksCompared`] tells.
    CompareDisks,
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
    /// Which life of this node the arbiter's record names.
    life: Life,
    commit: Commit,
    lane: Lane,
    batcher: Batcher,
    tail: Tail,
    buffer: OutputBuffer,
    connections: BTreeMap<ConnectionId, Connection>,
    /// The backups that have joined or are joining, by name.
    peers: BTreeMap<String, Peer>,
    /// How many joins there were.
    incarnations: u64,
    checkpoints: Checkpoints,
    epochs: Epochs,
    /// A comparison of the disks under way, and how many there were.
    disk_check: Option<disk_check::Check>,
    disk_checks: u64,
    modes: Modes,
    pace: Pace,
    /// Time that the machine was busy executing, in this primacy.
    busy_ns: u64,
    /// This side's own log is on its disk up to this batch.
    stored: u64,
    /// Until when the arbiter keeps this node's lease for certain; `None` without leases.
    lease_until_ns: Option<u64>,
    lease_told: bool,
    store: VecDeque<SealedBatch>,
    requests: VecDeque<MachineRequest>,
    events: VecDeque<PrimaryEvent>,
    heartbeat_due_ns: u64,
    /// When a primary that stands still asks again whether it still is one.
    probe_due_ns: u64,
    ending: Option<Ending>,
    /// The heir that was told to take over.
    handed_to: Option<String>,
    /// A node for which there is room in any case.
    expected: Option<String>,
    finished: Option<Finish>,
    batches_sealed: u64,
}

impl Primary {
    /// Begins a primacy, for which the arbiter's record names this node alone.
    pub fn new(config: CoreConfig, start: PrimacyStart, now_ns: u64) -> Self {
        let PrimacyStart { from, chain, outputs_logged, outputs_released, reissue, life, .. } = start;
        let mut buffer = OutputBuffer::new(config.buffer);
        buffer.drop_released_before(outputs_released);
        if config.durability == Durability::Memory {
            buffer.release_all();
        }
        let mut primary = Primary {
            life,
            lane: Lane::default(),
            commit: Commit::default(),
            batcher: Batcher::new(from, chain, outputs_logged),
            tail: Tail::new(from, chain, outputs_logged),
            buffer,
            connections: BTreeMap::new(),
            peers: BTreeMap::new(),
            incarnations: 0,
            checkpoints: Checkpoints::default(),
            epochs: Epochs::new(config.epoch),
            disk_check: None,
            disk_checks: 0,
            modes: Modes::new(config.mode),
            pace: Pace::default(),
            busy_ns: 0,
            stored: from.sequence,
            lease_until_ns: None,
            lease_told: true,
            store: VecDeque::new(),
            requests: VecDeque::new(),
            events: VecDeque::new(),
            heartbeat_due_ns: now_ns,
            probe_due_ns: now_ns,
            ending: None,
            handed_to: None,
            expected: None,
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
            FromMachine::IncrementPart { checkpoint, part } => self.handle_increment_part(checkpoint, part),
            FromMachine::IncrementEnd { checkpoint, digest, packed_bytes, .. } => {
                self.handle_increment_end(checkpoint, digest, packed_bytes, now_ns);
            }
            FromMachine::Halted { code } => self.handle_halted(code, now_ns),
            FromMachine::HostFault { part } => self.begin_ending(Finish::HostFault { part }, now_ns),
        }
    }

    /// Takes what the machine did. Outputs are held until they may leave.
    pub(super) fn handle_recorded(&mut self, recorded: Recorded, now_ns: u64) {
        if self.is_over() {
            return;
        }
        // Where no log is shipped, the next increment ends the batch.
        let waits = self.buffer.is_protected() && self.modes.present.ships_log();
        let urgent = !recorded.outputs.is_empty() && waits;
        self.busy_ns += recorded.busy_ns;
        // Held before the batch that covers them is sealed.
        for output in self.batcher.push(recorded, now_ns) {
            self.buffer.hold(output, now_ns);
        }
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
        if let Some(peer) = self.peers.values_mut().find(|peer| peer.connection == Some(id)) {
            peer.connection = None;
            peer.detector.closed(now_ns);
            let kept = peer.ready && peer.phase == Phase::Following;
            if !kept {
                let node = peer.node.clone();
                self.lose_peer(&node, "its connection ended while it joined", now_ns);
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
            message if self.peer_of(id).is_some() => self.handle_peer_message(id, message, now_ns),
            other => self.protocol_error(id, &format!("a {:?} before its Hello", other.kind())),
        }
        self.settle(now_ns);
    }

    /// The operator said something.
    pub fn handle_operator(&mut self, command: Operator, now_ns: u64) {
        match command {
            Operator::GoAlone => self.operator_goes_alone(now_ns),
            Operator::Stop => self.begin_ending(Finish::Stopped, now_ns),
            Operator::SwitchOver { to } => self.begin_switchover(to, now_ns),
            Operator::SetMode(choice) => self.choose_mode(choice, now_ns),
            Operator::Expect { node } => self.expected = node,
            Operator::CompareDisks => self.begin_disk_check(),
        }
        self.settle(now_ns);
    }

    /// Calls [`Primary::handle_timeout`] if that is due.
    pub fn advance_time(&mut self, now_ns: u64) {
        if self.poll_timeout().is_some_and(|due_ns| due_ns <= now_ns) {
            self.handle_timeout(now_ns);
        }
    }

    /// Time has come to [`Primary::poll_timeout`].
    pub fn handle_timeout(&mut self, now_ns: u64) {
        if self.batch_due_ns().is_some_and(|due_ns| due_ns <= now_ns) {
            self.seal(now_ns);
        }
        if self.heartbeat_due_ns <= now_ns {
            self.heartbeat_due_ns = now_ns.saturating_add(self.config.heartbeat_interval_ns);
            self.send_heartbeats(now_ns);
        }
        self.note_lease(now_ns);
        self.probe(now_ns);
        self.judge_peers(now_ns);
        self.drop_silent_connections(now_ns);
        self.settle(now_ns);
    }

    /// When [`Primary::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<u64> {
        if self.finished.is_some() {
            return None;
        }
        let peers = self.peers.values().flat_map(|peer| {
            let unacked_ns =
                peer.unacked_since_ns.map(|since_ns| since_ns.saturating_add(self.config.unacked_max_ns));
            [Some(self.heartbeat_due_ns), Some(self.judged_at_ns(peer)), unacked_ns]
        });
        let hellos = self.connections.values().map(|connection| connection.hello_due_ns);
        [
            self.batch_due_ns(),
            self.lane.retry_at_ns(),
            self.probe_interval_ns().map(|_| self.probe_due_ns),
            self.ending.as_ref().map(|ending| ending.due_ns),
            self.lease_until_ns.filter(|_| self.lease_told),
            self.increment_due_ns(),
            self.pace.changes_at_ns(),
        ]
        .into_iter()
        .chain(peers)
        .chain(hellos)
        .flatten()
        .min()
    }

    /// The next output that may leave.
    pub fn poll_release(&mut self, now_ns: u64) -> Option<LoggedOutput> {
        if !self.lease_is_valid(now_ns) {
            return None;
        }
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
    /// is back or has come nearer.
    pub fn wants_stall(&self) -> bool {
        let hands_over = matches!(&self.ending, Some(Ending { finish: Finish::SwitchedOver { .. }, .. }));
        let waits = self.commit.fenced || hands_over || self.is_degraded();
        let unacked = self.unacked_bytes() >= self.config.unacked_max_bytes;
        waits || unacked || self.is_over() || self.buffer.is_full() || self.pace.rests()
    }

    /// Percent of the time for which the guest rests, so that backups can keep up.
    pub fn slowed_percent(&self) -> u8 {
        self.pace.rest_percent()
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
            (None, None) => self.commit_name(),
        }
    }

    fn commit_name(&self) -> &'static str {
        let counted = &self.commit.counted;
        match &self.commit.change {
            _ if self.commit.fenced => "fenced",
            Some(change) if change.to.is_empty() => "going alone",
            // Protected as before while another joins.
            _ if self.is_protected() => "protected",
            Some(change) if change.asked => "registering",
            Some(_) => "syncing",
            None if counted.is_empty() => "alone",
            None => "degraded",
        }
    }

    /// Whether the arbiter's record names backups, enough of which are there.
    pub fn is_protected(&self) -> bool {
        !self.commit.counted.is_empty() && !self.has_too_few()
    }

    /// The protection mode that holds, and why.
    pub fn mode(&self) -> (ProtectionMode, &str) {
        (self.modes.present, &self.modes.why)
    }

    /// What was shipped in increments.
    pub fn increments(&self) -> IncrementCounters {
        self.epochs.counters
    }

    /// Until when the arbiter keeps this node's lease for certain; `None` without leases.
    pub fn lease_until_ns(&self) -> Option<u64> {
        self.lease_until_ns
    }

    /// The backups that joined or are joining.
    pub fn backups(&self) -> Vec<BackupStatus> {
        let here = self.batcher.position().moment;
        let status = |peer: &Peer| BackupStatus {
            node: peer.node.clone(),
            connection: peer.connection,
            listen: peer.listen,
            in_step: peer.ready,
            acked_sequence: peer.acked,
            replayed: peer.replayed,
            unacked_bytes: peer.unacked_bytes,
            round_trip_ns: peer.round_trip_ns,
            registered: self.commit.counted.has(&peer.node, peer.incarnation),
            lag_ns: here.time_ns.saturating_sub(peer.replayed.time_ns),
            resync: peer.resync.counts(),
        };
        self.peers.values().map(status).collect()
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

    fn peer_of(&self, id: ConnectionId) -> Option<&Peer> {
        self.peers.values().find(|peer| peer.connection == Some(id))
    }

    /// Log that may not have been released for want of acknowledgements.
    fn unacked_bytes(&self) -> u64 {
        self.release_limit().map_or(0, |sequence| self.tail.bytes_after(sequence))
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
        let ships_log = self.modes.present.ships_log();
        for peer in self.peers.values_mut() {
            if ships_log
                && peer.phase != Phase::CheckpointAwaited
                && let Some(connection) = peer.connection.and_then(|id| self.connections.get_mut(&id))
            {
                peer.note_sent(batch.sequence, batch.bytes().len() as u64, now_ns);
                connection.push(Message::Batch(batch.clone()));
            }
        }
        let keep_after = self.keep_after();
        self.tail.push(batch, self.config.tail_max_bytes, keep_after);
        self.commit_acknowledged();
    }

    fn send_heartbeats(&mut self, now_ns: u64) {
        let term = self.term();
        let mark = Some(self.batcher.safe_mark());
        let replays = self.modes.present == ProtectionMode::Replay;
        self.pace.note_heartbeat(now_ns, self.batcher.safe_mark().time_ns);
        for peer in self.peers.values() {
            let heartbeat = Heartbeat {
                term,
                after_sequence: peer.sent,
                sent_ns: now_ns,
                // A mark is for who follows and has every batch before it; a backup that still
                // receives its checkpoint does not.
                mark: mark.filter(|_| replays && peer.phase == Phase::Following),
                released_outputs: self.buffer.released_before(),
                required: self.commit.counted.has(&peer.node, peer.incarnation),
            };
            if let Some(connection) = peer.connection.and_then(|id| self.connections.get_mut(&id)) {
                connection.push(Message::Heartbeat(heartbeat));
            }
        }
    }

    fn handle_peer_message(&mut self, id: ConnectionId, message: Message, now_ns: u64) {
        let Some(peer) = self.peers.values_mut().find(|peer| peer.connection == Some(id)) else { return };
        let node = peer.node.clone();
        match message {
            Message::HeartbeatReply(reply) => {
                peer.detector.heartbeat(now_ns);
                peer.replayed = reply.replayed;
                peer.behind_ns =
                    self.pace.lag_ns(reply.echo_ns, reply.replayed.time_ns).unwrap_or(peer.behind_ns);
                peer.round_trip_ns = Some(now_ns.saturating_sub(reply.echo_ns));
                let HeartbeatReply { term, held, .. } = reply;
                self.handle_held(&node, term, held, now_ns);
                self.pace.judge(self.lag_to_shorten_ns(), now_ns);
            }
            Message::Ack(Ack { term, sequence, durable }) => {
                peer.detector.alive(now_ns);
                if self.config.durability == Durability::Disk && !durable {
                    return self.refuse_memory(id, &node, now_ns);
                }
                peer.durable |= durable;
                self.handle_held(&node, term, sequence, now_ns);
            }
            Message::Ready(ready) => {
                peer.detector.alive(now_ns);
                // It holds that, but perhaps not on its disk.
                if self.config.durability == Durability::Memory {
                    self.handle_held(&node, ready.term, ready.sequence, now_ns);
                }
                self.handle_ready(&node, ready.sequence);
            }
            Message::DiskHashes(hashes) => self.handle_disk_hashes(&node, hashes),
            Message::Donor(donor) => self.handle_donor(&node, donor),
            Message::Address(address) => peer.listen = Some(address.listen),
            Message::Want(want) => self.handle_want(id, &node, &want),
            Message::Divergence(report) => self.handle_divergence(&node, report, now_ns),
            Message::Goodbye(goodbye) => {
                let text = format!("it left: {}", goodbye.text);
                self.lose_peer(&node, &text, now_ns);
            }
            other => {
                let text = format!("a {:?}, which only a primary sends", other.kind());
                self.protocol_error(id, &text);
                self.lose_peer(&node, "it broke the protocol", now_ns);
            }
        }
    }

    /// Guest time by which as many backups as must hold an output are behind, at most; `None` where
    /// nobody replays, or where a slow one is to be met by a change of mode.
    fn lag_to_shorten_ns(&self) -> Option<u64> {
        let lags = || {
            let replaying = |peer: &&Peer| peer.phase == Phase::Following && peer.stands.is_none();
            self.peers.values().filter(replaying).map(|peer| peer.behind_ns)
        };
        let enough = self.config.release.required(lags().count());
        let replays = self.modes.is_always(ProtectionMode::Replay);
        lags().filter(|lag| replays && lags().filter(|other| other <= lag).count() >= enough).min()
    }

    /// The backup holds every batch up to `sequence`.
    fn handle_held(&mut self, node: &str, term: u64, sequence: u64, now_ns: u64) {
        let own_term = self.term();
        let Some(peer) = self.peers.get_mut(node) else { return };
        if term != own_term || sequence > peer.sent {
            let sent = peer.sent;
            let text = format!(
                "an acknowledgement of batch {sequence} in term {term}, but {sent} in term {own_term} is the last sent"
            );
            if let Some(id) = peer.connection {
                self.protocol_error(id, &text);
            }
            return self.lose_peer(node, "it broke the protocol", now_ns);
        }
        if self.config.durability == Durability::Disk && !peer.durable {
            // What it holds may be in its memory only: its first acknowledgement says where it is.
            return;
        }
        peer.note_acked(sequence, now_ns);
        let (incarnation, acked) = (peer.incarnation, peer.acked);
        if let Some(bytes_per_s) = self.epochs.pacer.note_acked(acked, now_ns) {
            self.requests.push_back(MachineRequest::LinkRate { bytes_per_s });
        }
        self.commit.counted.note_acked(node, incarnation, acked);
        if let Some(change) = &mut self.commit.change {
            change.to.note_acked(node, incarnation, acked);
        }
        self.commit_acknowledged();
    }

    fn handle_divergence(&mut self, node: &str, report: Divergence, now_ns: u64) {
        self.events.push_back(PrimaryEvent::Diverged { node: node.to_owned(), report });
        self.modes.auto.note_divergence(node);
        self.lose_peer(node, "its state diverged", now_ns);
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

    /// Looks whether the backups are alive and fast enough.
    fn judge_peers(&mut self, now_ns: u64) {
        let nodes: Vec<String> = self.peers.keys().cloned().collect();
        for node in nodes {
            if let Some(reason) = self.judge_peer(&node, now_ns) {
                self.lose_peer(&node, &reason, now_ns);
            }
        }
    }

    /// Why this backup is to be given up, if it is.
    fn judge_peer(&mut self, node: &str, now_ns: u64) -> Option<String> {
        let peer = self.peers.get_mut(node)?;
        if !peer.ready {
            // Its replies wait behind a checkpoint that a thin link takes long to carry.
            if now_ns >= peer.detector.heard_ns().saturating_add(JOIN_SILENCE_NS) {
                return Some("it was silent while it joined".to_owned());
            }
        } else if let Some(suspicion) = peer.detector.poll_suspicion(now_ns) {
            return Some(suspicion.to_string());
        }
        let connection = peer.connection.and_then(|id| self.connections.get(&id));
        if peer.ready && connection.is_some_and(|connection| connection.bulk_bytes() > 0) {
            // What it is to acknowledge has not left yet.
            peer.unacked_since_ns = peer.unacked_since_ns.and(Some(now_ns));
        }
        let waited_ns = peer.unacked_since_ns.map_or(0, |since_ns| now_ns.saturating_sub(since_ns));
        (waited_ns >= self.config.unacked_max_ns).then(|| "it acknowledges nothing".to_owned())
    }

    fn drop_silent_connections(&mut self, now_ns: u64) {
        for connection in self.connections.values_mut() {
            if connection.hello_due_ns.is_some_and(|due_ns| due_ns <= now_ns) {
                connection.close();
            }
        }
    }
}
