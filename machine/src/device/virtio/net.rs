//! The network device.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Environment;
use super::queue::{Broken, Chain, Queue, gather, scatter};

/// VIRTIO_NET_F_MAC.
const FEATURE_MAC: u64 = 1 << 5;
/// VIRTIO_NET_F_MRG_RXBUF.
const FEATURE_MERGEABLE: u64 = 1 << 15;
/// VIRTIO_NET_F_STATUS.
const FEATURE_STATUS: u64 = 1 << 16;
/// VIRTIO_NET_F_CTRL_VQ.
const FEATURE_CONTROL_QUEUE: u64 = 1 << 17;
/// VIRTIO_NET_F_GUEST_ANNOUNCE.
const FEATURE_ANNOUNCE: u64 = 1 << 21;

/// What the device offers. No checksum or segmentation offload: a frame that leaves is
/// whole.
pub const FEATURES: u64 =
    FEATURE_MAC | FEATURE_MERGEABLE | FEATURE_STATUS | FEATURE_CONTROL_QUEUE | FEATURE_ANNOUNCE;

/// Receive, transmit, control.
pub const QUEUES: usize = 3;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL: usize = 2;

/// Frames that wait for receive buffers; more are dropped.
const BACKLOG_FRAMES: usize = 256;
/// Shortest and longest frame without FCS.
const FRAME_BYTES: std::ops::RangeInclusive<usize> = 14..=65_550;
/// virtio_net_hdr with num_buffers.
const HEADER_BYTES: usize = 12;

const STATUS_LINK_UP: u16 = 1;
const STATUS_ANNOUNCE: u16 = 2;
const CONTROL_ANNOUNCE: [u8; 2] = [3, 0];
const CONTROL_OK: u8 = 0;
const CONTROL_ERROR: u8 = 1;

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Net {
    port: u8,
    mac: [u8; 6],
    announcing: bool,
    backlog: VecDeque<Bytes>,
}

impl Net {
    /// The device of network `port`.
    pub fn new(port: u8, mac: [u8; 6]) -> Net {
        Net { port, mac, announcing: false, backlog: VecDeque::new() }
    }

    /// Whether a device that was as `fresh` at power-on can be in this state.
    pub fn fits(&self, fresh: &Net) -> bool {
        self.port == fresh.port
            && self.mac == fresh.mac
            && self.backlog.len() <= BACKLOG_FRAMES
            && self.backlog.iter().all(|frame| FRAME_BYTES.contains(&frame.len()))
    }

    /// Its number among the network devices.
    pub fn port(&self) -> u8 {
        self.port
    }

    /// Its configuration space: MAC and status.
    pub fn config(&self) -> [u8; 8] {
        let announce = if self.announcing { STATUS_ANNOUNCE } else { 0 };
        let mut config = [0; 8];
        config[..6].copy_from_slice(&self.mac);
        config[6..].copy_from_slice(&(STATUS_LINK_UP | announce).to_le_bytes());
        config
    }

    /// Asks the guest to announce itself. Returns whether its driver knows how to.
    pub fn announce(&mut self, features: u64) -> bool {
        self.announcing |= features & FEATURE_ANNOUNCE != 0;
        features & FEATURE_ANNOUNCE != 0
    }

    /// Back to the state of power-on.
    pub fn reset(&mut self) {
        self.announcing = false;
        self.backlog.clear();
    }

    /// A frame arrives. Frames of impossible length, and those for which there is no room,
    /// are dropped.
    pub fn receive(&mut self, frame: &Bytes) {
        if FRAME_BYTES.contains(&frame.len()) && self.backlog.len() < BACKLOG_FRAMES {
            self.backlog.push_back(frame.clone());
        }
    }

    /// Serves a queue that the driver notified.
    ///
    /// # Errors
    /// When a ring is malformed.
    pub fn serve(
        &mut self,
        index: usize,
        queue: &mut Queue,
        features: u64,
        environment: &mut Environment<'_>,
    ) -> Result<(), Broken> {
        match index {
            RECEIVE => self.deliver(queue, features, environment),
            TRANSMIT => self.transmit(queue, environment),
            CONTROL => self.control(queue, environment),
            _ => Ok(()),
        }
    }

    /// Moves waiting frames into receive buffers.
    ///
    /// # Errors
    /// When the ring is malformed.
    pub fn deliver(
        &mut self,
        queue: &mut Queue,
        features: u64,
        environment: &mut Environment<'_>,
    ) -> Result<(), Broken> {
        let mut available = queue.available(environment.ram)?;
        while let Some(frame) = self.backlog.front() {
            let mergeable = features & FEATURE_MERGEABLE != 0;
            let needed = (HEADER_BYTES + frame.len()) as u64;
            let Some(buffers) = take_buffers(queue, environment, needed, &mut available, mergeable)? else {
                break;
            };
            if let Some(frame) = self.backlog.pop_front() {
                fill_buffers(queue, environment, &buffers, &frame)?;
            }
        }
        Ok(())
    }

    fn transmit(&mut self, queue: &mut Queue, environment: &mut Environment<'_>) -> Result<(), Broken> {
        for _ in 0..queue.available(environment.ram)? {
            let chain = queue.pop(environment.ram)?;
            let len = chain.readable_bytes().saturating_sub(HEADER_BYTES as u64);
            if let Some(len) = usize::try_from(len).ok().filter(|len| FRAME_BYTES.contains(len)) {
                let mut frame = vec![0; len];
                gather(environment.ram, &chain.readable, HEADER_BYTES as u64, &mut frame)?;
                environment.outputs.frame(environment.now, self.port, frame.into());
            }
            queue.push_used(environment.ram, chain.head, 0)?;
        }
        Ok(())
    }

    fn control(&mut self, queue: &mut Queue, environment: &mut Environment<'_>) -> Result<(), Broken> {
        for _ in 0..queue.available(environment.ram)? {
            let chain = queue.pop(environment.ram)?;
            let mut command = [0; 2];
            let known = gather(environment.ram, &chain.readable, 0, &mut command)? == command.len()
                && command == CONTROL_ANNOUNCE;
            self.announcing &= !known;
            let answer = if known { CONTROL_OK } else { CONTROL_ERROR };
            let written = scatter(environment.ram, &chain.writable, 0, &[answer])?;
            queue.push_used(environment.ram, chain.head, written as u32)?;
        }
        Ok(())
    }
}

/// What a frame is written to: nearly always one buffer.
struct Buffers {
    first: Chain,
    more: Vec<Chain>,
}

/// Takes buffers for `needed` bytes. A single buffer that is too small takes the head of
/// the frame only where buffers do not merge, as hardware would. `None` when there are not
/// enough: nothing is then taken.
fn take_buffers(
    queue: &mut Queue,
    environment: &Environment<'_>,
    needed: u64,
    available: &mut u16,
    mergeable: bool,
) -> Result<Option<Buffers>, Broken> {
    let mut buffers: Option<Buffers> = None;
    let (mut taken, mut room) = (0, 0);
    while room < needed && (mergeable || taken == 0) {
        if *available == taken {
            (0..taken).for_each(|_| queue.unpop());
            return Ok(None);
        }
        let chain = queue.pop(environment.ram)?;
        taken += 1;
        room += chain.writable_bytes();
        match &mut buffers {
            None => buffers = Some(Buffers { first: chain, more: Vec::new() }),
            Some(buffers) => buffers.more.push(chain),
        }
    }
    *available -= taken;
    Ok(buffers)
}

/// Writes a header and the frame over the buffers, and gives them back.
fn fill_buffers(
    queue: &mut Queue,
    environment: &mut Environment<'_>,
    buffers: &Buffers,
    frame: &[u8],
) -> Result<(), Broken> {
    let Buffers { first, more } = buffers;
    let mut header = [0; HEADER_BYTES];
    header[10..].copy_from_slice(&(1 + more.len() as u16).to_le_bytes());
    let (mut header, mut frame) = (&header[..], frame);
    for chain in std::iter::once(first).chain(more) {
        let of_header = scatter(environment.ram, &chain.writable, 0, header)?;
        let of_frame = scatter(environment.ram, &chain.writable, of_header as u64, frame)?;
        (header, frame) = (&header[of_header..], &frame[of_frame..]);
        queue.push_used(environment.ram, chain.head, (of_header + of_frame) as u32)?;
    }
    Ok(())
}
