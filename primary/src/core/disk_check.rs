//! Compares what was written to the disks with the backups that replay, at one place of the log.
//!
//! ```text
//!   asked --> freezing --begun--> comparing --all blocks of all sides--> told
//!               |                    |
//!               |                    +-- a backup is lost: told so of it
//!               +-- DiskCheck{after which batch} goes out
//! ```
//!
//! Both sides hash the blocks anew, from the disks, so that what a disk of a host lost since it
//! was written shows, too.

use std::collections::BTreeMap;

use log_format::{
    CheckpointPart, Digest, DiskCheck, DiskHashes, MODES_VERSION, Message, OfferedBlock, ProtectionMode,
};
use machine::content_hash;

use super::epoch::Purpose;
use super::peer::Phase;
use super::{MachineRequest, Primary, PrimaryEvent};

/// Blocks that are named; of the others there is a number.
const NAMED_BLOCKS: usize = 16;

/// What a comparison of the disks found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskComparison {
    /// After which batch.
    pub sequence: u64,
    /// Blocks that were written to here.
    pub blocks: u64,
    /// One for each backup that was asked.
    pub backups: Vec<BackupDisks>,
}

/// How a backup's disks compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupDisks {
    /// Its name.
    pub node: String,
    /// How many blocks differ, or are written to on one side only.
    pub differing_blocks: u64,
    /// The first of them: disk, and number of the block of 4096 bytes.
    pub first: Vec<(u8, u64)>,
    /// Why it could not be compared.
    pub error: Option<String>,
}

impl DiskComparison {
    /// Whether every backup was compared and is equal.
    pub fn is_equal(&self) -> bool {
        self.backups.iter().all(|backup| backup.error.is_none() && backup.differing_blocks == 0)
    }
}

type Hashes = BTreeMap<(u8, u64), Digest>;

/// A comparison under way.
#[derive(Debug)]
pub(super) struct Check {
    number: u64,
    sequence: u64,
    own: Hashes,
    is_own_whole: bool,
    backups: BTreeMap<String, Answer>,
}

#[derive(Debug, Default)]
struct Answer {
    hashes: Hashes,
    is_whole: bool,
    error: Option<String>,
}

impl Check {
    fn take_own(&mut self, part: &CheckpointPart) {
        self.is_own_whole |= part.is_empty();
        let hashed = |block: &log_format::DiskBlock| ((block.disk, block.index), content_hash(&block.data));
        self.own.extend(part.blocks.iter().map(hashed));
    }

    fn take_answer(&mut self, node: &str, hashes: DiskHashes) {
        let Some(answer) = self.backups.get_mut(node).filter(|_| hashes.check == self.number) else { return };
        let hashed = |block: OfferedBlock| ((block.disk, block.index), block.hash);
        answer.hashes.extend(hashes.blocks.into_iter().map(hashed));
        answer.is_whole |= hashes.is_last;
        if !hashes.error.is_empty() {
            answer.fail(&hashes.error);
        }
    }

    fn is_whole(&self) -> bool {
        self.is_own_whole && self.backups.values().all(|answer| answer.is_whole)
    }

    fn compare(self) -> DiskComparison {
        let own = &self.own;
        let compared = self.backups.into_iter().map(|(node, answer)| {
            let differs = |place: &&(u8, u64)| own.get(place) != answer.hashes.get(place);
            let only_there = answer.hashes.keys().filter(|place| !own.contains_key(place));
            let mut differing: Vec<(u8, u64)> =
                own.keys().chain(only_there).filter(differs).copied().collect();
            differing.sort_unstable();
            let differing_blocks = differing.len() as u64;
            differing.truncate(NAMED_BLOCKS);
            BackupDisks { node, differing_blocks, first: differing, error: answer.error }
        });
        let backups = compared.collect();
        DiskComparison { sequence: self.sequence, blocks: self.own.len() as u64, backups }
    }
}

impl Answer {
    fn fail(&mut self, text: &str) {
        self.error = Some(text.to_owned());
        self.is_whole = true;
        self.hashes.clear();
    }
}

impl Primary {
    /// The operator wants the disks compared.
    pub(super) fn begin_disk_check(&mut self) {
        let refused = if self.disk_check.is_some() {
            Some("the disks are being compared already")
        } else if self.modes.present != ProtectionMode::Replay {
            Some("in this protection mode the backups' disks stand at another place; compare them in replay")
        } else if self.checkpoints.joining().is_some() || self.checkpoints.is_freezing() {
            Some("a checkpoint is being taken; try again when it is whole")
        } else if !self.peers.values().any(|peer| peer.phase == Phase::Following) {
            Some("there is no backup to compare with; start one")
        } else {
            None
        };
        if let Some(text) = refused {
            return self.events.push_back(PrimaryEvent::DisksCompared(Err(text.to_owned())));
        }
        self.disk_checks += 1;
        let number = self.disk_checks;
        let (own, backups) = (Hashes::new(), BTreeMap::new());
        self.disk_check = Some(Check { number, sequence: 0, own, is_own_whole: false, backups });
        self.request(Purpose::DiskCheck);
    }

    /// The machine is frozen for it.
    pub(super) fn disk_check_begun(&mut self, checkpoint: u64, now_ns: u64) {
        // A batch ends here, so that the backups can stand at the same place.
        self.seal(now_ns);
        let (term, sequence) = (self.term(), self.tail.last_sequence());
        let Some(check) = &mut self.disk_check else { return };
        check.sequence = sequence;
        let asked = self.peers.values().filter(|peer| peer.phase == Phase::Following);
        let asked: Vec<(String, u8)> = asked.map(|peer| (peer.node.clone(), peer.version)).collect();
        let message = DiskCheck { term, sequence, check: check.number };
        for (node, version) in asked {
            let answer = check.backups.entry(node.clone()).or_default();
            if version < MODES_VERSION {
                answer.fail("it runs an older version, which cannot hash its disks");
            }
        }
        let nodes: Vec<String> = check
            .backups
            .iter()
            .filter(|(_, answer)| !answer.is_whole)
            .map(|(node, _)| node.clone())
            .collect();
        nodes.iter().for_each(|node| self.send_to(node, Message::DiskCheck(message)));
        self.take_pages(checkpoint);
    }

    /// Blocks of the frozen machine came; its pages are of no use here.
    pub(super) fn disk_check_part(&mut self, checkpoint: u64, part: &CheckpointPart) {
        if let Some(check) = &mut self.disk_check {
            check.take_own(part);
        }
        match part.is_empty() {
            true => self.checkpoints.done(checkpoint),
            false => self.take_pages(checkpoint),
        }
        self.end_disk_check();
    }

    fn take_pages(&mut self, checkpoint: u64) {
        let limit = self.config.checkpoint_bite_pages;
        self.requests.push_back(MachineRequest::TakePages { checkpoint, limit });
    }

    /// A backup's hashes came.
    pub(super) fn handle_disk_hashes(&mut self, node: &str, hashes: DiskHashes) {
        if let Some(check) = &mut self.disk_check {
            check.take_answer(node, hashes);
        }
        self.end_disk_check();
    }

    /// Tells what was found, once all is known that will be.
    pub(super) fn end_disk_check(&mut self) {
        let Some(check) = &mut self.disk_check else { return };
        let peers = &self.peers;
        let lost = check.backups.iter_mut().filter(|(node, _)| !peers.contains_key(*node));
        lost.filter(|(_, answer)| !answer.is_whole)
            .for_each(|(_, answer)| answer.fail("it was lost meanwhile"));
        if check.is_whole()
            && let Some(check) = self.disk_check.take()
        {
            self.events.push_back(PrimaryEvent::DisksCompared(Ok(check.compare())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(index: u64, fill: u8) -> OfferedBlock {
        OfferedBlock { disk: 0, index, hash: content_hash(&[fill; 4096]) }
    }

    fn check(nodes: &[&str]) -> Check {
        let data =
            |index: u64| log_format::DiskBlock { disk: 0, index, data: vec![index as u8; 4096].into() };
        let mut check = Check {
            number: 2,
            sequence: 70,
            own: Hashes::new(),
            is_own_whole: false,
            backups: nodes.iter().map(|node| ((*node).to_owned(), Answer::default())).collect(),
        };
        check.take_own(&CheckpointPart { pages: Vec::new(), blocks: (0..40).map(data).collect() });
        assert!(!check.is_own_whole);
        check.take_own(&CheckpointPart::default());
        check
    }

    #[test]
    fn what_differs_is_named() {
        let mut check = check(&["b", "c"]);
        let hashes = |blocks: Vec<OfferedBlock>, is_last| DiskHashes {
            check: 2,
            blocks,
            is_last,
            ..DiskHashes::default()
        };
        let equal =
            |range: std::ops::Range<u64>| range.map(|index| block(index, index as u8)).collect::<Vec<_>>();
        check.take_answer("b", hashes(equal(0..30), false));
        assert!(!check.is_whole());
        check.take_answer("b", hashes(equal(30..40), true));
        // One that differs, one that is missing, one too many.
        let mut other = equal(0..39);
        other[7] = block(7, 99);
        other.push(block(50, 1));
        check.take_answer("c", DiskHashes { check: 1, is_last: true, ..DiskHashes::default() });
        assert!(!check.is_whole(), "the answer to another check is none");
        check.take_answer("c", hashes(other, true));
        assert!(check.is_whole());
        let found = check.compare();
        assert!(!found.is_equal());
        assert_eq!((found.sequence, found.blocks), (70, 40));
        let [b, c] = &found.backups[..] else { panic!("two backups") };
        assert_eq!((b.differing_blocks, b.first.len()), (0, 0));
        assert_eq!((c.differing_blocks, &c.first[..]), (3, &[(0, 7), (0, 39), (0, 50)][..]));
    }

    #[test]
    fn a_backup_that_cannot_is_not_equal() {
        let mut check = check(&["b"]);
        let error = "its disk cannot be read".to_owned();
        check.take_answer(
            "b",
            DiskHashes { check: 2, is_last: true, error: error.clone(), ..DiskHashes::default() },
        );
        assert!(check.is_whole());
        let found = check.compare();
        assert!(!found.is_equal());
        assert_eq!(found.backups[0].error, Some(error));
    }
}
