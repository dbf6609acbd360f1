//! A pair that is arbitrated by a real etcd of three members, each host and each member in a
//! network namespace of its own, and what happens when they lose sight of each other. Never
//! two live machines: checked from outside, by what clients on all sides were answered. Needs
//! root, /dev/net/tun, `ip` and `etcd`, and says so when it misses one.
//!
//! ```text
//!   namespace n:   bridge net 10.0.2.1      bridge arb           bridge pair
//!                   |            |           |     |    |           |     |
//!                  net-a        net-b      arb-a arb-b  |         pair-a pair-b
//!   namespace a: net0 -- br0 -- tap sw0    10.8.0.11    |        10.9.0.1
//!   namespace b: net0 -- br0 -- tap sw0    10.8.0.12    |        10.9.0.2
//!   namespaces m0, m1, m2: etcd                     10.8.0.1 .. 3
//! ```
//!
//! A cut takes a port from its bridge: frames vanish, and nobody is told.

#![allow(clippy::unwrap_used)] // Helpers are tests too.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use tempfile::TempDir;

#[path = "../../link/tests/common/etcd.rs"]
mod etcd;
use etcd::{EtcdCluster, is_missing};

const PROGRAM: &str = env!("CARGO_BIN_EXE_secondwind");
const GUEST: &str = "10.0.2.15:7000";
const NAMESPACES: [&str; 6] = ["n", "a", "b", "m0", "m1", "m2"];
/// Far beyond what any step takes, on however busy a machine.
const LONGEST: Duration = Duration::from_secs(90);

/// The namespaces and what runs in them; all of it goes when this is dropped.
struct Net {
    name: String,
    folder: TempDir,
    agents: BTreeMap<String, Child>,
    etcd: Option<EtcdCluster>,
}

/// Says why a test is not run, past the test harness, which would swallow it.
fn cannot_run() -> bool {
    let why = if !nix::unistd::geteuid().is_root() {
        "no network namespaces without root"
    } else if !Path::new("/dev/net/tun").exists() {
        "there is no /dev/net/tun"
    } else if Command::new("ip").arg("-V").output().is_err() {
        "there is no `ip` (package iproute2)"
    } else {
        return is_missing();
    };
    std::io::stderr().write_all(format!("namespace test NOT RUN: {why}\n").as_bytes()).unwrap();
    true
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    output
}

fn ip(arguments: &str) {
    run(Command::new("ip").args(arguments.split_whitespace()));
}

impl Net {
    fn new() -> Net {
        let name = format!("swe{}", std::process::id());
        let mut net = Net { name, folder: tempfile::tempdir().unwrap(), agents: BTreeMap::new(), etcd: None };
        for host in NAMESPACES {
            ip(&format!("netns add {}", net.namespace(host)));
            net.ip_in(host, "link set lo up");
        }
        for bridge in ["net", "arb", "pair"] {
            net.bridge("n", bridge);
        }
        net.ip_in("n", "addr add 10.0.2.1/24 dev net");
        for (host, number) in [("a", 1), ("b", 2)] {
            net.bridge(host, "br0");
            net.wire(host, "net");
            net.ip_in(host, "link set net0 master br0 up");
            net.ip_in(host, "tuntap add sw0 mode tap");
            net.ip_in(host, "link set sw0 master br0 up");
            net.ip_in(host, &format!("addr add 10.0.2.{}/24 dev br0", 1 + number));
            net.wire(host, "pair");
            net.ip_in(host, &format!("addr add 10.9.0.{number}/24 dev pair0"));
            net.wire(host, "arb");
            net.ip_in(host, &format!("addr add 10.8.0.{}/24 dev arb0", 10 + number));
        }
        let places = (0..3).map(|index| {
            let host = format!("m{index}");
            let address = format!("10.8.0.{}", 1 + index);
            net.wire(&host, "arb");
            net.ip_in(&host, &format!("addr add {address}/24 dev arb0"));
            let place = ["ip", "netns", "exec", &net.namespace(&host)].map(str::to_owned);
            (format!("{address}:2379"), format!("{address}:2380"), place.into())
        });
        net.etcd = Some(EtcdCluster::start_at(places.collect(), &[]));
        run(Command::new(PROGRAM).arg("keygen").arg(net.path("keys")).args(["a", "b"]));
        net
    }

    /// A bridge that forgets within a second where an address was.
    fn bridge(&self, host: &str, name: &str) {
        self.ip_in(host, &format!("link add {name} type bridge forward_delay 0 ageing_time 100"));
        self.ip_in(host, &format!("link set {name} up"));
    }

    /// A wire from a host to one of the bridges in `n`.
    fn wire(&self, host: &str, bridge: &str) {
        let (inside, outside) = (self.namespace(host), self.namespace("n"));
        ip(&format!("link add {bridge}0 netns {inside} type veth peer name {bridge}-{host} netns {outside}"));
        self.ip_in(host, &format!("link set {bridge}0 up"));
        self.ip_in("n", &format!("link set {bridge}-{host} master {bridge} up"));
    }

    fn cut(&self, host: &str, bridge: &str) {
        self.ip_in("n", &format!("link set {bridge}-{host} nomaster"));
    }

    fn heal(&self, host: &str, bridge: &str) {
        self.ip_in("n", &format!("link set {bridge}-{host} master {bridge}"));
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}{host}", self.name)
    }

    fn ip_in(&self, host: &str, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.namespace(host)));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The agent's command on host `a` or `b`.
    fn agent(&self, role: &str, host: &str, more: &[&str]) -> Command {
        let address = if host == "a" { "10.9.0.1:7420" } else { "10.9.0.2:7420" };
        let members = self.etcd.as_ref().unwrap().endpoints().join(",");
        let log = File::options().create(true).append(true).open(self.path(&format!("{host}.log"))).unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host), PROGRAM]);
        command.args([role, "--guest", "ledger", "--memory", "16M", "--net", "tap:sw0", "--node", host]);
        command.args(["--listen", address, "--detection-floor-ms", "500"]);
        command.args(["--arbiter", &format!("etcd:{members},ttl=2s,timeout=1s")]);
        command.arg("--keys").arg(self.path("keys"));
        command.arg("--control").arg(self.path(&format!("{host}.sock")));
        command.arg("--console").arg(self.path(&format!("{host}.console")));
        command.arg("--timeline").arg(self.path(&format!("{host}.timeline")));
        command.args(more).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command
    }

    fn start(&mut self, role: &str, host: &str, more: &[&str]) {
        let child = self.agent(role, host, more).spawn().unwrap();
        assert!(self.agents.insert(host.to_owned(), child).is_none(), "{host} runs already");
    }

    /// Starts the primary as soon as etcd answers; until then it ends, and says so.
    fn start_first(&mut self, host: &str) {
        loop {
            self.start("primary", host, &PEERS);
            self.wait("live or ended", |net| net.has_ended(host) || net.status(host)["role"] == "primary");
            if !self.has_ended(host) {
                return;
            }
            self.kill(host);
        }
    }

    fn has_ended(&self, host: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.agents[host].id())).unwrap();
        stat.contains(") Z ")
    }

    /// SIGKILL: `ip netns exec` has become the agent itself.
    fn kill(&mut self, host: &str) {
        let mut child = self.agents.remove(host).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn status(&self, host: &str) -> Value {
        let socket = self.path(&format!("{host}.sock"));
        let output = Command::new(PROGRAM).args(["status", "--json", "--control"]).arg(socket).output();
        let answers: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap_or_default();
        answers[0].clone()
    }

    /// Waits until `holds`, of whatever this is about.
    #[track_caller]
    fn wait(&self, what: &str, mut holds: impl FnMut(&Net) -> bool) {
        let since = Instant::now();
        while !holds(self) {
            let log = |host| std::fs::read_to_string(self.path(&format!("{host}.log"))).unwrap_or_default();
            let shown = || format!("{}{}{}{}", self.status("a"), self.status("b"), log("a"), log("b"));
            assert!(since.elapsed() < LONGEST, "not {what}: {}", shown());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    fn wait_protected(&self, host: &str) {
        self.wait(&format!("protected on {host}"), |net| net.status(host)["protected"] == true);
    }

    /// Who leads, once one does and is protected by the other.
    #[track_caller]
    fn wait_pair(&self) -> (&'static str, &'static str, u64) {
        let mut leader = None;
        self.wait("a protected pair", |net| {
            leader = ["a", "b"].into_iter().find(|host| net.status(host)["protected"] == true);
            leader.is_some()
        });
        let leader = leader.unwrap();
        let term = self.status(leader)["term"].as_u64().unwrap();
        (leader, if leader == "a" { "b" } else { "a" }, term)
    }

    /// Waits until the host releases nothing for want of a lease.
    #[track_caller]
    fn wait_unleased(&self, host: &str) {
        self.wait(&format!("the end of {host}'s lease"), |net| net.status(host)["lease_left_ms"] == 0);
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for child in self.agents.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.etcd.take();
        for host in NAMESPACES {
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(host)]).output();
        }
    }
}

/// A put that was answered: when it was asked, when answered, and the ledger's length then.
struct Put {
    asked: Instant,
    answered: Instant,
    length: u64,
}

/// One client in a namespace, that puts one value after another on one connection.
struct Client {
    answered: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<Vec<Put>>>,
}

impl Client {
    fn start(net: &Net, host: &str) -> Client {
        let namespace = File::open(format!("/var/run/netns/{}", net.namespace(host))).unwrap();
        let (answered, stopping) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stop, key) = (Arc::clone(&answered), Arc::clone(&stopping), format!("k{host}"));
        let thread = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            put_until(&stop, &count, &key)
        });
        Client { answered, stopping, thread }
    }

    fn count(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits for further answers.
    #[track_caller]
    fn more(&self, net: &Net, answers: u64) {
        let target = self.count() + answers;
        net.wait("answered", |_| {
            assert!(!self.thread.is_finished(), "a client ended");
            self.count() >= target
        });
    }

    /// Waits until what was on its way has arrived: then there is silence.
    #[track_caller]
    fn silence(&self, net: &Net) {
        let mut last = (self.count(), Instant::now());
        net.wait("silent", |_| {
            if self.count() != last.0 {
                last = (self.count(), Instant::now());
            }
            last.1.elapsed() > Duration::from_millis(700)
        });
    }

    /// Everything it saw, on a connection that held to the end.
    fn finish(self) -> Vec<Put> {
        self.stopping.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().unwrap()
    }
}

fn put_until(stopping: &AtomicBool, answered: &AtomicU64, key: &str) -> std::io::Result<Vec<Put>> {
    let guest: SocketAddr = GUEST.parse().unwrap();
    let stream = loop {
        if let Ok(stream) = TcpStream::connect_timeout(&guest, Duration::from_secs(1)) {
            break stream;
        }
    };
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut puts = Vec::new();
    while !stopping.load(Ordering::Relaxed) {
        let asked = Instant::now();
        stream.get_mut().write_all(format!("PUT {key} v{}\n", puts.len()).as_bytes())?;
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let length = line.split(' ').nth(1).and_then(|word| word.trim().parse().ok());
        let length = length.unwrap_or_else(|| panic!("the guest said {line:?}"));
        puts.push(Put { asked, answered: Instant::now(), length });
        answered.fetch_add(1, Ordering::Relaxed);
        // Enough of a load, and the test's host has others.
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(puts)
}

/// One machine did all this: each length was given once, nothing acknowledged is missing, and
/// a put that was answered before another was asked came before it.
fn assert_one_machine(mut puts: Vec<Put>) {
    puts.sort_by_key(|put| put.length);
    let mut last_asked = puts[0].asked;
    for (before, put) in puts.iter().zip(&puts[1..]) {
        last_asked = last_asked.max(before.asked);
        assert_ne!(before.length, put.length, "two machines made an entry of that length");
        assert!(
            put.answered >= last_asked,
            "entry {} was answered before an earlier one was asked",
            put.length
        );
    }
    assert_eq!(puts.last().unwrap().length, puts.len() as u64, "an acknowledged entry is missing");
}

const PEERS: [&str; 4] = ["--peer", "10.9.0.1:7420", "--peer", "10.9.0.2:7420"];

#[test]
fn namespace_real_etcd_lets_one_machine_live_through_every_partition() {
    if cannot_run() {
        return;
    }
    let mut net = Net::new();
    net.start_first("a");
    net.start("backup", "b", &PEERS);
    net.wait_protected("a");
    let clients = ["n", "a", "b"].map(|host| Client::start(&net, host));
    all_go_on(&net, &clients);
    majority_is_lost_and_returns(&net, &clients);
    one_member_is_cut_off(&net, &clients);
    primary_alone_loses_etcd(&net, &clients);
    primary_and_backup_lose_each_other(&net, &clients);
    primary_loses_both(&net, &clients);
    assert_one_machine(clients.into_iter().flat_map(Client::finish).collect());
    force_waits_for_the_lease(&mut net);
}

#[track_caller]
fn all_go_on(net: &Net, clients: &[Client]) {
    clients.iter().for_each(|client| client.more(net, 50));
}

/// The pair goes on while the lease is good, holds everything after that, and goes on in the
/// same term once etcd is back.
fn majority_is_lost_and_returns(net: &Net, clients: &[Client]) {
    let pair = net.wait_pair();
    ["m1", "m2"].iter().for_each(|member| net.cut(member, "arb"));
    net.wait_unleased(pair.0);
    clients.iter().for_each(|client| client.silence(net));
    ["m1", "m2"].iter().for_each(|member| net.heal(member, "arb"));
    all_go_on(net, clients);
    assert_eq!(net.wait_pair(), pair);
}

/// Whichever member it is, nobody notices, for longer than a lease lives.
fn one_member_is_cut_off(net: &Net, clients: &[Client]) {
    let pair = net.wait_pair();
    net.cut("m0", "arb");
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        all_go_on(net, clients);
    }
    assert_eq!(net.wait_pair(), pair);
    net.heal("m0", "arb");
}

/// It may not go on, and its backup, which sees it live, does not take over until somebody says
/// so. No word is needed when etcd comes back.
fn primary_alone_loses_etcd(net: &Net, clients: &[Client]) {
    let (leader, heir, term) = net.wait_pair();
    net.cut(leader, "arb");
    net.wait_unleased(leader);
    clients.iter().for_each(|client| client.silence(net));
    net.heal(leader, "arb");
    all_go_on(net, clients);
    assert_eq!(net.wait_pair(), (leader, heir, term));
    net.cut(leader, "arb");
    net.wait_unleased(leader);
    run(Command::new(PROGRAM).args(["takeover", "--control"]).arg(net.path(&format!("{heir}.sock"))));
    net.wait("taken over", |net| net.status(heir)["term"] == term + 1);
    all_go_on(net, clients);
    net.heal(leader, "arb");
    assert_eq!(net.wait_pair(), (heir, leader, term + 1));
}

/// They race for the record, and one goes on.
fn primary_and_backup_lose_each_other(net: &Net, clients: &[Client]) {
    net.cut("b", "pair");
    net.wait("one of them alone", |net| ["a", "b"].iter().any(|host| net.status(host)["state"] == "alone"));
    all_go_on(net, clients);
    net.heal("b", "pair");
    net.wait_pair();
    all_go_on(net, clients);
}

/// And a client with it, which hears nothing more from it.
fn primary_loses_both(net: &Net, clients: &[Client]) {
    let (leader, heir, term) = net.wait_pair();
    let beside = &clients[if leader == "a" { 1 } else { 2 }];
    ["arb", "pair", "net"].iter().for_each(|bridge| net.cut(leader, bridge));
    net.wait("taken over", |net| net.status(heir)["term"] == term + 1);
    clients[0].more(net, 50);
    beside.silence(net);
    ["arb", "pair", "net"].iter().for_each(|bridge| net.heal(leader, bridge));
    assert_eq!(net.wait_pair(), (heir, leader, term + 1));
    all_go_on(net, clients);
}

/// A primary without a backup is cut off from etcd, but not from the clients beside it. Another
/// node may start on the operator's word, but not before the lease ends, and with it the
/// answers: here only time can tell.
fn force_waits_for_the_lease(net: &mut Net) {
    let (leader, other, term) = net.wait_pair();
    net.kill(other);
    net.wait("alone", |net| net.status(leader)["state"] == "alone");
    let client = Client::start(net, leader);
    client.more(net, 50);
    ["arb", "net"].iter().for_each(|bridge| net.cut(leader, bridge));
    let mut refusals = 0;
    loop {
        net.start("primary", other, &["--force", PEERS[0], PEERS[1], PEERS[2], PEERS[3]]);
        let is_live = |net: &Net| net.status(other)["role"] == "primary";
        net.wait("live or ended", |net| net.has_ended(other) || is_live(net));
        if !net.has_ended(other) {
            break;
        }
        net.kill(other);
        refusals += 1;
    }
    let answered = client.count();
    let log = std::fs::read_to_string(net.path(&format!("{other}.log"))).unwrap();
    let because = format!("the lease of {leader} in term {term} is alive");
    assert!(refusals > 0 && log.contains(&because), "{refusals} refusals: {log}");
    client.silence(net);
    assert_eq!(client.count(), answered, "two machines were live");
    // Its connection is to a machine that is gone: the new one began at the boot.
    ["arb", "net"].iter().for_each(|bridge| net.heal(leader, bridge));
    assert_eq!(net.wait_pair(), (other, leader, term + 1));
}
