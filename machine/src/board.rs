//! Everything around the harts: memory, devices, the clock, and what connects them.

use bytes::Bytes;
use log_format::Moment;

use crate::boot::ToHost;
use crate::bus::{AccessFault, Bus};
use crate::clock::{Clock, ticks_to_ns};
use crate::config::{MachineConfig, VIRTIO_SLOTS};
use crate::device::aclint::{self, Aclint};
use crate::device::gpio::{self, Gpio};
use crate::device::plic::{self, Plic};
use crate::device::rtc::{self, Rtc};
use crate::device::syscon::{self, Request};
use crate::device::uart::{self, Uart};
use crate::device::virtio::block::Block;
use crate::device::virtio::entropy::EntropyPool;
use crate::device::virtio::mmio::{self, Device, Slot};
use crate::device::virtio::net::Net;
use crate::device::virtio::{Environment, HostFault};
use crate::device::vmgenid::{self, VmGenId};
use crate::disk::Disk;
use crate::map;
use crate::output::Outputs;
use crate::ram::{OutsideRam, RAM_BASE, Ram};
use crate::sbi::CONSOLE_CALL_BYTES;

const LINE_MACHINE_SOFTWARE: u64 = 1 << 3;
pub const LINE_MACHINE_TIMER: u64 = 1 << 7;
const LINE_SUPERVISOR_EXTERNAL: u64 = 1 << 9;
const LINE_MACHINE_EXTERNAL: u64 = 1 << 11;

/// The machine without its harts.
///
/// After every call that changes anything the board is *settled*: whatever was due by the
/// present moment has happened, and interrupt lines agree with the devices. So its state
/// depends on the moment, never on how execution came there.
pub struct Board {
    pub ram: Ram,
    pub clock: Clock,
    pub devices: Devices,
    pub outputs: Outputs,
    pub disks: Vec<Disk>,
    pub host_fault: Option<HostFault>,
    /// What the guest asked of the system controller, for the machine to do.
    pub request: Option<Request>,
    /// Where a bare-metal program writes to end; stores to that page come here.
    pub tohost: Option<ToHost>,
    /// A hart sent another one an interrupt, or waits for one: the next one's turn comes early.
    pub yielded: bool,
    has_other_harts: bool,
    /// icount at the last access or settling.
    icount: u64,
    /// Earliest of the devices' deadlines, as of the last settling or access.
    deadline_ns: Option<u64>,
    /// An access changed something that the machine must act upon.
    exit_wanted: bool,
}

/// The devices: all state of the board beside memory, disks, clock and outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices {
    pub aclint: Aclint,
    pub plic: Plic,
    pub uart: Uart,
    pub rtc: Rtc,
    pub gpio: Gpio,
    pub pool: EntropyPool,
    pub slots: Vec<Slot>,
    /// Not in the first version of the semantics.
    pub vmgenid: Option<VmGenId>,
}

impl Devices {
    /// The devices as at power-on: networks first, then disks, then entropy.
    pub fn new(config: &MachineConfig, disks: &[Disk]) -> Devices {
        let nets = (0..).zip(&config.nets).map(|(port, net)| Device::Net(Net::new(port, net.mac)));
        let semantics = config.semantics;
        let blocks = (0..).zip(config.disks.iter().zip(disks)).map(|(index, (config, disk))| {
            Device::Block(Block::new(index, disk.len_sectors(), config, semantics))
        });
        let entropy = config.entropy.then_some(Device::Entropy);
        Devices {
            aclint: Aclint::default(),
            plic: Plic::new(config.harts),
            uart: Uart::default(),
            rtc: Rtc::new(config.rtc_start_unix_ns),
            gpio: Gpio::default(),
            pool: EntropyPool::default(),
            slots: nets.chain(blocks).chain(entropy).map(Slot::new).collect(),
            vmgenid: config.semantics.has_vmgenid().then(VmGenId::default),
        }
    }

    /// Resets what a reset line resets: not the time of day, nor the entropy gathered.
    fn reset(&mut self, harts: usize) {
        self.aclint = Aclint::default();
        self.plic = Plic::new(harts);
        self.uart.reset();
        self.gpio = Gpio::default();
        self.slots.iter_mut().for_each(Slot::reset);
        self.vmgenid.iter_mut().for_each(VmGenId::reset);
    }
}

impl Board {
    /// A board as at power-on.
    pub fn new(config: &MachineConfig, ram: Ram, disks: Vec<Disk>) -> Board {
        let devices = Devices::new(config, &disks);
        Board {
            ram,
            clock: Clock::new(config.instruction_ps),
            devices,
            outputs: Outputs::default(),
            disks,
            host_fault: None,
            request: None,
            tohost: None,
            yielded: false,
            has_other_harts: config.harts > 1,
            icount: 0,
            deadline_ns: None,
            exit_wanted: false,
        }
    }

    /// The present moment, as of the last access or settling.
    pub fn now(&self) -> Moment {
        Moment { icount: self.icount, time_ns: self.clock.now_ns(self.icount) }
    }

    /// Lets happen what is due by `icount`.
    pub fn settle(&mut self, icount: u64) {
        self.icount = icount;
        self.exit_wanted = false;
        let now = self.now();
        self.deadline_ns = self.earliest_deadline_ns();
        if self.deadline_ns.is_some_and(|deadline_ns| deadline_ns <= now.time_ns) {
            self.outputs.settle(now);
            self.devices.rtc.settle(now.time_ns);
            self.devices.gpio.settle(now.time_ns);
            self.devices.vmgenid.iter_mut().for_each(|vmgenid| vmgenid.settle(now.time_ns));
            (0..self.devices.slots.len()).for_each(|slot| self.with_slot(slot, Slot::settle));
            self.devices.plic.set_level(map::RTC_INTERRUPT, self.devices.rtc.line());
            self.devices.plic.set_level(map::GPIO_INTERRUPT, self.devices.gpio.line());
            let vmgenid_line = self.devices.vmgenid.as_ref().is_some_and(VmGenId::line);
            self.devices.plic.set_level(map::VMGENID_INTERRUPT, vmgenid_line);
            self.deadline_ns = self.earliest_deadline_ns();
        }
    }

    /// When a device next does something by itself.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.deadline_ns
    }

    /// Guest time at which the machine timer of `hart` rings.
    pub fn machine_timer_ns(&self, hart: usize) -> u64 {
        ticks_to_ns(self.devices.aclint.mtimecmp(hart))
    }

    /// Everything is as after a reset, but for memory, time and entropy.
    pub fn reset(&mut self, harts: usize) {
        self.outputs.flush_console(self.now());
        self.devices.reset(harts);
        self.settle(self.icount);
    }

    /// A frame arrives at network `port`.
    pub fn receive_frame(&mut self, port: u8, frame: &Bytes) {
        for slot in 0..self.devices.slots.len() {
            self.with_slot(slot, |slot, environment| slot.receive(port, frame, environment));
        }
    }

    /// Bytes arrive at the serial port.
    pub fn receive_console(&mut self, bytes: &[u8]) {
        self.devices.uart.receive(bytes);
        self.devices.plic.set_level(map::UART_INTERRUPT, self.devices.uart.line());
    }

    /// Writes guest memory to the console, past the serial port.
    pub fn write_console(&mut self, address: u64, len: u64) {
        let now = self.now();
        let bytes = self.ram.slice(address, len as usize).unwrap_or_default();
        bytes.iter().for_each(|byte| self.outputs.console_byte(now, *byte));
    }

    /// Reads console input into guest memory, past the serial port. Returns how many bytes.
    pub fn read_console(&mut self, address: u64, len: u64) -> u64 {
        if self.ram.slice(address, len as usize).is_err() {
            return 0;
        }
        let bytes = self.devices.uart.take(len as usize);
        self.devices.plic.set_level(map::UART_INTERRUPT, self.devices.uart.line());
        self.ram.write(address, &bytes).expect("the range was checked");
        bytes.len() as u64
    }

    /// Mixes a seed into the entropy. For a machine that runs, a new generation begins: it may
    /// be a copy of one that runs elsewhere.
    pub fn seed(&mut self, seed: &[u8], is_running: bool) {
        let now_ns = self.now().time_ns;
        let Devices { pool, vmgenid, plic, .. } = &mut self.devices;
        pool.seed(seed);
        if let Some(vmgenid) = vmgenid {
            if is_running {
                vmgenid.renew(pool, now_ns);
            } else {
                vmgenid.draw(pool);
            }
            plic.set_level(map::VMGENID_INTERRUPT, vmgenid.line());
        }
    }

    /// Presses the power button.
    pub fn press_power_button(&mut self) {
        self.devices.gpio.press(self.now().time_ns);
        self.devices.plic.set_level(map::GPIO_INTERRUPT, self.devices.gpio.line());
    }

    /// Asks the guest to announce itself on all its networks.
    pub fn announce(&mut self) {
        (0..self.devices.slots.len()).for_each(|slot| self.with_slot(slot, |slot, _| slot.announce()));
    }

    /// Works on a slot, then passes its interrupt on.
    fn with_slot<T>(&mut self, index: usize, work: impl FnOnce(&mut Slot, &mut Environment<'_>) -> T) -> T {
        let now = self.now();
        let slot = &mut self.devices.slots[index];
        let result = work(
            slot,
            &mut Environment {
                ram: &mut self.ram,
                now,
                outputs: &mut self.outputs,
                pool: &mut self.devices.pool,
                disks: &mut self.disks,
                host_fault: &mut self.host_fault,
            },
        );
        self.devices.plic.set_level(map::VIRTIO_INTERRUPT + index as u32, slot.line());
        result
    }

    fn earliest_deadline_ns(&self) -> Option<u64> {
        let slots = self.devices.slots.iter().filter_map(Slot::deadline_ns);
        let rtc = self.devices.rtc.deadline_ns(self.now().time_ns);
        let vmgenid = self.devices.vmgenid.as_ref().and_then(VmGenId::deadline_ns);
        let devices = [rtc, self.devices.gpio.deadline_ns(), vmgenid];
        slots.chain(self.outputs.deadline_ns()).chain(devices.into_iter().flatten()).min()
    }

    /// After an access that may have changed more than a register.
    fn accessed(&mut self) {
        let deadline_ns = self.earliest_deadline_ns();
        self.exit_wanted |= deadline_ns != self.deadline_ns
            || self.outputs.has_fresh()
            || self.request.is_some()
            || self.host_fault.is_some();
        self.deadline_ns = deadline_ns;
    }

    fn write_aclint(&mut self, hart: usize, offset: u64, size: u8, value: u64) {
        let before = self.devices.aclint.clone();
        self.devices.aclint.write(offset, size, value);
        let after = &self.devices.aclint;
        if before != *after {
            // Deadlines changed, or another hart was woken, which then has its turn.
            let is_other = |other: &usize| *other != hart && !before.msip(*other) && after.msip(*other);
            self.yielded |= (0..crate::config::MAX_HARTS).any(|other| is_other(&other));
            self.exit_wanted = true;
        }
    }
}

// The host-target interface of a bare-metal program: `tohost` holds a device in its top byte, a
// command in the next, and a payload.
impl Board {
    /// A store to the page of `tohost`.
    fn write_watched(&mut self, icount: u64, address: u64, size: u8, value: u64) -> Result<(), AccessFault> {
        let bytes = value.to_le_bytes();
        let bytes = bytes.get(..usize::from(size)).ok_or(AccessFault)?;
        self.ram.write(address, bytes).map_err(|OutsideRam| AccessFault)?;
        self.icount = icount + 1;
        if let Some(places) = self.tohost.filter(|places| places.tohost & !7 == address & !7) {
            self.serve_tohost(places);
            self.accessed();
        }
        Ok(())
    }

    fn serve_tohost(&mut self, places: ToHost) {
        const CONSOLE_WRITE: u64 = 0x0101;
        let Ok(request) = self.read_u64(places.tohost) else { return };
        match (request >> 48, request & 0xffff_ffff_ffff) {
            (0, 0) => return,
            (0, code) if code & 1 != 0 => {
                self.request = self.request.or(Some(Request::PowerOff { code: (code >> 1) as u32 }));
                return;
            }
            (0, block) => self.serve_system_call(block),
            (CONSOLE_WRITE, character) => self.outputs.console_byte(self.now(), character as u8),
            _ => {}
        }
        let answer = (request & !0xffff_ffff_ffff | 1).to_le_bytes();
        // Places outside memory cannot be seen by the program, and need no answer.
        let _ = self.ram.write(places.tohost, &[0; 8]);
        let _ = places.fromhost.map(|place| self.ram.write(place, &answer));
    }

    /// The proxied `write` of the riscv-tests environment; other calls change nothing.
    fn serve_system_call(&mut self, block: u64) {
        const WRITE: u64 = 64;
        let words = [0, 16, 24].map(|offset| self.read_u64(block.saturating_add(offset)));
        if let [Ok(WRITE), Ok(address), Ok(len)] = words {
            let len = len.min(CONSOLE_CALL_BYTES);
            self.write_console(address, len);
            // Just read from: it lies in memory.
            let _ = self.ram.write(block, &len.to_le_bytes());
        }
    }

    fn read_u64(&self, address: u64) -> Result<u64, OutsideRam> {
        let mut bytes = [0; 8];
        self.ram.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// A device and the offset into its registers.
#[derive(Debug, Clone, Copy)]
enum Target {
    Syscon(u64),
    Rtc(u64),
    Gpio(u64),
    VmGenId(u64),
    Aclint(u64),
    Plic(u64),
    Uart(u64),
    Slot(usize, u64),
}

fn decode(address: u64) -> Result<Target, AccessFault> {
    let within = |base: u64, len_bytes: u64| address.checked_sub(base).filter(|offset| *offset < len_bytes);
    if let Some(offset) = within(map::UART, uart::LEN_BYTES) {
        Ok(Target::Uart(offset))
    } else if let Some(offset) = within(map::VIRTIO, VIRTIO_SLOTS as u64 * mmio::LEN_BYTES) {
        Ok(Target::Slot((offset / mmio::LEN_BYTES) as usize, offset % mmio::LEN_BYTES))
    } else if let Some(offset) = within(map::PLIC, plic::LEN_BYTES) {
        Ok(Target::Plic(offset))
    } else if let Some(offset) = within(map::ACLINT, aclint::LEN_BYTES) {
        Ok(Target::Aclint(offset))
    } else if let Some(offset) = within(map::RTC, rtc::LEN_BYTES) {
        Ok(Target::Rtc(offset))
    } else if let Some(offset) = within(map::GPIO, gpio::LEN_BYTES) {
        Ok(Target::Gpio(offset))
    } else if let Some(offset) = within(map::VMGENID, vmgenid::LEN_BYTES) {
        Ok(Target::VmGenId(offset))
    } else if let Some(offset) = within(map::SYSCON, syscon::LEN_BYTES) {
        Ok(Target::Syscon(offset))
    } else {
        Err(AccessFault)
    }
}

impl Bus for Board {
    fn ram(&mut self) -> &mut Ram {
        &mut self.ram
    }

    fn mmio_read(&mut self, _hart: usize, icount: u64, address: u64, size: u8) -> Result<u64, AccessFault> {
        let target = decode(address)?;
        self.icount = icount + 1;
        let value = match target {
            Target::Uart(offset) => {
                let value = self.devices.uart.read(offset);
                self.devices.plic.set_level(map::UART_INTERRUPT, self.devices.uart.line());
                value
            }
            Target::Slot(slot, offset) => match self.devices.slots.get(slot) {
                Some(slot) => slot.read(offset, size),
                None => mmio::read_empty(offset, size),
            },
            Target::Plic(offset) => self.devices.plic.read(offset, size),
            Target::Aclint(offset) => self.devices.aclint.read(offset, size, self.clock.ticks(icount)),
            Target::Rtc(offset) => self.devices.rtc.read(offset, size, self.clock.now_ns(icount)),
            Target::Gpio(offset) => self.devices.gpio.read(offset, size),
            Target::VmGenId(offset) => {
                let vmgenid = self.devices.vmgenid.as_mut().ok_or(AccessFault)?;
                let value = vmgenid.read(offset, size, self.clock.now_ns(icount));
                self.devices.plic.set_level(map::VMGENID_INTERRUPT, vmgenid.line());
                value
            }
            Target::Syscon(_) => 0,
        };
        Ok(value)
    }

    fn mmio_write(
        &mut self,
        hart: usize,
        icount: u64,
        address: u64,
        size: u8,
        value: u64,
    ) -> Result<(), AccessFault> {
        if address >= RAM_BASE {
            return self.write_watched(icount, address, size, value);
        }
        let target = decode(address)?;
        // What the access does is seen once its instruction has retired: whoever stands at
        // the moment of an output stands behind the instruction that made it.
        self.icount = icount + 1;
        match target {
            Target::Uart(offset) => {
                if let Some(byte) = self.devices.uart.write(offset, value) {
                    self.outputs.console_byte(self.now(), byte);
                }
                self.devices.plic.set_level(map::UART_INTERRUPT, self.devices.uart.line());
                self.accessed();
            }
            Target::Slot(slot, offset) => {
                if slot < self.devices.slots.len() {
                    self.with_slot(slot, |slot, environment| slot.write(offset, size, value, environment));
                    self.accessed();
                }
            }
            Target::Plic(offset) => self.devices.plic.write(offset, size, value),
            Target::Aclint(offset) => self.write_aclint(hart, offset, size, value),
            Target::Rtc(offset) => {
                self.devices.rtc.write(offset, size, value, self.now().time_ns);
                self.devices.plic.set_level(map::RTC_INTERRUPT, self.devices.rtc.line());
                self.accessed();
            }
            Target::Gpio(offset) => {
                self.devices.gpio.write(offset, size, value);
                self.devices.plic.set_level(map::GPIO_INTERRUPT, self.devices.gpio.line());
            }
            // Read-only, where it is.
            Target::VmGenId(_) => self.devices.vmgenid.as_ref().map(drop).ok_or(AccessFault)?,
            Target::Syscon(offset) => {
                self.request = self.request.or(syscon::request(offset, size, value));
                self.accessed();
            }
        }
        Ok(())
    }

    fn time(&self, icount: u64) -> u64 {
        self.clock.ticks(icount)
    }

    fn interrupt_lines(&self, hart: usize) -> u64 {
        let Devices { aclint, plic, .. } = &self.devices;
        let timer = aclint.mtimecmp(hart) <= self.clock.ticks(self.icount);
        [
            (aclint.msip(hart), LINE_MACHINE_SOFTWARE),
            (timer, LINE_MACHINE_TIMER),
            (plic.line(2 * hart), LINE_MACHINE_EXTERNAL),
            (plic.line(2 * hart + 1), LINE_SUPERVISOR_EXTERNAL),
        ]
        .into_iter()
        .filter_map(|(high, line)| high.then_some(line))
        .sum()
    }

    fn pause(&mut self) -> bool {
        self.yielded |= self.has_other_harts;
        self.exit_wanted |= self.has_other_harts;
        self.has_other_harts
    }

    fn wants_exit(&self) -> bool {
        self.exit_wanted
    }
}
