//! The network between the hosts: connections that carry encoded messages in two lanes, and
//! what can go wrong with them.

use std::collections::BTreeMap;

use bytes::Bytes;
use log_format::{FrameKind, Message, MessageDecoder};

use super::random::Random;

/// What the wire does to frames while it is bad. Without TLS and TCP below, these reach the
/// decoder and the cores; with them, the connection would end at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WireFault {
    /// A bit flips.
    Corrupt,
    /// A frame comes twice.
    Duplicate,
    /// Two frames change places.
    Reorder,
    /// A frame is lost.
    Drop,
}

/// A connection between two hosts.
#[derive(Debug)]
pub struct Link {
    /// The hosts: who dialled, who listened.
    pub ends: [usize; 2],
    /// Which life of each host.
    pub epochs: [u64; 2],
    /// Whether each end still believes in it.
    pub open: [bool; 2],
    decoders: [MessageDecoder; 2],
    last_delivery_ns: [[u64; 2]; 2],
    /// Frames held back by a partition, per receiving end.
    pub held: [Vec<Bytes>; 2],
    swapped: [Option<Bytes>; 2],
    /// What happens to the next frame to each end.
    pub fault: [Option<WireFault>; 2],
}

/// All connections, and which ways are cut.
#[derive(Debug)]
pub struct Network {
    /// By number.
    pub links: BTreeMap<u64, Link>,
    next_link: u64,
    /// `cut[from][to]`.
    pub cut: Vec<Vec<bool>>,
    latency_ns: (u64, u64),
}

impl Network {
    /// A network of so many hosts.
    pub fn new(hosts: usize, latency_ns: (u64, u64)) -> Self {
        Network { links: BTreeMap::new(), next_link: 0, cut: vec![vec![false; hosts]; hosts], latency_ns }
    }

    /// A new connection.
    pub fn connect(&mut self, ends: [usize; 2], epochs: [u64; 2]) -> u64 {
        self.next_link += 1;
        let link = Link {
            ends,
            epochs,
            open: [true; 2],
            decoders: Default::default(),
            last_delivery_ns: [[0; 2]; 2],
            held: Default::default(),
            swapped: Default::default(),
            fault: [None; 2],
        };
        self.links.insert(self.next_link, link);
        self.next_link
    }

    /// One way's delay.
    pub fn delay_ns(&self, random: &mut Random) -> u64 {
        random.between(self.latency_ns.0, self.latency_ns.1)
    }

    /// Whether nothing is cut between two hosts.
    pub fn is_whole(&self, one: usize, other: usize) -> bool {
        !self.cut[one][other] && !self.cut[other][one]
    }

    /// When a message sent now arrives: in order within its lane.
    pub fn delivery_ns(
        &mut self,
        id: u64,
        to_end: usize,
        message: &Message,
        now_ns: u64,
        random: &mut Random,
    ) -> u64 {
        let bulk = matches!(
            message.kind(),
            FrameKind::CheckpointHead
                | FrameKind::CheckpointPart
                | FrameKind::CheckpointEnd
                | FrameKind::IncrementHead
                | FrameKind::IncrementPart
                | FrameKind::IncrementEnd
                | FrameKind::Offer
        );
        let mut delay_ns = self.delay_ns(random);
        if bulk {
            delay_ns += random.between(0, 2_000_000);
        }
        let Some(link) = self.links.get_mut(&id) else { return now_ns };
        // One stream with the log first: pages may come later than the log, never earlier.
        let log_ns = link.last_delivery_ns[to_end][0];
        let last = &mut link.last_delivery_ns[to_end][usize::from(bulk)];
        *last = (*last + 1).max(now_ns + delay_ns).max(log_ns + 1);
        *last
    }
}

impl Link {
    /// Which end a host is.
    pub fn end_of(&self, host: usize) -> usize {
        usize::from(self.ends[0] != host)
    }

    /// When the last frame under way to an end arrives.
    pub fn last_delivery_to(&self, end: usize) -> u64 {
        self.last_delivery_ns[end].into_iter().max().unwrap_or(0)
    }

    /// Bytes arrive at an end: what comes out of its decoder. `Err` ends the connection.
    pub fn arrive(&mut self, end: usize, frame: Bytes, random: &mut Random) -> Result<Vec<Message>, String> {
        let mut frames = vec![frame];
        match self.fault[end].take() {
            Some(WireFault::Corrupt) => {
                let mut damaged = frames[0].to_vec();
                let at = random.between(0, damaged.len() as u64 - 1) as usize;
                damaged[at] ^= 1 << random.between(0, 7);
                frames[0] = Bytes::from(damaged);
            }
            Some(WireFault::Duplicate) => frames.push(frames[0].clone()),
            Some(WireFault::Reorder) => self.swapped[end] = frames.pop(),
            Some(WireFault::Drop) => frames.clear(),
            None => frames.extend(self.swapped[end].take()),
        }
        let mut messages = Vec::new();
        for frame in frames {
            self.decoders[end].push(&frame);
            loop {
                match self.decoders[end].poll() {
                    Ok(Some(message)) => messages.push(message),
                    Ok(None) => break,
                    Err(error) => return Err(error.to_string()),
                }
            }
        }
        Ok(messages)
    }
}
