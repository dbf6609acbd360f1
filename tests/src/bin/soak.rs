//! Runs the whole-cluster simulator for as long as one likes, or one seed with all that happens.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use secondwind_tests::sim::runner::{Summary, processors, run_seed, run_seeds};
use secondwind_tests::sim::{Mutation, Options};

/// Runs the whole-cluster simulator: each seed is a cluster of hosts with its faults, and every law
/// is checked. Ctrl-C ends it and prints what was covered. A failure prints the command that
/// repeats it.
#[derive(Parser)]
#[command(after_help = "Examples:
  soak --minutes 60                 an hour, from the seed after those of the tests
  soak --seeds 0..10000             these seeds, as the tests do
  soak --seed 4711                  one, and prints what happens in it
  soak --seed 7 --mutation SkipArbiter   one with a defect in the protocol, which the checks find

Exit status: 0 all laws held, 1 a law was broken, 2 usage.")]
struct Arguments {
    /// Ends after so many minutes.
    #[arg(long, conflicts_with = "seed")]
    minutes: Option<f64>,
    /// The seeds to run, FROM..TO without TO; forever, if neither this nor --minutes is given.
    #[arg(long, value_parser = parse_range, conflicts_with = "seed")]
    seeds: Option<std::ops::Range<u64>>,
    /// Runs this seed only, and prints what happens.
    #[arg(long)]
    seed: Option<u64>,
    /// Threads; as many as there are processors by default.
    #[arg(long)]
    threads: Option<usize>,
    /// A defect to put into the protocol.
    #[arg(long, value_enum, ignore_case = true)]
    mutation: Option<Mutation>,
}

/// The first seed that the tests do not run.
const FIRST_SEED: u64 = 10_000;

fn parse_range(text: &str) -> Result<std::ops::Range<u64>, String> {
    let error = || format!("found {text:?}, expected two numbers as in 0..10000, the first the lower");
    let (from, to) = text.split_once("..").ok_or_else(error)?;
    let range = from.parse().map_err(|_| error())?..to.parse().map_err(|_| error())?;
    if range.is_empty() { Err(error()) } else { Ok(range) }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.seed {
        Some(seed) => one(Options { trace: true, mutation: arguments.mutation, ..Options::new(seed) }),
        None => many(&arguments),
    }
}

fn one(options: Options) -> ExitCode {
    match run_seed(options) {
        Ok(coverage) => {
            println!("{coverage}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("soak: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn many(arguments: &Arguments) -> ExitCode {
    let seeds = arguments.seeds.clone().unwrap_or(FIRST_SEED..u64::MAX);
    let due = arguments.minutes.map(|minutes| Duration::from_secs_f64(minutes.max(0.0) * 60.0));
    let begun = Instant::now();
    stop_on_interrupt();
    let shown = Mutex::new((begun, 0));
    let options_of = |seed| Options { mutation: arguments.mutation, ..Options::new(seed) };
    let progress = |sum: &Summary| {
        if due.is_some_and(|due| begun.elapsed() >= due) {
            STOP.store(true, Ordering::Relaxed);
        }
        show(sum, begun, &shown);
    };
    let threads = arguments.threads.unwrap_or_else(processors).max(1);
    let summary = run_seeds(seeds, threads, &STOP, options_of, progress);
    if std::io::stderr().is_terminal() {
        eprintln!();
    }
    println!("{}", summary.coverage);
    let failed = summary.failures.len();
    println!("{} seeds in {:.1} s, {failed} failed", summary.seeds, begun.elapsed().as_secs_f64());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Each failure as it comes, and a line on how far it is: once a second on a terminal, once a minute
/// in a file.
fn show(sum: &Summary, begun: Instant, shown: &Mutex<(Instant, usize)>) {
    let terminal = std::io::stderr().is_terminal();
    let interval = Duration::from_secs(if terminal { 1 } else { 60 });
    let (last, failures) = &mut *shown.lock().expect("no worker panics");
    sum.failures[*failures..].iter().for_each(|failure| eprintln!("\nsoak: {failure}"));
    *failures = sum.failures.len();
    if last.elapsed() < interval {
        return;
    }
    *last = Instant::now();
    let seconds = begun.elapsed().as_secs_f64();
    let rate = sum.seeds as f64 / seconds;
    let (start, end) = if terminal { ("\r", "") } else { ("", "\n") };
    eprint!("{start}{} seeds in {seconds:.0} s ({rate:.0}/s), {} failed{end}", sum.seeds, sum.failures.len());
    // Nobody reads it: no reason to end.
    let _ = std::io::stderr().flush();
}

static STOP: AtomicBool = AtomicBool::new(false);

/// Ctrl-C ends the run after the seeds under way; a second one ends it at once.
fn stop_on_interrupt() {
    std::thread::spawn(|| {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
        runtime.block_on(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                if STOP.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
            }
        });
    });
}
