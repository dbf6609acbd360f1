//! Hashes of what was written to the disks, for a primary that compares them with its own.
//!
//! The disks are frozen copy-on-write where the machine stands, and hashed a bite at a time, while it
//! replays or takes increments: it is not held up by the size of the disks.

use log_format::{DiskHashes, OfferedBlock};
use machine::{CheckpointExtent, Machine, content_hash};

use super::{ReplayReport, ReplayWorker, State};

/// Blocks read and hashed in one go: 1 MiB.
const BITE_BLOCKS: usize = 256;
/// Hashes in one message: 200 kB.
const HASHES_AT_ONCE: usize = 8192;

/// Disks that are being hashed.
pub(super) struct Hashing {
    /// Number of the check: the answers carry it.
    check: u64,
    /// Hashed, and not told.
    blocks: Vec<OfferedBlock>,
}

impl<M: Machine, F: FnMut() -> M> ReplayWorker<M, F> {
    /// Freezes the disks where the machine stands. What was being hashed for an earlier check is
    /// given up: nobody waits for it any more.
    pub(super) fn begin_hashing(&mut self, check: u64) {
        if let State::Standing(standing) = &mut self.state {
            standing.replayer.machine_mut().begin_checkpoint(CheckpointExtent::Disks);
            self.hashing = Some(Hashing { check, blocks: Vec::new() });
        }
    }

    /// Hashes a bite of what is frozen. Whether there is more.
    pub(super) fn hash_some(&mut self) -> bool {
        let Some(mut hashing) = self.hashing.take() else { return false };
        let Some(machine) = self.following_machine() else { return false };
        let part = machine.take_checkpoint_pages(CheckpointExtent::Disks, BITE_BLOCKS);
        hashing.blocks.extend(part.blocks.iter().map(|block| OfferedBlock {
            disk: block.disk,
            index: block.index,
            hash: content_hash(&block.data),
        }));
        let is_last = part.blocks.is_empty();
        if is_last || hashing.blocks.len() >= HASHES_AT_ONCE {
            let (check, blocks) = (hashing.check, std::mem::take(&mut hashing.blocks));
            let hashes = DiskHashes { check, blocks, is_last, error: String::new() };
            self.tell(ReplayReport::DiskHashes(hashes));
        }
        if !is_last {
            self.hashing = Some(hashing);
        }
        !is_last
    }

    /// Nothing is frozen any more, and the answer will not come.
    pub(super) fn end_hashing(&mut self) {
        if self.hashing.take().is_some()
            && let Some(machine) = self.following_machine()
        {
            machine.cancel_checkpoint(CheckpointExtent::Disks);
        }
    }
}
