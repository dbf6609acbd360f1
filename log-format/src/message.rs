//! What the two hosts of a pair say to each other.
//!
//! ```text
//!   backup                              primary
//!     | -- Hello ------------------------> |
//!     | <------------- Welcome or Refuse - |
//!     | <- [CheckpointHead, CheckpointPart*, CheckpointEnd]   plan Checkpoint only
//!     | <------------------------- Batch* -|  (between the parts, too)
//!     | -- Ready ------------------------> |  in step: from here on it is counted on
//!     | -- Ack, HeartbeatReply ----------> |
//!     | <--------------- Batch, Heartbeat -|
//!     | -- Divergence or Goodbye --------> |  either may say Goodbye
//! ```
//!
//! [`crate::increment`] has the messages of the modes in which a backup stands at a checkpoint,
//! [`crate::resync`] those about what the other side has already.
//!
//! What a frame's header carries (term, moment, sequence, chain hash) is not repeated in
//! its body: those fields are skipped by serde and filled from the header.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::batch::SealedBatch;
use crate::frame::{EncodeError, Frame, FrameError, FrameKind, encode_frame};
use crate::increment::{EncodedPart, IncrementEnd, IncrementStart, ModeChange};
use crate::resync::{Address, DiskCheck, DiskHashes, Donor, ImageReply, ImageRequest, Offer, Want};
use crate::{
    ChainHash, CheckpointHead, CheckpointPart, Digest, Life, LoggedOutput, MachineIdentity, Moment, Position,
    VersionRange,
};

/// A message of the pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A backup asks to join.
    Hello(Hello),
    /// The primary says how.
    Welcome(Welcome),
    /// One side will not talk to the other, and ends the connection.
    Refuse(Refuse),
    /// Begins a checkpoint.
    CheckpointHead(CheckpointStart),
    /// Pages and disk blocks of the checkpoint under way.
    CheckpointPart(CheckpointPart),
    /// Ends a checkpoint.
    CheckpointEnd(CheckpointEnd),
    /// A batch of the log: the same bytes as on disk.
    Batch(SealedBatch),
    /// The primary lives.
    Heartbeat(Heartbeat),
    /// The backup lives.
    HeartbeatReply(HeartbeatReply),
    /// Batches are held.
    Ack(Ack),
    /// The backup is in step.
    Ready(Ready),
    /// The backup's state is not the one the log says.
    Divergence(Divergence),
    /// The sender leaves in an orderly way.
    Goodbye(Goodbye),
    /// The protection mode changes.
    Mode(ModeChange),
    /// Begins an increment.
    IncrementHead(IncrementStart),
    /// Packed pages and disk blocks of the increment under way.
    IncrementPart(EncodedPart),
    /// Ends an increment.
    IncrementEnd(IncrementEnd),
    /// What a joining side has already.
    Donor(Donor),
    /// Hashes of a checkpoint's pages and blocks.
    Offer(Offer),
    /// What of an offer is not there.
    Want(Want),
    /// Asks for hashes of the disks.
    DiskCheck(DiskCheck),
    /// Hashes of the disks.
    DiskHashes(DiskHashes),
    /// Asks for a part of a base image.
    ImageRequest(ImageRequest),
    /// A part of a base image.
    ImageReply(ImageReply),
    /// See [`Address`].
    Address(Address),
}

/// A backup asks to join (backup to primary, first message of a connection).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The highest term the backup has seen.
    #[serde(skip)]
    pub term: u64,
    /// Which life of the backup this is: in the header's sequence, which older programs leave 0
    /// and do not look at.
    #[serde(skip)]
    pub life: Life,
    /// Format versions it speaks.
    pub versions: VersionRange,
    /// Name of the virtual machine it stands by for.
    pub vm: String,
    /// Its own name, as the arbiter knows it.
    pub node: String,
    /// The machine it would run.
    pub identity: MachineIdentity,
    /// Where its machine stands, if it has one.
    pub have: Option<Have>,
    /// Whether it could replay from the boot on.
    pub has_boot_images: bool,
}

/// How far a backup's machine and log reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Have {
    /// The place after the last batch it holds.
    pub position: Position,
    /// The chain hash there.
    pub chain: ChainHash,
}

/// The primary accepts a backup (primary to backup).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The place after which the log comes: of the boot, of what the backup has, or, with
    /// [`JoinPlan::Checkpoint`], of the primary at present.
    #[serde(skip)]
    pub from: Position,
    /// The chain hash there.
    #[serde(skip)]
    pub chain: ChainHash,
    /// The format version of everything that follows.
    pub version: u8,
    /// The primary's name, as the arbiter knows it.
    pub node: String,
    /// The primary's term.
    pub term: u64,
    /// What comes next.
    pub plan: JoinPlan,
    /// The machine it runs.
    pub identity: MachineIdentity,
    /// Time between heartbeats, in milliseconds.
    pub heartbeat_interval_ms: u32,
}

/// How a backup comes into step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum JoinPlan {
    /// The whole log since boot follows.
    LogFromBoot,
    /// The log after what the backup has follows.
    Resume,
    /// A checkpoint follows, then the log after it.
    Checkpoint,
}

/// One side will not talk to the other (either direction, last message).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuse {
    /// The term of the side that refuses.
    #[serde(skip)]
    pub term: u64,
    /// Why.
    pub reason: RefuseReason,
    /// What was found, what was expected and what to do, for people.
    pub text: String,
}

/// Why one side will not talk to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u8", from = "u8")]
pub enum RefuseReason {
    /// It is about another virtual machine.
    WrongVm,
    /// The machines or their images differ.
    WrongIdentity,
    /// No format version in common.
    Version,
    /// The other side's term is over.
    StaleTerm,
    /// The refusing side is fenced.
    Fenced,
    /// The refusing side is not a primary.
    NotPrimary,
    /// There is no room for another backup now.
    Busy,
    /// One side's acknowledgements wait for its disk, the other's do not.
    Durability,
    /// A reason of a newer version; the text says which.
    Unrecognized(u8),
}

/// Begins a checkpoint (primary to backup).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointStart {
    /// Where it was taken.
    #[serde(skip)]
    pub position: Position,
    /// The chain hash there.
    #[serde(skip)]
    pub chain: ChainHash,
    /// Events the log holds before it, since boot.
    pub events_before: u64,
    /// Outputs since boot that the primary knew to be released.
    pub released_outputs: u64,
    /// Outputs made before it that are not released, oldest first: nobody could make them
    /// again from the checkpoint.
    #[serde(with = "held_outputs")]
    pub held: Vec<LoggedOutput>,
    /// Everything but pages and blocks.
    pub head: CheckpointHead,
}

/// Outputs as arrays `[ordinal, moment, optional port, bytes]`; without a port it is the console's.
pub(crate) mod held_outputs {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::{LoggedOutput, Moment, Output};

    type Record = (u64, Moment, Option<u8>, Bytes);

    pub(crate) fn serialize<S: Serializer>(held: &[LoggedOutput], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(held.iter().map(|logged| -> Record {
            let (port, bytes) = match &logged.output {
                Output::Frame { port, frame } => (Some(*port), frame.clone()),
                Output::Console(bytes) => (None, bytes.clone()),
            };
            (logged.ordinal, logged.at, port, bytes)
        }))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<LoggedOutput>, D::Error> {
        let records = Vec::<Record>::deserialize(deserializer)?;
        let logged = records.into_iter().map(|(ordinal, at, port, bytes)| {
            let output = match port {
                Some(port) => Output::Frame { port, frame: bytes },
                None => Output::Console(bytes),
            };
            LoggedOutput { ordinal, at, output }
        });
        Ok(logged.collect())
    }
}

/// Ends a checkpoint (primary to backup).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointEnd {
    /// How many [`CheckpointPart`] messages it had.
    pub parts: u64,
}

/// The primary lives (primary to backup).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The primary's term.
    #[serde(skip)]
    pub term: u64,
    /// Batches shipped before the mark: it holds for who has them all.
    #[serde(skip)]
    pub after_sequence: u64,
    /// When it was sent, on the sender's clock.
    pub sent_ns: u64,
    /// A transient promise: no event before this moment but those of the batches shipped.
    pub mark: Option<Moment>,
    /// Outputs since boot that were released.
    pub released_outputs: u64,
    /// Whether the backup is registered with the arbiter and counted on.
    pub required: bool,
}

/// The backup lives (backup to primary).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatReply {
    /// The backup's term.
    #[serde(skip)]
    pub term: u64,
    /// `sent_ns` of the heartbeat it answers.
    pub echo_ns: u64,
    /// How far the backup's machine has come.
    pub replayed: Moment,
    /// Every batch up to this number is held.
    pub held: u64,
}

/// Batches are held (backup to primary).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The backup's term.
    #[serde(skip)]
    pub term: u64,
    /// Every batch with this number or a smaller one is held.
    #[serde(skip)]
    pub sequence: u64,
    /// Whether they are on disk.
    pub durable: bool,
}

/// The backup has all of the checkpoint, or of the log, and is in step (backup to primary).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The backup's term.
    #[serde(skip)]
    pub term: u64,
    /// Every batch with this number or a smaller one is held.
    #[serde(skip)]
    pub sequence: u64,
}

/// The backup's state is not the one the log says (backup to primary).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// The backup's term.
    #[serde(skip)]
    pub term: u64,
    /// Where.
    pub at: Moment,
    /// The digest in the log.
    pub expected: Digest,
    /// The digest of the backup's machine.
    pub found: Digest,
    /// What differs, for people: a digest, an output, a moment.
    pub what: String,
}

/// The sender leaves in an orderly way (either direction, last message).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// The sender's term.
    #[serde(skip)]
    pub term: u64,
    /// Why.
    pub reason: GoodbyeReason,
    /// More about it, for people.
    pub text: String,
}

/// Why a side leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u8", from = "u8")]
pub enum GoodbyeReason {
    /// Its operator stops it.
    Stopping,
    /// The guest powered itself off.
    GuestEnded,
    /// The primary goes on without this backup.
    BackupRemoved,
    /// It lost the arbiter's word.
    Fenced,
    /// The other side broke the protocol.
    ProtocolError,
    /// A reason of a newer version; the text says which.
    Unrecognized(u8),
}

impl Message {
    /// Its bytes: one frame.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`] when it does not fit a frame.
    pub fn encode(&self) -> Result<Bytes, EncodeError> {
        match self {
            Message::Hello(hello) => encode(hello),
            Message::Welcome(welcome) => encode(welcome),
            Message::Refuse(refuse) => encode(refuse),
            Message::CheckpointHead(start) => encode(start),
            Message::CheckpointPart(part) => encode(part),
            Message::CheckpointEnd(end) => encode(end),
            Message::Batch(batch) => Ok(batch.bytes().clone()),
            Message::Heartbeat(heartbeat) => encode(heartbeat),
            Message::HeartbeatReply(reply) => encode(reply),
            Message::Ack(ack) => encode(ack),
            Message::Ready(ready) => encode(ready),
            Message::Divergence(divergence) => encode(divergence),
            Message::Goodbye(goodbye) => encode(goodbye),
            Message::Mode(change) => encode(change),
            Message::IncrementHead(start) => encode(start),
            Message::IncrementPart(part) => encode(part),
            Message::IncrementEnd(end) => encode(end),
            Message::Donor(donor) => encode(donor),
            Message::Offer(offer) => encode(offer),
            Message::Want(want) => encode(want),
            Message::DiskCheck(check) => encode(check),
            Message::DiskHashes(hashes) => encode(hashes),
            Message::ImageRequest(request) => encode(request),
            Message::ImageReply(reply) => encode(reply),
            Message::Address(address) => encode(address),
        }
    }

    /// Reads the message at the start of `bytes`.
    ///
    /// # Errors
    /// [`FrameError::Torn`] when it is not all there, else what is wrong with it.
    pub fn decode(bytes: &Bytes) -> Result<Message, FrameError> {
        Message::from_frame(&Frame::decode(bytes)?)
    }

    /// Reads a message from its frame.
    ///
    /// # Errors
    /// [`FrameError::UnexpectedKind`] for a frame that belongs to files only, or what is wrong with the
    /// body.
    pub fn from_frame(frame: &Frame) -> Result<Message, FrameError> {
        Ok(match frame.header().kind {
            FrameKind::Batch => Message::Batch(SealedBatch::from_frame(frame)?),
            FrameKind::Hello => Message::Hello(decode(frame)?),
            FrameKind::Welcome => Message::Welcome(decode(frame)?),
            FrameKind::Refuse => Message::Refuse(decode(frame)?),
            FrameKind::CheckpointHead => Message::CheckpointHead(decode(frame)?),
            FrameKind::CheckpointPart => Message::CheckpointPart(decode(frame)?),
            FrameKind::CheckpointEnd => Message::CheckpointEnd(decode(frame)?),
            FrameKind::Heartbeat => Message::Heartbeat(decode(frame)?),
            FrameKind::HeartbeatReply => Message::HeartbeatReply(decode(frame)?),
            FrameKind::Ack => Message::Ack(decode(frame)?),
            FrameKind::Ready => Message::Ready(decode(frame)?),
            FrameKind::Divergence => Message::Divergence(decode(frame)?),
            FrameKind::Goodbye => Message::Goodbye(decode(frame)?),
            FrameKind::Mode => Message::Mode(decode(frame)?),
            FrameKind::IncrementHead => Message::IncrementHead(decode(frame)?),
            FrameKind::IncrementPart => Message::IncrementPart(decode(frame)?),
            FrameKind::IncrementEnd => Message::IncrementEnd(decode(frame)?),
            FrameKind::Donor => Message::Donor(decode(frame)?),
            FrameKind::Offer => Message::Offer(decode(frame)?),
            FrameKind::Want => Message::Want(decode(frame)?),
            FrameKind::DiskCheck => Message::DiskCheck(decode(frame)?),
            FrameKind::DiskHashes => Message::DiskHashes(decode(frame)?),
            FrameKind::ImageRequest => Message::ImageRequest(decode(frame)?),
            FrameKind::ImageReply => Message::ImageReply(decode(frame)?),
            FrameKind::Address => Message::Address(decode(frame)?),
            found @ (FrameKind::SegmentHeader | FrameKind::SegmentEnd) => {
                return Err(FrameError::UnexpectedKind { found, expected: "a message of the pair" });
            }
        })
    }

    /// What kind of frame carries it.
    pub fn kind(&self) -> FrameKind {
        match self {
            Message::Hello(_) => FrameKind::Hello,
            Message::Welcome(_) => FrameKind::Welcome,
            Message::Refuse(_) => FrameKind::Refuse,
            Message::CheckpointHead(_) => FrameKind::CheckpointHead,
            Message::CheckpointPart(_) => FrameKind::CheckpointPart,
            Message::CheckpointEnd(_) => FrameKind::CheckpointEnd,
            Message::Batch(_) => FrameKind::Batch,
            Message::Heartbeat(_) => FrameKind::Heartbeat,
            Message::HeartbeatReply(_) => FrameKind::HeartbeatReply,
            Message::Ack(_) => FrameKind::Ack,
            Message::Ready(_) => FrameKind::Ready,
            Message::Divergence(_) => FrameKind::Divergence,
            Message::Goodbye(_) => FrameKind::Goodbye,
            Message::Mode(_) => FrameKind::Mode,
            Message::IncrementHead(_) => FrameKind::IncrementHead,
            Message::IncrementPart(_) => FrameKind::IncrementPart,
            Message::IncrementEnd(_) => FrameKind::IncrementEnd,
            Message::Donor(_) => FrameKind::Donor,
            Message::Offer(_) => FrameKind::Offer,
            Message::Want(_) => FrameKind::Want,
            Message::DiskCheck(_) => FrameKind::DiskCheck,
            Message::DiskHashes(_) => FrameKind::DiskHashes,
            Message::ImageRequest(_) => FrameKind::ImageRequest,
            Message::ImageReply(_) => FrameKind::ImageReply,
            Message::Address(_) => FrameKind::Address,
        }
    }
}

/// A structure that fills one frame: its body by serde, the rest in the header.
pub(crate) trait Record: Serialize + DeserializeOwned {
    const KIND: FrameKind;

    /// What the header carries.
    fn place(&self) -> (Position, ChainHash);

    /// Takes what the header carries.
    fn set_place(&mut self, position: Position, chain: ChainHash);
}

/// The frame that holds a record.
pub(crate) fn encode<R: Record>(record: &R) -> Result<Bytes, EncodeError> {
    let (position, chain) = record.place();
    encode_frame(R::KIND, position, chain, record).map(|(bytes, _)| bytes)
}

/// The record that a frame of its kind holds.
pub(crate) fn decode<R: Record>(frame: &Frame) -> Result<R, FrameError> {
    debug_assert_eq!(frame.header().kind, R::KIND);
    let mut record: R = frame.decode_body()?;
    let header = frame.header();
    record.set_place(header.position, header.previous);
    Ok(record)
}

/// Records whose header carries the term, and some a sequence.
macro_rules! record_in_term {
    ($($type:ident $(, $sequence:ident)?;)*) => {$(
        impl Record for $type {
            const KIND: FrameKind = FrameKind::$type;

            fn place(&self) -> (Position, ChainHash) {
                let position = Position {
                    term: self.term,
                    $(sequence: self.$sequence,)?
                    ..Position::default()
                };
                (position, ChainHash::NONE)
            }

            fn set_place(&mut self, position: Position, _: ChainHash) {
                self.term = position.term;
                $(self.$sequence = position.sequence;)?
            }
        }
    )*};
}

impl Record for Hello {
    const KIND: FrameKind = FrameKind::Hello;

    fn place(&self) -> (Position, ChainHash) {
        let position = Position { term: self.term, sequence: self.life.0, ..Position::default() };
        (position, ChainHash::NONE)
    }

    fn set_place(&mut self, position: Position, _: ChainHash) {
        self.term = position.term;
        self.life = Life(position.sequence);
    }
}

record_in_term! {
    Refuse;
    Heartbeat, after_sequence;
    HeartbeatReply;
    Ack, sequence;
    Ready, sequence;
    Divergence;
    Goodbye;
}

/// Records whose header carries a place in the log.
macro_rules! record_at_position {
    ($($type:ident, $kind:ident, $position:ident;)*) => {$(
        impl Record for $type {
            const KIND: FrameKind = FrameKind::$kind;

            fn place(&self) -> (Position, ChainHash) {
                (self.$position, self.chain)
            }

            fn set_place(&mut self, position: Position, chain: ChainHash) {
                self.$position = position;
                self.chain = chain;
            }
        }
    )*};
}
pub(crate) use record_at_position;

record_at_position! {
    Welcome, Welcome, from;
    CheckpointStart, CheckpointHead, position;
}

/// Records whose header carries nothing.
macro_rules! record_without_place {
    ($($type:ident;)*) => {$(
        impl Record for $type {
            const KIND: FrameKind = FrameKind::$type;

            fn place(&self) -> (Position, ChainHash) {
                Default::default()
            }

            fn set_place(&mut self, _: Position, _: ChainHash) {}
        }
    )*};
}

record_without_place! {
    CheckpointPart;
    CheckpointEnd;
}

impl From<JoinPlan> for u8 {
    fn from(plan: JoinPlan) -> u8 {
        match plan {
            JoinPlan::LogFromBoot => 1,
            JoinPlan::Resume => 2,
            JoinPlan::Checkpoint => 3,
        }
    }
}

impl TryFrom<u8> for JoinPlan {
    type Error = String;

    fn try_from(code: u8) -> Result<Self, String> {
        match code {
            1 => Ok(JoinPlan::LogFromBoot),
            2 => Ok(JoinPlan::Resume),
            3 => Ok(JoinPlan::Checkpoint),
            _ => Err(format!("found join plan {code}, expected 1 to 3")),
        }
    }
}

impl From<RefuseReason> for u8 {
    fn from(reason: RefuseReason) -> u8 {
        match reason {
            RefuseReason::WrongVm => 1,
            RefuseReason::WrongIdentity => 2,
            RefuseReason::Version => 3,
            RefuseReason::StaleTerm => 4,
            RefuseReason::Fenced => 5,
            RefuseReason::NotPrimary => 6,
            RefuseReason::Busy => 7,
            RefuseReason::Durability => 8,
            RefuseReason::Unrecognized(code) => code,
        }
    }
}

impl From<u8> for RefuseReason {
    fn from(code: u8) -> Self {
        match code {
            1 => RefuseReason::WrongVm,
            2 => RefuseReason::WrongIdentity,
            3 => RefuseReason::Version,
            4 => RefuseReason::StaleTerm,
            5 => RefuseReason::Fenced,
            6 => RefuseReason::NotPrimary,
            7 => RefuseReason::Busy,
            8 => RefuseReason::Durability,
            _ => RefuseReason::Unrecognized(code),
        }
    }
}

impl From<GoodbyeReason> for u8 {
    fn from(reason: GoodbyeReason) -> u8 {
        match reason {
            GoodbyeReason::Stopping => 1,
            GoodbyeReason::GuestEnded => 2,
            GoodbyeReason::BackupRemoved => 3,
            GoodbyeReason::Fenced => 4,
            GoodbyeReason::ProtocolError => 5,
            GoodbyeReason::Unrecognized(code) => code,
        }
    }
}

impl From<u8> for GoodbyeReason {
    fn from(code: u8) -> Self {
        match code {
            1 => GoodbyeReason::Stopping,
            2 => GoodbyeReason::GuestEnded,
            3 => GoodbyeReason::BackupRemoved,
            4 => GoodbyeReason::Fenced,
            5 => GoodbyeReason::ProtocolError,
            _ => GoodbyeReason::Unrecognized(code),
        }
    }
}
