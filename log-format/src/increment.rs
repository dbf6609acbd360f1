//! Protection modes on the wire: which one holds, and the increments of `hybrid` and `checkpoint`.
//!
//! ```text
//!   primary                                         backup
//!     | -- Mode{checkpoint, after batch 40} ---------> | replays to the end of batch 40, stands
//!     | -- IncrementHead{at batch 47}, IncrementPart* -> | keeps them aside
//!     | -- IncrementEnd{digest} ---------------------> | whole: held
//!     | <------------------------------------- Ack 47 - |
//!     | -- Mode{replay, after batch 47}, Batch 48 ... > | follows again
//! ```

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::frame::{EncodeError, FrameKind};
use crate::message::{self, Record, held_outputs};
use crate::{ChainHash, CheckpointHead, Digest, LoggedOutput, Position};

/// How a backup is kept able to take over (DESIGN.md section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum ProtectionMode {
    /// The log is shipped, and the backup executes along (VMware FT, CR/TR-Motion).
    #[default]
    Replay,
    /// The log is shipped, and a checkpoint now and then; the backup executes at a takeover (LLM).
    Hybrid,
    /// Incremental checkpoints are shipped, and no log (Remus).
    Checkpoint,
}

impl ProtectionMode {
    /// Every mode.
    pub const ALL: [ProtectionMode; 3] =
        [ProtectionMode::Replay, ProtectionMode::Hybrid, ProtectionMode::Checkpoint];

    /// Its name, as in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            ProtectionMode::Replay => "replay",
            ProtectionMode::Hybrid => "hybrid",
            ProtectionMode::Checkpoint => "checkpoint",
        }
    }

    /// Whether the log is shipped in it.
    pub fn ships_log(self) -> bool {
        self != ProtectionMode::Checkpoint
    }

    /// Whether the backup stands at a checkpoint in it.
    pub fn stands(self) -> bool {
        self != ProtectionMode::Replay
    }
}

impl std::fmt::Display for ProtectionMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl From<ProtectionMode> for u8 {
    fn from(mode: ProtectionMode) -> u8 {
        match mode {
            ProtectionMode::Replay => 1,
            ProtectionMode::Hybrid => 2,
            ProtectionMode::Checkpoint => 3,
        }
    }
}

impl TryFrom<u8> for ProtectionMode {
    type Error = String;

    fn try_from(code: u8) -> Result<Self, String> {
        ProtectionMode::ALL
            .into_iter()
            .find(|mode| u8::from(*mode) == code)
            .ok_or_else(|| format!("found protection mode {code}, expected 1 to 3"))
    }
}

/// The protection mode changes (primary to backup).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModeChange {
    /// The primary's term.
    #[serde(skip)]
    pub term: u64,
    /// The last batch of the mode before: where the backup stands, or follows from.
    #[serde(skip)]
    pub sequence: u64,
    /// The mode from here on.
    pub mode: ProtectionMode,
}

/// Begins an increment: what was written since the one before (primary to backup).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncrementStart {
    /// Where it was taken.
    #[serde(skip)]
    pub position: Position,
    /// The chain hash there.
    #[serde(skip)]
    pub chain: ChainHash,
    /// Number of batches up to the state that it builds on.
    pub base: u64,
    /// Events the log holds before it, since boot.
    pub events_before: u64,
    /// Outputs since boot that the primary knew to be released.
    pub released_outputs: u64,
    /// Outputs made before it that are not released, oldest first: nobody could make them
    /// again from the checkpoint.
    #[serde(with = "held_outputs")]
    pub held: Vec<LoggedOutput>,
    /// Everything but pages and blocks. Its digest is not set: [`IncrementEnd`] has it.
    pub head: CheckpointHead,
}

/// Some pages and blocks of an increment, each packed in the way that pays (primary to backup).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodedPart {
    /// Memory pages.
    pub pages: Vec<EncodedPage>,
    /// Disk blocks.
    pub blocks: Vec<EncodedBlock>,
}

impl EncodedPart {
    /// Bytes of the contents as they are shipped, without what frames them.
    pub fn packed_bytes(&self) -> usize {
        let pages = self.pages.iter().map(|page| page.packed.len());
        pages.chain(self.blocks.iter().map(|block| block.packed.len())).sum()
    }
}

/// A memory page on the wire; `page_codec` says how it is packed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodedPage {
    /// Number of the page: guest-physical offset in RAM / 4096.
    pub index: u64,
    /// How it is packed.
    pub encoding: u8,
    /// The packed contents.
    pub packed: Bytes,
}

/// A disk block on the wire; `page_codec` says how it is packed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodedBlock {
    /// Index of the disk.
    pub disk: u8,
    /// Number of the block: byte offset / 4096.
    pub index: u64,
    /// How it is packed.
    pub encoding: u8,
    /// The packed contents.
    pub packed: Bytes,
}

/// Ends an increment (primary to backup).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncrementEnd {
    /// How many [`EncodedPart`] messages it had.
    pub parts: u64,
    /// Digest of the state after it.
    pub digest: Digest,
}

/// An increment, all of which came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholeIncrement {
    /// Where it leads, from where, and everything but pages and blocks.
    pub start: IncrementStart,
    /// Packed pages and blocks.
    pub parts: Vec<EncodedPart>,
    /// How many parts there are, and the digest of the state that it leads to.
    pub end: IncrementEnd,
}

impl WholeIncrement {
    /// Number of batches up to where it leads.
    pub fn sequence(&self) -> u64 {
        self.start.position.sequence
    }

    /// About as many bytes as it takes in a log.
    pub fn size_bytes(&self) -> u64 {
        const FRAME_BYTES: usize = 80;
        let parts: usize = self.parts.iter().map(|part| part.packed_bytes() + FRAME_BYTES).sum();
        (self.start.head.state.len() + parts + 2 * FRAME_BYTES) as u64
    }

    /// Its frames, one after the other, as they came.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let mut bytes = message::encode(&self.start)?.to_vec();
        for part in &self.parts {
            bytes.extend_from_slice(&message::encode(part)?);
        }
        bytes.extend_from_slice(&message::encode(&self.end)?);
        Ok(bytes)
    }
}

impl Record for ModeChange {
    const KIND: FrameKind = FrameKind::Mode;

    fn place(&self) -> (Position, ChainHash) {
        let position = Position { term: self.term, sequence: self.sequence, ..Position::default() };
        (position, ChainHash::NONE)
    }

    fn set_place(&mut self, position: Position, _: ChainHash) {
        self.term = position.term;
        self.sequence = position.sequence;
    }
}

impl Record for IncrementStart {
    const KIND: FrameKind = FrameKind::IncrementHead;

    fn place(&self) -> (Position, ChainHash) {
        (self.position, self.chain)
    }

    fn set_place(&mut self, position: Position, chain: ChainHash) {
        self.position = position;
        self.chain = chain;
    }
}

impl Record for EncodedPart {
    const KIND: FrameKind = FrameKind::IncrementPart;

    fn place(&self) -> (Position, ChainHash) {
        Default::default()
    }

    fn set_place(&mut self, _: Position, _: ChainHash) {}
}

impl Record for IncrementEnd {
    const KIND: FrameKind = FrameKind::IncrementEnd;

    fn place(&self) -> (Position, ChainHash) {
        Default::default()
    }

    fn set_place(&mut self, _: Position, _: ChainHash) {}
}
