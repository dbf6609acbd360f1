//! `secondwind replay`: executes a recording again and compares every digest and output.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use backup::{Divergence, LogReplay, Progress, Replayer};
use log_format::{LogEntry, LoggedOutput, Output, WholeIncrement};
use machine::{Engine, Machine, RiscvMachine};
use serde_json::json;
use store::LogReader;

use crate::history::Flip;
use crate::recording::Recording;

/// Executes a recording again and compares every digest and every output.
///
/// No device does any I/O, nothing is waited for, and time that the guest spent idle costs
/// nothing. Exit status 3 where the replay differs from the recording.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  secondwind replay /tmp/rec                 the whole recording
  secondwind replay /tmp/rec --console       with what the guest printed, and its guest times
  secondwind replay /tmp/rec --to 50000000   up to an instruction, and print the digest there")]
pub struct ReplayArgs {
    /// Folder of the recording
    dir: PathBuf,
    /// Stop at this instruction and print the state's digest
    #[arg(long, value_name = "ICOUNT")]
    to: Option<u64>,
    /// Print what the guest printed, with guest times
    #[arg(long)]
    console: bool,
    /// Secret key, where the recording is of a machine restored from an encrypted checkpoint
    #[arg(long, value_name = "FILE")]
    decrypt: Option<PathBuf>,
    /// What executes the guest: interpreter, translator (to x86-64 code) or auto, the faster one
    #[arg(long, value_name = "ENGINE", default_value_t)]
    engine: Engine,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// For tests and drills: flips a bit of a register right before an instruction
    #[arg(long, value_name = "ICOUNT:HART:xN:BIT", hide = true)]
    flip_bit: Option<Flip>,
}

/// Instructions replayed between two looks at the log.
const STEP_INSTRUCTIONS: u64 = 20_000_000;
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// Exit status where the replay differs.
const DIVERGED: u8 = 3;

/// Runs `secondwind replay`.
pub fn replay(args: ReplayArgs) -> Result<ExitCode> {
    let secret = crate::checkpoint::keys::secret_key(args.decrypt.as_deref())?;
    let Recording { mut reader, mut replayer, .. } = Recording::open(&args.dir, secret.as_ref())?;
    let increments = increments_of(&args.dir)?;
    replayer.machine_mut().set_engine(args.engine);
    if let Some(icount) = args.to {
        let first = replayer.moment().icount;
        if icount < first {
            bail!("the recording begins at icount {first}, after {icount}; choose one from there on");
        }
        replayer.stop_at(icount);
    }
    if let Some(flip) = args.flip_bit {
        if replayer.machine().hart(flip.hart).is_none() {
            bail!("the recorded machine has no hart {}; its harts are numbered from 0", flip.hart);
        }
        replayer.machine_mut().stop_before(Some(flip.icount));
    }
    let mut shown = Shown::new(&args);
    let started = Instant::now();
    let mut damage = None;
    let mut replay = LogReplay::new(replayer, None, increments);
    let progress = loop {
        let entry = match reader.next_entry() {
            Some(Ok(entry)) => Some(entry),
            Some(Err(error)) => {
                damage = Some(error);
                None
            }
            None => None,
        };
        if let Some(LogEntry::Increment(whole)) = &entry {
            check_reachable(&args, replay.replayer_mut(), whole)?;
        }
        let is_last = entry.is_none();
        match follow(&mut replay, entry, args.flip_bit, &mut shown) {
            Ok(progress) if is_last || reached(&args, &progress) => break progress,
            Ok(_) => args.to.into_iter().for_each(|icount| replay.replayer_mut().stop_at(icount)),
            Err(divergence) => {
                shown.end();
                eprintln!("secondwind: {}", describe(&divergence, &args.dir, args.flip_bit));
                return Ok(ExitCode::from(DIVERGED));
            }
        }
    };
    let mut replayer = replay.into_replayer();
    shown.end();
    // It executes an instruction, after which the state is no longer that of --to.
    let code = if args.to.is_none() { replayer.probe_halt() } else { None };
    finish(&args, &mut replayer, progress, started.elapsed(), code)?;
    match damage {
        Some(error) => Err(error).context("the recording was replayed up to its damage"),
        None => Ok(code.map_or(ExitCode::SUCCESS, |code| ExitCode::from(code.min(255) as u8))),
    }
}

/// Says what differs, and how to find the instruction that made the difference.
fn describe(divergence: &Divergence, dir: &Path, flip: Option<Flip>) -> String {
    let dir = dir.display();
    let flip = flip.map(|flip| format!(" --flip-bit {flip}")).unwrap_or_default();
    format!(
        "the replay differs from the recording between icount {} and {}: {}; narrow it down with: secondwind diff {dir} {dir}{flip}",
        divergence.verified_at.icount, divergence.found_at.icount, divergence.kind
    )
}

/// The increments in a log that stand where a backup got no batches. All others are left out: what
/// can be executed is.
fn increments_of(dir: &Path) -> Result<Vec<(u64, u64)>> {
    let mut reader = LogReader::open(dir)?;
    let mut increments = Vec::new();
    loop {
        let before = reader.end_position().sequence;
        match reader.next_entry() {
            Some(Ok(LogEntry::Increment(whole))) if whole.sequence() > before => {
                increments.push((whole.start.base, whole.sequence()));
            }
            Some(Ok(_)) => {}
            // What is wrong with it is said where the replay comes to it.
            Some(Err(_)) | None => return Ok(increments),
        }
    }
}

/// Nothing is known of what the machine did on the way that an increment goes over.
fn check_reachable(
    args: &ReplayArgs,
    replayer: &Replayer<RiscvMachine>,
    whole: &WholeIncrement,
) -> Result<()> {
    let (from, to) = (replayer.moment().icount, whole.start.head.moment.icount);
    if let Some(icount) = args.to.filter(|icount| (from + 1..to).contains(icount)) {
        bail!(
            "the recording goes from icount {from} to {to} by an increment, past {icount}; choose one of these"
        );
    }
    Ok(())
}

/// Replays `entry`, or what is left where there is none.
fn follow(
    replay: &mut LogReplay<RiscvMachine>,
    entry: Option<LogEntry>,
    flip: Option<Flip>,
    shown: &mut Shown,
) -> Result<Progress, Box<Divergence>> {
    if let Some(entry) = entry {
        replay.push(entry)?;
    }
    let replayer = replay.replayer_mut();
    loop {
        let progress = replayer.step(STEP_INSTRUCTIONS)?;
        if let Some(flip) = flip.filter(|_| replayer.machine_stopped()) {
            let machine = replayer.machine_mut();
            machine.flip_register_bit(flip.hart, flip.register, flip.bit);
            machine.stop_before(None);
        }
        shown.outputs(replayer.take_outputs());
        shown.progress(&progress);
        if progress.caught_up {
            return Ok(progress);
        }
    }
}

fn reached(args: &ReplayArgs, progress: &Progress) -> bool {
    args.to.is_some_and(|icount| progress.moment.icount >= icount)
}

fn finish(
    args: &ReplayArgs,
    replayer: &mut Replayer<RiscvMachine>,
    progress: Progress,
    elapsed: Duration,
    code: Option<u32>,
) -> Result<()> {
    let digest = replayer.machine_mut().digest();
    let (icount, seconds) = (progress.moment.icount, elapsed.as_secs_f64());
    let guest_seconds = progress.moment.time_ns as f64 / 1e9;
    let mips = icount as f64 / 1e6 / seconds.max(1e-9);
    if args.json {
        let result = json!({
            "instructions": icount, "guest_seconds": guest_seconds, "seconds": seconds, "mips": mips,
            "batches": progress.sequence, "digests_verified": progress.digests_verified,
            "outputs_verified": progress.outputs_verified, "digest": digest.to_string(), "guest_exit": code,
        });
        println!("{}", serde_json::to_string_pretty(&result)?);
        return Ok(());
    }
    eprintln!(
        "replayed {icount} instructions, {guest_seconds:.3} s of guest time, in {seconds:.3} s ({mips:.0} MIPS): \
         {} digests and {} outputs equal",
        progress.digests_verified, progress.outputs_verified
    );
    println!("digest {digest} at icount {icount}");
    Ok(())
}

/// What is shown on the way.
struct Shown {
    console: bool,
    at_line_start: bool,
    /// Whether progress goes to a terminal.
    live: bool,
    last: Instant,
}

impl Shown {
    fn new(args: &ReplayArgs) -> Shown {
        let live = std::io::stderr().is_terminal() && !args.console;
        Shown { console: args.console, at_line_start: true, live, last: Instant::now() }
    }

    fn outputs(&mut self, outputs: Vec<LoggedOutput>) {
        if !self.console {
            return;
        }
        let mut out = std::io::stdout().lock();
        for logged in outputs {
            let Output::Console(bytes) = logged.output else { continue };
            for byte in bytes {
                if self.at_line_start {
                    let _ = write!(out, "[{:>12.6}] ", logged.at.time_ns as f64 / 1e9);
                }
                self.at_line_start = byte == b'\n';
                let _ = out.write_all(&[byte]);
            }
        }
    }

    fn progress(&mut self, progress: &Progress) {
        if self.live && self.last.elapsed() >= PROGRESS_INTERVAL {
            self.last = Instant::now();
            let (icount, at) = (progress.moment.icount, progress.moment.time_ns as f64 / 1e9);
            eprint!("\r\x1b[Kreplayed {icount} instructions, {at:.1} s of guest time");
        }
    }

    fn end(&mut self) {
        if self.live {
            eprint!("\r\x1b[K");
        }
        if !self.at_line_start {
            println!();
        }
    }
}
