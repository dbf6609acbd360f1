//! What a primary does with its lease and with what a watch of the arbiter's record tells it.

#![allow(clippy::unwrap_used)] // Helpers are tests too.

use bytes::Bytes;
use link::arbitration::Record;
use log_format::{LoggedOutput, MachineIdentity, Moment, Output};
use machine::PrimacyStart;
use primary::{CoreConfig, Finish, FromMachine, Primary, PrimaryEvent, Recorded};

const SECOND_NS: u64 = 1_000_000_000;

/// The primary `a` of term 3, without a backup.
fn primary() -> Primary {
    let identity = MachineIdentity { semantics: 1, config: [1; 32], boot_images: [2; 32], disks: Vec::new() };
    let start = PrimacyStart::boot(&identity, 3);
    Primary::new(CoreConfig::new("web", "a", identity), start, 0)
}

/// The machine sends its next frame.
fn send(primary: &mut Primary, ordinal: u64, now_ns: u64) {
    let at = Moment { icount: 1000 * (ordinal + 1), time_ns: 1000 * (ordinal + 1) };
    let output = Output::Frame { port: 0, frame: Bytes::from_static(b"frame") };
    let recorded =
        Recorded { outputs: vec![LoggedOutput { ordinal, at, output }], end: at, ..Recorded::default() };
    primary.handle_machine(FromMachine::Recorded(recorded), now_ns);
}

fn released(primary: &mut Primary, now_ns: u64) -> usize {
    std::iter::from_fn(|| primary.poll_release(now_ns)).count()
}

fn events(primary: &mut Primary) -> Vec<PrimaryEvent> {
    std::iter::from_fn(|| primary.poll_event()).collect()
}

#[test]
fn output_leaves_only_while_the_lease_is_good() {
    let mut primary = primary();
    primary.handle_lease(0, 10);
    send(&mut primary, 0, 20);
    assert_eq!(released(&mut primary, 20), 0, "before it was granted");
    assert_eq!(events(&mut primary), []);

    primary.handle_lease(SECOND_NS, 30);
    assert_eq!(released(&mut primary, 30), 1);
    assert_eq!(events(&mut primary), [PrimaryEvent::LeaseHeld]);
    assert!(primary.poll_timeout().unwrap() <= SECOND_NS, "its end is waited for");

    // Nobody has told it, and yet nothing leaves.
    send(&mut primary, 1, SECOND_NS);
    assert_eq!(released(&mut primary, SECOND_NS), 0);
    primary.handle_timeout(SECOND_NS);
    assert_eq!(events(&mut primary), [PrimaryEvent::LeaseLost]);

    primary.handle_lease(3 * SECOND_NS, 2 * SECOND_NS);
    assert_eq!(released(&mut primary, 2 * SECOND_NS), 1, "goes on in the same term");
    assert_eq!(events(&mut primary), [PrimaryEvent::LeaseHeld]);
    assert_eq!(primary.term(), 3);
}

#[test]
fn without_leases_nothing_waits_for_one() {
    let mut primary = primary();
    send(&mut primary, 0, 20);
    assert_eq!(released(&mut primary, 20), 1);
}

#[test]
fn a_newer_record_fences_and_an_older_one_is_old_news() {
    let mut primary = primary();
    primary.handle_lease(SECOND_NS, 0);
    for record in [Record::alone(2, "b"), Record::alone(3, "a"), Record::pair(3, "a", "b")] {
        primary.handle_record(&record, 10);
        assert_eq!(primary.finished(), None, "{record}");
    }
    send(&mut primary, 0, 20);
    primary.handle_record(&Record::alone(4, "b"), 20);
    assert_eq!(released(&mut primary, 20), 0, "the lease is good, and yet it is not the primary");
    assert!(matches!(primary.finished(), Some(Finish::Fenced { text }) if text.contains("term 4")));
}
