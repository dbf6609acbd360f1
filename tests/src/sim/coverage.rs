//! What the runs met: events counted by name, and pairs of faults that overlapped in time, by the
//! protection state of the machine at that moment.

use std::collections::{BTreeMap, BTreeSet};

use super::faults::FaultKind;

/// How often what happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    counts: BTreeMap<String, u64>,
    pairs: BTreeMap<(FaultKind, FaultKind), BTreeMap<String, u64>>,
}

impl Coverage {
    /// Counts something that happened.
    pub fn count(&mut self, what: &str) {
        self.add(what, 1);
    }

    /// Counts something that happened so often.
    pub fn add(&mut self, what: &str, times: u64) {
        match self.counts.get_mut(what) {
            Some(count) => *count += times,
            None => {
                self.counts.insert(what.to_owned(), times);
            }
        }
    }

    /// How often it happened.
    pub fn times(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }

    /// A fault began while another had its effect, on a machine in this state of protection.
    pub fn count_pair(&mut self, one: FaultKind, other: FaultKind, state: &str) {
        let states = self.pairs.entry((one.min(other), one.max(other))).or_default();
        match states.get_mut(state) {
            Some(count) => *count += 1,
            None => {
                states.insert(state.to_owned(), 1);
            }
        }
    }

    /// How often the two overlapped.
    pub fn pair_times(&self, one: FaultKind, other: FaultKind) -> u64 {
        self.pairs.get(&(one.min(other), one.max(other))).map_or(0, |states| states.values().sum())
    }

    /// Adds what another run met.
    pub fn merge(&mut self, other: Coverage) {
        for (what, times) in other.counts {
            *self.counts.entry(what).or_default() += times;
        }
        for (pair, states) in other.pairs {
            let own = self.pairs.entry(pair).or_default();
            for (state, times) in states {
                *own.entry(state).or_default() += times;
            }
        }
    }

    /// Pairs that never overlapped.
    pub fn pairs_missed(&self) -> Vec<(FaultKind, FaultKind)> {
        all_pairs().into_iter().filter(|(one, other)| self.pair_times(*one, *other) == 0).collect()
    }

    /// States of protection in which pairs were met.
    fn states(&self) -> BTreeSet<&str> {
        self.pairs.values().flat_map(BTreeMap::keys).map(String::as_str).collect()
    }
}

/// Every pair of faults, each with itself too: on two hosts, or twice in a row.
pub fn all_pairs() -> Vec<(FaultKind, FaultKind)> {
    let kinds = FaultKind::ALL;
    let with = |index: usize| kinds[index..].iter().map(move |other| (kinds[index], *other));
    (0..kinds.len()).flat_map(with).collect()
}

/// The counts, the matrix of pairs (numbers of the kinds along both sides), and for each state of
/// protection how many pairs met it.
impl std::fmt::Display for Coverage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (what, times) in &self.counts {
            writeln!(f, "{times:>9}  {what}")?;
        }
        writeln!(f, "\npairs of faults that overlapped in time")?;
        write!(f, "{:>26}", "")?;
        (0..FaultKind::ALL.len()).try_for_each(|column| write!(f, "{:>6}", column + 1))?;
        writeln!(f)?;
        for (row, one) in FaultKind::ALL.iter().enumerate() {
            write!(f, "{:>2} {:<23}", row + 1, one.name())?;
            write!(f, "{:width$}", "", width = 6 * row)?;
            for other in &FaultKind::ALL[row..] {
                write!(f, "{:>6}", self.pair_times(*one, *other))?;
            }
            writeln!(f)?;
        }
        writeln!(f, "\n{} pairs, of which these were met while the machine was", all_pairs().len())?;
        for state in self.states() {
            let met = self.pairs.values().filter_map(|states| states.get(state));
            let (pairs, times) = met.fold((0, 0), |(pairs, sum), times| (pairs + 1, sum + times));
            writeln!(f, "{pairs:>6}  {state} ({times} times)")?;
        }
        Ok(())
    }
}
