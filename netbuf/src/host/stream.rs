//! Connections and listeners of a host, as tokio streams.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddrV4;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{RecvError, State};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Shared;

/// A TCP connection of a host.
///
/// As with the kernel's: writing is buffered and sent at once, `shutdown` ends one's own
/// direction only, dropping it ends the connection in order unless there is unread data, and
/// a reset is an error of the next read and write.
pub struct HostStream {
    shared: Arc<Shared>,
    handle: SocketHandle,
    local: SocketAddrV4,
    remote: SocketAddrV4,
}

impl HostStream {
    pub(super) fn new(
        shared: Arc<Shared>,
        handle: SocketHandle,
        local: SocketAddrV4,
        remote: SocketAddrV4,
    ) -> HostStream {
        HostStream { shared, handle, local, remote }
    }

    pub(super) fn handle(&self) -> SocketHandle {
        self.handle
    }

    /// This end.
    pub fn local_address(&self) -> SocketAddrV4 {
        self.local
    }

    /// The other end.
    pub fn remote_address(&self) -> SocketAddrV4 {
        self.remote
    }

    /// When the last segment of this connection arrived, data or not.
    pub fn last_arrival(&self) -> Option<Instant> {
        self.shared.stack().last_arrival(self.local.port(), self.remote)
    }

    /// Whether the connection stands: established, or half-closed with data to come.
    pub fn is_open(&self) -> bool {
        let mut stack = self.shared.stack();
        let socket = stack.socket(self.handle);
        socket.may_send() || socket.may_recv()
    }

    /// Breaks the connection: the other end gets a reset.
    pub fn abort(&self) {
        self.shared.stack().socket(self.handle).abort();
        self.shared.flush();
    }
}

impl Drop for HostStream {
    fn drop(&mut self) {
        self.shared.abandon(&[self.handle]);
    }
}

impl AsyncRead for HostStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut stack = self.shared.stack();
        let socket = stack.socket(self.handle);
        // A window that was closed to the sender has to be announced when it opens.
        let was_narrow = socket.recv_queue() > socket.recv_capacity() / 2;
        match socket.recv_slice(buffer.initialize_unfilled()) {
            Ok(0) if buffer.remaining() > 0 => {
                socket.register_recv_waker(context.waker());
                return Poll::Pending;
            }
            Ok(bytes) => buffer.advance(bytes),
            Err(RecvError::Finished) => {}
            Err(RecvError::InvalidState) => {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
        }
        drop(stack);
        if was_narrow {
            self.shared.flush();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HostStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut stack = self.shared.stack();
        let socket = stack.socket(self.handle);
        match socket.send_slice(data) {
            Ok(0) if !data.is_empty() => {
                socket.register_send_waker(context.waker());
                Poll::Pending
            }
            Ok(bytes) => {
                drop(stack);
                self.shared.flush();
                Poll::Ready(Ok(bytes))
            }
            // Closed by us, or reset by the other end.
            Err(_) if socket.is_open() => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Err(_) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.stack().socket(self.handle).close();
        self.shared.flush();
        Poll::Ready(Ok(()))
    }
}

/// A listening port of a host.
pub struct HostListener {
    shared: Arc<Shared>,
    port: u16,
    /// Sockets that listen or were connected to, in the order of listening.
    waiting: VecDeque<SocketHandle>,
}

impl HostListener {
    pub(super) fn new(shared: Arc<Shared>, port: u16, backlog: usize) -> io::Result<HostListener> {
        let mut stack = shared.stack();
        if stack.listens_on(port) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let waiting = (0..backlog.max(1)).map(|_| stack.listen(port)).collect::<io::Result<_>>()?;
        drop(stack);
        Ok(HostListener { shared, port, waiting })
    }

    /// The next connection.
    ///
    /// # Errors
    /// None in practice: the port was listened on before.
    pub async fn accept(&mut self) -> io::Result<HostStream> {
        std::future::poll_fn(|context| self.poll_accept(context)).await
    }

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<HostStream>> {
        let mut stack = self.shared.stack();
        for index in 0..self.waiting.len() {
            let handle = self.waiting[index];
            let socket = stack.socket(handle);
            match socket.state() {
                State::Listen | State::SynReceived => {
                    socket.register_send_waker(context.waker());
                    continue;
                }
                _ => {}
            }
            // Connected, or gone again: either way its place in the backlog is free.
            let ends = socket.local_endpoint().zip(socket.remote_endpoint());
            self.waiting[index] = stack.listen(self.port)?;
            let Some((local, remote)) = ends else {
                drop(stack);
                self.shared.abandon(&[handle]);
                return self.poll_accept(context);
            };
            let smoltcp::wire::IpAddress::Ipv4(local_address) = local.addr;
            let smoltcp::wire::IpAddress::Ipv4(remote_address) = remote.addr;
            let local = SocketAddrV4::new(local_address, local.port);
            let remote = SocketAddrV4::new(remote_address, remote.port);
            stack.connected(handle, local.port(), remote);
            let shared = Arc::clone(&self.shared);
            return Poll::Ready(Ok(HostStream::new(shared, handle, local, remote)));
        }
        Poll::Pending
    }
}

impl Drop for HostListener {
    fn drop(&mut self) {
        let handles: Vec<SocketHandle> = self.waiting.drain(..).collect();
        self.shared.abandon(&handles);
    }
}
