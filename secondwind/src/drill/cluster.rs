//! The agents of a drill together: who is the primary, who stands by, and the link between.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use link::arbiter::{Arbiter, LockFileArbiter};
use link::arbitration::Record;
use link::keys;
use link::proxy::{Conditions, Cut, LinkProxy};
use machine::Engine;

use super::agents::{Agent, AgentFiles};

/// Name of the drill's virtual machine.
pub const VM: &str = "drill";
/// First TCP port that agents of a drill listen on.
const FIRST_PORT: u16 = 7420;

/// What every agent of the drill is told.
#[derive(Debug, Clone)]
pub struct AgentPlan {
    /// As `--guest` names it.
    pub guest: &'static str,
    /// As `--engine` names it.
    pub engine: Engine,
    /// The guest's memory.
    pub memory_bytes: u64,
    /// Size of its disk, where it has one.
    pub disk_bytes: Option<u64>,
    /// The drill's switch.
    pub tunnel: SocketAddr,
    /// Backups reach the primary through a proxy that can cut the link.
    pub through_proxy: bool,
}

/// A primary, its backup, and those that ended.
pub struct Cluster {
    /// The machine's present primary.
    pub primary: Agent,
    /// Its present backup.
    pub backup: Option<Agent>,
    /// Agents that were killed or fenced.
    pub retired: Vec<Agent>,
    plan: AgentPlan,
    folder: PathBuf,
    arbiter: LockFileArbiter,
    addresses: Addresses,
    primary_address: SocketAddr,
    backup_address: Option<SocketAddr>,
    link: Option<LinkProxy>,
    started: usize,
}

impl Cluster {
    /// Makes keys in `folder` and starts a primary.
    ///
    /// # Errors
    /// When keys cannot be made or the process cannot be started.
    pub fn start(folder: &Path, plan: AgentPlan) -> Result<Cluster> {
        let arbiter = LockFileArbiter::open(folder.join("arbiter"), VM)?;
        if let Some(bytes) = plan.disk_bytes {
            let image = disk_image(folder);
            let made = File::create(&image).and_then(|file| file.set_len(bytes));
            made.with_context(|| format!("cannot make the disk {}; free some space", image.display()))?;
        }
        let mut addresses = Addresses::new();
        let primary_address = addresses.next()?;
        let node = node_name(0);
        let command = agent_command(folder, &plan, "primary", &node, primary_address)?;
        let primary = Agent::start(&node, command, AgentFiles::in_folder(folder, &node))?;
        Ok(Cluster {
            primary,
            backup: None,
            retired: Vec::new(),
            plan,
            folder: folder.to_owned(),
            arbiter,
            addresses,
            primary_address,
            backup_address: None,
            link: None,
            started: 1,
        })
    }

    /// Starts a backup, which joins the primary by itself. Gives its name.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub async fn add_backup(&mut self) -> Result<String> {
        let node = node_name(self.started);
        self.started += 1;
        let own_address = self.addresses.next()?;
        let mut primary = self.primary_address;
        if self.plan.through_proxy {
            let proxy = LinkProxy::start("127.0.0.1:0", &primary.to_string(), Conditions::default()).await?;
            primary = proxy.address();
            self.link = Some(proxy);
        }
        let mut command = agent_command(&self.folder, &self.plan, "backup", &node, own_address)?;
        command.arg("--primary").arg(primary.to_string());
        self.backup = Some(Agent::start(&node, command, AgentFiles::in_folder(&self.folder, &node))?);
        self.backup_address = Some(own_address);
        Ok(node)
    }

    /// The arbiter's record.
    pub fn record(&self) -> Option<Record> {
        self.arbiter.read().ok().flatten()
    }

    /// Stops or lets through the bytes between primary and backup.
    pub fn cut_link(&self, cut: Cut) {
        if let Some(link) = &self.link {
            link.cut(cut);
        }
    }

    /// The backup is the primary from now on.
    pub fn promote_backup(&mut self) {
        if let (Some(backup), Some(address)) = (self.backup.take(), self.backup_address.take()) {
            self.retired.push(std::mem::replace(&mut self.primary, backup));
            self.primary_address = address;
        }
    }

    /// There is no backup from now on.
    pub fn retire_backup(&mut self) {
        self.retired.extend(self.backup.take());
    }

    /// Looks at every agent: its status.
    pub async fn observe(&mut self) {
        for agent in self.agents_mut() {
            agent.observe().await;
        }
    }

    /// Notes how much memory every agent takes.
    pub fn weigh(&mut self) {
        let guest_memory_bytes = self.plan.memory_bytes;
        for agent in self.agents_mut() {
            agent.weigh(guest_memory_bytes);
        }
    }

    /// Every agent that was ever started.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.retired.iter().chain([&self.primary]).chain(&self.backup)
    }

    fn agents_mut(&mut self) -> impl Iterator<Item = &mut Agent> {
        self.retired.iter_mut().chain([&mut self.primary]).chain(&mut self.backup)
    }

    /// Ends every agent in order: the backup first, or it would take over.
    pub async fn stop(&mut self) {
        if let Some(backup) = &mut self.backup {
            backup.stop().await;
        }
        self.primary.stop().await;
        for agent in &mut self.retired {
            agent.kill();
        }
    }
}

/// `a` to `z`, then `n26` and on.
fn node_name(index: usize) -> String {
    match u8::try_from(index) {
        Ok(letter) if letter < 26 => char::from(b'a' + letter).to_string(),
        _ => format!("n{index}"),
    }
}

/// The blank image under every host's disk.
fn disk_image(folder: &Path) -> PathBuf {
    folder.join("disk.img")
}

/// The command line of an agent, its keys made.
fn agent_command(
    folder: &Path,
    plan: &AgentPlan,
    role: &str,
    node: &str,
    listen: SocketAddr,
) -> Result<Command> {
    let keys = folder.join("keys");
    keys::generate(&keys, &[node], keys::DEFAULT_VALIDITY)?;
    let files = AgentFiles::in_folder(folder, node);
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let mut command = Command::new(program);
    command.arg(role);
    command.args(["--guest", plan.guest, "--name", VM, "--node", node]);
    command.arg("--engine").arg(plan.engine.to_string());
    command.arg("--memory").arg(plan.memory_bytes.to_string());
    command.arg("--net").arg(format!("tunnel:{}", plan.tunnel));
    if plan.disk_bytes.is_some() {
        // Each host has what its guest writes in a file of its own over the same blank image.
        let mut disk = disk_image(folder).into_os_string();
        disk.push(format!(",format=raw,overlay={}", folder.join(format!("{node}.qcow2")).display()));
        command.arg("--disk").arg(disk);
        command.args(["--append", "secondwind.run=redis-aof"]);
    }
    command.arg("--keys").arg(keys);
    command.arg("--arbiter").arg(format!("lock:{}", folder.join("arbiter").display()));
    command.arg("--listen").arg(listen.to_string());
    command.arg("--control").arg(files.control);
    command.arg("--timeline").arg(files.timeline);
    command.arg("--console").arg(files.console);
    Ok(command)
}

/// Addresses for agents to listen on. All of 127.0.0.0/8 is this host, so each drill takes
/// an address of its own there: two drills at a time do not meet, and no other program's
/// outgoing connection takes the port before the agent does.
pub struct Addresses {
    host: Ipv4Addr,
    port: u16,
}

impl Addresses {
    /// Those of this process.
    pub fn new() -> Addresses {
        let [_, b, c, d] = std::process::id().to_be_bytes();
        Addresses { host: Ipv4Addr::new(127, 64 | b, c, d.max(1)), port: FIRST_PORT }
    }

    /// A free one that was not given before.
    ///
    /// # Errors
    /// When none is left.
    pub fn next(&mut self) -> Result<SocketAddr> {
        while self.port < u16::MAX {
            let address = SocketAddr::from((self.host, self.port));
            self.port += 1;
            if TcpListener::bind(address).is_ok() {
                return Ok(address);
            }
        }
        bail!("no port from {FIRST_PORT} on is free on {}; end some programs that listen there", self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_free_and_differ() {
        let mut addresses = Addresses::new();
        let first = addresses.next().unwrap();
        let _taken = TcpListener::bind(first).unwrap();
        assert_ne!(addresses.next().unwrap(), first);
        assert!(first.ip().is_loopback());
    }

    #[test]
    fn node_names_can_stand_in_certificates() {
        for index in [0, 25, 26, 501] {
            keys::check_node_name(&node_name(index)).unwrap();
        }
        assert_ne!(node_name(25), node_name(26));
    }
}
