//! Who may be the primary: the rules, as functions over the arbiter's record.
//!
//! One record per VM decides. It changes only by compare-and-set, and only in these steps:
//!
//! ```text
//!   (none)            -- claim_start(A) --------> {1,   A, none}
//!   {t, A, none}      -- claim_start(A) --------> {t+1, A, none}      A starts again
//!   {t, A, B C, k}    -- claim_start(A, log) ---> {t+1, A, none}      A starts again from its own durable log
//!   {t, A, any}       -- set_backups(A, B C) ---> {t,   A, B C, k}    before A counts on another set
//!   {t, A, B C, k}    -- take_over(B) ----------> {t+1, B, none}      before B goes live, or, while
//!                                                                     more must speak, B's bid
//! ```
//!
//! **The set.** The holder releases an output when `required` (k) of its n registered backups
//! hold it. So every released output is held by at least one of any n - k + 1 of them, and by
//! the one among them that holds the most: the log is one chain.
//!
//! **Bids.** A backup that wants to take over neither receives nor acknowledges any more, and
//! its bid says how much it holds. When n - k + 1 backups have bid, the highest bid holds all
//! that was released, and what it lacks nobody can release any more. With one backup, or with
//! k = n, that is the first bid, and it wins at once.
//!
//! Only registered backups can take over, and only while they are registered. So a primary
//! and its backups that lose sight of each other race for one record: the winner goes on, the
//! losers stop for good or join again. No clock is involved: a stale primary cannot release
//! anything, because what it would release is acknowledged by too few, and counting on fewer
//! is a step it loses.
//!
//! **Lives.** A node that crashed and came back has nothing of what it held, whatever its name. So
//! the record says which life of each node it means, as far as that was said. What an earlier life
//! took over, was registered for, or bid is none of a later one's; and what an earlier life asked
//! for, and reaches the arbiter late, is refused once the later one is registered. Who goes on
//! from its own durable log holds what any earlier life of it held: it says no life, and is taken
//! for the one that is named.
//!
//! The functions decide without I/O; [`arbitrate`] carries a decision out on any
//! [`Arbiter`]. The simulator uses both with an arbiter in memory.

use std::collections::{BTreeMap, BTreeSet};

use log_format::Life;

use crate::arbiter::{Arbiter, ArbiterError, CasOutcome};

/// What the arbiter keeps for one VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Record {
    /// Number of the current primacy, from 1.
    pub term: u64,
    /// Node that is the primary in this term.
    pub holder: String,
    /// Nodes that may take over: those that the holder counts on.
    pub backups: BTreeSet<String>,
    /// How many of them must hold an output before it leaves; 0 without backups.
    pub required: u32,
    /// Batches held by the backups that want to take over, and wait for others to speak.
    pub bids: BTreeMap<String, u64>,
    /// Which lives of the holder and of the backups are meant, as far as they are known.
    pub lives: BTreeMap<String, Life>,
}

impl Record {
    /// A primary that counts on nobody.
    pub fn alone(term: u64, holder: &str) -> Record {
        Record {
            term,
            holder: holder.to_owned(),
            backups: BTreeSet::new(),
            required: 0,
            bids: BTreeMap::new(),
            lives: BTreeMap::new(),
        }
    }

    /// The same, of this life of a node.
    #[must_use]
    pub fn lived(mut self, node: &str, life: Life) -> Record {
        if life.is_known() {
            self.lives.insert(node.to_owned(), life);
        }
        self
    }

    /// Which life of a node is meant.
    pub fn life_of(&self, node: &str) -> Life {
        self.lives.get(node).copied().unwrap_or_default()
    }

    /// A primary that counts on one backup.
    pub fn pair(term: u64, holder: &str, backup: &str) -> Record {
        Record { backups: BTreeSet::from([backup.to_owned()]), required: 1, ..Record::alone(term, holder) }
    }

    /// Whether the holder counts on this node.
    pub fn counts_on(&self, node: &str) -> bool {
        self.backups.contains(node)
    }

    /// Whether this life of the node may be meant: no other is, as far as it is known.
    pub fn may_mean(&self, node: &str, life: Life) -> bool {
        let meant = self.life_of(node);
        meant == life || !meant.is_known() || !life.is_known()
    }

    /// Whether the node is the primary of this term and counts on nobody.
    fn is_alone(&self, term: u64, node: &str) -> bool {
        self.term == term && self.holder == node && self.backups.is_empty()
    }

    /// How many backups must have bid before one of them takes over.
    pub fn bids_needed(&self) -> usize {
        (self.backups.len() + 1).saturating_sub(self.required as usize)
    }
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Record { term, holder, backups, required, bids, lives: _ } = self;
        write!(f, "term {term}: primary {holder}, ")?;
        let names: Vec<&str> = backups.iter().map(String::as_str).collect();
        match &names[..] {
            [] => write!(f, "without a backup")?,
            [backup] => write!(f, "backup {backup}")?,
            several => write!(f, "backups {}, of which {required} must hold an output", several.join(", "))?,
        }
        if !bids.is_empty() {
            let bidders: Vec<&str> = bids.keys().map(String::as_str).collect();
            write!(f, "; {} wait to take over", bidders.join(", "))?;
        }
        Ok(())
    }
}

/// A step that a node wants to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Start as the primary.
    ClaimStart {
        /// The node that starts.
        node: String,
        /// Which life of it.
        life: Life,
        /// What decides: the rules, the node's own log or the operator.
        authority: Authority,
    },
    /// Count on these backups and no others.
    SetBackups {
        /// The primary.
        node: String,
        /// Its term.
        term: u64,
        /// The backups, all of which hold what the change takes for granted.
        backups: BTreeSet<String>,
        /// Which lives of them, and of the primary, as far as they are known.
        lives: BTreeMap<String, Life>,
        /// How many of them must hold an output before it leaves.
        required: u32,
    },
    /// Still be the primary: asks, and changes nothing.
    Confirm {
        /// The primary.
        node: String,
        /// Which life of it.
        life: Life,
        /// Its term.
        term: u64,
    },
    /// Become the primary in the place of a failed one.
    TakeOver {
        /// The backup.
        node: String,
        /// Which life of it: unknown where its own durable log is what it holds.
        life: Life,
        /// The failed primary's term.
        term: u64,
        /// Batches that the backup holds. It receives no more.
        held: u64,
    },
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::ClaimStart { node, .. } => write!(f, "start as the primary on {node}"),
            Step::SetBackups { node, term, backups, .. } if backups.is_empty() => {
                write!(f, "go on alone on {node} in term {term}")
            }
            Step::SetBackups { node, backups, .. } => {
                let names: Vec<&str> = backups.iter().map(String::as_str).collect();
                write!(f, "register {} as the backup of {node}", names.join(", "))
            }
            Step::Confirm { node, term, .. } => write!(f, "be the primary of term {term} on {node}"),
            Step::TakeOver { node, term, .. } => {
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
    /// The node's own log holds, durably, all that was released in this term, in which it was
    /// the primary.
    Log {
        /// The term of the log's end.
        term: u64,
    },
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
        current: Box<Record>,
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
        current: Box<Record>,
    },
    /// Another node holds the VM, or may take it over.
    #[error(
        "{node} may not start as the primary ({current}): start it as a backup, or, if no other node runs this VM, repeat with --force"
    )]
    HeldByOther {
        /// The node that wants to start.
        node: String,
        /// The record that names the other.
        current: Box<Record>,
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
        Step::ClaimStart { node, life, authority } => claim_start(current, node, *life, *authority),
        Step::SetBackups { node, term, backups, lives, required } => {
            let wanted = Record {
                backups: backups.clone(),
                required: *required,
                lives: lives.clone(),
                ..Record::alone(*term, node)
            };
            set_backups(current, wanted)
        }
        Step::Confirm { node, life, term } => {
            held_by(current, node, *life, *term).map(|record| Decision::AlreadySo(record.clone()))
        }
        Step::TakeOver { node, life, term, held } => take_over(current, node, *life, *term, *held),
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
/// to clients may be only there, unless its own log is known to hold that too.
pub fn claim_start(
    current: Option<&Record>,
    node: &str,
    life: Life,
    authority: Authority,
) -> Result<Decision, Refusal> {
    let Some(current) = current else {
        return Ok(Decision::Propose(Record::alone(1, node).lived(node, life)));
    };
    let allowed = match authority {
        Authority::Rules => current.holder == node && current.backups.is_empty(),
        // Or it took that term's primacy over and died before it released, and so logged, anything.
        Authority::Log { term } => {
            current.holder == node && current.term == term || current.is_alone(term + 1, node)
        }
        Authority::Operator => true,
    };
    if allowed {
        return Ok(Decision::Propose(Record::alone(current.term + 1, node).lived(node, life)));
    }
    Err(Refusal::HeldByOther { node: node.to_owned(), current: Box::new(current.clone()) })
}

/// The primary that `wanted` names counts on its backups from now on: on one more, before it relies
/// on it, or on one fewer, before it releases anything that this one did not acknowledge.
///
/// Bids are void after it: who made one and is still alone makes it again.
///
/// # Errors
/// [`Refusal::Fenced`] or [`Refusal::Vanished`].
pub fn set_backups(current: Option<&Record>, wanted: Record) -> Result<Decision, Refusal> {
    let life = wanted.life_of(&wanted.holder);
    let current = held_by(current, &wanted.holder, life, wanted.term)?;
    match *current == wanted {
        true => Ok(Decision::AlreadySo(wanted)),
        false => Ok(Decision::Propose(wanted)),
    }
}

/// The backup `node`, which followed the primary of `term` and holds `held` batches, becomes
/// the primary of the next term before it goes live, if enough backups have bid and none holds
/// more. Else its bid is noted: the record returned is still of `term`, and the step is to be
/// taken again.
///
/// # Errors
/// [`Refusal::NotRegistered`] or [`Refusal::Vanished`].
pub fn take_over(
    current: Option<&Record>,
    node: &str,
    life: Life,
    term: u64,
    held: u64,
) -> Result<Decision, Refusal> {
    let current = present(current, node, term)?;
    // Only as this step itself leaves it. Else an earlier life of this node went on from there, and
    // what this one holds is of a stale primary.
    let is_own = current.life_of(node) == life || !life.is_known();
    if current.is_alone(term + 1, node) && is_own {
        return Ok(Decision::AlreadySo(current.clone()));
    }
    if current.term != term || !current.counts_on(node) || !current.may_mean(node, life) {
        return Err(Refusal::NotRegistered {
            node: node.to_owned(),
            term,
            current: Box::new(current.clone()),
        });
    }
    let mut bid = current.clone();
    bid.bids.insert(node.to_owned(), held);
    let best = bid.bids.iter().max_by_key(|(name, held)| (**held, std::cmp::Reverse(*name)));
    let wins = best.is_some_and(|(name, _)| name == node) && bid.bids.len() >= bid.bids_needed();
    match (wins, bid == *current) {
        (true, _) => Ok(Decision::Propose(Record::alone(term + 1, node).lived(node, life))),
        (false, true) => Ok(Decision::AlreadySo(bid)),
        (false, false) => Ok(Decision::Propose(bid)),
    }
}

fn present<'a>(current: Option<&'a Record>, node: &str, term: u64) -> Result<&'a Record, Refusal> {
    current.ok_or_else(|| Refusal::Vanished { node: node.to_owned(), term })
}

fn held_by<'a>(
    current: Option<&'a Record>,
    node: &str,
    life: Life,
    term: u64,
) -> Result<&'a Record, Refusal> {
    let current = present(current, node, term)?;
    if current.term == term && current.holder == node && current.may_mean(node, life) {
        return Ok(current);
    }
    Err(Refusal::Fenced { node: node.to_owned(), term, current: Box::new(current.clone()) })
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
                return Err(Refusal::HeldByOther { node, current: Box::new(current) }.into());
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
        match backup {
            Some(backup) => Record::pair(term, holder, backup),
            None => Record::alone(term, holder),
        }
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn claim(node: &str) -> Step {
        Step::ClaimStart { node: node.into(), life: Life::UNKNOWN, authority: Authority::Rules }
    }

    fn set_step(node: &str, term: u64, backups: &[&str], required: u32) -> Step {
        Step::SetBackups { node: node.into(), term, backups: set(backups), lives: BTreeMap::new(), required }
    }

    fn register(node: &str, term: u64, backup: &str) -> Step {
        set_step(node, term, &[backup], 1)
    }

    fn go_alone_step(node: &str, term: u64) -> Step {
        set_step(node, term, &[], 0)
    }

    fn bid_step(node: &str, term: u64, held: u64) -> Step {
        Step::TakeOver { node: node.into(), life: Life::UNKNOWN, term, held }
    }

    fn take_over_step(node: &str, term: u64) -> Step {
        bid_step(node, term, 7)
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
        let confirm = Step::Confirm { node: "a".into(), life: Life::UNKNOWN, term: 1 };
        for step in [go_alone_step("a", 1), register("a", 1, "c"), confirm] {
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
    fn what_an_earlier_life_took_over_is_not_taken_again() {
        // b took over, registered c and died; it came back empty and joined a, which knew nothing.
        let current = record(2, "b", Some("c"));
        let refusal = decide(&take_over_step("b", 1), Some(&current)).unwrap_err();
        assert!(matches!(refusal, Refusal::NotRegistered { .. }));
    }

    /// A step of this life of a node.
    fn of_life(step: Step, number: u64) -> Step {
        let life = Life(number);
        match step {
            Step::ClaimStart { node, authority, .. } => Step::ClaimStart { node, life, authority },
            Step::TakeOver { node, term, held, .. } => Step::TakeOver { node, life, term, held },
            Step::Confirm { node, term, .. } => Step::Confirm { node, life, term },
            Step::SetBackups { node, term, backups, required, .. } => {
                // Backups are of the life 10, the primary of the one that asks.
                let mut lives: BTreeMap<String, Life> =
                    backups.iter().map(|backup| (backup.clone(), Life(10))).collect();
                lives.insert(node.clone(), life);
                Step::SetBackups { node, term, backups, lives, required }
            }
        }
    }

    #[test]
    fn what_an_earlier_life_took_over_alone_is_not_taken_again() {
        let arbiter = MemoryArbiter::default();
        arbitrate(&arbiter, &of_life(claim("a"), 1)).unwrap();
        arbitrate(&arbiter, &of_life(register("a", 1, "b"), 1)).unwrap();
        let taken = arbitrate(&arbiter, &of_life(take_over_step("b", 1), 10)).unwrap();
        assert_eq!(taken, record(2, "b", None).lived("b", Life(10)));
        // Its answer was lost: the same life finds out.
        assert_eq!(arbitrate(&arbiter, &of_life(take_over_step("b", 1), 10)).unwrap(), taken);
        // It released alone and died; the next life joined a, which knew nothing.
        let again = arbitrate(&arbiter, &of_life(take_over_step("b", 1), 11));
        assert!(matches!(again, Err(ArbitrationError::Refused(Refusal::NotRegistered { .. }))), "{again:?}");
        // Its own log, which is what it holds, is another matter; and it may begin anew.
        assert_eq!(arbitrate(&arbiter, &take_over_step("b", 1)).unwrap(), taken);
        assert_eq!(arbitrate(&arbiter, &of_life(claim("b"), 11)).unwrap().term, 3);
    }

    #[test]
    fn a_bid_of_an_earlier_life_comes_too_late() {
        let arbiter = MemoryArbiter::default();
        arbitrate(&arbiter, &of_life(claim("a"), 1)).unwrap();
        arbitrate(&arbiter, &of_life(set_step("a", 1, &["b", "c"], 1), 1)).unwrap();
        // An earlier life of b read the record, and is late to set it.
        let late = of_life(bid_step("b", 1, 100), 10);
        let before = arbiter.read().unwrap();
        let Ok(Decision::Propose(proposed)) = decide(&late, before.as_ref()) else { panic!("a bid") };
        // b came back, joined and is registered anew: the same names.
        let mut anew = of_life(set_step("a", 1, &["b", "c"], 1), 1);
        if let Step::SetBackups { lives, .. } = &mut anew {
            lives.insert("b".to_owned(), Life(11));
        }
        let registered = arbitrate(&arbiter, &anew).unwrap();
        assert_eq!(registered.life_of("b"), Life(11));
        let set = arbiter.compare_and_set(before.as_ref(), &proposed).unwrap();
        assert!(matches!(set, CasOutcome::Lost(_)));
        assert!(matches!(decide(&late, Some(&registered)), Err(Refusal::NotRegistered { .. })));
        // So that c, which holds less than b may have acknowledged since, does not win by it.
        assert_eq!(arbitrate(&arbiter, &of_life(bid_step("c", 1, 120), 10)).unwrap().term, 1);
        assert_eq!(arbitrate(&arbiter, &of_life(bid_step("b", 1, 150), 11)).unwrap().holder, "b");
    }

    #[test]
    fn a_record_that_names_no_lives_is_read_as_ever() {
        let current = record(4, "a", Some("b"));
        for number in [0, 7] {
            let taken = decide(&of_life(take_over_step("b", 4), number), Some(&current));
            assert!(matches!(taken, Ok(Decision::Propose(next)) if next.term == 5));
            assert!(decide(&of_life(go_alone_step("a", 4), number), Some(&current)).is_ok());
        }
        // An older program took over: it was not this life.
        let taken = decide(&of_life(take_over_step("b", 4), 7), Some(&record(5, "b", None)));
        assert!(matches!(taken, Err(Refusal::NotRegistered { .. })));
        let other = record(4, "a", None).lived("a", Life(3));
        assert!(matches!(
            decide(&of_life(go_alone_step("a", 4), 2), Some(&other)),
            Err(Refusal::Fenced { .. })
        ));
    }

    #[test]
    fn a_primary_with_a_registered_backup_starts_again_by_its_durable_log_or_the_operator_only() {
        let current = record(4, "a", Some("b"));
        for authority in [Authority::Rules, Authority::Log { term: 3 }] {
            let refused = claim_start(Some(&current), "a", Life::UNKNOWN, authority);
            assert!(matches!(refused, Err(Refusal::HeldByOther { .. })), "{authority:?}");
        }
        for authority in [Authority::Log { term: 4 }, Authority::Operator] {
            let next = claim_start(Some(&current), "a", Life::UNKNOWN, authority);
            assert_eq!(next, Ok(Decision::Propose(record(5, "a", None))), "{authority:?}");
        }
        let other = claim_start(Some(&current), "b", Life::UNKNOWN, Authority::Log { term: 4 });
        assert!(matches!(other, Err(Refusal::HeldByOther { .. })));
    }

    #[test]
    fn who_took_over_and_died_before_its_first_output_starts_again_by_the_log_it_followed() {
        let taken = record(5, "b", None);
        let next = claim_start(Some(&taken), "b", Life::UNKNOWN, Authority::Log { term: 4 });
        assert_eq!(next, Ok(Decision::Propose(record(6, "b", None))));
        // With a backup, or later, it led and released: that log is too old.
        for later in [record(5, "b", Some("c")), record(6, "b", None), record(5, "a", None)] {
            let refused = claim_start(Some(&later), "b", Life::UNKNOWN, Authority::Log { term: 4 });
            assert!(matches!(refused, Err(Refusal::HeldByOther { .. })), "{later}");
        }
    }

    #[test]
    fn an_emptied_arbiter_is_named() {
        for step in [take_over_step("b", 7), go_alone_step("a", 7)] {
            assert!(matches!(decide(&step, None), Err(Refusal::Vanished { term: 7, .. })));
        }
    }

    #[test]
    fn where_all_must_hold_an_output_the_first_backup_that_asks_takes_over() {
        let arbiter = MemoryArbiter::default();
        arbitrate(&arbiter, &claim("a")).unwrap();
        arbitrate(&arbiter, &set_step("a", 1, &["b", "c"], 2)).unwrap();
        assert_eq!(arbitrate(&arbiter, &bid_step("c", 1, 3)).unwrap(), record(2, "c", None));
    }

    #[test]
    fn where_one_suffices_all_must_speak_and_who_holds_most_takes_over() {
        let arbiter = MemoryArbiter::default();
        arbitrate(&arbiter, &claim("a")).unwrap();
        arbitrate(&arbiter, &set_step("a", 1, &["b", "c"], 1)).unwrap();
        let first = arbitrate(&arbiter, &bid_step("b", 1, 40)).unwrap();
        assert_eq!((first.term, first.bids.len()), (1, 1), "c may hold more");
        let second = arbitrate(&arbiter, &bid_step("c", 1, 39)).unwrap();
        assert_eq!((second.term, second.bids.len()), (1, 2), "b holds more");
        assert_eq!(arbitrate(&arbiter, &bid_step("b", 1, 40)).unwrap(), record(2, "b", None));
        assert!(arbitrate(&arbiter, &bid_step("c", 1, 39)).is_err());
    }

    #[test]
    fn equal_bids_have_one_winner() {
        let mut current = Record { backups: set(&["b", "c", "d"]), required: 2, ..Record::alone(1, "a") };
        current.bids = BTreeMap::from([("c".to_owned(), 5)]);
        assert!(
            matches!(take_over(Some(&current), "d", Life::UNKNOWN, 1, 5), Ok(Decision::Propose(next)) if next.term == 1)
        );
        assert!(
            matches!(take_over(Some(&current), "b", Life::UNKNOWN, 1, 5), Ok(Decision::Propose(next)) if next.term == 2)
        );
    }

    #[test]
    fn a_primary_that_lives_voids_the_bids() {
        let arbiter = MemoryArbiter::default();
        arbitrate(&arbiter, &claim("a")).unwrap();
        arbitrate(&arbiter, &set_step("a", 1, &["b", "c"], 1)).unwrap();
        arbitrate(&arbiter, &bid_step("b", 1, 40)).unwrap();
        let counted = arbitrate(&arbiter, &set_step("a", 1, &["b", "c"], 1)).unwrap();
        assert!(counted.bids.is_empty());
        assert_eq!(arbitrate(&arbiter, &bid_step("c", 1, 60)).unwrap().term, 1);
    }

    /// Any node, any step, any order, each by what it believes of the term.
    fn any_step() -> impl Strategy<Value = Step> {
        let node = || prop::sample::select(vec!["a", "b", "c"]);
        (0..4u8, node(), node(), 1..6u64, 0..9u64).prop_map(|(kind, node, other, term, held)| match kind {
            0 => claim(node),
            1 => register(node, term, other),
            2 => set_step(node, term, &["a", "b", "c"], 1 + (held % 3) as u32),
            _ => bid_step(node, term, held),
        })
    }

    proptest! {
        #[test]
        fn each_term_has_one_holder_and_only_its_backups_follow(
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
                    let heir = before.counts_on(&after.holder) || before.backups.is_empty();
                    prop_assert!(heir);
                    prop_assert!(before.backups.is_empty() || before.bids.len() + 1 >= before.bids_needed());
                }
            }
        }

        /// The k-th highest of n is at most the highest of any n - k + 1.
        #[test]
        fn the_winner_holds_all_that_enough_backups_held(
            held in prop::collection::vec(0..30u64, 1..6),
            required in 1..6u32,
            order in prop::collection::vec(any::<prop::sample::Index>(), 12),
        ) {
            let required = required.min(held.len() as u32);
            let names: Vec<String> = (0..held.len()).map(|number| format!("n{number}")).collect();
            let mut record = Record {
                backups: names.iter().cloned().collect(),
                required,
                ..Record::alone(1, "a")
            };
            let mut sorted = held.clone();
            sorted.sort_unstable();
            let released = sorted[held.len() - required as usize];
            for index in order {
                let bidder = index.index(held.len());
                match take_over(Some(&record), &names[bidder], Life::UNKNOWN, 1, held[bidder]).unwrap() {
                    Decision::Propose(next) if next.term == 2 => {
                        prop_assert!(held[bidder] >= released);
                        return Ok(());
                    }
                    Decision::Propose(next) | Decision::AlreadySo(next) => record = next,
                }
            }
        }
    }
}
