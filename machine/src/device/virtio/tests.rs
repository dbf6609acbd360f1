//! The devices behind their registers, driven as a guest drives them.

use log_format::{Moment, Output};

use super::super::HostFault;
use super::super::entropy::EntropyPool;
use super::super::queue::tests::Driver;
use super::*;
use crate::config::DiskConfig;
use crate::contract::HostPart;
use crate::disk::{Disk, MemDisk};
use crate::output::Outputs;
use crate::ram::{RAM_BASE, Ram};
use crate::semantics::Semantics;

const DATA: u64 = RAM_BASE + 0x4_0000;

struct Bench {
    ram: Ram,
    outputs: Outputs,
    pool: EntropyPool,
    disks: Vec<Disk>,
    host_fault: Option<HostFault>,
    now: Moment,
}

impl Bench {
    fn new() -> Bench {
        let disk = Disk::new(Box::new(MemDisk::zeroed(64 << 10))).unwrap();
        Bench {
            ram: Ram::new(256),
            outputs: Outputs::default(),
            pool: EntropyPool::default(),
            disks: vec![disk],
            host_fault: None,
            now: Moment { icount: 7, time_ns: 1000 },
        }
    }

    fn with<T>(&mut self, work: impl FnOnce(&mut Environment<'_>) -> T) -> T {
        work(&mut Environment {
            ram: &mut self.ram,
            now: self.now,
            outputs: &mut self.outputs,
            pool: &mut self.pool,
            disks: &mut self.disks,
            host_fault: &mut self.host_fault,
        })
    }

    fn write(&mut self, slot: &mut Slot, offset: u64, value: u32) {
        self.with(|environment| slot.write(offset, 4, value.into(), environment));
    }

    /// Negotiates `features`, sets all queues up and starts the device.
    fn start(&mut self, slot: &mut Slot, features: u64) -> Vec<Driver> {
        self.write(slot, register::STATUS, 3);
        let features = features | FEATURE_VERSION_1;
        for select in 0..2 {
            self.write(slot, register::DRIVER_FEATURES_SELECT, select);
            self.write(slot, register::DRIVER_FEATURES, (features >> (32 * select)) as u32);
        }
        self.write(slot, register::STATUS, 8);
        assert_eq!(slot.read(register::STATUS, 4), 11);
        let mut drivers = Vec::new();
        for index in 0..slot.queues.len() {
            let driver = Driver::new(RAM_BASE + 0x1_0000 * index as u64, 16);
            self.write(slot, register::QUEUE_SELECT, index as u32);
            self.write(slot, register::QUEUE_SIZE, 16);
            let areas = [register::QUEUE_DESCRIPTORS, register::QUEUE_AVAILABLE, register::QUEUE_USED];
            for (offset, address) in areas.into_iter().zip(driver.addresses()) {
                self.write(slot, offset, address as u32);
                self.write(slot, offset + 4, (address >> 32) as u32);
            }
            self.write(slot, register::QUEUE_READY, 1);
            drivers.push(driver);
        }
        self.write(slot, register::STATUS, 15);
        assert_eq!(slot.read(register::STATUS, 4), 15);
        drivers
    }

    fn receive(&mut self, slot: &mut Slot, frame: &[u8]) {
        let frame = Bytes::copy_from_slice(frame);
        self.with(|environment| slot.receive(0, &frame, environment));
    }
}

fn net() -> Slot {
    Slot::new(Device::Net(Net::new(0, [2, 0, 0, 0, 0, 1])))
}

fn block() -> Slot {
    block_of(false, Semantics::NEWEST)
}

fn block_of(read_only: bool, semantics: Semantics) -> Slot {
    let config = DiskConfig { serial: "serial".into(), read_only };
    Slot::new(Device::Block(Block::new(0, 128, &config, semantics)))
}

#[test]
fn wrong_features_are_not_accepted() {
    let mut bench = Bench::new();
    for features in [0u64, FEATURE_VERSION_1 | 1 << 40] {
        let mut slot = net();
        bench.write(&mut slot, register::DRIVER_FEATURES, features as u32);
        bench.write(&mut slot, register::DRIVER_FEATURES_SELECT, 1);
        bench.write(&mut slot, register::DRIVER_FEATURES, (features >> 32) as u32);
        bench.write(&mut slot, register::STATUS, 15);
        assert_eq!(slot.read(register::STATUS, 4), 3);
    }
}

#[test]
fn a_frame_leaves_whole() {
    let (mut bench, mut slot) = (Bench::new(), net());
    let mut drivers = bench.start(&mut slot, 0);
    let frame: Vec<u8> = (0..60).collect();
    bench.ram.write(DATA + 12, &frame).unwrap();
    drivers[1].post(&mut bench.ram, &[(DATA, 20, false), (DATA + 20, 52, false)]);
    // Too short for a frame: swallowed.
    drivers[1].post(&mut bench.ram, &[(DATA, 20, false)]);
    bench.write(&mut slot, register::QUEUE_NOTIFY, 1);
    let outputs = bench.outputs.take();
    assert_eq!(outputs.len(), 1);
    assert_eq!(outputs[0].output, Output::Frame { port: 0, frame: frame.into() });
    assert_eq!(drivers[1].collect(&bench.ram), [(0, 0), (2, 0)]);
    assert!(slot.line());
    bench.write(&mut slot, register::INTERRUPT_ACKNOWLEDGE, 1);
    assert!(!slot.line());
}

#[test]
fn frames_wait_for_buffers_and_merge_over_them() {
    let (mut bench, mut slot) = (Bench::new(), net());
    let mut drivers = bench.start(&mut slot, 1 << 15);
    let frame: Vec<u8> = (0..100).collect();
    bench.receive(&mut slot, &frame);
    drivers[0].post(&mut bench.ram, &[(DATA, 64, true)]);
    bench.write(&mut slot, register::QUEUE_NOTIFY, 0);
    assert_eq!(drivers[0].collect(&bench.ram), []);
    drivers[0].post(&mut bench.ram, &[(DATA + 64, 64, true)]);
    bench.write(&mut slot, register::QUEUE_NOTIFY, 0);
    assert_eq!(drivers[0].collect(&bench.ram), [(0, 64), (1, 48)]);
    assert_eq!(bench.ram.slice(DATA + 10, 2).unwrap(), [2, 0]);
    assert_eq!(bench.ram.slice(DATA + 12, 100).unwrap(), frame);
}

#[test]
fn waiting_frames_are_bounded_and_strange_ones_dropped() {
    let (mut bench, mut slot) = (Bench::new(), net());
    bench.receive(&mut slot, &[0; 60]);
    let mut drivers = bench.start(&mut slot, 0);
    (0..1000u32).for_each(|_| bench.receive(&mut slot, &[1; 60]));
    bench.receive(&mut slot, &[1; 13]);
    let mut delivered = 0;
    for _ in 0..40 {
        for _ in 0..16 {
            drivers[0].post(&mut bench.ram, &[(DATA, 2000, true)]);
        }
        bench.write(&mut slot, register::QUEUE_NOTIFY, 0);
        let collected = drivers[0].collect(&bench.ram);
        assert!(collected.iter().all(|(_, written)| *written == 72));
        delivered += collected.len();
        if collected.len() < 16 {
            break;
        }
    }
    assert_eq!(delivered, 256);
}

#[test]
fn the_guest_is_asked_to_announce_itself() {
    let (mut bench, mut slot) = (Bench::new(), net());
    let mut drivers = bench.start(&mut slot, 1 << 17 | 1 << 21);
    assert_eq!(slot.read(register::CONFIG + 6, 2), 1);
    slot.announce();
    assert_eq!(slot.read(register::CONFIG + 6, 2), 3);
    assert_eq!(slot.read(register::INTERRUPT_STATUS, 4), 2);
    bench.ram.write(DATA, &[3, 0]).unwrap();
    drivers[2].post(&mut bench.ram, &[(DATA, 2, false), (DATA + 8, 1, true)]);
    bench.write(&mut slot, register::QUEUE_NOTIFY, 2);
    assert_eq!(slot.read(register::CONFIG + 6, 2), 1);
    assert_eq!(bench.ram.slice(DATA + 8, 1).unwrap(), [0]);
}

fn request(bench: &mut Bench, driver: &mut Driver, kind: u32, sector: u64, data: (u64, u32, bool)) {
    let header = DATA - 16 * u64::from(kind + 1) - 0x100;
    bench.ram.write(header, &kind.to_le_bytes()).unwrap();
    bench.ram.write(header + 8, &sector.to_le_bytes()).unwrap();
    let status = (DATA + 0x8000, 1, true);
    bench.ram.write(status.0, &[0xff]).unwrap();
    if data.1 == 0 {
        driver.post(&mut bench.ram, &[(header, 16, false), status]);
    } else {
        driver.post(&mut bench.ram, &[(header, 16, false), data, status]);
    }
}

fn complete(bench: &mut Bench, slot: &mut Slot) -> u8 {
    bench.write(slot, register::QUEUE_NOTIFY, 0);
    while let Some(deadline_ns) = slot.deadline_ns() {
        bench.now.time_ns = deadline_ns;
        bench.with(|environment| slot.settle(environment));
    }
    bench.ram.slice(DATA + 0x8000, 1).unwrap()[0]
}

#[test]
fn sectors_written_are_read_back_after_their_latency() {
    let (mut bench, mut slot) = (Bench::new(), block());
    let mut driver = bench.start(&mut slot, 0).remove(0);
    let data: Vec<u8> = (0..1024u32).map(|byte| byte as u8 ^ 0x5a).collect();
    bench.ram.write(DATA, &data).unwrap();
    request(&mut bench, &mut driver, 1, 3, (DATA, 1024, false));
    bench.write(&mut slot, register::QUEUE_NOTIFY, 0);
    let deadline_ns = slot.deadline_ns().unwrap();
    assert!(deadline_ns > bench.now.time_ns + 25_000);
    bench.now.time_ns = deadline_ns - 1;
    bench.with(|environment| slot.settle(environment));
    assert_eq!(driver.collect(&bench.ram), []);
    assert_eq!(complete(&mut bench, &mut slot), 0);
    request(&mut bench, &mut driver, 0, 3, (DATA + 0x1000, 1024, true));
    assert_eq!(complete(&mut bench, &mut slot), 0);
    assert_eq!(bench.ram.slice(DATA + 0x1000, 1024).unwrap(), data);
    assert_eq!(driver.collect(&bench.ram), [(0, 1), (3, 1025)]);
    request(&mut bench, &mut driver, 8, 0, (DATA + 0x1000, 20, true));
    assert_eq!(complete(&mut bench, &mut slot), 0);
    assert_eq!(bench.ram.slice(DATA + 0x1000, 7).unwrap(), b"serial\0");
    request(&mut bench, &mut driver, 4, 0, (0, 0, false));
    assert_eq!(complete(&mut bench, &mut slot), 0);
}

#[test]
fn impossible_requests_fail_and_leave_the_disk_alone() {
    let (mut bench, mut slot) = (Bench::new(), block());
    let mut driver = bench.start(&mut slot, 0).remove(0);
    for (kind, sector, len, status) in
        [(0, 128, 512, 1), (1, 127, 1024, 1), (1, u64::MAX, 512, 1), (0, 0, 100, 1), (99, 0, 512, 2)]
    {
        request(&mut bench, &mut driver, kind, sector, (DATA, len, kind != 1));
        assert_eq!(complete(&mut bench, &mut slot), status, "request {kind} at {sector}");
    }
    assert_eq!(bench.disks[0].digest().unwrap(), 0);
    assert_eq!(bench.host_fault, None);
}

const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// The bytes of a segment of a discard or a write of zeroes.
fn segment(sector: u64, len_sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &len_sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Makes such a request of these bytes. Its status.
fn zeroing(bench: &mut Bench, slot: &mut Slot, driver: &mut Driver, kind: u32, segments: &[u8]) -> u8 {
    bench.ram.write(DATA, segments).unwrap();
    request(bench, driver, kind, 0, (DATA, segments.len() as u32, false));
    let status = complete(bench, slot);
    driver.collect(&bench.ram);
    status
}

#[test]
fn what_is_discarded_reads_as_zeros() {
    for kind in [DISCARD, WRITE_ZEROES] {
        let (mut bench, mut slot) = (Bench::new(), block());
        let mut driver = bench.start(&mut slot, 0).remove(0);
        bench.disks[0].write(0, &[7; 128 * 512]).unwrap();
        let segments =
            [segment(8, 16, 0), segment(31, 2, 0), segment(127, 1, 0), segment(128, 0, 0)].concat();
        assert_eq!(zeroing(&mut bench, &mut slot, &mut driver, kind, &segments), 0);
        let mut expected = vec![7; 128 * 512];
        for sectors in [8..24, 31..33, 127..128] {
            expected[sectors.start * 512..sectors.end * 512].fill(0);
        }
        let mut found = vec![0; 128 * 512];
        bench.disks[0].read(0, &mut found).unwrap();
        assert!(found == expected, "request {kind}");
    }
}

#[test]
fn wrong_discards_get_their_status_and_change_nothing() {
    let (mut bench, mut slot) = (Bench::new(), block());
    let mut driver = bench.start(&mut slot, 0).remove(0);
    bench.disks[0].write(0, &[7; 128 * 512]).unwrap();
    let before = bench.disks[0].digest().unwrap();
    let good = segment(0, 8, 0);
    let cases: [(u32, Vec<u8>, u8); 12] = [
        (DISCARD, segment(128, 1, 0), 1),
        (DISCARD, segment(u64::MAX, 8, 0), 1),
        (DISCARD, segment(0, u32::MAX, 0), 1),
        (DISCARD, segment(0, 8, 1), 2),
        (DISCARD, segment(0, 8, 2), 2),
        (DISCARD, [good.clone(), segment(120, 9, 0)].concat(), 1),
        (DISCARD, good.repeat(9), 1),
        (DISCARD, good[..12].to_vec(), 1),
        (WRITE_ZEROES, segment(0, 8, 3), 2),
        (WRITE_ZEROES, segment(0, 8, 1 << 31), 2),
        (WRITE_ZEROES, segment(0, 129, 1), 1),
        (WRITE_ZEROES, Vec::new(), 1),
    ];
    for (kind, segments, status) in cases {
        let found = zeroing(&mut bench, &mut slot, &mut driver, kind, &segments);
        assert_eq!(found, status, "request {kind} with {segments:?}");
    }
    assert_eq!(bench.disks[0].digest().unwrap(), before);
}

#[test]
fn a_read_only_disk_refuses_whatever_writes() {
    let (mut bench, mut slot) = (Bench::new(), block_of(true, Semantics::NEWEST));
    assert_eq!(slot.read(register::DEVICE_FEATURES, 4) & 1 << 5, 1 << 5);
    let mut driver = bench.start(&mut slot, 1 << 5).remove(0);
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(zeroing(&mut bench, &mut slot, &mut driver, kind, &segment(0, 8, 0)), 1);
    }
    request(&mut bench, &mut driver, 1, 0, (DATA, 512, false));
    assert_eq!(complete(&mut bench, &mut slot), 1);
    assert_eq!(bench.disks[0].digest().unwrap(), 0);
}

#[test]
fn discards_came_with_the_second_semantics() {
    let offers = 1 << 13 | 1 << 14;
    for (semantics, offered) in [(Semantics::FIRST, 0), (Semantics::NEWEST, offers)] {
        let (mut bench, mut slot) = (Bench::new(), block_of(false, semantics));
        assert_eq!(slot.read(register::DEVICE_FEATURES, 4) & offers, offered);
        let limit = if offered == 0 { 0 } else { 1 << 17 };
        assert_eq!(slot.read(register::CONFIG + 36, 4), limit);
        assert_eq!(slot.read(register::CONFIG + 48, 4), limit);
        let mut driver = bench.start(&mut slot, 0).remove(0);
        let status = zeroing(&mut bench, &mut slot, &mut driver, DISCARD, &segment(0, 8, 0));
        assert_eq!(status, if offered == 0 { 2 } else { 0 });
    }
}

#[test]
fn a_failing_host_disk_stops_the_machine() {
    struct Failing;
    impl crate::disk::BlockStore for Failing {
        fn len_sectors(&self) -> u64 {
            128
        }
        fn base_hash(&self) -> [u8; 32] {
            [0; 32]
        }
        fn read(&mut self, _: u64, _: &mut [u8]) -> std::io::Result<()> {
            Err(std::io::Error::other("medium error"))
        }
        fn write(&mut self, _: u64, _: &[u8]) -> std::io::Result<()> {
            Ok(())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
        fn revert(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (mut bench, mut slot) = (Bench::new(), block());
    bench.disks = vec![Disk::new(Box::new(Failing)).unwrap()];
    let mut driver = bench.start(&mut slot, 0).remove(0);
    request(&mut bench, &mut driver, 0, 0, (DATA, 512, true));
    complete(&mut bench, &mut slot);
    assert_eq!(bench.host_fault, Some(HostFault { part: HostPart::Disk(0), message: "medium error".into() }));
}

#[test]
fn entropy_fills_buffers() {
    let (mut bench, mut slot) = (Bench::new(), Slot::new(Device::Entropy));
    let mut driver = bench.start(&mut slot, 0).remove(0);
    driver.post(&mut bench.ram, &[(DATA, 64, true)]);
    bench.write(&mut slot, register::QUEUE_NOTIFY, 0);
    assert_eq!(driver.collect(&bench.ram), [(0, 64)]);
    assert_ne!(bench.ram.slice(DATA, 64).unwrap(), [0; 64]);
}

#[test]
fn a_broken_ring_needs_a_reset_and_gets_one() {
    let (mut bench, mut slot) = (Bench::new(), net());
    let mut drivers = bench.start(&mut slot, 0);
    drivers[1].post(&mut bench.ram, &[(0x10, 100, false)]);
    bench.write(&mut slot, register::QUEUE_NOTIFY, 1);
    assert_eq!(slot.read(register::STATUS, 4), 0x4f);
    assert_eq!(slot.read(register::INTERRUPT_STATUS, 4), 2);
    bench.receive(&mut slot, &[0; 60]);
    bench.write(&mut slot, register::STATUS, 0);
    assert_eq!(slot.read(register::STATUS, 4), 0);
    assert!(!slot.line());
    bench.start(&mut slot, 0);
}

/// A small generator, so that a failing seed is the whole story.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[test]
fn a_hostile_guest_meets_no_panic_and_the_same_answers_twice() {
    for seed in 0..300 {
        assert_eq!(hostile(seed), hostile(seed), "seed {seed}");
    }
}

/// Random register writes and ring contents. Returns a digest of all that can be seen.
fn hostile(seed: u64) -> (u128, u64) {
    let mut dice = Dice(seed);
    let mut bench = Bench::new();
    let mut slots = [net(), block(), Slot::new(Device::Entropy)];
    let mut seen = 0u64;
    for slot in &mut slots {
        if dice.roll(4) != 0 {
            bench.start(slot, dice.roll(2) << 29 | dice.roll(2) << 28);
        }
    }
    for _ in 0..400 {
        let slot = &mut slots[dice.roll(3) as usize];
        match dice.roll(8) {
            0 => bench.with(|e| slot.write(dice.roll(0x110), 1 << dice.roll(4), dice.roll(1 << 33), e)),
            1 => {
                let offset = register::DEVICE_FEATURES_SELECT + 4 * dice.roll(40);
                let value = [0, 1, 3, 15, 16, 256, 0x8000_0000, u32::MAX][dice.roll(8) as usize];
                bench.write(slot, offset, value);
            }
            2 => seen = seen.rotate_left(5) ^ slot.read(dice.roll(0x120), 1 << dice.roll(4)),
            3 => bench.receive(slot, &vec![9; 10 + dice.roll(3000) as usize]),
            4 => {
                bench.now.time_ns += dice.roll(100_000);
                bench.with(|e| slot.settle(e));
            }
            _ => hostile_ring(&mut dice, &mut bench, slot),
        }
    }
    bench.outputs.take();
    assert_eq!(bench.host_fault, None);
    (bench.ram.digest(), seen)
}

/// Descriptors that are sometimes right, and a notification.
fn hostile_ring(dice: &mut Dice, bench: &mut Bench, slot: &mut Slot) {
    let queue = dice.roll(3);
    let base = RAM_BASE + 0x1_0000 * queue;
    for index in 0..4 {
        let address = match dice.roll(6) {
            0 => dice.roll(u64::MAX),
            1 => base + dice.roll(0x4000),
            2 => RAM_BASE + (1 << 20) - dice.roll(64),
            _ => DATA + dice.roll(0x1000),
        };
        let len = if dice.roll(8) == 0 { u64::from(u32::MAX) } else { dice.roll(600) };
        let sides = if dice.roll(4) == 0 { 8 } else { 4 };
        let flags = dice.roll(sides);
        let word = len | flags << 32 | dice.roll(5) << 48;
        bench.ram.write(base + 16 * index, &address.to_le_bytes()).unwrap();
        bench.ram.write(base + 16 * index + 8, &word.to_le_bytes()).unwrap();
    }
    let available = bench.ram.slice(base + 0x2002, 2).unwrap();
    let step = if dice.roll(20) == 0 { 1000 } else { dice.roll(4) as u16 };
    let next = u16::from_le_bytes([available[0], available[1]]).wrapping_add(step);
    bench.ram.write(base + 0x2002, &next.to_le_bytes()).unwrap();
    bench.ram.write(base + 0x2004 + 2 * dice.roll(16), &(dice.roll(5) as u16).to_le_bytes()).unwrap();
    bench.write(slot, register::QUEUE_NOTIFY, queue as u32);
}
