//! Which backups are counted on, and what enough of them hold.

use std::collections::{BTreeMap, BTreeSet};

use log_format::Life;

/// A set of backups with a rule: so many of them must hold an output before it leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counted {
    members: BTreeMap<String, Member>,
    required: usize,
}

/// A backup that is counted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    /// Which of its joins: one that lost what it held is another backup of the same name.
    pub(super) incarnation: u64,
    /// Every batch up to this one is held by it, as far as was heard.
    pub(super) acked: u64,
    /// Which life of the node it is, as the arbiter knows it.
    pub(super) life: Life,
}

impl Counted {
    pub(super) fn new(members: BTreeMap<String, Member>, required: usize) -> Self {
        Counted { members, required }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(super) fn required(&self) -> usize {
        self.required
    }

    pub(super) fn names(&self) -> BTreeSet<String> {
        self.members.keys().cloned().collect()
    }

    /// Which lives of them these are, as far as they said.
    pub(super) fn lives(&self) -> BTreeMap<String, Life> {
        let known = self.members.iter().filter(|(_, member)| member.life.is_known());
        known.map(|(name, member)| (name.clone(), member.life)).collect()
    }

    pub(super) fn members(&self) -> impl Iterator<Item = (&String, &Member)> {
        self.members.iter()
    }

    /// Whether it is this very backup that is counted on.
    pub(super) fn has(&self, name: &str, incarnation: u64) -> bool {
        self.members.get(name).is_some_and(|member| member.incarnation == incarnation)
    }

    pub(super) fn has_name(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn note_acked(&mut self, name: &str, incarnation: u64, sequence: u64) {
        if let Some(member) = self.members.get_mut(name)
            && member.incarnation == incarnation
        {
            member.acked = member.acked.max(sequence);
        }
    }

    /// Every batch up to this one is held by enough of them; `None` when nobody is counted on:
    /// then nothing waits.
    pub(super) fn held_by_enough(&self) -> Option<u64> {
        let acked = || self.members.values().map(|member| member.acked);
        let enough = self.required.max(1).min(self.members.len());
        acked().filter(|held| acked().filter(|other| other >= held).count() >= enough).max()
    }

    /// Every batch up to this one is held by all of them.
    pub(super) fn held_by_all(&self) -> Option<u64> {
        self.members.values().map(|member| member.acked).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(acked: &[u64], required: usize) -> Counted {
        let members = acked
            .iter()
            .enumerate()
            .map(|(number, acked)| {
                (number.to_string(), Member { incarnation: 1, acked: *acked, life: Life::UNKNOWN })
            })
            .collect();
        Counted::new(members, required)
    }

    #[test]
    fn enough_is_the_so_manieth_highest() {
        assert_eq!(Counted::default().held_by_enough(), None);
        assert_eq!(counted(&[5], 1).held_by_enough(), Some(5));
        assert_eq!(counted(&[5, 9, 7], 1).held_by_enough(), Some(9));
        assert_eq!(counted(&[5, 9, 7], 2).held_by_enough(), Some(7));
        assert_eq!(counted(&[5, 9, 7], 3).held_by_enough(), Some(5));
    }

    #[test]
    fn what_another_incarnation_acknowledges_does_not_count() {
        let mut counted = counted(&[5], 1);
        counted.note_acked("0", 2, 9);
        assert_eq!(counted.held_by_enough(), Some(5));
        counted.note_acked("0", 1, 9);
        counted.note_acked("0", 1, 8);
        assert_eq!(counted.held_by_enough(), Some(9));
    }
}
