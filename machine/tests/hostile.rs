//! Checkpoints that were damaged, and checkpoints of other machines.

mod common;

use bytes::Bytes;
use common::{Dice, ledger};
use log_format::{CheckpointPart, DiskBlock, Page};
use machine::{BootImages, Exit, Machine, MachineConfig, RestoreError, RiscvMachine};

fn busy() -> RiscvMachine {
    let mut machine = ledger();
    common::record(&mut machine, 5, 20_000_000);
    machine
}

#[test]
fn a_damaged_state_is_refused_or_harmless() {
    let head = busy().begin_checkpoint();
    let mut dice = Dice(1);
    let mut refused = 0;
    for _ in 0..3000 {
        let mut damaged = head.clone();
        for _ in 0..1 + dice.roll(3) {
            let position = dice.roll(damaged.state.len() as u64) as usize;
            damaged.state[position] = dice.roll(256) as u8;
        }
        if dice.roll(4) == 0 {
            damaged.state.truncate(dice.roll(damaged.state.len() as u64) as usize);
        }
        let mut machine = ledger();
        match machine.restore_begin(&damaged) {
            Err(RestoreError::Malformed(_)) => refused += 1,
            Err(other) => panic!("{other}"),
            Ok(()) => {
                let until = machine.moment().icount.saturating_add(3000);
                for _ in 0..10 {
                    if let Exit::Idle { wake_ns } = machine.run(until) {
                        machine.advance_idle(wake_ns.unwrap_or(u64::MAX));
                    }
                    machine.take_outputs();
                }
                machine.digest();
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn parts_outside_the_machine_are_refused() {
    let mut machine = ledger();
    let head = machine.begin_checkpoint();
    machine.restore_begin(&head).expect("its own checkpoint");
    let data = |len: usize| Bytes::from(vec![1; len]);
    let page = |index, len| CheckpointPart {
        pages: vec![Page { index, data: Some(data(len)) }],
        ..CheckpointPart::default()
    };
    let block = |disk, index, len| CheckpointPart {
        blocks: vec![DiskBlock { disk, index, data: data(len) }],
        ..CheckpointPart::default()
    };
    for part in [
        page(32 << 8, 4096),
        page(u64::MAX, 4096),
        page(u64::MAX / 4096, 4096),
        page(0, 100),
        block(1, 0, 4096),
        block(0, 1024, 4096),
        block(0, u64::MAX, 4096),
        block(0, 0, 512),
    ] {
        assert!(matches!(machine.restore_part(&part), Err(RestoreError::OutOfRange { .. })), "{part:?}");
    }
    machine.restore_part(&page((32 << 8) - 1, 4096)).expect("inside");
    machine.restore_part(&block(0, 1023, 4096)).expect("inside");
}

#[test]
fn checkpoints_of_other_machines_are_refused_by_name() {
    let head = ledger().begin_checkpoint();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../guest/ledger/ledger.elf");
    let kernel = Bytes::from(std::fs::read(path).expect("the built-in guest is committed"));
    let images = BootImages::supervisor(kernel, None);
    let config = MachineConfig { memory_bytes: 16 << 20, ..MachineConfig::default() };
    let mut other = RiscvMachine::new(config, &images, Vec::new()).expect("it boots");
    let error = other.restore_begin(&head).expect_err("another machine");
    assert!(error.to_string().contains("its configuration is"), "{error}");
    let before = other.digest();
    let mut newer = head.clone();
    newer.identity.semantics += 1;
    let error = ledger().restore_begin(&newer).expect_err("other semantics");
    assert!(error.to_string().contains("its semantics version is"), "{error}");
    assert_eq!(other.digest(), before, "a refused checkpoint changes nothing");
}
