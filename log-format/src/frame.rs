//! The frame that disk and wire share: a 64-byte header and a body.
//!
//! | offset | bytes | field |
//! | ---: | ---: | --- |
//! | 0 | 2 | magic `B2 57` |
//! | 2 | 1 | version |
//! | 3 | 1 | kind |
//! | 4 | 3 | body length as stored |
//! | 7 | 1 | flags; bit 0: the body is a zstd frame |
//! | 8 | 8 | term |
//! | 16 | 8 | icount |
//! | 24 | 8 | time in ns |
//! | 32 | 8 | sequence |
//! | 40 | 16 | chain hash of the batch before |
//! | 56 | 4 | CRC-32 of the body as stored |
//! | 60 | 4 | CRC-32 of bytes 0 to 59 |

use std::borrow::Cow;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::compress;
use crate::{ChainHash, FORMAT_VERSION, Moment, OLDEST_FORMAT_VERSION, Position};

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 64;

/// Greatest length of a body, as stored and uncompressed.
pub const MAX_BODY_BYTES: usize = (1 << 24) - 1;

const MAGIC: [u8; 2] = [0xb2, 0x57];
const FLAG_ZSTD: u8 = 1;

/// The part of a header that the chain hash covers.
const PLACE: std::ops::Range<usize> = 8..56;
const HEADER_CRC_OFFSET: usize = 60;

/// What a frame holds. Numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum FrameKind {
    /// Opens a segment file.
    SegmentHeader = 1,
    /// Events, digests and output hashes up to a mark.
    Batch = 2,
    /// Closes a segment file.
    SegmentEnd = 3,
    /// A backup asks to join.
    Hello = 16,
    /// The primary says how.
    Welcome = 17,
    /// One side will not talk to the other.
    Refuse = 18,
    /// Begins a checkpoint.
    CheckpointHead = 19,
    /// Pages and disk blocks.
    CheckpointPart = 20,
    /// Ends a checkpoint.
    CheckpointEnd = 21,
    /// A sign of life, with a transient mark.
    Heartbeat = 22,
    /// Answer to a heartbeat.
    HeartbeatReply = 23,
    /// Batches are held.
    Ack = 24,
    /// The backup is in step.
    Ready = 25,
    /// States differ.
    Divergence = 26,
    /// The sender leaves.
    Goodbye = 27,
    /// The protection mode changes.
    Mode = 28,
    /// Begins an increment.
    IncrementHead = 29,
    /// Packed pages and disk blocks.
    IncrementPart = 30,
    /// Ends an increment.
    IncrementEnd = 31,
    /// What a joining side has already.
    Donor = 32,
    /// Hashes of a checkpoint's pages and blocks.
    Offer = 33,
    /// What of an offer is not there.
    Want = 34,
    /// Asks for hashes of the disks.
    DiskCheck = 35,
    /// Hashes of the disks.
    DiskHashes = 36,
    /// Asks for a part of a base image.
    ImageRequest = 37,
    /// A part of a base image.
    ImageReply = 38,
    /// Where the sender listens (wire).
    Address = 39,
}

impl FrameKind {
    /// Every kind that there is.
    pub const ALL: [FrameKind; 27] = [
        FrameKind::SegmentHeader,
        FrameKind::Batch,
        FrameKind::SegmentEnd,
        FrameKind::Hello,
        FrameKind::Welcome,
        FrameKind::Refuse,
        FrameKind::CheckpointHead,
        FrameKind::CheckpointPart,
        FrameKind::CheckpointEnd,
        FrameKind::Heartbeat,
        FrameKind::HeartbeatReply,
        FrameKind::Ack,
        FrameKind::Ready,
        FrameKind::Divergence,
        FrameKind::Goodbye,
        FrameKind::Mode,
        FrameKind::IncrementHead,
        FrameKind::IncrementPart,
        FrameKind::IncrementEnd,
        FrameKind::Donor,
        FrameKind::Offer,
        FrameKind::Want,
        FrameKind::DiskCheck,
        FrameKind::DiskHashes,
        FrameKind::ImageRequest,
        FrameKind::ImageReply,
        FrameKind::Address,
    ];

    fn from_code(code: u8) -> Option<FrameKind> {
        FrameKind::ALL.into_iter().find(|kind| *kind as u8 == code)
    }
}

impl std::fmt::Display for FrameKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            FrameKind::SegmentHeader => "segment header",
            FrameKind::Batch => "batch",
            FrameKind::SegmentEnd => "segment end",
            FrameKind::Hello => "hello",
            FrameKind::Welcome => "welcome",
            FrameKind::Refuse => "refuse",
            FrameKind::CheckpointHead => "checkpoint head",
            FrameKind::CheckpointPart => "checkpoint part",
            FrameKind::CheckpointEnd => "checkpoint end",
            FrameKind::Heartbeat => "heartbeat",
            FrameKind::HeartbeatReply => "heartbeat reply",
            FrameKind::Ack => "acknowledgement",
            FrameKind::Ready => "ready",
            FrameKind::Divergence => "divergence",
            FrameKind::Goodbye => "goodbye",
            FrameKind::Mode => "mode change",
            FrameKind::IncrementHead => "increment head",
            FrameKind::IncrementPart => "increment part",
            FrameKind::IncrementEnd => "increment end",
            FrameKind::Donor => "donor",
            FrameKind::Offer => "offer",
            FrameKind::Want => "want",
            FrameKind::DiskCheck => "disk check",
            FrameKind::DiskHashes => "disk hashes",
            FrameKind::ImageRequest => "image request",
            FrameKind::ImageReply => "image reply",
            FrameKind::Address => "address",
        })
    }
}

/// Why bytes are not a frame, or not the frame asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes end inside a frame. More bytes would help.
    #[error("a frame is cut short: found {found} bytes, expected {expected}; what lies before it is whole")]
    Torn {
        /// Bytes there are.
        found: usize,
        /// Bytes the frame takes, as far as can be told.
        expected: usize,
    },
    /// No frame at all.
    #[error(
        "this is not a Secondwind frame: found {found:02x?} at its start, expected [b2, 57]; check that the right file or port was given"
    )]
    Foreign {
        /// The first bytes.
        found: [u8; 2],
    },
    /// The header was changed after it was written.
    #[error(
        "a frame's header is damaged: found checksum {found:08x}, expected {expected:08x}; use what lies before it, or another copy"
    )]
    HeaderChecksum {
        /// Of the bytes there are.
        found: u32,
        /// Recorded in the header.
        expected: u32,
    },
    /// The body was changed after it was written.
    #[error(
        "a frame's body is damaged: found checksum {found:08x}, expected {expected:08x}; use what lies before it, or another copy"
    )]
    BodyChecksum {
        /// Of the bytes there are.
        found: u32,
        /// Recorded in the header.
        expected: u32,
    },
    /// Written by a newer program.
    #[error("a frame has format version {found}, this program reads up to {newest}; use a newer program")]
    FutureVersion {
        /// The frame's.
        found: u8,
        /// The newest read here.
        newest: u8,
    },
    /// Written by a program too old to be read, or by none.
    #[error("a frame has format version {found}, this program reads from {oldest} on; use an older program")]
    PastVersion {
        /// The frame's.
        found: u8,
        /// The oldest read here.
        oldest: u8,
    },
    /// A kind that this version does not have.
    #[error(
        "a frame has kind {found}, which format version {version} does not have; check which program wrote it"
    )]
    UnknownKind {
        /// The frame's.
        found: u8,
        /// Its version.
        version: u8,
    },
    /// A flag that this version does not have.
    #[error(
        "a frame has flags {found:#010b}, format version {version} has only {FLAG_ZSTD:#010b}; check which program wrote it"
    )]
    UnknownFlags {
        /// The frame's.
        found: u8,
        /// Its version.
        version: u8,
    },
    /// A frame of a kind that has no business here.
    #[error("found a {found} frame, expected {expected}; check which program or file sent it")]
    UnexpectedKind {
        /// What it is.
        found: FrameKind,
        /// What may stand here.
        expected: &'static str,
    },
    /// Longer than this reader allows.
    #[error(
        "a {kind} frame's body has {found} bytes, at most {limit} are allowed; raise the limit if its sender can be trusted"
    )]
    TooLong {
        /// What it is.
        kind: FrameKind,
        /// Its length.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// The body does not decompress.
    #[error("a {kind} frame's body does not decompress: {cause}; check which program wrote it")]
    Compression {
        /// What it is.
        kind: FrameKind,
        /// What zstd says.
        cause: String,
    },
    /// The body is not what its kind asks for.
    #[error("a {kind} frame's body does not decode: {cause}; check which program wrote it")]
    Malformed {
        /// What it is.
        kind: FrameKind,
        /// What is wrong.
        cause: String,
    },
}

impl FrameError {
    /// Whether more bytes could make it a frame.
    pub fn is_torn(&self) -> bool {
        matches!(self, FrameError::Torn { .. })
    }
}

/// Why a value cannot become a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The body would be longer than a frame can hold.
    #[error("a {kind} takes {found} bytes, a frame holds at most {limit}; split it")]
    TooLong {
        /// What it is.
        kind: FrameKind,
        /// Its uncompressed length.
        found: usize,
        /// [`MAX_BODY_BYTES`].
        limit: usize,
    },
    /// Items of a batch are not in order, or lie past its end.
    #[error(
        "a batch's {what} is at {found:?}, expected one not before the {what} before it and not after {to:?}; this is a defect of the caller"
    )]
    OutOfOrder {
        /// "event" or "digest".
        what: &'static str,
        /// Where it is.
        found: Moment,
        /// The batch's end.
        to: Moment,
    },
    /// The value does not serialize.
    #[error("a {kind} does not serialize: {cause}")]
    Serialize {
        /// What it is.
        kind: FrameKind,
        /// What is wrong.
        cause: String,
    },
}

/// A frame's header, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// The format version that wrote it.
    pub version: u8,
    /// What the frame holds.
    pub kind: FrameKind,
    /// Term, moment and sequence.
    pub position: Position,
    /// Chain hash of the batch before.
    pub previous: ChainHash,
    /// Bytes of the body as stored.
    pub body_bytes: usize,
    compressed: bool,
    body_crc: u32,
}

impl FrameHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// [`FrameError::Torn`] when there are fewer than 64 bytes, else what is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<FrameHeader, FrameError> {
        check_start(bytes)?;
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(FrameError::Torn { found: bytes.len(), expected: HEADER_BYTES });
        };
        check_header_crc(header)?;
        let version = header[2];
        if version > FORMAT_VERSION {
            return Err(FrameError::FutureVersion { found: version, newest: FORMAT_VERSION });
        }
        if version < OLDEST_FORMAT_VERSION {
            return Err(FrameError::PastVersion { found: version, oldest: OLDEST_FORMAT_VERSION });
        }
        let kind =
            FrameKind::from_code(header[3]).ok_or(FrameError::UnknownKind { found: header[3], version })?;
        let flags = header[7];
        if flags & !FLAG_ZSTD != 0 {
            return Err(FrameError::UnknownFlags { found: flags, version });
        }
        let length = u32::from_le_bytes([header[4], header[5], header[6], 0]);
        let mut previous = ChainHash::NONE;
        previous.0.copy_from_slice(&header[40..56]);
        Ok(FrameHeader {
            version,
            kind,
            position: Position {
                term: read_u64(header, 8),
                moment: Moment { icount: read_u64(header, 16), time_ns: read_u64(header, 24) },
                sequence: read_u64(header, 32),
            },
            previous,
            body_bytes: length as usize,
            compressed: flags & FLAG_ZSTD != 0,
            body_crc: read_u32(header, 56),
        })
    }

    /// Bytes of the whole frame.
    pub fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.body_bytes
    }
}

/// A whole frame, checked as far as its body's checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    header: FrameHeader,
    bytes: Bytes,
}

impl Frame {
    /// Takes the frame at the start of `bytes`, of which it shares the memory. Bytes after
    /// it are left alone.
    ///
    /// # Errors
    /// [`FrameError::Torn`] when the frame is not all there, else what is wrong with it.
    pub fn decode(bytes: &Bytes) -> Result<Frame, FrameError> {
        let header = FrameHeader::decode(bytes)?;
        let frame_bytes = header.frame_bytes();
        if bytes.len() < frame_bytes {
            return Err(FrameError::Torn { found: bytes.len(), expected: frame_bytes });
        }
        let found = crc32fast::hash(&bytes[HEADER_BYTES..frame_bytes]);
        if found != header.body_crc {
            return Err(FrameError::BodyChecksum { found, expected: header.body_crc });
        }
        Ok(Frame { header, bytes: bytes.slice(..frame_bytes) })
    }

    /// Its header.
    pub fn header(&self) -> &FrameHeader {
        &self.header
    }

    /// All its bytes, header and body, as stored.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Its body, uncompressed.
    ///
    /// # Errors
    /// [`FrameError::Compression`] and [`FrameError::TooLong`].
    pub fn body(&self) -> Result<Cow<'_, [u8]>, FrameError> {
        let stored = &self.bytes[HEADER_BYTES..];
        if !self.header.compressed {
            return Ok(Cow::Borrowed(stored));
        }
        compress::unpack(self.header.kind, stored).map(Cow::Owned)
    }

    /// Its body as a value.
    pub(crate) fn decode_body<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        decode_plain(self.header.kind, &self.body()?)
    }

    /// The chain hash after this frame, whose uncompressed body is `plain`.
    pub(crate) fn chain_after(&self, plain: &[u8]) -> ChainHash {
        ChainHash::after(&self.bytes[PLACE], plain)
    }

    /// [`FrameError::Malformed`] for this frame.
    pub(crate) fn malformed(&self, cause: impl ToString) -> FrameError {
        FrameError::Malformed { kind: self.header.kind, cause: cause.to_string() }
    }
}

/// A value from an uncompressed body, of which it must use every byte.
pub(crate) fn decode_plain<T: DeserializeOwned>(kind: FrameKind, plain: &[u8]) -> Result<T, FrameError> {
    let malformed = |cause: String| FrameError::Malformed { kind, cause };
    let mut deserializer = rmp_serde::Deserializer::new(plain);
    let value = T::deserialize(&mut deserializer).map_err(|error| malformed(error.to_string()))?;
    let rest = deserializer.into_inner();
    if rest.is_empty() { Ok(value) } else { Err(malformed(format!("{} bytes follow its end", rest.len()))) }
}

/// A frame from its parts, and the chain hash after it.
pub(crate) fn encode_frame<T: Serialize>(
    kind: FrameKind,
    position: Position,
    previous: ChainHash,
    body: &T,
) -> Result<(Bytes, ChainHash), EncodeError> {
    // The body is written behind the place of its header, to be moved only when it is packed.
    let mut bytes = Vec::with_capacity(2 * HEADER_BYTES);
    bytes.resize(HEADER_BYTES, 0);
    rmp_serde::encode::write(&mut bytes, body)
        .map_err(|error| EncodeError::Serialize { kind, cause: error.to_string() })?;
    let plain = &bytes[HEADER_BYTES..];
    if plain.len() > MAX_BODY_BYTES {
        return Err(EncodeError::TooLong { kind, found: plain.len(), limit: MAX_BODY_BYTES });
    }
    // What is packed page by page is not packed once more.
    let packed = if kind == FrameKind::IncrementPart { None } else { compress::pack(plain) };
    let stored = packed.as_deref().unwrap_or(plain);
    let flags = if packed.is_some() { FLAG_ZSTD } else { 0 };

    let mut header = [0u8; HEADER_BYTES];
    header[..2].copy_from_slice(&MAGIC);
    header[2] = FORMAT_VERSION;
    header[3] = kind as u8;
    // At most MAX_BODY_BYTES, checked above; a packed body is shorter.
    let length = u32::try_from(stored.len()).expect("a body's length fits 24 bits");
    header[4..7].copy_from_slice(&length.to_le_bytes()[..3]);
    header[7] = flags;
    header[8..16].copy_from_slice(&position.term.to_le_bytes());
    header[16..24].copy_from_slice(&position.moment.icount.to_le_bytes());
    header[24..32].copy_from_slice(&position.moment.time_ns.to_le_bytes());
    header[32..40].copy_from_slice(&position.sequence.to_le_bytes());
    header[40..56].copy_from_slice(&previous.0);
    header[56..60].copy_from_slice(&crc32fast::hash(stored).to_le_bytes());
    let header_crc = crc32fast::hash(&header[..HEADER_CRC_OFFSET]);
    header[HEADER_CRC_OFFSET..].copy_from_slice(&header_crc.to_le_bytes());

    let chain = ChainHash::after(&header[PLACE], plain);
    if let Some(packed) = packed {
        bytes.truncate(HEADER_BYTES);
        bytes.extend_from_slice(&packed);
    }
    bytes[..HEADER_BYTES].copy_from_slice(&header);
    Ok((Bytes::from(bytes), chain))
}

/// Bytes that cannot become a frame, whatever follows, are told at once. A flipped bit in
/// the magic is told from a foreign file by the header's checksum, where there is one.
fn check_start(bytes: &[u8]) -> Result<(), FrameError> {
    let present = bytes.len().min(MAGIC.len());
    if bytes[..present] == MAGIC[..present] {
        return Ok(());
    }
    if let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
        let mut repaired = *header;
        repaired[..2].copy_from_slice(&MAGIC);
        if check_header_crc(&repaired).is_ok() {
            return check_header_crc(header);
        }
    }
    let mut found = [0; 2];
    found[..present].copy_from_slice(&bytes[..present]);
    Err(FrameError::Foreign { found })
}

fn check_header_crc(header: &[u8; HEADER_BYTES]) -> Result<(), FrameError> {
    let found = crc32fast::hash(&header[..HEADER_CRC_OFFSET]);
    let expected = read_u32(header, HEADER_CRC_OFFSET);
    if found == expected { Ok(()) } else { Err(FrameError::HeaderChecksum { found, expected }) }
}

fn read_u64(header: &[u8; HEADER_BYTES], offset: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&header[offset..offset + 8]);
    u64::from_le_bytes(number)
}

fn read_u32(header: &[u8; HEADER_BYTES], offset: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&header[offset..offset + 4]);
    u32::from_le_bytes(number)
}
