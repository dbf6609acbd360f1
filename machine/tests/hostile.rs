//! Hostile guests, damaged images and checkpoints, and checkpoints of other machines.

mod common;
#[path = "common/scripts.rs"]
mod scripts;

use bytes::Bytes;
use common::{Dice, ledger};
use log_format::{CheckpointPart, DiskBlock, Page};
use machine::{BootImages, CheckpointExtent, Machine, MachineConfig, RestoreError, RiscvMachine};

fn busy() -> RiscvMachine {
    let mut machine = ledger();
    common::record(&mut machine, 5, 20_000_000);
    machine
}

fn bytes(seed: u64, most: u64) -> Vec<u8> {
    let mut dice = Dice(seed);
    (0..dice.roll(most)).map(|_| dice.roll(256) as u8).collect()
}

#[test]
fn a_damaged_state_is_refused_or_harmless() {
    let mut machine = busy();
    let taken = (0..2000).filter(|seed| {
        let changes = bytes(*seed, 12);
        scripts::checkpoint_state(&mut machine, ledger(), &changes)
    });
    let taken = taken.count();
    assert!((100..1900).contains(&taken), "{taken} of 2000 damaged states were taken");
    for len in 0..machine.begin_checkpoint(CheckpointExtent::Full).head.state.len() {
        let mut head = machine.begin_checkpoint(CheckpointExtent::Full).head;
        head.state.truncate(len);
        assert!(matches!(ledger().restore_begin(&head), Err(RestoreError::Malformed(_))));
    }
}

#[test]
fn scripts_of_a_hostile_guest_do_the_same_twice() {
    for seed in 0..1000 {
        let script = bytes(seed, 4000);
        assert_eq!(scripts::devices(&script), scripts::devices(&script), "seed {seed}");
    }
}

#[test]
fn images_of_any_bytes_are_refused_or_loaded() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../guest/ledger/ledger.elf");
    let elf = std::fs::read(path).expect("the built-in guest is committed");
    for seed in 0..300 {
        scripts::boot_image(&bytes(seed, 200));
        let mut dice = Dice(seed);
        let mut damaged = elf.clone();
        (0..4).for_each(|_| damaged[dice.roll(200) as usize] = dice.roll(256) as u8);
        scripts::boot_image(&damaged);
        scripts::boot_image(&elf[..dice.roll(elf.len() as u64) as usize]);
    }
}

#[test]
fn parts_outside_the_machine_are_refused() {
    let mut machine = ledger();
    let head = machine.begin_checkpoint(CheckpointExtent::Full).head;
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
    let head = ledger().begin_checkpoint(CheckpointExtent::Full).head;
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
