//! What waits to be written to a connection: two lanes, each bounded in bytes.

use bytes::{Bytes, BytesMut};
use log_format::{EncodeError, FrameKind, Message};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Most bytes that go into one write.
const WRITE_BYTES: usize = 256 << 10;

/// Why a message was not queued.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Its lane is full: the link is slower than the sender.
    #[error("the link is too slow: {queued_bytes} bytes wait to be sent")]
    Full {
        /// Bytes that wait in the lane.
        queued_bytes: usize,
    },
    /// The connection is closed or broken; its receiving half tells why.
    #[error("the connection is closed")]
    Closed,
    /// The message does not fit a frame.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// Which lane a message takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    /// All that is small and urgent.
    Log,
    /// A checkpoint: large, and never urgent.
    Bulk,
}

impl Lane {
    /// The messages of a checkpoint keep their order among themselves, so that they all go
    /// by the bulk lane.
    fn of(kind: FrameKind) -> Self {
        match kind {
            FrameKind::CheckpointHead
            | FrameKind::CheckpointPart
            | FrameKind::CheckpointEnd
            | FrameKind::Offer => Lane::Bulk,
            _ => Lane::Log,
        }
    }
}

/// Frames of one lane, oldest first.
#[derive(Debug)]
struct Frames {
    frames: VecDeque<Bytes>,
    bytes: usize,
    limit_bytes: usize,
}

impl Frames {
    fn new(limit_bytes: usize) -> Self {
        Frames { frames: VecDeque::new(), bytes: 0, limit_bytes }
    }

    /// An empty lane takes any frame, so that one longer than the limit can pass.
    fn has_room(&self, frame_bytes: usize) -> bool {
        self.bytes == 0 || self.bytes + frame_bytes <= self.limit_bytes
    }

    fn push(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    fn pop(&mut self) -> Option<Bytes> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }
}

#[derive(Debug)]
struct State {
    log: Frames,
    bulk: Frames,
    closed: bool,
}

/// What there was to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// So many frames.
    Frames(usize),
    /// Nothing for now.
    Nothing,
    /// Nothing, and nothing will come: the queue was closed.
    End,
}

/// The queue between the senders of a connection and those who write it.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Wakes the writer: there are frames, or the queue was closed.
    filled: Notify,
    /// Wakes senders: there is room in the bulk lane, or the queue was closed.
    drained: Notify,
}

impl Queue {
    pub(super) fn new(log_limit_bytes: usize, bulk_limit_bytes: usize) -> Self {
        Queue {
            state: Mutex::new(State {
                log: Frames::new(log_limit_bytes),
                bulk: Frames::new(bulk_limit_bytes),
                closed: false,
            }),
            filled: Notify::new(),
            drained: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message. The writer learns of it by [`Queue::wake_writer`] alone.
    pub(super) fn push(&self, message: &Message) -> Result<(), SendError> {
        self.push_frame(Lane::of(message.kind()), message.encode()?)
    }

    /// The same, waiting until the lane has room.
    pub(super) async fn push_when_room(&self, message: &Message) -> Result<(), SendError> {
        let (lane, frame) = (Lane::of(message.kind()), message.encode()?);
        loop {
            // Registered before the attempt: room made between the two is not missed.
            let drained = self.drained.notified();
            tokio::pin!(drained);
            drained.as_mut().enable();
            match self.push_frame(lane, frame.clone()) {
                Err(SendError::Full { .. }) => drained.await,
                other => {
                    self.wake_writer();
                    return other;
                }
            }
        }
    }

    fn push_frame(&self, lane: Lane, frame: Bytes) -> Result<(), SendError> {
        let mut state = self.lock();
        if state.closed {
            return Err(SendError::Closed);
        }
        let frames = match lane {
            Lane::Log => &mut state.log,
            Lane::Bulk => &mut state.bulk,
        };
        if !frames.has_room(frame.len()) {
            let queued_bytes = frames.bytes;
            return Err(SendError::Full { queued_bytes });
        }
        frames.push(frame);
        Ok(())
    }

    /// Wakes the writer, or has it look again before it waits.
    pub(super) fn wake_writer(&self) {
        self.filled.notify_one();
    }

    /// Waits for [`Queue::wake_writer`].
    pub(super) async fn writer_woken(&self) {
        self.filled.notified().await;
    }

    /// Nothing more is queued; what is queued will still be taken.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake_writer();
        self.drained.notify_waiters();
    }

    /// Nothing more is queued, and what is queued is dropped.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        while state.log.pop().or_else(|| state.bulk.pop()).is_some() {}
        drop(state);
        self.close();
    }

    /// Bytes that wait: of the log lane, of the bulk lane.
    pub(super) fn queued_bytes(&self) -> (usize, usize) {
        let state = self.lock();
        (state.log.bytes, state.bulk.bytes)
    }

    /// Moves what to write next into `buffer`.
    pub(super) fn take(&self, buffer: &mut BytesMut) -> Taken {
        let mut state = self.lock();
        let frames = take_now(&mut state, buffer);
        match frames {
            0 if state.closed => Taken::End,
            0 => Taken::Nothing,
            frames => {
                drop(state);
                self.drained.notify_waiters();
                Taken::Frames(frames)
            }
        }
    }

    /// The same, if that is all that waits and no more than `most_bytes` of the log lane.
    pub(super) fn take_little(&self, buffer: &mut BytesMut, most_bytes: usize) -> Taken {
        let mut state = self.lock();
        if state.log.bytes > most_bytes || state.bulk.bytes > 0 {
            return Taken::Nothing;
        }
        match take_now(&mut state, buffer) {
            0 => Taken::Nothing,
            frames => Taken::Frames(frames),
        }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.queued_bytes() == (0, 0)
    }
}

/// All of the log lane that fits a write; if there is none, one frame of the bulk lane.
fn take_now(state: &mut State, buffer: &mut BytesMut) -> usize {
    let mut frames = 0;
    while buffer.len() < WRITE_BYTES {
        let Some(frame) = state.log.pop() else { break };
        buffer.extend_from_slice(&frame);
        frames += 1;
    }
    if frames == 0
        && let Some(frame) = state.bulk.pop()
    {
        buffer.extend_from_slice(&frame);
        frames = 1;
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use log_format::{Ack, CheckpointEnd, CheckpointPart, DiskBlock};

    fn ack(sequence: u64) -> Message {
        Message::Ack(Ack { term: 1, sequence, durable: false })
    }

    /// A part that does not compress to less than a page.
    fn part(seed: u64) -> Message {
        let mut state = seed;
        let data: Vec<u8> = (0..4096)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        Message::CheckpointPart(CheckpointPart {
            pages: Vec::new(),
            blocks: vec![DiskBlock { disk: 0, index: seed, data: data.into() }],
        })
    }

    fn taken(queue: &Queue) -> Vec<Message> {
        let mut buffer = BytesMut::new();
        let Taken::Frames(frames) = queue.take(&mut buffer) else { panic!("nothing waits") };
        let mut decoder = log_format::MessageDecoder::default();
        decoder.push(&buffer);
        let messages: Vec<_> = std::iter::from_fn(|| decoder.poll().unwrap()).collect();
        assert_eq!(messages.len(), frames);
        messages
    }

    #[test]
    fn the_log_overtakes_a_checkpoint_and_goes_out_together() {
        let queue = Queue::new(1 << 20, 1 << 20);
        for message in [part(1), part(2), ack(1), ack(2)] {
            queue.push(&message).unwrap();
        }
        let end = Message::CheckpointEnd(CheckpointEnd { parts: 2 });
        queue.push(&end).unwrap();
        assert_eq!(taken(&queue), [ack(1), ack(2)]);
        assert_eq!(taken(&queue), [part(1)]);
        queue.push(&ack(3)).unwrap();
        assert_eq!(taken(&queue), [ack(3)]);
        assert_eq!(taken(&queue), [part(2)]);
        assert_eq!(taken(&queue), [end]);
        assert_eq!(queue.queued_bytes(), (0, 0));
    }

    #[tokio::test]
    async fn a_full_lane_says_so_and_the_other_still_takes() {
        let queue = Queue::new(1 << 20, 10_000);
        queue.push(&part(1)).unwrap();
        queue.push(&part(2)).unwrap();
        assert!(matches!(queue.push(&part(3)), Err(SendError::Full { queued_bytes }) if queued_bytes > 8192));
        queue.push(&ack(1)).unwrap();
        let third = part(3);
        let waiting = queue.push_when_room(&third);
        tokio::pin!(waiting);
        assert!(poll_once(waiting.as_mut()).await.is_none());
        taken(&queue);
        assert_eq!(taken(&queue), [part(1)]);
        waiting.await.unwrap();
        assert_eq!(taken(&queue), [part(2)]);
        assert_eq!(taken(&queue), [part(3)]);
    }

    /// Polls once.
    async fn poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
            std::task::Poll::Pending => std::task::Poll::Ready(None),
        })
        .await
    }

    #[test]
    fn a_frame_longer_than_the_limit_passes_alone() {
        let queue = Queue::new(1 << 20, 100);
        queue.push(&part(1)).unwrap();
        assert!(matches!(queue.push(&part(2)), Err(SendError::Full { .. })));
        assert_eq!(taken(&queue), [part(1)]);
    }

    #[tokio::test]
    async fn a_closed_queue_gives_what_it_holds_and_takes_no_more() {
        let queue = Queue::new(1 << 20, 1 << 20);
        queue.push(&ack(1)).unwrap();
        queue.close();
        assert!(matches!(queue.push(&ack(2)), Err(SendError::Closed)));
        assert!(matches!(queue.push_when_room(&ack(2)).await, Err(SendError::Closed)));
        assert_eq!(taken(&queue), [ack(1)]);
        assert_eq!(queue.take(&mut BytesMut::new()), Taken::End);
    }

    #[test]
    fn an_abandoned_queue_gives_nothing() {
        let queue = Queue::new(1 << 20, 1 << 20);
        queue.push(&ack(1)).unwrap();
        queue.push(&part(1)).unwrap();
        queue.abandon();
        assert_eq!(queue.take(&mut BytesMut::new()), Taken::End);
    }

    #[test]
    fn little_is_taken_of_the_log_alone() {
        let queue = Queue::new(1 << 20, 1 << 20);
        let mut buffer = BytesMut::new();
        assert_eq!(queue.take_little(&mut buffer, 100), Taken::Nothing);
        queue.push(&ack(1)).unwrap();
        queue.push(&ack(2)).unwrap();
        let (log_bytes, _) = queue.queued_bytes();
        assert_eq!(queue.take_little(&mut buffer, log_bytes - 1), Taken::Nothing);
        assert_eq!(queue.take_little(&mut buffer, log_bytes), Taken::Frames(2));
        assert!(queue.is_empty());
        queue.push(&ack(3)).unwrap();
        queue.push(&part(1)).unwrap();
        assert_eq!(queue.take_little(&mut buffer, 1 << 20), Taken::Nothing);
    }
}
