//! The port on which connections are waited for: taken first, listened on later.
//!
//! ```text
//!   Reservation -- listen --> Listener
//!        ^                       |
//!        +-------- leave --------+
//! ```
//!
//! A node that stands by holds its port without listening, so that whoever looks for the
//! primary is turned away at once by its kernel and goes on to the next address.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, lookup_host};
use tokio::task::JoinSet;

use super::{Connection, TransportConfig, TransportError, secure_server};
use crate::tls::Security;

/// Connections that wait in the kernel.
const BACKLOG: u32 = 128;

/// A port that is taken, and not listened on.
#[derive(Debug)]
pub struct Reservation {
    socket: TcpSocket,
    security: Security,
    config: TransportConfig,
}

impl Reservation {
    /// Takes `address` (`HOST:PORT`; port 0 takes a free one).
    ///
    /// # Errors
    /// [`TransportError::Listen`].
    pub async fn bind(
        address: &str,
        security: Security,
        config: TransportConfig,
    ) -> Result<Reservation, TransportError> {
        let listen_error = |source| TransportError::Listen { address: address.to_owned(), source };
        let mut last_error = std::io::Error::other("the name has no address");
        for address in lookup_host(address).await.map_err(listen_error)? {
            match take(address) {
                Ok(socket) => return Ok(Reservation { socket, security, config }),
                Err(error) => last_error = error,
            }
        }
        Err(listen_error(last_error))
    }

    /// The address that is taken.
    ///
    /// # Errors
    /// When the operating system does not tell.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Begins to listen.
    ///
    /// # Errors
    /// [`TransportError::Listen`].
    pub fn listen(self) -> Result<Listener, TransportError> {
        let address = self.local_address().map_or_else(|_| "the port".to_owned(), |found| found.to_string());
        let Reservation { socket, security, config } = self;
        let tcp = socket.listen(BACKLOG).map_err(|source| TransportError::Listen { address, source })?;
        Ok(Listener { tcp, security, config, handshakes: JoinSet::new() })
    }
}

/// A socket of this address. One that connections of a killed process still linger on can be had.
fn take(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Takes connections from a port. Handshakes run beside each other, so that a stranger who
/// connects and says nothing keeps nobody waiting.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    security: Security,
    config: TransportConfig,
    handshakes: JoinSet<Result<Connection, TransportError>>,
}

impl Listener {
    /// How many handshakes run at once; further connections wait in the kernel.
    const MOST_HANDSHAKES: usize = 32;

    /// Listens on `address` (`HOST:PORT`; port 0 takes a free one).
    ///
    /// # Errors
    /// [`TransportError::Listen`].
    pub async fn bind(
        address: &str,
        security: Security,
        config: TransportConfig,
    ) -> Result<Self, TransportError> {
        Reservation::bind(address, security, config).await?.listen()
    }

    /// Listens no more, and keeps the port.
    ///
    /// # Errors
    /// [`TransportError::Listen`] when another process was quicker to take it.
    pub fn leave(self) -> Result<Reservation, TransportError> {
        let Listener { tcp, security, config, handshakes } = self;
        let address = tcp.local_addr().map_err(TransportError::Accept)?;
        drop((tcp, handshakes));
        let listen_error = |source| TransportError::Listen { address: address.to_string(), source };
        Ok(Reservation { socket: take(address).map_err(listen_error)?, security, config })
    }

    /// The address that is listened on.
    ///
    /// # Errors
    /// When the operating system does not tell.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// The next connection whose handshake is done, or the next that failed; the listener
    /// goes on after either. Safe to cancel.
    ///
    /// # Errors
    /// What is wrong with one connection.
    pub async fn accept(&mut self) -> Result<Connection, TransportError> {
        /// After a failed `accept`, as when no descriptors are left: do not spin.
        const PAUSE: Duration = Duration::from_millis(50);
        loop {
            let room = self.handshakes.len() < Self::MOST_HANDSHAKES;
            tokio::select! {
                Some(done) = self.handshakes.join_next() => match done {
                    Ok(result) => return result,
                    Err(error) => {
                        return Err(TransportError::Accept(std::io::Error::other(error)));
                    }
                },
                accepted = self.tcp.accept(), if room => match accepted {
                    Ok((tcp, peer)) => {
                        let (security, config) = (self.security.clone(), self.config);
                        self.handshakes.spawn(secure_server(tcp, peer, security, config));
                    }
                    Err(error) => {
                        tokio::time::sleep(PAUSE).await;
                        return Err(TransportError::Accept(error));
                    }
                },
            }
        }
    }
}
