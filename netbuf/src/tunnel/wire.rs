//! Bytes of the tunnel: one UDP datagram each, every number big-endian.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | magic `SWtn` |
//! | 4 | 1 | version, 1 |
//! | 5 | 1 | kind: 1 hello, 2 frame, 3 leave, 4 superseded |
//! | 6 | 1 | port: index of the VM's network device |
//! | 7 | 1 | zero |
//! | 8 | 8 | VM |
//! | 16 | 8 | term of the sender; in a frame to the VM and in `superseded`: highest term seen |
//! | 24 | 8 | sequence: datagrams the sender sent before on this port in this term |
//! | 32 | | kind frame: an Ethernet frame without FCS, 14 to 65,475 bytes |
//!
//! A datagram carries at most 65,507 bytes over IPv4, so a frame at most 65,475. Above the
//! path's MTU the host's IP layer fragments; a frame of 1,514 bytes fits unfragmented from
//! an MTU of 1,574 on.
//!
//! There is no authentication, as with VXLAN: run it where only the cluster's hosts can
//! send to the switch.

use std::fmt;

use bytes::Bytes;

/// The first bytes of every datagram.
pub const MAGIC: [u8; 4] = *b"SWtn";
/// The only version there is.
pub const VERSION: u8 = 1;
/// Bytes before the frame.
pub const HEADER_BYTES: usize = 32;
/// The shortest frame: an Ethernet header.
pub const MIN_FRAME_BYTES: usize = 14;
/// The longest frame: what a UDP datagram over IPv4 holds after the header.
pub const MAX_FRAME_BYTES: usize = 65_507 - HEADER_BYTES;

/// Number of a VM, the same on every host that may run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId(pub u64);

impl VmId {
    /// The number of the VM with this name: XXH3-64 of its UTF-8 bytes.
    pub fn from_name(name: &str) -> VmId {
        VmId(xxhash_rust::xxh3::xxh3_64(name.as_bytes()))
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A network device of a VM: who a port belongs to, wherever the VM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId {
    /// The VM.
    pub vm: VmId,
    /// Index of its network device.
    pub port: u8,
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vm, self.port)
    }
}

/// One datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Whose port.
    pub port: PortId,
    /// The sender's term.
    pub term: u64,
    /// Datagrams the sender sent before.
    pub sequence: u64,
    /// What it says.
    pub message: Message,
}

/// What a datagram says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// To the switch: this address is where the live VM is. Sent at once and then every
    /// second, by a live side only.
    Hello,
    /// Either way: an Ethernet frame.
    Frame(Bytes),
    /// To the switch: the VM is not live here any more.
    Leave,
    /// From the switch: refused, a higher term (the header's) was seen.
    Superseded,
}

/// Why bytes are not a datagram of the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DatagramError {
    /// Cut short.
    #[error("found {found} bytes where a tunnel datagram of at least {HEADER_BYTES} was expected")]
    Short {
        /// How many there are.
        found: usize,
    },
    /// Not of the tunnel.
    #[error(
        "found magic {found:02x?} where {MAGIC:02x?} was expected: not a Secondwind tunnel; check the address and port"
    )]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// Of a version that this side does not speak.
    #[error("found tunnel version {found}, this side speaks {VERSION}; use the same release on both sides")]
    Version {
        /// The version byte.
        found: u8,
    },
    /// Of a kind that does not exist.
    #[error("found tunnel message kind {found}, expected 1 to 4")]
    Kind {
        /// The kind byte.
        found: u8,
    },
    /// The reserved byte is not zero.
    #[error("found {found} in the tunnel header's reserved byte, expected 0")]
    Reserved {
        /// The byte.
        found: u8,
    },
    /// The frame is shorter than an Ethernet header or longer than a datagram can hold.
    #[error("found a frame of {found} bytes, expected {MIN_FRAME_BYTES} to {MAX_FRAME_BYTES}")]
    FrameLength {
        /// The frame's bytes.
        found: usize,
    },
    /// A message without a body has one.
    #[error("found {found} bytes after a tunnel message that has none")]
    Excess {
        /// How many.
        found: usize,
    },
}

const HELLO: u8 = 1;
const FRAME: u8 = 2;
const LEAVE: u8 = 3;
const SUPERSEDED: u8 = 4;

impl Datagram {
    /// Appends the datagram's bytes. The frame's length is the caller's to check.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        let (kind, body): (u8, &[u8]) = match &self.message {
            Message::Hello => (HELLO, &[]),
            Message::Frame(frame) => (FRAME, frame),
            Message::Leave => (LEAVE, &[]),
            Message::Superseded => (SUPERSEDED, &[]),
        };
        out.reserve(HEADER_BYTES + body.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, kind, self.port.port, 0]);
        out.extend_from_slice(&self.port.vm.0.to_be_bytes());
        out.extend_from_slice(&self.term.to_be_bytes());
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(body);
    }

    /// Reads one datagram.
    ///
    /// # Errors
    /// When the bytes are not exactly one datagram of this version.
    pub fn decode(bytes: &[u8]) -> Result<Datagram, DatagramError> {
        let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(DatagramError::Short { found: bytes.len() });
        };
        let [m0, m1, m2, m3, version, kind, port, reserved, numbers @ ..] = *header;
        let found = [m0, m1, m2, m3];
        if found != MAGIC {
            return Err(DatagramError::Magic { found });
        }
        if version != VERSION {
            return Err(DatagramError::Version { found: version });
        }
        if reserved != 0 {
            return Err(DatagramError::Reserved { found: reserved });
        }
        let message = match kind {
            HELLO => Message::Hello,
            LEAVE => Message::Leave,
            SUPERSEDED => Message::Superseded,
            FRAME if (MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&body.len()) => {
                Message::Frame(Bytes::copy_from_slice(body))
            }
            FRAME => return Err(DatagramError::FrameLength { found: body.len() }),
            found => return Err(DatagramError::Kind { found }),
        };
        if kind != FRAME && !body.is_empty() {
            return Err(DatagramError::Excess { found: body.len() });
        }
        let (numbers, _) = numbers.as_chunks::<8>();
        let [vm, term, sequence] = [0, 1, 2].map(|index| u64::from_be_bytes(numbers[index]));
        Ok(Datagram { port: PortId { vm: VmId(vm), port }, term, sequence, message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(datagram: &Datagram) -> Vec<u8> {
        let mut bytes = Vec::new();
        datagram.encode_into(&mut bytes);
        bytes
    }

    fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            Just(Message::Hello),
            Just(Message::Leave),
            Just(Message::Superseded),
            prop::collection::vec(any::<u8>(), 14..2000).prop_map(|frame| Message::Frame(frame.into())),
        ]
    }

    fn datagram() -> impl Strategy<Value = Datagram> {
        (any::<u64>(), any::<u8>(), any::<u64>(), any::<u64>(), message()).prop_map(
            |(vm, port, term, sequence, message)| Datagram {
                port: PortId { vm: VmId(vm), port },
                term,
                sequence,
                message,
            },
        )
    }

    /// The bytes as they are on the wire of version 1, for ever.
    #[test]
    fn golden_bytes() {
        let hello = Datagram {
            port: PortId { vm: VmId(0x0102_0304_0506_0708), port: 3 },
            term: 9,
            sequence: 10,
            message: Message::Hello,
        };
        let golden = [
            b'S', b'W', b't', b'n', 1, 1, 3, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0,
            0, 0, 0, 10,
        ];
        assert_eq!(encoded(&hello), golden);
        assert_eq!(Datagram::decode(&golden), Ok(hello));
    }

    #[test]
    fn each_fault_has_its_error() {
        let good = encoded(&Datagram {
            port: PortId { vm: VmId::from_name("vm"), port: 0 },
            term: 1,
            sequence: 0,
            message: Message::Hello,
        });
        let changed = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            Datagram::decode(&bytes).unwrap_err()
        };
        assert_eq!(Datagram::decode(&good[..31]), Err(DatagramError::Short { found: 31 }));
        assert!(matches!(changed(0, b'X'), DatagramError::Magic { .. }));
        assert_eq!(changed(4, 2), DatagramError::Version { found: 2 });
        assert_eq!(changed(5, 0), DatagramError::Kind { found: 0 });
        assert_eq!(changed(5, 2), DatagramError::FrameLength { found: 0 });
        assert_eq!(changed(7, 1), DatagramError::Reserved { found: 1 });
        let long = [good.as_slice(), &[0]].concat();
        assert_eq!(Datagram::decode(&long), Err(DatagramError::Excess { found: 1 }));
        let mut jumbo = good.clone();
        jumbo[5] = FRAME;
        jumbo.resize(HEADER_BYTES + MAX_FRAME_BYTES + 1, 0);
        assert!(matches!(Datagram::decode(&jumbo), Err(DatagramError::FrameLength { .. })));
    }

    proptest! {
        #[test]
        fn bytes_go_there_and_back(datagram in datagram()) {
            prop_assert_eq!(Datagram::decode(&encoded(&datagram)), Ok(datagram));
        }

        #[test]
        fn damaged_bytes_are_a_value_or_an_error(
            datagram in datagram(),
            at: prop::sample::Index,
            flip: u8,
            keep: prop::sample::Index,
        ) {
            let mut bytes = encoded(&datagram);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            bytes.truncate(keep.index(bytes.len() + 1));
            if let Ok(read) = Datagram::decode(&bytes) {
                prop_assert_eq!(encoded(&read), bytes);
            }
        }

        #[test]
        fn random_bytes_are_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(read) = Datagram::decode(&bytes) {
                prop_assert_eq!(encoded(&read), bytes);
            }
        }
    }
}
