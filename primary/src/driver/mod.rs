//! Connects a [`Primary`] and its machine to the world.
//!
//! ```text
//!   ports --> input channel --> vCPU thread (Vcpu) --+
//!                                  ^ requests        |  FromMachine
//!                                  |                 v
//!   arbiter <-- blocking tasks <-- Shared: Mutex<Primary>, pumped by whoever brings news
//!                                  ^                 |
//!   TLS connections ---------------+                 +--> ports, console, log, connections
//! ```
//!
//! There is no thread for the core: the one that brings an input takes the lock, hands the
//! input over and carries out what the core answers. So an output goes from the machine to the
//! link, and from the acknowledgement to the port, without waking a thread in between.

mod shared;
mod status;
mod vcpu_thread;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use link::arbiter::Arbiter;
use link::clock::monotonic_ns;
use link::transport::{Connection, Listener};
use log_format::Event;
use machine::{Handover, Machine};
use netbuf::announce::AddressLearner;
use netbuf::port::PortHandle;
use store::LogWriter;
use tokio::sync::{mpsc, watch};

use crate::core::{ConnectionId, CoreConfig, Finish, Operator, Primary, PrimaryEvent};
use crate::recorder::{Recorder, RecorderConfig};
use crate::snapshot::SnapshotOrder;
use crate::vcpu::Vcpu;
use shared::Shared;
pub use status::PrimaryStatus;
use vcpu_thread::ToVcpu;

/// What a primary is connected to.
pub struct DriverConfig {
    /// How the core works.
    pub core: CoreConfig,
    /// How the machine's time is cut.
    pub recorder: RecorderConfig,
    /// Where backups are waited for; `None` for a machine that is never protected.
    pub listener: Option<Listener>,
    /// Who decides.
    pub arbiter: Arc<dyn Arbiter>,
    /// The network ports, in the machine's order. They go live here.
    pub ports: Vec<PortHandle>,
    /// Addresses of the guest that are announced at the start, for each port.
    pub learners: Vec<AddressLearner>,
    /// Where the guest's console goes.
    pub console: Box<dyn Write + Send>,
    /// The log on this side's disk.
    pub store: Option<LogWriter>,
    /// Where the state is kept when a backup's differs.
    pub diverged: Option<PathBuf>,
    /// Injected before anything else: entropy and the wall clock.
    pub first_inputs: Vec<Event>,
}

/// What a running primary can be told.
#[derive(Debug)]
pub enum Command {
    /// An operator's command to the core.
    Operator(Operator),
    /// An input for the machine.
    Input(Event),
    /// The machine's state is wanted outside. Dropped while another checkpoint is under way.
    Snapshot(SnapshotOrder),
    /// A guest that stands still at a snapshot goes on.
    Release,
}

/// The other end of a running primary.
pub struct Controls {
    /// What it is told. When all senders are gone, nothing more comes.
    pub commands: mpsc::Receiver<Command>,
    /// What it shows.
    pub status: watch::Sender<PrimaryStatus>,
    /// What happened, with the host's monotonic nanoseconds.
    pub events: mpsc::UnboundedSender<(u64, PrimaryEvent)>,
}

/// Why a primary cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The log could not be written.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// A port could not go live.
    #[error(transparent)]
    Port(#[from] netbuf::PortError),
    /// The log's thread ended; `Store` takes this error's place where it says why.
    #[error(transparent)]
    Log(#[from] store::LogEnded),
    /// The machine's thread ended by itself.
    #[error("the machine's thread failed; see the messages before this one")]
    Vcpu,
}

/// Least time between two warnings about hosts that could not connect.
const WARN_INTERVAL_NS: u64 = 10_000_000_000;
/// How often the status is brought up to date.
const STATUS_INTERVAL: Duration = Duration::from_millis(50);
/// Announcements of the guest's addresses after the first one: switches forget, frames get
/// lost.
const ANNOUNCE_AGAIN: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(1000)];

/// Runs a primacy to its end. Call it inside a multi-threaded tokio runtime.
///
/// # Errors
/// [`DriverError`]; output that was not committed has not left then.
pub async fn run<M: Machine + 'static>(
    handover: Handover<M>,
    config: DriverConfig,
    controls: Controls,
) -> Result<Finish, DriverError> {
    let Handover { machine, start } = handover;
    let now_ns = monotonic_ns();
    let is_takeover = start.clock_offset_ns.is_some();
    let recorder = match start.clock_offset_ns {
        Some(offset_ns) => {
            Recorder::take_over(machine, config.recorder, start.events_before, offset_ns, now_ns)
        }
        None => Recorder::new(machine, config.recorder, start.events_before, now_ns),
    };
    let term = start.from.term;
    let core = CoreConfig { store: config.store.is_some(), ..config.core };
    let primary = Primary::new(core, start, now_ns);

    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for port in config.ports {
        let (sender, receiver) = port.split();
        sender.set_term(term);
        sender.set_live(true)?;
        senders.push(sender);
        receivers.push(receiver);
    }
    let (to_vcpu, from_driver) = std::sync::mpsc::channel();
    let shared = Shared::start(shared::Parts {
        primary,
        ports: senders,
        learners: config.learners,
        console: config.console,
        store: config.store,
        arbiter: config.arbiter,
        diverged: config.diverged,
        to_vcpu: to_vcpu.clone(),
        events: controls.events,
    })?;
    if is_takeover {
        announce(&shared);
    }
    for (number, mut frames) in (0..).zip(receivers) {
        let to_vcpu = to_vcpu.clone();
        tokio::spawn(async move {
            while let Some(frame) = frames.recv().await {
                if to_vcpu.send(ToVcpu::Input(Event::NetworkIn { port: number, frame })).is_err() {
                    break;
                }
            }
        });
    }
    config.first_inputs.into_iter().for_each(|event| shared.to_vcpu(ToVcpu::Input(event)));
    let vcpu = vcpu_thread::start(Vcpu::new(recorder), from_driver, Arc::clone(&shared))?;
    shared.with(|_, _| {});

    let ended = serve(&shared, config.listener, controls.commands, &controls.status).await;
    shared.to_vcpu(ToVcpu::Stop);
    let vcpu_ended = tokio::task::spawn_blocking(move || vcpu.join()).await;
    shared.close_connections().await;
    controls.status.send_replace(shared.status());
    shared.finish_store()?;
    match (ended, vcpu_ended) {
        (Ok(_), Ok(Err(_)) | Err(_)) => Err(DriverError::Vcpu),
        (ended, _) => ended,
    }
}

/// Takes connections, commands and the time to the core until it is finished.
async fn serve(
    shared: &Arc<Shared>,
    mut listener: Option<Listener>,
    mut commands: mpsc::Receiver<Command>,
    status: &watch::Sender<PrimaryStatus>,
) -> Result<Finish, DriverError> {
    let (mut next_connection, mut warn_from_ns) = (0, 0);
    let mut status_due = tokio::time::interval(STATUS_INTERVAL);
    status_due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut commands_open = true;
    loop {
        if let Some(error) = shared.take_failure() {
            return Err(error);
        }
        if let Some(finish) = shared.finished() {
            return Ok(finish);
        }
        tokio::select! {
            accepted = accept(&mut listener) => match accepted {
                Ok(connection) => {
                    next_connection += 1;
                    attach(shared, ConnectionId(next_connection), connection);
                }
                // A host with a wrong key tries again and again: it is not worth a line each time.
                Err(error) if monotonic_ns() >= warn_from_ns => {
                    tracing::warn!("{error}");
                    warn_from_ns = monotonic_ns().saturating_add(WARN_INTERVAL_NS);
                }
                Err(error) => tracing::debug!("{error}"),
            },
            command = commands.recv(), if commands_open => match command {
                Some(Command::Operator(operator)) => {
                    shared.with(|primary, now_ns| primary.handle_operator(operator, now_ns));
                }
                Some(Command::Input(event)) => shared.to_vcpu(ToVcpu::Input(event)),
                Some(Command::Snapshot(order)) => shared.to_vcpu(ToVcpu::Snapshot(order)),
                Some(Command::Release) => shared.to_vcpu(ToVcpu::Release),
                None => commands_open = false,
            },
            () = shared.wait_for_timeout() => {
                shared.with(|primary, now_ns| {
                    if primary.poll_timeout().is_some_and(|due_ns| due_ns <= now_ns) {
                        primary.handle_timeout(now_ns);
                    }
                });
            }
            _ = status_due.tick() => {
                status.send_replace(shared.status());
            }
        }
    }
}

async fn accept(listener: &mut Option<Listener>) -> Result<Connection, link::transport::TransportError> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

fn attach(shared: &Arc<Shared>, id: ConnectionId, connection: Connection) {
    let Connection { peer, sender, mut receiver } = connection;
    shared.add_connection(id, sender);
    shared.with(|primary, now_ns| primary.handle_connected(id, peer.node, now_ns));
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        loop {
            match receiver.receive().await {
                Ok(Some(message)) => {
                    shared.with(|primary, now_ns| primary.handle_message(id, message, now_ns));
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::info!("{error}");
                    break;
                }
            }
        }
        shared.remove_connection(id);
        shared.with(|primary, now_ns| primary.handle_closed(id, now_ns));
    });
}

/// Tells the network where the guest is now.
fn announce(shared: &Arc<Shared>) {
    shared.announce();
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        for pause in ANNOUNCE_AGAIN {
            tokio::time::sleep(pause).await;
            shared.announce();
        }
    });
}
