//! A flipped bit is found at the next digest, and narrowed down to the instruction it precedes.

use machine::Machine;

use super::*;
use crate::recording::made;

fn never() -> bool {
    false
}

#[test]
fn a_recording_is_equal_to_itself_and_to_its_copy() {
    let folder = tempfile::tempdir().unwrap();
    let (one, copy) = (folder.path().join("one"), folder.path().join("copy"));
    made::ledger(&one, 1);
    made::ledger(&copy, 1);
    for other in [&one, &copy] {
        let findings = compare(&one, other, None, None).unwrap();
        assert!(findings.are_equal(), "{:?}", findings.lines());
        assert!(findings.to_json()["equal"].as_bool().unwrap());
    }
}

#[test]
fn the_first_event_that_differs_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (folder.path().join("one"), folder.path().join("other"));
    made::ledger(&one, 1);
    made::ledger(&other, 2);
    let findings = compare(&one, &other, None, None).unwrap();
    assert!(!findings.are_equal());
    let lines = findings.lines();
    assert!(lines[0].starts_with("event 0 differs: A icount 0 at 0.000000 s: entropy seed"), "{lines:?}");
    assert!(findings.parting.is_none(), "what differs is an input");
}

/// Flips at random places; those whose register was about to be overwritten leave no trace, and are
/// no difference.
#[test]
fn a_flipped_bit_is_narrowed_down_to_its_instruction() {
    let folder = tempfile::tempdir().unwrap();
    made::ledger(folder.path(), 8);
    let mut plain = open(folder.path(), None).unwrap();
    plain.resume(Until::Stop, &mut never).unwrap();
    let (last, digest) = (plain.moment().icount, plain.machine_mut().digest());
    let mut seed: u64 = 77;
    let mut roll = |sides: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % sides
    };
    let mut found = 0;
    for _ in 0..12 {
        let flip = Flip {
            icount: roll(last - 2 * made::DIGEST_INSTRUCTIONS),
            hart: 0,
            register: 1 + roll(31) as usize,
            bit: roll(64) as u32,
        };
        let findings = compare(folder.path(), folder.path(), None, Some(flip)).unwrap();
        assert!(findings.logs.is_empty() && findings.divergences[0].is_none());
        let Some(divergence) = &findings.divergences[1] else {
            let mut flipped = open(folder.path(), None).unwrap();
            flipped.set_flip(Some(flip));
            flipped.resume(Until::Stop, &mut never).unwrap();
            assert_eq!(flipped.machine_mut().digest(), digest, "{flip} left a trace that nobody saw");
            continue;
        };
        let (from, to) = (divergence.verified_at.icount, divergence.found_at.icount);
        assert!(from <= flip.icount && flip.icount < to, "{flip} was found between {from} and {to}");
        assert!(to - from <= made::DIGEST_INSTRUCTIONS + 10_000, "not at the next digest: {from} to {to}");
        let parting = findings.parting.as_ref().expect("the replays differ");
        assert_eq!(parting.icount, flip.icount);
        assert!(!parting.differences.is_empty());
        let [a, b] = &parting.instructions;
        let (a, b) = (a.as_ref().unwrap(), b.as_ref().unwrap());
        assert_eq!((a.hart, a.pc, a.word), (b.hart, b.pc, b.word));
        plain.seek(flip.icount, &mut never).unwrap();
        assert_eq!(plain.machine().hart(0).unwrap().pc(), a.pc);
        found += 1;
    }
    assert!(found >= 4, "only {found} flips were found");
}

#[test]
fn logs_are_compared_by_what_is_in_them() {
    let folder = tempfile::tempdir().unwrap();
    made::ledger(folder.path(), 1);
    let logs = LogDifferences::between(folder.path(), folder.path()).unwrap();
    assert!(logs.is_empty() && logs.lines().is_empty());
    assert!(LogDifferences::between(folder.path(), Path::new("/nonexistent")).is_err());
}
