//! Compares what was written to the disks with the backups', at one place of the log.
//!
//! ```text
//!   wanted --replay: the disks are frozen at the end of a batch----------+
//!      |                                                                 v
//!      +--hybrid, checkpoint: frozen with the next increment--> comparing --all blocks of all sides--> told
//!                                                                 |  (or a backup is lost: told so of it)
//!                                                                 +-- DiskCheck{after which batch} goes out
//! ```
//!
//! A backup that replays stands at the end of that batch, one that stands is there when it has put
//! the increment into place. Both sides freeze their disks there, copy-on-write, and hash the blocks
//! anew, from the disks, a few at a time between slices of the guest, so that what a disk of a host
//! lost since it was written shows, too.

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
        let is_equal = |backup: &BackupDisks| backup.error.is_none() && backup.differing_blocks == 0;
        !self.backups.is_empty() && self.backups.iter().all(is_equal)
    }
}

type Hashes = BTreeMap<(u8, u64), Digest>;

/// A comparison under way.
#[derive(Debug)]
pub(super) struct Check {
    number: u64,
    frozen: Frozen,
    sequence: u64,
    own: Hashes,
    is_own_whole: bool,
    backups: BTreeMap<String, Answer>,
}

/// What this side's disks are frozen with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frozen {
    /// Not asked for yet.
    No,
    /// By themselves.
    Alone,
    /// As the checkpoint `disks`, when the increment `with` begins.
    With { disks: u64, with: u64 },
}

#[derive(Debug, Default)]
struct Answer {
    /// Which join of the backup it is.
    incarnation: u64,
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
        } else if !self.has_comparable() {
            Some("there is no backup to compare with; start one")
        } else {
            None
        };
        if let Some(text) = refused {
            return self.events.push_back(PrimaryEvent::DisksCompared(Err(text.to_owned())));
        }
        self.disk_checks += 1;
        let (number, frozen) = (self.disk_checks, Frozen::No);
        let (own, backups) = (Hashes::new(), BTreeMap::new());
        self.disk_check = Some(Check { number, frozen, sequence: 0, own, is_own_whole: false, backups });
    }

    fn has_comparable(&self) -> bool {
        self.peers.values().any(|peer| peer.ready && peer.phase == Phase::Following)
    }

    /// Has the disks frozen, as soon as that can be. In modes in which backups stand, the next
    /// increment does it.
    pub(super) fn drive_disk_check(&mut self) {
        let Some(check) = self.disk_check.as_ref().filter(|check| check.frozen == Frozen::No) else { return };
        let number = check.number;
        if !self.has_comparable() || self.is_over() {
            self.disk_check = None;
            let text = format!("comparison {number} found no backup to compare with; start one");
            return self.events.push_back(PrimaryEvent::DisksCompared(Err(text)));
        }
        // Not while the mode changes: the backups are on the way from one place to another.
        if self.modes.present == ProtectionMode::Replay
            && self.modes.is_settled()
            && !self.checkpoints.is_freezing()
        {
            self.set_frozen(Frozen::Alone);
            self.request(Purpose::DiskCheck);
        }
    }

    /// Whether the next increment is to freeze the disks, too, and soon.
    pub(super) fn wants_disks_frozen(&self) -> bool {
        self.disk_check.as_ref().is_some_and(|check| check.frozen == Frozen::No)
    }

    /// They will be frozen as the checkpoint `disks` when the increment `with` begins.
    pub(super) fn disks_frozen_with(&mut self, disks: u64, with: u64) {
        self.set_frozen(Frozen::With { disks, with });
    }

    fn set_frozen(&mut self, frozen: Frozen) {
        if let Some(check) = &mut self.disk_check {
            check.frozen = frozen;
        }
    }

    /// An increment was begun, which leads to `sequence`, and goes to these backups.
    pub(super) fn disks_frozen_at(&mut self, increment: u64, sequence: u64, receivers: &[String]) {
        let frozen = self.disk_check.as_ref().map(|check| check.frozen);
        if let Some(Frozen::With { disks, with }) = frozen
            && with == increment
        {
            self.ask_to_hash(sequence, receivers);
            self.take_blocks(disks);
        }
    }

    /// The disks are frozen by themselves.
    pub(super) fn disk_check_begun(&mut self, checkpoint: u64, now_ns: u64) {
        // A batch ends here, so that the backups can stand at the same place.
        self.seal(now_ns);
        let asked = self.peers.values().filter(|peer| peer.phase == Phase::Following);
        let asked: Vec<String> = asked.map(|peer| peer.node.clone()).collect();
        self.ask_to_hash(self.tail.last_sequence(), &asked);
        self.take_blocks(checkpoint);
    }

    fn ask_to_hash(&mut self, sequence: u64, nodes: &[String]) {
        let term = self.term();
        let Some(check) = &mut self.disk_check else { return };
        check.sequence = sequence;
        let message = Message::DiskCheck(DiskCheck { term, sequence, check: check.number });
        for node in nodes {
            let Some(peer) = self.peers.get(node) else { continue };
            let answer = check.backups.entry(node.clone()).or_default();
            answer.incarnation = peer.incarnation;
            if peer.version < MODES_VERSION {
                answer.fail("it runs an older version, which cannot hash its disks");
            } else if let Some(connection) = peer.connection.and_then(|id| self.connections.get_mut(&id)) {
                connection.push(message.clone());
            }
        }
    }

    /// Blocks of the frozen disks came.
    pub(super) fn disk_check_part(&mut self, checkpoint: u64, part: &CheckpointPart) {
        if let Some(check) = &mut self.disk_check {
            check.take_own(part);
        }
        match part.is_empty() {
            true => self.checkpoints.done(checkpoint),
            false => self.take_blocks(checkpoint),
        }
        self.end_disk_check();
    }

    fn take_blocks(&mut self, checkpoint: u64) {
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
        // Also what is behind a connection that broke: nobody knows what went with it.
        let is_there = |node: &str, answer: &Answer| {
            peers.get(node).is_some_and(|peer| peer.incarnation == answer.incarnation)
        };
        let lost = check.backups.iter_mut().filter(|(node, answer)| !is_there(node, answer));
        lost.filter(|(_, answer)| !answer.is_whole)
            .for_each(|(_, answer)| answer.fail("it was lost meanwhile; try again"));
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
            frozen: Frozen::Alone,
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
