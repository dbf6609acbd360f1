//! A connection: its halves, its end.

use super::output::Output;
use super::queue::{Queue, SendError};
use super::socket::{Counters, LinkStream, count};
use super::{TransportConfig, TransportError};
use crate::tls::TlsFailure;
use bytes::BytesMut;
use log_format::{FrameError, Message, MessageDecoder};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt, ReadHalf};
use tokio::sync::watch;

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;
/// First bytes of a TLS record: an alert, a handshake; then the major version.
const TLS_RECORDS: [[u8; 2]; 2] = [[0x15, 0x03], [0x16, 0x03]];

/// A connection with the other host, split into the half that sends and the half that
/// receives. Belongs to the tokio runtime it was made in.
#[derive(Debug)]
pub struct Connection {
    /// Who is there.
    pub peer: Peer,
    /// Sends. Clones share the connection.
    pub sender: Sender,
    /// Receives.
    pub receiver: Receiver,
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The node that its certificate names; `None` without TLS, where nothing vouches for
    /// the name in its Hello.
    pub node: Option<String>,
}

/// What went through a connection so far. Bytes are those on the wire, TLS included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CounterSnapshot {
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Messages sent.
    pub sent_messages: u64,
    /// Messages received.
    pub received_messages: u64,
}

impl Connection {
    pub(super) fn start(
        stream: LinkStream,
        address: SocketAddr,
        node: Option<String>,
        counters: Arc<Counters>,
        config: TransportConfig,
    ) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let (log_bytes, bulk_bytes) = (config.max_queued_log_bytes, config.max_queued_bulk_bytes);
        let (state, _) = watch::channel(State::Open);
        let queue = Arc::new(Queue::new(log_bytes, bulk_bytes));
        let output = Output::new(writer, Arc::clone(&queue), Arc::clone(&counters));
        let shared = Arc::new(Shared { queue, output, state, counters });
        tokio::spawn(write(Arc::clone(&shared)));
        Connection {
            peer: Peer { address, node },
            sender: Sender { handle: Arc::new(SenderHandle { peer: address, shared: Arc::clone(&shared) }) },
            receiver: Receiver {
                reader,
                decoder: MessageDecoder::new(config.max_body_bytes),
                buffer: BytesMut::with_capacity(READ_BYTES),
                peer: address,
                state: shared.state.subscribe(),
                shared,
            },
        }
    }
}

#[derive(Debug)]
struct Shared {
    queue: Arc<Queue>,
    output: Output,
    state: watch::Sender<State>,
    counters: Arc<Counters>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The writer writes.
    Open,
    /// The writer has ended: all was sent, or the connection is broken.
    Finished,
    /// This side gave the connection up.
    Aborted,
}

/// The sending half. Clones share the connection; when the last is dropped, what is queued
/// is sent and the connection is closed in order.
#[derive(Debug, Clone)]
pub struct Sender {
    handle: Arc<SenderHandle>,
}

/// Closes the connection when the last clone of a sender goes.
#[derive(Debug)]
struct SenderHandle {
    peer: SocketAddr,
    shared: Arc<Shared>,
}

impl Drop for SenderHandle {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

impl Sender {
    /// Queues a message, from any thread, without waiting.
    ///
    /// # Errors
    /// [`SendError::Full`] when the link is too slow, [`SendError::Closed`] after the end.
    pub fn try_send(&self, message: &Message) -> Result<(), SendError> {
        self.queue(message)?;
        self.handle.shared.queue.wake_writer();
        Ok(())
    }

    /// The same, but the message waits for [`Sender::write_out`], which is to follow soon.
    ///
    /// # Errors
    /// As those of [`Sender::try_send`].
    pub fn queue(&self, message: &Message) -> Result<(), SendError> {
        self.handle.shared.queue.push(message)
    }

    /// Writes what is queued here and now, on any thread, if it is little, and leaves the rest to the
    /// writer task. Never waits.
    pub fn write_out(&self) {
        self.handle.shared.output.write_little();
    }

    /// Queues a message as soon as its lane has room.
    ///
    /// # Errors
    /// [`SendError::Closed`] after the end.
    pub async fn send(&self, message: &Message) -> Result<(), SendError> {
        self.handle.shared.queue.push_when_room(message).await
    }

    /// The other side's address.
    pub fn peer(&self) -> SocketAddr {
        self.handle.peer
    }

    /// Bytes that wait to be written: of the log lane, of the bulk lane.
    pub fn queued_bytes(&self) -> (usize, usize) {
        self.handle.shared.queue.queued_bytes()
    }

    /// What went through the connection so far, both ways.
    pub fn counters(&self) -> CounterSnapshot {
        let counters = &self.handle.shared.counters;
        CounterSnapshot {
            sent_bytes: counters.sent_bytes.load(Ordering::Relaxed),
            received_bytes: counters.received_bytes.load(Ordering::Relaxed),
            sent_messages: counters.sent_messages.load(Ordering::Relaxed),
            received_messages: counters.received_messages.load(Ordering::Relaxed),
        }
    }

    /// Closes in order: sends what is queued, then the end of the stream; comes back when
    /// that is done or the connection is broken. The receiving half goes on until the peer
    /// closes too.
    pub async fn shutdown(&self) {
        self.handle.shared.queue.close();
        let mut state = self.handle.shared.state.subscribe();
        // An error means that the connection is gone, which is what is waited for.
        let _ = state.wait_for(|state| *state != State::Open).await;
    }

    /// Gives the connection up at once: what is queued is dropped, the receiving half ends
    /// with [`TransportError::Aborted`].
    pub fn abort(&self) {
        // In this order: the writer must not take the emptied queue for an orderly end.
        self.handle.shared.state.send_replace(State::Aborted);
        self.handle.shared.queue.abandon();
    }
}

/// The writer task: writes what is left to it.
async fn write(shared: Arc<Shared>) {
    let mut aborted = shared.state.subscribe();
    tokio::select! {
        biased;
        _ = aborted.wait_for(|state| *state == State::Aborted) => {}
        // What is wrong with the connection is told by its receiving half.
        _ = shared.output.write_all() => {}
    }
    shared.output.close();
    shared.queue.abandon();
    shared.state.send_if_modified(|state| {
        let was_open = *state == State::Open;
        if was_open {
            *state = State::Finished;
        }
        was_open
    });
}

/// The receiving half.
pub struct Receiver {
    reader: ReadHalf<LinkStream>,
    decoder: MessageDecoder,
    buffer: BytesMut,
    peer: SocketAddr,
    state: watch::Receiver<State>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("peer", &self.peer).finish()
    }
}

impl Receiver {
    /// The next message; `None` when the peer closed in order. Safe to cancel. Reading no
    /// further is what slows the peer down.
    ///
    /// # Errors
    /// [`TransportError`]; the connection has no more messages then.
    pub async fn receive(&mut self) -> Result<Option<Message>, TransportError> {
        let peer = self.peer;
        loop {
            match self.decoder.poll() {
                Ok(Some(message)) => {
                    count(&self.shared.counters.received_messages, 1);
                    return Ok(Some(message));
                }
                Ok(None) => {}
                Err(source) => return Err(self.explain(source)),
            }
            self.buffer.clear();
            self.buffer.reserve(READ_BYTES);
            let read = tokio::select! {
                biased;
                read = self.reader.read_buf(&mut self.buffer) => read,
                _ = self.state.wait_for(|state| *state == State::Aborted) => {
                    return Err(TransportError::Aborted { peer });
                }
            };
            match read {
                Ok(0) => return self.end(),
                Ok(_) => self.decoder.push(&self.buffer),
                Err(source) => {
                    return Err(match TlsFailure::from_io(&source) {
                        Some(failure) => TransportError::Tls { peer, failure },
                        None => TransportError::Broken { peer, source },
                    });
                }
            }
        }
    }

    /// Whether the next message has come already, so that [`Receiver::receive`] does not wait for it.
    pub fn has_next(&self) -> bool {
        self.decoder.is_ready()
    }

    /// The stream ended: in order only between two messages.
    fn end(&self) -> Result<Option<Message>, TransportError> {
        match self.decoder.pending_bytes() {
            0 => Ok(None),
            found => Err(TransportError::Cut { peer: self.peer, found }),
        }
    }

    /// Bytes that are no frame, but a TLS record, have a cause worth telling.
    fn explain(&self, source: FrameError) -> TransportError {
        let peer = self.peer;
        match source {
            FrameError::Foreign { found } if TLS_RECORDS.contains(&found) => {
                TransportError::Tls { peer, failure: TlsFailure::SpeaksTls }
            }
            source => TransportError::Frame { peer, source },
        }
    }
}
