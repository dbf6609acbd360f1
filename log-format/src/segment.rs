//! The records that open and close a segment file.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::batch::SealedBatch;
use crate::frame::{EncodeError, Frame, FrameError, FrameKind};
use crate::increment::{EncodedPart, IncrementEnd, IncrementStart, WholeIncrement};
use crate::message::{self, Record, record_at_position};
use crate::{ChainHash, MachineIdentity, Position};

/// The first record of a segment file: what the log is of, and where in it the file begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentHeader {
    /// The place before its first batch.
    #[serde(skip)]
    pub position: Position,
    /// The chain hash there.
    #[serde(skip)]
    pub chain: ChainHash,
    /// Batches before the first segment of the whole log: 0, unless it starts at a
    /// checkpoint.
    pub log_start: u64,
    /// Name of the virtual machine.
    pub vm: String,
    /// The machine; carries the semantics version.
    pub identity: MachineIdentity,
    /// What the command line needs to build the machine again. Opaque here.
    pub boot: Bytes,
}

impl SegmentHeader {
    /// The header of a log that starts at the boot of a machine.
    pub fn at_boot(vm: String, identity: MachineIdentity, term: u64, boot: Bytes) -> Self {
        SegmentHeader {
            position: Position { term, ..Position::default() },
            chain: ChainHash::genesis(&identity),
            log_start: 0,
            vm,
            identity,
            boot,
        }
    }

    /// Its frame.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`].
    pub fn encode(&self) -> Result<Bytes, EncodeError> {
        message::encode(self)
    }
}

/// The last record of a segment file that its writer got to close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentEnd {
    /// The place after its last batch.
    #[serde(skip)]
    pub position: Position,
    /// The chain hash there.
    #[serde(skip)]
    pub chain: ChainHash,
    /// Whether the log ends here. If not, another segment follows.
    pub last: bool,
    /// Batches in this segment.
    pub batches: u64,
}

impl SegmentEnd {
    /// Its frame.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`].
    pub fn encode(&self) -> Result<Bytes, EncodeError> {
        message::encode(self)
    }
}

record_at_position! {
    SegmentHeader, SegmentHeader, position;
    SegmentEnd, SegmentEnd, position;
}

/// What a log is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogEntry {
    /// A batch.
    Batch(SealedBatch),
    /// An increment: from the state at one batch to the state at a later one.
    Increment(Box<WholeIncrement>),
}

impl LogEntry {
    /// Number of batches up to its end.
    pub fn sequence(&self) -> u64 {
        match self {
            LogEntry::Batch(batch) => batch.sequence,
            LogEntry::Increment(whole) => whole.sequence(),
        }
    }

    /// About as many bytes as it takes in a log.
    pub fn size_bytes(&self) -> u64 {
        match self {
            LogEntry::Batch(batch) => batch.bytes().len() as u64,
            LogEntry::Increment(whole) => whole.size_bytes(),
        }
    }
}

impl From<SealedBatch> for LogEntry {
    fn from(batch: SealedBatch) -> LogEntry {
        LogEntry::Batch(batch)
    }
}

impl From<WholeIncrement> for LogEntry {
    fn from(whole: WholeIncrement) -> LogEntry {
        LogEntry::Increment(Box::new(whole))
    }
}

/// A record of a segment file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SegmentRecord {
    /// Opens it.
    Header(SegmentHeader),
    /// A batch of the log.
    Batch(SealedBatch),
    /// An increment begins (logs of backups only).
    IncrementStart(Box<IncrementStart>),
    /// A part of the increment that began.
    IncrementPart(EncodedPart),
    /// The increment is whole.
    IncrementEnd(IncrementEnd),
    /// Closes it.
    End(SegmentEnd),
}

impl SegmentRecord {
    /// Reads the record at the start of `bytes`.
    ///
    /// # Errors
    /// [`FrameError::Torn`] when it is not all there, else what is wrong with it.
    pub fn decode(bytes: &Bytes) -> Result<SegmentRecord, FrameError> {
        SegmentRecord::from_frame(&Frame::decode(bytes)?)
    }

    /// Reads a record from its frame.
    ///
    /// # Errors
    /// [`FrameError::UnexpectedKind`] for a message that files do not hold, or what is wrong with the body.
    pub fn from_frame(frame: &Frame) -> Result<SegmentRecord, FrameError> {
        Ok(match frame.header().kind {
            FrameKind::SegmentHeader => SegmentRecord::Header(message::decode(frame)?),
            FrameKind::Batch => SegmentRecord::Batch(SealedBatch::from_frame(frame)?),
            FrameKind::IncrementHead => SegmentRecord::IncrementStart(Box::new(message::decode(frame)?)),
            FrameKind::IncrementPart => SegmentRecord::IncrementPart(message::decode(frame)?),
            FrameKind::IncrementEnd => SegmentRecord::IncrementEnd(message::decode(frame)?),
            FrameKind::SegmentEnd => SegmentRecord::End(message::decode(frame)?),
            found => {
                return Err(FrameError::UnexpectedKind { found, expected: "a record of a segment file" });
            }
        })
    }
}
