//! The backup's side of protection: follow, acknowledge, suspect, take over.
//!
//! # States
//!
//! ```text
//!            dialled                 Welcome: checkpoint             whole and restored
//!   Connecting -----> Handshake ------------------------> Receiving --------------------+
//!     ^  ^  ^            |   |                               |                          |
//!     |  |  +- refused --+   | Welcome: resume, log from boot|                          v
//!     |  |     or closed     +-------------------------------|--------------------> Following
//!     |  |                                                   |                        |   ^
//!     |  +---------------- closed, silent, damaged ----------+                        |   |
//!     |                                                               closed (redials)|   | Welcome:
//!     |  not in step, or the primary went on without this one                         v   | resume
//!     +--------------------------------------------------------------------------- Suspecting
//!     |                                                                               |
//!     | arbiter: refused                                      the detector is certain |
//!     +--------------------------------- Claiming <-----------------------------------+
//!                                           |   (from Following too, when it is silent)
//!                                           | arbiter: the term is ours
//!                                           v
//!                                       TakingOver: replay to the end of what is held
//!                                           |
//!                                           v
//!                                         Live (finished: the machine is handed to a primary)
//!
//!   Following -- Goodbye: the guest ended --> Ending --> Ended
//!   Handshake -- refused for good          --> Refused
//! ```
//!
//! It acknowledges a batch as soon as it holds it, and replays it as soon as it can. From the
//! first question to the arbiter on it neither receives nor acknowledges: what the old
//! primary makes from then on is acknowledged by nobody, and so never leaves.

mod disk_check;
mod follow;
mod modes;
mod takeover;

use std::collections::VecDeque;
use std::net::SocketAddr;

use link::arbitration::{Record, Step};
use link::detector::{Detector, DetectorConfig};
use link::handshake::LocalFacts;
use link::lane::Lane;
use log_format::{
    Ack, ChainHash, DiskCheck, Goodbye, GoodbyeReason, Have, Hello, Life, LogEntry, MachineIdentity, Message,
    ModeChange, Moment, PROTOCOL_VERSION, Position, ProtectionMode, SealedBatch, VersionRange,
    WholeIncrement,
};
use machine::PrimacyStart;
use netbuf::{BufferLimits, OutputBuffer};

use crate::replayer::{Divergence, Progress};
use crate::worker::ToReplayer;

const MILLISECOND_NS: u64 = 1_000_000;

/// A backup that stands holds this much more log than one that follows leaves unreplayed.
const STANDING_ALLOWANCE: u64 = 4;

/// How a [`Backup`] works. The defaults are for two hosts on one LAN.
#[derive(Debug, Clone)]
pub struct CoreConfig {
    /// Name of the virtual machine.
    pub vm: String,
    /// This node's name, as the arbiter knows it.
    pub node: String,
    /// Which life of it begins here: a number that no other has.
    pub life: Life,
    /// What the machine is made of.
    pub identity: MachineIdentity,
    /// Whether the machine can be replayed from its boot.
    pub has_boot_images: bool,
    /// How a silent primary is judged.
    pub detector: DetectorConfig,
    /// Wait between two attempts to connect.
    pub redial_interval_ns: u64,
    /// Wait after a refusal or a protocol error.
    pub retry_interval_ns: u64,
    /// How long a primary may take to answer a Hello.
    pub welcome_within_ns: u64,
    /// Log held and not replayed, beyond which nothing is acknowledged.
    pub unreplayed_max_bytes: u64,
    /// The replay is in step when it is behind by no more than this many batches.
    pub ready_lag_batches: u64,
    /// Whether batches and increments are handed to [`Backup::poll_store`].
    pub store: bool,
    /// Only what [`Backup::handle_stored`] told of is acknowledged.
    pub durable: bool,
    /// Where this node will listen for backups when it is the primary, if that is known.
    pub listen: Option<SocketAddr>,
    /// The newest protocol version to speak: older ones are for tests of an upgrade.
    pub protocol_max: u8,
}

impl CoreConfig {
    /// The defaults for this VM on this node.
    pub fn new(vm: &str, node: &str, identity: MachineIdentity) -> Self {
        CoreConfig {
            vm: vm.to_owned(),
            node: node.to_owned(),
            life: Life::UNKNOWN,
            identity,
            has_boot_images: true,
            detector: DetectorConfig::default(),
            redial_interval_ns: 20 * MILLISECOND_NS,
            retry_interval_ns: 300 * MILLISECOND_NS,
            welcome_within_ns: 5_000 * MILLISECOND_NS,
            unreplayed_max_bytes: 16 << 20,
            ready_lag_batches: 64,
            store: false,
            durable: false,
            listen: None,
            protocol_max: PROTOCOL_VERSION,
        }
    }
}

/// A command of the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// Take over now: the primary is known to be gone, or is to be replaced.
    TakeOver,
    /// Leave.
    Stop,
}

/// What happened, for the timeline.
#[derive(Debug, Clone, PartialEq)]
pub enum BackupEvent {
    /// Connected, and the primary said how to come into step.
    Joining {
        /// The primary.
        primary: String,
        /// Its term.
        term: u64,
        /// How.
        plan: log_format::JoinPlan,
    },
    /// The primary refused.
    JoinRefused {
        /// Why.
        text: String,
    },
    /// The checkpoint is in place.
    Restored,
    /// In step.
    Ready,
    /// The primary counts on this node: the arbiter's record is this.
    Registered {
        /// The record.
        record: Record,
    },
    /// The connection ended.
    ConnectionLost,
    /// The primary is taken for dead.
    Suspected {
        /// Why.
        text: String,
    },
    /// The arbiter cannot be asked; the question is repeated.
    ArbiterUnreachable {
        /// What went wrong.
        text: String,
    },
    /// The primary protects in another way.
    ModeChanged {
        /// The mode from here on.
        mode: ProtectionMode,
    },
    /// Others must speak before this node may take over: its bid is noted.
    BidPlaced {
        /// Batches that it holds.
        held: u64,
    },
    /// The arbiter says no: the primary lives, or another node took over.
    ClaimRefused {
        /// Why.
        text: String,
    },
    /// The term is ours; the replay runs to its end.
    TakingOver {
        /// The new term.
        term: u64,
        /// Log that was held and not replayed.
        unreplayed_bytes: u64,
    },
    /// The machine is ready to go live.
    Live {
        /// Outputs that are sent again.
        reissued: usize,
    },
    /// The machine does not do what was recorded.
    Diverged(Divergence),
    /// The other side broke the protocol, and the connection was ended.
    ProtocolError {
        /// What it did.
        text: String,
    },
    /// The log's disk has no room: nothing is acknowledged until there is.
    LogWaits {
        /// What the disk says.
        text: String,
    },
    /// The log's disk has no room, or fails: the log ends, and protection goes on without it.
    LogEnded {
        /// What the disk says.
        text: String,
    },
    /// The log is written again.
    LogGoesOn,
    /// Everything is done; see [`Backup::finished`].
    Finished,
}

/// How a backup's life ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// It takes over: its machine, and this.
    TakenOver(Box<PrimacyStart>),
    /// The guest ended, and the whole of the log was replayed.
    GuestEnded {
        /// What the primary said.
        text: String,
    },
    /// The primary refused it for good: the two do not fit.
    Refused {
        /// Why, and the way out.
        text: String,
    },
    /// The term is ours, but the machine diverged on its last stretch: going live with it
    /// would be a silent corruption.
    Unusable {
        /// What differs.
        text: String,
    },
    /// The operator stopped it.
    Stopped,
}

/// Number that the driver gives to a connection. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Connecting,
    Handshake,
    Receiving(Receiving),
    Following,
    Suspecting,
    Claiming,
    TakingOver { term: u64 },
    Ending { text: String },
    Finished,
}

/// A checkpoint on its way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Receiving {
    head_came: bool,
    parts: u64,
    end_came: bool,
    /// Batches and the mode that were quicker than the checkpoint's head.
    early: Vec<SealedBatch>,
    early_mode: Option<ModeChange>,
}

/// What the machine was fed so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    /// The place after the last batch held.
    position: Position,
    chain: ChainHash,
    /// Outputs since boot up to there.
    outputs: u64,
}

/// The replication core of a backup.
///
/// # Order of calls
///
/// Any `handle_*` with the time, in any order; after each, the `poll_*` until they return
/// `None`. Call `handle_timeout` when [`Backup::poll_timeout`] is reached. All times are the
/// host's monotonic nanoseconds.
pub struct Backup {
    config: CoreConfig,
    state: State,
    connection: Option<ConnectionId>,
    certified_node: Option<String>,
    dialling: bool,
    dial_at_ns: u64,
    welcome_due_ns: Option<u64>,
    outbox: VecDeque<Message>,
    closing: VecDeque<ConnectionId>,
    close_after_outbox: bool,
    /// The highest term ever seen, and the primary in it.
    term: u64,
    primary: String,
    held: Option<Held>,
    generation: u64,
    /// Restored, or booted: the machine follows.
    following: bool,
    /// Said Ready with the machine it has, in this term: the record may name this node.
    in_step: bool,
    ready_said: bool,
    registered: bool,
    /// It was told that this node waits for others to speak.
    bid_told: bool,
    no_log_from_boot: bool,
    ack_due: bool,
    progress: Option<Progress>,
    unreplayed: VecDeque<(u64, u64)>,
    unreplayed_bytes: u64,
    pending_mark: Option<(u64, Moment)>,
    /// The last mark that the machine got: the same again is no news, and would wake its thread.
    marked: Option<Moment>,
    /// Batches that the primary had shipped when it last said so.
    shipped: Option<u64>,
    /// How the primary protects now.
    mode: ProtectionMode,
    /// Number of batches up to the last whole state at which this side stands, or will.
    stood: u64,
    /// The increment that is coming.
    increment: Option<WholeIncrement>,
    /// The disks are to be hashed at the end of an increment that is not here yet.
    disk_check: Option<DiskCheck>,
    /// Outputs before this one are none of the replay's: a checkpoint brought them.
    outputs_from: u64,
    /// The log is on this side's disk up to this batch of the term.
    stored: u64,
    detector: Option<Detector>,
    clock: ClockOffset,
    buffer: OutputBuffer,
    lane: Lane,
    commands: VecDeque<ToReplayer>,
    store: VecDeque<LogEntry>,
    events: VecDeque<BackupEvent>,
    finished: Option<Finish>,
}

impl Backup {
    /// A backup that knows nothing yet.
    pub fn new(config: CoreConfig, now_ns: u64) -> Self {
        Backup {
            config,
            state: State::Connecting,
            connection: None,
            certified_node: None,
            dialling: false,
            dial_at_ns: now_ns,
            welcome_due_ns: None,
            outbox: VecDeque::new(),
            closing: VecDeque::new(),
            close_after_outbox: false,
            term: 0,
            primary: String::new(),
            held: None,
            generation: 0,
            following: false,
            in_step: false,
            ready_said: false,
            registered: false,
            bid_told: false,
            no_log_from_boot: false,
            ack_due: false,
            progress: None,
            unreplayed: VecDeque::new(),
            unreplayed_bytes: 0,
            pending_mark: None,
            marked: None,
            shipped: None,
            mode: ProtectionMode::Replay,
            stood: 0,
            increment: None,
            disk_check: None,
            outputs_from: 0,
            stored: 0,
            detector: None,
            clock: ClockOffset::default(),
            buffer: OutputBuffer::new(BufferLimits::default()),
            lane: Lane::default(),
            commands: VecDeque::new(),
            store: VecDeque::new(),
            events: VecDeque::new(),
            finished: None,
        }
    }

    /// The connection that [`Backup::poll_dial`] asked for is there. `certified_node` is the
    /// node that the peer's certificate names; `None` without TLS.
    pub fn handle_connected(&mut self, id: ConnectionId, certified_node: Option<String>, now_ns: u64) {
        self.dialling = false;
        if !matches!(self.state, State::Connecting | State::Suspecting) {
            return self.closing.push_back(id);
        }
        self.connection = Some(id);
        self.certified_node = certified_node;
        self.outbox.clear();
        self.close_after_outbox = false;
        self.welcome_due_ns = Some(now_ns.saturating_add(self.config.welcome_within_ns));
        if self.state == State::Connecting {
            self.state = State::Handshake;
        }
        let have = self.held.filter(|_| self.following);
        self.outbox.push_back(Message::Hello(Hello {
            term: self.term,
            life: self.config.life,
            versions: self.versions(),
            vm: self.config.vm.clone(),
            node: self.config.node.clone(),
            identity: self.config.identity.clone(),
            have: have.map(|held| Have { position: held.position, chain: held.chain }),
            has_boot_images: self.config.has_boot_images && !self.no_log_from_boot,
        }));
    }

    /// The attempt that [`Backup::poll_dial`] asked for failed.
    pub fn handle_dial_failed(&mut self, now_ns: u64) {
        self.dialling = false;
        self.dial_at_ns = now_ns.saturating_add(self.config.redial_interval_ns);
    }

    /// The connection ended.
    pub fn handle_closed(&mut self, id: ConnectionId, now_ns: u64) {
        if self.connection != Some(id) {
            return;
        }
        self.connection = None;
        self.events.push_back(BackupEvent::ConnectionLost);
        self.lost_sight(now_ns);
        self.settle();
    }

    /// A message came.
    pub fn handle_message(&mut self, id: ConnectionId, message: Message, now_ns: u64) {
        if self.connection != Some(id) || self.close_after_outbox {
            return;
        }
        self.receive(message, now_ns);
        self.settle();
    }

    /// The operator said something.
    pub fn handle_operator(&mut self, command: Operator) {
        match command {
            Operator::TakeOver => self.claim("the operator's command"),
            Operator::Stop => {
                self.say_goodbye(GoodbyeReason::Stopping, "the operator stopped this side");
                self.finish(Finish::Stopped);
            }
        }
        self.settle();
    }

    /// Time has come to [`Backup::poll_timeout`].
    pub fn handle_timeout(&mut self, now_ns: u64) {
        if self.welcome_due_ns.is_some_and(|due_ns| due_ns <= now_ns) {
            self.protocol_error("it did not answer the Hello", now_ns);
        }
        self.judge_primary(now_ns);
        self.settle();
    }

    /// When [`Backup::handle_timeout`] is due, or the next dial.
    pub fn poll_timeout(&self) -> Option<u64> {
        let detector = self.detector.as_ref().filter(|_| self.is_listening());
        [
            self.welcome_due_ns,
            detector.map(Detector::suspect_at_ns),
            self.lane.retry_at_ns(),
            Some(self.dial_at_ns).filter(|_| self.wants_dial()),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether to connect to the primary now. One attempt at a time.
    pub fn poll_dial(&mut self, now_ns: u64) -> bool {
        let dial = self.wants_dial() && self.dial_at_ns <= now_ns;
        self.dialling |= dial;
        dial
    }

    /// The next message for the connection.
    pub fn poll_transmit(&mut self) -> Option<(ConnectionId, Message)> {
        let id = self.connection?;
        if let Some(message) = self.outbox.pop_front() {
            return Some((id, message));
        }
        let sequence = self.acknowledged().filter(|_| self.ack_due)?;
        self.ack_due = false;
        Some((id, Message::Ack(Ack { term: self.term, sequence, durable: self.config.durable })))
    }

    /// A connection that is to be closed.
    pub fn poll_close(&mut self) -> Option<ConnectionId> {
        if self.close_after_outbox && self.outbox.is_empty() {
            self.close_after_outbox = false;
            self.closing.extend(self.connection.take());
        }
        self.closing.pop_front()
    }

    /// The next command for the replay thread.
    pub fn poll_replayer(&mut self) -> Option<ToReplayer> {
        self.commands.pop_front()
    }

    /// The next step to ask of the arbiter. One at a time; the answer goes to
    /// [`Backup::handle_arbiter_reply`].
    pub fn poll_arbiter_request(&mut self, now_ns: u64) -> Option<Step> {
        self.lane.poll(now_ns)
    }

    /// The next batch or increment for the log on this side's disk.
    pub fn poll_store(&mut self) -> Option<LogEntry> {
        self.store.pop_front()
    }

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<BackupEvent> {
        self.events.pop_front()
    }

    /// How it ended, once it has. On [`Finish::TakenOver`] the replay thread's machine goes
    /// with it.
    pub fn finished(&self) -> Option<&Finish> {
        self.finished.as_ref()
    }

    /// Whether more log should be read from the connection now: not while too much of it
    /// waits to be replayed.
    pub fn wants_input(&self) -> bool {
        let allowance = if self.mode.stands() { STANDING_ALLOWANCE } else { 1 };
        self.unreplayed_bytes < 2 * allowance * self.config.unreplayed_max_bytes
    }

    /// The highest term seen.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// The primary that was followed last.
    pub fn primary(&self) -> &str {
        &self.primary
    }

    /// The place after the last batch held.
    pub fn held(&self) -> Option<Position> {
        self.held.map(|held| held.position)
    }

    /// Outputs since boot that the log held here covers.
    pub fn outputs_covered(&self) -> u64 {
        self.held.map_or(0, |held| held.outputs)
    }

    /// The log that [`Backup::poll_store`] gave, or the checkpoint before it, is on this side's
    /// disk up to this batch of this term.
    pub fn handle_stored(&mut self, term: u64, sequence: u64) {
        if term == self.term && sequence > self.stored {
            self.stored = sequence;
            self.ack_due = true;
        }
    }

    /// How the primary protects now.
    pub fn mode(&self) -> ProtectionMode {
        self.mode
    }

    /// How far the replay is.
    pub fn progress(&self) -> Option<Progress> {
        self.progress
    }

    /// Bytes of log held and not replayed.
    pub fn unreplayed_bytes(&self) -> u64 {
        self.unreplayed_bytes
    }

    /// Whether the primary counts on this node, as far as it is known here.
    pub fn is_registered(&self) -> bool {
        self.registered
    }

    /// Whether a takeover would be asked for if the primary died now.
    pub fn is_in_step(&self) -> bool {
        self.in_step
    }

    /// Outputs kept because the primary may not have sent them.
    pub fn held_outputs(&self) -> usize {
        self.buffer.held_outputs()
    }

    /// In a word, for people.
    pub fn state_name(&self) -> &'static str {
        match &self.state {
            State::Connecting => "connecting",
            State::Handshake => "handshake",
            State::Receiving(_) => "receiving",
            State::Following => "following",
            State::Suspecting => "suspecting",
            State::Claiming => "claiming",
            State::TakingOver { .. } => "taking over",
            State::Ending { .. } => "ending",
            State::Finished => "finished",
        }
    }

    fn facts(&self) -> LocalFacts {
        LocalFacts {
            vm: self.config.vm.clone(),
            node: self.config.node.clone(),
            term: self.term,
            identity: self.config.identity.clone(),
            versions: self.versions(),
            heartbeat_interval_ms: 1,
        }
    }

    fn wants_dial(&self) -> bool {
        let disconnected = self.connection.is_none() && !self.dialling;
        disconnected && matches!(self.state, State::Connecting | State::Suspecting)
    }

    /// Whether the detector's opinion matters.
    fn is_listening(&self) -> bool {
        matches!(
            self.state,
            State::Connecting | State::Handshake | State::Receiving(_) | State::Following | State::Suspecting
        )
    }

    /// What this side speaks.
    fn versions(&self) -> VersionRange {
        let supported = VersionRange::SUPPORTED;
        VersionRange { max: self.config.protocol_max.clamp(supported.min, supported.max), ..supported }
    }

    fn may_acknowledge(&self) -> bool {
        let state = matches!(self.state, State::Following | State::Receiving(_) | State::Ending { .. });
        // Who stands replays nothing until the next increment.
        let allowance = if self.mode.stands() { STANDING_ALLOWANCE } else { 1 };
        state && self.unreplayed_bytes <= allowance * self.config.unreplayed_max_bytes
    }

    /// Every batch up to this one may be acknowledged, if any may.
    fn acknowledged(&self) -> Option<u64> {
        let held = self.held.filter(|_| self.may_acknowledge())?.position.sequence;
        Some(if self.config.durable { held.min(self.stored) } else { held })
    }

    fn say_goodbye(&mut self, reason: GoodbyeReason, text: &str) {
        if self.connection.is_some() {
            let goodbye = Goodbye { term: self.term, reason, text: text.to_owned() };
            self.outbox.push_back(Message::Goodbye(goodbye));
            self.close_after_outbox = true;
        }
    }

    fn finish(&mut self, finish: Finish) {
        if self.finished.is_none() {
            self.finished = Some(finish);
            self.state = State::Finished;
            self.events.push_back(BackupEvent::Finished);
        }
    }
}

/// Guest time minus this host's time, as the primary keeps it: the largest difference seen
/// lately, since every delay on the way makes it smaller.
#[derive(Debug, Clone, Default)]
struct ClockOffset {
    present_ns: Option<i64>,
    before_ns: Option<i64>,
    since_ns: u64,
}

impl ClockOffset {
    /// Differences are forgotten after one to two of these: the hosts' clocks drift apart.
    const WINDOW_NS: u64 = 10_000 * MILLISECOND_NS;

    fn learn(&mut self, guest_ns: u64, now_ns: u64) {
        let difference = i128::from(guest_ns) - i128::from(now_ns);
        let offset_ns = difference.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64;
        if now_ns.saturating_sub(self.since_ns) >= Self::WINDOW_NS {
            self.before_ns = self.present_ns.take();
            self.since_ns = now_ns;
        }
        self.present_ns = self.present_ns.max(Some(offset_ns));
    }

    fn offset_ns(&self) -> Option<i64> {
        self.present_ns.max(self.before_ns)
    }
}
