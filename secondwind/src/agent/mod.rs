//! The agents of a protected machine: `secondwind primary`, `backup` and `agent`.
//!
//! ```text
//!                    fenced, or switched over; peers are known
//!   primary -->  Lead ----------------------------------------> Follow  <-- backup
//!                 ^ |                                            | |
//!                 | +-- the guest ended, stopped --> exit        | +-- stopped, unfit --> exit
//!                 +----------------- took over ------------------+
//! ```
//!
//! One process goes from role to role. Its ports, its listening address, its control socket and
//! its timeline stay.

mod follow;
mod image_sync;
mod images;
mod lead;
mod node;
mod orders;
mod protection;
mod reopen;
mod restart;
mod settings;
mod timeline;
mod transfer;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use link::arbitration::Record;

use crate::disk::DiskMode;
use crate::options::{CheckpointOptions, ConfigFile, PairOptions, ProtectionOptions, VmOptions};
use crate::vm::Vm;
use node::{Agent, FirstRole};
use protection::Protection;
pub use settings::PROTOCOL_VARIABLE;
use settings::Settings;

/// Runs the machine live, and protects it with the backups that join.
///
/// Output leaves only when the backup holds what produced it. Without a backup the machine
/// runs alone (--on-backup-loss says what happens when one is lost). When another node took over,
/// and the other nodes are named with --peer, it goes on as a backup of that one.
#[derive(clap::Args)]
#[command(after_help = "\
Exit status: the guest's when it powers off, 4 when another node took over and no --peer is known.

Examples:
  secondwind primary --guest ledger --forward 7000:7000 --keys keys --node a --arbiter lock:/shared/vm.lock
  secondwind primary --config vm.toml --peer host-b:7420 --peer host-c:7420
  secondwind primary --config vm.toml --backups 2 --release quorum
  secondwind primary --config vm.toml --mode hybrid --takeover-within-ms 200
  secondwind primary --config vm.toml --durability disk --log-dir /var/lib/secondwind/db")]
pub struct PrimaryArgs {
    /// Start even where the arbiter names another node: you vouch that it is gone for good,
    /// with all that clients were told since
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// Follows a primary, ready to take its place.
///
/// Needs the same machine options as the primary. When it takes over it becomes a primary, on
/// its own --listen address, and takes new backups. When it is replaced then, it follows again.
#[derive(clap::Args)]
#[command(after_help = "\
Exit status: the guest's when it powers off, 3 when the machines do not fit or diverged.

Examples:
  secondwind backup --primary host-a:7420 --guest ledger --keys keys --node b --arbiter lock:/shared/vm.lock
  secondwind backup --config vm.toml")]
pub struct BackupArgs {
    /// Address of the primary, or of a node that may be it; may be given several times
    #[arg(long, value_name = "HOST:PORT")]
    primary: Vec<String>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs this node in the role that the arbiter's record gives it.
///
/// A node that the record names alone starts the machine; every other one follows, and takes
/// over when its turn comes. The same command, and the same file, for every node and at every start.
#[derive(clap::Args)]
#[command(after_help = "\
Exit status: the guest's when it powers off, 3 when the machines do not fit or diverged.

Examples:
  secondwind agent --config vm.toml --node a --first     where the machine starts for the first time
  secondwind agent --config vm.toml --node b             everywhere else, and ever after")]
pub struct AgentArgs {
    /// Start the machine where the arbiter knows nothing of it yet
    #[arg(long)]
    first: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// What every role needs.
#[derive(clap::Args)]
struct CommonArgs {
    /// TOML file with the tables vm, pair, protection and checkpoint and the lists primary and backups;
    /// flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    vm: VmOptions,
    #[command(flatten)]
    pair: PairOptions,
    #[command(flatten)]
    protection: ProtectionOptions,
    #[command(flatten)]
    checkpoint: CheckpointOptions,
}

/// Runs `secondwind primary`.
pub fn primary(args: PrimaryArgs) -> Result<ExitCode> {
    let role = FirstRole::Lead { force: args.force };
    let (settings, vm) = args.common.check(Vec::new())?;
    run(settings, vm, role)
}

/// Runs `secondwind backup`.
pub fn backup(args: BackupArgs) -> Result<ExitCode> {
    let (settings, vm) = args.common.check(args.primary)?;
    if settings.peers.is_empty() {
        bail!("no primary is named; give its address with --primary HOST:PORT");
    }
    run(settings, vm, FirstRole::Follow)
}

/// Runs `secondwind agent`.
pub fn agent(args: AgentArgs) -> Result<ExitCode> {
    let role = FirstRole::AsRecorded { first: args.first };
    let (settings, vm) = args.common.check(Vec::new())?;
    if settings.peers.is_empty() {
        bail!("no other node is named; give their addresses with --peer HOST:PORT");
    }
    run(settings, vm, role)
}

impl CommonArgs {
    /// Checks the options. `primaries` are addresses that only one command takes.
    fn check(self, primaries: Vec<String>) -> Result<(Settings, Vm)> {
        let file = ConfigFile::load(self.config.as_deref())?;
        let peers = [if primaries.is_empty() { file.primary } else { primaries }, file.backups].concat();
        let pair = self.pair.over(file.pair);
        let checkpoint = self.checkpoint.over(file.checkpoint);
        let protection =
            Protection::new(&self.protection.over(file.protection), &checkpoint, pair.log_dir.is_some())?;
        let settings = Settings::new(pair, protection, peers)?;
        let mut vm = Vm::from_options(&self.vm.over(file.vm), &settings.name)?;
        vm.keep_disks(&settings.name, &settings.node);
        Ok((settings, vm))
    }
}

/// Whether this node will follow another, as far as the arbiter's record says.
async fn follows(settings: &Settings, role: FirstRole) -> Result<bool> {
    let first = match role {
        FirstRole::Follow => return Ok(true),
        FirstRole::Lead { .. } => return Ok(false),
        FirstRole::AsRecorded { first } => first,
    };
    let arbiter = settings.arbiter.shared();
    let record = tokio::task::spawn_blocking(move || arbiter.read()).await??;
    // With backups, another may go on with the machine, unless this node's own log is enough.
    let leads = |record: Record| {
        record.holder == settings.node && (record.backups.is_empty() || settings.is_durable())
    };
    Ok(!record.map_or(first, leads))
}

fn run(settings: Settings, vm: Vm, role: FirstRole) -> Result<ExitCode> {
    // One thread for all that goes over wires, beside those of the machine, its log and whatever blocks:
    // with several, one that gets something to do first wakes another, which costs more than the work.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(async {
        if follows(&settings, role).await? {
            image_sync::fetch_images(&settings, &vm).await?;
        }
        let machine = vm.build(DiskMode::Overlay)?;
        Agent::prepare(settings, vm).await?.run(machine, role).await
    })
}
