//! The core, and all that it is connected to, behind one lock.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use link::alarm::ThreadAlarm;
use link::arbiter::{Arbiter, Guard, GuardNews};
use link::arbitration::{Step as ArbiterStep, arbitrate};
use link::clock::monotonic_ns;
use link::transport::Sender;
use log_format::{LoggedOutput, Output, Position};
use netbuf::announce::AddressLearner;
use netbuf::port::PortSender;
use store::{BackgroundLog, Durability, LogHealth, LogWriter, StoreError};
use tokio::sync::{Notify, mpsc as async_mpsc};

use super::DriverError;
use super::status::{BackupView, Look, PrimaryStatus, ResyncView};
use super::vcpu_thread::ToVcpu;
use crate::core::{BackupStatus, ConnectionId, Finish, Primary, PrimaryEvent, ResyncCounts};

/// What [`Shared`] is made of.
pub struct Parts {
    pub primary: Primary,
    pub ports: Vec<PortSender>,
    pub learners: Vec<AddressLearner>,
    pub console: Box<dyn Write + Send>,
    pub store: Option<LogWriter>,
    /// Whether output waits until the log is on disk.
    pub durable: bool,
    pub arbiter: Arc<dyn Arbiter>,
    pub diverged: Option<PathBuf>,
    pub to_vcpu: mpsc::Sender<ToVcpu>,
    pub events: async_mpsc::UnboundedSender<(u64, PrimaryEvent)>,
}

/// The core and its connections. Whoever brings news calls [`Shared::with`].
pub struct Shared {
    inner: Mutex<Inner>,
    runtime: tokio::runtime::Handle,
    arbiter: Arc<dyn Arbiter>,
    /// Wakes [`Shared::keep_time`].
    alarm: ThreadAlarm,
    /// Wakes [`Shared::wait_for_end`].
    over: Notify,
}

struct Inner {
    primary: Primary,
    ports: Vec<PortSender>,
    learners: Vec<AddressLearner>,
    console: mpsc::SyncSender<Bytes>,
    log: Option<BackgroundLog>,
    to_vcpu: mpsc::Sender<ToVcpu>,
    events: async_mpsc::UnboundedSender<(u64, PrimaryEvent)>,
    diverged: Option<PathBuf>,
    connections: BTreeMap<ConnectionId, Sender>,
    /// Those for which something was queued, and not written out yet.
    written_to: Vec<Sender>,
    /// Bytes that went over connections that are no more.
    gone_sent_bytes: u64,
    braked: bool,
    /// Something could not be sent for want of room: try again soon.
    crowded: bool,
    /// The log on disk must catch up first: look again soon.
    log_is_behind: bool,
    /// What was said of the log.
    log_told: LogHealth,
    failure: Option<DriverError>,
    /// The primacy has ended, in whatever way.
    over: bool,
    /// The lease on this term, where the arbiter gives leases.
    guard: Option<Box<dyn Guard>>,
    /// What the core was told of it last.
    lease_told_ns: Option<u64>,
    checkpoint_pause_ns: Option<u64>,
}

/// Console pieces that wait for a slow reader before more are dropped.
const CONSOLE_PIECES: usize = 4096;
/// The log lane takes messages up to here, half of what the transport allows.
const LOG_LANE_BYTES: usize = 4 << 20;
/// The bulk lane takes checkpoint parts up to here.
const BULK_LANE_BYTES: usize = 512 << 10;
/// How soon sending is tried again when a lane was full.
const CROWDED_RETRY_NS: u64 = 1_000_000;
/// How soon a log on disk that was behind is looked at again.
const LOG_RETRY_NS: u64 = 20_000_000;
/// The core is not told of a lease's end that moved by less, as it does with each reading of
/// two clocks. A thousandth part of the margin for their rates in the shortest lease, and less.
const LEASE_GRAIN_NS: u64 = 20_000;
/// How long a goodbye may take to leave.
const CLOSE_WITHIN: Duration = Duration::from_millis(500);

impl Shared {
    /// Starts the threads that take console output and the log to where they go.
    pub fn start(parts: Parts) -> Result<Arc<Shared>, DriverError> {
        let (console, pieces) = mpsc::sync_channel::<Bytes>(CONSOLE_PIECES);
        let mut sink = parts.console;
        let thread = std::thread::Builder::new().name("console".into());
        thread
            .spawn(move || {
                while let Ok(piece) = pieces.recv() {
                    // A console that nobody reads does not stop the machine.
                    let _ = sink.write_all(&piece).and_then(|()| sink.flush());
                }
            })
            .map_err(DriverError::Thread)?;
        let inner = Inner {
            primary: parts.primary,
            ports: parts.ports,
            learners: parts.learners,
            console,
            log: None,
            to_vcpu: parts.to_vcpu,
            events: parts.events,
            diverged: parts.diverged,
            connections: BTreeMap::new(),
            written_to: Vec::new(),
            gone_sent_bytes: 0,
            braked: false,
            crowded: false,
            log_is_behind: false,
            log_told: LogHealth::Well,
            failure: None,
            over: false,
            guard: None,
            lease_told_ns: None,
            checkpoint_pause_ns: None,
        };
        let shared = Arc::new(Shared {
            inner: Mutex::new(inner),
            runtime: tokio::runtime::Handle::current(),
            arbiter: parts.arbiter,
            alarm: ThreadAlarm::default(),
            over: Notify::new(),
        });
        if let Some(writer) = parts.store {
            let log = shared.start_log(writer, parts.durable).map_err(DriverError::Thread)?;
            shared.lock().log = Some(log);
        }
        Ok(shared)
    }

    /// Starts the log's thread, which tells the core what is on disk where output waits for that.
    fn start_log(self: &Arc<Self>, writer: LogWriter, durable: bool) -> std::io::Result<BackgroundLog> {
        let durability = match durable {
            false => Durability::Written,
            true => {
                let shared = Arc::downgrade(self);
                Durability::Synced(Box::new(move |end: Position| {
                    let Some(shared) = shared.upgrade() else { return };
                    shared.with(|primary, now_ns| primary.handle_stored(end.term, end.sequence, now_ns));
                }))
            }
        };
        BackgroundLog::start(Some(writer), durability)
    }

    /// Hands the core an input, and carries out all that it then wants.
    pub fn with(self: &Arc<Self>, input: impl FnOnce(&mut Primary, u64)) {
        // Who keeps the time ends at the end.
        let due_ns = self.feed(input).unwrap_or(0);
        self.alarm.nearer(due_ns);
    }

    /// The same; gives when the core wants to know the time, until the end.
    fn feed(self: &Arc<Self>, input: impl FnOnce(&mut Primary, u64)) -> Option<u64> {
        let mut inner = self.lock();
        let now_ns = monotonic_ns();
        input(&mut inner.primary, now_ns);
        inner.judge_lease(now_ns);
        while let Some(step) = inner.carry_out(now_ns) {
            self.ask_arbiter(step);
        }
        let due_ns = inner.due_ns(now_ns);
        inner.over |= inner.primary.finished().is_some() || inner.failure.is_some();
        let over = inner.over;
        let written_to = std::mem::take(&mut inner.written_to);
        drop(inner);
        // Not under the lock: others go on meanwhile.
        written_to.iter().for_each(Sender::write_out);
        if over {
            self.over.notify_one();
        }
        (!over).then_some(due_ns)
    }

    /// Starts the thread that tells the core the time whenever it wants to know it, until
    /// [`Shared::finished`] or a failure. So a heartbeat leaves on time whatever the runtime does.
    pub fn keep_time(self: &Arc<Self>) -> std::io::Result<JoinHandle<()>> {
        let shared = Arc::clone(self);
        let tick = move || shared.alarm.run(|| shared.feed(Primary::advance_time));
        std::thread::Builder::new().name("time".into()).spawn(tick)
    }

    /// Waits until [`Shared::finished`] or [`Shared::take_failure`] may have something.
    pub async fn wait_for_end(&self) {
        self.over.notified().await;
    }

    /// Has the term leased, where the arbiter does that: nothing leaves before it is.
    pub fn lease(self: &Arc<Self>, term: u64, node: &str) {
        let shared = Arc::downgrade(self);
        let question = format!("renew the lease of {node} in term {term}");
        let tell = move |news| {
            if let Some(shared) = shared.upgrade() {
                shared.take_lease_news(news, &question);
            }
        };
        let guard = self.arbiter.guard(term, node, Box::new(tell));
        self.lock().guard = guard;
        self.with(|_, _| {});
    }

    fn take_lease_news(self: &Arc<Self>, news: GuardNews, question: &str) {
        match news {
            // Each call of `with` looks at the lease itself.
            GuardNews::Lease { .. } => self.with(|_, _| {}),
            GuardNews::Record(record) => {
                self.with(|primary, now_ns| primary.handle_record(&record, now_ns));
            }
            GuardNews::NotRenewed { text } => {
                tracing::warn!("{text}");
                let event = PrimaryEvent::ArbiterUnreachable { step: question.to_owned(), text };
                let _ = self.lock().events.send((monotonic_ns(), event));
            }
        }
    }

    /// Gives the lease back: nothing leaves any more.
    pub fn end_lease(&self) {
        let guard = self.lock().guard.take();
        if let Some(guard) = guard {
            guard.release();
        }
    }

    /// Takes a connection for what the core sends on it.
    pub fn add_connection(&self, id: ConnectionId, sender: Sender) {
        self.lock().connections.insert(id, sender);
    }

    /// Forgets a connection that ended.
    pub fn remove_connection(&self, id: ConnectionId) -> Option<Sender> {
        self.lock().drop_connection(id)
    }

    /// Tells the machine's thread something.
    pub fn to_vcpu(&self, command: ToVcpu) {
        // A machine's thread that has ended needs nothing more.
        let _ = self.lock().to_vcpu.send(command);
    }

    /// The error that ended the primacy.
    pub fn take_failure(&self) -> Option<DriverError> {
        self.lock().failure.take()
    }

    /// How the primacy ended.
    pub fn finished(&self) -> Option<Finish> {
        self.lock().primary.finished().cloned()
    }

    /// Notes how long the guest stood still for a checkpoint.
    pub fn note_checkpoint_pause(&self, pause_ns: u64) {
        self.lock().checkpoint_pause_ns = Some(pause_ns);
    }

    /// Sends the guest's addresses from every port.
    pub fn announce(&self) {
        let inner = self.lock();
        for (port, learner) in inner.ports.iter().zip(&inner.learners) {
            learner.announcement().into_iter().for_each(|frame| port.send(frame));
        }
    }

    /// Closes what connections are left, once what they are to say has left.
    pub async fn close_connections(&self) {
        let connections = std::mem::take(&mut self.lock().connections);
        for sender in connections.into_values() {
            let _ = tokio::time::timeout(CLOSE_WITHIN, sender.shutdown()).await;
        }
    }

    /// Waits until the log is on disk.
    pub fn finish_store(&self) -> Result<(), StoreError> {
        let log = self.lock().log.take();
        log.map_or(Ok(()), BackgroundLog::finish)
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
    pub fn status(&self) -> PrimaryStatus {
        let mut inner = self.lock();
        inner.watch_log();
        inner.status()
    }

    fn ask_arbiter(self: &Arc<Self>, step: ArbiterStep) {
        let shared = Arc::clone(self);
        self.runtime.spawn_blocking(move || {
            let reply = arbitrate(&*shared.arbiter, &step);
            shared.with(|primary, now_ns| primary.handle_arbiter_reply(reply, now_ns));
        });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under the lock is a bug that the panicking thread reports; the core's state
        // is then as good as any for an orderly end.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Tells the core how long the lease is good, before it lets anything go.
    fn judge_lease(&mut self, now_ns: u64) {
        let Some(guard) = &self.guard else { return };
        let until_ns = guard.valid_until_ns();
        if self.lease_told_ns.is_none_or(|told_ns| told_ns.abs_diff(until_ns) > LEASE_GRAIN_NS) {
            self.lease_told_ns = Some(until_ns);
            self.primary.handle_lease(until_ns, now_ns);
        }
    }

    /// Carries out what the core wants, up to a question for the arbiter.
    fn carry_out(&mut self, now_ns: u64) -> Option<ArbiterStep> {
        while let Some(output) = self.primary.poll_release(now_ns) {
            self.release(output);
        }
        self.transmit();
        while let Some(id) = self.primary.poll_close() {
            // The last sender that goes closes the connection once all is sent.
            self.drop_connection(id);
        }
        while let Some(request) = self.primary.poll_machine_request() {
            // Without the machine's thread the primacy is at its end.
            let _ = self.to_vcpu.send(ToVcpu::Request(request));
        }
        while let Some(batch) = self.primary.poll_store() {
            if let Some(log) = &self.log
                && let Err(ended) = log.push(batch)
            {
                // The log's own error says more, and is given at the end.
                self.failure.get_or_insert(ended.into());
            }
        }
        while let Some(event) = self.primary.poll_event() {
            tracing::info!("{event:?}");
            if let (PrimaryEvent::Diverged { .. }, Some(folder)) = (&event, &self.diverged) {
                let _ = self.to_vcpu.send(ToVcpu::KeepState(folder.clone()));
            }
            let _ = self.events.send((now_ns, event));
        }
        // A log that cannot keep up holds the guest, never the core.
        self.log_is_behind = self.log.as_ref().is_some_and(BackgroundLog::is_behind);
        let braked = self.primary.wants_stall() || self.log_is_behind;
        if std::mem::replace(&mut self.braked, braked) != braked {
            let _ = self.to_vcpu.send(ToVcpu::Brake(braked));
        }
        self.primary.poll_arbiter_request(now_ns)
    }

    fn transmit(&mut self) {
        self.crowded = false;
        let sending: Vec<ConnectionId> = self.primary.sending().collect();
        for id in sending {
            let Some(sender) = self.connections.get(&id) else { continue };
            loop {
                let (log_bytes, bulk_bytes) = sender.queued_bytes();
                if log_bytes >= LOG_LANE_BYTES {
                    self.crowded = true;
                    break;
                }
                let Some(message) = self.primary.poll_transmit(id, bulk_bytes < BULK_LANE_BYTES) else {
                    self.crowded |= bulk_bytes >= BULK_LANE_BYTES;
                    break;
                };
                if let Err(error) = sender.queue(&message) {
                    // A message that is lost breaks the stream: the other side must join anew.
                    tracing::info!("the connection is given up: {error}");
                    sender.abort();
                    break;
                }
            }
            self.written_to.push(sender.clone());
        }
    }

    fn release(&mut self, logged: LoggedOutput) {
        match logged.output {
            Output::Frame { port, frame } => {
                let port = usize::from(port);
                if let Some(learner) = self.learners.get_mut(port) {
                    learner.observe(&frame);
                }
                if let Some(sender) = self.ports.get(port) {
                    sender.send(frame);
                }
            }
            Output::Console(bytes) => {
                // Dropped when nobody reads the console.
                let _ = self.console.try_send(bytes);
            }
        }
    }

    fn due_ns(&self, now_ns: u64) -> u64 {
        let retry_ns = self.crowded.then(|| now_ns.saturating_add(CROWDED_RETRY_NS));
        let log_ns = self.log_is_behind.then(|| now_ns.saturating_add(LOG_RETRY_NS));
        self.primary.poll_timeout().into_iter().chain(retry_ns).chain(log_ns).min().unwrap_or(u64::MAX)
    }

    /// Says what is news of the log on disk.
    fn watch_log(&mut self) {
        let Some(health) =
            self.log.as_ref().map(BackgroundLog::health).filter(|health| *health != self.log_told)
        else {
            return;
        };
        let text = health.trouble().unwrap_or_default().to_owned();
        let event = match &health {
            LogHealth::Well => {
                tracing::info!("the log is written again");
                PrimaryEvent::LogGoesOn
            }
            LogHealth::Waits(_) => {
                tracing::error!("{text}; no output leaves until there is room");
                PrimaryEvent::LogWaits { text }
            }
            LogHealth::Ended(_) => {
                tracing::error!("{text}; the log ends here, protection goes on without it");
                PrimaryEvent::LogEnded { text }
            }
        };
        self.log_told = health;
        let _ = self.events.send((monotonic_ns(), event));
    }

    fn status(&self) -> PrimaryStatus {
        let primary = &self.primary;
        let (position, _) = primary.position();
        let (batches_sealed, log_bytes) = primary.log_written();
        let buffer = primary.buffer_statistics();
        let (mode, why) = primary.mode();
        let increments = primary.increments();
        let backups: Vec<BackupView> =
            primary.backups().into_iter().map(|backup| self.view(backup)).collect();
        PrimaryStatus {
            state: primary.state_name().to_owned(),
            protected: primary.is_protected(),
            term: primary.term(),
            icount: position.moment.icount,
            guest_ms: position.moment.time_ns / 1_000_000,
            sequence: position.sequence,
            batches_sealed,
            log_bytes,
            held_outputs: buffer.held_outputs as u64,
            released_outputs: buffer.released_outputs,
            held_p50_us: buffer.delay.percentile_ns(50.0) / 1000,
            held_p99_us: buffer.delay.percentile_ns(99.0) / 1000,
            lease_left_ms: self
                .guard
                .as_ref()
                .map(|guard| guard.valid_until_ns().saturating_sub(monotonic_ns()) / 1_000_000),
            checkpoint_pause_us: self.checkpoint_pause_ns.map(|pause_ns| pause_ns / 1000),
            mode: mode.name().to_owned(),
            mode_why: why.to_owned(),
            slowed_percent: primary.slowed_percent(),
            increments: increments.increments,
            increment_bytes: increments.packed_bytes,
            sent_bytes: self.sent_bytes(),
            log_waiting_bytes: self.log.as_ref().map(BackgroundLog::waiting_bytes),
            log_trouble: self.log_told.trouble().map(str::to_owned),
            backup: backups.first().cloned(),
            backups,
        }
    }

    /// Forgets a connection, but not what went over it.
    fn drop_connection(&mut self, id: ConnectionId) -> Option<Sender> {
        let sender = self.connections.remove(&id)?;
        self.gone_sent_bytes += sender.counters().sent_bytes;
        Some(sender)
    }

    fn sent_bytes(&self) -> u64 {
        let present: u64 = self.connections.values().map(|sender| sender.counters().sent_bytes).sum();
        self.gone_sent_bytes + present
    }

    fn view(&self, backup: BackupStatus) -> BackupView {
        let sender = backup.connection.and_then(|id| self.connections.get(&id));
        let address = sender.zip(backup.listen).map(|(sender, listen)| match listen.ip().is_unspecified() {
            true => SocketAddr::new(sender.peer().ip(), listen.port()),
            false => listen,
        });
        BackupView {
            node: backup.node,
            connected: backup.connection.is_some(),
            address: address.map(|address| address.to_string()),
            in_step: backup.in_step,
            registered: backup.registered,
            acked_sequence: backup.acked_sequence,
            replayed_icount: backup.replayed.icount,
            lag_ms: backup.lag_ns / 1_000_000,
            unacked_bytes: backup.unacked_bytes,
            round_trip_us: backup.round_trip_ns.map(|ns| ns / 1000),
            resync: Some(backup.resync).filter(|counts| *counts != ResyncCounts::default()).map(resync_view),
        }
    }
}

fn resync_view(counts: ResyncCounts) -> ResyncView {
    ResyncView {
        offered_pages: counts.offered_pages,
        saved_pages: counts.offered_pages - counts.wanted_pages,
        offered_blocks: counts.offered_blocks,
        saved_blocks: counts.offered_blocks - counts.wanted_blocks,
        offered_bytes: counts.offered_bytes,
        saved_bytes: counts.saved_bytes(),
        shipped_bytes: counts.shipped_bytes(),
    }
}
