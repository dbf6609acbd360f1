//! Law 1: the same start and the same log give the same states and outputs, however
//! execution is cut, recorded, checkpointed and taken up elsewhere.

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Dice, Recording, ledger, record, replay, replay_to};
use log_format::Output;
use machine::{CheckpointExtent, Engine, Exit, Kept, Machine, RiscvMachine, Translation, content_hash};

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
    let head = machine.begin_checkpoint(CheckpointExtent::Full).head;
    let mut other = ledger();
    other.restore_begin(&head).expect("the same kind of machine");
    loop {
        let part = machine.take_checkpoint_pages(CheckpointExtent::Full, 50);
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

/// A clock that moves by being looked at.
fn looks() -> u64 {
    static LOOKS: AtomicU64 = AtomicU64::new(0);
    LOOKS.fetch_add(1, Ordering::Relaxed)
}

#[test]
fn translation_is_timed_unseen() {
    let (mut timed, mut other) = (ledger(), ledger());
    if !Engine::HAS_TRANSLATOR {
        assert_eq!(timed.translation(), None);
        return;
    }
    for machine in [&mut timed, &mut other] {
        machine.set_engine(Engine::Translator);
    }
    timed.time_translation(looks);
    for machine in [&mut timed, &mut other] {
        assert!(matches!(machine.run(1_000_000), Exit::Limit | Exit::Idle { .. }));
    }
    assert_eq!(timed.digest(), other.digest());
    let (Some(timed), Some(other)) = (timed.translation(), other.translation()) else {
        panic!("the translator is chosen where there is one");
    };
    assert!(timed.blocks > 10 && timed.bytes > 10 * timed.blocks, "{timed:?}");
    assert!(timed.ns >= timed.blocks, "two looks for each: {timed:?}");
    assert_eq!(other, Translation { ns: 0, ..timed });
}

/// Brings `donor`, which held a state of the same machine, to the present one in place. How many
/// pages and blocks that are part of it had to be given to it.
fn bring_over(machine: &mut RiscvMachine, donor: &mut RiscvMachine) -> (usize, usize) {
    let head = machine.begin_checkpoint(CheckpointExtent::Full).head;
    donor.restore_over(&head).expect("the same kind of machine");
    let (mut pages, mut blocks) = (BTreeSet::new(), BTreeSet::new());
    let mut given = 0;
    loop {
        let mut part = machine.take_checkpoint_pages(CheckpointExtent::Full, 50);
        if part.is_empty() {
            break;
        }
        part.pages.retain(|page| page.data.is_some());
        pages.extend(part.pages.iter().map(|page| page.index));
        blocks.extend(part.blocks.iter().map(|block| (block.disk, block.index)));
        part.pages
            .retain(|page| donor.hash_page(page.index) != page.data.as_ref().map(|data| content_hash(data)));
        part.blocks
            .retain(|block| donor.hash_block(block.disk, block.index) != Some(content_hash(&block.data)));
        given += part.pages.len() + part.blocks.len();
        donor.restore_part(&part).expect("pages of the same machine");
    }
    donor.keep_only(&|page| pages.contains(&page), &|disk, block| blocks.contains(&(disk, block)));
    assert_eq!((donor.moment(), donor.digest()), (head.moment, head.digest));
    donor.restore_end();
    (given, pages.len() + blocks.len())
}

#[test]
fn a_machine_with_an_older_state_is_brought_to_the_present_one_by_what_differs() {
    let recording = recording(6);
    let mut machine = ledger();
    let place = |part: usize| recording.events.len() * part / 4;
    let go_to = |machine: &mut RiscvMachine, from: usize, to: usize| {
        for logged in &recording.events[from..to] {
            replay_to(machine, logged.at, &mut || u64::MAX / 2);
            machine.inject(&logged.event);
        }
    };
    go_to(&mut machine, 0, place(2));
    let (mut donor, _) = copy(&mut machine, |_| {});
    assert!(donor.kept().memory);
    // Absent for a while; and what it did meanwhile on its own is nobody's.
    go_to(&mut machine, place(2), place(3));
    donor.run(donor.moment().icount + 300_000);
    let (given, all) = bring_over(&mut machine, &mut donor);
    assert!(given > 0 && given * 2 < all, "{given} of {all} were given");
    // It goes on as the other does.
    go_to(&mut machine, place(3), place(4));
    go_to(&mut donor, place(3), place(4));
    assert_eq!(machine.digest(), donor.digest());
    // A machine that has nothing gets it all; one that is ahead loses what it had.
    let mut empty = ledger();
    assert_eq!(empty.kept(), Kept::default());
    let (given, all) = bring_over(&mut machine, &mut empty);
    assert_eq!(given, all);
    let mut behind = ledger();
    go_to(&mut behind, 0, place(1));
    bring_over(&mut behind, &mut machine);
    go_to(&mut machine, place(1), place(4));
    assert_eq!(machine.digest(), donor.digest());
}
