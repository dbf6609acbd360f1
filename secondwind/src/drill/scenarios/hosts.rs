//! The hosts of a scenario: an agent on each, a link between each two, and the arbiter.
//!
//! Where a step makes a link bad, each of its two agents reaches the other through a proxy of its own,
//! so that it can be made bad one way or both, while the hosts run. Any other link is direct: what is
//! measured on it is the agents' own.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use link::arbiter::{Arbiter, EtcdArbiter, EtcdConfig, LockFileArbiter};
use link::arbitration::Record;
use link::keys;
use link::proxy::{Conditions, LinkProxy};
use machine::Engine;
use nix::sys::signal::Signal;

use super::etcd::Etcd;
use super::file::{ArbiterKind, Scenario};
use super::step::{ArbiterState, DiskState, Host, LinkChange, Role, Step, Who};
use crate::agent::PROTOCOL_VARIABLE;
use crate::control::Request;
use crate::drill::agents::{Agent, AgentFiles};
use crate::drill::cluster::{Addresses, VM};

/// What is the same for every host of a scenario.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Everything is in here.
    pub folder: PathBuf,
    /// The drill's switch.
    pub tunnel: SocketAddr,
    /// What executes the guests; agents of an earlier release are told nothing.
    pub engine: Engine,
    /// The program that agents are started with after an upgrade.
    pub newer_program: PathBuf,
}

/// All hosts.
pub struct Hosts {
    hosts: Vec<HostState>,
    /// From whom to whom; of the links that are ever made bad.
    links: BTreeMap<(Host, Host), LinkProxy>,
    setting: Setting,
    guest: &'static str,
    memory_bytes: u64,
    flags: Vec<String>,
    arbiter: ArbiterKind,
    etcd: Option<Etcd>,
    /// The record as it was at the last look.
    record: Option<Record>,
    reader: Option<Arc<dyn Arbiter>>,
    has_peers: bool,
    keeps_logs: bool,
    protocol: Option<u8>,
}

/// One host.
struct HostState {
    address: SocketAddr,
    /// The agent that runs there, or the last one that did.
    agent: Option<Agent>,
    /// Those before it.
    earlier: Vec<Agent>,
    is_paused: bool,
    is_upgraded: bool,
}

/// The folder of the arbiter's file, in that of the scenario.
const ARBITER_FOLDER: &str = "arbiter";
/// Its name while it is gone.
const ARBITER_AWAY: &str = "arbiter.away";
/// How long a question to etcd may hold up a look.
const READ_PATIENCE: Duration = Duration::from_millis(300);
/// How long etcd may take until it answers at all.
const ETCD_PATIENCE: Duration = Duration::from_secs(20);

impl Hosts {
    /// Makes keys and links. No agent is started.
    ///
    /// # Errors
    /// When the files cannot be written or the ports not be had.
    pub async fn prepare(scenario: &Scenario, setting: Setting) -> Result<Hosts> {
        let names: Vec<Host> = (0..scenario.hosts).map(Host).collect();
        let nodes: Vec<String> = names.iter().map(Host::to_string).collect();
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        keys::generate(&setting.folder.join("keys"), &nodes, keys::DEFAULT_VALIDITY)?;
        std::fs::create_dir(setting.folder.join(ARBITER_FOLDER))?;
        let mut addresses = Addresses::new();
        let etcd = match scenario.agents.arbiter {
            ArbiterKind::Etcd => Some(Etcd::start(&setting.folder.join("etcd"), &mut addresses)?),
            ArbiterKind::Lock | ArbiterKind::Manual => None,
        };
        let reader = match &etcd {
            Some(etcd) => Some(open_etcd(&etcd.endpoints()).await?),
            None => None,
        };
        let mut hosts = Vec::new();
        for _ in &names {
            let address = addresses.next()?;
            let (agent, earlier) = (None, Vec::new());
            hosts.push(HostState { address, agent, earlier, is_paused: false, is_upgraded: false });
        }
        let mut links = BTreeMap::new();
        for change in scenario.steps.iter().filter_map(Step::link_change) {
            let (first, second) = change.between;
            for (from, to) in [(first, second), (second, first)] {
                if let Entry::Vacant(link) = links.entry((from, to)) {
                    let server = hosts[to.0].address.to_string();
                    link.insert(LinkProxy::start("127.0.0.1:0", &server, Conditions::default()).await?);
                }
            }
        }
        let mut flags = scenario.agents.flags();
        if scenario.backups > 1 {
            flags.extend(["--backups".to_owned(), scenario.backups.to_string()]);
        }
        Ok(Hosts {
            hosts,
            links,
            setting,
            guest: scenario.guest.name(),
            memory_bytes: scenario.memory_bytes,
            flags,
            arbiter: scenario.agents.arbiter,
            etcd,
            record: None,
            reader,
            keeps_logs: scenario.agents.keeps_logs(),
            protocol: scenario.agents.protocol,
            has_peers: scenario.agents.peers.unwrap_or(true),
        })
    }

    /// Starts an agent on a host where none runs.
    ///
    /// # Errors
    /// When one runs there, or the process cannot be started.
    pub fn start(&mut self, host: Host, role: Role) -> Result<()> {
        let command = self.command(host, role)?;
        let state = &mut self.hosts[host.0];
        if state.agent.as_mut().is_some_and(Agent::is_running) {
            bail!("an agent runs on {host} already");
        }
        let files =
            files(&self.setting.folder, host, state.earlier.len() + usize::from(state.agent.is_some()));
        let agent = Agent::start(&host.to_string(), command, files)?;
        state.earlier.extend(state.agent.replace(agent));
        state.is_paused = false;
        Ok(())
    }

    fn command(&self, host: Host, role: Role) -> Result<Command> {
        let state = &self.hosts[host.0];
        let program = match state.is_upgraded {
            true => self.setting.newer_program.clone(),
            false => std::env::current_exe().context("cannot tell where this program is")?,
        };
        let number = state.earlier.len() + usize::from(state.agent.is_some());
        let files = files(&self.setting.folder, host, number);
        let mut command = Command::new(program);
        command.arg(match role {
            Role::Primary => "primary",
            Role::Backup => "backup",
            Role::Agent => "agent",
        });
        command.args(["--guest", self.guest, "--name", VM, "--node", &host.to_string()]);
        command.arg("--memory").arg(self.memory_bytes.to_string());
        command.arg("--net").arg(format!("tunnel:{}", self.setting.tunnel));
        command.arg("--keys").arg(self.setting.folder.join("keys"));
        command.arg("--arbiter").arg(match self.arbiter {
            ArbiterKind::Lock => format!("lock:{}", self.record_path().display()),
            ArbiterKind::Manual => "manual".to_owned(),
            ArbiterKind::Etcd => {
                format!(
                    "etcd:{},ttl=2s,timeout=1s",
                    self.etcd.as_ref().map(Etcd::endpoints).unwrap_or_default()
                )
            }
        });
        command.arg("--listen").arg(state.address.to_string());
        command.arg("--control").arg(files.control);
        command.arg("--timeline").arg(files.timeline);
        command.arg("--console").arg(files.console);
        command.args(&self.flags);
        if self.setting.engine != Engine::Auto {
            command.arg("--engine").arg(self.setting.engine.to_string());
        }
        if self.keeps_logs {
            command.arg("--log-dir").arg(self.setting.folder.join(format!("{host}.logs")));
        }
        if let Some(version) = self.protocol.filter(|_| !state.is_upgraded) {
            command.env(PROTOCOL_VARIABLE, version.to_string());
        }
        command.env(store::fault::VARIABLE, self.disk_file(host));
        // A backup needs addresses; a primary that has some goes on as a backup once it is replaced.
        if self.has_peers || role != Role::Primary {
            for peer in self.names().filter(|peer| *peer != host) {
                let link = self.links.get(&(host, peer));
                let address = link.map_or(self.hosts[peer.0].address, LinkProxy::address);
                command.arg("--peer").arg(address.to_string());
            }
        }
        Ok(command)
    }

    fn record_path(&self) -> PathBuf {
        self.setting.folder.join(ARBITER_FOLDER).join("record")
    }

    /// The file that says what is wrong with a host's disks.
    fn disk_file(&self, host: Host) -> PathBuf {
        self.setting.folder.join(format!("{host}.disk"))
    }

    /// The arbiter's record at the last look.
    pub fn record(&self) -> Option<Record> {
        self.record.clone()
    }

    /// The arbiter's record now; where the operator decides, the latest that a host has.
    async fn read_record(&self) -> Option<Record> {
        let read = |path: PathBuf| LockFileArbiter::open(path, VM).ok()?.read().ok().flatten();
        match self.arbiter {
            ArbiterKind::Lock => read(self.record_path()),
            ArbiterKind::Etcd => {
                let reader = Arc::clone(self.reader.as_ref()?);
                let reading = tokio::task::spawn_blocking(move || reader.read());
                tokio::time::timeout(READ_PATIENCE, reading).await.ok()?.ok()?.ok().flatten()
            }
            ArbiterKind::Manual => self
                .names()
                .filter_map(|host| {
                    read(files(&self.setting.folder, host, 0).control.with_extension("record"))
                })
                .max_by_key(|record| record.term),
        }
    }

    /// All hosts.
    pub fn names(&self) -> impl Iterator<Item = Host> + use<> {
        (0..self.hosts.len()).map(Host)
    }

    /// The host that a word stands for now.
    ///
    /// # Errors
    /// When there is no primary, or no backup.
    pub fn resolve(&self, who: Who) -> Result<Host> {
        let record = self.record().context("the arbiter has no record");
        let name = match who {
            Who::Host(host) => return Ok(host),
            Who::Primary => record?.holder,
            Who::Backup => {
                let record = record?;
                backups(&record)
                    .into_iter()
                    .next()
                    .with_context(|| format!("there is no backup: {record}"))?
            }
        };
        let found = self.names().find(|host| host.to_string() == name);
        found.with_context(|| format!("the arbiter names {name:?}, which is no host"))
    }

    /// The agent that runs on a host or did so last.
    pub fn agent(&self, host: Host) -> Option<&Agent> {
        self.hosts[host.0].agent.as_ref()
    }

    /// Whether a process runs on the host, by the last look.
    pub fn runs(&self, host: Host) -> bool {
        self.agent(host).is_some_and(|agent| agent.seen.exit.is_none())
    }

    /// Every agent that was ever started.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.hosts.iter().flat_map(|state| state.earlier.iter().chain(&state.agent))
    }

    /// Looks at every agent, its status, and at the arbiter. An agent that is stopped cannot answer.
    pub async fn observe(&mut self) {
        for state in self.hosts.iter_mut().filter(|state| !state.is_paused) {
            if let Some(agent) = &mut state.agent {
                agent.observe().await;
            }
        }
        self.record = self.read_record().await;
    }

    /// Notes how much memory every agent takes.
    pub fn weigh(&mut self) {
        let memory_bytes = self.memory_bytes;
        self.hosts
            .iter_mut()
            .filter_map(|state| state.agent.as_mut())
            .for_each(|agent| agent.weigh(memory_bytes));
    }

    /// SIGKILL to all of them; none is waited for before all were told.
    pub fn kill(&mut self, hosts: &[Host]) {
        for host in hosts {
            self.signal(*host, Signal::SIGKILL);
        }
        for host in hosts {
            if let Some(agent) = &mut self.hosts[host.0].agent {
                agent.kill();
            }
        }
    }

    /// SIGSTOP or SIGCONT.
    pub fn pause(&mut self, host: Host, is_paused: bool) {
        self.signal(host, if is_paused { Signal::SIGSTOP } else { Signal::SIGCONT });
        self.hosts[host.0].is_paused = is_paused;
    }

    fn signal(&self, host: Host, signal: Signal) {
        if let Some(agent) = self.agent(host).filter(|agent| agent.seen.exit.is_none()) {
            agent.signal(signal);
        }
    }

    /// Ends an agent in order.
    pub async fn stop(&mut self, host: Host) {
        let state = &mut self.hosts[host.0];
        if let Some(agent) = &mut state.agent {
            if state.is_paused {
                agent.kill();
            }
            agent.stop().await;
        }
    }

    /// Gives an agent an order.
    ///
    /// # Errors
    /// When it does not accept it.
    pub async fn order(&self, host: Host, request: Request) -> Result<()> {
        let agent = self.agent(host).with_context(|| format!("no agent was started on {host}"))?;
        agent.order(request).await.map(drop)
    }

    /// From now on this host starts the newer program.
    pub fn upgrade(&mut self, host: Host) {
        self.hosts[host.0].is_upgraded = true;
    }

    /// Changes the network between two hosts.
    pub fn change_link(&self, change: &LinkChange) {
        let (first, second) = change.between;
        for (from, to, conditions) in [(first, second, change.there), (second, first, change.back)] {
            if let Some(proxy) = self.links.get(&(from, to)) {
                proxy.set_conditions(conditions);
                if change.reset {
                    proxy.reset_connections();
                }
            }
        }
    }

    /// Takes the arbiter away or brings it back: members of etcd are killed and started again.
    /// While a file is away there is another file in place of its folder: every question ends with
    /// an error, as on storage that was lost.
    ///
    /// # Errors
    /// When the folder cannot be renamed, or etcd not be started.
    pub fn set_arbiter(&mut self, state: ArbiterState) -> Result<()> {
        if let Some(etcd) = &mut self.etcd {
            match state {
                ArbiterState::Gone => etcd.kill(usize::MAX),
                ArbiterState::OneLess => etcd.kill(1),
                ArbiterState::Back => etcd.restart()?,
            }
            return Ok(());
        }
        let (place, away) =
            (self.setting.folder.join(ARBITER_FOLDER), self.setting.folder.join(ARBITER_AWAY));
        match state {
            ArbiterState::Gone => {
                std::fs::rename(&place, &away)?;
                std::fs::write(&place, "")?;
            }
            ArbiterState::OneLess => bail!("only arbiter = \"etcd\" has members"),
            ArbiterState::Back => {
                std::fs::remove_file(&place)?;
                std::fs::rename(&away, &place)?;
            }
        }
        Ok(())
    }

    /// Says what a host's disks are like from now on.
    ///
    /// # Errors
    /// When the file that tells its agent cannot be written.
    pub fn set_disk(&self, host: Host, state: DiskState) -> Result<()> {
        let text = match state {
            DiskState::Well => String::new(),
            DiskState::Slow(delay) => format!("slow {}", delay.as_millis()),
            DiskState::Full => "full".to_owned(),
        };
        // Replaced whole: an agent may read it at any time.
        let (file, new) = (self.disk_file(host), self.setting.folder.join("disk.new"));
        std::fs::write(&new, text)?;
        std::fs::rename(&new, &file).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Runs `secondwind switchover` or `migrate` for the machine on a host.
    ///
    /// # Errors
    /// With what the command says when it fails.
    pub async fn hand_over(&self, host: Host, verb: &str, to: Option<Host>) -> Result<()> {
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let mut command = tokio::process::Command::new(program);
        command.arg(verb).arg(files(&self.setting.folder, host, 0).control);
        if let Some(to) = to {
            command.args(["--to", &to.to_string()]);
        }
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
        if !output.status.success() {
            bail!("{verb} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Ends every agent in order: backups first, or they would take over.
    pub async fn end(&mut self) {
        let record = self.read_record().await;
        let is_primary =
            |host: &Host| record.as_ref().is_some_and(|record| record.holder == host.to_string());
        let (primary, others): (Vec<Host>, Vec<Host>) = self.names().partition(is_primary);
        for host in others.into_iter().chain(primary) {
            self.stop(host).await;
        }
    }
}

/// Waits until etcd answers, which takes it an election.
async fn open_etcd(endpoints: &str) -> Result<Arc<dyn Arbiter>> {
    let config = EtcdConfig::parse(endpoints)?;
    let deadline = tokio::time::Instant::now() + ETCD_PATIENCE;
    loop {
        let config = config.clone();
        match tokio::task::spawn_blocking(move || EtcdArbiter::open(&config, VM)).await? {
            Ok(arbiter) => return Ok(Arc::new(arbiter)),
            Err(error) if tokio::time::Instant::now() > deadline => return Err(error.into()),
            Err(_) => tokio::time::sleep(READ_PATIENCE).await,
        }
    }
}

/// The backups that a record names.
pub fn backups(record: &Record) -> Vec<String> {
    record.backups.iter().cloned().collect()
}

/// Where the agent that is the `number`th on its host writes. The control socket stays where
/// it is: what else belongs to the host is beside it.
fn files(folder: &Path, host: Host, number: usize) -> AgentFiles {
    let first = AgentFiles::in_folder(folder, &host.to_string());
    if number == 0 {
        return first;
    }
    let later = AgentFiles::in_folder(folder, &format!("{host}{}", number + 1));
    AgentFiles { control: first.control, ..later }
}
