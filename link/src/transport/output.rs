//! The writing end of a connection. Whoever holds its lock writes: the thread that has a message for which
//! somebody waits, or the writer task.
//!
//! A message that is written where it is made leaves without another thread being woken for it, which
//! takes longer than everything else on its way. What is much, or what the kernel does not take at once, is
//! left to the task, so that nobody else waits for the link or encrypts a checkpoint.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll, Wake, Waker, ready};

use bytes::BytesMut;
use tokio::io::{AsyncWrite, WriteHalf};
use tokio::task::yield_now;

use super::queue::{Queue, Taken};
use super::socket::{Counters, LinkStream, count};

/// What is written at once by whoever queued it: a TLS record.
const LITTLE_BYTES: usize = 16 << 10;
/// A write buffer that grew beyond this for one long frame is given back.
const KEPT_BUFFER_BYTES: usize = 512 << 10;

/// See the module.
pub(super) struct Output {
    queue: Arc<Queue>,
    /// Wakes the writer task, for whoever found the kernel's buffer full.
    waker: Waker,
    /// `None` once the connection is over.
    pen: Mutex<Option<Pen>>,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").finish_non_exhaustive()
    }
}

/// The stream, and what is being written to it.
struct Pen {
    writer: WriteHalf<LinkStream>,
    counters: Arc<Counters>,
    buffer: BytesMut,
    /// Bytes of the buffer that are written.
    written: usize,
    /// Frames in the buffer; 0 while nothing is being written.
    frames: usize,
    /// A write failed: the task is to end.
    broken: bool,
}

/// How far the writer task is.
enum Advance {
    /// Something is written; there may be more.
    Wrote,
    /// Nothing is to be written for now.
    Nothing,
    /// The kernel takes no more for now.
    Blocked,
    /// Nothing is to be written any more.
    End,
}

/// Wakes the writer task.
struct WakeWriter(Arc<Queue>);

impl Wake for WakeWriter {
    fn wake(self: Arc<Self>) {
        self.0.wake_writer();
    }
}

impl Output {
    pub(super) fn new(writer: WriteHalf<LinkStream>, queue: Arc<Queue>, counters: Arc<Counters>) -> Output {
        let pen = Pen { writer, counters, buffer: BytesMut::new(), written: 0, frames: 0, broken: false };
        let waker = Waker::from(Arc::new(WakeWriter(Arc::clone(&queue))));
        Output { queue, waker, pen: Mutex::new(Some(pen)) }
    }

    /// Writes what is queued, if it is little and nobody else writes. Whatever is left then is the writer
    /// task's.
    pub(super) fn write_little(&self) {
        let mut pen = match self.pen.try_lock() {
            Ok(pen) => pen,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Who writes may have looked at the queue already.
            Err(TryLockError::WouldBlock) => return self.queue.wake_writer(),
        };
        if let Some(pen) = pen.as_mut()
            && pen.is_idle()
            && let Taken::Frames(frames) = self.queue.take_little(&mut pen.buffer, LITTLE_BYTES)
        {
            pen.frames = frames;
            match pen.poll_write(&mut Context::from_waker(&self.waker)) {
                Poll::Ready(Ok(())) => {}
                // The kernel's buffer is full: the waker says when to go on.
                Poll::Pending => {}
                Poll::Ready(Err(_)) => {
                    pen.broken = true;
                    self.queue.wake_writer();
                }
            }
        }
        drop(pen);
        if !self.queue.is_empty() {
            self.queue.wake_writer();
        }
    }

    /// Writes all that is left to the task, until the queue is closed and empty; then the end of the
    /// stream.
    pub(super) async fn write_all(&self) -> io::Result<()> {
        loop {
            match self.advance()? {
                // Others have their turn first: a checkpoint must not keep the log waiting.
                Advance::Wrote => yield_now().await,
                Advance::Nothing => self.queue.writer_woken().await,
                Advance::Blocked => {
                    // Where tokio wants this task to pause, it wakes it at once: it must pause then.
                    yield_now().await;
                    self.queue.writer_woken().await;
                }
                Advance::End => return poll_fn(|context| self.poll_shutdown(context)).await,
            }
        }
    }

    /// Writes what was begun, or what is next.
    fn advance(&self) -> io::Result<Advance> {
        let mut pen = self.lock();
        let Some(pen) = pen.as_mut() else { return Ok(Advance::End) };
        if pen.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if pen.is_idle() {
            match self.queue.take(&mut pen.buffer) {
                Taken::Frames(frames) => pen.frames = frames,
                Taken::Nothing => return Ok(Advance::Nothing),
                Taken::End => return Ok(Advance::End),
            }
        }
        match pen.poll_write(&mut Context::from_waker(&self.waker)) {
            Poll::Ready(written) => written.map(|()| Advance::Wrote),
            Poll::Pending => Ok(Advance::Blocked),
        }
    }

    fn poll_shutdown(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.lock().as_mut() {
            Some(pen) => Pin::new(&mut pen.writer).poll_shutdown(context),
            None => Poll::Ready(Ok(())),
        }
    }

    /// The connection is over.
    pub(super) fn close(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Pen>> {
        self.pen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pen {
    fn is_idle(&self) -> bool {
        self.frames == 0 && !self.broken
    }

    /// Writes and flushes the buffer.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let rest @ [_, ..] = &self.buffer[self.written..] {
            match ready!(Pin::new(&mut self.writer).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        ready!(Pin::new(&mut self.writer).poll_flush(context))?;
        count(&self.counters.sent_messages, std::mem::take(&mut self.frames));
        self.written = 0;
        self.buffer.clear();
        if self.buffer.capacity() > KEPT_BUFFER_BYTES {
            self.buffer = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}
