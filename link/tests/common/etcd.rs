//! A real etcd cluster for tests (Debian package etcd-server): members on loopback, or
//! wherever the test puts them; data in a temporary folder; all of it goes when dropped.

#![allow(dead_code)] // No test needs all of it.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Members and their data.
pub struct EtcdCluster {
    members: Vec<EtcdMember>,
    folder: tempfile::TempDir,
    options: Vec<String>,
}

struct EtcdMember {
    /// `HOST:PORT` for clients, and for the other members.
    client: String,
    peer: String,
    /// What a command begins with to run where the member is: `ip netns exec NAME`, or nothing.
    place: Vec<String>,
    child: Option<Child>,
}

/// Says why a test is not run, past the test harness, which would swallow it.
pub fn is_missing() -> bool {
    let missing = Command::new("etcd").arg("--version").output().is_err();
    if missing {
        use std::io::Write as _;
        std::io::stderr()
            .write_all(b"etcd test NOT RUN: there is no `etcd` (package etcd-server)\n")
            .unwrap();
    }
    missing
}

impl EtcdCluster {
    /// Three members on loopback.
    pub fn start() -> EtcdCluster {
        Self::start_with(&[])
    }

    /// Three members on loopback, with further options of etcd.
    pub fn start_with(options: &[String]) -> EtcdCluster {
        // Held together, so that no port is given twice. Another process may still be quicker.
        let listeners: Vec<TcpListener> = (0..6).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<String> =
            listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
        drop(listeners);
        let places = addresses.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone(), Vec::new()));
        Self::start_at(places.collect(), options)
    }

    /// Members at (address for clients, address for members, command to run there).
    pub fn start_at(places: Vec<(String, String, Vec<String>)>, options: &[String]) -> EtcdCluster {
        let member = |(client, peer, place)| EtcdMember { client, peer, place, child: None };
        let members: Vec<EtcdMember> = places.into_iter().map(member).collect();
        let folder = tempfile::tempdir().unwrap();
        let mut cluster = EtcdCluster { members, folder, options: options.to_vec() };
        (0..cluster.members.len()).for_each(|index| cluster.restart(index));
        cluster
    }

    /// `HOST:PORT` of every member.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.client.clone()).collect()
    }

    /// SIGKILL.
    pub fn kill(&mut self, index: usize) {
        if let Some(mut child) = self.members[index].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts a member, or starts it again with the data that it had.
    pub fn restart(&mut self, index: usize) {
        let scheme = if self.options.iter().any(|option| option.starts_with("--cert-file")) {
            "https"
        } else {
            "http"
        };
        let name = |index| format!("m{index}");
        let peers: Vec<String> = self
            .members
            .iter()
            .enumerate()
            .map(|(index, member)| format!("{}=http://{}", name(index), member.peer))
            .collect();
        let member = &mut self.members[index];
        assert!(member.child.is_none(), "it runs");
        let client = format!("{scheme}://{}", member.client);
        let peer = format!("http://{}", member.peer);
        let words: Vec<&str> = member.place.iter().map(String::as_str).chain(["etcd"]).collect();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .args(["--name", &name(index), "--initial-cluster", &peers.join(",")])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500", "--logger", "zap"])
            .args(["--log-level", "error", "--data-dir"])
            .arg(self.folder.path().join(name(index)))
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(self.folder.path().join(format!("{}.log", name(index)))).unwrap());
        member.child = Some(command.spawn().unwrap());
    }

    /// What the members wrote to standard error, for the message of a failed test.
    pub fn logs(&self) -> String {
        let log = |index| std::fs::read_to_string(self.folder.path().join(format!("m{index}.log")));
        (0..self.members.len()).map(|index| log(index).unwrap_or_default()).collect()
    }

    /// Waits until `question` is answered, for as long as a slow machine may need.
    pub fn wait_for<T>(&self, what: &str, mut question: impl FnMut() -> Option<T>) -> T {
        for _ in 0..600 {
            if let Some(answer) = question() {
                return answer;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("no {what} within 30 s; etcd says {}", self.logs());
    }
}

impl Drop for EtcdCluster {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|index| self.kill(index));
    }
}
