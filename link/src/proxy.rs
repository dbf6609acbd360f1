//! A bad network between two hosts, on demand: delays, limits and cuts TCP connections.
//!
//! The drill (`--cut link`) and tests put it between primary and backup. A cut is what a
//! network does, not what a host does: no connection is closed, bytes just stop arriving,
//! and those held back arrive when the cut ends.
//!
//! ```text
//!   client <--TCP--> proxy <--TCP--> server
//!            read, stamp --> queue --> wait for delay, rate, cut --> write     (each way)
//! ```

use crate::pacing::Pacer;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

/// Bytes read at once, the grain of delay and rate.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks under way in one direction of a connection; then TCP holds the sender back.
const CHUNKS_UNDER_WAY: usize = 1024;

/// What the network is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Conditions {
    /// One-way delay: a round trip takes twice this.
    pub delay: Duration,
    /// Bytes per second of each connection, each way; `None` is without limit.
    pub bytes_per_second: Option<u64>,
    /// What does not arrive at all.
    pub cut: Cut,
}

/// Which way bytes stop arriving. The client is the side that connects: the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cut {
    /// Neither.
    #[default]
    None,
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
    /// Both: a partition.
    Both,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

impl Cut {
    fn stops(self, direction: Direction) -> bool {
        match self {
            Cut::None => false,
            Cut::ToServer => direction == Direction::ToServer,
            Cut::ToClient => direction == Direction::ToClient,
            Cut::Both => true,
        }
    }
}

/// A running proxy. Its connections end when it is dropped.
#[derive(Debug)]
pub struct LinkProxy {
    address: SocketAddr,
    conditions: watch::Sender<Conditions>,
    reset: watch::Sender<u64>,
    task: AbortHandle,
}

impl LinkProxy {
    /// Listens on `listen` (`HOST:PORT`; port 0 takes a free one) and connects each client to
    /// `server` (`HOST:PORT`).
    ///
    /// # Errors
    /// When the port cannot be listened on.
    pub async fn start(listen: &str, server: &str, conditions: Conditions) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let conditions = watch::Sender::new(conditions);
        let reset = watch::Sender::new(0);
        let network = Network {
            server: server.to_owned(),
            conditions: conditions.subscribe(),
            reset: reset.subscribe(),
        };
        let task = tokio::spawn(serve(listener, network)).abort_handle();
        Ok(LinkProxy { address, conditions, reset, task })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the network is like now.
    pub fn conditions(&self) -> Conditions {
        *self.conditions.borrow()
    }

    /// Changes what the network is like, for connections that exist too.
    pub fn set_conditions(&self, conditions: Conditions) {
        self.conditions.send_replace(conditions);
    }

    /// Stops bytes from arriving.
    pub fn cut(&self, cut: Cut) {
        self.conditions.send_modify(|conditions| conditions.cut = cut);
    }

    /// Ends a cut: what was held back arrives.
    pub fn resume(&self) {
        self.cut(Cut::None);
    }

    /// Closes every connection, as a firewall that forgets them does.
    pub fn reset_connections(&self) {
        self.reset.send_modify(|generation| *generation += 1);
    }
}

impl Drop for LinkProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What every connection sees of the proxy.
#[derive(Debug, Clone)]
struct Network {
    server: String,
    conditions: watch::Receiver<Conditions>,
    reset: watch::Receiver<u64>,
}

async fn serve(listener: TcpListener, network: Network) {
    /// After a failed `accept`, as when no descriptors are left: do not spin.
    const PAUSE: Duration = Duration::from_millis(50);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    connections.spawn(connect_through(client, network.clone()));
                }
                Err(error) => {
                    tracing::warn!("proxy: cannot accept a connection: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves one client until both ways have ended, one breaks, or connections are reset.
async fn connect_through(client: TcpStream, mut network: Network) {
    network.reset.mark_unchanged();
    let mut reset = network.reset.clone();
    let pumps = async {
        network.uncut(Direction::ToServer).await?;
        let server = TcpStream::connect(&network.server).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::try_join!(
            pump(from_client, to_server, Direction::ToServer, network.clone()),
            pump(from_server, to_client, Direction::ToClient, network.clone()),
        )?;
        io::Result::Ok(())
    };
    tokio::select! {
        result = pumps => if let Err(error) = result {
            tracing::debug!("proxy: a connection ended: {error}");
        },
        _ = reset.changed() => {}
    }
}

impl Network {
    /// Waits until bytes arrive in this direction.
    async fn uncut(&mut self, direction: Direction) -> io::Result<()> {
        self.conditions
            .wait_for(|conditions| !conditions.cut.stops(direction))
            .await
            .map(drop)
            .map_err(|_| io::Error::other("the proxy stopped"))
    }
}

/// Bytes with the time they were read; none for the end of the stream.
type Chunk = (Instant, Vec<u8>);

async fn pump(
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    direction: Direction,
    network: Network,
) -> io::Result<()> {
    let (chunks, queue) = mpsc::channel(CHUNKS_UNDER_WAY);
    tokio::try_join!(take_in(reader, chunks), let_out(queue, writer, direction, network))?;
    Ok(())
}

async fn take_in(mut reader: OwnedReadHalf, chunks: mpsc::Sender<Chunk>) -> io::Result<()> {
    loop {
        let mut bytes = vec![0; CHUNK_BYTES];
        let read = reader.read(&mut bytes).await?;
        bytes.truncate(read);
        let sent = chunks.send((Instant::now(), bytes)).await;
        if read == 0 || sent.is_err() {
            return Ok(());
        }
    }
}

/// The runtime's timer counts in milliseconds: asked for a time that has come, it would still
/// wait for its next tick.
async fn pause_until(deadline: Instant) {
    if deadline > Instant::now() {
        sleep_until(deadline).await;
    }
}

async fn let_out(
    mut queue: mpsc::Receiver<Chunk>,
    mut writer: OwnedWriteHalf,
    direction: Direction,
    mut network: Network,
) -> io::Result<()> {
    let start = Instant::now();
    let elapsed_ns = || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut pacer = Pacer::new(None, 0);
    while let Some((read_at, bytes)) = queue.recv().await {
        let conditions = *network.conditions.borrow();
        pause_until(read_at + conditions.delay).await;
        if pacer.bytes_per_second() != conditions.bytes_per_second {
            pacer.set_rate(conditions.bytes_per_second, elapsed_ns());
        }
        pause_until(start + Duration::from_nanos(pacer.ready_at_ns())).await;
        pacer.spend(bytes.len() as u64, elapsed_ns());
        network.uncut(direction).await?;
        if bytes.is_empty() {
            break;
        }
        writer.write_all(&bytes).await?;
    }
    writer.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    // The clock is tokio's paused one: it jumps when every task waits. So lower bounds on
    // time are exact, and "nothing arrives" costs no waiting.

    const LONG: Duration = Duration::from_secs(5);

    /// A client and a server with a proxy between.
    async fn through(conditions: Conditions) -> (LinkProxy, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let proxy = LinkProxy::start("127.0.0.1:0", &server, conditions).await.unwrap();
        let client = TcpStream::connect(proxy.address()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        (proxy, client, server)
    }

    async fn arrives(stream: &mut TcpStream, expected: &[u8]) {
        let mut found = vec![0; expected.len()];
        stream.read_exact(&mut found).await.unwrap();
        assert_eq!(found, expected);
    }

    async fn nothing_arrives(stream: &mut TcpStream) {
        let mut byte = [0];
        assert!(timeout(LONG, stream.read(&mut byte)).await.is_err());
    }

    #[tokio::test]
    async fn bytes_and_ends_pass_both_ways() {
        let (_proxy, mut client, mut server) = through(Conditions::default()).await;
        client.write_all(b"question").await.unwrap();
        arrives(&mut server, b"question").await;
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
        server.write_all(b"answer").await.unwrap();
        drop(server);
        arrives(&mut client, b"answer").await;
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_trip_takes_the_delay_twice() {
        let delay = Duration::from_millis(100);
        let (_proxy, mut client, mut server) = through(Conditions { delay, ..Conditions::default() }).await;
        let start = Instant::now();
        client.write_all(b"ping").await.unwrap();
        arrives(&mut server, b"ping").await;
        server.write_all(b"pong").await.unwrap();
        arrives(&mut client, b"pong").await;
        assert!(start.elapsed() >= 2 * delay);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_bytes_pass_than_the_rate_allows() {
        let (_proxy, mut client, mut server) =
            through(Conditions { bytes_per_second: Some(10_000), ..Conditions::default() }).await;
        let start = Instant::now();
        let sent = vec![7; 50_000];
        let (written, ()) = tokio::join!(client.write_all(&sent), arrives(&mut server, &sent));
        written.unwrap();
        // The last chunk is paid for after it went.
        let paid_bytes = sent.len() - CHUNK_BYTES;
        assert!(start.elapsed() >= Duration::from_millis(paid_bytes as u64 / 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_holds_bytes_back_without_closing_and_they_arrive_after_it() {
        let (proxy, mut client, mut server) = through(Conditions::default()).await;
        for (cut, to_server, to_client) in
            [(Cut::Both, false, false), (Cut::ToServer, false, true), (Cut::ToClient, true, false)]
        {
            proxy.cut(cut);
            client.write_all(b"to server").await.unwrap();
            server.write_all(b"to client").await.unwrap();
            if to_server {
                arrives(&mut server, b"to server").await;
            }
            if to_client {
                arrives(&mut client, b"to client").await;
            }
            nothing_arrives(&mut server).await;
            nothing_arrives(&mut client).await;
            proxy.resume();
            if !to_server {
                arrives(&mut server, b"to server").await;
            }
            if !to_client {
                arrives(&mut client, b"to client").await;
            }
        }
    }

    #[tokio::test]
    async fn a_reset_closes_every_connection_and_new_ones_pass() {
        let (proxy, mut client, mut server) = through(Conditions::default()).await;
        client.write_all(b"x").await.unwrap();
        arrives(&mut server, b"x").await;
        proxy.reset_connections();
        assert!(matches!(server.read(&mut [0]).await, Ok(0) | Err(_)));
        assert!(matches!(client.read(&mut [0]).await, Ok(0) | Err(_)));
    }
}
