//! A batch of the log: what happened up to a moment, and the promise that nothing else did.

use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};

use crate::event::{Delta, DigestRecord, EventIn, EventOut};
use crate::frame::{EncodeError, Frame, FrameError, FrameKind, decode_plain, encode_frame};
use crate::{ChainHash, LoggedDigest, LoggedEvent, Moment, Position};

/// Events, digests and output hashes up to `end`, and the mark that no other event lies
/// before `end`. A batch without events is a pure mark.
///
/// [`Batch::seal`] makes the bytes that go to disk and to the backup.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// Number of the primacy that wrote it.
    pub term: u64,
    /// Its number: the first batch after a boot is 1.
    pub sequence: u64,
    /// Every event before this moment is in this batch or an earlier one.
    pub end: Moment,
    /// In the order of their injection. None is later than `end`.
    pub events: Vec<LoggedEvent>,
    /// In the order in which they were taken. None is later than `end`.
    pub digests: Vec<LoggedDigest>,
    /// Outputs the machine made since boot before the first of `output_hashes`.
    pub first_output: u64,
    /// [`crate::Output::hash`] of each output since the last batch, in order.
    pub output_hashes: Vec<u32>,
    /// Outputs since boot that the primary knew to be released when it sealed this batch.
    pub released_outputs: u64,
}

impl Batch {
    /// The place right after this batch.
    pub fn end_position(&self) -> Position {
        Position { term: self.term, moment: self.end, sequence: self.sequence }
    }

    /// Outputs the machine made since boot up to `end`.
    pub fn outputs_after(&self) -> u64 {
        self.first_output.saturating_add(u64::try_from(self.output_hashes.len()).unwrap_or(u64::MAX))
    }

    /// Whether it holds neither event, digest nor output.
    pub fn is_pure_mark(&self) -> bool {
        self.events.is_empty() && self.digests.is_empty() && self.output_hashes.is_empty()
    }

    /// Ties the batch to the log before it and makes its bytes.
    ///
    /// # Errors
    /// [`EncodeError::OutOfOrder`] when events or digests run backwards in icount or time or
    /// past the end; [`EncodeError::TooLong`] when the body passes
    /// [`crate::MAX_BODY_BYTES`].
    pub fn seal(self, previous: ChainHash) -> Result<SealedBatch, EncodeError> {
        let event_moments = self.events.iter().map(|event| event.at);
        let digest_moments = self.digests.iter().map(|digest| digest.at);
        let body = BodyOut {
            batch: &self,
            event_deltas: deltas("event", event_moments, self.end)?,
            digest_deltas: deltas("digest", digest_moments, self.end)?,
        };
        let (bytes, chain) = encode_frame(FrameKind::Batch, self.end_position(), previous, &body)?;
        Ok(SealedBatch { batch: Arc::new(self), bytes, previous, chain })
    }
}

/// A batch with its bytes and its place in the chain. The bytes are the same on disk and on
/// the wire, and are kept as they were received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedBatch {
    /// Shared like the bytes: each backup, the log on disk and who may ask for it again have it.
    batch: Arc<Batch>,
    bytes: Bytes,
    previous: ChainHash,
    chain: ChainHash,
}

impl SealedBatch {
    /// Reads the batch at the start of `bytes`, of which it shares the memory.
    ///
    /// # Errors
    /// [`FrameError::Torn`] when it is not all there, else what is wrong with it.
    pub fn decode(bytes: &Bytes) -> Result<SealedBatch, FrameError> {
        SealedBatch::from_frame(&Frame::decode(bytes)?)
    }

    /// Reads a batch from its frame.
    ///
    /// # Errors
    /// [`FrameError::UnexpectedKind`], or what is wrong with the body.
    pub fn from_frame(frame: &Frame) -> Result<SealedBatch, FrameError> {
        let header = frame.header();
        if header.kind != FrameKind::Batch {
            return Err(FrameError::UnexpectedKind { found: header.kind, expected: "a batch" });
        }
        let plain = frame.body()?;
        let body: BodyIn = decode_plain(header.kind, &plain)?;
        let chain = frame.chain_after(&plain);
        let batch = body.into_batch(header.position).map_err(|cause| frame.malformed(cause))?;
        let bytes = frame.bytes().clone();
        Ok(SealedBatch { batch: Arc::new(batch), bytes, previous: header.previous, chain })
    }

    /// What it says.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// What it says, without the bytes.
    pub fn into_batch(self) -> Batch {
        Arc::unwrap_or_clone(self.batch)
    }

    /// Its frame as stored and shipped.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Chain hash of the log before it.
    pub fn previous(&self) -> ChainHash {
        self.previous
    }

    /// Chain hash of the log up to and with it.
    pub fn chain(&self) -> ChainHash {
        self.chain
    }

    /// Whether it is the batch that comes right after this place in the log.
    pub fn follows(&self, sequence: u64, chain: ChainHash) -> bool {
        Some(self.batch.sequence) == sequence.checked_add(1) && self.previous == chain
    }
}

impl Deref for SealedBatch {
    type Target = Batch;

    fn deref(&self) -> &Batch {
        &self.batch
    }
}

/// Distances of moments that must be in order and not later than `end`: of the first to the
/// end, of each other to the one before.
fn deltas(
    what: &'static str,
    moments: impl Iterator<Item = Moment>,
    end: Moment,
) -> Result<Vec<Delta>, EncodeError> {
    let mut before: Option<Moment> = None;
    moments
        .map(|at| {
            let to_end = Delta::between(at, end);
            let delta = match before.replace(at) {
                None => to_end,
                Some(earlier) => to_end.and_then(|_| Delta::between(earlier, at)),
            };
            delta.ok_or(EncodeError::OutOfOrder { what, found: at, to: end })
        })
        .collect()
}

/// Moments from their distances; the reverse of [`deltas`].
struct Moments {
    end: Moment,
    last: Option<Moment>,
}

impl Moments {
    fn until(end: Moment) -> Self {
        Moments { end, last: None }
    }

    fn place(&mut self, what: &str, delta: Delta) -> Result<Moment, String> {
        let at = match self.last {
            None => delta.before(self.end),
            Some(last) => delta.after(last),
        };
        let at = at
            .filter(|at| at.icount <= self.end.icount && at.time_ns <= self.end.time_ns)
            .ok_or_else(|| format!("found {what} outside of the batch's end {:?}", self.end))?;
        self.last = Some(at);
        Ok(at)
    }
}

/// The body about to be written: `[events, digests, first output, hashes, unreleased]`.
struct BodyOut<'a> {
    batch: &'a Batch,
    event_deltas: Vec<Delta>,
    digest_deltas: Vec<Delta>,
}

impl Serialize for BodyOut<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let batch = self.batch;
        let events = Sequence(|| {
            let deltas = self.event_deltas.iter().copied();
            deltas.zip(&batch.events).map(|(delta, logged)| EventOut { delta, logged })
        });
        let digests = Sequence(|| {
            let deltas = self.digest_deltas.iter().copied();
            deltas.zip(&batch.digests).map(|(delta, logged)| DigestRecord::new(delta, logged))
        });
        let hashes: Vec<u8> = batch.output_hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
        let unreleased = batch.first_output.wrapping_sub(batch.released_outputs).cast_signed();
        (events, digests, batch.first_output, Bytes::from(hashes), unreleased).serialize(serializer)
    }
}

/// An array from an iterator that knows its length.
struct Sequence<F>(F);

impl<F, I> Serialize for Sequence<F>
where
    F: Fn() -> I,
    I: ExactSizeIterator,
    I::Item: Serialize,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let items = (self.0)();
        let mut sequence = serializer.serialize_seq(Some(items.len()))?;
        for item in items {
            sequence.serialize_element(&item)?;
        }
        sequence.end()
    }
}

/// The body as read.
#[derive(Deserialize)]
struct BodyIn {
    events: Vec<EventIn>,
    digests: Vec<DigestRecord>,
    first_output: u64,
    output_hashes: Bytes,
    unreleased: i64,
}

impl BodyIn {
    fn into_batch(self, position: Position) -> Result<Batch, String> {
        let end = position.moment;
        let mut moments = Moments::until(end);
        let events = self
            .events
            .into_iter()
            .map(|EventIn { delta, event }| {
                let at = moments.place("an event", delta)?;
                Ok(LoggedEvent { at, event })
            })
            .collect::<Result<_, String>>()?;
        let mut moments = Moments::until(end);
        let digests = self
            .digests
            .iter()
            .map(|record| Ok(record.at(moments.place("a digest", record.delta())?)))
            .collect::<Result<_, String>>()?;
        let (hashes, rest) = self.output_hashes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(format!(
                "found {} bytes of output hashes, expected a multiple of 4",
                self.output_hashes.len()
            ));
        }
        Ok(Batch {
            term: position.term,
            sequence: position.sequence,
            end,
            events,
            digests,
            first_output: self.first_output,
            output_hashes: hashes.iter().map(|hash| u32::from_le_bytes(*hash)).collect(),
            released_outputs: self.first_output.wrapping_sub(self.unreleased.cast_unsigned()),
        })
    }
}
