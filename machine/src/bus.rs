//! What a hart sees beyond its own registers.

use crate::ram::Ram;

/// A guest-physical address at which nothing answers, or not in this way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessFault;

/// The rest of the machine, as seen by the hart that executes.
///
/// The hart passes its exact `icount` (instructions retired by the machine before the
/// present one) where time matters, so that time never depends on how execution was cut
/// into pieces.
pub trait Bus {
    /// Guest memory.
    fn ram(&mut self) -> &mut Ram;

    /// Reads `size` (1, 2, 4 or 8) bytes at a guest-physical address outside RAM.
    fn mmio_read(&mut self, hart: usize, icount: u64, address: u64, size: u8) -> Result<u64, AccessFault>;

    /// Writes `size` (1, 2, 4 or 8) bytes at a guest-physical address outside RAM.
    fn mmio_write(
        &mut self,
        hart: usize,
        icount: u64,
        address: u64,
        size: u8,
        value: u64,
    ) -> Result<(), AccessFault>;

    /// The 10 MHz `time` counter at `icount`.
    fn time(&self, icount: u64) -> u64;

    /// The bits of `mip` that devices drive for this hart: MSIP, MTIP (ACLINT), SEIP, MEIP
    /// (PLIC). Looked at when a hart starts to run and after each MMIO access. STIP is the
    /// hart's own affair under Sstc, SSIP is software's.
    fn interrupt_lines(&self, hart: usize) -> u64;

    /// The hart that executes waits for another one. Returns whether its turn ends with that;
    /// [`Bus::wants_exit`] then says so, too.
    fn pause(&mut self) -> bool {
        false
    }

    /// Whether the hart must return to the board after this access, because an output was
    /// made, a deadline changed, or another hart was woken. Looked at after MMIO accesses.
    fn wants_exit(&self) -> bool;
}
