//! `--durability disk`: all nodes are killed at once, under load, and go on from their logs.

#![allow(clippy::unwrap_used)] // Helpers are tests too.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use common::{Cluster, secondwind};
use nix::sys::signal::Signal;

/// An entry that the ledger said it has: its place, the hash after it, and its text.
struct Acknowledged {
    length: u64,
    hash: u64,
    key: String,
    value: String,
}

/// Clients that put entries of their own, one after the other each, over whatever connection they get.
struct Clients {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<Acknowledged>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    fn start(ports: [u16; 2], count: usize) -> Clients {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let threads = (0..count)
            .map(|client| {
                let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
                std::thread::spawn(move || {
                    let mut number = 0;
                    while !stop.load(Ordering::Acquire) {
                        for port in ports {
                            put_until_it_breaks(port, client, &mut number, &stop, &acknowledged);
                        }
                        std::thread::sleep(Duration::from_millis(5));
                    }
                })
            })
            .collect();
        Clients { stop, acknowledged, threads }
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    fn wait_for_more(&self, more: usize) {
        let before = self.count();
        while self.count() < before + more {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(self) -> Vec<Acknowledged> {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads {
            thread.join().unwrap();
        }
        Arc::into_inner(self.acknowledged).unwrap().into_inner().unwrap()
    }
}

fn put_until_it_breaks(
    port: u16,
    client: usize,
    number: &mut u64,
    stop: &AtomicBool,
    acknowledged: &Mutex<Vec<Acknowledged>>,
) {
    let Some(mut connection) = connect(port) else { return };
    while !stop.load(Ordering::Acquire) {
        // Never asked twice: one whose answer was lost may be there or not.
        *number += 1;
        let (key, value) = (format!("c{client}n{number}"), format!("v{number}"));
        let Some(answer) = ask(&mut connection, &format!("PUT {key} {value}")) else { return };
        let (length, hash) = place(&answer, "OK").expect("an acknowledgement");
        acknowledged.lock().unwrap().push(Acknowledged { length, hash, key, value });
    }
}

fn connect(port: u16) -> Option<BufReader<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    Some(BufReader::new(stream))
}

fn ask(connection: &mut BufReader<TcpStream>, request: &str) -> Option<String> {
    connection.get_mut().write_all(format!("{request}\n").as_bytes()).ok()?;
    let mut answer = String::new();
    connection.read_line(&mut answer).ok().filter(|_| answer.ends_with('\n')).map(|_| answer)
}

/// Length and hash of an answer of this kind.
fn place(answer: &str, kind: &str) -> Option<(u64, u64)> {
    let mut words = answer.split_whitespace();
    (words.next() == Some(kind)).then_some(())?;
    Some((words.next()?.parse().ok()?, u64::from_str_radix(words.next()?, 16).ok()?))
}

fn fnv(hash: u64, text: &str) -> u64 {
    text.bytes().fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Everything acknowledged is in one ledger, in the order that was acknowledged.
fn check(acknowledged: Vec<Acknowledged>, ports: [u16; 2]) {
    let count = acknowledged.len();
    let by_place: BTreeMap<u64, &Acknowledged> =
        acknowledged.iter().map(|entry| (entry.length, entry)).collect();
    assert_eq!(by_place.len(), count, "two entries were acknowledged at one place");
    let mut neighbours = 0;
    for (length, entry) in &by_place {
        let Some(before) = by_place.get(&(length - 1)) else { continue };
        let text = format!("{} {}\n", entry.key, entry.value);
        assert_eq!(fnv(before.hash, &text), entry.hash, "entry {length} does not continue the one before");
        neighbours += 1;
    }
    assert!(neighbours > count / 2, "most of the order is checked");
    let mut connection = ports.into_iter().find_map(connect).unwrap();
    for entry in &acknowledged {
        let answer = ask(&mut connection, &format!("GET {}", entry.key)).unwrap();
        let value = answer.split_whitespace().nth(3);
        assert_eq!(value, Some(entry.value.as_str()), "entry {} is lost: {answer}", entry.length);
    }
    let (length, _) = place(&ask(&mut connection, "SUM").unwrap(), "SUM").unwrap();
    let last = by_place.keys().last().copied().unwrap_or_default();
    assert!(length >= last, "{last} entries were acknowledged, {length} are there");
}

/// Below those that the system gives to connections: it stays free until a node leads.
fn free_port() -> u16 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut ports = std::iter::repeat_with(|| {
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        10_000 + ((std::process::id() * 16 + number) % 20_000) as u16
    });
    ports.find(free).expect("a port is free")
}

/// A cluster in which every node keeps a log on disk.
struct Durable {
    cluster: Cluster,
    /// Where each node forwards to the guest while it leads. Not the same: a port cannot change
    /// hands between two processes in no time.
    ports: [u16; 2],
}

impl Durable {
    fn start(&mut self, command: &str, node: &str, more: &[&str]) {
        let log = self.cluster.path(&format!("{node}.log")).display().to_string();
        let forward = format!("{}:7000", self.ports[usize::from(node != "a")]);
        let durable = ["--durability", "disk", "--log-dir", &log, "--forward", &forward];
        self.cluster.start(command, node, &["a", "b"], &[&durable[..], more].concat());
    }

    /// Kills both at once: neither sees the other go.
    fn kill_both(&mut self) {
        for node in ["b", "a"] {
            self.cluster.signal(node, Signal::SIGSTOP);
        }
        for node in ["a", "b"] {
            self.cluster.kill(node);
        }
    }

    /// Waits until one of the nodes leads and counts on the other.
    fn wait_protected(&mut self) -> &'static str {
        loop {
            for node in ["a", "b"] {
                if self.cluster.status(node).is_some_and(|status| status["protected"] == true) {
                    return node;
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Kills both nodes at once, again and again, and starts them with each of these options in turn.
fn survives(modes: &[&[&str]]) {
    let mut durable = Durable { cluster: Cluster::new(), ports: [free_port(), free_port()] };
    durable.start("primary", "a", modes[0]);
    durable.start("backup", "b", modes[0]);
    durable.cluster.wait_protected("a");
    let clients = Clients::start(durable.ports, 3);
    let mut terms = Vec::new();
    for more in modes.iter().copied() {
        clients.wait_for_more(150);
        durable.kill_both();
        // The same command everywhere: the arbiter says who goes on.
        durable.start("agent", "a", more);
        durable.start("agent", "b", more);
        let leader = durable.wait_protected();
        terms.push(durable.cluster.status(leader).unwrap()["term"].as_u64());
    }
    clients.wait_for_more(150);
    check(clients.end(), durable.ports);
    assert!(terms.is_sorted() && terms[0] >= Some(2), "{terms:?}");
    for node in ["a", "b"] {
        durable.cluster.kill(node);
        let log = durable.cluster.path(&format!("{node}.log"));
        let replayed = secondwind(&["replay", log.to_str().unwrap()]);
        assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_both_nodes_die_at_once() {
    survives(&[&[], &["--mode", "hybrid"], &[]]);
}

#[test]
fn nor_in_checkpoint_mode_and_from_one_mode_to_another() {
    survives(&[&["--mode", "checkpoint"], &["--mode", "auto"], &["--mode", "checkpoint"]]);
}

#[test]
fn a_backup_that_holds_less_is_refused_and_one_that_holds_more_is_taken() {
    let mut durable = Durable { cluster: Cluster::new(), ports: [free_port(), free_port()] };
    durable.start("primary", "a", &[]);
    durable.cluster.start("backup", "b", &["a", "b"], &[]);
    assert_eq!(durable.cluster.wait_end("b").code(), Some(3));
    let errors = durable.cluster.errors("b");
    let said = "found --durability memory at b, expected disk, as at the primary a; start b with";
    assert!(errors.contains(said), "{errors}");
    durable.start("backup", "b", &[]);
    durable.cluster.wait_protected("a");

    let mut other = Durable { cluster: Cluster::new(), ports: [free_port(), free_port()] };
    other.cluster.start("primary", "a", &["a", "b"], &[]);
    other.start("backup", "b", &[]);
    other.cluster.wait_protected("a");
}

#[test]
fn either_node_goes_on_alone_from_its_own_log() {
    for (survivor, mode) in [("a", "replay"), ("b", "replay"), ("a", "checkpoint"), ("b", "checkpoint")] {
        let mut durable = Durable { cluster: Cluster::new(), ports: [free_port(), free_port()] };
        durable.start("primary", "a", &["--mode", mode]);
        durable.start("backup", "b", &["--mode", mode]);
        durable.cluster.wait_protected("a");
        let clients = Clients::start(durable.ports, 2);
        clients.wait_for_more(100);
        durable.kill_both();
        durable.start("agent", survivor, &["--mode", mode]);
        durable.cluster.wait_role(survivor, "primary");
        clients.wait_for_more(50);
        check(clients.end(), durable.ports);
    }
}

#[test]
fn a_log_that_others_went_on_without_is_not_gone_on_from() {
    let mut durable = Durable { cluster: Cluster::new(), ports: [free_port(), free_port()] };
    durable.start("primary", "a", &[]);
    durable.start("backup", "b", &[]);
    durable.cluster.wait_protected("a");
    durable.cluster.kill("a");
    durable.cluster.wait_role("b", "primary");
    durable.start("primary", "a", &[]);
    assert_eq!(durable.cluster.wait_end("a").code(), Some(1));
    let errors = durable.cluster.errors("a");
    assert!(errors.contains("start this one as a backup"), "{errors}");
    // As a backup it begins a new log, and keeps the old one.
    durable.start("agent", "a", &[]);
    durable.cluster.wait_protected("b");
    assert!(durable.cluster.path("a.log/previous").is_dir());
}

#[test]
fn switchovers_between_logs_on_disk_lose_nothing() {
    let mut durable = Durable { cluster: Cluster::new(), ports: [free_port(), free_port()] };
    durable.start("primary", "a", &[]);
    durable.start("backup", "b", &[]);
    durable.cluster.wait_protected("a");
    let clients = Clients::start(durable.ports, 2);
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "b")] {
        clients.wait_for_more(80);
        let socket = durable.cluster.socket(from);
        let output = secondwind(&["switchover", socket.to_str().unwrap(), "--to", to]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        durable.cluster.wait_protected(to);
        durable.cluster.wait_role(from, "backup");
    }
    clients.wait_for_more(80);
    check(clients.end(), durable.ports);
    // Each of them began a new log when it became a backup.
    for node in ["a", "b"] {
        assert!(durable.cluster.path(&format!("{node}.log/durable")).is_file(), "{node} promises");
    }
}
