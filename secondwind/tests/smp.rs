//! Debian on several harts, as a user runs it: recorded with load from outside and inside,
//! replayed with every digest equal.

#![allow(clippy::unwrap_used)] // Helpers are tests too.

use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use serde_json::Value;

/// Longer than any of this takes on a host that does much else.
const PATIENCE: Duration = Duration::from_secs(280);

/// The sums that `secondwind.run=mixed:N:8` prints on QEMU, with any number of harts.
const MIXED_SUMS: [&str; 2] = [
    "BUILD units=8 sum=c8d0040fba97ac32",
    "bench=3b12f0b2370e9af6 FLOAT rounds=2 sum=e1d421df6e6d125b flags=1",
];

/// A running machine and what its console says.
struct Machine {
    child: Child,
    console: Receiver<Vec<u8>>,
    said: String,
}

impl Machine {
    fn start(arguments: &[&str]) -> Machine {
        let mut command = Command::new(env!("CARGO_BIN_EXE_secondwind"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap();
        let mut output = child.stdout.take().unwrap();
        let (sender, console) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Machine { child, console, said: String::new() }
    }

    /// Waits until the console has said `wanted`.
    fn wait_for(&mut self, wanted: &str) {
        while !self.said.contains(wanted) {
            match self.console.recv_timeout(PATIENCE) {
                Ok(bytes) => self.said += &String::from_utf8_lossy(&bytes),
                Err(RecvTimeoutError::Timeout) => panic!("no {wanted:?} in time: {}", self.said),
                Err(RecvTimeoutError::Disconnected) => panic!("it ended before {wanted:?}: {}", self.said),
            }
        }
    }

    /// Ctrl-C.
    fn interrupt(mut self) {
        let status = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Ended already, unless a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether guest/debian/build has been run; tests/run does so before this.
fn debian_is_there() -> bool {
    let output = Command::new(env!("CARGO_BIN_EXE_secondwind"))
        .args(["run", "--guest", "debian", "--net", "none", "--for", "0.001"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    if !output.status.success() {
        eprintln!("skipped: {}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn replay(recording: &Path, engine: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_secondwind"))
        .args(["replay", "--json", "--engine", engine])
        .arg(recording)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn debian_on_4_harts_with_redis_and_a_build_replays() {
    if !debian_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.img");
    std::fs::File::create(&disk).unwrap().set_len(32 << 20).unwrap();
    let (recording, port) = (folder.path().join("recording"), free_port());
    let forward = format!("{port}:6379");
    let mut machine = Machine::start(&[
        "record",
        recording.to_str().unwrap(),
        "--guest",
        "debian",
        "--harts",
        "4",
        "--disk",
        disk.to_str().unwrap(),
        "--forward",
        &forward,
        "--append",
        "secondwind.run=mixed:0:8",
    ]);
    machine.wait_for("4 CPUs");
    machine.wait_for("REDIS-READY");
    let port = port.to_string();
    let load = Command::new("redis-benchmark")
        .args(["-p", &port, "-c", "8", "-n", "500", "-t", "set,get,incr", "-r", "1000", "--csv"])
        .output()
        .unwrap();
    assert!(load.status.success(), "{}", String::from_utf8_lossy(&load.stderr));
    assert!(String::from_utf8_lossy(&load.stdout).contains("INCR"), "{load:?}");
    machine.wait_for("MIXED round=1");
    machine.wait_for("flags=1");
    for sums in MIXED_SUMS {
        assert!(machine.said.contains(sums), "{sums:?} is not in {}", machine.said);
    }
    assert!(!machine.said.contains("DISK-DIFFERS"), "{}", machine.said);
    machine.interrupt();

    for engine in ["auto", "interpreter"] {
        let replayed = replay(&recording, engine);
        assert!(replayed["digests_verified"].as_u64() >= Some(10), "{engine}: {replayed}");
        assert!(replayed["outputs_verified"].as_u64() >= Some(1_000), "{engine}: {replayed}");
        assert!(replayed["instructions"].as_u64() >= Some(1_000_000_000), "{engine}: {replayed}");
    }
}

#[test]
fn debian_recorded_by_the_interpreter_replays_with_the_other_engine() {
    if !debian_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (recording, port) = (folder.path().join("recording"), free_port());
    let forward = format!("{port}:6379");
    let mut machine = Machine::start(&[
        "record",
        recording.to_str().unwrap(),
        "--engine",
        "interpreter",
        "--guest",
        "debian",
        "--forward",
        &forward,
        "--append",
        "secondwind.run=redis",
    ]);
    machine.wait_for("REDIS-READY");
    let load = Command::new("redis-benchmark")
        .args(["-p", &port.to_string(), "-c", "4", "-n", "300", "-t", "set,get", "--csv"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&load.stdout).contains("GET"), "{load:?}");
    machine.interrupt();

    let replayed = replay(&recording, "auto");
    assert!(replayed["digests_verified"].as_u64() >= Some(5), "{replayed}");
    assert!(replayed["outputs_verified"].as_u64() >= Some(300), "{replayed}");
}

#[test]
fn debian_boots_on_8_harts() {
    if !debian_is_there() {
        return;
    }
    let append = "secondwind.run=sleep:0";
    let mut machine =
        Machine::start(&["run", "--guest", "debian", "--net", "none", "--harts", "8", "--append", append]);
    machine.wait_for("8 CPUs");
    machine.wait_for("SLEEP-DONE");
    assert!(machine.child.wait().unwrap().success());
}
