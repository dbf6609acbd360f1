//! The generation of the machine: 16 bytes that change when a machine with this state may run
//! somewhere else too, and an interrupt that says so.
//!
//! The device tree calls it `microsoft,vmgenid`. Linux then mixes the new bytes into its random
//! numbers at once, before a program can draw the numbers that another copy draws too.

use serde::{Deserialize, Serialize};

use super::virtio::entropy::EntropyPool;

/// Bytes of its place in the memory map.
pub const LEN_BYTES: u64 = 0x1000;
/// Bytes of the identifier, at the beginning of it.
const ID_BYTES: usize = 16;

/// How long after a driver first read the identifier its interrupt may be raised. Linux's reads
/// it, asks for the interrupt, and only then can serve one: its kernel stops at an earlier one.
const DRIVER_START_NS: u64 = 100_000_000;

/// The identifier. Reading any of it lowers the interrupt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmGenId {
    id: [u8; ID_BYTES],
    pending: bool,
    /// Guest time from which on the interrupt may be raised: nobody can serve it before the
    /// identifier was read for the first time.
    #[serde(default)]
    ready_ns: Option<u64>,
    /// A generation that began before that is announced then.
    #[serde(default)]
    delayed: bool,
}

impl VmGenId {
    /// Draws the identifier of a machine that is yet to boot: nobody is told.
    pub fn draw(&mut self, pool: &mut EntropyPool) {
        pool.fill(&mut self.id);
    }

    /// A new generation begins. Who boots and has not read the identifier yet is not told.
    pub fn renew(&mut self, pool: &mut EntropyPool, now_ns: u64) {
        self.draw(pool);
        self.delayed = self.ready_ns.is_some();
        self.settle(now_ns);
    }

    /// A reset: who boots then reads the identifier anyway.
    pub fn reset(&mut self) {
        *self = VmGenId { id: self.id, ..VmGenId::default() };
    }

    /// Level of the interrupt wire.
    pub fn line(&self) -> bool {
        self.pending
    }

    /// Guest time at which a delayed interrupt is raised.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.ready_ns.filter(|_| self.delayed)
    }

    /// Raises a delayed interrupt if its time has come.
    pub fn settle(&mut self, now_ns: u64) {
        if self.deadline_ns().is_some_and(|ready_ns| ready_ns <= now_ns) {
            self.delayed = false;
            self.pending = true;
        }
    }

    /// Reads 1 to 8 bytes; what lies behind the identifier reads as 0.
    pub fn read(&mut self, offset: u64, size: u8, now_ns: u64) -> u64 {
        let mut value = [0; 8];
        let id = usize::try_from(offset).ok().and_then(|offset| self.id.get(offset..)).unwrap_or_default();
        let count = id.len().min(size.into()).min(value.len());
        value[..count].copy_from_slice(&id[..count]);
        if count > 0 {
            self.pending = false;
            self.ready_ns.get_or_insert(now_ns.saturating_add(DRIVER_START_NS));
        }
        u64::from_le_bytes(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_generation_has_another_identifier_and_says_so_until_it_is_read() {
        let mut pool = EntropyPool::default();
        let mut device = VmGenId::default();
        pool.seed(b"boot");
        device.draw(&mut pool);
        assert!(!device.line());
        let first = [device.read(0, 8, 5), device.read(8, 8, 6)];
        pool.seed(b"restore");
        device.renew(&mut pool, DRIVER_START_NS + 5);
        assert!(device.line());
        assert_eq!(device.read(16, 8, 0), 0);
        assert_eq!(device.read(u64::MAX, 4, 0), 0);
        assert!(device.line(), "nothing of the identifier was read");
        let second = [device.read(0, 8, 0), device.read(8, 8, 0)];
        assert!(!device.line());
        assert!(first[0] != second[0] && first[1] != second[1]);
        assert_eq!(device.read(3, 1, 0), second[0] >> 24 & 0xff);
        assert_eq!(device.read(12, 8, 0), second[1] >> 32, "the rest is 0");
    }

    #[test]
    fn a_driver_that_starts_is_not_interrupted() {
        let mut pool = EntropyPool::default();
        let mut device = VmGenId::default();
        device.renew(&mut pool, 10);
        assert!(!device.line() && device.deadline_ns().is_none(), "nobody has read it yet");
        device.read(0, 8, 20);
        device.renew(&mut pool, 30);
        let ready_ns = 20 + DRIVER_START_NS;
        assert!(!device.line() && device.deadline_ns() == Some(ready_ns));
        device.read(8, 8, 40);
        device.settle(ready_ns - 1);
        assert!(!device.line());
        device.settle(ready_ns);
        assert!(device.line() && device.deadline_ns().is_none());
        device.reset();
        device.renew(&mut pool, 2 * ready_ns);
        assert!(!device.line(), "after a reset, another driver starts");
    }
}
