//! Vocabulary and bytes of the log: events, batches, checkpoints and the messages of a pair.
//!
//! No I/O, no clock, no thread. `docs/log-format.md` is the byte-level contract; the types
//! here are the only form in which the rest of the system sees those bytes.
//!
//! - [`Batch`] is sealed into a [`SealedBatch`]: its bytes, and its place in the chain.
//! - [`Message`] is what a pair exchanges, [`MessageDecoder`] takes it off a byte stream.
//! - [`SegmentRecord`] is what a file of a recording holds.
//! - [`Frame`] is the common form of all of them.
//! - [`page_codec`] packs the pages of an increment.
//! - [`checkpoint_file`] is what a file of a machine's state holds.

mod batch;
mod chain;
pub mod checkpoint_file;
mod compress;
mod event;
mod frame;
pub mod increment;
mod message;
pub mod page_codec;
pub mod resync;
mod segment;
mod stream;
mod version;
mod vocabulary;

pub use batch::{Batch, SealedBatch};
pub use chain::ChainHash;
pub use frame::{EncodeError, Frame, FrameError, FrameHeader, FrameKind, HEADER_BYTES, MAX_BODY_BYTES};
pub use increment::{
    EncodedBlock, EncodedPage, EncodedPart, IncrementEnd, IncrementStart, ModeChange, ProtectionMode,
    WholeIncrement,
};
pub use message::{
    Ack, CheckpointEnd, CheckpointStart, Divergence, Goodbye, GoodbyeReason, Have, Heartbeat, HeartbeatReply,
    Hello, JoinPlan, Message, Ready, Refuse, RefuseReason, Welcome,
};
pub use resync::{
    Address, DiskCheck, DiskHashes, Donor, ImagePart, ImageReply, ImageRequest, Offer, OfferedBlock,
    OfferedPage, Want,
};
pub use segment::{LogEntry, SegmentEnd, SegmentHeader, SegmentRecord};
pub use stream::{FrameDecoder, MessageDecoder};
pub use version::{FORMAT_VERSION, MODES_VERSION, OLDEST_FORMAT_VERSION, PROTOCOL_VERSION, VersionRange};
pub use vocabulary::*;
