//! Physical memory protection: 16 entries, OFF / TOR / NA4 / NAPOT, with locks.

use serde::{Deserialize, Serialize};

use super::csr::Privilege;
use super::mmu::Access;
use crate::ram::PAGE_BYTES;

/// Number of entries.
pub const PMP_ENTRIES: usize = 16;

const READ: u8 = 1 << 0;
const WRITE: u8 = 1 << 1;
const EXECUTE: u8 = 1 << 2;
const MODE_SHIFT: u32 = 3;
const MODE_MASK: u8 = 3;
const MODE_OFF: u8 = 0;
const MODE_TOR: u8 = 1;
const MODE_NA4: u8 = 2;
const LOCKED: u8 = 1 << 7;
/// NAPOT with all rights.
const OPEN: u8 = READ | WRITE | EXECUTE | MODE_MASK << MODE_SHIFT;
/// Bits 5 and 6 are hardwired to zero.
const CONFIG_MASK: u8 = READ | WRITE | EXECUTE | MODE_MASK << MODE_SHIFT | LOCKED;
/// `pmpaddr` holds bits 55 to 2 of an address.
const ADDRESS_MASK: u64 = (1 << 54) - 1;

/// The `pmpcfg` and `pmpaddr` registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Pmp {
    config: [u8; PMP_ENTRIES],
    address: [u64; PMP_ENTRIES],
}

impl Pmp {
    /// One entry that lets S- and U-mode access everything, as firmware leaves it.
    pub fn open() -> Pmp {
        let mut pmp = Pmp::default();
        pmp.config[0] = OPEN;
        pmp.address[0] = ADDRESS_MASK;
        pmp
    }

    /// Whether the first entry allows everything to everyone, as it does in nearly every machine.
    #[inline]
    fn is_open(&self) -> bool {
        self.address[0] == ADDRESS_MASK && self.config[0] == OPEN
    }

    /// The same registers with the bits that are hardwired to zero cleared: what a checkpoint
    /// brings need not be what a hart wrote.
    pub(super) fn legalized(mut self) -> Pmp {
        self.config.iter_mut().for_each(|config| *config &= CONFIG_MASK);
        self.address.iter_mut().for_each(|address| *address &= ADDRESS_MASK);
        self
    }

    /// Eight configurations from `first` on, as `pmpcfg` has them.
    pub fn config(&self, first: usize) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|at| self.config[first + at]))
    }

    /// Writes eight configurations from `first` on.
    pub fn set_config(&mut self, first: usize, value: u64) {
        for (config, new) in self.config[first..first + 8].iter_mut().zip(value.to_le_bytes()) {
            let reserved = new & (READ | WRITE) == WRITE;
            if *config & LOCKED == 0 && !reserved {
                *config = new & CONFIG_MASK;
            }
        }
    }

    /// `pmpaddr` of an entry.
    pub fn address(&self, entry: usize) -> u64 {
        self.address[entry]
    }

    /// Writes `pmpaddr` of an entry, unless it or the range that ends above it is locked.
    pub fn set_address(&mut self, entry: usize, value: u64) {
        let next = self.config.get(entry + 1).copied().unwrap_or(0);
        let locked_above = next & LOCKED != 0 && mode(next) == MODE_TOR;
        if self.config[entry] & LOCKED == 0 && !locked_above {
            self.address[entry] = value & ADDRESS_MASK;
        }
    }

    /// Whether an access may be made. The lowest entry that matches any byte decides, and must
    /// match all.
    pub(super) fn allows(&self, start: u64, len: u64, access: Access, mode: Privilege) -> bool {
        if self.is_open() {
            return true;
        }
        let end = start + len;
        for entry in 0..PMP_ENTRIES {
            let Some((low, high)) = self.range(entry) else { continue };
            if end <= low || start >= high {
                continue;
            }
            let config = self.config[entry];
            if mode == Privilege::Machine && config & LOCKED == 0 {
                return start >= low && end <= high;
            }
            let wanted = match access {
                Access::Fetch => EXECUTE,
                Access::Load => READ,
                Access::Store => WRITE,
            };
            return start >= low && end <= high && config & wanted != 0;
        }
        mode == Privilege::Machine
    }

    /// Whether one answer holds for the whole page at `page`.
    pub(super) fn is_uniform(&self, page: u64) -> bool {
        if self.is_open() {
            return true;
        }
        let end = page + PAGE_BYTES as u64;
        for entry in 0..PMP_ENTRIES {
            let Some((low, high)) = self.range(entry) else { continue };
            if low <= page && end <= high {
                return true;
            }
            if end > low && page < high {
                return false;
            }
        }
        true
    }

    /// First address of an entry's range and first behind it; `None` when it is off or empty.
    fn range(&self, entry: usize) -> Option<(u64, u64)> {
        let address = self.address[entry];
        let (low, high) = match mode(self.config[entry]) {
            MODE_OFF => return None,
            MODE_TOR => (if entry == 0 { 0 } else { self.address[entry - 1] << 2 }, address << 2),
            MODE_NA4 => (address << 2, (address << 2) + 4),
            _ => {
                let size_shift = address.trailing_ones() + 3;
                if size_shift >= 56 {
                    (0, 1 << 56)
                } else {
                    let low = (address << 2) >> size_shift << size_shift;
                    (low, low + (1 << size_shift))
                }
            }
        };
        (low < high).then_some((low, high))
    }
}

fn mode(config: u8) -> u8 {
    config >> MODE_SHIFT & MODE_MASK
}
