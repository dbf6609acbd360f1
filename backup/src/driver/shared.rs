//! The core, and all that it is connected to, behind one lock.

use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use link::alarm::Alarm;
use link::arbiter::Arbiter;
use link::arbitration::{Step as ArbiterStep, arbitrate};
use link::clock::monotonic_ns;
use link::transport::Sender;
use log_format::{Output, Position};
use netbuf::announce::AddressLearner;
use store::{Durability, LogFolder, LogHealth, LogWriter, StoreError};
use tokio::sync::{Notify, mpsc as async_mpsc};

use super::log::Log;
use super::replay_thread::Ordered;
use super::status::{BackupStatus, Look};
use super::{DriverError, Learn};
use crate::core::{Backup, BackupEvent, ConnectionId, Finish, Operator};
use crate::worker::{FromReplayer, ReplayReport};

/// What [`Shared`] is made of.
pub struct Parts {
    pub backup: Backup,
    pub learners: Vec<AddressLearner>,
    pub learn: Option<Learn>,
    pub log: Option<LogFolder>,
    /// Whether acknowledgements wait until the log is on disk.
    pub durable: bool,
    pub arbiter: Arc<dyn Arbiter>,
    pub to_replayer: mpsc::Sender<Ordered>,
    pub events: async_mpsc::UnboundedSender<(u64, BackupEvent)>,
}

/// The core and its connections. Whoever brings news calls [`Shared::with`].
pub struct Shared {
    inner: Mutex<Inner>,
    runtime: tokio::runtime::Handle,
    arbiter: Arc<dyn Arbiter>,
    /// Wakes [`Shared::wait_for_timeout`].
    alarm: Alarm,
    /// Wakes [`Shared::wait_for_room`].
    room: Notify,
}

struct Inner {
    backup: Backup,
    learners: Vec<AddressLearner>,
    learn: Option<Learn>,
    log: Option<Log>,
    /// `None` once the replay thread is to end.
    to_replayer: Option<mpsc::Sender<Ordered>>,
    events: async_mpsc::UnboundedSender<(u64, BackupEvent)>,
    connection: Option<(ConnectionId, Sender)>,
    divergences: u64,
    dial_error: Option<String>,
    /// What was said of the log.
    log_told: LogHealth,
}

/// How long a goodbye may take to leave.
const CLOSE_WITHIN: Duration = Duration::from_millis(500);

impl Shared {
    /// Starts the thread that takes the log to the disk.
    pub fn start(parts: Parts) -> Result<Arc<Shared>, DriverError> {
        let inner = Inner {
            backup: parts.backup,
            learners: parts.learners,
            learn: parts.learn,
            log: None,
            to_replayer: Some(parts.to_replayer),
            events: parts.events,
            connection: None,
            divergences: 0,
            dial_error: None,
            log_told: LogHealth::Well,
        };
        let shared = Arc::new(Shared {
            inner: Mutex::new(inner),
            runtime: tokio::runtime::Handle::current(),
            arbiter: parts.arbiter,
            alarm: Alarm::new(),
            room: Notify::new(),
        });
        if let Some(folder) = parts.log {
            let log = Log::start(folder, shared.durability(parts.durable)).map_err(DriverError::Thread)?;
            shared.lock().log = Some(log);
        }
        Ok(shared)
    }

    /// What becomes of the log: where acknowledgements wait for the disk, the core is told.
    fn durability(self: &Arc<Self>, durable: bool) -> Durability {
        let shared = Arc::downgrade(self);
        match durable {
            false => Durability::Written,
            true => Durability::Synced(Box::new(move |end: Position| {
                let Some(shared) = shared.upgrade() else { return };
                shared.with(|backup, _| backup.handle_stored(end.term, end.sequence));
            })),
        }
    }

    /// Hands the core an input, and carries out all that it then wants.
    pub fn with(self: &Arc<Self>, input: impl FnOnce(&mut Backup, u64)) {
        self.feed(true, input);
    }

    /// The same, one of several inputs that came together: what is to be sent leaves with the `last`.
    pub fn feed(self: &Arc<Self>, last: bool, input: impl FnOnce(&mut Backup, u64)) {
        let mut inner = self.lock();
        let now_ns = monotonic_ns();
        input(&mut inner.backup, now_ns);
        inner.send(last);
        while let Some(step) = inner.carry_out(now_ns) {
            self.ask_arbiter(step);
        }
        let due_ns = inner.backup.poll_timeout().unwrap_or(u64::MAX);
        let (over, has_room) = (inner.backup.finished().is_some(), inner.backup.wants_input());
        drop(inner);
        self.alarm.nearer(if over { 0 } else { due_ns });
        if has_room {
            self.room.notify_one();
        }
    }

    /// The replay thread has something for the core.
    pub fn handle_replayed(self: &Arc<Self>, report: FromReplayer) {
        if let ReplayReport::Progress { outputs, .. } = &report.report {
            let mut inner = self.lock();
            for logged in outputs {
                if let Output::Frame { port, frame } = &logged.output
                    && let Some(learner) = inner.learners.get_mut(usize::from(*port))
                {
                    learner.observe(frame);
                }
            }
        }
        self.with(|backup, now_ns| backup.handle_replayed(report, now_ns));
    }

    /// Waits until the core wants to know the time, or something else is to be looked at.
    pub async fn wait_for_timeout(&self) {
        self.alarm.wait(|| self.lock().backup.poll_timeout().unwrap_or(u64::MAX)).await;
    }

    /// Waits until more log may be received.
    pub async fn wait_for_room(&self) {
        while !self.lock().backup.wants_input() {
            self.room.notified().await;
        }
    }

    /// Whether to connect now. The core then waits for what becomes of it.
    pub fn wants_dial(&self) -> bool {
        self.lock().backup.poll_dial(monotonic_ns())
    }

    /// Notes why the primary could not be reached, and says it when it is news.
    pub fn note_dial_error(&self, error: String) {
        let known = self.lock().dial_error.replace(error.clone());
        if known.as_ref() != Some(&error) {
            tracing::warn!("{error}");
        }
    }

    /// Takes the connection for what the core sends on it.
    pub fn add_connection(&self, id: ConnectionId, sender: Sender) {
        let mut inner = self.lock();
        inner.dial_error = None;
        inner.connection = Some((id, sender));
    }

    /// Forgets the connection that ended.
    pub fn remove_connection(&self, id: ConnectionId) {
        self.lock().connection.take_if(|(present, _)| *present == id);
    }

    /// Closes the connection, once what it is to say has left.
    pub async fn close_connection(&self) {
        let connection = self.lock().connection.take();
        if let Some((_, sender)) = connection {
            let _ = tokio::time::timeout(CLOSE_WITHIN, sender.shutdown()).await;
        }
    }

    /// Ends the replay thread, and gives what was learnt of the guest's addresses.
    pub fn stop(&self) -> Vec<AddressLearner> {
        let mut inner = self.lock();
        inner.to_replayer = None;
        std::mem::take(&mut inner.learners)
    }

    /// How the backup's life ended.
    pub fn finished(&self) -> Option<Finish> {
        self.lock().backup.finished().cloned()
    }

    /// Waits until the log is on disk, and gives it back. The replay thread has ended.
    pub fn end_log(&self) -> Result<Option<LogWriter>, StoreError> {
        let log = self.lock().log.take();
        log.map_or(Ok(None), Log::end)
    }

    /// Gives what there is to show, when it is asked for.
    pub fn look(self: &Arc<Self>) -> Look {
        let shared = Arc::downgrade(self);
        // At the end something else takes its place.
        Arc::new(move || shared.upgrade().map(|shared| shared.status()).unwrap_or_default())
    }

    /// Whether there is a log on disk to be watched.
    pub fn has_log(&self) -> bool {
        self.lock().log.is_some()
    }

    /// Says what is news of the log on disk.
    pub fn watch_log(&self) {
        self.lock().watch_log();
    }

    /// What there is to show.
    pub fn status(&self) -> BackupStatus {
        let mut inner = self.lock();
        inner.watch_log();
        inner.status()
    }

    fn ask_arbiter(self: &Arc<Self>, step: ArbiterStep) {
        let shared = Arc::clone(self);
        self.runtime.spawn_blocking(move || {
            let reply = arbitrate(&*shared.arbiter, &step);
            shared.with(|backup, now_ns| backup.handle_arbiter_reply(reply, now_ns));
        });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under the lock is a bug that the panicking thread reports; the core's state
        // is then as good as any for an orderly end.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Sends what the core has to send, before anything else is done and any thread is woken: the
    /// primary's output waits for the acknowledgement.
    fn send(&mut self, now: bool) {
        while let Some((id, message)) = self.backup.poll_transmit() {
            let Some((_, sender)) = self.connection.as_ref().filter(|(present, _)| *present == id) else {
                continue;
            };
            if let Err(error) = sender.queue(&message) {
                tracing::info!("the connection is given up: {error}");
                sender.abort();
            }
        }
        if let Some((_, sender)) = self.connection.as_ref().filter(|_| now) {
            sender.write_out();
        }
    }

    /// Carries out what the core wants, up to a question for the arbiter.
    fn carry_out(&mut self, now_ns: u64) -> Option<ArbiterStep> {
        while let Some(id) = self.backup.poll_close() {
            // The last sender that goes closes the connection once all is sent.
            self.connection.take_if(|(present, _)| *present == id);
        }
        while let Some(command) = self.backup.poll_replayer() {
            let term = self.backup.term();
            let keep = self.log.as_ref().and_then(|log| log.follow(&command, term));
            if let Some(to_replayer) = &self.to_replayer {
                // Without the replay thread the backup is at its end.
                let _ = to_replayer.send(Ordered { command, keep });
            }
        }
        while let Some(entry) = self.backup.poll_store() {
            if self.log.as_ref().is_some_and(|log| log.push(entry).is_err()) {
                // The log's own error is given at the end.
                self.backup.handle_operator(Operator::Stop);
            }
        }
        while let Some(event) = self.backup.poll_event() {
            tracing::info!("{event:?}");
            if let (BackupEvent::Ready, Some(log)) = (&event, &self.log) {
                log.note_in_step(self.backup.term());
            }
            match (&event, &self.learn) {
                (BackupEvent::Registered { record }, Some(learn)) => learn(record),
                (BackupEvent::Diverged(_), _) => self.divergences += 1,
                _ => {}
            }
            let _ = self.events.send((now_ns, event));
        }
        self.backup.poll_arbiter_request(now_ns)
    }

    /// Says what is news of the log on disk.
    fn watch_log(&mut self) {
        let Some(health) = self.log.as_ref().map(Log::health).filter(|health| *health != self.log_told)
        else {
            return;
        };
        let text = health.trouble().unwrap_or_default().to_owned();
        let event = match &health {
            LogHealth::Well => {
                tracing::info!("the log is written again");
                BackupEvent::LogGoesOn
            }
            LogHealth::Waits(_) => {
                tracing::error!("{text}; nothing is acknowledged until there is room");
                BackupEvent::LogWaits { text }
            }
            LogHealth::Ended(_) => {
                tracing::error!("{text}; the log ends here, protection goes on without it");
                BackupEvent::LogEnded { text }
            }
        };
        self.log_told = health;
        let _ = self.events.send((monotonic_ns(), event));
    }

    fn status(&self) -> BackupStatus {
        let backup = &self.backup;
        let (held, progress) = (backup.held(), backup.progress());
        BackupStatus {
            state: backup.state_name().to_owned(),
            registered: backup.is_registered(),
            in_step: backup.is_in_step(),
            term: backup.term(),
            primary: backup.primary().to_owned(),
            held_sequence: held.map_or(0, |held| held.sequence),
            held_icount: held.map_or(0, |held| held.moment.icount),
            replayed_icount: progress.map_or(0, |progress| progress.moment.icount),
            lag_bytes: backup.unreplayed_bytes(),
            digests_compared: progress.map_or(0, |progress| progress.digests_verified),
            outputs_verified: progress.map_or(0, |progress| progress.outputs_verified),
            held_outputs: backup.held_outputs() as u64,
            digests_diverged: self.divergences,
            mode: backup.mode().name().to_owned(),
            log_trouble: self.log_told.trouble().map(str::to_owned),
            last_dial_error: self.dial_error.clone(),
        }
    }
}
