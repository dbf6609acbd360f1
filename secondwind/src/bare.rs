//! `secondwind run` of a bare-metal program for its result: a test of a suite.
//!
//! Such a run is a function of the program alone. Guest time is counted, a wait is jumped
//! over, and nothing comes in: no network, no keys, no entropy, no time of day.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use link::clock::monotonic_ns;
use log_format::Output;
use machine::{Exit, Machine, RiscvMachine, Signature};
use serde_json::json;

use crate::disk::DiskMode;
use crate::live::{LiveArgs, report_translation};
use crate::options::VmOptions;
use crate::vm::Vm;

/// Exit status when the program was ended by a limit, as that of timeout(1).
const STATUS_UNENDED: u8 = 124;
/// The host's clock is looked at this often.
const STRETCH_INSTRUCTIONS: u64 = 10_000_000;

#[derive(clap::Args)]
pub struct BareArgs {
    /// Bare-metal test: write its signature, the memory from begin_signature to end_signature, to
    /// this file when it has ended. Such a run depends on nothing but the program: no network
    /// or keys, and waiting takes no time
    #[arg(long, value_name = "FILE", help_heading = "Bare-metal tests")]
    signature: Option<PathBuf>,
    /// Bytes in a line of the signature: 4, 8 or 16
    #[arg(long, value_name = "BYTES", default_value = "4", requires = "signature")]
    #[arg(value_parser = ["4", "8", "16"], hide_possible_values = true, help_heading = "Bare-metal tests")]
    signature_granularity: String,
    /// Bare-metal test: give up after this many instructions of all harts, with exit status 124
    #[arg(long, value_name = "N", help_heading = "Bare-metal tests")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    max_instructions: Option<u64>,
}

impl BareArgs {
    /// Whether the run is one for a result.
    pub fn are_given(&self) -> bool {
        self.signature.is_some() || self.max_instructions.is_some()
    }
}

/// Runs a bare-metal program to its end.
pub fn run(args: &BareArgs, options: &VmOptions, live: &LiveArgs, name: &str) -> Result<ExitCode> {
    if options.net.iter().any(|net| net != "none") || !options.forward.is_empty() {
        bail!("--signature and --max-instructions run without network; leave out --net and --forward");
    }
    let vm = Vm::from_options(&VmOptions { net: vec!["none".into()], ..options.clone() }, name)?;
    let Some(program) = vm.bare_program()? else {
        bail!(
            "--signature and --max-instructions are for bare-metal programs: ELF files with a symbol tohost; give one with --kernel"
        );
    };
    // Before the program runs: an hour's work is not thrown away for a missing symbol.
    let signature =
        args.signature.as_ref().map(|path| Ok::<_, anyhow::Error>((path, Signature::find(&program)?)));
    let signature = signature.transpose()?;
    let mut machine = vm.build(DiskMode::Direct)?;
    if live.report.is_some() {
        machine.time_translation(monotonic_ns);
    }
    let started = Instant::now();
    let limit = args.max_instructions.unwrap_or(u64::MAX);
    let end = run_to_end(&mut machine, limit, live.seconds)?;
    if let Some(path) = &live.report {
        write_report(path, &machine, &end, started.elapsed())?;
    }
    let code = match end {
        End::Guest(code) => code,
        End::Unended(why) => {
            eprintln!("secondwind: the program has no result: {why}");
            return Ok(ExitCode::from(STATUS_UNENDED));
        }
    };
    if let Some((path, signature)) = signature {
        let granularity_bytes = args.signature_granularity.parse().context("--signature-granularity")?;
        std::fs::write(path, signature.text(machine.ram(), granularity_bytes)?)
            .with_context(|| format!("cannot write the signature to {}", path.display()))?;
    }
    Ok(ExitCode::from(code.min(255) as u8))
}

/// The figures of `--report`, as of any run.
fn write_report(path: &Path, machine: &RiscvMachine, end: &End, wall: Duration) -> Result<()> {
    let moment = machine.moment();
    let code = match end {
        End::Guest(code) => Some(code),
        End::Unended(_) => None,
    };
    let mut report = json!({
        "instructions": moment.icount, "guest_ns": moment.time_ns, "wall_s": wall.as_secs_f64(),
        "guest_exit": code,
    });
    report_translation(&mut report, machine.translation());
    std::fs::write(path, format!("{report}\n"))
        .with_context(|| format!("cannot write the report to {}", path.display()))
}

/// How a run ended.
enum End {
    /// The program ended with this exit status.
    Guest(u32),
    /// It did not end, and this is why.
    Unended(String),
}

/// Runs until the program ends, and prints what it prints.
fn run_to_end(machine: &mut RiscvMachine, limit: u64, seconds: Option<f64>) -> Result<End> {
    let seconds = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok());
    let deadline = seconds.and_then(|seconds| Instant::now().checked_add(seconds));
    let mut console = std::io::stdout();
    loop {
        let before = machine.moment().icount;
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(End::Unended(format!("it did not end in time (--for), after {before} instructions")));
        }
        // One more than the limit: a program that ends with its last instruction has ended.
        let exit = machine.run(before.saturating_add(STRETCH_INSTRUCTIONS).min(limit.saturating_add(1)));
        for output in machine.take_outputs() {
            if let Output::Console(bytes) = output.output {
                // A closed terminal does not stop the machine.
                let _ = console.write_all(&bytes).and_then(|()| console.flush());
            }
        }
        let icount = machine.moment().icount;
        match exit {
            Exit::Halted { code } => return Ok(End::Guest(code)),
            Exit::Limit if icount > limit => {
                return Ok(End::Unended(format!(
                    "it did not end within {limit} instructions (--max-instructions)"
                )));
            }
            Exit::Limit | Exit::Output | Exit::Stopped => {}
            Exit::Idle { wake_ns: Some(wake_ns) } => _ = machine.advance_idle(wake_ns),
            Exit::Idle { wake_ns: None } => {
                return Ok(End::Unended(format!(
                    "after {icount} instructions every hart waits for an interrupt, and none can come"
                )));
            }
            Exit::HostFault { part } => {
                bail!("{part} could not be read or written; see to it and start again")
            }
        }
    }
}
