//! TCP segments as seen on a host's wire, for those who measure.

use std::net::SocketAddrV4;
use std::time::Instant;

use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket, TcpSeqNumber};

/// Which way a segment went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It arrived.
    In,
    /// It was sent.
    Out,
}

/// A TCP segment, with the time at which the host's stack saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// When.
    pub at: Instant,
    /// Which way.
    pub direction: Direction,
    /// Its sender.
    pub source: SocketAddrV4,
    /// Its receiver.
    pub destination: SocketAddrV4,
    /// Sequence number of its first byte.
    pub sequence: u32,
    /// Next byte that its sender expects.
    pub acknowledgement: u32,
    /// Bytes of data.
    pub payload_bytes: usize,
    /// It opens a connection.
    pub syn: bool,
    /// It ends its sender's data.
    pub fin: bool,
    /// It breaks the connection.
    pub rst: bool,
}

impl Segment {
    /// Reads the segment in an Ethernet frame; `None` when there is none.
    pub(crate) fn read(frame: &[u8], direction: Direction, at: Instant) -> Option<Segment> {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        if ethernet.ethertype() != EthernetProtocol::Ipv4 {
            return None;
        }
        let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
        if ip.next_header() != IpProtocol::Tcp || ip.frag_offset() != 0 {
            return None;
        }
        let tcp = TcpPacket::new_checked(ip.payload()).ok()?;
        let number = |TcpSeqNumber(number): TcpSeqNumber| number.cast_unsigned();
        Some(Segment {
            at,
            direction,
            source: SocketAddrV4::new(ip.src_addr(), tcp.src_port()),
            destination: SocketAddrV4::new(ip.dst_addr(), tcp.dst_port()),
            sequence: number(tcp.seq_number()),
            acknowledgement: number(tcp.ack_number()),
            payload_bytes: tcp.payload().len(),
            syn: tcp.syn(),
            fin: tcp.fin(),
            rst: tcp.rst(),
        })
    }
}
