//! The ACLINT (SiFive CLINT layout): software interrupts and machine timers.

use serde::{Deserialize, Serialize};

use crate::config::MAX_HARTS;

/// Bytes of its register file.
pub const LEN_BYTES: u64 = 0x1_0000;

const MTIMECMP: u64 = 0x4000;
const MTIME: u64 = 0xbff8;

/// Register file of the ACLINT. `mtime` cannot be written: guest time is counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aclint {
    msip: [bool; MAX_HARTS],
    mtimecmp: [u64; MAX_HARTS],
}

impl Default for Aclint {
    fn default() -> Aclint {
        Aclint { msip: [false; MAX_HARTS], mtimecmp: [u64::MAX; MAX_HARTS] }
    }
}

impl Aclint {
    /// Whether `hart` has a software interrupt.
    pub fn msip(&self, hart: usize) -> bool {
        self.msip[hart]
    }

    /// The `time` at which `hart` has a timer interrupt.
    pub fn mtimecmp(&self, hart: usize) -> u64 {
        self.mtimecmp[hart]
    }

    /// Reads 4 or 8 bytes; anything else, and reserved registers, read as 0.
    pub fn read(&self, offset: u64, size: u8, ticks: u64) -> u64 {
        let (register, shift) = (offset & !7, (offset & 4) * 8);
        let wide = match register {
            _ if !aligned(offset, size) => 0,
            0..MTIMECMP => return self.hart(offset, 0, 4).map_or(0, |hart| self.msip[hart].into()),
            MTIMECMP..MTIME => self.hart(register, MTIMECMP, 8).map_or(0, |hart| self.mtimecmp[hart]),
            MTIME => ticks,
            _ => 0,
        };
        if size == 8 { wide } else { wide >> shift & 0xffff_ffff }
    }

    /// Writes 4 or 8 bytes; anything else is ignored.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) {
        if !aligned(offset, size) {
            return;
        }
        if offset < MTIMECMP {
            if let Some(hart) = self.hart(offset, 0, 4) {
                self.msip[hart] = value & 1 != 0;
            }
        } else if let Some(hart) = self.hart(offset & !7, MTIMECMP, 8) {
            let before = self.mtimecmp[hart];
            self.mtimecmp[hart] = match (size, offset & 4) {
                (8, _) => value,
                (_, 0) => before & !0xffff_ffff | value & 0xffff_ffff,
                _ => before & 0xffff_ffff | value << 32,
            };
        }
    }

    fn hart(&self, offset: u64, first: u64, stride: u64) -> Option<usize> {
        let hart = (offset.checked_sub(first)? / stride) as usize;
        (hart < MAX_HARTS).then_some(hart)
    }
}

fn aligned(offset: u64, size: u8) -> bool {
    (size == 4 || size == 8) && offset.is_multiple_of(u64::from(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_read_back_in_both_widths() {
        let mut aclint = Aclint::default();
        aclint.write(4, 4, 1);
        assert!(aclint.msip(1) && !aclint.msip(0));
        assert_eq!(aclint.read(4, 4, 0), 1);
        aclint.write(MTIMECMP + 8, 8, 0x1_2345_6789);
        assert_eq!(aclint.read(MTIMECMP + 12, 4, 0), 1);
        aclint.write(MTIMECMP + 12, 4, 7);
        assert_eq!(aclint.mtimecmp(1), 0x7_2345_6789);
        assert_eq!(aclint.read(MTIME, 8, 0x5_0000_0001), 0x5_0000_0001);
        assert_eq!(aclint.read(MTIME + 4, 4, 0x5_0000_0001), 5);
    }

    #[test]
    fn odd_accesses_do_nothing() {
        let mut aclint = Aclint::default();
        for offset in 0..LEN_BYTES {
            for size in [1, 2] {
                aclint.write(offset, size, u64::MAX);
                assert_eq!(aclint.read(offset, size, 99), 0);
            }
        }
        aclint.write(MTIME, 8, 5);
        assert_eq!(aclint, Aclint::default());
    }
}
