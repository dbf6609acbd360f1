use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn output(ordinal: u64, icount: u64) -> LoggedOutput {
    LoggedOutput {
        ordinal,
        at: moment(icount),
        output: Output::Frame { port: 0, frame: Bytes::from(vec![ordinal as u8; 60]) },
    }
}

fn moment(icount: u64) -> Moment {
    Moment { icount, time_ns: icount }
}

fn released(buffer: &mut OutputBuffer, now_ns: u64) -> Vec<u64> {
    std::iter::from_fn(|| buffer.poll_release(now_ns)).map(|output| output.ordinal).collect()
}

#[test]
fn nothing_leaves_before_its_commit() {
    let mut buffer = OutputBuffer::new(BufferLimits::default());
    buffer.hold(output(0, 10), 0);
    buffer.hold(output(1, 20), 0);
    assert_eq!(released(&mut buffer, 1), []);
    buffer.commit(moment(19));
    assert_eq!(released(&mut buffer, 1), [0]);
    buffer.commit(moment(20));
    assert_eq!(released(&mut buffer, 1), [1]);
    assert_eq!(buffer.released_before(), 2);
}

#[test]
fn a_commit_orders_by_guest_time_while_icount_stands() {
    let mut buffer = OutputBuffer::new(BufferLimits::default());
    let mut late = output(0, 10);
    late.at.time_ns = 500;
    buffer.hold(late, 0);
    buffer.commit(moment(10));
    assert_eq!(released(&mut buffer, 1), []);
    buffer.commit(Moment { icount: 10, time_ns: 500 });
    assert_eq!(released(&mut buffer, 1), [0]);
}

#[test]
fn a_commit_does_not_free_what_is_held_after_it() {
    let mut buffer = OutputBuffer::new(BufferLimits::default());
    buffer.commit(moment(10));
    buffer.hold(output(0, 10), 0);
    assert_eq!(released(&mut buffer, 1), []);
    buffer.commit(moment(10));
    assert_eq!(released(&mut buffer, 1), [0]);
}

#[test]
fn protection_comes_and_goes() {
    let mut buffer = OutputBuffer::new(BufferLimits::default());
    buffer.hold(output(0, 10), 0);
    buffer.release_all();
    buffer.hold(output(1, 20), 0);
    buffer.protect();
    buffer.hold(output(2, 30), 0);
    assert_eq!(released(&mut buffer, 1), [0, 1]);
    assert_eq!(buffer.uncommitted_outputs(), 1);
}

#[test]
fn a_backup_drops_what_was_released_even_before_it_made_it() {
    let mut buffer = OutputBuffer::new(BufferLimits::default());
    buffer.hold(output(0, 10), 0);
    assert_eq!(buffer.drop_released_before(2), 1);
    buffer.hold(output(1, 20), 0);
    buffer.hold(output(2, 30), 0);
    let again: Vec<u64> = buffer.take_held().iter().map(|held| held.ordinal).collect();
    assert_eq!(again, [2]);
    assert_eq!(buffer.statistics().dropped_outputs, 2);
    assert_eq!((buffer.held_outputs(), buffer.held_bytes()), (0, 0));
}

#[test]
fn full_by_count_or_by_bytes() {
    let limits = BufferLimits { outputs: 2, bytes: 1000 };
    let mut buffer = OutputBuffer::new(limits);
    buffer.hold(output(0, 1), 0);
    assert!(!buffer.is_full());
    buffer.hold(output(1, 2), 0);
    assert!(buffer.is_full());
    buffer.commit(moment(1));
    assert!(buffer.is_full(), "committed, yet not handed out");
    released(&mut buffer, 1);
    assert!(!buffer.is_full());

    let mut buffer = OutputBuffer::new(BufferLimits { outputs: 100, bytes: 60 });
    buffer.hold(output(0, 1), 0);
    assert!(buffer.is_full());
}

#[test]
fn delay_is_from_hold_to_release() {
    let mut buffer = OutputBuffer::new(BufferLimits::default());
    buffer.hold(output(0, 1), 1_000);
    assert_eq!(buffer.oldest_since_ns(), Some(1_000));
    buffer.commit(moment(1));
    released(&mut buffer, 5_000);
    let statistics = buffer.statistics();
    assert_eq!(statistics.delay.max_ns(), 4_000);
    assert_eq!(statistics.released_bytes, 60);
    assert_eq!(statistics.peak_held_bytes, 60);
}

#[test]
#[should_panic(expected = "held after output")]
fn outputs_out_of_order_are_a_bug() {
    let mut buffer = OutputBuffer::new(BufferLimits::default());
    buffer.hold(output(1, 10), 0);
    buffer.hold(output(0, 20), 0);
}

#[derive(Debug, Clone)]
enum Step {
    Hold { later: u64 },
    Commit { icount: u64 },
    Release { most: usize },
    DropBefore { ordinal: u64 },
    ReleaseAll,
    Protect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u64..5).prop_map(|later| Step::Hold { later }),
        3 => (0u64..200).prop_map(|icount| Step::Commit { icount }),
        3 => (1usize..6).prop_map(|most| Step::Release { most }),
        1 => (0u64..60).prop_map(|ordinal| Step::DropBefore { ordinal }),
        1 => Just(Step::ReleaseAll),
        1 => Just(Step::Protect),
    ]
}

proptest! {
    #[test]
    fn ordered_never_early_nothing_lost(steps in prop::collection::vec(step(), 1..200)) {
        let mut buffer = OutputBuffer::new(BufferLimits::default());
        let (mut next, mut icount, mut told) = (0u64, 0u64, 0u64);
        // The model: which ordinals may leave, judged when they are held or committed.
        let mut permitted = std::collections::BTreeSet::new();
        let mut held_at: Vec<u64> = Vec::new();
        let mut unprotected = false;
        let mut out: Vec<u64> = Vec::new();
        for step in steps {
            match step {
                Step::Hold { later } => {
                    icount += later;
                    buffer.hold(output(next, icount), next);
                    held_at.push(icount);
                    if unprotected { permitted.insert(next); }
                    next += 1;
                }
                Step::Commit { icount } => {
                    buffer.commit(moment(icount));
                    permitted.extend((0..next).filter(|n| held_at[*n as usize] <= icount));
                }
                Step::Release { most } => {
                    for _ in 0..most {
                        let Some(left) = buffer.poll_release(next) else { break };
                        prop_assert!(permitted.contains(&left.ordinal), "released before its commit");
                        out.push(left.ordinal);
                    }
                }
                Step::DropBefore { ordinal } => {
                    buffer.drop_released_before(ordinal);
                    told = told.max(ordinal);
                }
                Step::ReleaseAll => {
                    buffer.release_all();
                    permitted.extend(0..next);
                    unprotected = true;
                }
                Step::Protect => { buffer.protect(); unprotected = false; }
            }
            let bytes: u64 = 60 * buffer.held_outputs() as u64;
            prop_assert_eq!(buffer.held_bytes(), bytes);
        }
        prop_assert!(out.is_sorted_by(|a, b| a < b), "order kept");
        // Nothing lost: each output left, is held, or was known to be released.
        let mut seen = out;
        seen.extend(buffer.take_held().iter().map(|held| held.ordinal));
        prop_assert!(seen.is_sorted_by(|a, b| a < b));
        for ordinal in 0..next {
            prop_assert!(ordinal < told || seen.contains(&ordinal), "output {} is lost", ordinal);
        }
    }
}
