//! A primary's hold on its term, where the arbiter has leases.
//!
//! A lock file has none: a primary that loses it notices at its next step, and cannot release
//! what its backups do not acknowledge. A lease adds a second bolt, in time: nobody but a
//! registered backup can be made the primary while it lives, and the primary releases nothing
//! once it may be over. So a primary without a backup is safe from `--force` elsewhere, too.

use crate::arbitration::Record;

/// What a [`Guard`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuardNews {
    /// The lease is good until this moment of [`crate::clock::monotonic_ns`]; never earlier
    /// than told before.
    Lease {
        /// The moment.
        valid_until_ns: u64,
    },
    /// The record, when it was seen to have changed. The first one is told at the start.
    Record(Record),
    /// The lease could not be renewed, for the first time since it could. It stays good until
    /// the moment that was told last.
    NotRenewed {
        /// Why, with the way out.
        text: String,
    },
}

/// Where a [`Guard`] brings its news. Called from a thread of the arbiter: be quick.
pub type Tell = Box<dyn Fn(GuardNews) + Send + Sync>;

/// A primary's lease on its term. It is kept alive until this is dropped.
pub trait Guard: Send + Sync {
    /// Until when the lease is provably good, in [`crate::clock::monotonic_ns`]; 0 before it
    /// was ever granted. Cheap: ask before each release.
    ///
    /// It can come nearer by itself: time for which the host slept counts, though the
    /// monotonic clock leaves it out.
    fn valid_until_ns(&self) -> u64;

    /// Gives the lease back, so that nobody waits for its end. Only after the last output.
    /// Blocks for at most half a second.
    fn release(self: Box<Self>);
}
