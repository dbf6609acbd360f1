//! Where the VMs on the tunnel are: which address speaks for a port, and in which term.
//!
//! ```text
//!   unknown --- first datagram ---> here(address, term)
//!                                     |  same term: the address follows the sender
//!                                     |  higher term: taken over; frames sent since the old
//!                                     |               side was last heard go out again
//!                                     |  lower term: refused
//!                                     v
//!                                   away(term)   after `leave`, or a long silence
//! ```
//!
//! A port that is away keeps its term for ever, so that a stale primary stays refused.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use bytes::Bytes;

use super::fabric::FabricPort;
use crate::tunnel::{Datagram, Message, PortId};

/// Ports remembered; more are refused.
const MAX_PORTS: usize = 4096;
/// A side that says nothing for this long (hellos come each second) is away.
pub(crate) const SILENCE_NS: u64 = 15_000_000_000;
/// Frames sent to a side this long before it was last heard may still be unknown to its
/// backup: the log takes this long at most to get there, on the links we run on.
const LOG_DELAY_NS: u64 = 100_000_000;
/// Nothing older than this is sent again: by then TCP has done it.
const RETAINED_NS: u64 = 3_000_000_000;
const RETAINED_FRAMES: usize = 1024;
const RETAINED_BYTES: usize = 1 << 20;

#[derive(Debug, Default)]
pub(crate) struct Registry {
    remotes: HashMap<PortId, Remote>,
    by_fabric_port: HashMap<FabricPort, PortId>,
    counters: TunnelCounters,
}

/// What the switch saw on its tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TunnelCounters {
    /// Datagrams refused because a higher term was seen for their port.
    pub stale: u64,
    /// Datagrams refused because the table of ports is full.
    pub table_full: u64,
    /// Datagrams that were sent and never came, by the gaps in their sequence.
    pub lost: u64,
    /// Takeovers seen: a port spoke in a higher term.
    pub takeovers: u64,
    /// Frames sent again to a side that took over.
    pub repeated: u64,
}

#[derive(Debug)]
struct Remote {
    fabric_port: FabricPort,
    term: u64,
    address: Option<SocketAddr>,
    heard_ns: u64,
    /// Sequence that the next datagram in this term should have.
    next_sequence: u64,
    /// Datagrams sent to it.
    sent: u64,
    retained: Retained,
}

/// What to do about a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing more.
    Heard,
    /// It came from this port of the fabric: route its frame, if it has one, after sending
    /// `repeat` to its sender.
    Accept { from: FabricPort, frame: Option<Bytes>, repeat: Vec<Bytes> },
    /// Its sender is stale: tell it the term.
    Refuse { term: u64 },
}

impl Registry {
    /// Takes a datagram from `sender`. `make_port` is called for a port not seen before.
    pub(crate) fn handle(
        &mut self,
        datagram: Datagram,
        sender: SocketAddr,
        now_ns: u64,
        make_port: impl FnOnce() -> FabricPort,
    ) -> Verdict {
        let id = datagram.port;
        if !self.remotes.contains_key(&id) {
            if self.remotes.len() >= MAX_PORTS {
                self.counters.table_full += 1;
                return Verdict::Heard;
            }
            let fabric_port = make_port();
            self.by_fabric_port.insert(fabric_port, id);
            self.remotes.insert(id, Remote::new(fabric_port, &datagram, now_ns));
        }
        let Some(remote) = self.remotes.get_mut(&id) else {
            return Verdict::Heard;
        };
        if datagram.term < remote.term {
            self.counters.stale += 1;
            return Verdict::Refuse { term: remote.term };
        }
        let repeat = if datagram.term > remote.term {
            self.counters.takeovers += 1;
            tracing::info!(port = %id, term = datagram.term, address = %sender, "taken over");
            remote.next_sequence = datagram.sequence;
            remote.retained.since(remote.heard_ns, now_ns)
        } else {
            Vec::new()
        };
        self.counters.repeated += repeat.len() as u64;
        let gap = datagram.sequence.saturating_sub(remote.next_sequence);
        self.counters.lost = self.counters.lost.saturating_add(gap);
        remote.next_sequence = remote.next_sequence.max(datagram.sequence.saturating_add(1));
        remote.term = datagram.term;
        remote.heard_ns = now_ns;
        remote.address = Some(sender);
        let frame = match datagram.message {
            Message::Frame(frame) => Some(frame),
            Message::Hello => None,
            Message::Leave => {
                remote.address = None;
                None
            }
            Message::Superseded => return Verdict::Heard,
        };
        Verdict::Accept { from: remote.fabric_port, frame, repeat }
    }

    /// The datagram that carries `frame` to the remote port behind `to`, and where it is. If
    /// it is away the frame is only retained, for the side that takes over.
    pub(crate) fn send(
        &mut self,
        to: FabricPort,
        frame: &Bytes,
        now_ns: u64,
    ) -> Option<(Datagram, SocketAddr)> {
        let id = *self.by_fabric_port.get(&to)?;
        let remote = self.remotes.get_mut(&id)?;
        remote.retained.push(frame.clone(), now_ns);
        if now_ns.saturating_sub(remote.heard_ns) >= SILENCE_NS {
            remote.address = None;
        }
        let address = remote.address?;
        Some((remote.datagram(id, frame.clone()), address))
    }

    /// The datagrams that carry `frames` once more to the remote port behind `to`.
    pub(crate) fn repeat(&mut self, to: FabricPort, frames: Vec<Bytes>) -> Vec<(Datagram, SocketAddr)> {
        let Some(id) = self.by_fabric_port.get(&to).copied() else {
            return Vec::new();
        };
        let Some(remote) = self.remotes.get_mut(&id) else {
            return Vec::new();
        };
        let Some(address) = remote.address else {
            return Vec::new();
        };
        frames.into_iter().map(|frame| (remote.datagram(id, frame), address)).collect()
    }

    pub(crate) fn counters(&self) -> TunnelCounters {
        self.counters
    }
}

impl Remote {
    fn new(fabric_port: FabricPort, first: &Datagram, now_ns: u64) -> Remote {
        Remote {
            fabric_port,
            term: first.term,
            address: None,
            heard_ns: now_ns,
            next_sequence: first.sequence,
            sent: 0,
            retained: Retained::default(),
        }
    }

    fn datagram(&mut self, port: PortId, frame: Bytes) -> Datagram {
        let sequence = self.sent;
        self.sent += 1;
        Datagram { port, term: self.term, sequence, message: Message::Frame(frame) }
    }
}

/// The frames last sent to a port, oldest first.
#[derive(Debug, Default)]
struct Retained {
    frames: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

impl Retained {
    fn push(&mut self, frame: Bytes, now_ns: u64) {
        self.bytes += frame.len();
        self.frames.push_back((now_ns, frame));
        while self.frames.len() > RETAINED_FRAMES
            || self.bytes > RETAINED_BYTES
            || self.front_age_ns(now_ns) > RETAINED_NS
        {
            if let Some((_, dropped)) = self.frames.pop_front() {
                self.bytes -= dropped.len();
            }
        }
    }

    /// What a side that was last heard at `heard_ns` and is dead now may have lost.
    fn since(&self, heard_ns: u64, now_ns: u64) -> Vec<Bytes> {
        let since_ns = heard_ns.saturating_sub(LOG_DELAY_NS).max(now_ns.saturating_sub(RETAINED_NS));
        self.frames
            .iter()
            .filter(|(sent_ns, _)| *sent_ns >= since_ns)
            .map(|(_, frame)| frame.clone())
            .collect()
    }

    fn front_age_ns(&self, now_ns: u64) -> u64 {
        self.frames.front().map_or(0, |(sent_ns, _)| now_ns.saturating_sub(*sent_ns))
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
