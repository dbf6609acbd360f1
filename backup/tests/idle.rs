//! What an idle pair costs a backup: each command to the replay thread wakes it.

#![allow(clippy::unwrap_used)] // Helpers are tests too.

use backup::{Backup, ConnectionId, CoreConfig, ToReplayer};
use log_format::{
    Batch, ChainHash, Event, Heartbeat, JoinPlan, LoggedEvent, MachineIdentity, Message, Moment, Position,
    SealedBatch, VersionRange, Welcome,
};

const MS: u64 = 1_000_000;
const ID: ConnectionId = ConnectionId(1);
const HEARTBEATS_PER_S: u64 = 50;

fn identity() -> MachineIdentity {
    MachineIdentity { semantics: 1, config: [1; 32], boot_images: [2; 32], disks: Vec::new() }
}

/// A backup that follows the primary `a` of term 1 from the boot.
fn following() -> Backup {
    let mut backup = Backup::new(CoreConfig::new("web", "b", identity()), 0);
    assert!(backup.poll_dial(0));
    backup.handle_connected(ID, None, 0);
    let welcome = Welcome {
        from: Position { term: 1, moment: Moment::BOOT, sequence: 0 },
        chain: ChainHash::genesis(&identity()),
        version: VersionRange::SUPPORTED.max,
        node: "a".into(),
        term: 1,
        plan: JoinPlan::LogFromBoot,
        identity: identity(),
        heartbeat_interval_ms: 20,
    };
    backup.handle_message(ID, Message::Welcome(welcome), 0);
    backup
}

fn heartbeat(after_sequence: u64, mark: Moment, now_ns: u64) -> Message {
    Message::Heartbeat(Heartbeat {
        term: 1,
        after_sequence,
        sent_ns: now_ns,
        mark: Some(mark),
        released_outputs: 0,
        required: true,
    })
}

/// The first batch, with one event.
fn batch(end: Moment) -> SealedBatch {
    let event = LoggedEvent { at: Moment::BOOT, event: Event::ClockAdvance { delta_ns: 1 } };
    let batch = Batch { term: 1, sequence: 1, end, events: vec![event], ..Batch::default() };
    batch.seal(ChainHash::genesis(&identity())).unwrap()
}

fn commands(backup: &mut Backup) -> Vec<ToReplayer> {
    std::iter::from_fn(|| backup.poll_replayer()).collect()
}

fn replies(backup: &mut Backup) -> u64 {
    let sent = std::iter::from_fn(|| backup.poll_transmit());
    sent.filter(|(_, message)| matches!(message, Message::HeartbeatReply(_))).count() as u64
}

#[test]
fn the_replay_of_a_guest_that_sleeps_is_not_woken_by_heartbeats() {
    let mut backup = following();
    commands(&mut backup);
    let sleeps_at = Moment { icount: 1000, time_ns: 250 };
    for number in 0..HEARTBEATS_PER_S {
        let now_ns = (number + 1) * 20 * MS;
        backup.handle_message(ID, heartbeat(0, sleeps_at, now_ns), now_ns);
    }
    assert_eq!(commands(&mut backup), [ToReplayer::Mark(sleeps_at)]);
    assert_eq!(replies(&mut backup), HEARTBEATS_PER_S);
    // Its timer woke it for a moment.
    let later = Moment { icount: 2000, time_ns: 4 * MS };
    for now_ns in [1100 * MS, 1120 * MS] {
        backup.handle_message(ID, heartbeat(0, later, now_ns), now_ns);
    }
    assert_eq!(commands(&mut backup), [ToReplayer::Mark(later)]);
}

#[test]
fn a_mark_at_the_end_of_the_last_batch_is_no_news() {
    let mut backup = following();
    commands(&mut backup);
    let end = Moment { icount: 1000, time_ns: 250 };
    backup.handle_message(ID, Message::Batch(batch(end)), MS);
    assert!(matches!(commands(&mut backup)[..], [ToReplayer::Batch(_)]));
    backup.handle_message(ID, heartbeat(1, end, 20 * MS), 20 * MS);
    assert_eq!(commands(&mut backup), []);
    let later = Moment { icount: 1000, time_ns: 300 };
    backup.handle_message(ID, heartbeat(1, later, 40 * MS), 40 * MS);
    assert_eq!(commands(&mut backup), [ToReplayer::Mark(later)]);
}
