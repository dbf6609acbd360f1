//! Law 1: the same start and the same log give the same states and outputs, however
//! execution is cut, recorded, checkpointed and taken up elsewhere.

mod common;

use common::{Dice, Recording, ledger, record, replay, replay_to};
use log_format::Output;
use machine::{Machine, RiscvMachine};

const UNTIL_NS: u64 = 120_000_000;

fn recording(seed: u64) -> Recording {
    record(&mut ledger(), seed, UNTIL_NS)
}

#[test]
fn a_replay_goes_through_the_same_states_however_it_is_cut() {
    for seed in 1..=3 {
        let recording = recording(seed);
        assert!(recording.answered > 10, "the guest answers its client");
        assert!(recording.digests.len() > 10 && recording.events.len() > 30);
        replay(&mut ledger(), &recording, 0, &mut || u64::MAX / 2);
        let mut dice = Dice(seed);
        replay(&mut ledger(), &recording, 0, &mut || 1 + dice.roll(20_000));
        let mut dice = Dice(seed + 1);
        replay(&mut ledger(), &recording, 0, &mut || 1 + dice.upto(&[3, 100_000]));
    }
}

#[test]
fn single_steps_make_no_difference() {
    let recording = record(&mut ledger(), 9, 2_500_000);
    assert!(recording.digests.last().expect("there is one at the end").0.icount > 500_000);
    replay(&mut ledger(), &recording, 0, &mut || 1);
}

/// A copy of `machine` made through a checkpoint whose parts are taken while it goes on.
fn copy(
    machine: &mut RiscvMachine,
    mut go_on: impl FnMut(&mut RiscvMachine),
) -> (RiscvMachine, log_format::Moment) {
    let head = machine.begin_checkpoint();
    let mut other = ledger();
    other.restore_begin(&head).expect("the same kind of machine");
    loop {
        let part = machine.take_checkpoint_pages(50);
        if part.is_empty() {
            break;
        }
        other.restore_part(&part).expect("pages of the same machine");
        go_on(machine);
    }
    assert_eq!(machine.checkpoint_held_bytes(), 0);
    assert_eq!(other.moment(), head.moment);
    assert_eq!(other.digest(), head.digest, "at {:?}", head.moment);
    (other, head.moment)
}

#[test]
fn a_machine_restored_anywhere_goes_on_alike() {
    let recording = recording(4);
    let mut dice = Dice(4);
    let mut machine = ledger();
    let mut done = 0;
    while done + 30 < recording.events.len() {
        for _ in 0..1 + dice.roll(30) {
            let logged = &recording.events[done];
            replay_to(&mut machine, logged.at, &mut || u64::MAX / 2);
            machine.inject(&logged.event);
            done += 1;
        }
        // A few instructions further, where that is still before the next event.
        let next = recording.events[done].at.icount;
        let stray = (machine.moment().icount + dice.roll(5000)).min(next);
        machine.run(stray);
        // While the checkpoint is taken, the machine goes on and writes to its pages.
        let (mut other, at) = copy(&mut machine, |machine| {
            let next = machine.moment().icount + 2000;
            machine.run(next.min(recording.events[done].at.icount));
        });
        assert!(other.moment() == at);
        if dice.roll(3) == 0 {
            // The original is given up: the copy is now the machine.
            machine = other;
            machine.take_outputs();
        } else {
            replay(&mut other, &recording, done, &mut || 1 + dice.roll(50_000));
        }
    }
    replay(&mut machine, &recording, done, &mut || u64::MAX / 2);
}

#[test]
fn a_reset_boots_again_and_replays() {
    let run = |machine: &mut RiscvMachine, cut: u64| {
        let mut console = Vec::new();
        for stop in (0..6_000_000).step_by(cut as usize) {
            if stop == 3_000_000 {
                machine.inject(&log_format::Event::Control(log_format::Control::Reset));
            }
            while machine.moment().icount < stop + cut {
                if let machine::Exit::Idle { wake_ns } = machine.run(stop + cut) {
                    machine.advance_idle(wake_ns.unwrap_or(u64::MAX));
                }
            }
            console.extend(machine.take_outputs());
        }
        (console, machine.digest())
    };
    let (outputs, digest) = run(&mut ledger(), 100_000);
    let text: Vec<u8> = outputs
        .iter()
        .filter_map(|made| match &made.output {
            Output::Console(bytes) => Some(bytes.to_vec()),
            Output::Frame { .. } => None,
        })
        .flatten()
        .collect();
    assert_eq!(String::from_utf8_lossy(&text).matches("LEDGER ready").count(), 2);
    let again = run(&mut ledger(), 500);
    assert_eq!((again.0, again.1), (outputs, digest));
}
