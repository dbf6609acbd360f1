//! Agents as real processes, on loopback addresses of their own, for the tests that need several.

#![allow(clippy::unwrap_used)] // Helpers are tests too.
#![allow(dead_code)] // No test needs all of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_secondwind");
/// Far beyond what any step takes, on however busy a machine.
const LONGEST: Duration = Duration::from_secs(120);

/// Nodes of one machine; all of them are killed when this is dropped.
pub struct Cluster {
    pub folder: TempDir,
    /// Loopback addresses `127.x.y.n` belong to this cluster.
    network: String,
    agents: BTreeMap<String, Child>,
}

impl Cluster {
    pub fn new() -> Cluster {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = std::process::id().wrapping_mul(16).wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed));
        let network = format!("127.{}.{}", 1 + (number >> 8) % 254, number & 255);
        Cluster { folder: tempfile::tempdir().unwrap(), network, agents: BTreeMap::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where the node listens: `a` has the first address.
    pub fn address(&self, node: &str) -> String {
        let number = node.bytes().next().unwrap() - b'a' + 1;
        format!("{}.{number}:7420", self.network)
    }

    /// The options that all agents have: `--peer` for each of `nodes`.
    pub fn start(&mut self, command: &str, node: &str, nodes: &[&str], more: &[&str]) {
        let log = File::options().create(true).append(true).open(self.path(&format!("{node}.err"))).unwrap();
        let mut words: Vec<String> = [command, "--insecure", "--node", node].map(str::to_owned).to_vec();
        words.extend(["--detection-floor-ms", "1000"].map(str::to_owned));
        if !more.contains(&"--guest") {
            words.extend("--guest ledger --memory 16M".split(' ').map(str::to_owned));
        }
        if !more.contains(&"--net") && !more.contains(&"--forward") {
            words.extend(["--net", "none"].map(str::to_owned));
        }
        words.extend(["--arbiter".into(), format!("lock:{}", self.path("record").display())]);
        words.extend(["--listen".into(), self.address(node)]);
        words.extend(["--control".into(), self.socket(node).display().to_string()]);
        words.extend(["--timeline".into(), self.path(&format!("{node}.timeline")).display().to_string()]);
        for peer in nodes {
            words.extend(["--peer".into(), self.address(peer)]);
        }
        words.extend(more.iter().map(|word| (*word).to_owned()));
        let child = Command::new(PROGRAM)
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        assert!(self.agents.insert(node.to_owned(), child).is_none(), "{node} runs already");
    }

    pub fn socket(&self, node: &str) -> PathBuf {
        self.path(&format!("{node}.sock"))
    }

    /// What the node's `secondwind status --json` shows; nothing while it does not answer.
    pub fn status(&self, node: &str) -> Option<Value> {
        let output = secondwind(&["status", "--json", "--control", self.socket(node).to_str().unwrap()]);
        let answers: Value = serde_json::from_slice(&output.stdout).ok()?;
        answers.get(0).cloned()
    }

    /// Waits until the node's status is as wanted.
    #[track_caller]
    pub fn wait(&mut self, node: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let since = Instant::now();
        loop {
            let status = self.status(node);
            if let Some(status) = status.as_ref().filter(|status| wanted(status)) {
                return status.clone();
            }
            let ended = self.agents.get_mut(node).and_then(|child| child.try_wait().unwrap());
            if ended.is_some() || since.elapsed() > LONGEST {
                panic!("{node} is not {what}: ended {ended:?}, {status:#?}\n{}", self.errors(node));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    pub fn wait_protected(&mut self, node: &str) -> Value {
        self.wait(node, "protected", |status| status["protected"] == true)
    }

    #[track_caller]
    pub fn wait_role(&mut self, node: &str, role: &str) -> Value {
        self.wait(node, role, |status| status["role"] == role)
    }

    pub fn signal(&self, node: &str, signal: Signal) {
        kill(Pid::from_raw(self.agents[node].id() as i32), signal).unwrap();
    }

    /// Kills the node's process.
    pub fn kill(&mut self, node: &str) {
        let mut child = self.agents.remove(node).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits until the node's process has ended by itself.
    #[track_caller]
    pub fn wait_end(&mut self, node: &str) -> ExitStatus {
        let since = Instant::now();
        loop {
            if let Some(status) = self.agents.get_mut(node).unwrap().try_wait().unwrap() {
                self.agents.remove(node);
                return status;
            }
            assert!(since.elapsed() < LONGEST, "{node} does not end: {}", self.errors(node));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the node said on standard error.
    pub fn errors(&self, node: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{node}.err"))).unwrap_or_default()
    }

    /// The events of the node's timeline.
    pub fn events(&self, node: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(&format!("{node}.timeline"))).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.agents.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs the program to its end.
pub fn secondwind(words: &[&str]) -> Output {
    Command::new(PROGRAM).args(words).stdin(Stdio::null()).output().unwrap()
}
