//! A place is the same wherever one comes from, and stops are the same forth and back.

use machine::hart::Watchpoint;
use machine::{Machine, StopReason};

use super::*;
use crate::recording::made;

fn never() -> bool {
    false
}

fn open(dir: &std::path::Path) -> History {
    History::new(Recording::open(dir, None).expect("it was just made"), 64 << 20)
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[test]
fn a_place_is_the_same_from_every_side() {
    let folder = tempfile::tempdir().unwrap();
    made::ledger(folder.path(), 3);
    let mut end = open(folder.path());
    assert_eq!(end.resume(Until::Stop, &mut never).unwrap(), Arrival::End);
    assert_eq!(end.divergence(), None);
    let (last, digest) = (end.moment().icount, end.machine_mut().digest());
    let mut wanderer = open(folder.path());
    let mut dice = Dice(9);
    for _ in 0..30 {
        let icount = dice.roll(last);
        assert_eq!(wanderer.seek(icount, &mut never).unwrap(), Arrival::There);
        assert_eq!(wanderer.moment().icount, icount);
        let mut fresh = open(folder.path());
        fresh.seek(icount, &mut never).unwrap();
        assert_eq!(fresh.moment(), wanderer.moment());
        assert_eq!(fresh.machine_mut().digest(), wanderer.machine_mut().digest(), "at {icount}");
        assert_eq!(fresh.printed().count(), wanderer.printed().count());
        assert_eq!(fresh.events_before(), wanderer.events_before());
    }
    // With all that poising, and breakpoints everywhere: the same end.
    assert_eq!(wanderer.resume(Until::Stop, &mut never).unwrap(), Arrival::End);
    assert_eq!((wanderer.moment(), wanderer.machine_mut().digest()), (end.moment(), digest));
    assert_eq!(wanderer.divergence(), None);
    assert_eq!(wanderer.seek(u64::MAX, &mut never).unwrap(), Arrival::End);
    assert_eq!(wanderer.resume_back(Until::Stop, &mut never).unwrap(), Arrival::Start);
    assert_eq!(wanderer.moment().icount, 0);
    assert_eq!(wanderer.resume_back(Until::Step { hart: 0 }, &mut never).unwrap(), Arrival::Start);
}

#[test]
fn stops_are_the_same_forth_and_back() {
    let folder = tempfile::tempdir().unwrap();
    made::ledger(folder.path(), 4);
    let mut history = open(folder.path());
    history.seek(400_000, &mut never).unwrap();
    let hart = history.machine().hart(0).unwrap();
    let (pc, stack) = (hart.pc(), hart.register(2));
    let watched = Watchpoint { address: stack - 64, len: 64, reads: false, writes: true };
    history.seek(0, &mut never).unwrap();
    history.set_breakpoints(vec![pc]);
    history.set_watchpoints(vec![watched]);
    let place = |history: &History, stop: Stop, back: bool| {
        // Before the access that is watched when going forth, behind it when going back.
        let behind = matches!(stop.reason, StopReason::Watchpoint(_)) && back;
        (history.moment().icount - u64::from(behind), stop)
    };
    let mut forth = Vec::new();
    while let Arrival::Stopped(stop) = history.resume(Until::Stop, &mut never).unwrap() {
        forth.push(place(&history, stop, false));
    }
    assert!(forth.len() > 20, "{} stops", forth.len());
    assert!(forth.iter().any(|(icount, stop)| *icount == 400_000 && stop.reason == StopReason::Breakpoint));
    assert!(forth.iter().any(|(_, stop)| stop.reason == StopReason::Watchpoint(watched)));
    let mut back = Vec::new();
    for _ in 0..40 {
        let Arrival::Stopped(stop) = history.resume_back(Until::Stop, &mut never).unwrap() else { break };
        back.push(place(&history, stop, true));
    }
    forth.reverse();
    assert_eq!(back[..], forth[..back.len()]);
    assert_eq!(history.divergence(), None);
}

#[test]
fn steps_go_forth_and_back_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    made::ledger(folder.path(), 5);
    let mut history = open(folder.path());
    history.seek(300_000, &mut never).unwrap();
    let mut walked = Vec::new();
    for _ in 0..200 {
        walked.push((history.moment(), history.machine().hart(0).unwrap().pc()));
        let arrival = history.resume(Until::Step { hart: 0 }, &mut never).unwrap();
        assert!(matches!(arrival, Arrival::Stopped(Stop { hart: 0, reason: StopReason::HartStepped })));
    }
    for expected in walked.iter().rev() {
        history.resume_back(Until::Step { hart: 0 }, &mut never).unwrap();
        assert_eq!(&(history.moment(), history.machine().hart(0).unwrap().pc()), expected);
    }
}

#[test]
fn snapshots_keep_to_their_bytes_and_stay_exact() {
    let folder = tempfile::tempdir().unwrap();
    made::ledger(folder.path(), 6);
    let mut end = open(folder.path());
    end.resume(Until::Stop, &mut never).unwrap();
    let last = end.moment().icount;
    let with_snapshots = |limit_bytes: u64| {
        let mut history = History::new(Recording::open(folder.path(), None).unwrap(), limit_bytes);
        for part in 1..20 {
            history.seek(last * part / 20, &mut never).unwrap();
            history.take_snapshot();
        }
        history
    };
    let all_bytes = with_snapshots(u64::MAX).snapshots.bytes();
    let mut history = with_snapshots(all_bytes * 3 / 4);
    assert!(history.snapshots.bytes() <= all_bytes * 3 / 4, "of {all_bytes}");
    assert!((2..19).contains(&history.snapshots.len()), "{} snapshots", history.snapshots.len());
    let mut dice = Dice(2);
    for _ in 0..10 {
        let icount = dice.roll(last);
        history.seek(icount, &mut never).unwrap();
        let mut fresh = open(folder.path());
        fresh.seek(icount, &mut never).unwrap();
        assert_eq!(fresh.machine_mut().digest(), history.machine_mut().digest(), "at {icount}");
    }
}

#[test]
fn an_interrupt_ends_the_way() {
    let folder = tempfile::tempdir().unwrap();
    made::ledger(folder.path(), 7);
    let mut history = open(folder.path());
    assert_eq!(history.resume(Until::Stop, &mut || true).unwrap(), Arrival::Interrupted);
    let here = history.moment();
    assert_eq!(history.seek(here.icount, &mut never).unwrap(), Arrival::There);
    assert_eq!(history.moment(), here, "it stands at a place");
}

#[test]
fn flips_are_read_as_they_are_written() {
    let flip = Flip { icount: 1_000_000, hart: 1, register: 10, bit: 63 };
    assert_eq!(flip.to_string(), "1000000:1:x10:63");
    assert_eq!(flip.to_string().parse(), Ok(flip));
    for wrong in ["", "1:0:x1", "1:0:x0:1", "1:0:x32:1", "1:0:10:1", "1:0:x1:64", "1:0:x1:1:1", "-1:0:x1:1"] {
        assert!(wrong.parse::<Flip>().is_err(), "{wrong}");
    }
}
