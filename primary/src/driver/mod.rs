//! Connects a [`Primary`] and its machine to the world.
//!
//! ```text
//!   ports --> input channel --> vCPU thread (Vcpu) --+
//!                                  ^ requests        |  FromMachine
//!                                  |                 v
//!   arbiter <-- blocking tasks <-- Shared: Mutex<Primary>, pumped by whoever brings news
//!                                  ^                 |
//!   TLS connections, time thread --+                 +--> ports, console, log, connections
//! ```
//!
//! There is no thread for the core: the one that brings an input takes the lock, hands the
//! input over and carries out what the core answers. So an output goes from the machine to the
//! link, and from the acknowledgement to the port, without waking a thread in between. Heartbeats, and
//! what else comes with time, have a thread, so that nothing else delays them.

mod encoder;
mod images;
mod shared;
mod status;
mod vcpu_thread;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use link::arbiter::Arbiter;
use link::clock::monotonic_ns;
use link::transport::{Connection, Listener, Reservation, TransportError};
use log_format::{Event, Message};
use machine::{Handover, Machine};
use netbuf::announce::AddressLearner;
use netbuf::port::{PortHandle, PortSender};
use store::LogWriter;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::core::{ConnectionId, CoreConfig, Durability, Finish, Operator, Primary, PrimaryEvent};
use crate::recorder::{Recorder, RecorderConfig};
use crate::snapshot::SnapshotOrder;
use crate::vcpu::Vcpu;
pub use images::ImageServer;
use shared::Shared;
pub use status::{BackupView, Look, PrimaryStatus, ResyncView, showing};
use vcpu_thread::ToVcpu;

/// What a primary is connected to.
pub struct DriverConfig {
    /// How the core works.
    pub core: CoreConfig,
    /// How the machine's time is cut.
    pub recorder: RecorderConfig,
    /// Where backups are waited for, once the machine executes; `None` for a machine that is never
    /// protected.
    pub listener: Option<Reservation>,
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
    /// The disks' base images, for nodes that have none; `None` where nobody gets them.
    pub images: Option<Arc<dyn ImageServer>>,
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
    pub status: watch::Sender<Look>,
    /// What happened, with the host's monotonic nanoseconds.
    pub events: mpsc::UnboundedSender<(u64, PrimaryEvent)>,
}

/// A primacy that ended, with what it had and another role of the same process can use.
pub struct Ended<M> {
    /// How it ended.
    pub finish: Finish,
    /// The machine, as it stands.
    pub machine: M,
    /// Where backups were waited for.
    pub listener: Option<Listener>,
    /// The network ports, which are quiet now.
    pub ports: Vec<PortHandle>,
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
/// How often it is looked how the log on disk is doing.
const LOG_INTERVAL: Duration = Duration::from_millis(100);
/// Announcements of the guest's addresses after the first one: switches forget, frames get
/// lost.
const ANNOUNCE_AGAIN: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(1000)];

/// Runs a primacy to its end. Call it inside a tokio runtime.
///
/// # Errors
/// [`DriverError`]; output that was not committed has not left then.
pub async fn run<M: Machine + 'static>(
    handover: Handover<M>,
    config: DriverConfig,
    controls: Controls,
) -> Result<Ended<M>, DriverError> {
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
    let node = config.core.node.clone();
    let core = CoreConfig { store: config.store.is_some(), ..config.core };
    let durable = core.durability == Durability::Disk;
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
        ports: senders.clone(),
        learners: config.learners,
        console: config.console,
        durable,
        store: config.store,
        arbiter: config.arbiter,
        diverged: config.diverged,
        to_vcpu: to_vcpu.clone(),
        events: controls.events,
    })?;
    shared.lease(term, &node);
    if is_takeover {
        announce(&shared);
    }
    let carriers = Carriers::start(senders, receivers, &to_vcpu);
    config.first_inputs.into_iter().for_each(|event| shared.to_vcpu(ToVcpu::Input(event)));
    let vcpu = vcpu_thread::start(Vcpu::new(recorder), from_driver, Arc::clone(&shared))?;
    shared.with(|_, _| {});
    controls.status.send_replace(shared.look());

    let mut listener = config.listener.and_then(|reservation| {
        // The term is taken: better unprotected than not at all.
        reservation.listen().inspect_err(|error| tracing::error!("{error}; no backup can join")).ok()
    });
    let time = shared.keep_time().map_err(DriverError::Thread)?;
    let ended = serve(&shared, &mut listener, controls.commands, &config.images).await;
    shared.to_vcpu(ToVcpu::Stop);
    let vcpu_ended = tokio::task::spawn_blocking(move || vcpu.join()).await;
    // It ended with the primacy: the core has, or something failed for good.
    let time_ended = tokio::task::spawn_blocking(move || time.join()).await;
    drop(time_ended);
    shared.close_connections().await;
    controls.status.send_replace(showing(shared.status()));
    let ports = carriers.end().await;
    let leased = Arc::clone(&shared);
    let lease_ended = tokio::task::spawn_blocking(move || leased.end_lease()).await;
    drop(lease_ended);
    shared.finish_store()?;
    let finish = ended?;
    let vcpu = vcpu_ended.ok().and_then(Result::ok).ok_or(DriverError::Vcpu)?;
    Ok(Ended { finish, machine: vcpu.into_machine(), listener, ports })
}

/// The tasks that carry frames from the ports to the machine.
struct Carriers {
    senders: Vec<PortSender>,
    tasks: Vec<JoinHandle<mpsc::Receiver<Bytes>>>,
    /// The tasks end when this is dropped.
    alive: watch::Sender<()>,
}

impl Carriers {
    fn start(
        senders: Vec<PortSender>,
        receivers: Vec<mpsc::Receiver<Bytes>>,
        to_vcpu: &std::sync::mpsc::Sender<ToVcpu>,
    ) -> Carriers {
        let alive = watch::Sender::new(());
        let start = |(port, frames)| tokio::spawn(carry(port, frames, to_vcpu.clone(), alive.subscribe()));
        let tasks = (0..).zip(receivers).map(start).collect();
        Carriers { senders, tasks, alive }
    }

    /// Makes the ports quiet, and gives them back.
    async fn end(self) -> Vec<PortHandle> {
        let Carriers { senders, tasks, alive } = self;
        drop(alive);
        let mut ports = Vec::new();
        for (sender, task) in senders.into_iter().zip(tasks) {
            // Only going live can fail.
            let _ = sender.set_live(false);
            ports.extend(task.await.ok().map(|frames| PortHandle::join(sender, frames)));
        }
        ports
    }
}

/// Carries frames to the machine as long as it is there and `alive` is.
async fn carry(
    port: u8,
    mut frames: mpsc::Receiver<Bytes>,
    to_vcpu: std::sync::mpsc::Sender<ToVcpu>,
    mut alive: watch::Receiver<()>,
) -> mpsc::Receiver<Bytes> {
    loop {
        let frame = tokio::select! {
            frame = frames.recv() => frame,
            _ = alive.changed() => None,
        };
        let Some(frame) = frame else { return frames };
        if to_vcpu.send(ToVcpu::Input(Event::NetworkIn { port, frame })).is_err() {
            return frames;
        }
    }
}

/// Takes connections and commands to the core until it is finished.
async fn serve(
    shared: &Arc<Shared>,
    listener: &mut Option<Listener>,
    mut commands: mpsc::Receiver<Command>,
    images: &Option<Arc<dyn ImageServer>>,
) -> Result<Finish, DriverError> {
    let (mut next_connection, mut warn_from_ns) = (0, 0);
    let mut log_due = tokio::time::interval(LOG_INTERVAL);
    log_due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let has_log = shared.has_log();
    let mut commands_open = true;
    loop {
        if let Some(error) = shared.take_failure() {
            return Err(error);
        }
        if let Some(finish) = shared.finished() {
            return Ok(finish);
        }
        tokio::select! {
            accepted = accept(listener) => match accepted {
                Ok(connection) => {
                    next_connection += 1;
                    attach(shared, ConnectionId(next_connection), connection, images);
                }
                Err(error @ TransportError::LeftSilently { .. }) => tracing::debug!("{error}"),
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
            () = shared.wait_for_end() => {}
            _ = log_due.tick(), if has_log => shared.watch_log(),
        }
    }
}

async fn accept(listener: &mut Option<Listener>) -> Result<Connection, link::transport::TransportError> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

fn attach(
    shared: &Arc<Shared>,
    id: ConnectionId,
    connection: Connection,
    images: &Option<Arc<dyn ImageServer>>,
) {
    let Connection { peer, sender, mut receiver } = connection;
    shared.add_connection(id, sender);
    shared.with(|primary, now_ns| primary.handle_connected(id, peer.node, now_ns));
    let (shared, images) = (Arc::clone(shared), images.clone());
    tokio::spawn(async move {
        loop {
            match receiver.receive().await {
                Ok(Some(Message::ImageRequest(request))) => {
                    // Whoever asks for images is no backup yet.
                    let sender = shared.remove_connection(id);
                    shared.with(|primary, now_ns| primary.handle_closed(id, now_ns));
                    if let (Some(sender), Some(images)) = (sender, images) {
                        images::serve(images, sender, receiver, request).await;
                    }
                    return;
                }
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
