//! An arbiter that asks the operator.
//!
//! Wraps another arbiter, usually a lock file on the node's own disk, and lets the two steps
//! that can split a pair wait for the operator's command: going alone and taking over. With
//! separate files on each side it is the operator who sees to it that only one side is told
//! to go on; until then, both hold their output.

use super::{Arbiter, ArbiterError, CasOutcome};
use crate::arbitration::Record;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Lets steps that need the operator's word wait for it. [`ManualArbiter::handle`] gives the
/// operator's end.
#[derive(Debug)]
pub struct ManualArbiter<A> {
    inner: Arc<A>,
    desk: Arc<Desk>,
}

/// The operator's end of a [`ManualArbiter`]. Clones share it.
#[derive(Debug, Clone)]
pub struct ManualHandle {
    desk: Arc<Desk>,
}

/// A step that waits for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingQuestion {
    /// The record as it is.
    pub current: Record,
    /// The record as it would become.
    pub proposed: Record,
}

impl std::fmt::Display for PendingQuestion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let PendingQuestion { current, proposed } = self;
        let node = &proposed.holder;
        if proposed.term == current.term {
            let lost: Vec<&str> = current.backups.difference(&proposed.backups).map(String::as_str).collect();
            write!(f, "may {node} go on without {} in term {}?", lost.join(", "), current.term)
        } else {
            let (lost, term) = (&current.holder, proposed.term);
            write!(f, "may {node} take over from {lost} in term {term}?")
        }
    }
}

/// There is no question that the operator could answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nothing waits for a decision here: the pair sees no failure")]
pub struct NothingPending;

/// Where a question lies until it is answered.
#[derive(Debug, Default)]
struct Desk {
    state: Mutex<DeskState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct DeskState {
    question: Option<PendingQuestion>,
    answer: Option<Answer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Granted,
    Withdrawn,
}

impl<A: Arbiter> ManualArbiter<A> {
    /// Asks the operator before it passes a dangerous step on to `inner`.
    pub fn new(inner: A) -> Self {
        ManualArbiter { inner: Arc::new(inner), desk: Arc::default() }
    }

    /// The operator's end.
    pub fn handle(&self) -> ManualHandle {
        ManualHandle { desk: Arc::clone(&self.desk) }
    }

    /// Takes over what the other side said of the record, where each side keeps its own: a
    /// backup learns that it is registered. An older record than the present one is ignored.
    ///
    /// # Errors
    /// When the inner arbiter cannot be asked.
    pub fn learn(&self, told: &Record) -> Result<(), ArbiterError> {
        let mut current = self.inner.read()?;
        loop {
            if current.as_ref().is_some_and(|own| own.term > told.term) {
                return Ok(());
            }
            match self.inner.compare_and_set(current.as_ref(), told)? {
                CasOutcome::Won => return Ok(()),
                CasOutcome::Lost(found) => current = found,
            }
        }
    }
}

impl<A: Arbiter> Arbiter for ManualArbiter<A> {
    fn read(&self) -> Result<Option<Record>, ArbiterError> {
        self.inner.read()
    }

    /// Blocks until the operator answers, where the step needs it.
    fn compare_and_set(&self, expected: Option<&Record>, new: &Record) -> Result<CasOutcome, ArbiterError> {
        if let Some(current) = expected.filter(|current| needs_the_operator(current, new)) {
            let found = self.inner.read()?;
            if found.as_ref() != expected {
                return Ok(CasOutcome::Lost(found));
            }
            self.desk.ask(PendingQuestion { current: current.clone(), proposed: new.clone() })?;
        }
        self.inner.compare_and_set(expected, new)
    }
}

/// Going alone and taking over leave a registered backup, or a primary, behind.
fn needs_the_operator(current: &Record, new: &Record) -> bool {
    !current.backups.is_subset(&new.backups) || new.holder != current.holder
}

impl ManualHandle {
    /// The question that waits, if any; for the status page.
    pub fn pending(&self) -> Option<PendingQuestion> {
        let state = self.desk.lock();
        state.answer.is_none().then(|| state.question.clone())?
    }

    /// The operator's command: the step that waits may be taken.
    ///
    /// # Errors
    /// [`NothingPending`] when none waits.
    pub fn grant(&self) -> Result<PendingQuestion, NothingPending> {
        self.answer(Answer::Granted)
    }

    /// Takes the question back, because the peer returned or this node stops.
    ///
    /// # Errors
    /// [`NothingPending`] when none waits.
    pub fn withdraw(&self) -> Result<PendingQuestion, NothingPending> {
        self.answer(Answer::Withdrawn)
    }

    fn answer(&self, answer: Answer) -> Result<PendingQuestion, NothingPending> {
        let mut state = self.desk.lock();
        if state.answer.is_some() {
            return Err(NothingPending);
        }
        let question = state.question.clone().ok_or(NothingPending)?;
        state.answer = Some(answer);
        self.desk.changed.notify_all();
        Ok(question)
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, DeskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, DeskState>) -> MutexGuard<'a, DeskState> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, question: PendingQuestion) -> Result<(), ArbiterError> {
        let mut state = self.lock();
        while state.question.is_some() {
            state = self.wait(state);
        }
        state.question = Some(question);
        let answer = loop {
            match state.answer.take() {
                Some(answer) => break answer,
                None => state = self.wait(state),
            }
        };
        state.question = None;
        self.changed.notify_all();
        match answer {
            Answer::Granted => Ok(()),
            Answer::Withdrawn => Err(ArbiterError::Withdrawn),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::MemoryArbiter;
    use crate::arbiter::contract::{self, record};
    use crate::arbitration::{Authority, Step, arbitrate};
    use log_format::Life;

    /// Waits until a question lies on the desk.
    fn wait_for_question(handle: &ManualHandle) -> PendingQuestion {
        loop {
            if let Some(question) = handle.pending() {
                return question;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn steps_without_danger_need_no_operator() {
        contract::keeps_what_was_won_and_refuses_the_rest(&ManualArbiter::new(MemoryArbiter::default()));
        let arbiter = ManualArbiter::new(MemoryArbiter::default());
        for _ in 0..2 {
            let step =
                Step::ClaimStart { node: "a".into(), life: Life::UNKNOWN, authority: Authority::Rules };
            arbitrate(&arbiter, &step).unwrap();
        }
        assert_eq!(arbiter.read().unwrap(), Some(record(2, "a", None)));
    }

    #[test]
    fn a_takeover_waits_for_the_operators_command() {
        let arbiter = ManualArbiter::new(MemoryArbiter::default());
        let handle = arbiter.handle();
        assert_eq!(handle.grant(), Err(NothingPending));
        arbiter.learn(&record(3, "a", Some("b"))).unwrap();
        let step = Step::TakeOver { node: "b".into(), life: Life::UNKNOWN, term: 3, held: 5 };
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| arbitrate(&arbiter, &step).unwrap());
            let question = wait_for_question(&handle);
            assert_eq!(question.to_string(), "may b take over from a in term 4?");
            assert_eq!(arbiter.read().unwrap(), Some(record(3, "a", Some("b"))));
            handle.grant().unwrap();
            assert_eq!(taken.join().unwrap(), record(4, "b", None));
        });
        assert_eq!(handle.pending(), None);
        assert_eq!(handle.grant(), Err(NothingPending));
    }

    #[test]
    fn a_withdrawn_question_leaves_the_record_alone() {
        let arbiter = ManualArbiter::new(MemoryArbiter::default());
        let handle = arbiter.handle();
        arbiter.learn(&record(1, "a", Some("b"))).unwrap();
        let step = Step::SetBackups {
            node: "a".into(),
            term: 1,
            backups: Default::default(),
            lives: Default::default(),
            required: 0,
        };
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| arbitrate(&arbiter, &step));
            let question = wait_for_question(&handle);
            assert_eq!(question.to_string(), "may a go on without b in term 1?");
            handle.withdraw().unwrap();
            let error = asked.join().unwrap().unwrap_err().to_string();
            assert_eq!(error, "arbiter: the question to the operator was withdrawn");
        });
        assert_eq!(arbiter.read().unwrap(), Some(record(1, "a", Some("b"))));
        assert_eq!(handle.pending(), None);
    }

    #[test]
    fn an_old_record_is_not_learned_over_a_new_one() {
        let arbiter = ManualArbiter::new(MemoryArbiter::default());
        arbiter.learn(&record(2, "b", None)).unwrap();
        arbiter.learn(&record(1, "a", Some("b"))).unwrap();
        assert_eq!(arbiter.read().unwrap(), Some(record(2, "b", None)));
    }
}
