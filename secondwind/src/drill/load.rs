//! The drill's clients: TCP hosts on its switch, each with some connections, which ask one
//! request after another and write down what they saw.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netbuf::MacAddress;
use netbuf::host::{Host, HostConfig, HostStream};
use netbuf::switch::Switch;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::clock::Clock;
use super::history::{Answer, Operation, Request};
use super::random::Random;
use super::workload::Workload;

/// What the clients do.
#[derive(Debug, Clone)]
pub struct LoadPlan {
    /// The protocol.
    pub workload: Workload,
    /// Address of the guest; its service's port follows from the workload.
    pub guest: Ipv4Addr,
    /// Client hosts.
    pub hosts: usize,
    /// TCP connections of all hosts together.
    pub connections: usize,
    /// Mean time from one request of a connection to its next.
    pub interval: Duration,
    /// Out of a hundred requests, how many set a key.
    pub put_percent: u64,
    /// Keys in use at a time.
    pub keys: usize,
    /// A key is left for a fresh one after this many requests: checking a key's history
    /// costs the square of its length.
    pub operations_per_key: u64,
    /// Seeds what is asked and when.
    pub seed: u64,
}

/// Clients at work. Dropping it stops them where they stand.
pub struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<Option<Connection>>,
    /// They carry the connections.
    _hosts: Vec<Host>,
}

/// The clients' address range: 10.0.2.100 and on.
const FIRST_CLIENT_OCTET: u8 = 100;
/// How long a guest that took its time to boot may take to answer a first connection.
const CONNECT_PATIENCE: Duration = Duration::from_millis(500);
/// A client that cannot reach the guest yet tries again after this.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);
/// How long requests under way may take once the load is to end.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// How long the read-back of everything may take.
const READ_BACK_PATIENCE: Duration = Duration::from_secs(60);

struct Shared {
    clock: Clock,
    plan: LoadPlan,
    stopping: AtomicBool,
    /// Requests made about each key slot; says which key it stands for.
    key_counts: Vec<AtomicU64>,
    answered: AtomicU64,
    /// When each connection was last answered, in the drill's nanoseconds.
    last_answers_ns: Vec<AtomicU64>,
    histories: Vec<Mutex<Vec<Operation>>>,
    broken: Mutex<Vec<String>>,
}

impl Load {
    /// Puts the client hosts on the switch, connects them, and lets them begin. Waits for
    /// the guest for as long as it takes: the caller sets the limit.
    ///
    /// # Errors
    /// When the guest refuses or breaks a connection after it accepted a first one.
    pub async fn start(switch: &Switch, plan: LoadPlan, clock: Clock) -> Result<Load> {
        let hosts =
            (0..plan.hosts).map(|index| client_host(switch, &plan, index)).collect::<Result<Vec<_>>>()?;
        let connections = plan.connections;
        let shared = Arc::new(Shared {
            clock,
            stopping: AtomicBool::new(false),
            key_counts: (0..plan.keys).map(|_| AtomicU64::new(0)).collect(),
            answered: AtomicU64::new(0),
            last_answers_ns: (0..connections).map(|_| AtomicU64::new(0)).collect(),
            histories: (0..connections).map(|_| Mutex::default()).collect(),
            broken: Mutex::default(),
            plan,
        });
        let mut opened = Vec::new();
        for index in 0..connections {
            let stream = reach(&hosts[index % hosts.len()], &shared.plan).await;
            opened.push(Connection { index, stream, received: Vec::new(), workload: shared.plan.workload });
        }
        let mut clients = JoinSet::new();
        for connection in opened {
            clients.spawn(run_client(connection, Arc::clone(&shared)));
        }
        Ok(Load { shared, clients, _hosts: hosts })
    }

    /// Requests answered until now.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// When a client was last answered.
    pub fn last_answer_ns(&self) -> u64 {
        self.last_answers().max().unwrap_or(0)
    }

    /// Whether every connection was answered at or after this time.
    pub fn all_answered_since(&self, since_ns: u64) -> bool {
        self.last_answers().all(|last_ns| last_ns >= since_ns)
    }

    /// Number of connections.
    pub fn connections(&self) -> usize {
        self.shared.histories.len()
    }

    /// Connections that broke, each with how.
    pub fn broken(&self) -> Vec<String> {
        lock(&self.shared.broken).clone()
    }

    fn last_answers(&self) -> impl Iterator<Item = u64> {
        self.shared.last_answers_ns.iter().map(|last| last.load(Ordering::Relaxed))
    }

    /// What the clients did since the load began, requests under way left out.
    pub fn history(&self) -> Vec<Operation> {
        self.shared.histories.iter().flat_map(|history| lock(history).clone()).collect()
    }

    /// Ends the load: no new requests, those under way are answered or given up; then reads
    /// every key back over the same connections.
    pub async fn finish(mut self) -> Finished {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let mut connections = Vec::new();
        let drain = async {
            while let Some(joined) = self.clients.join_next().await {
                connections.extend(joined.ok().flatten());
            }
        };
        let drained = tokio::time::timeout(DRAIN_PATIENCE, drain).await.is_ok();
        let history = self.history();
        let mut broken = self.broken();
        if !drained {
            let silent = self.connections() - connections.len() - broken.len();
            broken.push(format!("{silent} connections waited {} s for an answer", DRAIN_PATIENCE.as_secs()));
        }
        if connections.is_empty() {
            return Finished { history, broken, read_back: Err("no connection is left".into()) };
        }
        let keys: BTreeSet<String> = history.iter().map(|operation| operation.key.clone()).collect();
        let reading = read_back(connections, keys, self.shared.clock);
        let read_back = match tokio::time::timeout(READ_BACK_PATIENCE, reading).await {
            Ok(Ok(read)) => Ok(read),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(_) => Err(format!("not finished after {} s", READ_BACK_PATIENCE.as_secs())),
        };
        Finished { history, broken, read_back }
    }
}

/// What is left when the load has ended.
pub struct Finished {
    /// All that the clients did; the read-back is not in it.
    pub history: Vec<Operation>,
    /// Connections that broke, each with how.
    pub broken: Vec<String>,
    /// A get of every key after the load, or why there is none.
    pub read_back: Result<Vec<Operation>, String>,
}

fn client_host(switch: &Switch, plan: &LoadPlan, index: usize) -> Result<Host> {
    let octet = u8::try_from(index).ok().and_then(|index| FIRST_CLIENT_OCTET.checked_add(index));
    let Some(octet) = octet.filter(|&octet| octet < u8::MAX) else {
        bail!("{} client hosts are too many for one network; give at most 100", plan.hosts);
    };
    let [a, b, c, _] = plan.guest.octets();
    let mac = MacAddress([0x02, 0x53, 0x57, 0, 0, octet]);
    let mut config = HostConfig::new(mac, Ipv4Addr::new(a, b, c, octet));
    config.seed = Random::new(plan.seed, 1000 + index as u64).next();
    Ok(Host::start(switch.attach(), config))
}

/// Connects, however long the guest takes to be there.
async fn reach(host: &Host, plan: &LoadPlan) -> HostStream {
    let service = SocketAddrV4::new(plan.guest, plan.workload.port());
    loop {
        match tokio::time::timeout(CONNECT_PATIENCE, host.connect(service)).await {
            Ok(Ok(stream)) => return stream,
            Ok(Err(_)) | Err(_) => tokio::time::sleep(CONNECT_PAUSE).await,
        }
    }
}

/// One connection's part of the load. Gives the connection back unless it broke.
async fn run_client(mut connection: Connection, shared: Arc<Shared>) -> Option<Connection> {
    let index = connection.index;
    let mut random = Random::new(shared.plan.seed, 2000 + index as u64);
    let mut written = 0u64;
    let mut due = tokio::time::Instant::now();
    while !shared.stopping.load(Ordering::Relaxed) {
        let interval = shared.plan.interval;
        // After a silence there is nothing to catch up with: this is a closed loop.
        due = due.max(tokio::time::Instant::now()) + random.between(interval / 2, interval * 3 / 2);
        tokio::time::sleep_until(due).await;
        let key = shared.next_key(&mut random);
        let request = if random.below(100) < shared.plan.put_percent {
            written += 1;
            Request::Put(format!("c{index}n{written}"))
        } else {
            Request::Get
        };
        let called_ns = shared.begin(index, &key, &request);
        match connection.ask(&key, &request).await {
            Ok(answer) => shared.answered(index, called_ns, answer),
            Err(error) => {
                lock(&shared.broken).push(format!("connection {index}: {error:#}"));
                return None;
            }
        }
    }
    Some(connection)
}

impl Shared {
    /// The key of a random slot; slots take a fresh key now and then.
    fn next_key(&self, random: &mut Random) -> String {
        let slot = random.below(self.key_counts.len() as u64) as usize;
        let count = self.key_counts[slot].fetch_add(1, Ordering::Relaxed);
        format!("k{slot}g{}", count / self.plan.operations_per_key)
    }

    /// Writes down that a request goes out, and gives the time.
    fn begin(&self, index: usize, key: &str, request: &Request) -> u64 {
        let called_ns = self.clock.now_ns();
        lock(&self.histories[index]).push(Operation {
            connection: index,
            key: key.to_owned(),
            request: request.clone(),
            called_ns,
            answer: None,
        });
        called_ns
    }

    /// Writes down the answer to the request that went out at `called_ns`.
    fn answered(&self, index: usize, called_ns: u64, answer: Answer) {
        let returned_ns = self.clock.now_ns().max(called_ns);
        if let Some(operation) = lock(&self.histories[index]).last_mut() {
            operation.answer = Some((returned_ns, answer));
        }
        self.last_answers_ns[index].store(returned_ns, Ordering::Relaxed);
        self.answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// Gets every key once, the keys shared out among the connections.
async fn read_back(
    connections: Vec<Connection>,
    keys: BTreeSet<String>,
    clock: Clock,
) -> Result<Vec<Operation>> {
    let mut shares: Vec<Vec<String>> = vec![Vec::new(); connections.len()];
    for (position, key) in keys.into_iter().enumerate() {
        shares[position % connections.len()].push(key);
    }
    let mut readers = JoinSet::new();
    for (mut connection, share) in connections.into_iter().zip(shares) {
        readers.spawn(async move {
            let mut read = Vec::new();
            for key in share {
                let called_ns = clock.now_ns();
                let answer =
                    connection.ask(&key, &Request::Get).await.with_context(|| format!("key {key}"))?;
                let answer = Some((clock.now_ns().max(called_ns), answer));
                read.push(Operation {
                    connection: connection.index,
                    key,
                    request: Request::Get,
                    called_ns,
                    answer,
                });
            }
            anyhow::Ok(read)
        });
    }
    let mut all = Vec::new();
    while let Some(joined) = readers.join_next().await {
        all.extend(joined.context("a reader was stopped")??);
    }
    Ok(all)
}

/// A client's TCP connection, with what of an answer is there already.
struct Connection {
    index: usize,
    stream: HostStream,
    received: Vec<u8>,
    workload: Workload,
}

impl Connection {
    async fn ask(&mut self, key: &str, request: &Request) -> Result<Answer> {
        self.stream.write_all(&self.workload.encode(key, request)).await.context("cannot send")?;
        loop {
            if let Some((answer, bytes)) = self.workload.decode(&self.received)? {
                self.received.drain(..bytes);
                if !self.received.is_empty() {
                    bail!("{} bytes came that nothing asked for", self.received.len());
                }
                return Ok(answer);
            }
            if self.stream.read_buf(&mut self.received).await.context("cannot receive")? == 0 {
                bail!("the guest closed it");
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
