//! The tunnel's VM side: Ethernet over UDP to a switch elsewhere.
//!
//! ```text
//!   quiet (a backup) --- set_live(true) ---> live
//!     sends nothing                          hello at once, thrice soon after, then each second
//!     discards what comes                    frames both ways
//!        ^                                     |
//!        +------ set_live(false): leave -------+
//! ```
//!
//! The switch learns the address of a VM from what the live side sends, so a side that is
//! not live says nothing at all.

mod wire;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

pub use wire::{Datagram, DatagramError, HEADER_BYTES, MAX_FRAME_BYTES, Message, PortId, VmId};

use crate::error::PortError;

/// How often a live side says hello.
pub const HELLO_INTERVAL: Duration = Duration::from_secs(1);
/// Delays of the hellos that follow the first: a lost datagram must not cost a second of
/// blackout.
const FIRST_HELLOS: [Duration; 3] =
    [Duration::from_millis(10), Duration::from_millis(40), Duration::from_millis(200)];
/// Asked of the kernel for each direction; it may grant less.
pub(crate) const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Larger than any datagram.
pub(crate) const DATAGRAM_BUFFER_BYTES: usize = 65_536;

/// The sending half and the state that both halves share.
pub(crate) struct Tunnel {
    /// Non-blocking, so that the kernel itself says when its queue is full.
    socket: UdpSocket,
    port: PortId,
    term: AtomicU64,
    live: AtomicBool,
    sequence: AtomicU64,
    /// Highest term by which the switch refused us; 0 if it did not.
    superseded_by: AtomicU64,
    changed: Notify,
}

/// The receiving half, for one task.
pub(crate) struct TunnelReceiver {
    tunnel: Arc<Tunnel>,
    socket: tokio::net::UdpSocket,
    buffer: Vec<u8>,
}

impl Tunnel {
    /// Must be called inside a tokio runtime.
    pub(crate) async fn open(
        host: &str,
        udp_port: u16,
        port: PortId,
        term: u64,
    ) -> Result<(Arc<Tunnel>, TunnelReceiver), PortError> {
        let address = resolve(host, udp_port).await?;
        let failed = |doing| move |source| PortError::Tunnel { address, doing, source };
        let socket = connect(address).map_err(failed("opening a socket"))?;
        let receiving = socket
            .try_clone()
            .and_then(tokio::net::UdpSocket::from_std)
            .map_err(failed("registering the socket for events"))?;
        let tunnel = Arc::new(Tunnel {
            socket,
            port,
            term: AtomicU64::new(term),
            live: AtomicBool::new(false),
            sequence: AtomicU64::new(0),
            superseded_by: AtomicU64::new(0),
            changed: Notify::new(),
        });
        let receiver = TunnelReceiver {
            tunnel: Arc::clone(&tunnel),
            socket: receiving,
            buffer: vec![0; DATAGRAM_BUFFER_BYTES],
        };
        Ok((tunnel, receiver))
    }

    /// Sends without waiting.
    pub(crate) fn send(&self, frame: Bytes) -> io::Result<()> {
        if !(wire::MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&frame.len()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.say(Message::Frame(frame))
    }

    pub(crate) fn set_live(&self, live: bool) {
        if self.live.swap(live, Ordering::AcqRel) == live {
            return;
        }
        self.say_unless_lost(if live { Message::Hello } else { Message::Leave });
        self.changed.notify_one();
    }

    pub(crate) fn set_term(&self, term: u64) {
        let before = self.term.swap(term, Ordering::AcqRel);
        if before != term && self.live.load(Ordering::Acquire) {
            self.say_unless_lost(Message::Hello);
            self.changed.notify_one();
        }
    }

    /// The higher term by which the switch refused this side, if it did.
    pub(crate) fn superseded_by(&self) -> Option<u64> {
        let term = self.superseded_by.load(Ordering::Acquire);
        (term > self.term.load(Ordering::Acquire)).then_some(term)
    }

    /// Keeps the switch informed, for as long as it is polled.
    pub(crate) async fn keep_hello(&self) {
        loop {
            if !self.live.load(Ordering::Acquire) {
                self.changed.notified().await;
            }
            let pauses = FIRST_HELLOS.into_iter().chain(std::iter::repeat(HELLO_INTERVAL));
            for pause in pauses {
                let changed = tokio::time::timeout(pause, self.changed.notified()).await;
                if changed.is_ok() || !self.live.load(Ordering::Acquire) {
                    break;
                }
                self.say_unless_lost(Message::Hello);
            }
        }
    }

    fn say(&self, message: Message) -> io::Result<()> {
        let datagram = Datagram {
            port: self.port,
            term: self.term.load(Ordering::Acquire),
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
            message,
        };
        let mut bytes = Vec::new();
        datagram.encode_into(&mut bytes);
        self.socket.send(&bytes).map(drop)
    }

    /// For messages that are repeated anyway, or whose loss a timeout at the switch covers.
    fn say_unless_lost(&self, message: Message) {
        if let Err(error) = self.say(message) {
            tracing::debug!(port = %self.port, %error, "tunnel message lost");
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.set_live(false);
    }
}

impl TunnelReceiver {
    /// The next frame from the switch, live or not.
    pub(crate) async fn receive(&mut self) -> io::Result<Bytes> {
        loop {
            let bytes = self.socket.recv(&mut self.buffer).await?;
            match Datagram::decode(&self.buffer[..bytes]) {
                Ok(datagram) if datagram.port != self.tunnel.port => {
                    tracing::debug!(found = %datagram.port, expected = %self.tunnel.port, "datagram for another port");
                }
                Ok(datagram) => {
                    if let Some(frame) = self.accept(datagram) {
                        return Ok(frame);
                    }
                }
                Err(error) => tracing::debug!(%error, "datagram from the switch refused"),
            }
        }
    }

    fn accept(&self, datagram: Datagram) -> Option<Bytes> {
        if datagram.term > self.tunnel.term.load(Ordering::Acquire) {
            let before = self.tunnel.superseded_by.fetch_max(datagram.term, Ordering::AcqRel);
            if before < datagram.term {
                tracing::warn!(port = %datagram.port, term = datagram.term, "the switch has seen a higher term");
            }
            return None;
        }
        match datagram.message {
            Message::Frame(frame) => Some(frame),
            _ => None,
        }
    }
}

async fn resolve(host: &str, udp_port: u16) -> Result<SocketAddr, PortError> {
    let refuse = |reason| PortError::Resolve { host: host.to_owned(), reason };
    tokio::net::lookup_host((host, udp_port))
        .await
        .map_err(|error| refuse(error.to_string()))?
        .next()
        .ok_or_else(|| refuse("the answer is empty".to_owned()))
}

fn connect(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = bind(any)?;
    socket.connect(address)?;
    Ok(socket)
}

/// A non-blocking UDP socket with room for bursts.
pub(crate) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    // Less room costs frames under load, as on real hardware: not a reason to stop.
    for granted in
        [socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES), socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)]
    {
        if let Err(error) = granted {
            tracing::debug!(%error, "the kernel keeps its default socket buffer");
        }
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}
