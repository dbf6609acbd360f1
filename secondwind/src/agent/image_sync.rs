//! Base images that this node does not have, from whoever runs the machine: before it is built.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use link::clock::monotonic_ns;
use link::pacing::Pacer;
use link::transport::{Connection, TransportError, connect};
use log_format::{ImageReply, ImageRequest, Message};

use super::images::{SyncProgress, sync_image};
use super::settings::Settings;
use crate::vm::Vm;

/// A primary that does not answer is asked again after this.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// What may be fetched at once, however slow the rate.
const BURST_BYTES: u64 = 1 << 20;
const SHOWN_EVERY: Duration = Duration::from_secs(1);
const LOGGED_EVERY: Duration = Duration::from_secs(10);

/// Fetches the images that are missing here, or are not the primary's. Images that are there are
/// good enough while no primary answers: they are compared when the node joins.
///
/// # Errors
/// When a primary refuses, or an image cannot be written.
pub async fn fetch_images(settings: &Settings, vm: &Vm) -> Result<()> {
    for (number, spec) in (0..).zip(&vm.disks) {
        let is_missing = !spec.path.exists();
        let mut told = false;
        loop {
            let mut source = Source { settings, connection: None };
            let mut shown = Shown::new(&spec.path, settings.sync_rate_bytes);
            let ask = async |request| source.ask(request).await;
            let synced =
                sync_image(spec, &settings.name, number, ask, async |so_far| shown.pace(so_far).await);
            match synced.await {
                Ok(done) => {
                    shown.end(done);
                    break;
                }
                Err(error) if error.downcast_ref::<TransportError>().is_none() => return Err(error),
                Err(error) if is_missing => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(
                            "{} is not here, and waits for a primary that has it: {error}",
                            spec.path.display()
                        );
                    }
                    tokio::time::sleep(RETRY_AFTER).await;
                }
                Err(error) => {
                    tracing::debug!("{}: {error}", spec.path.display());
                    break;
                }
            }
        }
    }
    Ok(())
}

/// A primary that is asked.
struct Source<'a> {
    settings: &'a Settings,
    connection: Option<Connection>,
}

impl Source<'_> {
    async fn ask(&mut self, request: ImageRequest) -> Result<ImageReply> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let connection =
                    connect(&self.settings.peers, &self.settings.security, Default::default()).await?;
                none.insert(connection)
            }
        };
        let peer = connection.peer.address;
        let (disk, part, at) = (request.disk, request.part, request.at);
        if connection.sender.send(&Message::ImageRequest(request)).await.is_err() {
            return Err(TransportError::Aborted { peer }.into());
        }
        match connection.receiver.receive().await? {
            Some(Message::ImageReply(reply)) if (reply.disk, reply.part, reply.at) == (disk, part, at) => {
                Ok(reply)
            }
            Some(Message::Refuse(refuse)) => bail!("the primary gives no image: {}", refuse.text),
            Some(other) => bail!("the primary answers with a {}; is it of another version?", other.kind()),
            None => Err(TransportError::Aborted { peer }.into()),
        }
    }
}

/// Tells how far a sync is, and holds it to its rate.
struct Shown<'a> {
    path: &'a Path,
    pacer: Pacer,
    spent_bytes: u64,
    shown: Instant,
    logged: Instant,
    is_terminal: bool,
}

impl<'a> Shown<'a> {
    fn new(path: &'a Path, rate_bytes: Option<u64>) -> Shown<'a> {
        let (shown, logged) = (Instant::now(), Instant::now());
        let is_terminal = std::io::stderr().is_terminal();
        Shown { path, pacer: Pacer::new(rate_bytes, BURST_BYTES), spent_bytes: 0, shown, logged, is_terminal }
    }

    async fn pace(&mut self, so_far: SyncProgress) {
        let percent = so_far.done_bytes.saturating_mul(100) / so_far.total_bytes.max(1);
        let line = || {
            format!("syncing {}: {percent} %, {} bytes fetched", self.path.display(), so_far.fetched_bytes)
        };
        if self.is_terminal && self.shown.elapsed() >= SHOWN_EVERY {
            eprint!("\r\x1b[K{}", line());
            self.shown = Instant::now();
        } else if !self.is_terminal && self.logged.elapsed() >= LOGGED_EVERY {
            tracing::warn!("{}", line());
            self.logged = Instant::now();
        }
        self.pacer.spend(so_far.fetched_bytes - self.spent_bytes, monotonic_ns());
        self.spent_bytes = so_far.fetched_bytes;
        let wait_ns = self.pacer.ready_at_ns().saturating_sub(monotonic_ns());
        tokio::time::sleep(Duration::from_nanos(wait_ns)).await;
    }

    fn end(&self, done: Option<SyncProgress>) {
        if self.is_terminal && self.shown.elapsed() < SHOWN_EVERY {
            eprint!("\r\x1b[K");
        }
        if let Some(done) = done {
            let (fetched, total) = (done.fetched_bytes, done.total_bytes);
            tracing::warn!(
                "{} is the primary's now: {fetched} of {total} bytes were fetched",
                self.path.display()
            );
        }
    }
}
