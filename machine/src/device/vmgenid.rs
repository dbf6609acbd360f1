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

/// The identifier. Reading any of it lowers the interrupt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmGenId {
    id: [u8; ID_BYTES],
    pending: bool,
}

impl VmGenId {
    /// Draws the identifier of a machine that is yet to boot: nobody is told.
    pub fn draw(&mut self, pool: &mut EntropyPool) {
        pool.fill(&mut self.id);
    }

    /// A new generation begins.
    pub fn renew(&mut self, pool: &mut EntropyPool) {
        self.draw(pool);
        self.pending = true;
    }

    /// A reset: who boots then reads the identifier anyway.
    pub fn reset(&mut self) {
        self.pending = false;
    }

    /// Level of the interrupt wire.
    pub fn line(&self) -> bool {
        self.pending
    }

    /// Reads 1 to 8 bytes; what lies behind the identifier reads as 0.
    pub fn read(&mut self, offset: u64, size: u8) -> u64 {
        let mut value = [0; 8];
        let id = usize::try_from(offset).ok().and_then(|offset| self.id.get(offset..)).unwrap_or_default();
        let count = id.len().min(size.into()).min(value.len());
        value[..count].copy_from_slice(&id[..count]);
        self.pending &= count == 0;
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
        let first = [device.read(0, 8), device.read(8, 8)];
        pool.seed(b"restore");
        device.renew(&mut pool);
        assert!(device.line());
        assert_eq!(device.read(16, 8), 0);
        assert_eq!(device.read(u64::MAX, 4), 0);
        assert!(device.line(), "nothing of the identifier was read");
        let second = [device.read(0, 8), device.read(8, 8)];
        assert!(!device.line());
        assert!(first[0] != second[0] && first[1] != second[1]);
        assert_eq!(device.read(3, 1), second[0] >> 24 & 0xff);
        assert_eq!(device.read(12, 8), second[1] >> 32, "the rest is 0");
    }
}
