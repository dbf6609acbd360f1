//! A learning Ethernet switch in this process: ports in this process, VMs on the tunnel.
//!
//! Its logic is in `fabric` (who is where) and `registry` (which host speaks for a VM);
//! here are the channels and the socket. A frame is delivered in the call that sends it,
//! without a task in between.

mod fabric;
mod registry;
mod service;

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use std::collections::HashMap;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::PortError;
use crate::tunnel::{self, DATAGRAM_BUFFER_BYTES, Datagram, Message};
use fabric::{Fabric, FabricPort, Route};
use registry::{Registry, Verdict};

pub use registry::TunnelCounters;
pub use service::{SwitchConfig, SwitchService, run};

/// Frames that wait for a port in this process before more are dropped.
const PORT_FRAMES: usize = 1024;

/// A switch. Cheap to clone; works on any thread.
#[derive(Clone)]
pub struct Switch {
    inner: Arc<Inner>,
}

/// What a [`Switch`] did since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SwitchStatistics {
    /// Frames delivered, each copy of a flooded one counted.
    pub delivered_frames: u64,
    /// Frames dropped because their receiver was slow to take them.
    pub dropped_receiver_slow: u64,
    /// Frames dropped because the VM they are for is on no host now.
    pub dropped_away: u64,
    /// Datagrams that are none of the tunnel's, or of another version.
    pub malformed_datagrams: u64,
    /// What was seen on the tunnel.
    pub tunnel: TunnelCounters,
}

struct Inner {
    started: Instant,
    state: Mutex<State>,
    counters: Counters,
}

#[derive(Default)]
struct State {
    fabric: Fabric,
    registry: Registry,
    outlets: HashMap<FabricPort, mpsc::Sender<Bytes>>,
    tunnel: Option<UdpSocket>,
}

#[derive(Default)]
struct Counters {
    delivered_frames: AtomicU64,
    dropped_receiver_slow: AtomicU64,
    dropped_away: AtomicU64,
    malformed_datagrams: AtomicU64,
}

/// An endpoint of a switch in this process. Dropping it unplugs it.
pub struct SwitchPort {
    sender: SwitchSender,
    incoming: mpsc::Receiver<Bytes>,
}

/// The sending half of a [`SwitchPort`]. The port is unplugged when the last one is dropped.
#[derive(Clone)]
pub struct SwitchSender {
    plug: Arc<Plug>,
}

struct Plug {
    switch: Switch,
    port: FabricPort,
}

/// The tunnel of a switch: VMs on other hosts reach it at this UDP address. Dropping it
/// closes the tunnel.
pub struct TunnelServer {
    address: SocketAddr,
    switch: Switch,
    task: JoinHandle<()>,
}

impl Default for Switch {
    fn default() -> Self {
        Switch::new()
    }
}

impl Switch {
    /// A switch without ports.
    pub fn new() -> Switch {
        Switch {
            inner: Arc::new(Inner {
                started: Instant::now(),
                state: Mutex::default(),
                counters: Counters::default(),
            }),
        }
    }

    /// Plugs in an endpoint in this process.
    pub fn attach(&self) -> SwitchPort {
        let (outlet, incoming) = mpsc::channel(PORT_FRAMES);
        let mut state = self.state();
        let port = state.fabric.add_port();
        state.outlets.insert(port, outlet);
        drop(state);
        let plug = Arc::new(Plug { switch: self.clone(), port });
        SwitchPort { sender: SwitchSender { plug }, incoming }
    }

    /// Opens the tunnel at a UDP address (port 0: any), for VMs elsewhere. A switch has at
    /// most one; a second replaces the first. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn serve_tunnel(&self, listen: SocketAddr) -> Result<TunnelServer, PortError> {
        let failed = |source| PortError::listen("switch", listen, source);
        let socket = tunnel::bind(listen).map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        let receiving = socket.try_clone().and_then(tokio::net::UdpSocket::from_std).map_err(failed)?;
        self.state().tunnel = Some(socket);
        let switch = self.clone();
        let task = tokio::spawn(async move { switch.receive_tunnel(receiving).await });
        Ok(TunnelServer { address, switch: self.clone(), task })
    }

    /// What this switch did.
    pub fn statistics(&self) -> SwitchStatistics {
        let counters = &self.inner.counters;
        SwitchStatistics {
            delivered_frames: counters.delivered_frames.load(Ordering::Relaxed),
            dropped_receiver_slow: counters.dropped_receiver_slow.load(Ordering::Relaxed),
            dropped_away: counters.dropped_away.load(Ordering::Relaxed),
            malformed_datagrams: counters.malformed_datagrams.load(Ordering::Relaxed),
            tunnel: self.state().registry.counters(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held (none is known) leaves tables that are whole.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.inner.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn deliver(&self, from: FabricPort, frame: &Bytes) {
        let now_ns = self.now_ns();
        let mut state = self.state();
        match state.fabric.route(from, frame, now_ns) {
            Route::Nowhere => {}
            Route::One(to) => self.deliver_to(&mut state, to, frame, now_ns),
            Route::Flood => {
                let others: Vec<FabricPort> = state.fabric.others(from).collect();
                for to in others {
                    self.deliver_to(&mut state, to, frame, now_ns);
                }
            }
        }
    }

    fn deliver_to(&self, state: &mut State, to: FabricPort, frame: &Bytes, now_ns: u64) {
        let counters = &self.inner.counters;
        if let Some(outlet) = state.outlets.get(&to) {
            match outlet.try_send(frame.clone()) {
                Ok(()) => count(&counters.delivered_frames),
                Err(_) => count(&counters.dropped_receiver_slow),
            }
            return;
        }
        match state.registry.send(to, frame, now_ns) {
            Some((datagram, address)) => self.transmit(state, &datagram, address),
            None => count(&counters.dropped_away),
        }
    }

    fn transmit(&self, state: &State, datagram: &Datagram, address: SocketAddr) {
        let counters = &self.inner.counters;
        let Some(socket) = &state.tunnel else {
            return count(&counters.dropped_away);
        };
        let mut bytes = Vec::new();
        datagram.encode_into(&mut bytes);
        match socket.send_to(&bytes, address) {
            Ok(_) => count(&counters.delivered_frames),
            Err(error) => {
                tracing::debug!(%address, %error, "datagram not sent");
                count(&counters.dropped_receiver_slow);
            }
        }
    }

    async fn receive_tunnel(&self, socket: tokio::net::UdpSocket) {
        let mut buffer = vec![0; DATAGRAM_BUFFER_BYTES];
        loop {
            match socket.recv_from(&mut buffer).await {
                Ok((bytes, sender)) => self.handle_datagram(&buffer[..bytes], sender),
                Err(error) => {
                    // A host that is gone answers with ICMP errors; they say nothing new.
                    tracing::debug!(%error, "tunnel receive error");
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    fn handle_datagram(&self, bytes: &[u8], sender: SocketAddr) {
        let datagram = match Datagram::decode(bytes) {
            Ok(datagram) => datagram,
            Err(error) => {
                tracing::debug!(%sender, %error, "datagram refused");
                return count(&self.inner.counters.malformed_datagrams);
            }
        };
        let now_ns = self.now_ns();
        let port = datagram.port;
        let mut guard = self.state();
        let state = &mut *guard;
        let fabric = &mut state.fabric;
        let verdict = state.registry.handle(datagram, sender, now_ns, || fabric.add_port());
        match verdict {
            Verdict::Heard => {}
            Verdict::Refuse { term } => {
                let refusal = Datagram { port, term, sequence: 0, message: Message::Superseded };
                self.transmit(state, &refusal, sender);
            }
            Verdict::Accept { from, frame, repeat } => {
                for (datagram, address) in state.registry.repeat(from, repeat) {
                    self.transmit(state, &datagram, address);
                }
                drop(guard);
                if let Some(frame) = frame {
                    self.deliver(from, &frame);
                }
            }
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl SwitchPort {
    /// Sends a frame into the switch, without waiting.
    pub fn send(&self, frame: Bytes) {
        self.sender.send(frame);
    }

    /// The next frame for this endpoint.
    pub async fn receive(&mut self) -> Option<Bytes> {
        self.incoming.recv().await
    }

    /// Both halves, for two owners.
    pub fn split(self) -> (SwitchSender, mpsc::Receiver<Bytes>) {
        (self.sender, self.incoming)
    }
}

impl SwitchSender {
    /// Sends a frame into the switch, without waiting.
    pub fn send(&self, frame: Bytes) {
        self.plug.switch.deliver(self.plug.port, &frame);
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        let mut state = self.switch.state();
        state.fabric.remove_port(self.port);
        state.outlets.remove(&self.port);
    }
}

impl TunnelServer {
    /// Where it listens.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for TunnelServer {
    fn drop(&mut self) {
        self.task.abort();
        let mut state = self.switch.state();
        let own = state.tunnel.as_ref().and_then(|socket| socket.local_addr().ok());
        if own == Some(self.address) {
            state.tunnel = None;
        }
    }
}
