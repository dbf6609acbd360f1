//! The MMIO transport (virtio 1.2, section 4.2), version 2.
//!
//! ```text
//!            status := ... DRIVER_OK                   malformed ring
//!   reset ----------------------------------> running ---------------> needs reset
//!     ^                                          |                          |
//!     +------------------- status := 0 ----------+--------------------------+
//! ```
//!
//! Only a running device serves its queues.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::block::{self, Block};
use super::net::{self, Net};
use super::queue::{Area, Broken, MAX_SIZE, Queue};
use super::{Environment, entropy};

/// Bytes of a slot's register file.
pub const LEN_BYTES: u64 = 0x1000;

/// VIRTIO_F_INDIRECT_DESC.
const FEATURE_INDIRECT: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
const FEATURE_EVENT_INDEX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1.
const FEATURE_VERSION_1: u64 = 1 << 32;

const STATUS_DRIVER_OK: u8 = 4;
const STATUS_FEATURES_OK: u8 = 8;
const STATUS_NEEDS_RESET: u8 = 0x40;

const INTERRUPT_USED: u32 = 1;
const INTERRUPT_CONFIG: u32 = 2;

const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const VENDOR: u32 = 0x554d_4551;

mod register {
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SELECT: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x024;
    pub const QUEUE_SELECT: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACKNOWLEDGE: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESCRIPTORS: u64 = 0x080;
    pub const QUEUE_AVAILABLE: u64 = 0x090;
    pub const QUEUE_USED: u64 = 0x0a0;
    pub const SHARED_MEMORY_LEN: std::ops::RangeInclusive<u64> = 0x0b0..=0x0bf;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// What sits in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Device {
    /// A network device.
    Net(Net),
    /// A block device.
    Block(Block),
    /// The entropy device.
    Entropy,
}

impl Device {
    fn id(&self) -> u32 {
        match self {
            Device::Net(_) => 1,
            Device::Block(_) => 2,
            Device::Entropy => 4,
        }
    }

    fn features(&self) -> u64 {
        let own = match self {
            Device::Net(_) => net::FEATURES,
            Device::Block(block) => block.features(),
            Device::Entropy => 0,
        };
        own | FEATURE_INDIRECT | FEATURE_EVENT_INDEX | FEATURE_VERSION_1
    }

    /// How many queues it has.
    pub fn queues(&self) -> usize {
        match self {
            Device::Net(_) => net::QUEUES,
            Device::Block(_) => block::QUEUES,
            Device::Entropy => 1,
        }
    }

    fn config_byte(&self, offset: u64) -> u8 {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let byte = match self {
            Device::Net(net) => net.config().get(offset).copied(),
            Device::Block(block) => block.config().get(offset).copied(),
            Device::Entropy => None,
        };
        byte.unwrap_or(0)
    }

    fn reset(&mut self) {
        match self {
            Device::Net(net) => net.reset(),
            Device::Block(block) => block.reset(),
            Device::Entropy => {}
        }
    }
}

/// A slot with a device in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    device: Device,
    status: u8,
    interrupt_status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    config_generation: u32,
    queues: Vec<Queue>,
}

impl Slot {
    /// A slot with `device` in it, as at power-on.
    pub fn new(device: Device) -> Slot {
        let queues = vec![Queue::default(); device.queues()];
        Slot {
            device,
            status: 0,
            interrupt_status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            config_generation: 0,
            queues,
        }
    }

    /// Whether a slot that was as `fresh` at power-on can be in this state.
    pub fn fits(&self, fresh: &Slot) -> bool {
        let same_device = match (&self.device, &fresh.device) {
            (Device::Net(net), Device::Net(fresh)) => net.fits(fresh),
            (Device::Block(block), Device::Block(fresh)) => block.fits(fresh),
            (Device::Entropy, Device::Entropy) => true,
            _ => false,
        };
        same_device && self.queues.len() == fresh.queues.len() && self.queues.iter().all(Queue::is_sound)
    }

    /// Level of the interrupt wire.
    pub fn line(&self) -> bool {
        self.interrupt_status != 0
    }

    /// When the device next does something by itself.
    pub fn deadline_ns(&self) -> Option<u64> {
        match &self.device {
            Device::Block(block) if self.is_running() => block.deadline_ns(),
            _ => None,
        }
    }

    /// Does what the device does by itself at this time.
    pub fn settle(&mut self, environment: &mut Environment<'_>) {
        if self.is_running()
            && let Device::Block(block) = &mut self.device
        {
            let worked = block.settle(&mut self.queues[0], environment);
            self.conclude(0, worked, environment);
        }
    }

    /// A frame arrives, if this is network device `port`. Without a running driver it is
    /// dropped.
    pub fn receive(&mut self, port: u8, frame: &Bytes, environment: &mut Environment<'_>) {
        let running = self.is_running();
        if let Device::Net(net) = &mut self.device
            && net.port() == port
            && running
        {
            net.receive(frame);
            let worked = net.deliver(&mut self.queues[0], self.driver_features, environment);
            self.conclude(0, worked, environment);
        }
    }

    /// Asks the guest to announce itself, if this is a network device.
    pub fn announce(&mut self) {
        let running = self.is_running();
        if let Device::Net(net) = &mut self.device
            && running
            && net.announce(self.driver_features)
        {
            self.config_changed();
        }
    }

    /// Reads a register: 4 bytes, aligned; configuration space in any size.
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        if let Some(first) = offset.checked_sub(register::CONFIG) {
            let byte = |index| u64::from(self.device.config_byte(first + index)) << (8 * index);
            return (0..u64::from(size)).map(byte).sum();
        }
        if size != 4 { 0 } else { self.read_register(offset).into() }
    }

    fn read_register(&self, offset: u64) -> u32 {
        let queue = self.queues.get(self.queue_select as usize);
        match offset {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.device.id(),
            register::VENDOR => VENDOR,
            register::DEVICE_FEATURES => half(self.device.features(), self.device_features_select),
            register::QUEUE_SIZE_MAX => queue.map_or(0, |_| MAX_SIZE.into()),
            register::QUEUE_READY => queue.is_some_and(Queue::is_ready).into(),
            register::INTERRUPT_STATUS => self.interrupt_status,
            register::STATUS => self.status.into(),
            // No shared memory: its length reads as all ones.
            offset if register::SHARED_MEMORY_LEN.contains(&offset) => u32::MAX,
            register::CONFIG_GENERATION => self.config_generation,
            _ => 0,
        }
    }

    /// Writes a register: 4 bytes, aligned. Other accesses are ignored; so is the
    /// configuration space, in which nothing can be written.
    pub fn write(&mut self, offset: u64, size: u8, value: u64, environment: &mut Environment<'_>) {
        if size != 4 {
            return;
        }
        let value = value as u32;
        match offset {
            register::DEVICE_FEATURES_SELECT => self.device_features_select = value,
            register::DRIVER_FEATURES_SELECT => self.driver_features_select = value,
            register::DRIVER_FEATURES => self.write_features(value),
            register::QUEUE_SELECT => self.queue_select = value,
            register::QUEUE_NOTIFY => self.notify(value, environment),
            register::INTERRUPT_ACKNOWLEDGE => self.interrupt_status &= !value,
            register::STATUS => self.write_status(value as u8),
            _ => self.write_queue(offset, value, environment),
        }
    }

    fn write_features(&mut self, value: u32) {
        // After FEATURES_OK the choice stands.
        if self.status & STATUS_FEATURES_OK == 0 {
            let shift = match self.driver_features_select {
                0 => 0,
                1 => 32,
                _ => return,
            };
            self.driver_features &= !(0xffff_ffff << shift);
            self.driver_features |= u64::from(value) << shift;
        }
    }

    fn write_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        let acceptable = self.driver_features & !self.device.features() == 0
            && self.driver_features & FEATURE_VERSION_1 != 0;
        let refused = if acceptable { 0 } else { STATUS_FEATURES_OK | STATUS_DRIVER_OK };
        // Bits are only ever added, until a reset.
        self.status |= value & !STATUS_NEEDS_RESET & !refused;
    }

    fn write_queue(&mut self, offset: u64, value: u32, environment: &mut Environment<'_>) {
        let Some(queue) = self.queues.get_mut(self.queue_select as usize) else { return };
        let (area, high) = (offset & !7, offset & 4 != 0);
        match offset {
            register::QUEUE_SIZE => queue.set_size(value),
            register::QUEUE_READY if value & 1 == 0 => queue.reset(),
            register::QUEUE_READY => {
                let worked = queue.make_ready(environment.ram);
                self.break_on_error(worked);
            }
            _ if !offset.is_multiple_of(4) => {}
            _ if area == register::QUEUE_DESCRIPTORS => queue.set_address(Area::Descriptors, high, value),
            _ if area == register::QUEUE_AVAILABLE => queue.set_address(Area::Available, high, value),
            _ if area == register::QUEUE_USED => queue.set_address(Area::Used, high, value),
            _ => {}
        }
    }

    fn notify(&mut self, index: u32, environment: &mut Environment<'_>) {
        let index = index as usize;
        if !self.is_running() || index >= self.queues.len() {
            return;
        }
        let queue = &mut self.queues[index];
        let worked = match &mut self.device {
            Device::Net(net) => net.serve(index, queue, self.driver_features, environment),
            Device::Block(block) => block.serve(queue, environment),
            Device::Entropy => entropy::serve(queue, environment),
        };
        self.conclude(index, worked, environment);
    }

    /// After work on a queue: asks for the next notification, and interrupts.
    fn conclude(&mut self, index: usize, worked: Result<(), Broken>, environment: &mut Environment<'_>) {
        let event_index = self.driver_features & FEATURE_EVENT_INDEX != 0;
        let queue = &mut self.queues[index];
        let concluded = worked.and_then(|()| {
            queue.ask_notification(environment.ram, event_index)?;
            queue.wants_interrupt(environment.ram, event_index)
        });
        if concluded == Ok(true) {
            self.interrupt_status |= INTERRUPT_USED;
        }
        self.break_on_error(concluded.map(|_| ()));
    }

    fn break_on_error(&mut self, worked: Result<(), Broken>) {
        if worked.is_err() {
            self.status |= STATUS_NEEDS_RESET;
            self.config_changed();
        }
    }

    fn config_changed(&mut self) {
        self.config_generation = self.config_generation.wrapping_add(1);
        if self.status & STATUS_DRIVER_OK != 0 {
            self.interrupt_status |= INTERRUPT_CONFIG;
        }
    }

    fn is_running(&self) -> bool {
        self.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_DRIVER_OK
    }

    /// Back to the state of power-on.
    pub fn reset(&mut self) {
        self.device.reset();
        let queues = vec![Queue::default(); self.queues.len()];
        let config_generation = self.config_generation;
        let device = std::mem::replace(&mut self.device, Device::Entropy);
        *self = Slot { queues, config_generation, ..Slot::new(device) };
    }
}

/// Reads a register of a slot without a device.
pub fn read_empty(offset: u64, size: u8) -> u64 {
    let value = match offset {
        _ if size != 4 => 0,
        register::MAGIC => MAGIC,
        register::VERSION => VERSION,
        register::VENDOR => VENDOR,
        _ => 0,
    };
    value.into()
}

fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
