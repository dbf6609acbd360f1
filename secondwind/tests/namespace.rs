//! The pair on real network devices: two hosts and the clients' network as namespaces, tap
//! devices, the kernel's TCP, redis-benchmark. Needs root, /dev/net/tun and `ip`, and says so
//! when it misses one.
//!
//! ```text
//!   namespace a: tap sw0 -- bridge -- veth --+
//!                                            bridge 10.0.2.1 : namespace n, the clients
//!   namespace b: tap sw0 -- bridge -- veth --+
//!
//!   a 10.9.0.1 ---- veth ---- 10.9.0.2 b     the pair's own link
//! ```

#![allow(clippy::unwrap_used)] // Helpers are tests too.

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_secondwind");
const GUEST: &str = "10.0.2.15";

/// Three namespaces and what runs in them; all of it goes when this is dropped.
struct Net {
    name: String,
    folder: TempDir,
    agents: Vec<(String, Child)>,
}

/// Why these tests cannot run here.
fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("no network namespaces without root".into());
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("there is no /dev/net/tun".into());
    }
    Command::new("ip").arg("-V").output().err().map(|_| "there is no `ip` (package iproute2)".into())
}

/// Says why a test is not run, past the test harness, which would swallow it.
fn not_run(why: &str) {
    let line = format!("namespace test NOT RUN: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
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
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sw{}x{count}", std::process::id());
        let net = Net { name, folder: tempfile::tempdir().unwrap(), agents: Vec::new() };
        for host in ["n", "a", "b"] {
            ip(&format!("netns add {}", net.namespace(host)));
            net.ip_in(host, "link set lo up");
            net.ip_in(host, "link add br0 type bridge forward_delay 0");
            net.ip_in(host, "link set br0 up");
        }
        net.ip_in("n", "addr add 10.0.2.1/24 dev br0");
        for host in ["a", "b"] {
            let (of_host, of_net) = (net.namespace(host), net.namespace("n"));
            ip(&format!("link add up0 netns {of_host} type veth peer name {host}0 netns {of_net}"));
            net.ip_in("n", &format!("link set {host}0 master br0 up"));
            net.ip_in(host, "link set up0 master br0 up");
            net.ip_in(host, "tuntap add sw0 mode tap");
            net.ip_in(host, "link set sw0 master br0 up");
        }
        let (a, b) = (net.namespace("a"), net.namespace("b"));
        ip(&format!("link add pair0 netns {a} type veth peer name pair0 netns {b}"));
        for (host, address) in [("a", "10.9.0.1"), ("b", "10.9.0.2")] {
            net.ip_in(host, &format!("addr add {address}/24 dev pair0"));
            net.ip_in(host, "link set pair0 up");
        }
        let keys = net.path("keys");
        run(Command::new(PROGRAM).arg("keygen").arg(keys).args(["a", "b"]));
        net
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

    /// A command that runs in a host's namespace.
    fn command_in(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host), program]).stdin(Stdio::null());
        command
    }

    /// Starts an agent on host `a` or `b`.
    fn start(&mut self, role: &str, host: &str, guest: &str) {
        let address = if host == "a" { "10.9.0.1:7420" } else { "10.9.0.2:7420" };
        let log = File::create(self.path(&format!("{host}.log"))).unwrap();
        let mut command = self.command_in(host, PROGRAM);
        command.args([role, "--guest", guest, "--net", "tap:sw0", "--node", host, "--listen", address]);
        command.arg("--keys").arg(self.path("keys"));
        command.arg("--arbiter").arg(format!("lock:{}", self.path("arbiter").display()));
        command.arg("--control").arg(self.path(&format!("{host}.sock")));
        command.arg("--console").arg(self.path(&format!("{host}.console")));
        if role == "backup" {
            command.args(["--primary", "10.9.0.1:7420"]);
        }
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.agents.push((host.to_owned(), child));
    }

    /// Kills the agent of a host with SIGKILL: `ip netns exec` has become the agent itself.
    fn kill(&mut self, host: &str) {
        let agent = self.agents.iter_mut().find(|(name, _)| name == host);
        let (_, child) = agent.unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits until the status of the agent of `host` is such.
    fn wait_for(&mut self, host: &str, what: &str, holds: impl Fn(&Value) -> bool) {
        loop {
            let socket = self.path(&format!("{host}.sock"));
            let output = Command::new(PROGRAM).args(["status", "--json", "--control"]).arg(socket).output();
            let answers: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap_or_default();
            if holds(&answers[0]) {
                return;
            }
            for (name, child) in &mut self.agents {
                if name == host && child.try_wait().unwrap().is_some() {
                    let log = self.folder.path().join(format!("{host}.log"));
                    panic!("{host} ended before {what}: {}", std::fs::read_to_string(log).unwrap());
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A protected machine on `a`, with `b` standing by.
    fn protect(&mut self, guest: &str) {
        self.start("primary", "a", guest);
        self.wait_for("a", "it was live", |status| status["role"] == "primary");
        self.start("backup", "b", guest);
        self.wait_for("a", "it was protected", |status| status["protected"] == true);
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for (_, child) in &mut self.agents {
            let _ = child.kill();
            let _ = child.wait();
        }
        for host in ["n", "a", "b"] {
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(host)]).output();
        }
    }
}

/// Runs `work` on a thread whose sockets are in the clients' namespace.
fn in_clients_network<Outcome: Send + 'static>(
    net: &Net,
    work: impl FnOnce() -> Outcome + Send + 'static,
) -> JoinHandle<Outcome> {
    let namespace = File::open(format!("/var/run/netns/{}", net.namespace("n"))).unwrap();
    std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
}

fn connect(port: u16) -> TcpStream {
    let guest: SocketAddr = format!("{GUEST}:{port}").parse().unwrap();
    loop {
        if let Ok(stream) = TcpStream::connect_timeout(&guest, Duration::from_secs(1)) {
            stream.set_nodelay(true).unwrap();
            return stream;
        }
    }
}

/// Asks for one line.
fn ask(stream: &mut BufReader<TcpStream>, request: &str) -> String {
    stream.get_mut().write_all(format!("{request}\n").as_bytes()).unwrap();
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    assert!(line.ends_with('\n'), "the guest closed the connection");
    line.trim_end().to_owned()
}

/// The length in a ledger's answer.
fn length(answer: &str) -> u64 {
    answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
}

#[test]
fn namespace_ledger_keeps_connections_of_the_kernel() {
    if let Some(why) = missing() {
        return not_run(&why);
    }
    let mut net = Net::new();
    net.protect("ledger");
    let answered = Arc::new(AtomicU64::new(0));
    let stopping = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let (answered, stopping) = (Arc::clone(&answered), Arc::clone(&stopping));
            in_clients_network(&net, move || {
                let mut stream = BufReader::new(connect(7000));
                let (mut puts, mut last) = (0u64, 0);
                while !stopping.load(Ordering::Relaxed) {
                    let now = length(&ask(&mut stream, &format!("PUT k{client} v{puts}")));
                    assert!(now > last, "the ledger shrank from {last} to {now}");
                    (puts, last) = (puts + 1, now);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                assert_eq!(
                    ask(&mut stream, &format!("GET k{client}")).split(' ').nth(3),
                    Some(&*format!("v{}", puts - 1))
                );
                (puts, length(&ask(&mut stream, "SUM")))
            })
        })
        .collect();
    let more = |answers: u64| {
        let target = answered.load(Ordering::Relaxed) + answers;
        while answered.load(Ordering::Relaxed) < target {
            assert!(!clients.iter().any(JoinHandle::is_finished), "a client ended");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    more(500);
    net.kill("a");
    more(500);
    stopping.store(true, Ordering::Relaxed);
    let ends: Vec<(u64, u64)> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    let acknowledged: u64 = ends.iter().map(|(puts, _)| puts).sum();
    let held = ends.iter().map(|(_, length)| *length).max();
    assert_eq!(held, Some(acknowledged), "every acknowledged entry is there, once");
    net.wait_for("b", "it was live", |status| status["role"] == "primary" && status["term"] == 2);
}

#[test]
fn namespace_debian_serves_redis_benchmark_through_the_kill() {
    if let Some(why) = missing() {
        return not_run(&why);
    }
    if Command::new("redis-benchmark").arg("--version").output().is_err() {
        return not_run("there is no redis-benchmark (package redis-tools)");
    }
    if !debian_folder().join("Image").exists() {
        return not_run("the Debian guest is not there; run tests/run, or guest/debian/build");
    }
    let mut net = Net::new();
    net.start("primary", "a", "debian");
    net.wait_for("a", "it was live", |status| status["role"] == "primary");
    let booted = in_clients_network(&net, || drop(connect(6379)));
    booted.join().unwrap();
    net.start("backup", "b", "debian");
    net.wait_for("a", "it was protected", |status| status["protected"] == true);

    const REQUESTS: u64 = 12_000;
    let mut benchmark = net.command_in("n", "redis-benchmark");
    benchmark.args(["-h", GUEST, "-c", "8", "-n", &REQUESTS.to_string(), "-t", "incr", "--csv"]);
    let mut benchmark = benchmark.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while counter(&net) < REQUESTS / 4 {
        assert!(benchmark.try_wait().unwrap().is_none(), "redis-benchmark ended too early");
        std::thread::sleep(Duration::from_millis(20));
    }
    net.kill("a");
    let output = benchmark.wait_with_output().unwrap();
    let shown =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && !shown.to_lowercase().contains("error"), "{shown}");
    assert!(shown.contains("INCR"), "{shown}");
    assert_eq!(counter(&net), REQUESTS, "every request took effect, once");
    net.wait_for("b", "it was live", |status| status["role"] == "primary" && status["term"] == 2);
}

/// What redis-benchmark has counted up to.
fn counter(net: &Net) -> u64 {
    let output = run(net.command_in("n", "redis-cli").args(["-h", GUEST, "get", "counter:__rand_int__"]));
    String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or(0)
}

/// Where guest/debian/build puts its images.
fn debian_folder() -> PathBuf {
    let from = |name: &str| std::env::var_os(name).map(PathBuf::from);
    from("SECONDWIND_DEBIAN").unwrap_or_else(|| {
        let cache = from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache")));
        cache.unwrap_or_default().join("secondwind/debian")
    })
}
