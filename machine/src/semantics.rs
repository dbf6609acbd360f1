//! What each version of the machine's semantics has: old logs replay on new programs.
//!
//! Whatever changes what a guest sees asks here, and old versions keep what they had. A new
//! entry goes under the number that the next release takes; `docs/machine.md` lists them.

use log_format::SEMANTICS_VERSION;
use serde::{Deserialize, Serialize};

/// A version of the semantics, as logs and checkpoints carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Semantics(u32);

impl Semantics {
    /// The first version, of machines that say none.
    pub const FIRST: Semantics = Semantics(1);
    /// The newest one, of new machines.
    pub const NEWEST: Semantics = Semantics(SEMANTICS_VERSION);

    /// The version with this number, if this program knows it.
    pub fn new(version: u32) -> Option<Semantics> {
        (Semantics::FIRST.0..=Semantics::NEWEST.0).contains(&version).then_some(Semantics(version))
    }

    /// Its number.
    pub fn version(self) -> u32 {
        self.0
    }

    /// Whether block devices offer DISCARD and WRITE_ZEROES.
    pub(crate) fn has_discard(self) -> bool {
        self.0 >= 2
    }

    /// Whether `satp` may select Sv48 beside Sv39.
    pub(crate) fn has_sv48(self) -> bool {
        self.0 >= 2
    }

    /// Whether `czero.eqz` and `czero.nez` are instructions.
    pub(crate) fn has_zicond(self) -> bool {
        self.0 >= 2
    }

    /// Whether the page of a bare-metal program's `tohost` is ordinary memory but for `tohost` itself.
    pub(crate) fn watches_only_tohost(self) -> bool {
        self.0 >= 2
    }

    /// Whether protection is looked at for each instruction of a page that it divides, and not
    /// only where execution enters a run of instructions.
    pub(crate) fn protects_each_fetch(self) -> bool {
        self.0 >= 2
    }

    /// Whether protection is asked before accessed and dirty bits are set in a page table.
    pub(crate) fn protects_entry_updates(self) -> bool {
        self.0 >= 2
    }

    /// Whether the trigger CSRs exist, and say that there are no triggers.
    pub(crate) fn has_trigger_csrs(self) -> bool {
        self.0 >= 2
    }

    /// Whether a hart's reservation ends when another hart has its turn.
    pub(crate) fn turns_end_reservations(self) -> bool {
        self.0 >= 2
    }

    /// Whether `pause` ends the turn of a hart that is not alone.
    pub(crate) fn pauses_end_turns(self) -> bool {
        self.0 >= 3
    }

    /// Whether the board has a generation identifier, and entropy that comes while it runs begins
    /// a new generation.
    pub(crate) fn has_vmgenid(self) -> bool {
        self.0 >= 2
    }

    pub(crate) fn first() -> Semantics {
        Semantics::FIRST
    }

    pub(crate) fn is_first(&self) -> bool {
        *self == Semantics::FIRST
    }
}

impl Default for Semantics {
    fn default() -> Semantics {
        Semantics::NEWEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_versions_are_made() {
        assert_eq!(Semantics::new(1), Some(Semantics::FIRST));
        assert_eq!(Semantics::new(SEMANTICS_VERSION), Some(Semantics::NEWEST));
        assert_eq!(Semantics::new(0), None);
        assert_eq!(Semantics::new(SEMANTICS_VERSION + 1), None);
    }
}
