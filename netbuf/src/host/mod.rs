//! A TCP/IP host on a switch: its own Ethernet and IPv4 address, and connections as tokio
//! streams. The gateway of a user network is one; so are the clients of a drill.
//!
//! The protocol is smoltcp's. `stack` is the stack and what touches it, `stream` what
//! its users hold. A segment leaves in the call that writes; one task per host feeds it
//! what arrives and keeps its timers.

mod segment;
mod stack;
mod stream;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::address::MacAddress;
use crate::switch::SwitchPort;
use stack::Stack;

pub use segment::{Direction, Segment};
pub use stream::{HostListener, HostStream};

/// What a [`Host`] is on the network.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Its Ethernet address.
    pub mac: MacAddress,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix_bits: u8,
    /// The shortest time after which a segment is sent again. Linux's is 200 ms; RFC 6298
    /// asks for 1 s. From 1 ms to 1 s.
    pub min_retransmission: Duration,
    /// How long an acknowledgement may wait for data to ride on.
    pub acknowledgement_delay: Duration,
    /// A silent connection is probed this often, if at all.
    pub keep_alive: Option<Duration>,
    /// A connection whose other end acknowledges nothing for this long is given up; `None`:
    /// never.
    pub give_up_after: Option<Duration>,
    /// Room for each direction of a connection.
    pub buffer_bytes: usize,
    /// How many of the last segments are kept for [`Host::take_segments`].
    pub kept_segments: usize,
    /// Seeds the initial sequence numbers.
    pub seed: u64,
}

impl HostConfig {
    /// A client like a Linux machine: retransmits after 200 ms, gives up never.
    pub fn new(mac: MacAddress, address: Ipv4Addr) -> HostConfig {
        HostConfig {
            mac,
            address,
            prefix_bits: 24,
            min_retransmission: Duration::from_millis(200),
            acknowledgement_delay: Duration::from_millis(10),
            keep_alive: None,
            give_up_after: None,
            buffer_bytes: 64 << 10,
            kept_segments: 0,
            seed: 0,
        }
    }
}

/// A TCP/IP host attached to a switch. Dropping it stops its connections where they stand,
/// as a power failure would.
pub struct Host {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// What the host, its streams and its task share.
pub(crate) struct Shared {
    stack: Mutex<Stack>,
    /// The stack's next deadline came nearer.
    hastened: Notify,
}

/// How long the task may sleep while the stack has no deadline.
const IDLE: Duration = Duration::from_secs(3600);
/// A deadline that the stack keeps calling due must not keep a processor busy.
const LEAST_SLEEP: Duration = Duration::from_millis(1);
/// Frames taken from the switch before the stack is polled and its lock released.
const BURST_FRAMES: usize = 64;

impl Host {
    /// Puts a host on the switch. Must be called inside a tokio runtime.
    pub fn start(port: SwitchPort, config: HostConfig) -> Host {
        let (sender, incoming) = port.split();
        let shared =
            Arc::new(Shared { stack: Mutex::new(Stack::new(config, sender)), hastened: Notify::new() });
        let task = tokio::spawn(attend(Arc::clone(&shared), incoming));
        Host { shared, task }
    }

    /// Opens a connection. Waits for as long as the other end says nothing, unless the
    /// configuration gives up.
    ///
    /// # Errors
    /// `ConnectionRefused` when the other end answers with a reset, `AddrNotAvailable` when
    /// it is outside this host's network or no local port is left.
    pub async fn connect(&self, remote: SocketAddrV4) -> io::Result<HostStream> {
        let stream = {
            let mut stack = self.shared.stack();
            let (handle, local) = stack.connect(remote)?;
            HostStream::new(Arc::clone(&self.shared), handle, local, remote)
        };
        self.shared.flush();
        std::future::poll_fn(|context| {
            let mut stack = self.shared.stack();
            let socket = stack.socket(stream.handle());
            match socket.state() {
                State::SynSent | State::SynReceived => {
                    socket.register_send_waker(context.waker());
                    Poll::Pending
                }
                State::Closed => Poll::Ready(Err(io::Error::from(io::ErrorKind::ConnectionRefused))),
                _ => Poll::Ready(Ok(())),
            }
        })
        .await?;
        Ok(stream)
    }

    /// Listens on a port of this host. `backlog` connections may come in before
    /// [`HostListener::accept`] is called; more are refused. Each costs its buffers.
    ///
    /// # Errors
    /// `AddrInUse` when this host listens there already, `InvalidInput` for port 0.
    pub fn listen(&self, port: u16, backlog: usize) -> io::Result<HostListener> {
        HostListener::new(Arc::clone(&self.shared), port, backlog)
    }

    /// This host's IPv4 address.
    pub fn address(&self) -> Ipv4Addr {
        self.shared.stack().address()
    }

    /// Takes the segments seen since the last call, oldest first; at most as many as the
    /// configuration keeps.
    pub fn take_segments(&self) -> Vec<Segment> {
        self.shared.stack().take_segments()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    pub(crate) fn stack(&self) -> MutexGuard<'_, Stack> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what the sockets have to send, now.
    pub(crate) fn flush(&self) {
        if self.stack().send_pending(Instant::now()) {
            self.hastened.notify_one();
        }
    }

    /// Sends what a dropped stream or listener leaves, then lets go of its socket as soon as
    /// TCP allows.
    pub(crate) fn abandon(&self, handles: &[SocketHandle]) {
        let mut stack = self.stack();
        handles.iter().for_each(|handle| stack.abandon(*handle));
        let hastened = stack.send_pending(Instant::now());
        drop(stack);
        if hastened {
            self.hastened.notify_one();
        }
    }
}

/// Feeds the stack what arrives and keeps its timers, until the switch is gone.
async fn attend(shared: Arc<Shared>, mut incoming: mpsc::Receiver<Bytes>) {
    loop {
        let deadline = shared.stack().arm(Instant::now());
        let sleep = deadline.map_or(IDLE, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            left.max(LEAST_SLEEP)
        });
        let mut burst = Vec::new();
        tokio::select! {
            frames = incoming.recv_many(&mut burst, BURST_FRAMES) => {
                if frames == 0 {
                    return;
                }
            }
            () = tokio::time::sleep(sleep) => {}
            () = shared.hastened.notified() => {}
        }
        shared.stack().take_in(burst, Instant::now());
    }
}
