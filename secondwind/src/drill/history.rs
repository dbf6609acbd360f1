//! What the drill's clients did and saw, and whether one machine that never failed could
//! have answered so.

use std::collections::BTreeMap;

use serde::Serialize;
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;

/// One request of a client. Times are in nanoseconds since the drill began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Operation {
    /// The connection that sent it; a connection has one request under way at a time.
    pub connection: usize,
    /// The key it is about.
    pub key: String,
    /// What was asked.
    pub request: Request,
    /// When it was sent.
    pub called_ns: u64,
    /// When the answer was complete, and what it was; `None` where none came.
    pub answer: Option<(u64, Answer)>,
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Request {
    /// Set the key to this value.
    Put(String),
    /// Give the key's value.
    Get,
}

/// What a client is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Of a get: the value, `None` where the key was never set.
    pub value: Option<String>,
    /// Of a ledger: entries it held after the request. Redis gives none.
    pub length: Option<u64>,
}

impl Operation {
    /// Nanoseconds from request to answer.
    pub fn latency_ns(&self) -> Option<u64> {
        self.answer.as_ref().map(|(returned_ns, _)| returned_ns - self.called_ns)
    }
}

/// What is wrong with a history; empty when nothing is.
pub fn violations(operations: &[Operation]) -> Vec<String> {
    let mut found = not_linearizable(operations);
    found.extend(ledger_disorder(operations));
    found
}

/// A key as an atomic register, for the checker: gets carry the value they returned.
struct Register;

#[derive(Debug, Clone, PartialEq, Eq)]
enum RegisterOperation {
    Put(String),
    Get(Option<String>),
}

impl Specification for Register {
    type State = Option<String>;
    type Operation = RegisterOperation;

    fn init() -> Self::State {
        None
    }

    fn apply(operation: &Self::Operation, state: &Self::State) -> (bool, Self::State) {
        match operation {
            RegisterOperation::Put(value) => (true, Some(value.clone())),
            RegisterOperation::Get(value) => (value == state, state.clone()),
        }
    }
}

/// Keys whose history is not linearizable (Herlihy and Wing 1990; the property is local, so
/// each key is checked by itself), by the algorithm of Wing, Gong and Lowe.
fn not_linearizable(operations: &[Operation]) -> Vec<String> {
    let mut by_key: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    operations.iter().for_each(|operation| by_key.entry(&operation.key).or_default().push(operation));
    by_key
        .into_iter()
        .filter_map(|(key, operations)| {
            let actions = actions_of(&operations);
            let linearizable =
                actions.is_empty() || WGLChecker::<Register>::is_linearizable(History::from_actions(actions));
            (!linearizable).then(|| format!("the history of key {key:?} is not linearizable"))
        })
        .collect()
}

/// The checker's form: calls and responses in the order of time. A put without an answer may
/// have taken effect at any time after its call, or never: its response stands at the end.
/// A get without an answer says nothing and is left out.
fn actions_of(operations: &[&Operation]) -> Vec<(usize, Action<RegisterOperation>)> {
    let mut actions = Vec::new();
    for (process, operation) in operations.iter().enumerate() {
        let (what, returned_ns) = match (&operation.request, &operation.answer) {
            (Request::Put(value), answer) => (
                RegisterOperation::Put(value.clone()),
                answer.as_ref().map_or(u64::MAX, |(returned_ns, _)| *returned_ns),
            ),
            (Request::Get, Some((returned_ns, answer))) => {
                (RegisterOperation::Get(answer.value.clone()), *returned_ns)
            }
            (Request::Get, None) => continue,
        };
        // A call before a response of the same instant: they count as concurrent.
        actions.push((operation.called_ns, 0, process, Action::Call(what.clone())));
        actions.push((returned_ns, 1, process, Action::Response(what)));
    }
    actions.sort_by_key(|(time_ns, order, process, _)| (*time_ns, *order, *process));
    actions.into_iter().map(|(_, _, process, action)| (process, action)).collect()
}

/// Requests whose ledger lengths contradict the order of time: an acknowledged entry that
/// was lost again, or two puts that were given the same place.
fn ledger_disorder(operations: &[Operation]) -> Vec<String> {
    let mut answered: Vec<(u64, u64, u64, bool)> = operations
        .iter()
        .filter_map(|operation| {
            let (returned_ns, answer) = operation.answer.as_ref()?;
            let is_put = matches!(operation.request, Request::Put(_));
            Some((operation.called_ns, *returned_ns, answer.length?, is_put))
        })
        .collect();
    let mut found = Vec::new();

    let mut places: Vec<u64> = answered.iter().filter(|answer| answer.3).map(|answer| answer.2).collect();
    places.sort_unstable();
    for pair in places.windows(2).filter(|pair| pair[0] == pair[1]) {
        found.push(format!("two acknowledged entries hold place {} of the ledger", pair[0]));
    }

    // Walks by call time with the greatest length among those answered before the call.
    answered.sort_unstable();
    let mut returns: Vec<(u64, u64)> = answered.iter().map(|answer| (answer.1, answer.2)).collect();
    returns.sort_unstable();
    let (mut next, mut acknowledged) = (0, 0);
    for (called_ns, _, length, is_put) in answered {
        while next < returns.len() && returns[next].0 < called_ns {
            acknowledged = acknowledged.max(returns[next].1);
            next += 1;
        }
        if length < acknowledged + u64::from(is_put) {
            found.push(format!("the ledger held {length} entries after {acknowledged} were acknowledged"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(connection: usize, called_ns: u64, returned_ns: u64, value: &str, length: u64) -> Operation {
        Operation {
            connection,
            key: "k".into(),
            request: Request::Put(value.into()),
            called_ns,
            answer: Some((returned_ns, Answer { value: None, length: Some(length) })),
        }
    }

    fn get(
        connection: usize,
        called_ns: u64,
        returned_ns: u64,
        value: Option<&str>,
        length: u64,
    ) -> Operation {
        Operation {
            connection,
            key: "k".into(),
            request: Request::Get,
            called_ns,
            answer: Some((returned_ns, Answer { value: value.map(Into::into), length: Some(length) })),
        }
    }

    #[test]
    fn an_honest_history_passes() {
        let history = [
            put(0, 0, 10, "a", 1),
            get(1, 5, 15, None, 0),
            get(1, 20, 30, Some("a"), 1),
            put(0, 25, 40, "b", 2),
        ];
        assert_eq!(violations(&history), Vec::<String>::new());
    }

    #[test]
    fn a_lost_acknowledged_put_is_found() {
        let history = [put(0, 0, 10, "a", 1), get(1, 20, 30, None, 0)];
        let found = violations(&history);
        assert_eq!(found.len(), 2, "by the checker and by the ledger's length: {found:?}");
    }

    #[test]
    fn a_put_without_an_answer_may_or_may_not_have_happened() {
        let mut pending = put(0, 0, 10, "a", 1);
        pending.answer = None;
        for seen in [None, Some("a")] {
            assert_eq!(violations(&[pending.clone(), get(1, 20, 30, seen, seen.map_or(0, |_| 1))]).len(), 0);
        }
        // ... but not first happen and then be undone.
        let undone = [pending, get(1, 20, 30, Some("a"), 1), get(1, 40, 50, None, 1)];
        assert_eq!(violations(&undone).len(), 1);
    }

    #[test]
    fn two_machines_that_answer_the_same_place_are_found() {
        let history = [put(0, 0, 10, "a", 1), put(1, 0, 12, "b", 1)];
        assert_eq!(violations(&history).len(), 1);
    }

    #[test]
    fn a_stale_read_is_found() {
        let history = [put(0, 0, 10, "a", 1), put(0, 20, 30, "b", 2), get(1, 40, 50, Some("a"), 2)];
        assert_eq!(violations(&history).len(), 1);
    }
}
