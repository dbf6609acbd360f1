//! Law 1 on a whole Linux: a Debian boot with two harts, a disk and a network, recorded and
//! replayed.

mod common;

use std::path::PathBuf;

use bytes::Bytes;
use common::client::Pinger;
use common::{Dice, Pace, record_at, replay, replay_to};
use machine::disk::{BlockStore, MemDisk};
use machine::{BootImages, DiskConfig, Machine, MachineConfig, NetConfig, RiscvMachine};

/// Where `guest/debian/build` puts the guest, or where SECONDWIND_DEBIAN says it is.
fn guest(name: &str) -> Bytes {
    let cache = || {
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
        let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
        cache.join("secondwind/debian")
    };
    let path = std::env::var_os("SECONDWIND_DEBIAN").map_or_else(cache, PathBuf::from).join(name);
    match std::fs::read(&path) {
        Ok(bytes) => bytes.into(),
        Err(error) => panic!("{}: {error}; run guest/debian/build first", path.display()),
    }
}

fn debian(images: &BootImages) -> RiscvMachine {
    let config = MachineConfig {
        harts: 2,
        memory_bytes: 128 << 20,
        nets: vec![NetConfig { mac: [2, 0, 0, 0, 0, 1] }],
        disks: vec![DiskConfig::default()],
        bootargs: "console=ttyS0 peer.run=tick".into(),
        ..MachineConfig::default()
    };
    let disks: Vec<Box<dyn BlockStore>> = vec![Box::new(MemDisk::zeroed(8 << 20))];
    RiscvMachine::new(config, images, disks).expect("it boots")
}

#[test]
#[ignore = "needs the Debian guest: guest/debian/build, then cargo test -p machine --test debian -- --ignored"]
fn debian_replays_from_its_boot_and_from_a_checkpoint() {
    let images = BootImages::supervisor(guest("Image"), Some(guest("initramfs-base.cpio.gz")));
    let mut pinger = Pinger::default();
    let pace = Pace { runs: &[100, 50_000, 2_000_000], digest_every: 50, accident_every: 200 };
    let recording = record_at(&mut debian(&images), 1, 4_000_000_000, &pace, &mut pinger);
    assert!(pinger.answered > 10, "the guest answers {} echo requests", pinger.answered);
    assert!(recording.digests.len() > 20);

    replay(&mut debian(&images), &recording, 0, &mut || u64::MAX / 2);

    // Every quarter of the way, the machine moves into another one through a checkpoint.
    let mut dice = Dice(7);
    let mut cut = || 1 + dice.upto(&[1000, 1_000_000]);
    let mut machine = debian(&images);
    let quarter = recording.events.len() / 4;
    for (count, logged) in recording.events.iter().enumerate() {
        if count > 0 && count % quarter == 0 {
            let head = machine.begin_checkpoint();
            let mut other = debian(&images);
            other.restore_begin(&head).expect("the same kind of machine");
            loop {
                let part = machine.take_checkpoint_pages(1000);
                if part.is_empty() {
                    break;
                }
                other.restore_part(&part).expect("pages of the same machine");
            }
            assert_eq!(other.digest(), head.digest);
            machine = other;
        }
        replay_to(&mut machine, logged.at, &mut cut);
        machine.inject(&logged.event);
    }
    replay(&mut machine, &recording, recording.events.len(), &mut cut);
}
