//! Law 1 on a whole Linux: a Debian boot with two harts, a disk and a network, recorded and
//! replayed.

mod common;

use std::path::PathBuf;

use bytes::Bytes;
use common::client::Pinger;
use common::{Dice, Pace, record_at, replay, replay_to};
use log_format::{Control, Event, Output};
use machine::disk::{BlockStore, MemDisk};
use machine::{
    BootImages, CheckpointExtent, DiskConfig, Exit, Machine, MachineConfig, NetConfig, RiscvMachine,
};

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

const TICK: &str = "console=ttyS0 secondwind.run=tick peer.run=tick";

fn debian(images: &BootImages, bootargs: &str) -> RiscvMachine {
    let config = MachineConfig {
        harts: 2,
        memory_bytes: 128 << 20,
        nets: vec![NetConfig { mac: [2, 0, 0, 0, 0, 1] }],
        disks: vec![DiskConfig::default()],
        bootargs: bootargs.into(),
        ..MachineConfig::default()
    };
    let disks: Vec<Box<dyn BlockStore>> = vec![Box::new(MemDisk::zeroed(8 << 20))];
    common::machine(config, images, disks)
}

#[test]
fn debian_replays_from_its_boot_and_from_a_checkpoint() {
    let images = BootImages::supervisor(guest("Image"), Some(guest("initramfs-base.cpio.gz")));
    let mut pinger = Pinger::default();
    let pace = Pace { runs: &[100, 50_000, 2_000_000], digest_every: 50, accident_every: 200 };
    let recording = record_at(&mut debian(&images, TICK), 1, 4_000_000_000, &pace, &mut pinger);
    assert!(pinger.answered > 10, "the guest answers {} echo requests", pinger.answered);
    assert!(recording.digests.len() > 20);

    replay(&mut debian(&images, TICK), &recording, 0, &mut || u64::MAX / 2);

    // Every quarter of the way, the machine moves into another one through a checkpoint.
    let mut dice = Dice(7);
    let mut cut = || 1 + dice.upto(&[1000, 1_000_000]);
    let mut machine = debian(&images, TICK);
    let quarter = recording.events.len() / 4;
    for (count, logged) in recording.events.iter().enumerate() {
        if count > 0 && count % quarter == 0 {
            let head = machine.begin_checkpoint(CheckpointExtent::Full).head;
            let mut other = debian(&images, TICK);
            other.restore_begin(&head).expect("the same kind of machine");
            loop {
                let part = machine.take_checkpoint_pages(CheckpointExtent::Full, 1000);
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

/// Runs on, skipping idle time, until the console has said `wanted`.
fn until_console(machine: &mut RiscvMachine, wanted: &str) {
    let mut said = Vec::new();
    let limit_ns = machine.moment().time_ns + 20_000_000_000;
    while machine.moment().time_ns < limit_ns {
        if let Exit::Idle { wake_ns } = machine.run(machine.moment().icount + 1_000_000) {
            machine.advance_idle(wake_ns.expect("Linux always has a timer"));
        }
        for made in machine.take_outputs() {
            if let Output::Console(bytes) = made.output {
                said.extend_from_slice(&bytes);
            }
        }
        if String::from_utf8_lossy(&said).contains(wanted) {
            return;
        }
    }
    panic!("no {wanted:?} in 20 s of guest time: {}", String::from_utf8_lossy(&said));
}

#[test]
fn debian_takes_console_input_and_reboots() {
    let images = BootImages::supervisor(guest("Image"), Some(guest("initramfs-base.cpio.gz")));
    let mut machine = debian(&images, "console=ttyS0 secondwind.run=shell peer.run=shell");
    let say = |machine: &mut RiscvMachine, line: &'static str| {
        machine.inject(&Event::ConsoleIn(Bytes::from_static(line.as_bytes())));
    };
    until_console(&mut machine, "run=shell");
    until_console(&mut machine, "# ");
    say(&mut machine, "echo sum $((40 + 2))\n");
    until_console(&mut machine, "sum 42");
    say(&mut machine, "ls /sys/bus/platform/drivers/sifive_gpio\n");
    until_console(&mut machine, "10060000.gpio");
    say(&mut machine, "echo read $(head -c 8 /dev/hwrng | wc -c)\n");
    until_console(&mut machine, "read 8");
    // A copy of a running machine is told so, each time.
    for seed in [b"one copy", b"a second"] {
        machine.inject(&Event::Entropy(Bytes::from_static(seed)));
        until_console(&mut machine, "crng reseeded due to virtual machine fork");
    }
    // The disk: what is written is what is read.
    say(&mut machine, "date > /dev/vda; sync; dd if=/dev/vda bs=512 count=1 | grep -c 2026\n");
    until_console(&mut machine, "\n1\r");
    say(&mut machine, "reboot -f\n");
    until_console(&mut machine, "Linux version");
    until_console(&mut machine, "run=shell");
    machine.inject(&Event::Control(Control::Reset));
    until_console(&mut machine, "Linux version");
}
