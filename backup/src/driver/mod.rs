//! Connects a [`Backup`] and its machine to the world.
//!
//! ```text
//!   TLS connection --> Shared: Mutex<Backup>, pumped by whoever brings news --> acknowledgements
//!                        |                ^
//!             ToReplayer |                | FromReplayer
//!                        v                |
//!                     replay thread (ReplayWorker)
//! ```
//!
//! The task that receives a batch acknowledges it: the replay is not waited for.

mod log;
mod replay_thread;
mod shared;
mod status;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use link::arbiter::Arbiter;
use link::arbitration::Record;
use link::tls::Security;
use link::transport::{Connection, TransportConfig, TransportError, connect};
use machine::{Handover, Machine};
use netbuf::announce::AddressLearner;
use store::{LogFolder, LogWriter};
use tokio::sync::{mpsc, watch};

use crate::core::{Backup, BackupEvent, ConnectionId, CoreConfig, Finish, Operator};
use link::clock::monotonic_ns;
use shared::Shared;
pub use status::{BackupStatus, Look, showing};

/// Told what the primary says of the arbiter's record.
pub type Learn = Box<dyn Fn(&Record) + Send>;

/// What a backup is connected to.
pub struct DriverConfig {
    /// How the core works.
    pub core: CoreConfig,
    /// Addresses (`HOST:PORT`) at which the primary may be.
    pub primaries: Vec<String>,
    /// How to talk to it.
    pub security: Security,
    /// Limits of the connection.
    pub transport: TransportConfig,
    /// Who decides a takeover.
    pub arbiter: Arc<dyn Arbiter>,
    /// Told what the primary says of the arbiter's record; for arbiters that keep their own.
    pub learn: Option<Learn>,
    /// One for each network port: they learn the guest's addresses.
    pub learners: Vec<AddressLearner>,
    /// Where this side keeps the log on disk.
    pub log: Option<LogFolder>,
    /// Where a state that diverged is kept for diagnosis.
    pub diverged: Option<PathBuf>,
}

/// The other end of a running backup.
pub struct Controls {
    /// What it is told. When all senders are gone, nothing more comes.
    pub commands: mpsc::Receiver<Operator>,
    /// What it shows.
    pub status: watch::Sender<Look>,
    /// What happened, with the host's monotonic nanoseconds.
    pub events: mpsc::UnboundedSender<(u64, BackupEvent)>,
}

/// How a backup's life ended.
pub enum Outcome<M> {
    /// It takes over with this machine.
    TakenOver {
        /// The machine, and where its primacy begins.
        handover: Box<Handover<M>>,
        /// The guest's addresses, for each port.
        learners: Vec<AddressLearner>,
        /// The log on this side's disk, up to where the machine stands.
        log: Option<Box<LogWriter>>,
    },
    /// Anything else.
    Ended(Finish),
}

/// Why a backup cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The log could not be written.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// The replay thread ended by itself.
    #[error("the replay thread failed; see the messages before this one")]
    Replay,
}

/// Wait before the next attempt where the primary refuses this host's keys.
const UNWELCOME_PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked how the log on disk is doing.
const LOG_INTERVAL: Duration = Duration::from_millis(100);

/// Runs a backup to its end. `new_machine` makes a machine as it is at its boot. Call it
/// inside a tokio runtime.
///
/// # Errors
/// [`DriverError`].
pub async fn run<M: Machine + 'static>(
    new_machine: impl FnMut() -> M + Send + 'static,
    config: DriverConfig,
    controls: Controls,
) -> Result<Outcome<M>, DriverError> {
    let core = CoreConfig { store: config.log.is_some(), ..config.core };
    let durable = core.durable;
    let (to_replayer, commands) = std::sync::mpsc::channel();
    let shared = Shared::start(shared::Parts {
        backup: Backup::new(core, monotonic_ns()),
        learners: config.learners,
        learn: config.learn,
        log: config.log,
        durable,
        arbiter: config.arbiter,
        to_replayer,
        events: controls.events,
    })?;
    let replay = replay_thread::start(new_machine, commands, Arc::clone(&shared), config.diverged)?;
    controls.status.send_replace(shared.look());
    let dialler =
        Dialler { addresses: config.primaries, security: config.security, transport: config.transport };

    let finish = serve(&shared, &dialler, controls.commands).await;
    shared.close_connection().await;
    let learners = shared.stop();
    let worker = tokio::task::spawn_blocking(move || replay.join()).await;
    controls.status.send_replace(showing(shared.status()));
    let log = shared.end_log()?;
    match finish {
        Finish::TakenOver(start) => {
            let worker = worker.ok().and_then(Result::ok).ok_or(DriverError::Replay)?;
            let machine = worker.into_machine().ok_or(DriverError::Replay)?;
            let handover = Box::new(Handover { machine, start: *start });
            Ok(Outcome::TakenOver { handover, learners, log: log.map(Box::new) })
        }
        other => {
            log.map_or(Ok(()), LogWriter::finish)?;
            Ok(Outcome::Ended(other))
        }
    }
}

/// How the primary is reached.
struct Dialler {
    addresses: Vec<String>,
    security: Security,
    transport: TransportConfig,
}

/// Takes the connection, commands and the time to the core until it is finished.
async fn serve(shared: &Arc<Shared>, dialler: &Dialler, mut commands: mpsc::Receiver<Operator>) -> Finish {
    let mut next_connection = 0;
    let mut log_due = tokio::time::interval(LOG_INTERVAL);
    log_due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let has_log = shared.has_log();
    let mut commands_open = true;
    loop {
        if let Some(finish) = shared.finished() {
            return finish;
        }
        if shared.wants_dial() {
            next_connection += 1;
            dial(shared, dialler, ConnectionId(next_connection));
        }
        tokio::select! {
            command = commands.recv(), if commands_open => match command {
                Some(operator) => shared.with(|backup, _| backup.handle_operator(operator)),
                None => commands_open = false,
            },
            () = shared.wait_for_timeout() => {
                shared.with(|backup, now_ns| {
                    if backup.poll_timeout().is_some_and(|due_ns| due_ns <= now_ns) {
                        backup.handle_timeout(now_ns);
                    }
                });
            }
            _ = log_due.tick(), if has_log => shared.watch_log(),
        }
    }
}

/// Connects in the background, and then receives until the connection ends.
fn dial(shared: &Arc<Shared>, dialler: &Dialler, id: ConnectionId) {
    let (addresses, security, transport) =
        (dialler.addresses.clone(), dialler.security.clone(), dialler.transport);
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        match connect(&addresses, &security, transport).await {
            Ok(connection) => receive(&shared, id, connection).await,
            Err(error) => {
                shared.note_dial_error(error.to_string());
                if !matches!(error, TransportError::Unreachable { .. }) {
                    // Somebody answers, but will not talk: that needs a person.
                    tokio::time::sleep(UNWELCOME_PAUSE).await;
                }
                shared.with(|backup, now_ns| backup.handle_dial_failed(now_ns));
            }
        }
    });
}

async fn receive(shared: &Arc<Shared>, id: ConnectionId, connection: Connection) {
    let Connection { peer, sender, mut receiver } = connection;
    shared.add_connection(id, sender);
    shared.with(|backup, now_ns| backup.handle_connected(id, peer.node, now_ns));
    loop {
        shared.wait_for_room().await;
        match receiver.receive().await {
            Ok(Some(message)) => {
                let last = !receiver.has_next();
                shared.feed(last, |backup, now_ns| backup.handle_message(id, message, now_ns));
            }
            Ok(None) => break,
            Err(error) => {
                tracing::info!("{error}");
                break;
            }
        }
    }
    shared.remove_connection(id);
    shared.with(|backup, now_ns| backup.handle_closed(id, now_ns));
}
