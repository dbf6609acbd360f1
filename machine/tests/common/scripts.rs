//! Bytes as scripts of what a hostile guest, image or checkpoint can do. The fuzz targets
//! make such bytes; a test here feeds some thousand from fixed seeds.

use bytes::Bytes;
use log_format::Moment;
use machine::boot::{BootPlan, is_bare};
use machine::device::aclint::Aclint;
use machine::device::gpio::Gpio;
use machine::device::plic::Plic;
use machine::device::rtc::Rtc;
use machine::device::uart::Uart;
use machine::device::virtio::block::Block;
use machine::device::virtio::entropy::EntropyPool;
use machine::device::virtio::mmio::{Device, Slot};
use machine::device::virtio::net::Net;
use machine::device::virtio::{Environment, HostFault};
use machine::disk::{Disk, MemDisk};
use machine::output::Outputs;
use machine::ram::{RAM_BASE, Ram};
use machine::{
    BootImages, BootKind, CheckpointExtent, DiskConfig, Exit, Machine, RiscvMachine, Semantics, Signature,
};

const PAGES: u64 = 64;
const RING_BYTES: u64 = 0x1_0000;

/// Reads a script from its front.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn number(&mut self, bytes: usize) -> u64 {
        let (taken, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        taken.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.number(4) % limit
    }

    fn size(&mut self) -> u8 {
        1 << (self.number(1) % 4)
    }
}

/// The devices of a board, driven by a script.
struct Board {
    ram: Ram,
    outputs: Outputs,
    pool: EntropyPool,
    disks: Vec<Disk>,
    host_fault: Option<HostFault>,
    now: Moment,
    slots: Vec<Slot>,
    plic: Plic,
    aclint: Aclint,
    uart: Uart,
    rtc: Rtc,
    gpio: Gpio,
    /// All that was read, mixed.
    seen: u64,
}

impl Board {
    fn new() -> Board {
        let disk = Disk::new(Box::new(MemDisk::zeroed(64 << 10))).expect("memory cannot fail");
        let disk_config = DiskConfig { serial: "serial".into(), read_only: false };
        let devices = [
            Device::Net(Net::new(0, [2, 0, 0, 0, 0, 1])),
            Device::Block(Block::new(0, 128, &disk_config, Semantics::NEWEST)),
            Device::Entropy,
        ];
        Board {
            ram: Ram::new(PAGES),
            outputs: Outputs::default(),
            pool: EntropyPool::default(),
            disks: vec![disk],
            host_fault: None,
            now: Moment::BOOT,
            slots: devices.into_iter().map(Slot::new).collect(),
            plic: Plic::new(2),
            aclint: Aclint::default(),
            uart: Uart::default(),
            rtc: Rtc::new(0),
            gpio: Gpio::default(),
            seen: 0,
        }
    }

    fn with_slot(&mut self, index: usize, work: impl FnOnce(&mut Slot, &mut Environment<'_>)) {
        let slot = &mut self.slots[index];
        let mut environment = Environment {
            ram: &mut self.ram,
            now: self.now,
            outputs: &mut self.outputs,
            pool: &mut self.pool,
            disks: &mut self.disks,
            host_fault: &mut self.host_fault,
        };
        work(slot, &mut environment);
        self.plic.set_level(1 + index as u32, slot.line());
    }

    fn write_slot(&mut self, index: usize, offset: u64, value: u64) {
        self.with_slot(index, |slot, environment| slot.write(offset, 4, value, environment));
    }

    /// Sets a device up as a driver does, its rings at fixed places.
    fn start(&mut self, index: usize, features: u64) {
        self.write_slot(index, 0x70, 3);
        for (select, half) in [(0, features & 0xffff_ffff), (1, 1)] {
            self.write_slot(index, 0x24, select);
            self.write_slot(index, 0x20, half);
        }
        self.write_slot(index, 0x70, 11);
        for queue in 0..3 {
            let base = RAM_BASE + RING_BYTES * queue;
            self.write_slot(index, 0x30, queue);
            self.write_slot(index, 0x38, 16);
            for (offset, address) in [(0x80, base), (0x90, base + 0x2000), (0xa0, base + 0x3000)] {
                self.write_slot(index, offset, address);
            }
            self.write_slot(index, 0x44, 1);
        }
        self.write_slot(index, 0x70, 15);
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.number(1) % 8 {
            0 => {
                let (index, offset, size) = (script.below(3) as usize, script.below(0x120), script.size());
                let value = script.number(4);
                self.with_slot(index, |slot, environment| slot.write(offset, size, value, environment));
            }
            1 => {
                let index = script.below(3) as usize;
                self.start(index, script.number(4));
            }
            2 => {
                let slot = &self.slots[script.below(3) as usize];
                self.saw(slot.read(script.below(0x120), script.size()));
            }
            3 => {
                let frame = Bytes::from(vec![script.number(1) as u8; script.number(2) as usize]);
                self.with_slot(0, |slot, environment| slot.receive(0, &frame, environment));
            }
            4 => self.pass(script.number(3)),
            5 => {
                // A piece of a ring or a buffer.
                let address = RAM_BASE + script.below(4 * RING_BYTES);
                for byte in 0..script.number(1) % 32 {
                    let value = script.number(1) as u8;
                    let _ = self.ram.write(address + byte, &[value]);
                }
            }
            6 => self.descriptor(script),
            _ => self.access_other(script),
        }
    }

    /// A descriptor that is sometimes right, made available, and a notification.
    fn descriptor(&mut self, script: &mut Script<'_>) {
        let queue = script.number(1) % 3;
        let base = RAM_BASE + RING_BYTES * queue;
        let index = script.number(1) % 16;
        let address = RAM_BASE + script.below(PAGES * 4096 + 64);
        let word = script.number(2) | (script.number(1) % 8) << 32 | (script.number(1) % 17) << 48;
        let entry = [address.to_le_bytes(), word.to_le_bytes()].concat();
        self.ram.write(base + 16 * index, &entry).expect("rings lie in memory");
        let mut next = [0; 2];
        self.ram.read(base + 0x2002, &mut next).expect("rings lie in memory");
        let next = u16::from_le_bytes(next);
        let place = base + 0x2004 + 2 * u64::from(next % 16);
        self.ram.write(place, &(index as u16).to_le_bytes()).expect("rings lie in memory");
        self.ram.write(base + 0x2002, &next.wrapping_add(1).to_le_bytes()).expect("rings lie in memory");
        self.write_slot(script.number(1) as usize % 3, 0x50, queue);
    }

    fn access_other(&mut self, script: &mut Script<'_>) {
        let (device, writes) = (script.number(1) % 5, script.number(1) & 1 != 0);
        let (offset, size, value) = (script.below(0x60_0000), script.size(), script.number(8));
        let now_ns = self.now.time_ns;
        match (device, writes) {
            (0, true) => self.plic.write(offset, size, value),
            (0, false) => self.seen ^= self.plic.read(offset, size),
            (1, true) => self.aclint.write(offset % 0x1_0000, size, value),
            (1, false) => self.seen ^= self.aclint.read(offset % 0x1_0000, size, now_ns / 100),
            (2, true) => drop(self.uart.write(offset % 16, value)),
            (2, false) => self.seen ^= self.uart.read(offset % 16),
            (3, true) => self.rtc.write(offset % 64, size, value, now_ns),
            (3, false) => self.seen ^= self.rtc.read(offset % 64, size, now_ns),
            (_, true) => self.gpio.write(offset % 64, size, value),
            (_, false) => self.seen ^= self.gpio.read(offset % 64, size),
        }
        (0..4).for_each(|context| self.saw(self.plic.line(context).into()));
    }

    fn pass(&mut self, delta_ns: u64) {
        self.now.time_ns += delta_ns;
        self.now.icount += 1;
        (0..3).for_each(|index| self.with_slot(index, Slot::settle));
        self.rtc.settle(self.now.time_ns);
        self.gpio.settle(self.now.time_ns);
        self.uart.receive(&delta_ns.to_le_bytes());
    }

    fn saw(&mut self, value: u64) {
        self.seen = self.seen.rotate_left(7) ^ value;
    }
}

/// What can be seen of devices after a script: the same each time.
pub fn devices(data: &[u8]) -> (u64, u128) {
    let mut board = Board::new();
    let mut script = Script(data);
    while !script.0.is_empty() {
        board.step(&mut script);
        assert!(board.outputs.take().len() <= 256, "one access sends what one queue holds, at most");
    }
    assert_eq!(board.host_fault, None);
    (board.seen, board.ram.digest())
}

/// Takes any bytes as an image; a plan that comes out can be loaded.
pub fn boot_image(data: &[u8]) {
    const MEMORY_BYTES: u64 = 4 << 20;
    let image = Bytes::copy_from_slice(data);
    // Symbols are read from whatever calls itself an ELF file.
    let _ = is_bare(data);
    if let Ok(signature) = Signature::find(data) {
        let _ = signature.text(&Ram::new(MEMORY_BYTES / 4096), 4);
    }
    for images in [
        BootImages::supervisor(image.clone(), Some(Bytes::from_static(b"initrd"))),
        BootImages::bare(image.clone()),
        BootImages { kind: BootKind::Firmware, firmware: Some(image.clone()), ..BootImages::bare(image) },
    ] {
        if let Ok(plan) = BootPlan::new(&images, MEMORY_BYTES) {
            plan.load(&mut Ram::new(MEMORY_BYTES / 4096), b"device tree").expect("the images are in memory");
        }
    }
}

/// Changes the state of a checkpoint of `machine` (three bytes a change: where and what) and
/// lets a machine take it: it refuses, or goes on without a panic. Returns whether it took it.
pub fn checkpoint_state(machine: &mut RiscvMachine, mut other: RiscvMachine, data: &[u8]) -> bool {
    let mut head = machine.begin_checkpoint(CheckpointExtent::Full).head;
    machine.cancel_checkpoint(CheckpointExtent::Full);
    let mut state = head.state.to_vec();
    for change in data.chunks_exact(3) {
        let position = usize::from(change[0]) | usize::from(change[1]) << 8;
        let len = state.len();
        state[position % len] = change[2];
    }
    head.state = state.into();
    if other.restore_begin(&head).is_err() {
        return false;
    }
    let until = other.moment().icount.saturating_add(3000);
    for _ in 0..10 {
        if let Exit::Idle { wake_ns } = other.run(until) {
            other.advance_idle(wake_ns.unwrap_or(u64::MAX));
        }
        other.take_outputs();
    }
    other.digest();
    true
}
