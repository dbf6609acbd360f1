//! A real etcd of three members for a scenario, in a folder of its own.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::drill::agents::die_with_this_thread;
use crate::drill::cluster::Addresses;

/// A majority outlives one of them.
const MEMBERS: usize = 3;

/// The members. They end when this is dropped.
pub struct Etcd {
    folder: PathBuf,
    /// For clients, and for the other members.
    addresses: Vec<(SocketAddr, SocketAddr)>,
    members: Vec<Option<Child>>,
}

/// Whether the program is here (Debian package etcd-server).
pub fn is_installed() -> bool {
    let asked = Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

impl Etcd {
    /// Starts all members. They may take a second until they answer.
    ///
    /// # Errors
    /// When the program is not there, or no port is free.
    pub fn start(folder: &Path, addresses: &mut Addresses) -> Result<Etcd> {
        std::fs::create_dir(folder)?;
        let pairs = (0..MEMBERS).map(|_| Ok((addresses.next()?, addresses.next()?)));
        let addresses = pairs.collect::<Result<Vec<_>>>()?;
        let members = (0..MEMBERS).map(|_| None).collect();
        let mut etcd = Etcd { folder: folder.to_owned(), addresses, members };
        etcd.restart()?;
        Ok(etcd)
    }

    /// As `--arbiter etcd:` takes them.
    pub fn endpoints(&self) -> String {
        let clients: Vec<String> = self.addresses.iter().map(|(client, _)| client.to_string()).collect();
        clients.join(",")
    }

    /// SIGKILL to so many members.
    pub fn kill(&mut self, count: usize) {
        for member in self.members.iter_mut().take(count) {
            if let Some(mut child) = member.take() {
                // Fails only for one that ended by itself.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }

    /// Starts the members that do not run, with the data that they had.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        let url = |address: &SocketAddr| format!("http://{address}");
        let peers =
            self.addresses.iter().enumerate().map(|(index, (_, peer))| format!("m{index}={}", url(peer)));
        let peers = peers.collect::<Vec<_>>().join(",");
        for (index, member) in self.members.iter_mut().enumerate().filter(|(_, member)| member.is_none()) {
            let (client, peer) = &self.addresses[index];
            let (client, peer, name) = (url(client), url(peer), format!("m{index}"));
            let mut command = Command::new("etcd");
            command
                .args(["--name", &name, "--initial-cluster", &peers])
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
                .args(["--logger", "zap", "--log-level", "error", "--data-dir"])
                .arg(self.folder.join(&name))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(File::create(self.folder.join(format!("{name}.log")))?);
            die_with_this_thread(&mut command);
            *member = Some(command.spawn().context("cannot start etcd (Debian package etcd-server)")?);
        }
        Ok(())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill(MEMBERS);
    }
}
