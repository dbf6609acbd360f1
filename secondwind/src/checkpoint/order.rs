//! The agent's side of `secondwind checkpoint`: takes a snapshot of its machine and writes it.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use log_format::checkpoint_file::Description;
use primary::{Begun, SnapshotOrder, Taken};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::checkpoint::{
    Chain, CheckpointFile, CheckpointWriter, Images, Plan, SecretKey, SigningKey, Trust, Written,
};
use tokio::sync::mpsc::UnboundedSender;

use super::{keys, recipe};
use crate::vm::Vm;

/// What is asked of an agent. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CheckpointRequest {
    /// The file to write.
    pub file: PathBuf,
    /// The checkpoint to build on.
    pub base: Option<PathBuf>,
    /// Private key that signs.
    pub sign_key: PathBuf,
    /// Secret key that encrypts.
    pub encrypt: Option<PathBuf>,
    /// Whether the boot images come along.
    pub with_images: bool,
    /// Whether the machine ends with the checkpoint: it executes nothing after it.
    pub stop: bool,
}

/// Parts that wait for the writer: 8 of 64 pages are 2 MiB.
const WAITING_PARTS: usize = 8;
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// How long a machine that is to stop waits until its answer was read.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a machine may take to begin.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Everything that is ready before the machine is frozen.
pub struct Prepared {
    pub signer: SigningKey,
    pub secret: Option<SecretKey>,
    pub base: Option<CheckpointFile>,
    pub images: Images,
    pub recipe: bytes::Bytes,
}

impl Prepared {
    /// Reads keys, base and images.
    pub fn new(request: &CheckpointRequest, vm: &Vm) -> Result<Prepared> {
        let (signer, _) = keys::signing_key(Some(&request.sign_key))?;
        let secret = keys::secret_key(request.encrypt.as_deref())?;
        let base = request.base.as_ref().map(|base| open_base(base, &signer, secret.as_ref())).transpose()?;
        let images = Images::new(recipe::images(vm, request.with_images)?);
        Ok(Prepared { signer, secret, base, images, recipe: recipe::encode(vm)? })
    }

    /// The plan of a file for a machine that was frozen.
    pub fn plan(&self, name: &str, begun: &Begun) -> Plan<'_> {
        Plan {
            description: Description {
                vm: name.to_owned(),
                program: env!("CARGO_PKG_VERSION").to_owned(),
                taken_unix_ns: begun.unix_ns,
                events_before: begun.events_before,
                base: None,
                head: begun.head.clone(),
                recipe: self.recipe.clone(),
                images: Vec::new(),
            },
            images: &self.images,
            base: self.base.as_ref(),
            signer: &self.signer,
            secret: self.secret.as_ref(),
        }
    }
}

/// A base must be as trustworthy as what is built on it: signed by the same key, or by the
/// user's own.
fn open_base(
    base: &std::path::Path,
    signer: &SigningKey,
    secret: Option<&SecretKey>,
) -> Result<CheckpointFile> {
    let Trust::Keys(mut keys) = keys::trust(&[])? else { bail!("trust is in keys") };
    keys.push(signer.public());
    Ok(Chain::open(base, &[], &Trust::Keys(keys), secret)?.into_last())
}

/// What to tell a machine's driver.
pub enum ToMachine {
    /// Take a snapshot.
    Snapshot(SnapshotOrder),
    /// Go on, if you stand still at it.
    Release,
    /// End: all of it is on disk.
    Stop,
}

/// Carries out a request on a thread of its own, which may block.
pub fn carry_out(
    request: &CheckpointRequest,
    vm: &Vm,
    name: &str,
    replies: &UnboundedSender<Value>,
    tell: impl Fn(ToMachine),
) {
    let (reply, next) = match write(request, vm, name, replies, &tell) {
        Ok(result) => (result, ToMachine::Stop),
        Err(error) => (json!({ "error": crate::one_line(&error) }), ToMachine::Release),
    };
    // Who asked may have gone away.
    let _ = replies.send(reply);
    if request.stop {
        // The process ends with the machine: the answer leaves first.
        let until = Instant::now() + ANSWER_TIMEOUT;
        while !replies.is_closed() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        tell(next);
    }
}

fn write(
    request: &CheckpointRequest,
    vm: &Vm,
    name: &str,
    replies: &UnboundedSender<Value>,
    tell: &impl Fn(ToMachine),
) -> Result<Value> {
    let started = Instant::now();
    let prepared = Prepared::new(request, vm)?;
    let (taken, parts) = sync_channel(WAITING_PARTS);
    tell(ToMachine::Snapshot(SnapshotOrder { taken, hold: request.stop }));
    let begun = match parts.recv_timeout(BEGIN_TIMEOUT) {
        Ok(Taken::Begun(begun)) => begun,
        Ok(Taken::Part(_)) => bail!("the machine gave its checkpoint out of order"),
        Err(RecvTimeoutError::Timeout) => bail!("the machine does not answer; it may be stopped"),
        Err(RecvTimeoutError::Disconnected) => {
            bail!("another checkpoint of this machine is under way, or it is ending; try again")
        }
    };
    let mut writer = CheckpointWriter::create(&request.file, prepared.plan(name, &begun))?;
    take_parts(&parts, &mut writer, replies)?;
    let written = writer.finish()?;
    Ok(describe(request, &begun, &written, &prepared, started.elapsed()))
}

fn take_parts(
    parts: &Receiver<Taken>,
    writer: &mut CheckpointWriter<'_>,
    replies: &UnboundedSender<Value>,
) -> Result<()> {
    let mut told = Instant::now();
    loop {
        if replies.is_closed() {
            bail!("whoever asked for the checkpoint went away");
        }
        let part = parts.recv().context("the machine ended before its checkpoint was whole")?;
        let Taken::Part(part) = part else { bail!("the machine gave its checkpoint out of order") };
        if part.is_empty() {
            return Ok(());
        }
        writer.push(&part)?;
        if told.elapsed() >= PROGRESS_INTERVAL {
            told = Instant::now();
            let _ = replies.send(json!({ "progress": { "bytes": writer.bytes() } }));
        }
    }
}

/// What is said of a checkpoint that was written.
pub fn describe(
    request: &CheckpointRequest,
    begun: &Begun,
    written: &Written,
    prepared: &Prepared,
    elapsed: Duration,
) -> Value {
    json!({
        "file": request.file, "bytes": written.bytes, "seconds": elapsed.as_secs_f64(),
        "pause_ns": begun.pause_ns, "icount": begun.head.moment.icount,
        "guest_ns": begun.head.moment.time_ns, "taken_unix_ns": begun.unix_ns,
        "kind": if request.base.is_some() { "incremental" } else { "full" },
        "root": written.root.to_string(), "digest": begun.head.digest.to_string(),
        "units": written.units, "own_units": written.own_units,
        "image_units": written.image_units, "base_units": written.base_units,
        "encrypted": request.encrypt.is_some(), "signer": prepared.signer.public().to_string(),
        "stopped": request.stop,
    })
}
