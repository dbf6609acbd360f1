//! Who may be the primary: the rules, as functions over the arbiter's record.
//!
//! One record per VM decides. It changes only by compare-and-set, and only in these steps:
//!
//! ```text
//!   (none)          -- claim_start(A) ---------> {1,   A, none}
//!   {t, A, none}    -- claim_start(A) ---------> {t+1, A, none}     A starts again
//!   {t, A, none}    -- register_backup(A, B) --> {t,   A, B}        before A counts on B
//!   {t, A, B}       -- go_alone(A) ------------> {t,   A, none}     before A releases without B
//!   {t, A, B}       -- take_over(B) -----------> {t+1, B, none}     before B goes live
//! ```
//!
//! Only the registered backup can take over, and only while it is registered. So a primary
//! and its backup that lose sight of each other race for one record: the winner goes on, the
//! loser stops for good. No clock and no lease is involved: a stale primary cannot release
//! anything, because what it would release is acknowledged by nobody, and going alone is a
//! step it loses.
//!
//! The functions decide without I/O; [`arbitrate`] carries a decision out on any
//! [`Arbiter`]. The simulator uses both with an arbiter in memory.

use crate::arbiter::{Arbiter, ArbiterError, CasOutcome};

/// What the arbiter keeps for one VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Record {
    /// Number of the current primacy, from 1.
    pub term: u64,
    /// Node that is the primary in this term.
    pub holder: String,
    /// Node that may take over: the one that the holder counts on.
    pub backup: Option<String>,
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Record { term, holder, .. } = self;
        match &self.backup {
            Some(backup) => write!(f, "term {term}: primary {holder}, backup {backup}"),
            None => write!(f, "term {term}: primary {holder}, without a backup"),
        }
    }
}

/// A step that a node wants to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Start as the primary.
    ClaimStart {
        /// The node that starts.
        node: String,
        /// Whether the rules or the operator decide.
        authority: Authority,
    },
    /// Register a backup that is in sync.
    RegisterBackup {
        /// The primary.
        node: String,
        /// Its term.
        term: u64,
        /// The backup.
        backup: String,
    },
    /// Go on without the registered backup.
    GoAlone {
        /// The primary.
        node: String,
        /// Its term.
        term: u64,
    },
    /// Become the primary in the place of a failed one.
    TakeOver {
        /// The backup.
        node: String,
        /// The failed primary's term.
        term: u64,
    },
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::ClaimStart { node, .. } => write!(f, "start as the primary on {node}"),
            Step::RegisterBackup { node, backup, .. } => {
                write!(f, "register {backup} as the backup of {node}")
            }
            Step::GoAlone { node, term } => {
                write!(f, "go on alone on {node} in term {term}")
            }
            Step::TakeOver { node, term } => {
                write!(f, "take over on {node} from the primary of term {term}")
            }
        }
    }
}

/// By whose word a node starts as the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    /// The record must allow it.
    Rules,
    /// The operator vouches that no other node runs this VM nor holds a later state of it.
    Operator,
}

/// What to do about a [`Step`], given the present record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Set the record to this, if it is still the one that was read.
    Propose(Record),
    /// The step was taken already, by an attempt whose answer was lost.
    AlreadySo(Record),
}

/// Why a step must not be taken. The node that asked gives up: it never becomes allowed by
/// waiting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The node is no longer (or never was) the primary of that term: it must stop for good.
    #[error(
        "{node} is not the primary of term {term} any more ({current}); it must stop, and may join again as a backup"
    )]
    Fenced {
        /// The stale primary.
        node: String,
        /// The term it had.
        term: u64,
        /// The record that says otherwise.
        current: Record,
    },
    /// A node that is not registered wants to take over.
    #[error(
        "{node} may not take over from term {term}: it is not the registered backup ({current}); what it holds may be out of date, so join it again"
    )]
    NotRegistered {
        /// The backup.
        node: String,
        /// The term it followed.
        term: u64,
        /// The record that says otherwise.
        current: Record,
    },
    /// Another node holds the VM, or may take it over.
    #[error(
        "{node} may not start as the primary ({current}): start it as a backup, or, if no other node runs this VM, repeat with --force"
    )]
    HeldByOther {
        /// The node that wants to start.
        node: String,
        /// The record that names the other.
        current: Record,
    },
    /// A second backup is offered while one is registered.
    #[error(
        "{backup} cannot be registered while another backup is ({current}): the primary must go on alone first"
    )]
    OtherBackup {
        /// The one that is offered.
        backup: String,
        /// The record that names the other.
        current: Record,
    },
    /// There is no record, though there must have been one.
    #[error(
        "the arbiter has no record for this VM, though {node} is in term {term}: its storage was replaced or emptied; stop both sides and start the primary again"
    )]
    Vanished {
        /// The node that asked.
        node: String,
        /// The term it is in.
        term: u64,
    },
}

/// Decides any [`Step`] by the function of its name.
///
/// # Errors
/// [`Refusal`] when the rules forbid the step.
pub fn decide(step: &Step, current: Option<&Record>) -> Result<Decision, Refusal> {
    match step {
        Step::ClaimStart { node, authority } => claim_start(current, node, *authority),
        Step::RegisterBackup { node, term, backup } => register_backup(current, node, *term, backup),
        Step::GoAlone { node, term } => go_alone(current, node, *term),
        Step::TakeOver { node, term } => take_over(current, node, *term),
    }
}

/// `node` starts the VM as its primary, in a new term.
///
/// That `node` is not running it already in another process is for the caller to know: it
/// holds its listening port and its recording's directory before it claims.
///
/// # Errors
/// [`Refusal::HeldByOther`] when another node is the primary, or may become it: also when
/// `node` itself was the primary but has a registered backup, since what was acknowledged
/// to clients may be only there.
pub fn claim_start(current: Option<&Record>, node: &str, authority: Authority) -> Result<Decision, Refusal> {
    let Some(current) = current else {
        return Ok(Decision::Propose(alone(1, node)));
    };
    let own = current.holder == node && current.backup.is_none();
    if own || authority == Authority::Operator {
        return Ok(Decision::Propose(alone(current.term + 1, node)));
    }
    Err(Refusal::HeldByOther { node: node.to_owned(), current: current.clone() })
}

/// The primary `node` of `term` registers `backup`, which is in sync, before it counts on it.
///
/// # Errors
/// [`Refusal::Fenced`], [`Refusal::Vanished`], or [`Refusal::OtherBackup`] when another
/// backup is registered.
pub fn register_backup(
    current: Option<&Record>,
    node: &str,
    term: u64,
    backup: &str,
) -> Result<Decision, Refusal> {
    let current = held_by(current, node, term)?;
    match current.backup.as_deref() {
        None => Ok(Decision::Propose(Record { backup: Some(backup.to_owned()), ..current.clone() })),
        Some(registered) if registered == backup => Ok(Decision::AlreadySo(current.clone())),
        Some(_) => Err(Refusal::OtherBackup { backup: backup.to_owned(), current: current.clone() }),
    }
}

/// The primary `node` of `term` goes on without its backup, before it releases anything that
/// the backup did not acknowledge.
///
/// # Errors
/// [`Refusal::Fenced`] or [`Refusal::Vanished`].
pub fn go_alone(current: Option<&Record>, node: &str, term: u64) -> Result<Decision, Refusal> {
    let current = held_by(current, node, term)?;
    match current.backup {
        Some(_) => Ok(Decision::Propose(alone(term, node))),
        None => Ok(Decision::AlreadySo(current.clone())),
    }
}

/// The backup `node`, which followed the primary of `term`, becomes the primary of the next
/// term, before it goes live.
///
/// # Errors
/// [`Refusal::NotRegistered`] or [`Refusal::Vanished`].
pub fn take_over(current: Option<&Record>, node: &str, term: u64) -> Result<Decision, Refusal> {
    let current = present(current, node, term)?;
    if current.term == term && current.backup.as_deref() == Some(node) {
        return Ok(Decision::Propose(alone(term + 1, node)));
    }
    if current.term == term + 1 && current.holder == node {
        return Ok(Decision::AlreadySo(current.clone()));
    }
    Err(Refusal::NotRegistered { node: node.to_owned(), term, current: current.clone() })
}

fn alone(term: u64, node: &str) -> Record {
    Record { term, holder: node.to_owned(), backup: None }
}

fn present<'a>(current: Option<&'a Record>, node: &str, term: u64) -> Result<&'a Record, Refusal> {
    current.ok_or_else(|| Refusal::Vanished { node: node.to_owned(), term })
}

fn held_by<'a>(current: Option<&'a Record>, node: &str, term: u64) -> Result<&'a Record, Refusal> {
    let current = present(current, node, term)?;
    if current.term == term && current.holder == node {
        return Ok(current);
    }
    Err(Refusal::Fenced { node: node.to_owned(), term, current: current.clone() })
}

/// Why [`arbitrate`] did not take the step.
#[derive(Debug, thiserror::Error)]
pub enum ArbitrationError {
    /// The rules forbid it, for good.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The arbiter could not be asked. The step may or may not have been taken: hold
    /// everything and ask again; the rules find out what became of it.
    #[error(transparent)]
    Unreachable(#[from] ArbiterError),
}

/// Takes `step`: reads the record, decides, sets it; when another node was quicker, decides
/// again on what that one set. Returns the record that now holds.
///
/// Blocks while the arbiter does (files, an operator's answer): call it through
/// `spawn_blocking` from asynchronous code.
///
/// # Errors
/// [`ArbitrationError::Refused`] when the rules forbid it, before or after a lost race.
pub fn arbitrate(arbiter: &dyn Arbiter, step: &Step) -> Result<Record, ArbitrationError> {
    let mut current = arbiter.read()?;
    loop {
        let proposed = match decide(step, current.as_ref())? {
            Decision::AlreadySo(record) => return Ok(record),
            Decision::Propose(record) => record,
        };
        match arbiter.compare_and_set(current.as_ref(), &proposed)? {
            CasOutcome::Won => return Ok(proposed),
            // Who won the race runs the VM now, even under this node's own name.
            CasOutcome::Lost(Some(current)) if matches!(step, Step::ClaimStart { .. }) => {
                let node = proposed.holder;
                return Err(Refusal::HeldByOther { node, current }.into());
            }
            // Ends: each lost round means that another node took a step.
            CasOutcome::Lost(found) => current = found,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::MemoryArbiter;
    use proptest::prelude::*;

    fn record(term: u64, holder: &str, backup: Option<&str>) -> Record {
        Record { term, holder: holder.into(), backup: backup.map(Into::into) }
    }

    fn claim(node: &str) -> Step {
        Step::ClaimStart { node: node.into(), authority: Authority::Rules }
    }

    fn register(node: &str, term: u64, backup: &str) -> Step {
        Step::RegisterBackup { node: node.into(), term, backup: backup.into() }
    }

    fn go_alone_step(node: &str, term: u64) -> Step {
        Step::GoAlone { node: node.into(), term }
    }

    fn take_over_step(node: &str, term: u64) -> Step {
        Step::TakeOver { node: node.into(), term }
    }

    #[test]
    fn a_life_of_a_pair() {
        let arbiter = MemoryArbiter::default();
        let taken = |step| arbitrate(&arbiter, &step).unwrap();
        assert_eq!(taken(claim("a")), record(1, "a", None));
        assert_eq!(taken(register("a", 1, "b")), record(1, "a", Some("b")));
        assert_eq!(taken(take_over_step("b", 1)), record(2, "b", None));
        assert_eq!(taken(register("b", 2, "a")), record(2, "b", Some("a")));
        assert_eq!(taken(go_alone_step("b", 2)), record(2, "b", None));
        assert_eq!(taken(claim("b")), record(3, "b", None));
    }

    #[test]
    fn a_step_whose_answer_was_lost_can_be_taken_again() {
        let arbiter = MemoryArbiter::default();
        let twice = |step| {
            let first = arbitrate(&arbiter, &step).unwrap();
            assert_eq!(arbitrate(&arbiter, &step).unwrap(), first);
        };
        arbitrate(&arbiter, &claim("a")).unwrap();
        twice(register("a", 1, "b"));
        twice(go_alone_step("a", 1));
        twice(register("a", 1, "b"));
        twice(take_over_step("b", 1));
    }

    #[test]
    fn the_stale_primary_is_fenced_by_every_step_it_tries() {
        let current = record(2, "b", None);
        for step in [go_alone_step("a", 1), register("a", 1, "c")] {
            let refusal = decide(&step, Some(&current)).unwrap_err();
            assert!(matches!(refusal, Refusal::Fenced { term: 1, .. }));
        }
        assert!(matches!(decide(&claim("a"), Some(&current)), Err(Refusal::HeldByOther { .. })));
    }

    #[test]
    fn only_the_registered_backup_takes_over_and_only_in_its_term() {
        for current in
            [record(1, "a", None), record(1, "a", Some("c")), record(2, "a", Some("b")), record(3, "b", None)]
        {
            let refusal = decide(&take_over_step("b", 1), Some(&current)).unwrap_err();
            assert!(matches!(refusal, Refusal::NotRegistered { .. }), "{current}");
        }
    }

    #[test]
    fn a_primary_with_a_registered_backup_does_not_start_again_by_itself() {
        let current = record(4, "a", Some("b"));
        assert!(matches!(
            claim_start(Some(&current), "a", Authority::Rules),
            Err(Refusal::HeldByOther { .. })
        ));
        assert_eq!(
            claim_start(Some(&current), "a", Authority::Operator),
            Ok(Decision::Propose(record(5, "a", None)))
        );
    }

    #[test]
    fn an_emptied_arbiter_is_named() {
        for step in [take_over_step("b", 7), go_alone_step("a", 7)] {
            assert!(matches!(decide(&step, None), Err(Refusal::Vanished { term: 7, .. })));
        }
    }

    #[test]
    fn two_backups_are_never_registered_at_once() {
        let current = record(1, "a", Some("b"));
        let refusal = decide(&register("a", 1, "c"), Some(&current)).unwrap_err();
        assert!(matches!(refusal, Refusal::OtherBackup { .. }));
    }

    /// Any node, any step, any order, each by what it believes of the term.
    fn any_step() -> impl Strategy<Value = Step> {
        let node = || prop::sample::select(vec!["a", "b", "c"]);
        (0..4u8, node(), node(), 1..6u64).prop_map(|(kind, node, other, term)| match kind {
            0 => claim(node),
            1 => register(node, term, other),
            2 => go_alone_step(node, term),
            _ => take_over_step(node, term),
        })
    }

    proptest! {
        #[test]
        fn each_term_has_one_holder_and_only_its_backup_follows(
            steps in prop::collection::vec(any_step(), 0..60),
        ) {
            let arbiter = MemoryArbiter::default();
            for step in steps {
                let before = arbiter.read().unwrap();
                let _ = arbitrate(&arbiter, &step);
                let after = arbiter.read().unwrap();
                let (Some(before), Some(after)) = (before, after) else { continue };
                if before.term == after.term {
                    prop_assert_eq!(&before.holder, &after.holder);
                } else {
                    prop_assert_eq!(after.term, before.term + 1);
                    let heir = before.backup.unwrap_or(before.holder);
                    prop_assert_eq!(after.holder, heir);
                }
            }
        }
    }
}
