//! Frames and messages from a stream of bytes that arrives in pieces of any size.

use bytes::{Bytes, BytesMut};

use crate::frame::{Frame, FrameError, FrameHeader, HEADER_BYTES, MAX_BODY_BYTES};
use crate::message::Message;

/// Cuts a stream of bytes into frames. Pure: it neither reads nor waits.
///
/// Order of calls: [`push`](FrameDecoder::push) what arrived, then
/// [`poll`](FrameDecoder::poll) until it returns `Ok(None)`. After an error the stream has
/// no more frames, since nothing says where the next would begin: poll gives the same error
/// again.
///
/// Holds at most one incomplete frame and what was pushed since the last poll to its end.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: BytesMut,
    max_body_bytes: usize,
    failed: Option<FrameError>,
}

impl Default for FrameDecoder {
    fn default() -> Self {
        FrameDecoder::new(MAX_BODY_BYTES)
    }
}

impl FrameDecoder {
    /// A decoder that refuses bodies of more than `max_body_bytes`, before they arrive.
    pub fn new(max_body_bytes: usize) -> Self {
        FrameDecoder { buffer: BytesMut::new(), max_body_bytes, failed: None }
    }

    /// Adds bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next frame, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// What is wrong with the stream; never [`FrameError::Torn`].
    pub fn poll(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let polled = self.cut();
        if let Err(error) = &polled {
            self.failed = Some(error.clone());
            self.buffer = BytesMut::new();
        }
        polled
    }

    /// Whether [`poll`](FrameDecoder::poll) gives a frame, or an error, without more bytes.
    pub fn is_ready(&self) -> bool {
        match FrameHeader::decode(&self.buffer) {
            Ok(header) => {
                header.body_bytes > self.max_body_bytes || self.buffer.len() >= header.frame_bytes()
            }
            Err(error) => self.failed.is_some() || !error.is_torn(),
        }
    }

    /// Bytes that wait for the rest of their frame. A stream that ends with some was cut.
    pub fn pending_bytes(&self) -> usize {
        self.buffer.len()
    }

    fn cut(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.buffer.is_empty() {
            return Ok(None);
        }
        let header = match FrameHeader::decode(&self.buffer) {
            Ok(header) => header,
            Err(error) if error.is_torn() => return Ok(None),
            Err(error) => return Err(error),
        };
        if header.body_bytes > self.max_body_bytes {
            return Err(FrameError::TooLong {
                kind: header.kind,
                found: header.body_bytes,
                limit: self.max_body_bytes,
            });
        }
        let frame_bytes = header.frame_bytes();
        if self.buffer.len() < frame_bytes {
            self.buffer.reserve(frame_bytes - self.buffer.len());
            return Ok(None);
        }
        let bytes: Bytes = self.buffer.split_to(frame_bytes).freeze();
        debug_assert!(bytes.len() >= HEADER_BYTES);
        Frame::decode(&bytes).map(Some)
    }
}

/// Cuts a stream of bytes into messages; see [`FrameDecoder`] for the order of calls.
#[derive(Debug, Default)]
pub struct MessageDecoder {
    frames: FrameDecoder,
}

impl MessageDecoder {
    /// A decoder that refuses bodies of more than `max_body_bytes`.
    pub fn new(max_body_bytes: usize) -> Self {
        MessageDecoder { frames: FrameDecoder::new(max_body_bytes) }
    }

    /// Adds bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.frames.push(bytes);
    }

    /// The next message, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// What is wrong with the stream. It has no more messages then.
    pub fn poll(&mut self) -> Result<Option<Message>, FrameError> {
        let Some(frame) = self.frames.poll()? else {
            return Ok(None);
        };
        match Message::from_frame(&frame) {
            Ok(message) => Ok(Some(message)),
            Err(error) => {
                self.frames.failed = Some(error.clone());
                self.frames.buffer = BytesMut::new();
                Err(error)
            }
        }
    }

    /// Whether [`poll`](MessageDecoder::poll) gives a message, or an error, without more bytes.
    pub fn is_ready(&self) -> bool {
        self.frames.is_ready()
    }

    /// Bytes that wait for the rest of their message.
    pub fn pending_bytes(&self) -> usize {
        self.frames.pending_bytes()
    }
}
