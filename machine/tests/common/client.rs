//! One TCP connection to the ledger, in the smallest form that it answers.

use bytes::Bytes;
use log_format::Output;

use super::Peer;

const CLIENT_IP: [u8; 4] = [10, 0, 2, 2];
const GUEST_IP: [u8; 4] = [10, 0, 2, 15];
const PORT: u16 = 7000;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A client that puts entries, one after the other.
pub struct Client {
    port: u16,
    sequence: u32,
    acknowledged: u32,
    connected: bool,
    /// Bytes sent and not acknowledged.
    in_flight: Vec<u8>,
    must_acknowledge: bool,
    sent_ns: Option<u64>,
    puts: u32,
    /// Answers seen.
    pub answered: usize,
}

impl Client {
    /// A client that comes from this port.
    pub fn new(port: u16) -> Client {
        Client {
            port: port | 0x8000,
            sequence: 1000,
            acknowledged: 0,
            connected: false,
            in_flight: Vec::new(),
            must_acknowledge: false,
            sent_ns: None,
            puts: 0,
            answered: 0,
        }
    }

    fn segment(&self, flags: u8, data: &[u8]) -> Bytes {
        let mut tcp = [self.port.to_be_bytes(), PORT.to_be_bytes()].concat();
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(if flags & ACK != 0 { self.acknowledged } else { 0 }.to_be_bytes());
        tcp.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(data);
        let len = tcp.len() as u16;
        let pseudo = [&CLIENT_IP[..], &GUEST_IP, &[0, 6], &len.to_be_bytes(), &tcp].concat();
        let sum = checksum(&pseudo);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());

        let mut ip = vec![0x45, 0];
        ip.extend((20 + len).to_be_bytes());
        ip.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        ip.extend(CLIENT_IP);
        ip.extend(GUEST_IP);
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());

        let ethernet = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0];
        [&ethernet[..], &ip, &tcp].concat().into()
    }
}

impl Peer for Client {
    fn next(&mut self, now_ns: u64) -> Option<Bytes> {
        let again = self.sent_ns.is_none_or(|sent_ns| now_ns > sent_ns + 20_000_000);
        if !self.connected {
            self.sent_ns = again.then_some(now_ns).or(self.sent_ns);
            return again.then(|| self.segment(SYN, &[]));
        }
        if self.in_flight.is_empty() {
            self.puts += 1;
            self.in_flight = format!("PUT key{} value{}\n", self.puts % 7, self.puts).into_bytes();
        } else if !again {
            return std::mem::take(&mut self.must_acknowledge).then(|| self.segment(ACK, &[]));
        }
        self.sent_ns = Some(now_ns);
        self.must_acknowledge = false;
        let data = self.in_flight.clone();
        Some(self.segment(ACK, &data))
    }

    fn see(&mut self, output: &Output) {
        let Output::Frame { frame, .. } = output else { return };
        let Some(segment) = Segment::parse(frame).filter(|segment| segment.to == self.port) else { return };
        if segment.flags & SYN != 0 && !self.connected {
            self.connected = true;
            self.sequence = self.sequence.wrapping_add(1);
            self.acknowledged = segment.sequence.wrapping_add(1);
            self.must_acknowledge = true;
            return;
        }
        assert_eq!(segment.flags & (RST | FIN), 0, "the ledger keeps connections open");
        let newly = segment.acknowledged.wrapping_sub(self.sequence) as usize;
        if newly > 0 && newly <= self.in_flight.len() {
            self.in_flight.drain(..newly);
            self.sequence = segment.acknowledged;
        }
        if !segment.data.is_empty() && segment.sequence == self.acknowledged {
            self.acknowledged = self.acknowledged.wrapping_add(segment.data.len() as u32);
            self.must_acknowledge = true;
            self.answered += segment.data.iter().filter(|byte| **byte == b'\n').count();
        }
    }
}

struct Segment<'a> {
    to: u16,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    data: &'a [u8],
}

impl Segment<'_> {
    fn parse(frame: &[u8]) -> Option<Segment<'_>> {
        if frame.get(12..14) != Some(&[8, 0]) || frame.get(23) != Some(&6) {
            return None;
        }
        let ip_len = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
        let tcp = frame.get(34..14 + ip_len)?;
        let word = |at: usize| tcp.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
        Some(Segment {
            to: word(0)? as u16,
            sequence: word(4)?,
            acknowledged: word(8)?,
            flags: *tcp.get(13)?,
            data: tcp.get(usize::from(tcp[12] >> 4) * 4..)?,
        })
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A host that answers ARP and sends ICMP echo requests.
#[derive(Default)]
pub struct Pinger {
    replies: Vec<Bytes>,
    sent: u16,
    /// Echo replies seen.
    pub answered: usize,
}

const PINGER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

impl Peer for Pinger {
    fn next(&mut self, _now_ns: u64) -> Option<Bytes> {
        if let Some(reply) = self.replies.pop() {
            return Some(reply);
        }
        self.sent += 1;
        let mut icmp = [&[8, 0, 0, 0, 0, 1][..], &self.sent.to_be_bytes(), &[0x5a; 56]].concat();
        let sum = checksum(&icmp);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut ip = [&[0x45, 0, 0, 84, 0, 0, 0x40, 0, 64, 1, 0, 0][..], &CLIENT_IP, &GUEST_IP].concat();
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        Some([&[2, 0, 0, 0, 0, 1][..], &PINGER_MAC, &[8, 0], &ip, &icmp].concat().into())
    }

    fn see(&mut self, output: &Output) {
        let Output::Frame { frame, .. } = output else { return };
        let is_arp_request = frame.get(12..14) == Some(&[8, 6]) && frame.get(20..22) == Some(&[0, 1]);
        if is_arp_request && frame.get(38..42) == Some(&CLIENT_IP) {
            let (asker, asker_ip) = (&frame[22..28], &frame[28..32]);
            let head = [8, 6, 0, 1, 8, 0, 6, 4, 0, 2];
            let reply = [asker, &PINGER_MAC, &head, &PINGER_MAC, &CLIENT_IP, asker, asker_ip].concat();
            self.replies.push(reply.into());
        }
        self.answered += usize::from(frame.get(23) == Some(&1) && frame.get(34) == Some(&0));
    }
}
