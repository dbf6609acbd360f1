//! `secondwind primary` and `secondwind backup`: the two agents of a protected machine.

mod settings;
mod timeline;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use backup::driver::Outcome;
use link::arbitration::{Authority, Step, arbitrate};
use log_format::{Event, SegmentHeader};
use machine::{Handover, Machine, PrimacyStart, RiscvMachine};
use netbuf::announce::AddressLearner;
use netbuf::{MacAddress, PortHandle, PortId, VmId};
use primary::driver::Command;
use serde_json::{Value, json};
use store::{LogOptions, LogWriter};
use tokio::sync::{mpsc, watch};

use crate::checkpoint::order::{ToMachine, carry_out};
use crate::control::{ControlServer, Order, Request};
use crate::disk::DiskMode;
use crate::options::{ConfigFile, PairOptions, VmOptions};
use crate::vm::Vm;
use settings::{ArbiterChoice, Settings};
use timeline::Timeline;

/// Runs the machine live, and protects it with the backups that join.
///
/// Output leaves only when the backup holds what produced it. Without a backup the machine
/// runs alone (--on-backup-loss says what happens when one is lost).
#[derive(clap::Args)]
#[command(after_help = "\
Exit status: the guest's when it powers off, 4 when another node took over.

Examples:
  secondwind primary --guest ledger --forward 7000:7000 --keys keys --node a --arbiter lock:/shared/vm.lock
  secondwind primary --config vm.toml")]
pub struct PrimaryArgs {
    /// TOML file with the tables vm and pair; flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Start even where the arbiter names another node: you vouch that it is gone for good,
    /// with all that clients were told since
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    vm: VmOptions,
    #[command(flatten)]
    pair: PairOptions,
}

/// Follows a primary, ready to take its place.
///
/// Needs the same machine options as the primary. When it takes over it becomes a primary, on
/// its own --listen address, and takes new backups.
#[derive(clap::Args)]
#[command(after_help = "\
Exit status: the guest's when it powers off, 3 when the machines do not fit or diverged, 4 when
it took over and was then replaced itself.

Examples:
  secondwind backup --primary host-a:7420 --guest ledger --keys keys --node b --arbiter lock:/shared/vm.lock
  secondwind backup --config vm.toml")]
pub struct BackupArgs {
    /// TOML file with the tables vm and pair and the list `primary`; flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of the primary; may be given several times
    #[arg(long, value_name = "HOST:PORT")]
    primary: Vec<String>,
    #[command(flatten)]
    vm: VmOptions,
    #[command(flatten)]
    pair: PairOptions,
}

/// Exit status of a backup that cannot serve: see [`BackupArgs`].
const UNUSABLE: u8 = 3;
/// Exit status of a primary that another one replaced.
const FENCED: u8 = 4;
/// Commands that wait to be carried out.
const COMMANDS: usize = 16;

/// Runs `secondwind primary`.
pub fn primary(args: PrimaryArgs) -> Result<ExitCode> {
    let file = ConfigFile::load(args.config.as_deref())?;
    let settings = Settings::new(args.pair.over(file.pair))?;
    let vm = Vm::from_options(&args.vm.over(file.vm), &settings.name)?;
    runtime()?.block_on(async {
        let machine = vm.build(DiskMode::Overlay)?;
        let agent = Agent::prepare(settings, vm).await?;
        agent.start_primary(machine, args.force).await
    })
}

/// Runs `secondwind backup`.
pub fn backup(args: BackupArgs) -> Result<ExitCode> {
    let file = ConfigFile::load(args.config.as_deref())?;
    let settings = Settings::new(args.pair.over(file.pair))?;
    if settings.log_dir.is_some() {
        bail!("--log-dir is the primary's: a backup holds the log in memory; leave it out here");
    }
    let vm = Vm::from_options(&args.vm.over(file.vm), &settings.name)?;
    let primaries = if args.primary.is_empty() { file.primary } else { args.primary };
    if primaries.is_empty() {
        bail!("no primary is named; give its address with --primary HOST:PORT");
    }
    runtime()?.block_on(async {
        let machine = vm.build(DiskMode::Overlay)?;
        let agent = Agent::prepare(settings, vm).await?;
        agent.follow(machine, primaries).await
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().context("cannot start the runtime")
}

/// An agent with all that it holds before it has a role.
struct Agent {
    settings: Settings,
    vm: Vm,
    ports: Vec<PortHandle>,
    listener: link::transport::Listener,
    timeline: Timeline,
    status: watch::Sender<Value>,
    requests: mpsc::Receiver<Order>,
    /// Ends the control socket, and removes its file, with the agent.
    _control: AbortOnDrop,
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Agent {
    /// Takes everything that can be taken by another process, before any question to the
    /// arbiter.
    async fn prepare(settings: Settings, vm: Vm) -> Result<Agent> {
        let listener =
            link::transport::Listener::bind(&settings.listen, settings.security.clone(), Default::default())
                .await?;
        let mut ports = Vec::new();
        for (port, spec) in (0..).zip(&vm.nets) {
            let id = PortId { vm: VmId::from_name(&settings.name), port };
            ports.push(netbuf::port::open(spec, id, 0).await?);
        }
        let timeline = Timeline::open(settings.timeline.as_deref(), &settings.node)?;
        let (status, shown) = watch::channel(json!({ "role": "starting" }));
        let (commands, requests) = mpsc::channel(COMMANDS);
        let server = ControlServer::bind(&settings.control)?;
        let control = AbortOnDrop(tokio::spawn(server.serve(shown, commands.clone())));
        tokio::spawn(stop_on_signal(commands));
        Ok(Agent { settings, vm, ports, listener, timeline, status, requests, _control: control })
    }

    async fn start_primary(self, machine: RiscvMachine, force: bool) -> Result<ExitCode> {
        let identity = machine.identity();
        let authority = if force { Authority::Operator } else { Authority::Rules };
        let step = Step::ClaimStart { node: self.settings.node.clone(), authority };
        let arbiter = self.settings.arbiter.shared();
        let record = tokio::task::spawn_blocking(move || arbitrate(&*arbiter, &step))
            .await?
            .context("this node may not start the machine (--force overrides what is recorded)")?;
        let start = PrimacyStart::boot(&identity, record.term);
        let store = match &self.settings.log_dir {
            Some(folder) => {
                let header = SegmentHeader::at_boot(
                    self.settings.name.clone(),
                    identity,
                    record.term,
                    self.vm.recipe()?,
                );
                let writer = LogWriter::create(folder, header, LogOptions::default())?;
                self.vm.save_images(folder)?;
                Some(writer)
            }
            None => None,
        };
        let learners = learners(&self.vm);
        self.lead(Handover { machine, start }, learners, store).await
    }

    /// Runs the machine live, to the end.
    async fn lead(
        mut self,
        handover: Handover<RiscvMachine>,
        learners: Vec<AddressLearner>,
        store: Option<LogWriter>,
    ) -> Result<ExitCode> {
        let first_inputs = crate::resume::first_events(crate::vm::unix_ns(), crate::vm::entropy_seed()?);
        let config = primary::driver::DriverConfig {
            core: self.settings.primary_core(handover.machine.identity()),
            recorder: Default::default(),
            listener: Some(self.listener),
            arbiter: self.settings.arbiter.shared(),
            ports: self.ports,
            learners,
            console: self.settings.open_console()?,
            store,
            diverged: Some(self.settings.diverged_folder()),
            first_inputs,
        };
        let (commands, received) = mpsc::channel(COMMANDS);
        let (status, mut shown) = watch::channel(primary::driver::PrimaryStatus::default());
        let (events, mut happened) = mpsc::unbounded_channel();
        let controls = primary::driver::Controls { commands: received, status, events };
        let mut running = Box::pin(primary::driver::run(handover, config, controls));
        let finish = loop {
            tokio::select! {
                finish = &mut running => break finish?,
                Some((at_ns, event)) = happened.recv() => {
                    let (name, details) = timeline::of_primary(&event);
                    self.timeline.write(at_ns, name, details);
                }
                Some(request) = self.requests.recv() => {
                    obey_as_primary(&self.settings, &self.vm, &commands, request).await;
                }
                Ok(()) = shown.changed() => {
                    let view = serde_json::to_value(&*shown.borrow_and_update())?;
                    self.status.send_replace(self.settings.describe("primary", view));
                }
            }
        };
        while let Ok((at_ns, event)) = happened.try_recv() {
            let (name, details) = timeline::of_primary(&event);
            self.timeline.write(at_ns, name, details);
        }
        Ok(match finish {
            primary::Finish::GuestEnded { code } => ExitCode::from(code.min(255) as u8),
            primary::Finish::Stopped => ExitCode::SUCCESS,
            primary::Finish::HostFault { disk } => {
                eprintln!(
                    "secondwind: disk {disk} ({}) could not be read or written; see to it and start again",
                    self.vm.disks[usize::from(disk)].path.display()
                );
                ExitCode::FAILURE
            }
            primary::Finish::Fenced { text } => {
                eprintln!("secondwind: fenced: {text}; start this node as a backup of the new primary");
                ExitCode::from(FENCED)
            }
        })
    }

    /// Follows a primary; leads once it took over.
    async fn follow(mut self, machine: RiscvMachine, primaries: Vec<String>) -> Result<ExitCode> {
        let identity = machine.identity();
        let config = backup::driver::DriverConfig {
            core: self.settings.backup_core(identity),
            primaries,
            security: self.settings.security.clone(),
            transport: Default::default(),
            arbiter: self.settings.arbiter.shared(),
            learn: self.settings.arbiter.learn(),
            learners: learners(&self.vm),
            store: None,
            diverged: Some(self.settings.diverged_folder()),
        };
        let (commands, received) = mpsc::channel(COMMANDS);
        let (status, mut shown) = watch::channel(backup::driver::BackupStatus::default());
        let (events, mut happened) = mpsc::unbounded_channel();
        let controls = backup::driver::Controls { commands: received, status, events };
        let mut running = Box::pin(backup::driver::run(machines(self.vm.clone(), machine), config, controls));
        let outcome = loop {
            tokio::select! {
                outcome = &mut running => break outcome?,
                Some((at_ns, event)) = happened.recv() => {
                    let (name, details) = timeline::of_backup(&event);
                    self.timeline.write(at_ns, name, details);
                }
                Some(request) = self.requests.recv() => {
                    obey_as_backup(&self.settings.arbiter, &commands, request).await;
                }
                Ok(()) = shown.changed() => {
                    let view = serde_json::to_value(&*shown.borrow_and_update())?;
                    self.status.send_replace(self.settings.describe("backup", view));
                }
            }
        };
        // The machine goes live first; what is left to write down is written meanwhile.
        let mut timeline = self.timeline.share()?;
        tokio::spawn(async move {
            while let Some((at_ns, event)) = happened.recv().await {
                let (name, details) = timeline::of_backup(&event);
                timeline.write(at_ns, name, details);
            }
        });
        match outcome {
            Outcome::TakenOver { handover, learners } => self.lead(*handover, learners, None).await,
            Outcome::Ended(finish) => Ok(ended(finish)),
        }
    }
}

/// Exit status of a backup that did not take over.
fn ended(finish: backup::Finish) -> ExitCode {
    match finish {
        backup::Finish::Stopped | backup::Finish::TakenOver(_) => ExitCode::SUCCESS,
        backup::Finish::GuestEnded { text } => {
            eprintln!("secondwind: the machine ended: {text}");
            ExitCode::SUCCESS
        }
        backup::Finish::Refused { text } | backup::Finish::Unusable { text } => {
            eprintln!("secondwind: {text}");
            ExitCode::from(UNUSABLE)
        }
    }
}

async fn obey_as_primary(settings: &Settings, vm: &Vm, commands: &mpsc::Sender<Command>, order: Order) {
    let command = match order {
        Order::Simple(Request::Takeover) if settings.arbiter.grant() => return,
        Order::Simple(Request::Takeover) => Command::Operator(primary::Operator::GoAlone),
        Order::Simple(Request::Stop) => Command::Operator(primary::Operator::Stop),
        Order::Simple(Request::PowerButton) => {
            Command::Input(Event::Control(log_format::Control::PowerButton))
        }
        Order::Simple(Request::Status | Request::Checkpoint(_)) => return,
        Order::Checkpoint(request, replies) => {
            let (vm, name, commands) = (vm.clone(), settings.name.clone(), commands.clone());
            let tell = move |told| {
                // A driver that is ending drops the order, which is answered then.
                let _ = commands.blocking_send(match told {
                    ToMachine::Snapshot(order) => Command::Snapshot(order),
                    ToMachine::Release => Command::Release,
                    ToMachine::Stop => Command::Operator(primary::Operator::Stop),
                });
            };
            tokio::task::spawn_blocking(move || carry_out(&request, &vm, &name, &replies, tell));
            return;
        }
    };
    // A driver that is ending takes no more commands.
    let _ = commands.send(command).await;
}

async fn obey_as_backup(arbiter: &ArbiterChoice, commands: &mpsc::Sender<backup::Operator>, order: Order) {
    let request = match order {
        Order::Simple(request) => request,
        Order::Checkpoint(_, replies) => {
            let error = "this is a backup; ask the primary for a checkpoint";
            let _ = replies.send(json!({ "error": error }));
            return;
        }
    };
    let command = match request {
        Request::Status | Request::PowerButton | Request::Checkpoint(_) => return,
        Request::Takeover if arbiter.grant() => return,
        Request::Takeover => {
            arbiter.grant_next();
            backup::Operator::TakeOver
        }
        Request::Stop => backup::Operator::Stop,
    };
    let _ = commands.send(command).await;
}

/// Passes SIGINT and SIGTERM on as a request to stop.
async fn stop_on_signal(orders: mpsc::Sender<Order>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if orders.send(Order::Simple(Request::Stop)).await.is_err() {
            return;
        }
    }
}

fn learners(vm: &Vm) -> Vec<AddressLearner> {
    vm.config.nets.iter().map(|net| AddressLearner::with_mac(MacAddress(net.mac))).collect()
}

/// Makes machines as they are at their boot: `first`, then new ones.
fn machines(vm: Vm, first: RiscvMachine) -> impl FnMut() -> RiscvMachine + Send {
    let mut first = Some(first);
    move || match first.take() {
        Some(machine) => machine,
        None => vm.build(DiskMode::Overlay).unwrap_or_else(|error| {
            // It could be built when this process began: its files are gone, and nothing can
            // be followed without them.
            eprintln!("secondwind: {error:#}");
            std::process::exit(1)
        }),
    }
}
