//! What an agent is told by its options, checked.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use link::arbiter::{Arbiter, EtcdArbiter, EtcdConfig, LockFileArbiter, ManualArbiter, ManualHandle};
use link::detector::DetectorConfig;
use link::keys::{KeyPaths, NodeKeys, check_node_name};
use link::tls::{PairTls, Security};
use log_format::{MachineIdentity, PROTOCOL_VERSION};
use primary::{Durability, OnBackupLoss};
use serde::Serialize;
use serde_json::{Value, json};

use super::protection::Protection;
use crate::control::{self, Look};
use crate::options::PairOptions;

const DEFAULT_LISTEN: &str = "127.0.0.1:7420";
const DEFAULT_NAME: &str = "vm";
const MILLISECOND_NS: u64 = 1_000_000;

/// The pair options, checked.
pub struct Settings {
    /// Name of the machine.
    pub name: String,
    /// Name of this node.
    pub node: String,
    /// How the hosts talk.
    pub security: Security,
    /// Who decides.
    pub arbiter: ArbiterChoice,
    /// Where backups are waited for.
    pub listen: String,
    /// Addresses at which the primary may be, when this node is not it.
    pub peers: Vec<String>,
    /// The control socket.
    pub control: PathBuf,
    /// Folder of the log on disk.
    pub log_dir: Option<PathBuf>,
    /// Most bytes of a disk image to fetch in a second.
    pub sync_rate_bytes: Option<u64>,
    /// File of the timeline.
    pub timeline: Option<PathBuf>,
    /// How the machine is protected.
    pub protection: Protection,
    console: Option<PathBuf>,
    on_backup_loss: OnBackupLoss,
    heartbeat_interval_ns: u64,
    detector: DetectorConfig,
}

impl Settings {
    /// Checks the options, and loads the keys. `peers` are addresses of other nodes that were named
    /// beside the options.
    pub fn new(options: PairOptions, protection: Protection, peers: Vec<String>) -> Result<Settings> {
        let name = options.name.unwrap_or_else(|| DEFAULT_NAME.to_owned());
        if name.is_empty() || name.len() > 63 || name.contains(['/', '\0']) {
            bail!("--name {name:?} is not a name; use 1 to 63 characters without a slash");
        }
        let (node, security) = identity(options.node, options.keys.as_deref(), options.insecure)?;
        let mut detector = DetectorConfig::default();
        if let Some(heartbeat_ms) = options.heartbeat_ms {
            if !(1..=10_000).contains(&heartbeat_ms) {
                bail!("--heartbeat-ms {heartbeat_ms} is out of range; choose 1 to 10000");
            }
            detector.heartbeat_interval_ns = heartbeat_ms * MILLISECOND_NS;
        }
        if let Some(floor_ms) = options.detection_floor_ms {
            detector.min_timeout_ns = floor_ms.saturating_mul(MILLISECOND_NS);
            detector.max_timeout_ns = detector.max_timeout_ns.max(detector.min_timeout_ns);
        }
        detector.check().context("--heartbeat-ms and --detection-floor-ms")?;
        let listen = options.listen.map_or_else(|| DEFAULT_LISTEN.to_owned(), |address| address.to_string());
        let peers = other_nodes([options.peer, peers].concat(), &listen)?;
        let control = options.control.unwrap_or_else(|| control::default_socket(&name, &node));
        let arbiter = ArbiterChoice::parse(options.arbiter.as_deref(), &name, &control)?;
        let sync_rate = options.sync_rate.as_deref().map(crate::options::parse_size_bytes);
        Ok(Settings {
            on_backup_loss: match options.on_backup_loss.as_deref() {
                None | Some("continue") => OnBackupLoss::Continue,
                Some("pause") => OnBackupLoss::Pause,
                Some(other) => bail!("--on-backup-loss {other:?} is not a policy; choose continue or pause"),
            },
            listen,
            peers,
            protection,
            heartbeat_interval_ns: detector.heartbeat_interval_ns,
            log_dir: options.log_dir,
            sync_rate_bytes: sync_rate.transpose().context("--sync-rate")?,
            timeline: options.timeline,
            console: options.console,
            name,
            node,
            security,
            arbiter,
            control,
            detector,
        })
    }

    /// How a primary works with these settings.
    pub fn primary_core(&self, identity: MachineIdentity) -> primary::CoreConfig {
        primary::CoreConfig {
            protocol_max: protocol_max(),
            on_backup_loss: self.on_backup_loss,
            heartbeat_interval_ns: self.heartbeat_interval_ns,
            detector: self.detector,
            backups_max: self.protection.backups,
            release: self.protection.release,
            durability: self.protection.durability,
            mode: self.protection.mode,
            epoch: self.protection.epoch,
            ..primary::CoreConfig::new(&self.name, &self.node, identity)
        }
    }

    /// How a backup works with these settings.
    pub fn backup_core(&self, identity: MachineIdentity) -> backup::CoreConfig {
        backup::CoreConfig {
            protocol_max: protocol_max(),
            detector: self.detector,
            durable: self.is_durable(),
            ..backup::CoreConfig::new(&self.name, &self.node, identity)
        }
    }

    /// Whether nothing counts as held that is not on disk.
    pub fn is_durable(&self) -> bool {
        self.protection.durability == Durability::Disk
    }

    /// Where the guest's console goes.
    pub fn open_console(&self) -> Result<Box<dyn Write + Send>> {
        Ok(match &self.console {
            None => Box::new(std::io::stdout()),
            Some(path) => {
                let file =
                    std::fs::File::options().create(true).append(true).open(path).with_context(|| {
                        format!("cannot write the console to {}; choose another --console", path.display())
                    })?;
                Box::new(file)
            }
        })
    }

    /// Where the state of a machine that diverged is kept.
    pub fn diverged_folder(&self) -> PathBuf {
        let beside = self
            .log_dir
            .clone()
            .unwrap_or_else(|| self.control.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf));
        beside.join(format!("{}-{}-diverged", self.name, self.node))
    }

    /// Gives a status with what does not change, when it is asked for.
    pub fn describe_later<S: Serialize>(
        self: &Arc<Self>,
        role: &'static str,
        status: impl Fn() -> S + Send + Sync + 'static,
    ) -> Look {
        let settings = Arc::clone(self);
        Arc::new(move || {
            let status = serde_json::to_value(status());
            settings.describe(role, status.unwrap_or_else(|error| json!({ "error": error.to_string() })))
        })
    }

    /// A status with what does not change.
    pub fn describe(&self, role: &str, mut status: Value) -> Value {
        if let Value::Object(fields) = &mut status {
            fields.insert("role".into(), role.into());
            fields.insert("name".into(), self.name.clone().into());
            fields.insert("node".into(), self.node.clone().into());
            fields.insert("version".into(), env!("CARGO_PKG_VERSION").into());
            fields.insert("listen".into(), self.listen.clone().into());
            fields.insert("waits_for_operator".into(), self.arbiter.question().into());
        }
        status
    }
}

/// The addresses of the other nodes, each once. All nodes may have the same list: this node's own
/// address is left out of it.
fn other_nodes(named: Vec<String>, listen: &str) -> Result<Vec<String>> {
    let mut peers: Vec<String> = Vec::new();
    for address in named {
        let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
        if !port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0)) {
            bail!("{address:?} is not the address of a node; write it as HOST:PORT");
        }
        if address != listen && !peers.contains(&address) {
            peers.push(address);
        }
    }
    Ok(peers)
}

/// The environment variable that keeps a node from speaking later versions of the protocol: for
/// drills of rolling upgrades.
pub const PROTOCOL_VARIABLE: &str = "SECONDWIND_PROTOCOL_MAX";

/// The highest version of the protocol that this node speaks.
fn protocol_max() -> u8 {
    let wanted = std::env::var(PROTOCOL_VARIABLE).ok().and_then(|text| text.parse().ok());
    wanted.map_or(PROTOCOL_VERSION, |version: u8| version.clamp(1, PROTOCOL_VERSION))
}

/// This node's name, and how it shows it to others.
fn identity(node: Option<String>, keys: Option<&Path>, insecure: bool) -> Result<(String, Security)> {
    match (keys, insecure) {
        (Some(_), true) => bail!("--keys and --insecure exclude each other; give one"),
        (None, true) => {
            let node = node.context("--insecure needs a name for this node; give one with --node")?;
            check_node_name(&node)?;
            Ok((node, Security::Insecure))
        }
        (None, false) => bail!(
            "no keys: make some with `secondwind keygen keys a b` and give --keys keys --node a, \
             or trust the link with --insecure"
        ),
        (Some(folder), false) => {
            let node = match node {
                Some(node) => node,
                None => only_node(folder)?,
            };
            let keys = NodeKeys::load(&KeyPaths::in_directory(folder, &node))?;
            let node = keys.node().to_owned();
            Ok((node, Security::Tls(Arc::new(PairTls::new(keys)?))))
        }
    }
}

/// The node whose key is the only one in `folder`.
fn only_node(folder: &Path) -> Result<String> {
    let entries = std::fs::read_dir(folder).with_context(|| {
        format!("cannot read {}; name the folder of `secondwind keygen`", folder.display())
    })?;
    let mut nodes: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".key").map(str::to_owned))
        .filter(|node| node != "ca")
        .collect();
    match (nodes.pop(), nodes.is_empty()) {
        (Some(node), true) => Ok(node),
        _ => bail!("{} holds the keys of several nodes or of none; say which with --node", folder.display()),
    }
}

/// The arbiter that was chosen.
pub struct ArbiterChoice {
    arbiter: Arc<dyn Arbiter>,
    manual: Option<Manual>,
}

struct Manual {
    arbiter: Arc<ManualArbiter<LockFileArbiter>>,
    handle: ManualHandle,
    /// The operator spoke before the question was asked.
    granted: Arc<AtomicBool>,
}

impl ArbiterChoice {
    fn parse(choice: Option<&str>, vm: &str, control: &Path) -> Result<ArbiterChoice> {
        match choice {
            Some("manual") => {
                if let Some(folder) = control.parent() {
                    std::fs::create_dir_all(folder).with_context(|| {
                        format!("cannot make {}; choose another --control", folder.display())
                    })?;
                }
                let own = LockFileArbiter::open(control.with_extension("record"), vm)?;
                let arbiter = Arc::new(ManualArbiter::new(own));
                let handle = arbiter.handle();
                let manual = Manual { arbiter: Arc::clone(&arbiter), handle, granted: Arc::default() };
                Ok(ArbiterChoice { arbiter, manual: Some(manual) })
            }
            Some(other) => {
                let arbiter: Arc<dyn Arbiter> = match other.split_once(':') {
                    Some(("lock", path)) if !path.is_empty() => Arc::new(LockFileArbiter::open(path, vm)?),
                    Some(("etcd", spec)) => {
                        let config = EtcdConfig::parse(spec).context("--arbiter")?;
                        Arc::new(EtcdArbiter::open(&config, vm)?)
                    }
                    _ => bail!(
                        "--arbiter {other:?} is no arbiter; choose lock:FILE, etcd:HOST:PORT,... or manual"
                    ),
                };
                Ok(ArbiterChoice { arbiter, manual: None })
            }
            None => bail!(
                "no arbiter: name a file on storage that both hosts share with --arbiter lock:FILE, \
                 or etcd with --arbiter etcd:HOST:PORT,..., or decide yourself with --arbiter manual"
            ),
        }
    }

    /// The arbiter itself.
    pub fn shared(&self) -> Arc<dyn Arbiter> {
        Arc::clone(&self.arbiter)
    }

    /// How a backup tells a manual arbiter what the primary says of the record.
    pub fn learn(&self) -> Option<backup::driver::Learn> {
        let arbiter = Arc::clone(&self.manual.as_ref()?.arbiter);
        Some(Box::new(move |record| {
            if let Err(error) = arbiter.learn(record) {
                tracing::warn!("{error}");
            }
        }))
    }

    /// The operator's word for the question that waits. Whether one did.
    pub fn grant(&self) -> bool {
        self.manual.as_ref().is_some_and(|manual| manual.handle.grant().is_ok())
    }

    /// The operator's word for the question that comes next.
    pub fn grant_next(&self) {
        let Some(manual) = &self.manual else { return };
        if manual.granted.swap(true, Ordering::AcqRel) {
            return;
        }
        let (handle, granted) = (manual.handle.clone(), Arc::clone(&manual.granted));
        tokio::spawn(async move {
            // The core asks within a moment of the operator's command, or not at all.
            for _ in 0..100 {
                if handle.grant().is_ok() {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            granted.store(false, Ordering::Release);
        });
    }

    /// What the operator is asked, where something waits for that.
    fn question(&self) -> Option<String> {
        let question = self.manual.as_ref()?.handle.pending()?;
        Some(question.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_list_of_nodes_serves_them_all() {
        let list = ["a:1", "b:2", "a:1", "[::1]:3"].map(str::to_owned).to_vec();
        assert_eq!(other_nodes(list.clone(), "b:2").unwrap(), ["a:1", "[::1]:3"]);
        assert_eq!(other_nodes(list, "c:2").unwrap(), ["a:1", "b:2", "[::1]:3"]);
        for bad in ["host", "host:", ":7420", "host:0", "host:70000"] {
            assert!(other_nodes(vec![bad.to_owned()], "").is_err(), "{bad}");
        }
    }
}
