//! Network ports: what stands behind a machine's network device.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::PortError;
use crate::spec::{NetKind, NetSpec};
use crate::tap::{Tap, TapReceiver};
use crate::tunnel::{PortId, Tunnel, TunnelReceiver};
use crate::user::UserNetwork;

/// Frames that wait for the machine before more are dropped: a full ring of a fast card.
const INCOMING_FRAMES: usize = 1024;
/// Pause after a receive error, so that a socket in trouble costs no processor time.
const ERROR_PAUSE: Duration = Duration::from_millis(20);

/// An open network port. Starts quiet: see [`PortSender::set_live`].
///
/// The port closes when it and every clone of its sender are dropped.
pub struct PortHandle {
    sender: PortSender,
    incoming: mpsc::Receiver<Bytes>,
}

/// The sending half and the controls of a port. Cheap to clone; works on any thread.
#[derive(Clone)]
pub struct PortSender {
    shared: Arc<Shared>,
}

/// What a port did since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortStatistics {
    /// Frames handed to the network.
    pub sent_frames: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames handed to the machine.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames from the machine dropped because the network's queue was full.
    pub dropped_queue_full: u64,
    /// Frames from the machine dropped because the network refused them (too long, too
    /// short, device down, switch not reachable).
    pub dropped_refused: u64,
    /// Frames to the machine dropped because the machine was slow to take them.
    pub dropped_machine_slow: u64,
    /// Frames dropped, either way, because the port was not live.
    pub dropped_not_live: u64,
}

/// Opens the port of `spec`. `port` tells a tunnel's switch whose it is, on whichever host
/// the VM runs; `term` is the number of the primacy.
///
/// The port starts quiet. Must be called inside a tokio runtime.
///
/// # Errors
/// One line that says what is missing and the way out.
pub async fn open(spec: &NetSpec, port: PortId, term: u64) -> Result<PortHandle, PortError> {
    let (machine, incoming) = mpsc::channel(INCOMING_FRAMES);
    let common = Arc::new(Common::default());
    let mut tasks = Vec::new();
    let backend = match &spec.kind {
        NetKind::None => Backend::None { _machine: machine },
        NetKind::Tap(name) => {
            let tap = Tap::open(name)?;
            let source = Source::Tap(tap.receiver(name)?);
            tasks.push(tokio::spawn(carry(source, machine, Arc::clone(&common))));
            Backend::Tap(tap)
        }
        NetKind::Tunnel { host, port: udp_port } => {
            let (tunnel, receiver) = Tunnel::open(host, *udp_port, port, term).await?;
            let source = Source::Tunnel(receiver);
            tasks.push(tokio::spawn(carry(source, machine, Arc::clone(&common))));
            let speaker = Arc::clone(&tunnel);
            tasks.push(tokio::spawn(async move { speaker.keep_hello().await }));
            Backend::Tunnel(tunnel)
        }
        NetKind::User { forwards } => {
            let (network, receiver) = UserNetwork::new(forwards.clone());
            let source = Source::User(receiver);
            tasks.push(tokio::spawn(carry(source, machine, Arc::clone(&common))));
            Backend::User(network)
        }
    };
    let shared = Arc::new(Shared { backend, common, tasks });
    Ok(PortHandle { sender: PortSender { shared }, incoming })
}

impl PortHandle {
    /// The sending half and the controls.
    pub fn sender(&self) -> &PortSender {
        &self.sender
    }

    /// The next frame for the machine; `None` once the port is broken for good.
    pub async fn receive(&mut self) -> Option<Bytes> {
        self.incoming.recv().await
    }

    /// Both halves, for two owners. The port closes when the last sender is dropped; the
    /// channel then ends.
    pub fn split(self) -> (PortSender, mpsc::Receiver<Bytes>) {
        (self.sender, self.incoming)
    }

    /// The halves of [`PortHandle::split`], for one owner again. What came for the machine and
    /// was not taken is dropped.
    pub fn join(sender: PortSender, mut incoming: mpsc::Receiver<Bytes>) -> PortHandle {
        while incoming.try_recv().is_ok() {}
        PortHandle { sender, incoming }
    }
}

impl PortSender {
    /// Sends a frame without waiting. As on real hardware a frame that finds the network's
    /// queue full is dropped; the [statistics](Self::statistics) tell.
    pub fn send(&self, frame: Bytes) {
        let counters = &self.shared.common.counters;
        if !self.shared.common.live.load(Ordering::Acquire) {
            return counters.dropped_not_live.add(1);
        }
        let bytes = frame.len() as u64;
        match self.shared.backend.send(frame) {
            Ok(()) => {
                counters.sent_frames.add(1);
                counters.sent_bytes.add(bytes);
            }
            Err(error) if is_queue_full(&error) => counters.dropped_queue_full.add(1),
            Err(error) => {
                tracing::debug!(%error, bytes, "frame refused by the network");
                counters.dropped_refused.add(1);
            }
        }
    }

    /// Starts or ends the traffic. A port that is not live sends nothing, announces nothing
    /// and discards what comes; a tunnel says hello when it goes live and takes its leave
    /// when it stops; a user network listens for its forwards while it is live.
    ///
    /// # Errors
    /// When a forward's host port cannot be had; the port is then not live.
    pub fn set_live(&self, live: bool) -> Result<(), PortError> {
        // No frame may follow the tunnel's leave, and the frames that answer its hello must
        // not be discarded: the flag is set first, either way.
        let flag = &self.shared.common.live;
        let before = flag.swap(live, Ordering::AcqRel);
        let changed = self.shared.backend.set_live(live);
        if changed.is_err() {
            flag.store(before, Ordering::Release);
        }
        changed
    }

    /// Whether there is traffic.
    pub fn is_live(&self) -> bool {
        self.shared.common.live.load(Ordering::Acquire)
    }

    /// Tells the port the number of the primacy. Set it before going live.
    pub fn set_term(&self, term: u64) {
        if let Backend::Tunnel(tunnel) = &self.shared.backend {
            tunnel.set_term(term);
        }
    }

    /// The higher term because of which the tunnel's switch refuses this side: somebody took
    /// over, and this side is stale.
    pub fn superseded_by(&self) -> Option<u64> {
        match &self.shared.backend {
            Backend::Tunnel(tunnel) => tunnel.superseded_by(),
            _ => None,
        }
    }

    /// Where a user network's forwards listen, in the order of the specification; empty
    /// while the port is not live.
    pub fn forward_addresses(&self) -> Vec<SocketAddr> {
        match &self.shared.backend {
            Backend::User(network) => network.forward_addresses(),
            _ => Vec::new(),
        }
    }

    /// What this port did.
    pub fn statistics(&self) -> PortStatistics {
        let counters = &self.shared.common.counters;
        PortStatistics {
            sent_frames: counters.sent_frames.read(),
            sent_bytes: counters.sent_bytes.read(),
            received_frames: counters.received_frames.read(),
            received_bytes: counters.received_bytes.read(),
            dropped_queue_full: counters.dropped_queue_full.read(),
            dropped_refused: counters.dropped_refused.read(),
            dropped_machine_slow: counters.dropped_machine_slow.read(),
            dropped_not_live: counters.dropped_not_live.read(),
        }
    }
}

/// What both halves and the controls share.
struct Shared {
    backend: Backend,
    common: Arc<Common>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Common {
    live: AtomicBool,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    sent_frames: Counter,
    sent_bytes: Counter,
    received_frames: Counter,
    received_bytes: Counter,
    dropped_queue_full: Counter,
    dropped_refused: Counter,
    dropped_machine_slow: Counter,
    dropped_not_live: Counter,
}

#[derive(Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

enum Backend {
    /// Holds the machine's channel, so that a receiver waits instead of seeing an end.
    None {
        _machine: mpsc::Sender<Bytes>,
    },
    Tap(Tap),
    Tunnel(Arc<Tunnel>),
    User(UserNetwork),
}

impl Backend {
    fn send(&self, frame: Bytes) -> io::Result<()> {
        match self {
            Backend::None { .. } => Ok(()),
            Backend::Tap(tap) => tap.send(&frame),
            Backend::Tunnel(tunnel) => tunnel.send(frame),
            Backend::User(network) => {
                network.send(frame);
                Ok(())
            }
        }
    }

    fn set_live(&self, live: bool) -> Result<(), PortError> {
        match self {
            Backend::None { .. } | Backend::Tap(_) => Ok(()),
            Backend::Tunnel(tunnel) => {
                tunnel.set_live(live);
                Ok(())
            }
            Backend::User(network) => network.set_live(live),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Backend::Tunnel(tunnel) = &self.backend {
            tunnel.set_live(false);
        }
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Where frames for the machine come from.
enum Source {
    Tap(TapReceiver),
    Tunnel(TunnelReceiver),
    User(mpsc::Receiver<Bytes>),
}

impl Source {
    /// The next frame; `None` at the end.
    async fn receive(&mut self) -> Option<io::Result<Bytes>> {
        match self {
            Source::Tap(tap) => Some(tap.receive().await),
            Source::Tunnel(tunnel) => Some(tunnel.receive().await),
            Source::User(switch) => switch.recv().await.map(Ok),
        }
    }
}

/// Carries frames from the network to the machine, until either end is gone.
async fn carry(mut source: Source, machine: mpsc::Sender<Bytes>, common: Arc<Common>) {
    let counters = &common.counters;
    while let Some(received) = source.receive().await {
        let frame = match received {
            Ok(frame) => frame,
            Err(error) => {
                // A switch that is not there yet, a tap that went down: it may come back.
                tracing::debug!(%error, "receive error");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        if !common.live.load(Ordering::Acquire) {
            counters.dropped_not_live.add(1);
            continue;
        }
        let bytes = frame.len() as u64;
        match machine.try_send(frame) {
            Ok(()) => {
                counters.received_frames.add(1);
                counters.received_bytes.add(bytes);
            }
            Err(mpsc::error::TrySendError::Full(_)) => counters.dropped_machine_slow.add(1),
            Err(mpsc::error::TrySendError::Closed(_)) => return,
        }
    }
}

fn is_queue_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(nix::libc::ENOBUFS)
}
