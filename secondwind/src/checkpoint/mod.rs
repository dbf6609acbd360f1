//! `secondwind checkpoint`: a machine's state as a file.

pub mod keys;
pub mod order;
pub mod recipe;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use machine::{CheckpointExtent, Machine, RiscvMachine};
use primary::Begun;
use serde_json::Value;
use store::checkpoint::CheckpointWriter;

pub use order::CheckpointRequest;
use order::Prepared;

use crate::control;
use crate::recording::Recording;

/// Writes a machine's state to a file, while the machine runs on.
///
/// The file is signed, and checked by `secondwind restore` before anything executes. It is written
/// whole or not at all: Ctrl-C, or a crash, leaves the file that had the name before. Without
/// --sign-key, the key of this user is used, which is made at first use.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  secondwind checkpoint vm.swc                         the only machine that runs here
  secondwind checkpoint db db.swc --stop               the machine called db, which ends with it
  secondwind checkpoint db more.swc --base db.swc      only what changed since db.swc
  secondwind checkpoint db db.swc --encrypt secret.key
  secondwind checkpoint --recording /tmp/rec --to 50000000 at.swc")]
pub struct CheckpointArgs {
    /// Name or control socket of the machine [default: the only one of this user on this host],
    /// and the file to write
    #[arg(required = true, num_args = 1..=2, value_names = ["VM", "FILE"])]
    words: Vec<PathBuf>,
    /// Write only what differs from this checkpoint of the same machine; a restore needs both
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// Private key to sign with, made by secondwind keygen --sign [default: this user's own]
    #[arg(long, value_name = "FILE")]
    sign_key: Option<PathBuf>,
    /// Encrypt with this secret key, made by secondwind keygen --encrypt
    #[arg(long, value_name = "FILE")]
    encrypt: Option<PathBuf>,
    /// Put kernel, initial ramdisk and firmware into the file, so that a restore needs no other
    #[arg(long)]
    with_images: bool,
    /// End the machine with the checkpoint: it executes nothing after it
    #[arg(long, conflicts_with = "recording")]
    stop: bool,
    /// Take the state out of this recording instead of a running machine
    #[arg(long, value_name = "DIR", requires = "to")]
    recording: Option<PathBuf>,
    /// Which state of the recording: after this many instructions
    #[arg(long, value_name = "ICOUNT", requires = "recording")]
    to: Option<u64>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs `secondwind checkpoint`.
pub fn checkpoint(args: &CheckpointArgs) -> Result<()> {
    let (vm, file) = match args.words.as_slice() {
        [file] => (None, file),
        [_, _] if args.recording.is_some() => {
            bail!("a recording is no running machine; name only the file to write")
        }
        [vm, file] => (Some(vm.as_path()), file),
        _ => bail!("name the machine and the file to write"),
    };
    let request = args.request(file)?;
    let result = match (&args.recording, args.to) {
        (Some(dir), Some(icount)) => of_recording(dir, icount, &request)?,
        _ => {
            let socket = control::find_socket(vm)?;
            let live = std::io::stderr().is_terminal();
            let result = control::ask_and_wait(&socket, &control::Request::Checkpoint(request), |progress| {
                if live {
                    eprint!("\r\x1b[K{} bytes written", progress["bytes"]);
                    let _ = std::io::stderr().flush();
                }
            });
            if live {
                eprint!("\r\x1b[K");
            }
            result?
        }
    };
    print(&result, args.json)
}

impl CheckpointArgs {
    fn request(&self, file: &Path) -> Result<CheckpointRequest> {
        let absolute =
            |path: &Path| std::path::absolute(path).with_context(|| format!("{} is no path", path.display()));
        let optional = |path: &Option<PathBuf>| path.as_deref().map(absolute).transpose();
        // Made here where it is missing: the agent reads it.
        let (_, sign_key) = keys::signing_key(self.sign_key.as_deref())?;
        keys::secret_key(self.encrypt.as_deref())?;
        Ok(CheckpointRequest {
            file: absolute(file)?,
            base: optional(&self.base)?,
            sign_key: absolute(&sign_key)?,
            encrypt: optional(&self.encrypt)?,
            with_images: self.with_images,
            stop: self.stop,
        })
    }
}

fn print(result: &Value, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(result)?);
        return Ok(());
    }
    let number = |key: &str| result[key].as_u64().unwrap_or_default();
    println!(
        "{}: {} bytes in {:.3} s, at icount {} ({:.3} s of guest time); the guest paused {:.2} ms",
        result["file"].as_str().unwrap_or_default(),
        number("bytes"),
        result["seconds"].as_f64().unwrap_or_default(),
        number("icount"),
        number("guest_ns") as f64 / 1e9,
        number("pause_ns") as f64 / 1e6,
    );
    Ok(())
}

/// Pages taken at once where no guest waits.
const BITE_UNITS: usize = 256;
/// Instructions replayed between two looks at the log.
const STEP_INSTRUCTIONS: u64 = 20_000_000;

/// Replays a recording up to an instruction, and writes the state there.
fn of_recording(dir: &Path, icount: u64, request: &CheckpointRequest) -> Result<Value> {
    let started = Instant::now();
    let secret = keys::secret_key(request.encrypt.as_deref())?;
    let mut recording = Recording::open(dir, secret.as_ref())?;
    let prepared = Prepared::new(request, &recording.vm)?;
    let replayer = &mut recording.replayer;
    replayer.stop_at(icount);
    while !replayer.has_stopped() {
        let Some(batch) = recording.reader.next() else { break };
        replayer.push_batch(batch?.batch());
        while !replayer.step(STEP_INSTRUCTIONS)?.caught_up {}
    }
    let reached = replayer.moment().icount;
    if reached != icount {
        bail!("the recording has icount {reached}, not {icount}; choose one that it comes by");
    }
    // A recording knows no wall clock of this place: a restore goes on from now.
    let (events_before, unix_ns) = (replayer.replayed().events, crate::vm::unix_ns());
    let head = replayer.machine_mut().begin_checkpoint(CheckpointExtent::Full).head;
    let begun = Begun { head, events_before, unix_ns, pause_ns: 0 };
    let name = &recording.reader.header().vm;
    let mut writer = CheckpointWriter::create(&request.file, prepared.plan(name, &begun))?;
    take_all(replayer.machine_mut(), &mut writer)?;
    let written = writer.finish()?;
    Ok(order::describe(request, &begun, &written, &prepared, started.elapsed()))
}

/// Writes all that a checkpoint begun by a machine has, which stands still meanwhile.
pub fn take_all(machine: &mut RiscvMachine, writer: &mut CheckpointWriter<'_>) -> Result<()> {
    loop {
        let part = machine.take_checkpoint_pages(CheckpointExtent::Full, BITE_UNITS);
        if part.is_empty() {
            return Ok(());
        }
        writer.push(&part)?;
    }
}
