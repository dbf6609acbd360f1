//! A bad network between two hosts, on demand: delays, limits, loses, corrupts and cuts what
//! TCP connections carry.
//!
//! The drill and tests put it between primary and backup. A cut is what a network does, not
//! what a host does: no connection is closed, bytes just stop arriving, and those held back
//! arrive when the cut ends. A lost segment is what TCP makes of it: it arrives after its
//! retransmission, and everything behind it waits. A corrupt one is what passes TCP's 16-bit
//! checksum: a bit is wrong, and whoever reads must notice.
//!
//! ```text
//!   client <--TCP--> proxy <--TCP--> server
//!            read, stamp --> queue --> wait for delay, rate, loss, cut --> flip --> write  (each way)
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
/// Bytes of a segment on Ethernet, with TCP's timestamps: what is lost or corrupted at once.
const SEGMENT_BYTES: usize = 1448;
/// How long TCP waits at least until it sends a lost segment again: Linux's minimum. It doubles
/// with each further loss (RFC 6298, section 5.5).
const RETRANSMISSION_TIMEOUT: Duration = Duration::from_millis(200);
/// A segment that is lost more often in a row arrives all the same; a cut is for that.
const MOST_LOSSES: u32 = 8;
const MILLION: u64 = 1_000_000;

/// What the network is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Conditions {
    /// One-way delay: a round trip takes twice this.
    pub delay: Duration,
    /// Bytes per second of each connection, each way; `None` is without limit.
    pub bytes_per_second: Option<u64>,
    /// What does not arrive at all.
    pub cut: Cut,
    /// Out of a million segments, how many are lost on their way, each time they are sent.
    pub lost_per_million: u32,
    /// Out of a million segments, how many arrive with one bit flipped.
    pub corrupted_per_million: u32,
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
    let mut chance = Chance::of(direction);
    while let Some((read_at, mut bytes)) = queue.recv().await {
        let conditions = *network.conditions.borrow();
        pause_until(read_at + conditions.delay + chance.loss_delay(&conditions, bytes.len())).await;
        if pacer.bytes_per_second() != conditions.bytes_per_second {
            pacer.set_rate(conditions.bytes_per_second, elapsed_ns());
        }
        pause_until(start + Duration::from_nanos(pacer.ready_at_ns())).await;
        pacer.spend(bytes.len() as u64, elapsed_ns());
        network.uncut(direction).await?;
        if bytes.is_empty() {
            break;
        }
        chance.corrupt(&conditions, &mut bytes);
        writer.write_all(&bytes).await?;
    }
    writer.shutdown().await
}

/// Which segments meet with an accident: numbers of SplitMix64 (Steele, Lea, Flood 2014), the
/// same for every connection, so that a test sees the same accidents for the same bytes.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn of(direction: Direction) -> Chance {
        Chance(match direction {
            Direction::ToServer => 1,
            Direction::ToClient => 2,
        })
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn happens(&mut self, per_million: u32) -> bool {
        per_million > 0 && self.next() % MILLION < u64::from(per_million)
    }

    /// How much later than without losses the last of `length` bytes arrives. Segments that
    /// were sent together are sent again together: the unluckiest one counts.
    fn loss_delay(&mut self, conditions: &Conditions, length: usize) -> Duration {
        let mut longest = Duration::ZERO;
        for _ in 0..length.div_ceil(SEGMENT_BYTES) {
            let (mut delay, mut timeout) = (Duration::ZERO, RETRANSMISSION_TIMEOUT + 2 * conditions.delay);
            let mut losses = 0;
            while losses < MOST_LOSSES && self.happens(conditions.lost_per_million) {
                delay += timeout;
                timeout *= 2;
                losses += 1;
            }
            longest = longest.max(delay);
        }
        longest
    }

    /// Flips a bit in some segments.
    fn corrupt(&mut self, conditions: &Conditions, bytes: &mut [u8]) {
        for segment in bytes.chunks_mut(SEGMENT_BYTES) {
            if self.happens(conditions.corrupted_per_million) {
                let bit = self.next() % (segment.len() as u64 * 8);
                segment[(bit / 8) as usize] ^= 1 << (bit % 8);
            }
        }
    }
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

    #[tokio::test(start_paused = true)]
    async fn what_is_lost_arrives_late_but_whole_and_in_order() {
        let lossy = Conditions { lost_per_million: 500_000, ..Conditions::default() };
        let (_proxy, mut client, mut server) = through(lossy).await;
        let start = Instant::now();
        for number in 0..20u8 {
            client.write_all(&[number; 100]).await.unwrap();
            arrives(&mut server, &[number; 100]).await;
        }
        // Each second one on average; these are always the same ones.
        assert!(start.elapsed() >= RETRANSMISSION_TIMEOUT * 5, "{:?}", start.elapsed());
    }

    #[test]
    fn further_losses_of_a_segment_wait_twice_as_long_each() {
        let hopeless = Conditions { lost_per_million: 1_000_000, ..Conditions::default() };
        let delay = Chance::of(Direction::ToServer).loss_delay(&hopeless, 1);
        assert_eq!(delay, RETRANSMISSION_TIMEOUT * ((1 << MOST_LOSSES) - 1));
        assert_eq!(
            Chance::of(Direction::ToServer).loss_delay(&Conditions::default(), 1 << 20),
            Duration::ZERO
        );
    }

    #[tokio::test]
    async fn a_corrupt_segment_has_one_wrong_bit() {
        let corrupt = Conditions { corrupted_per_million: 1_000_000, ..Conditions::default() };
        let (_proxy, mut client, mut server) = through(corrupt).await;
        client.write_all(&[0; 1000]).await.unwrap();
        let mut found = [0; 1000];
        server.read_exact(&mut found).await.unwrap();
        let wrong: u32 = found.iter().map(|byte| byte.count_ones()).sum();
        assert!(wrong >= 1, "a bit of each segment is wrong");
        assert!(wrong <= 8, "{wrong} bits are wrong");
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
