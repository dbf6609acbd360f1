//! What a node left to its next life, and comparisons of the disks.

use backup::FromReplayer;
use primary::DiskComparison;

use super::*;

impl World {
    /// The process of a node is gone; what it ran or followed with may be found by the next.
    pub(super) fn leave(&mut self, node: usize) {
        let machine = match std::mem::replace(&mut self.nodes[node].role, Role::Down) {
            Role::Primary(live) => Some(live.vcpu.into_machine()),
            Role::Backup(standing) => standing.worker.into_machine(),
            Role::Down => return,
        };
        self.nodes[node].left = machine;
    }

    /// What a backup begins with: nothing, what the host's disk kept of an earlier life, or all of
    /// the machine, where the process goes on in another role.
    pub(super) fn left_to(&mut self, node: usize) -> Option<ToyMachine> {
        let mut machine = self.nodes[node].left.take()?;
        machine.disk_mut().heal();
        if self.options.mutation == Some(Mutation::FlipBit) {
            return None;
        }
        match self.random.between(0, 2) {
            0 => None,
            1 => Some(machine.after_a_crash()),
            _ => Some(machine),
        }
    }

    /// The operator has the disks compared, of which one may be not what it should be.
    pub(super) fn compare_disks(&mut self) {
        let next_ns = self.random.between(150, 900) * MILLISECOND_NS;
        self.schedule(self.now_ns + next_ns, What::CompareDisks);
        let (rots, number) = (self.random.chance(500), self.random.next_u64());
        for node in &mut self.nodes {
            if let Role::Backup(standing) = &mut node.role
                && let Some(machine) = standing.worker.following_machine()
            {
                match rots {
                    true => machine.disk_mut().rot(number),
                    false => machine.disk_mut().heal(),
                }
            }
        }
        self.operator_says(primary::Operator::CompareDisks);
    }

    /// A backup's replay thread hashed its disk, for the primary of its term: as it was.
    pub(super) fn note_hashed(&mut self, node: usize, report: &FromReplayer) {
        if let ReplayReport::DiskHashes(hashes) = &report.report
            && hashes.is_last
            && let Role::Backup(standing) = &mut self.nodes[node].role
        {
            let term = standing.core.term();
            let machine = standing.worker.following_machine();
            let rotten = machine.and_then(|machine| machine.disk_mut().was_rotten());
            self.nodes[node].hashed_rotten.insert(term, rotten);
        }
    }

    /// What is said of a comparison must be true. A primary that was replaced may say it late: its backups may
    /// have hashed their disks for another by then.
    pub(super) fn disks_compared(&mut self, primary: usize, found: &Result<DiskComparison, String>) {
        let Ok(found) = found else { return self.count("disks not compared") };
        let Role::Primary(live) = &self.nodes[primary].role else { return };
        let term = live.core.term();
        for backup in &found.backups {
            let Some(node) = self.position_of(&backup.node) else { continue };
            if backup.error.is_some() {
                self.count("disks not compared");
                continue;
            }
            let rotten = self.nodes[node].hashed_rotten.get(&term).copied().flatten();
            let expected: Vec<(u8, u64)> = rotten.into_iter().map(|index| (0, index)).collect();
            if backup.first != expected || backup.differing_blocks != expected.len() as u64 {
                let name = &self.nodes[primary].name;
                let text = format!(
                    "{name} says of the disks: {found:?}; of {} {rotten:?} is not right",
                    backup.node
                );
                self.checks.violation(text);
            }
            self.count(if rotten.is_some() { "disks differ" } else { "disks equal" });
        }
    }
}
