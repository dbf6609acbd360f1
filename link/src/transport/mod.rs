//! Connections between the hosts of a pair: messages over TCP, protected by mutual TLS.
//!
//! A driver: it moves bytes and knows nothing of what the messages mean.
//!
//! ```text
//!   Sender::queue ----> queue (log lane, bulk lane) --> write_out, or writer task --> TLS --> TCP
//!   Receiver::receive <------------- decoder <-------------------------- TLS <-- TCP
//! ```
//!
//! Latency is what counts: a message is encoded where it is sent, and who writes takes all
//! that is queued into one write and one flush. What is little is written by the thread that has it, so
//! that no other is woken for it; what is much, by a task. Checkpoints go by a lane of their own, which
//! is served only while the log lane is empty, one frame at a time.

mod connection;
mod listener;
mod output;
mod queue;
mod socket;

pub use connection::{Connection, CounterSnapshot, Peer, Receiver, Sender};
pub use listener::{Listener, Reservation};
pub use queue::SendError;

use crate::tls::{PairTls, Security, TlsFailure, peer_node};
use log_format::FrameError;
use socket::{CountedStream, Counters, LinkStream};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Limits of a connection. The defaults suit a LAN as well as a thin link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransportConfig {
    /// Most bytes that wait in the log lane before [`Sender::try_send`] says
    /// [`SendError::Full`]. Default 8 MiB.
    pub max_queued_log_bytes: usize,
    /// The same of the bulk lane. Default 1 MiB: pages that wait here are memory that is
    /// held twice.
    pub max_queued_bulk_bytes: usize,
    /// Longest body of a frame that is received. Default: what the format allows, 16 MiB.
    pub max_body_bytes: usize,
    /// Longest wait for a TCP connection to one address, and for TLS after it. Default 3 s.
    pub connect_timeout: Duration,
    /// How long sent bytes may stay without TCP acknowledgement before the connection is
    /// given up. The failure detector is far quicker; this only clears the remains. Default
    /// 10 s.
    pub user_timeout: Duration,
}

impl Default for TransportConfig {
    fn default() -> Self {
        TransportConfig {
            max_queued_log_bytes: 8 << 20,
            max_queued_bulk_bytes: 1 << 20,
            max_body_bytes: log_format::MAX_BODY_BYTES,
            connect_timeout: Duration::from_secs(3),
            user_timeout: Duration::from_secs(10),
        }
    }
}

/// An address that says nothing for this long is not waited for alone.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(100);

/// Why hosts cannot talk. Each is one line with the way out.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The port cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another address or port, or stop who uses it")]
    Listen {
        /// The address.
        address: String,
        /// The reason.
        source: std::io::Error,
    },
    /// None of the addresses answers.
    #[error("cannot reach the primary: {attempts}; check that it runs and that its port is open")]
    Unreachable {
        /// Each address with what came of it.
        attempts: String,
    },
    /// A connection could not be taken from the listening port.
    #[error("cannot accept a connection: {0}")]
    Accept(std::io::Error),
    /// The hosts do not agree on a protected connection.
    #[error("no connection with {peer}: {failure}")]
    Tls {
        /// The peer's address.
        peer: SocketAddr,
        /// What they do not agree on.
        failure: TlsFailure,
    },
    /// The peer does not answer during the handshake.
    #[error(
        "no connection with {peer}: it did not finish the TLS handshake in time; check that it is a Secondwind node"
    )]
    HandshakeTimeout {
        /// The peer's address.
        peer: SocketAddr,
    },
    /// The peer connected, said nothing and left: it only looked whether somebody listens.
    #[error("{peer} connected and left without a word")]
    LeftSilently {
        /// The peer's address.
        peer: SocketAddr,
    },
    /// The connection broke.
    #[error("the connection with {peer} broke: {source}")]
    Broken {
        /// The peer's address.
        peer: SocketAddr,
        /// The reason.
        source: std::io::Error,
    },
    /// The connection ended inside a message.
    #[error("the connection with {peer} ended inside a message, after {found} of its bytes")]
    Cut {
        /// The peer's address.
        peer: SocketAddr,
        /// Bytes of the message that came.
        found: usize,
    },
    /// The bytes that came are not messages.
    #[error("{peer} does not speak as a Secondwind node: {source}")]
    Frame {
        /// The peer's address.
        peer: SocketAddr,
        /// What is wrong with them.
        source: FrameError,
    },
    /// This side gave the connection up.
    #[error("the connection with {peer} was given up by this side")]
    Aborted {
        /// The peer's address.
        peer: SocketAddr,
    },
}

/// Connects to the first of `addresses` (`HOST:PORT`) that answers. They are tried in their
/// order, the next one as soon as one refuses or says nothing for a moment: a host that is dead
/// does not hold up the way to a living one.
///
/// # Errors
/// [`TransportError::Unreachable`] when none does; the peer's refusal otherwise.
pub async fn connect(
    addresses: &[String],
    security: &Security,
    config: TransportConfig,
) -> Result<Connection, TransportError> {
    let mut waiting = addresses.iter().cloned();
    let mut dialled = JoinSet::new();
    let (mut attempts, mut insecure) = (Vec::new(), None);
    loop {
        let next = waiting.next();
        let more = next.is_some();
        next.into_iter().for_each(|address| {
            let security = security.clone();
            dialled.spawn(async move {
                match dial(&address, config.connect_timeout).await {
                    // A host may take a connection and then say nothing: only a handshake counts.
                    Ok((tcp, peer)) => secure_client(tcp, peer, &security, config).await,
                    Err(error) => {
                        Err(TransportError::Unreachable { attempts: format!("{address}: {error}") })
                    }
                }
            });
        });
        let done = match more {
            true => timeout(NEXT_ADDRESS_AFTER, dialled.join_next()).await.ok(),
            false => Some(dialled.join_next().await),
        };
        match done {
            Some(Some(Ok(Ok(connection)))) => return Ok(connection),
            Some(Some(Ok(Err(TransportError::Unreachable { attempts: attempt })))) => attempts.push(attempt),
            Some(Some(Ok(Err(error)))) => insecure = insecure.or(Some(error)),
            Some(Some(Err(error))) => attempts.push(error.to_string()),
            Some(None) => break,
            // It says nothing yet: the next one is tried beside it.
            None => {}
        }
    }
    if let Some(error) = insecure {
        return Err(error);
    }
    if attempts.is_empty() {
        attempts.push("no address is configured".to_owned());
    }
    Err(TransportError::Unreachable { attempts: attempts.join(", ") })
}

async fn dial(address: &str, limit: Duration) -> std::io::Result<(TcpStream, SocketAddr)> {
    let timed_out = || std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer");
    let mut last_error = std::io::Error::other("the name has no address");
    for address in lookup_host(address).await? {
        match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => return Ok((tcp, address)),
            Ok(Err(error)) => last_error = error,
            Err(_) => last_error = timed_out(),
        }
    }
    Err(last_error)
}

async fn secure_client(
    tcp: TcpStream,
    peer: SocketAddr,
    security: &Security,
    config: TransportConfig,
) -> Result<Connection, TransportError> {
    let (stream, counters) = prepare(tcp, peer, &config)?;
    let tls = match security {
        Security::Insecure => {
            let stream = LinkStream::Plain(stream);
            return Ok(Connection::start(stream, peer, None, counters, config));
        }
        Security::Tls(tls) => tls,
    };
    let handshake = tls.connector.connect(PairTls::pair_name(), stream);
    let stream = timeout(config.connect_timeout, handshake)
        .await
        .map_err(|_| TransportError::HandshakeTimeout { peer })?
        .map_err(|error| handshake_error(peer, error))?;
    let node = agreed_node(tls, stream.get_ref().1.peer_certificates(), peer)?;
    let stream = LinkStream::Tls(Box::new(stream.into()));
    Ok(Connection::start(stream, peer, Some(node), counters, config))
}

async fn secure_server(
    tcp: TcpStream,
    peer: SocketAddr,
    security: Security,
    config: TransportConfig,
) -> Result<Connection, TransportError> {
    let (stream, counters) = prepare(tcp, peer, &config)?;
    let tls = match security {
        Security::Insecure => {
            let stream = LinkStream::Plain(stream);
            return Ok(Connection::start(stream, peer, None, counters, config));
        }
        Security::Tls(tls) => tls,
    };
    let handshake = tls.acceptor.accept(stream).into_fallible();
    let stream = match timeout(config.connect_timeout, handshake).await {
        Err(_) => return Err(TransportError::HandshakeTimeout { peer }),
        Ok(Err(_)) if counters.received_bytes.load(Ordering::Relaxed) == 0 => {
            return Err(TransportError::LeftSilently { peer });
        }
        Ok(Err((error, stream))) => {
            linger(stream).await;
            return Err(handshake_error(peer, error));
        }
        Ok(Ok(stream)) => stream,
    };
    let node = agreed_node(&tls, stream.get_ref().1.peer_certificates(), peer)?;
    let stream = LinkStream::Tls(Box::new(stream.into()));
    Ok(Connection::start(stream, peer, Some(node), counters, config))
}

/// Lets the peer read why it was turned away: closing a socket with bytes unread resets the
/// connection, and the reset would overtake the alert.
async fn linger(mut stream: CountedStream) {
    use tokio::io::AsyncWriteExt;
    const LONGEST: Duration = Duration::from_secs(1);
    const MOST_READS: usize = 64;
    let drain = async {
        let _ = stream.shutdown().await;
        let mut scrap = [0; 1024];
        for _ in 0..MOST_READS {
            if !matches!(stream.read(&mut scrap).await, Ok(read) if read > 0) {
                break;
            }
        }
    };
    let _ = timeout(LONGEST, drain).await;
}

fn prepare(
    tcp: TcpStream,
    peer: SocketAddr,
    config: &TransportConfig,
) -> Result<(CountedStream, Arc<Counters>), TransportError> {
    socket::tune(&tcp, config.user_timeout).map_err(|source| TransportError::Broken { peer, source })?;
    let counters = Arc::new(Counters::default());
    Ok((CountedStream::new(tcp, Arc::clone(&counters)), counters))
}

/// The peer's name, which must not be this node's own.
fn agreed_node(
    tls: &PairTls,
    certificates: Option<&[rustls::pki_types::CertificateDer<'_>]>,
    peer: SocketAddr,
) -> Result<String, TransportError> {
    let failure = match peer_node(certificates) {
        Some(node) if node != tls.node() => return Ok(node),
        Some(node) => TlsFailure::SameNode(node),
        None => TlsFailure::Nameless,
    };
    Err(TransportError::Tls { peer, failure })
}

fn handshake_error(peer: SocketAddr, error: std::io::Error) -> TransportError {
    let failure = match TlsFailure::from_io(&error) {
        Some(failure) => failure,
        // A node started with --insecure sees no message in our first bytes and hangs up.
        None => match error.kind() {
            std::io::ErrorKind::UnexpectedEof => TlsFailure::NotTls,
            _ => TlsFailure::Other(error.to_string()),
        },
    };
    TransportError::Tls { peer, failure }
}
