//! What a new primacy begins with: after a boot, and after a takeover.

use log_format::{ChainHash, Digest, Life, LoggedOutput, MachineIdentity, Moment, Position};

/// Where a primacy begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrimacyStart {
    /// The new term, where the machine stands, and how many batches lie before.
    pub from: Position,
    /// Chain hash of the log after those batches.
    pub chain: ChainHash,
    /// Events the machine took since boot.
    pub events_before: u64,
    /// Outputs since boot whose hashes lie in those batches.
    pub outputs_logged: u64,
    /// Outputs since boot that are known to have been released.
    pub outputs_released: u64,
    /// Outputs the machine made that are not known to have been released, oldest first. They
    /// are released again: a receiver copes with a duplicate, never with a gap.
    pub reissue: Vec<LoggedOutput>,
    /// Guest time minus this host's monotonic time, as the last primary kept it; `None` after
    /// a boot: guest time then starts from where the machine stands.
    pub clock_offset_ns: Option<i64>,
    /// Which life of this node the arbiter's record names in the new term, if it says one.
    pub life: Life,
}

impl PrimacyStart {
    /// A machine that was just switched on, in this term.
    pub fn boot(identity: &MachineIdentity, term: u64) -> Self {
        PrimacyStart {
            from: Position { term, moment: Moment::BOOT, sequence: 0 },
            chain: ChainHash::genesis(identity),
            events_before: 0,
            outputs_logged: 0,
            outputs_released: 0,
            reissue: Vec::new(),
            clock_offset_ns: None,
            life: Life::UNKNOWN,
        }
    }

    /// A machine that was just switched on, in this term, with disks that kept what was written
    /// in an earlier run, so that its digest is `digest`.
    ///
    /// What the disks keep takes the place of the log's first batch, which nobody has: no log
    /// leads here from the boot, so that every backup begins with a checkpoint.
    pub fn boot_with_kept_disks(identity: &MachineIdentity, digest: Digest, term: u64) -> Self {
        let from = Position { term, moment: Moment::BOOT, sequence: 1 };
        let ChainHash(genesis) = ChainHash::genesis(identity);
        let mut chain = genesis;
        chain.iter_mut().zip(digest.0).for_each(|(byte, other)| *byte ^= other);
        PrimacyStart { from, chain: ChainHash(chain), ..PrimacyStart::boot(identity, term) }
    }
}

/// A machine that goes live, and where its primacy begins.
#[derive(Debug)]
pub struct Handover<M> {
    /// The machine.
    pub machine: M,
    /// Where its primacy begins.
    pub start: PrimacyStart,
}
