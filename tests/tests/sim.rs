//! The whole-cluster simulator in CI: thousands of seeds, every law checked.

use std::sync::atomic::AtomicBool;

use secondwind_tests::sim::faults::FaultKind;
use secondwind_tests::sim::runner::{processors, run_seed, run_seeds};
use secondwind_tests::sim::{Coverage, Mutation, Options, scenario};

/// Seeds of one CI run; the `soak` binary runs more.
const SEEDS: u64 = 10_000;

/// Pairs of faults that need not meet in this many seeds.
const RARE: [(FaultKind, FaultKind); 8] = [
    // Where output waits for the disks, a disk that fails stops everything, and the mode is fixed.
    (FaultKind::DiskFailing, FaultKind::PowerCut),
    (FaultKind::OperatorChangesMode, FaultKind::PowerCut),
    // Who went alone needs no word to go alone, and has no heir, until a backup joined.
    (FaultKind::OperatorGoesAlone, FaultKind::OperatorGoesAlone),
    (FaultKind::OperatorGoesAlone, FaultKind::OperatorStopsPrimary),
    // A frame is damaged for a moment, on a connection that who waits for the word hardly has.
    (FaultKind::Corruption, FaultKind::OperatorGoesAlone),
    (FaultKind::Duplication, FaultKind::OperatorGoesAlone),
    (FaultKind::Reordering, FaultKind::OperatorGoesAlone),
    (FaultKind::Loss, FaultKind::OperatorGoesAlone),
];

#[test]
fn the_laws_hold_whatever_goes_wrong() {
    let never = AtomicBool::new(false);
    let summary = run_seeds(0..SEEDS, processors(), &never, Options::new, |_| {});
    let failures = &summary.failures;
    println!("{}", summary.coverage);
    assert!(failures.is_empty(), "{} seeds failed:\n{}", failures.len(), failures.join("\n"));
    assert_covered(&summary.coverage);
    let mut missed = summary.coverage.pairs_missed();
    missed.retain(|pair| !RARE.contains(pair));
    assert!(missed.is_empty(), "pairs of faults that never met: {missed:?}");
}

/// A simulation in which nothing happens proves nothing.
fn assert_covered(coverage: &Coverage) {
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
        "arbiter down",
        "arbiter slow",
        "an answer waited for a pause",
        "disk full",
        "disk failing",
        "disk slow",
        "bit rot",
        "log read again",
        "log torn",
        "log damage found",
        "log ended",
        "log waits for room",
        "clock rate",
        "clock jump",
        "slow machine",
        "operator goes alone",
        "operator stops primary",
        "operator switches over",
        "operator changes mode",
        "switched over",
        "switchover failed",
        "mode: replay",
        "mode: hybrid",
        "mode: checkpoint",
        "backup changed mode",
        "bid placed",
        "lease lost",
        "power cut",
        "started again from the disk",
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
        "join: by what differs",
        "disks equal",
        "disks differ",
        "disks not compared",
        "guest ended",
        "operations",
    ] {
        assert!(coverage.times(what) > 0, "{what} never happened in this run");
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
        (Mutation::ReleaseAtFirst, "law 2"),
        (Mutation::IgnoreBids, "law "),
        (Mutation::KeepLease, "without a lease"),
        (Mutation::CallDurable, "durable are"),
        (Mutation::HalveIncrement, "law 1"),
        (Mutation::SkipBlock, "law 1"),
    ] {
        let found = (0..600).find_map(|seed| {
            let options = Options { mutation: Some(mutation), ..Options::new(seed) };
            run_seed(options).err().filter(|text| text.contains(law))
        });
        assert!(found.is_some(), "{mutation:?} was not found as {law} in 600 seeds");
    }
}

/// A backup with a defect is found, reported and rebuilt, and nobody outside notices.
#[test]
fn a_diverging_backup_is_rebuilt() {
    let (mut found, mut kept) = (0, 0);
    for seed in 0..60 {
        let options = Options { mutation: Some(Mutation::FlipBit), faults: false, ..Options::new(seed) };
        let coverage = run_seed(options).unwrap();
        if coverage.times("divergence found") > 0 {
            found += 1;
            let rebuilt = coverage.times("divergence reported") > 0 && coverage.times("protected") > 1;
            assert!(rebuilt, "{coverage}");
            assert!(coverage.times("diverged state kept: backup") > 0, "{coverage}");
            kept += coverage.times("diverged state kept: primary");
        }
    }
    assert!(found > 10, "{found} of 60 runs met the defect");
    assert!(kept > 10, "the primary kept its state in {kept} of {found} runs");
}

/// What once went wrong, step by step.
#[test]
fn an_earlier_life_does_not_take_over_again() {
    scenario::an_earlier_life_took_over().unwrap();
}

#[test]
fn a_claim_refused_just_before_the_registration_leaves_the_backup_in_step() {
    scenario::a_claim_just_before_the_registration().unwrap();
}

#[test]
fn output_waits_while_a_first_backup_is_registered() {
    scenario::output_waits_while_a_first_backup_is_registered().unwrap();
}

#[test]
fn an_unanswered_question_leaves_no_primary_registering() {
    scenario::an_unanswered_question_for_a_backup_that_is_lost().unwrap();
}

#[test]
fn an_increment_that_is_cut_off_is_sent_again() {
    scenario::an_increment_is_cut_off().unwrap();
}

#[test]
fn a_newcomer_gets_no_deltas_against_what_it_never_held() {
    scenario::increments_for_a_newcomer().unwrap();
}
