//! `secondwind drill`: the main job in one command.
//!
//! ```text
//!   drill (this process)
//!     switch --- UDP tunnel --- primary  \  two processes, mutual TLS between them,
//!       |                        backup  /  an arbiter in a file
//!     client hosts (smoltcp), TCP connections open all along
//! ```
//!
//! [`plan`] says what will be done, [`scenario`] does it and gathers [`evidence`],
//! [`verdict`] judges it, [`report`] and [`page`] show it.

mod agent_status;
mod agents;
mod args;
mod clock;
mod cluster;
mod drawing;
mod evidence;
mod history;
mod keep;
mod load;
mod memory;
mod page;
mod plan;
mod progress;
mod random;
mod report;
mod scenario;
mod scenarios;
mod timeline;
mod verdict;
mod workload;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

pub use args::DrillArgs;
use clock::Clock;
use history::Operation;
use plan::Plan;
use progress::Progress;
use report::Report;

/// How long blocking questions to agents may hold up the end.
const LINGER: Duration = Duration::from_millis(200);

/// Runs `secondwind drill`. The exit status says whether every check held.
///
/// # Errors
/// When the drill cannot begin or is interrupted, or its report cannot be written.
pub fn drill(args: DrillArgs) -> Result<ExitCode> {
    if args.list {
        return scenarios::list();
    }
    for path in args.json.iter().chain(&args.html).chain(&args.junit) {
        check_folder_of(path)?;
    }
    let seed = args.seed.unwrap_or_else(fresh_seed);
    if args.plays_scenarios() {
        return scenarios::drill(&args, seed);
    }
    if args.junit.is_some() || args.upgrade_to.is_some() {
        bail!("--junit and --upgrade-to belong to scenarios; name some, or give --all");
    }
    let plans = Plan::from_args(&args, seed)?;
    // Agents die with the thread that starts them: this one, which stays to the end.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            interrupted = interruption() => Err(interrupted),
            outcome = run_all(&args, &plans) => outcome,
        }
    });
    runtime.shutdown_timeout(LINGER);
    let (report, operations) = outcome?;
    write_report(&args, &report, &operations)?;
    println!("{}", if args.quiet { report.verdict() } else { report.text() });
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one machine after the other; gives their common report and the last one's history.
async fn run_all(args: &DrillArgs, plans: &[Plan]) -> Result<(Report, Vec<Operation>)> {
    let clock = Clock::start();
    let mut sum: Option<(Report, Vec<Operation>)> = None;
    for (machine, plan) in plans.iter().enumerate() {
        let (report, operations) = run_machine(args, plan, machine, plans.len(), clock).await?;
        let passed = report.passed();
        let report = match sum.take() {
            Some((before, _)) => before.followed_by(report),
            None => report,
        };
        sum = Some((report, operations));
        if !passed && !args.keep_going {
            break;
        }
    }
    sum.context("there is nothing to do")
}

/// One machine: booted, drilled, judged. Its files go with it, unless they are to be kept.
async fn run_machine(
    args: &DrillArgs,
    plan: &Plan,
    machine: usize,
    machines: usize,
    clock: Clock,
) -> Result<(Report, Vec<Operation>)> {
    let folder = tempfile::Builder::new()
        .prefix("secondwind-drill-")
        .tempdir()
        .context("cannot make a folder for temporary files; free some space, or set TMPDIR")?;
    let mut progress = Progress::new(clock, args.quiet, plan.rounds > 1);
    let (guest, fault, seed) = (plan.guest.name(), plan.fault.name(), plan.seed);
    progress.step(match plan.rounds {
        1 => format!("drill: guest {guest}, losing the {fault}, seed {seed}"),
        rounds => format!("drill: guest {guest}, losing the {fault} {rounds} times, seed {seed}"),
    });
    let evidence = scenario::run(plan, folder.path(), clock, &mut progress).await?;
    progress.live("the history is checked");
    let strict = args.strict;
    let judging =
        tokio::task::spawn_blocking(move || (verdict::judge(&evidence, strict), evidence.machine.history));
    let (report, operations) = judging.await.context("the history could not be checked")?;
    let name = (machines > 1).then(|| format!("machine-{machine}"));
    if let Some(kept) = keep::keep(args.keep.as_deref(), name, folder, &report, &operations)? {
        progress.step(format!("logs, timelines and history are kept in {}", kept.display()));
    }
    Ok((report, operations))
}

/// Ends with an error as soon as somebody wants this process to end.
async fn interruption() -> anyhow::Error {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return anyhow::anyhow!("signals cannot be waited for on this system");
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    anyhow::anyhow!("interrupted; the agents were ended and nothing is left behind")
}

fn write_report(args: &DrillArgs, report: &Report, operations: &[Operation]) -> Result<()> {
    let write = |path: &Path, text: String| {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    if let Some(path) = &args.json {
        write(path, keep::json(report)?)?;
    }
    if let Some(path) = &args.html {
        write(path, report.html(operations))?;
    }
    Ok(())
}

/// Told before the drill, not after.
fn check_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        bail!("there is no folder {}; make it, or choose another file", folder.display());
    }
    if path.is_dir() {
        bail!("{} is a folder; give the name of a file", path.display());
    }
    Ok(())
}

/// A seed that is short to type again.
fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    random::Random::new(now.as_nanos() as u64, u64::from(std::process::id())).below(1_000_000)
}
