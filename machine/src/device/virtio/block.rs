//! The block device.
//!
//! A request is carried out at a guest time that follows from when it was made and from its
//! size alone. Neither what is read nor when it completes is an input, so neither is logged.
//! What is discarded reads as zeros from then on, whatever keeps the disk.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::queue::{Broken, Chain, MAX_SIZE, Queue, gather, scatter};
use super::{Environment, HostFault};
use crate::config::DiskConfig;
use crate::contract::HostPart;
use crate::disk::{BLOCK_SECTORS, Disk, SECTOR_BYTES};
use crate::semantics::Semantics;

/// VIRTIO_BLK_F_SEG_MAX.
const FEATURE_SEGMENTS: u64 = 1 << 2;
/// VIRTIO_BLK_F_RO.
const FEATURE_READ_ONLY: u64 = 1 << 5;
/// VIRTIO_BLK_F_BLK_SIZE.
const FEATURE_BLOCK_SIZE: u64 = 1 << 6;
/// VIRTIO_BLK_F_FLUSH.
const FEATURE_FLUSH: u64 = 1 << 9;
/// VIRTIO_BLK_F_DISCARD.
const FEATURE_DISCARD: u64 = 1 << 13;
/// VIRTIO_BLK_F_WRITE_ZEROES.
const FEATURE_WRITE_ZEROES: u64 = 1 << 14;

/// Number of queues.
pub const QUEUES: usize = 1;

const REQUEST_READ: u32 = 0;
const REQUEST_WRITE: u32 = 1;
const REQUEST_FLUSH: u32 = 4;
const REQUEST_ID: u32 = 8;
const REQUEST_DISCARD: u32 = 11;
const REQUEST_WRITE_ZEROES: u32 = 13;

const STATUS_OK: u8 = 0;
const STATUS_ERROR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

const HEADER_BYTES: usize = 16;
const ID_BYTES: usize = 20;
/// A longer request fails.
const MAX_REQUEST_BYTES: u64 = 4 << 20;

/// Bytes of a segment of a discard or a write of zeroes (virtio 1.2, section 5.2.6).
const SEGMENT_BYTES: usize = 16;
/// Most segments of such a request.
const MAX_SEGMENTS: u32 = 8;
/// Most sectors of such a segment: 64 MiB, which bounds the work of a request.
const MAX_SEGMENT_SECTORS: u32 = 1 << 17;
/// The one flag of a segment.
const SEGMENT_UNMAP: u32 = 1;

/// Latency of a request on an idle disk.
const LATENCY_NS: u64 = 25_000;
/// Latency of a flush.
const FLUSH_LATENCY_NS: u64 = 50_000;
/// Bytes that a disk moves per nanosecond.
const BYTES_PER_NS: u64 = 2;

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    disk: u8,
    len_sectors: u64,
    read_only: bool,
    serial: String,
    /// Requests under way, in the order of their completion.
    pending: VecDeque<Pending>,
    /// Whether it offers DISCARD and WRITE_ZEROES.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    discards: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Pending {
    head: u16,
    deadline_ns: u64,
}

impl Block {
    /// The device of disk number `disk`.
    pub fn new(disk: u8, len_sectors: u64, config: &DiskConfig, semantics: Semantics) -> Block {
        Block {
            disk,
            len_sectors,
            read_only: config.read_only,
            serial: config.serial.clone(),
            pending: VecDeque::new(),
            discards: semantics.has_discard(),
        }
    }

    /// Whether a device that was as `fresh` at power-on can be in this state.
    pub fn fits(&self, fresh: &Block) -> bool {
        Block { pending: VecDeque::new(), ..self.clone() } == *fresh
            && self.pending.len() <= usize::from(MAX_SIZE)
            && self.pending.iter().is_sorted_by_key(|pending| pending.deadline_ns)
    }

    /// What the device offers.
    pub fn features(&self) -> u64 {
        let read_only = if self.read_only { FEATURE_READ_ONLY } else { 0 };
        let discard = if self.discards { FEATURE_DISCARD | FEATURE_WRITE_ZEROES } else { 0 };
        FEATURE_SEGMENTS | FEATURE_BLOCK_SIZE | FEATURE_FLUSH | read_only | discard
    }

    /// Its configuration space (virtio 1.2, section 5.2.4): capacity, seg_max, blk_size, and
    /// the limits of discards and writes of zeroes.
    pub fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        let mut put = |offset: usize, value: u32| config[offset..][..4].copy_from_slice(&value.to_le_bytes());
        put(0, self.len_sectors as u32);
        put(4, (self.len_sectors >> 32) as u32);
        put(12, u32::from(MAX_SIZE - 2));
        put(20, SECTOR_BYTES as u32);
        if self.discards {
            put(36, MAX_SEGMENT_SECTORS);
            put(40, MAX_SEGMENTS);
            put(44, BLOCK_SECTORS as u32);
            put(48, MAX_SEGMENT_SECTORS);
            put(52, MAX_SEGMENTS);
            // write_zeroes_may_unmap, and three bytes of padding
            put(56, 1);
        }
        config
    }

    /// Back to the state of power-on: requests under way are forgotten.
    pub fn reset(&mut self) {
        self.pending.clear();
    }

    /// When the next request completes.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.pending.front().map(|pending| pending.deadline_ns)
    }

    /// Takes the requests that the driver made available.
    ///
    /// # Errors
    /// When the ring is malformed, or holds more requests than it has entries.
    pub fn serve(&mut self, queue: &mut Queue, environment: &mut Environment<'_>) -> Result<(), Broken> {
        for _ in 0..queue.available(environment.ram)? {
            let chain = queue.pop(environment.ram)?;
            if self.pending.len() >= usize::from(queue.size()) {
                return Err(Broken);
            }
            let free_ns = self.pending.back().map_or(0, |pending| pending.deadline_ns);
            let started_ns = environment.now.time_ns.saturating_add(latency_ns(&chain, environment)?);
            let transfer_ns = (chain.readable_bytes() + chain.writable_bytes()) / BYTES_PER_NS;
            let deadline_ns = started_ns.max(free_ns).saturating_add(transfer_ns);
            self.pending.push_back(Pending { head: chain.head, deadline_ns });
        }
        Ok(())
    }

    /// Carries out the requests whose time has come.
    ///
    /// # Errors
    /// When the ring is malformed.
    pub fn settle(&mut self, queue: &mut Queue, environment: &mut Environment<'_>) -> Result<(), Broken> {
        let due = |pending: &mut Pending| pending.deadline_ns <= environment.now.time_ns;
        let mut completed = Vec::new();
        while let Some(pending) = self.pending.pop_front_if(due) {
            completed.push(pending.head);
        }
        for head in completed {
            let chain = queue.chain(environment.ram, head)?;
            let written = self.execute(&chain, environment)?;
            queue.push_used(environment.ram, head, written)?;
        }
        Ok(())
    }

    /// Carries out one request. Returns how many bytes were written to the guest.
    fn execute(&self, chain: &Chain, environment: &mut Environment<'_>) -> Result<u32, Broken> {
        let Some(room) = chain.writable_bytes().checked_sub(1) else { return Err(Broken) };
        let request = Request::read(chain, environment)?;
        let (status, written) = match request.kind {
            REQUEST_READ => self.read(&request, chain, room, environment)?,
            REQUEST_WRITE => (self.write(&request, chain, environment)?, 0),
            REQUEST_FLUSH => (self.on_disk(environment, Disk::flush), 0),
            REQUEST_DISCARD | REQUEST_WRITE_ZEROES if self.discards => {
                (self.zero(&request, chain, environment)?, 0)
            }
            REQUEST_ID => {
                let mut id = [0; ID_BYTES];
                id[..self.serial.len().min(ID_BYTES)].copy_from_slice(self.serial.as_bytes());
                let len = room.min(ID_BYTES as u64) as usize;
                (STATUS_OK, scatter(environment.ram, &chain.writable, 0, &id[..len])? as u64)
            }
            _ => (STATUS_UNSUPPORTED, 0),
        };
        scatter(environment.ram, &chain.writable, room, &[status])?;
        Ok(written as u32 + 1)
    }

    fn read(
        &self,
        request: &Request,
        chain: &Chain,
        len: u64,
        environment: &mut Environment<'_>,
    ) -> Result<(u8, u64), Broken> {
        if !self.allows(request.sector, len, environment) {
            return Ok((STATUS_ERROR, 0));
        }
        let mut data = vec![0; len as usize];
        let status = self.on_disk(environment, |disk| disk.read(request.sector, &mut data));
        scatter(environment.ram, &chain.writable, 0, &data)?;
        Ok((status, len))
    }

    fn write(
        &self,
        request: &Request,
        chain: &Chain,
        environment: &mut Environment<'_>,
    ) -> Result<u8, Broken> {
        let len = chain.readable_bytes().saturating_sub(HEADER_BYTES as u64);
        if self.read_only || !self.allows(request.sector, len, environment) {
            return Ok(STATUS_ERROR);
        }
        let mut data = vec![0; len as usize];
        gather(environment.ram, &chain.readable, HEADER_BYTES as u64, &mut data)?;
        Ok(self.on_disk(environment, |disk| disk.write(request.sector, &data)))
    }

    /// A discard or a write of zeroes: all of its segments, or none.
    fn zero(
        &self,
        request: &Request,
        chain: &Chain,
        environment: &mut Environment<'_>,
    ) -> Result<u8, Broken> {
        if self.read_only {
            return Ok(STATUS_ERROR);
        }
        let segments = match self.segments(request, chain, environment)? {
            Ok(segments) => segments,
            Err(status) => return Ok(status),
        };
        Ok(self.on_disk(environment, |disk| {
            segments.iter().try_for_each(|segment| {
                let release = request.kind == REQUEST_DISCARD || segment.flags & SEGMENT_UNMAP != 0;
                disk.zero(segment.sector, segment.len_sectors.into(), release)
            })
        }))
    }

    /// The segments of a discard or a write of zeroes, or the status that they get.
    fn segments(
        &self,
        request: &Request,
        chain: &Chain,
        environment: &Environment<'_>,
    ) -> Result<Result<Vec<Segment>, u8>, Broken> {
        let len = chain.readable_bytes().saturating_sub(HEADER_BYTES as u64);
        let most = u64::from(MAX_SEGMENTS) * SEGMENT_BYTES as u64;
        if len == 0 || len > most || !len.is_multiple_of(SEGMENT_BYTES as u64) {
            return Ok(Err(STATUS_ERROR));
        }
        let mut bytes = vec![0; len as usize];
        gather(environment.ram, &chain.readable, HEADER_BYTES as u64, &mut bytes)?;
        let segments: Vec<Segment> = bytes.as_chunks().0.iter().map(Segment::parse).collect();
        // The specification wants this status for unknown flags, and for this one of a discard.
        let known = if request.kind == REQUEST_DISCARD { 0 } else { SEGMENT_UNMAP };
        if segments.iter().any(|segment| segment.flags & !known != 0) {
            return Ok(Err(STATUS_UNSUPPORTED));
        }
        let inside = |segment: &Segment| {
            let len_bytes = u64::from(segment.len_sectors) * SECTOR_BYTES as u64;
            segment.len_sectors <= MAX_SEGMENT_SECTORS
                && environment.disks[usize::from(self.disk)].holds(segment.sector, len_bytes)
        };
        Ok(if segments.iter().all(inside) { Ok(segments) } else { Err(STATUS_ERROR) })
    }

    fn allows(&self, sector: u64, len: u64, environment: &Environment<'_>) -> bool {
        len <= MAX_REQUEST_BYTES && environment.disks[usize::from(self.disk)].holds(sector, len)
    }

    /// Works on the disk. A failure of the host stops the machine, so what the guest would
    /// be told then does not matter.
    fn on_disk(
        &self,
        environment: &mut Environment<'_>,
        work: impl FnOnce(&mut Disk) -> std::io::Result<()>,
    ) -> u8 {
        if let Err(error) = work(&mut environment.disks[usize::from(self.disk)]) {
            *environment.host_fault =
                Some(HostFault { part: HostPart::Disk(self.disk), message: error.to_string() });
        }
        STATUS_OK
    }
}

/// The header of a request.
struct Request {
    kind: u32,
    sector: u64,
}

impl Request {
    fn read(chain: &Chain, environment: &Environment<'_>) -> Result<Request, Broken> {
        let mut header = [0; HEADER_BYTES];
        if gather(environment.ram, &chain.readable, 0, &mut header)? < HEADER_BYTES {
            return Err(Broken);
        }
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        Ok(Request { kind: u32::from_le_bytes([k0, k1, k2, k3]), sector: u64::from_le_bytes(sector) })
    }
}

/// A range of a discard or a write of zeroes.
struct Segment {
    sector: u64,
    len_sectors: u32,
    flags: u32,
}

impl Segment {
    fn parse(bytes: &[u8; SEGMENT_BYTES]) -> Segment {
        let [sector @ .., l0, l1, l2, l3, f0, f1, f2, f3] = *bytes;
        Segment {
            sector: u64::from_le_bytes(sector),
            len_sectors: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u32::from_le_bytes([f0, f1, f2, f3]),
        }
    }
}

fn latency_ns(chain: &Chain, environment: &Environment<'_>) -> Result<u64, Broken> {
    let request = Request::read(chain, environment)?;
    Ok(if request.kind == REQUEST_FLUSH { FLUSH_LATENCY_NS } else { LATENCY_NS })
}
