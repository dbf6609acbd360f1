//! The whole-cluster simulator in CI: thousands of seeds, every law checked.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use secondwind_tests::sim::{Coverage, Mutation, Options, run};

/// Seeds of one CI run. `SIM_SEEDS` asks for more.
const SEEDS: u64 = 3_000;

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Runs one seed; a panic of a core is a failure like any other.
fn run_seed(options: Options) -> Result<Coverage, String> {
    let seed = options.seed;
    let result = catch_unwind(AssertUnwindSafe(|| run(options)));
    let found = match result {
        Ok(Ok(coverage)) => return Ok(coverage),
        Ok(Err(violations)) => violations.join("\n  "),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|| "a panic".to_owned())
        }
    };
    Err(format!(
        "seed {seed}:\n  {found}\nrepeat with:\n  SIM_SEED={seed} cargo test -p secondwind-tests --test sim -- one_seed --nocapture"
    ))
}

/// Runs seeds on every processor, and sums up what happened.
fn run_seeds(from: u64, count: u64) -> (Coverage, Vec<String>) {
    let next = AtomicU64::new(from);
    let sum: Mutex<(Coverage, Vec<String>)> = Mutex::default();
    let workers = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count || sum.lock().expect("no worker panics").1.len() >= 5 {
                        return;
                    }
                    let result = run_seed(Options::new(seed));
                    let (coverage, failures) = &mut *sum.lock().expect("no worker panics");
                    match result {
                        Ok(of_seed) => {
                            of_seed.into_iter().for_each(|(what, n)| *coverage.entry(what).or_default() += n);
                        }
                        Err(failure) => failures.push(failure),
                    }
                }
            });
        }
    });
    sum.into_inner().expect("no worker panics")
}

#[test]
fn the_laws_hold_whatever_goes_wrong() {
    let count = number_from("SIM_SEEDS").unwrap_or(SEEDS);
    let from = number_from("SIM_FROM").unwrap_or(0);
    let (coverage, failures) = run_seeds(from, count);
    println!("{coverage:#?}");
    assert!(failures.is_empty(), "{} seeds failed:\n{}", failures.len(), failures.join("\n"));
    if count >= SEEDS {
        assert_covered(&coverage);
    }
}

/// A simulation in which nothing happens proves nothing.
fn assert_covered(coverage: &BTreeMap<String, u64>) {
    for what in [
        "crash primary",
        "crash backup",
        "pause",
        "partition",
        "one-way partition",
        "reset",
        "corruption",
        "duplication",
        "reordering",
        "loss",
        "arbiter cut",
        "arbiter answer lost",
        "arbiter race",
        "slow machine",
        "operator goes alone",
        "operator stops primary",
        "takeover",
        "fenced",
        "alone",
        "paused",
        "protected",
        "claim refused",
        "protocol error",
        "connection torn down as corrupt",
        "join: log from boot",
        "join: resume",
        "join: checkpoint",
        "guest ended",
        "operations",
    ] {
        let times = coverage.get(what).copied().unwrap_or(0);
        assert!(times > 0, "{what} never happened in this run: {coverage:#?}");
    }
}

#[test]
fn one_seed() {
    let Some(seed) = number_from("SIM_SEED") else { return };
    let result = run_seed(Options { trace: true, ..Options::new(seed) });
    match result {
        Ok(coverage) => println!("{coverage:#?}"),
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn a_seed_repeats_exactly() {
    for seed in [3, 77, 512] {
        let first = run_seed(Options::new(seed)).unwrap();
        assert_eq!(first, run_seed(Options::new(seed)).unwrap());
    }
}

/// The checks see a broken protocol: each defect is found by the check made for it.
#[test]
fn the_checks_find_a_broken_protocol() {
    for (mutation, law) in [
        (Mutation::ReleaseEarly, "law 2"),
        (Mutation::AckUnheld, "law 2"),
        (Mutation::SkipArbiter, "law 3"),
        (Mutation::ForgetReissue, "a gap"),
    ] {
        let found = (0..300).find_map(|seed| {
            let options = Options { mutation: Some(mutation), ..Options::new(seed) };
            run_seed(options).err().filter(|text| text.contains(law))
        });
        assert!(found.is_some(), "{mutation:?} was not found as {law} in 300 seeds");
    }
}

/// A backup with a defect is found, reported and rebuilt, and nobody outside notices.
#[test]
fn a_diverging_backup_is_rebuilt() {
    let mut found = 0;
    for seed in 0..60 {
        let options = Options { mutation: Some(Mutation::FlipBit), faults: false, ..Options::new(seed) };
        let coverage = run_seed(options).unwrap();
        let times = |what: &str| coverage.get(what).copied().unwrap_or(0);
        if times("divergence found") > 0 {
            found += 1;
            assert!(times("divergence reported") > 0 && times("protected") > 1, "{coverage:?}");
        }
    }
    assert!(found > 10, "{found} of 60 runs met the defect");
}
