//! Runs seeds on every processor, and says how to repeat one that failed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::coverage::Coverage;
use super::world::{Options, run};

/// Failures after which the other seeds are not run any more.
const FAILURES_MAX: usize = 5;

/// Violations of one run that are told.
const SHOWN_MAX: usize = 4;

/// What became of many seeds.
#[derive(Debug, Default)]
pub struct Summary {
    /// How many were run.
    pub seeds: u64,
    /// What they met.
    pub coverage: Coverage,
    /// What went wrong, each with the command that repeats it.
    pub failures: Vec<String>,
}

/// Runs one seed; a panic of a core is a failure like any other.
///
/// # Errors
/// What the checks found wrong, and the command that repeats it.
pub fn run_seed(options: Options) -> Result<Coverage, String> {
    let seed = options.seed;
    let found = match catch_unwind(AssertUnwindSafe(|| run(options))) {
        Ok(Ok(coverage)) => return Ok(coverage),
        // The first says what went wrong, most others what came of it.
        Ok(Err(violations)) => violations[..violations.len().min(SHOWN_MAX)].join("\n  "),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|| "a panic".to_owned())
        }
    };
    Err(format!("seed {seed}:\n  {found}\nrepeat with:\n  {}", repeat_command(options)))
}

/// Runs seeds one after another on so many threads, until `seeds` ends, `stop` is set or too many
/// failed. `progress` hears the sum after each seed.
pub fn run_seeds(
    seeds: std::ops::Range<u64>,
    threads: usize,
    stop: &AtomicBool,
    options_of: impl Fn(u64) -> Options + Sync,
    progress: impl Fn(&Summary) + Sync,
) -> Summary {
    let next = AtomicU64::new(seeds.start);
    let sum: Mutex<Summary> = Mutex::default();
    let work = || {
        let mut own = Coverage::default();
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            let result = run_seed(options_of(seed));
            let mut sum = sum.lock().expect("no worker panics");
            sum.seeds += 1;
            match result {
                Ok(coverage) => own.merge(coverage),
                Err(failure) => sum.failures.push(failure),
            }
            progress(&sum);
            if sum.failures.len() >= FAILURES_MAX {
                break;
            }
        }
        sum.lock().expect("no worker panics").coverage.merge(own);
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    sum.into_inner().expect("no worker panics")
}

/// As many threads as there are processors.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
}

/// The one command that repeats a run and prints what happens in it.
fn repeat_command(options: Options) -> String {
    let mutation = options.mutation.map_or(String::new(), |mutation| format!(" --mutation {mutation:?}"));
    // The same build: in a release, assertions that only a debug build makes are not made.
    let release = if cfg!(debug_assertions) { "" } else { " --release" };
    format!("cargo run{release} -p secondwind-tests --bin soak -- --seed {}{mutation}", options.seed)
}
