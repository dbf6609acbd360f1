//! Where the record of [`crate::arbitration`] is kept, and who compares and sets it.

#[cfg(feature = "etcd")]
mod etcd;
mod guard;
mod lock_file;
mod manual;
mod memory;
mod record_text;

#[cfg(feature = "etcd")]
pub use etcd::{CLOCK_RATE_MARGIN_PERCENT, EtcdArbiter, EtcdConfig, EtcdConfigError};
pub use guard::{Guard, GuardNews, Tell};
pub use lock_file::LockFileArbiter;
pub use manual::{ManualArbiter, ManualHandle, NothingPending, PendingQuestion};
pub use memory::MemoryArbiter;
pub use record_text::{encode_record, parse_record};

use crate::arbitration::Record;
use std::path::PathBuf;

/// Keeps one VM's record and lets exactly one of several contenders change it.
///
/// Calls may block, on files or on an operator: use `spawn_blocking` from asynchronous code.
pub trait Arbiter: Send + Sync {
    /// The present record; `None` before the first claim.
    ///
    /// # Errors
    /// When the arbiter cannot be asked.
    fn read(&self) -> Result<Option<Record>, ArbiterError>;

    /// Sets the record to `new` if it still equals `expected`. What was won is durable.
    ///
    /// # Errors
    /// When the arbiter cannot be asked, or failed on the way: the record may then be either
    /// the old or the new one, and [`Arbiter::read`] tells.
    fn compare_and_set(&self, expected: Option<&Record>, new: &Record) -> Result<CasOutcome, ArbiterError>;

    /// A lease for the primary `node` of `term`, kept alive in the background from now on, with
    /// news of it and of the record through `tell`. `None` where the arbiter has no leases:
    /// the primary then goes by the record alone.
    ///
    /// Returns at once; does not wait for the arbiter.
    fn guard(&self, term: u64, node: &str, tell: Tell) -> Option<Box<dyn Guard>> {
        let _ = (term, node, tell);
        None
    }
}

/// What became of [`Arbiter::compare_and_set`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CasOutcome {
    /// The record is the new one.
    Won,
    /// The record was not the expected one, and is untouched: this is it.
    Lost(Option<Record>),
}

/// Why the arbiter could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    /// The operating system refused a file operation.
    #[error("arbiter: cannot {action} {}: {source}; check the shared storage and its permissions", path.display())]
    Io {
        /// "read", "lock", ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The directory of the lock file is not there.
    #[error("arbiter: directory {} does not exist; create it on storage that both hosts share, or mount it", path.display())]
    MissingDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("arbiter: {} is not a Secondwind arbiter record (found {found}, expected {expected}); choose another path", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// How it begins.
        found: String,
        /// How it should begin.
        expected: &'static str,
    },
    /// The record was written by a newer release.
    #[error("arbiter: {} has record version {found}, this release knows {expected}; upgrade this node", path.display())]
    FutureVersion {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: u64,
        /// Version of this release.
        expected: u64,
    },
    /// The record is another VM's.
    #[error("arbiter: {} is the record of VM {found}, expected {expected}; give each VM its own file", path.display())]
    OtherVm {
        /// The file.
        path: PathBuf,
        /// VM in the file.
        found: String,
        /// VM of this node.
        expected: String,
    },
    /// The record is damaged.
    #[error("arbiter: the record in {} is damaged ({detail}); stop both sides, remove the file, and start the side with the latest log", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// Another process keeps the lock.
    #[error("arbiter: {} stays locked by another process; see who holds it with fuser, and try again", path.display())]
    Busy {
        /// The sidecar file that is locked.
        path: PathBuf,
    },
    /// etcd did not answer, or refused.
    #[error("arbiter: etcd at {members}: {detail}; {way_out}")]
    Etcd {
        /// The members that were asked.
        members: String,
        /// What the last one said.
        detail: String,
        /// What to do about it.
        way_out: &'static str,
    },
    /// A file that the way to etcd needs cannot be read.
    #[error("arbiter: cannot read {}: {source}; it is named in --arbiter etcd:...", path.display())]
    EtcdFile {
        /// Certificate, key or password file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// Another node's lease lives, and the record does not name the asker as its backup.
    #[error(
        "arbiter: the lease of {node} in term {term} is alive: it may run this VM; stop it, or wait {ttl_s} s after it stopped, and repeat"
    )]
    LeaseHeld {
        /// Who holds it.
        node: String,
        /// Its term.
        term: u64,
        /// How long a lease lives at most.
        ttl_s: u64,
    },
    /// The question to the operator was withdrawn before an answer came.
    #[error("arbiter: the question to the operator was withdrawn")]
    Withdrawn,
}

#[cfg(test)]
pub(crate) mod contract {
    //! What every arbiter must do, run against each implementation.

    use super::{Arbiter, CasOutcome};
    use crate::arbitration::Record;
    use std::sync::atomic::{AtomicU64, Ordering};

    pub(crate) fn record(term: u64, holder: &str, backup: Option<&str>) -> Record {
        match backup {
            Some(backup) => Record::pair(term, holder, backup),
            None => Record::alone(term, holder),
        }
    }

    pub(crate) fn keeps_what_was_won_and_refuses_the_rest(arbiter: &dyn Arbiter) {
        assert_eq!(arbiter.read().unwrap(), None);
        let first = record(1, "a", None);
        let other = record(1, "b", None);
        let lost = |current: &Record| CasOutcome::Lost(Some(current.clone()));
        assert_eq!(arbiter.compare_and_set(Some(&other), &first).unwrap(), CasOutcome::Lost(None));
        assert_eq!(arbiter.compare_and_set(None, &first).unwrap(), CasOutcome::Won);
        assert_eq!(arbiter.read().unwrap().as_ref(), Some(&first));
        assert_eq!(arbiter.compare_and_set(None, &other).unwrap(), lost(&first));
        assert_eq!(arbiter.compare_and_set(Some(&other), &other).unwrap(), lost(&first));
        let second = record(1, "a", Some("b"));
        assert_eq!(arbiter.compare_and_set(Some(&first), &second).unwrap(), CasOutcome::Won);
        assert_eq!(arbiter.compare_and_set(Some(&first), &other).unwrap(), lost(&second));
        assert_eq!(arbiter.read().unwrap(), Some(second));
    }

    /// `contenders` threads raise the term again and again, each with its own instance.
    pub(crate) fn one_wins_each_step<A: Arbiter>(contenders: u64, open: impl Fn() -> A + Sync) {
        const LAST_TERM: u64 = 25;
        let wins = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for contender in 0..contenders {
                let (open, wins) = (&open, &wins);
                scope.spawn(move || {
                    let arbiter = open();
                    let mut current = arbiter.read().unwrap();
                    while current.as_ref().map_or(0, |r| r.term) < LAST_TERM {
                        let term = current.as_ref().map_or(0, |r| r.term) + 1;
                        let new = record(term, &format!("node{contender}"), None);
                        current = match arbiter.compare_and_set(current.as_ref(), &new).unwrap() {
                            CasOutcome::Won => {
                                wins.fetch_add(1, Ordering::Relaxed);
                                Some(new)
                            }
                            CasOutcome::Lost(found) => found,
                        };
                    }
                });
            }
        });
        assert_eq!(wins.into_inner(), LAST_TERM);
    }
}
