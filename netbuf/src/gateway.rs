//! The gateway of a user network: host TCP ports carried to a guest.
//!
//! The gateway is a host on the switch at 10.0.2.2, which answers ARP and pings and, for
//! each connection that comes in at a forward's host port, opens one to the guest. Bytes,
//! the end of each direction and resets are carried both ways; a side that does not read
//! stops the other one.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use smoltcp::wire::Ipv4Cidr;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::address::MacAddress;
use crate::error::PortError;
use crate::host::{Host, HostConfig, HostStream};
use crate::spec::Forward;
use crate::switch::Switch;

/// The gateway's address, as on QEMU's user network.
pub const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The gateway's Ethernet address, as on QEMU's user network.
pub const GATEWAY_MAC: MacAddress = MacAddress([0x52, 0x55, 0x0a, 0x00, 0x02, 0x02]);
const PREFIX_BITS: u8 = 24;
/// A guest that does not answer for this long has lost the connection; takeovers are shorter.
const GIVE_UP_AFTER: Duration = Duration::from_secs(120);
const BUFFER_BYTES: usize = 64 << 10;
/// Pause when the host has no descriptors left for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 1024;

/// Forwards at work. Dropping it closes the ports and their connections.
pub(crate) struct Gateway {
    addresses: Vec<SocketAddr>,
    tasks: Vec<JoinHandle<()>>,
}

impl Gateway {
    /// Listens for all forwards or, on an error, for none. Must be called inside a tokio
    /// runtime.
    pub(crate) fn start(switch: &Switch, forwards: &[Forward]) -> Result<Gateway, PortError> {
        let mut listeners = Vec::new();
        for forward in forwards {
            check_guest(forward)?;
            let failed = |source| PortError::listen("forward", forward.host, source);
            let listener = listen(forward.host).map_err(failed)?;
            listeners.push((listener.local_addr().map_err(failed)?, listener, forward.guest));
        }
        let mut config = HostConfig::new(GATEWAY_MAC, GATEWAY_ADDRESS);
        config.prefix_bits = PREFIX_BITS;
        config.give_up_after = Some(GIVE_UP_AFTER);
        config.buffer_bytes = BUFFER_BYTES;
        config.seed = fresh_seed();
        let host = Arc::new(Host::start(switch.attach(), config));
        let addresses = listeners.iter().map(|(address, ..)| *address).collect();
        let mut tasks: Vec<JoinHandle<()>> = listeners
            .into_iter()
            .map(|(_, listener, guest)| tokio::spawn(serve(listener, guest, Arc::clone(&host))))
            .collect();
        // Without a forward the gateway still answers ARP and pings.
        tasks.push(tokio::spawn(async move {
            let _host = host;
            std::future::pending::<()>().await;
        }));
        Ok(Gateway { addresses, tasks })
    }

    /// Where the forwards listen, in their order.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn check_guest(forward: &Forward) -> Result<(), PortError> {
    let network = Ipv4Cidr::new(GATEWAY_ADDRESS, PREFIX_BITS);
    let guest = *forward.guest.ip();
    if network.contains_addr(&guest) && guest != GATEWAY_ADDRESS {
        return Ok(());
    }
    Err(PortError::ForwardOutside { forward: *forward })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // Connections of a process before us may linger in TIME-WAIT; another listener still
    // excludes us.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Differs from start to start, so that connections before and after do not mix.
fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(GATEWAY_MAC)
}

/// Accepts connections for one forward. They end with it.
async fn serve(listener: TcpListener, guest: SocketAddrV4, host: Arc<Host>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, from)) => {
                    let host = Arc::clone(&host);
                    connections.spawn(async move {
                        if let Err(error) = carry(client, guest, &host).await {
                            tracing::debug!(%from, %guest, %error, "forwarded connection broken");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%guest, %error, "forward cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection until both directions ended, or either end broke it.
async fn carry(client: TcpStream, guest: SocketAddrV4, host: &Host) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut client = Carried { end: client, finished: false };
    let stream = tokio::select! {
        connected = host.connect(guest) => connected?,
        // Readable data and an orderly end are no reason to give up; an error is.
        _ = client.end.ready(Interest::ERROR) => return Ok(()),
    };
    let mut stream = Carried { end: stream, finished: false };
    tokio::io::copy_bidirectional_with_sizes(&mut client.end, &mut stream.end, BUFFER_BYTES, BUFFER_BYTES)
        .await?;
    client.finished = true;
    stream.finished = true;
    Ok(())
}

/// One end of a connection. Dropped before both directions ended, for whatever reason, it
/// is reset: an orderly end would tell a lie about what was carried.
struct Carried<End: Break> {
    end: End,
    finished: bool,
}

trait Break {
    fn break_off(&self);
}

impl Break for TcpStream {
    fn break_off(&self) {
        // Makes the drop that follows send a reset.
        if let Err(error) = self.set_zero_linger() {
            tracing::debug!(%error, "the client sees an orderly end instead of a reset");
        }
    }
}

impl Break for HostStream {
    fn break_off(&self) {
        self.abort();
    }
}

impl<End: Break> Drop for Carried<End> {
    fn drop(&mut self) {
        if !self.finished {
            self.end.break_off();
        }
    }
}
