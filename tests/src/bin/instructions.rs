//! Counts the host's instructions of fixed work under callgrind, and compares them with those in
//! `tests/instructions.toml`. Unlike times, they are the same on a busy host.
//!
//! Needs valgrind, and the dev profile, as tests have it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use bytes::Bytes;
use clap::Parser;
use log_format::{CheckpointHead, CheckpointPart, Event, Output};
use machine::{BootImages, CheckpointExtent, Engine, Exit, Machine, MachineConfig, NetConfig, RiscvMachine};
use secondwind_tests::work::{PIECES, Work};
use serde::{Deserialize, Serialize};

type Failure = Box<dyn std::error::Error>;

const COUNTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.toml");
const LEDGER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../guest/ledger/ledger.elf");
/// Guest instructions of a stretch of bench.
const STRETCH: u64 = 2_000_000;
/// The most that a boot may take.
const BOOT_MAX: u64 = 50_000_000;
/// What precedes each stretch on the console, and its name.
const STRETCHES: [(&str, &str); 4] = [
    ("BENCH start", "machine-sieve-2m"),
    ("BENCH sieve", "machine-matrix-2m"),
    ("BENCH matrix", "machine-crc-2m"),
    ("BENCH crc", "machine-chase-2m"),
];
const BOOT: &str = "machine-boot";

#[derive(Parser)]
#[command(about = "Counts the host's instructions of fixed work, and compares them with those kept")]
struct Args {
    /// Keep what is counted now
    #[arg(long)]
    update: bool,
    /// Pieces of work whose names contain this
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// How much more is nothing to speak of, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0)]
    margin: f64,
    /// Do this piece of work: what is run under callgrind
    #[arg(long, hide = true)]
    work: Option<String>,
    /// Where the machines' states are
    #[arg(long, hide = true)]
    states: Option<PathBuf>,
}

/// What is kept.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Counts {
    /// The compilers that they are of: Rust's, and C's for zstd.
    compilers: String,
    /// Instructions of each piece.
    instructions: BTreeMap<String, u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.work {
        Some(name) => work(name, args.states.as_deref()).map(|()| true),
        None => count(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("instructions: {failure}");
            ExitCode::FAILURE
        }
    }
}

// --- the work -----------------------------------------------------------------------------

/// What callgrind counts, by this name.
#[inline(never)]
fn counted_work(work: &mut dyn FnMut()) {
    work();
}

/// Does it once uncounted, so that caches and tables are there, and once counted.
fn work(name: &str, states: Option<&Path>) -> Result<(), Failure> {
    let mut work = make(name, states)?;
    if name != BOOT {
        work();
    }
    counted_work(&mut *work);
    Ok(())
}

fn make(name: &str, states: Option<&Path>) -> Result<Work, Failure> {
    if name == BOOT {
        return Ok(Box::new(|| {
            ledger("")
                .and_then(|mut machine| run_until(&mut machine, "LEDGER ready"))
                .expect("the ledger boots");
        }));
    }
    if let Some(piece) = PIECES.iter().find(|piece| piece.name == name) {
        return Ok((piece.make)());
    }
    let mut machine = restored(&states.ok_or("--states?")?.join(name))?;
    Ok(Box::new(move || {
        let to = machine.moment().icount + STRETCH;
        while machine.moment().icount < to {
            machine.run(to);
            machine.take_outputs();
        }
    }))
}

fn ledger(words: &str) -> Result<RiscvMachine, Failure> {
    let kernel = std::fs::read(LEDGER)?;
    let config = MachineConfig {
        memory_bytes: 64 << 20,
        bootargs: words.to_owned(),
        nets: vec![NetConfig { mac: [2, 0, 0, 0, 0, 1] }],
        ..MachineConfig::default()
    };
    let mut machine = RiscvMachine::new(config, &BootImages::supervisor(kernel.into(), None), Vec::new())?;
    // Valgrind does not see that code in a file's mapping changes, and would count its own translator.
    machine.set_engine(Engine::Interpreter);
    machine.inject(&Event::Entropy(Bytes::from_static(b"the same in each run")));
    Ok(machine)
}

/// Runs a machine until its console has shown a text.
fn run_until(machine: &mut RiscvMachine, text: &str) -> Result<(), Failure> {
    let mut console = String::new();
    while !console.contains(text) {
        match machine.run(machine.moment().icount + BOOT_MAX) {
            Exit::Idle { wake_ns: Some(wake_ns) } => {
                machine.advance_idle(wake_ns);
            }
            Exit::Limit | Exit::Output | Exit::Stopped => {}
            Exit::Idle { wake_ns: None } | Exit::Halted { .. } | Exit::HostFault { .. } => {
                return Err(format!("the guest ended before {text:?}: {console}").into());
            }
        }
        for made in machine.take_outputs() {
            if let Output::Console(bytes) = made.output {
                console.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
    }
    Ok(())
}

// --- states from which stretches begin ----------------------------------------------------

/// Runs bench at native speed, and keeps the machine's state at the begin of each stretch.
fn save_states(folder: &Path) -> Result<(), Failure> {
    let mut machine = ledger("bench=1")?;
    for (text, name) in STRETCHES {
        run_until(&mut machine, text)?;
        let head = machine.begin_checkpoint(CheckpointExtent::Full).head;
        let mut parts = Vec::new();
        loop {
            let part = machine.take_checkpoint_pages(CheckpointExtent::Full, 1024);
            if part.pages.is_empty() && part.blocks.is_empty() {
                break;
            }
            parts.push(part);
        }
        std::fs::write(folder.join(name), rmp_serde::to_vec(&(head, parts))?)?;
    }
    Ok(())
}

fn restored(file: &Path) -> Result<RiscvMachine, Failure> {
    let (head, parts): (CheckpointHead, Vec<CheckpointPart>) = rmp_serde::from_slice(&std::fs::read(file)?)?;
    let mut machine = ledger("bench=1")?;
    machine.restore_begin(&head)?;
    for part in &parts {
        machine.restore_part(part)?;
    }
    Ok(machine)
}

// --- counting -----------------------------------------------------------------------------

/// Whether every count is what it was.
fn count(args: &Args) -> Result<bool, Failure> {
    if !cfg!(debug_assertions) {
        return Err("the counts are of the dev profile: run it without --release".into());
    }
    let states = tempfile::tempdir()?;
    save_states(states.path())?;
    let mut kept = match kept() {
        Ok(kept) => kept,
        Err(_) if args.update => Counts::default(),
        Err(wrong) => return Err(format!("{COUNTS}: {wrong}; make it with --update").into()),
    };
    let compilers = compilers()?;
    let is_comparable = compilers == kept.compilers;
    if !is_comparable && !args.update {
        println!("the counts are of {}, and this is {compilers}: shown, not compared", kept.compilers);
    }
    let names = [BOOT]
        .into_iter()
        .chain(STRETCHES.map(|(_, name)| name))
        .chain(PIECES.iter().map(|piece| piece.name));
    let mut all_hold = true;
    for name in names.filter(|name| name.contains(&args.only)) {
        let found = under_callgrind(name, states.path())?;
        let was = kept.instructions.insert(name.to_owned(), found);
        all_hold &= verdict(name, found, was, args.margin) || !is_comparable;
    }
    if args.update {
        kept.compilers = compilers;
        std::fs::write(COUNTS, format!("{HEAD}{}", toml::to_string(&kept)?))?;
        return Ok(true);
    }
    if !all_hold {
        println!("if that is as it should be: cargo run -p secondwind-tests --bin instructions -- --update");
    }
    Ok(all_hold)
}

fn kept() -> Result<Counts, Failure> {
    Ok(toml::from_str(&std::fs::read_to_string(COUNTS)?)?)
}

const HEAD: &str = "\
# Instructions of the host that fixed work takes, counted under callgrind in the dev profile by
# cargo run -p secondwind-tests --bin instructions -- --update
";

/// Prints a line, and says whether the count is at most the margin more than it was.
fn verdict(name: &str, found: u64, was: Option<u64>, margin: f64) -> bool {
    let Some(was) = was.filter(|was| *was > 0) else {
        println!("{name:30} {found:>12}  new");
        return false;
    };
    let change = 100.0 * (found as f64 / was as f64 - 1.0);
    let word = match change {
        change if change > margin => "  MORE",
        change if change < -margin => "  less: keep it with --update",
        _ => "",
    };
    println!("{name:30} {found:>12}  {change:+.2} % of {was}{word}");
    change <= margin
}

fn under_callgrind(name: &str, states: &Path) -> Result<u64, Failure> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg("--toggle-collect=*counted_work*")
        .arg(std::env::current_exe()?)
        .args(["--work", name, "--states"])
        .arg(states)
        // What the allocator asks of the system, and what is found by the environment, stays the same.
        .env_clear()
        .output()
        .map_err(|wrong| format!("valgrind does not start: {wrong} (Debian: valgrind)"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split("Collected :").nth(1));
    match collected.and_then(|number| number.trim().parse().ok()) {
        Some(count) if output.status.success() && count > 0 => Ok(count),
        _ => Err(format!("{name}: valgrind counted nothing: {said}").into()),
    }
}

fn compilers() -> Result<String, Failure> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let cc = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut versions = Vec::new();
    for (compiler, words) in [(rustc, 2), (cc, usize::MAX)] {
        let output = Command::new(&compiler).arg("--version").output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        // Rust's without the commit and the date.
        let version: Vec<&str> =
            said.lines().next().unwrap_or_default().split_whitespace().take(words).collect();
        versions.push(version.join(" "));
    }
    Ok(versions.join(", "))
}
