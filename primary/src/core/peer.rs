//! What a primary knows of the other side: connections, and the backup behind one of them.

use std::collections::VecDeque;
use std::net::SocketAddr;

use link::detector::Detector;
use log_format::{Life, Message, Moment, Output};

use super::counted::Member;

use super::resync::Resync;

/// Number that the driver gives to a connection. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// A connection and what waits to be sent on it, in the transport's two lanes: pages of a
/// checkpoint never delay the log.
#[derive(Debug)]
pub(super) struct Connection {
    /// The node that the peer's certificate names.
    pub(super) certified_node: Option<String>,
    log: VecDeque<Message>,
    bulk: VecDeque<Message>,
    bulk_bytes: u64,
    /// Ends when nothing waits any more.
    pub(super) closing: bool,
    pub(super) close_told: bool,
    /// Until when a Hello must have come.
    pub(super) hello_due_ns: Option<u64>,
}

impl Connection {
    pub(super) fn new(certified_node: Option<String>, hello_due_ns: u64) -> Self {
        Connection {
            certified_node,
            log: VecDeque::new(),
            bulk: VecDeque::new(),
            bulk_bytes: 0,
            closing: false,
            close_told: false,
            hello_due_ns: Some(hello_due_ns),
        }
    }

    pub(super) fn push(&mut self, message: Message) {
        if self.closing {
            return;
        }
        match bulk_bytes(&message) {
            Some(bytes) => {
                self.bulk_bytes += bytes;
                self.bulk.push_back(message);
            }
            None => self.log.push_back(message),
        }
    }

    /// The next message, of the log first.
    pub(super) fn pop(&mut self, bulk_has_room: bool) -> Option<Message> {
        if let Some(message) = self.log.pop_front() {
            return Some(message);
        }
        let message = self.bulk.pop_front_if(|_| bulk_has_room)?;
        self.bulk_bytes -= bulk_bytes(&message).unwrap_or_default();
        Some(message)
    }

    /// Says nothing more of the checkpoint, and closes after the rest.
    pub(super) fn close(&mut self) {
        self.closing = true;
        self.hello_due_ns = None;
        self.bulk.clear();
        self.bulk_bytes = 0;
    }

    pub(super) fn bulk_bytes(&self) -> u64 {
        self.bulk_bytes
    }

    pub(super) fn is_drained(&self) -> bool {
        self.log.is_empty() && self.bulk.is_empty()
    }
}

/// Memory that a message of a checkpoint takes while it waits, roughly; `None` for others.
fn bulk_bytes(message: &Message) -> Option<u64> {
    const SMALL_BYTES: usize = 128;
    let bytes = match message {
        Message::CheckpointHead(start) => start.head.state.len(),
        Message::CheckpointPart(part) => {
            let pages = part.pages.iter().map(|page| page.data.as_ref().map_or(0, bytes::Bytes::len));
            let blocks = part.blocks.iter().map(|block| block.data.len());
            pages.chain(blocks).map(|bytes| bytes + 16).sum()
        }
        Message::IncrementHead(start) => {
            let held = start.held.iter().map(|logged| match &logged.output {
                Output::Frame { frame: bytes, .. } | Output::Console(bytes) => bytes.len(),
            });
            start.head.state.len() + held.sum::<usize>()
        }
        Message::IncrementPart(part) => part.packed_bytes() + 16 * (part.pages.len() + part.blocks.len()),
        Message::Offer(offer) => 24 * (offer.pages.len() + offer.blocks.len()),
        Message::CheckpointEnd(_) | Message::IncrementEnd(_) => 0,
        _ => return None,
    };
    Some((bytes + SMALL_BYTES) as u64)
}

/// The backup that has joined, or is joining.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) node: String,
    /// Which join of all this is.
    pub(super) incarnation: u64,
    /// Which life of the node it is.
    pub(super) life: Life,
    /// `None` while it has a moment to come back.
    pub(super) connection: Option<ConnectionId>,
    /// The format version agreed on.
    pub(super) version: u8,
    pub(super) phase: Phase,
    /// Where it will listen as the primary, if it said so.
    pub(super) listen: Option<SocketAddr>,
    /// What it need not get of its checkpoint.
    pub(super) resync: Resync,
    /// Every batch up to this one is held by it.
    pub(super) acked: u64,
    /// Number of the last batch queued for it.
    pub(super) sent: u64,
    /// What it acknowledges is on its disk.
    pub(super) durable: bool,
    /// It said Ready since it joined.
    pub(super) ready: bool,
    /// Number of batches up to the state at which it stands, or will when all that was sent to it
    /// has come; `None` while it follows by replay.
    pub(super) stands: Option<u64>,
    /// Number of batches up to the last state that it said to have whole.
    pub(super) stood: u64,
    pub(super) detector: Detector,
    pub(super) replayed: Moment,
    /// Guest time by which it is behind what it could have reached.
    pub(super) behind_ns: u64,
    pub(super) round_trip_ns: Option<u64>,
    /// Since when nothing was acknowledged though something waits for it.
    pub(super) unacked_since_ns: Option<u64>,
    /// Number and bytes of each batch sent and not acknowledged.
    pub(super) unacked: VecDeque<(u64, u64)>,
    pub(super) unacked_bytes: u64,
}

impl Peer {
    /// A backup that has just been heard.
    pub(super) fn new(
        node: &str,
        connection: ConnectionId,
        version: u8,
        (incarnation, life): (u64, Life),
        detector: Detector,
    ) -> Self {
        Peer {
            node: node.to_owned(),
            incarnation,
            life,
            connection: Some(connection),
            version,
            phase: Phase::Following,
            listen: None,
            resync: Resync::new(version),
            acked: 0,
            sent: 0,
            durable: false,
            ready: false,
            stands: None,
            stood: 0,
            detector,
            replayed: Moment::BOOT,
            behind_ns: 0,
            round_trip_ns: None,
            unacked_since_ns: None,
            unacked: VecDeque::new(),
            unacked_bytes: 0,
        }
    }

    /// As it is counted on.
    pub(super) fn as_member(&self) -> Member {
        Member { incarnation: self.incarnation, acked: self.acked, life: self.life }
    }

    /// A batch was queued for it.
    pub(super) fn note_sent(&mut self, sequence: u64, bytes: u64, now_ns: u64) {
        self.sent = self.sent.max(sequence);
        self.unacked.push_back((sequence, bytes));
        self.unacked_bytes += bytes;
        self.unacked_since_ns.get_or_insert(now_ns);
    }

    /// It holds every batch up to `sequence`.
    pub(super) fn note_acked(&mut self, sequence: u64, now_ns: u64) {
        if sequence > self.acked {
            self.acked = sequence;
            self.unacked_since_ns = Some(now_ns);
        }
        while let Some((_, bytes)) = self.unacked.pop_front_if(|(number, _)| *number <= sequence) {
            self.unacked_bytes -= bytes;
        }
        if self.unacked.is_empty() {
            self.unacked_since_ns = None;
        }
    }

    /// It begins anew from the place after `sequence`, which it holds.
    pub(super) fn start_from(&mut self, sequence: u64) {
        self.acked = self.acked.max(sequence);
        self.sent = sequence;
        self.unacked.clear();
        self.unacked_bytes = 0;
        self.unacked_since_ns = None;
    }
}

/// How far a join is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The machine was asked to begin a checkpoint.
    CheckpointAwaited,
    /// Pages are being shipped, and the log beside them.
    Checkpoint {
        /// The machine was asked for pages.
        asked: bool,
    },
    /// The log is being shipped.
    Following,
}
