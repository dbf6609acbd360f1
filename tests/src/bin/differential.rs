//! The long mode of the differential tests: generated programs on QEMU and on our hart, with
//! seeds that nobody has run, until stopped.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use secondwind_tests::differential::{Campaign, Class, Oracle, Results};

/// How often progress is shown: on a terminal, and elsewhere.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Compares our machine with QEMU on generated programs, until stopped.
///
/// Ends with success when nothing differed, also after Ctrl-C. Each difference is reported with
/// the first differing instruction and the command that repeats it.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  # All classes, until Ctrl-C:
  cargo run --release -p secondwind-tests --bin differential

  # At least ten million instructions of two classes, on one processor:
  cargo run --release -p secondwind-tests --bin differential -- --instructions 10000000 --workers 1 paging trap

QEMU is the one named by SECONDWIND_QEMU, or else found in PATH or where bench/qemu puts it.")]
struct Arguments {
    /// Only these classes of instructions [default: all]
    #[arg(value_name = "CLASS", value_parser = parse_class)]
    classes: Vec<Class>,
    /// End when each class has executed this many generated instructions
    #[arg(long, value_name = "N")]
    instructions: Option<u64>,
    /// First seed [default: taken from the clock]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Programs at the same time [default: one per processor]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Print how often each instruction, CSR, rounding mode and trap was executed
    #[arg(long)]
    coverage: bool,
    /// Print the results as JSON
    #[arg(long, conflicts_with = "coverage")]
    json: bool,
}

fn parse_class(name: &str) -> Result<Class, String> {
    let names = || Class::ALL.iter().map(|class| class.name()).collect::<Vec<_>>().join(", ");
    let class = Class::ALL.iter().find(|class| class.name() == name).copied();
    class.ok_or_else(|| format!("no such class; there are {}", names()))
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("differential: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let oracle = Oracle::find().map_err(|error| error.to_string())?;
    let classes = if arguments.classes.is_empty() { Class::ALL.to_vec() } else { arguments.classes.clone() };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let campaign = Campaign {
        classes,
        first_seed: arguments.seed.unwrap_or_else(fresh_seed),
        instructions_per_class: arguments.instructions,
        workers: arguments.workers.unwrap_or(processors),
    };
    eprintln!("differential: first seed {}", campaign.first_seed);
    let stop = stop_on_interrupt()?;
    let start = Instant::now();
    let shown = Mutex::new((start, 0));
    let results = campaign
        .run(&oracle, &stop, |results| show_progress(results, start, &mut shown.lock().expect("no panics")))
        .map_err(|error| error.to_string())?;
    if std::io::stderr().is_terminal() {
        eprintln!();
    }
    print_results(arguments, &campaign, &results, start.elapsed());
    Ok(if results.reports().next().is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A seed that differs from run to run; small, to be read and typed.
fn fresh_seed() -> u64 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    seconds * 1000
}

/// Becomes true on Ctrl-C and SIGTERM.
fn stop_on_interrupt() -> Result<Arc<AtomicBool>, String> {
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("signals cannot be waited for: {error}"))?;
    let flag = stop.clone();
    std::thread::spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
            let (Ok(mut interrupt), Ok(mut terminate)) = signals else { return };
            tokio::select! {
                _ = interrupt.recv() => (),
                _ = terminate.recv() => (),
            }
            flag.store(true, Ordering::Relaxed);
            eprintln!("\ndifferential: stopping");
        });
    });
    Ok(stop)
}

/// Shows how far it came, and differences as soon as they are found.
fn show_progress(results: &Results, start: Instant, (last, reported): &mut (Instant, usize)) {
    for report in results.reports().skip(*reported) {
        eprintln!("\n{report}");
    }
    let reports = results.reports().count();
    let is_new = reports != *reported;
    *reported = reports;
    let is_terminal = std::io::stderr().is_terminal();
    let interval = if is_terminal { PROGRESS_INTERVAL } else { LOG_INTERVAL };
    if last.elapsed() < interval && !is_new {
        return;
    }
    *last = Instant::now();
    let (instructions, seconds) = (results.instructions(), start.elapsed().as_secs());
    let line = format!(
        "{seconds:>6} s {:>8.1} million instructions, {} programs, {reports} differences",
        instructions as f64 / 1e6,
        results.programs(),
    );
    if is_terminal { eprint!("\r{line} ") } else { eprintln!("{line}") }
}

fn print_results(arguments: &Arguments, campaign: &Campaign, results: &Results, elapsed: Duration) {
    if arguments.json {
        let class = |(name, class): (&&str, &secondwind_tests::differential::ClassResult)| {
            let value = serde_json::json!({
                "programs": class.programs,
                "instructions": class.instructions,
                "reports": class.reports,
            });
            ((*name).to_owned(), value)
        };
        let classes: serde_json::Map<_, _> = results.classes.iter().map(class).collect();
        let seconds = elapsed.as_secs_f64();
        let value = serde_json::json!({
            "first_seed": campaign.first_seed,
            "seconds": seconds,
            "instructions": results.instructions(),
            "classes": classes,
        });
        println!("{value}");
        return;
    }
    if arguments.coverage {
        println!("{}\n", results.coverage.report());
    }
    print!("{}", results.table());
    println!(
        "{} generated instructions in {} programs, {} differences, {:.0} s",
        results.instructions(),
        results.programs(),
        results.reports().count(),
        elapsed.as_secs_f64()
    );
}
