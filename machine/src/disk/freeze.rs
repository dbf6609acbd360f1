//! Checkpoints of a disk: the blocks that were written to, frozen as memory's pages are (see
//! the memory's own `freeze`), and read from the store as they are taken.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use log_format::DiskBlock;

use super::{BLOCK_BYTES, Disk, Written};
use crate::contract::CheckpointExtent;

/// A checkpoint of all blocks that were written to: a full one, or one of the disks alone.
#[derive(Default)]
pub(super) struct WholeFreeze {
    /// How many such had been begun, with this one.
    number: u64,
    /// The next block to take.
    cursor: u64,
    /// Old contents of blocks that were written to before they were taken.
    held: BTreeMap<u64, Bytes>,
}

/// An increment: under way, or taken to its end.
#[derive(Default)]
pub(super) struct IncrementFreeze {
    /// Blocks that are still to be taken.
    pending: BTreeSet<u64>,
    /// Those of them whose frozen contents were not hashed yet.
    stale: BTreeSet<u64>,
    /// Blocks that were taken.
    taken: Vec<u64>,
    /// See [`WholeFreeze::held`].
    held: BTreeMap<u64, Bytes>,
    /// Like the sum of the disk's hashes, of the frozen state; right once no block is stale.
    hash_sum: u128,
    has_ended: bool,
}

impl WholeFreeze {
    /// Whether a block still has to be taken as it is now, before it is written to.
    fn needs(&self, block: u64, written: &Written) -> bool {
        self.cursor <= block && written.checkpoints_before < self.number && !self.held.contains_key(&block)
    }
}

impl Disk {
    /// Freezes the present state for [`Disk::take_blocks`], or begins an epoch. An increment
    /// that was not taken to its end is cancelled first.
    ///
    /// Returns how many blocks were written to in the epoch that ends with it; 0 for one of all
    /// blocks, which ends none. Blocks written to since the last digest count, too.
    pub fn begin_checkpoint(&mut self, extent: CheckpointExtent) -> u64 {
        match extent {
            CheckpointExtent::Full | CheckpointExtent::Disks => {
                self.checkpoints += 1;
                let number = self.checkpoints;
                *self.whole(extent) = Some(WholeFreeze { number, ..WholeFreeze::default() });
                0
            }
            CheckpointExtent::Epoch => {
                self.cancel_checkpoint(CheckpointExtent::Increment);
                self.end_epoch().len() as u64
            }
            CheckpointExtent::Increment => {
                self.cancel_checkpoint(CheckpointExtent::Increment);
                let mut pending = self.end_epoch();
                // What is not dirty, but stale, has yet to be hashed as it is now.
                let stale = std::mem::take(&mut self.stale);
                pending.extend(&stale);
                let blocks = pending.len();
                let hash_sum = self.hash_sum;
                self.increment =
                    Some(IncrementFreeze { pending, stale, hash_sum, ..IncrementFreeze::default() });
                blocks as u64
            }
        }
    }

    /// Begins an epoch. Returns the blocks written to in the one before it.
    fn end_epoch(&mut self) -> BTreeSet<u64> {
        let before = self.dirty.replace(BTreeSet::new());
        before.unwrap_or_else(|| self.written.keys().copied().collect())
    }

    /// Takes up to `limit` frozen blocks; empty at the end. An epoch has none.
    ///
    /// # Errors
    /// When the store fails.
    pub fn take_blocks(
        &mut self,
        extent: CheckpointExtent,
        disk: u8,
        limit: usize,
    ) -> io::Result<Vec<DiskBlock>> {
        let mut taken = Vec::new();
        while taken.len() < limit {
            let next = match extent {
                CheckpointExtent::Full | CheckpointExtent::Disks => self.take_whole(extent)?,
                CheckpointExtent::Epoch => None,
                CheckpointExtent::Increment => self.take_increment()?,
            };
            let Some((index, data)) = next else { break };
            taken.push(DiskBlock { disk, index, data });
        }
        Ok(taken)
    }

    /// The checkpoint of all blocks of this extent.
    fn whole(&mut self, extent: CheckpointExtent) -> &mut Option<WholeFreeze> {
        match extent {
            CheckpointExtent::Disks => &mut self.alone,
            _ => &mut self.full,
        }
    }

    fn take_whole(&mut self, extent: CheckpointExtent) -> io::Result<Option<(u64, Bytes)>> {
        let Some(mut freeze) = self.whole(extent).take() else { return Ok(None) };
        let belongs = |(_, written): &(&u64, &Written)| written.checkpoints_before < freeze.number;
        let Some((&index, _)) = self.written.range(freeze.cursor..).find(belongs) else {
            return Ok(None);
        };
        freeze.cursor = index + 1;
        let held = freeze.held.remove(&index);
        *self.whole(extent) = Some(freeze);
        let data = match held {
            Some(old) => old,
            None => self.read_block(index)?,
        };
        Ok(Some((index, data)))
    }

    fn take_increment(&mut self) -> io::Result<Option<(u64, Bytes)>> {
        let next = self.increment.as_ref().and_then(|increment| increment.pending.first().copied());
        let Some(block) = next else { return Ok(None) };
        self.settle_frozen(block)?;
        let held = self.increment.as_mut().and_then(|increment| increment.held.remove(&block));
        let data = match held {
            Some(old) => old,
            None => self.read_block(block)?,
        };
        if let Some(increment) = &mut self.increment {
            increment.pending.remove(&block);
            increment.taken.push(block);
        }
        Ok(Some((block, data)))
    }

    /// Keeps the contents of a block that is about to be written to, for the checkpoints that
    /// still have to take it.
    pub(super) fn hold_frozen(&mut self, block: u64) -> io::Result<()> {
        let written = self.written.get(&block);
        let needs = |freeze: &Option<WholeFreeze>| {
            freeze.as_ref().zip(written).is_some_and(|(freeze, written)| freeze.needs(block, written))
        };
        let (for_full, for_alone) = (needs(&self.full), needs(&self.alone));
        let for_increment = self.increment.as_ref().is_some_and(|increment| {
            increment.pending.contains(&block) && !increment.held.contains_key(&block)
        });
        if !for_full && !for_alone && !for_increment {
            return Ok(());
        }
        let old = self.read_block(block)?;
        if for_alone && let Some(alone) = &mut self.alone {
            alone.held.insert(block, old.clone());
        }
        if for_full && let Some(full) = &mut self.full {
            full.held.insert(block, old.clone());
        }
        if for_increment && let Some(increment) = &mut self.increment {
            increment.held.insert(block, old);
        }
        Ok(())
    }

    /// Hashes what the increment under way has frozen, so that the hash of each block is that
    /// of a state not before it.
    pub(super) fn settle_increment(&mut self) -> io::Result<()> {
        while let Some(block) = self.increment.as_ref().and_then(|increment| increment.stale.first().copied())
        {
            self.settle_frozen(block)?;
        }
        Ok(())
    }

    /// Hashes the frozen contents of a block. The hash that it replaces is still that of the
    /// last digest before the freeze: a later digest settles all frozen blocks first.
    fn settle_frozen(&mut self, block: u64) -> io::Result<()> {
        let Some(increment) = self.increment.as_ref().filter(|increment| increment.stale.contains(&block))
        else {
            return Ok(());
        };
        let data = match increment.held.get(&block) {
            Some(old) => old.clone(),
            None => self.read_block(block)?,
        };
        let (before, hash) = self.replace_hash(block, &data);
        if let Some(increment) = &mut self.increment {
            increment.stale.remove(&block);
            increment.hash_sum = increment.hash_sum.wrapping_sub(before).wrapping_add(hash);
        }
        Ok(())
    }

    /// Ends the increment under way: all of it was taken, and nobody will cancel it.
    pub fn end_increment(&mut self) {
        if let Some(increment) = &mut self.increment {
            assert!(increment.pending.is_empty(), "an increment ends when all of it was taken");
            increment.taken.clear();
            increment.has_ended = true;
        }
    }

    /// What [`Disk::digest`] would have said of the state that the increment froze; `None`
    /// before its end.
    pub fn increment_digest(&self) -> Option<u128> {
        self.increment.as_ref().filter(|increment| increment.has_ended).map(|increment| increment.hash_sum)
    }

    /// Bytes of old block contents held for the checkpoints under way, at most: zeros cost
    /// nothing, and what two of them hold counts twice.
    pub fn held_bytes(&self) -> u64 {
        let held = |freeze: &Option<WholeFreeze>| freeze.as_ref().map_or(0, |freeze| freeze.held.len());
        let increment = self.increment.as_ref().map_or(0, |increment| increment.held.len());
        ((held(&self.full) + held(&self.alone) + increment) * BLOCK_BYTES) as u64
    }

    /// Gives up the checkpoint under way. The blocks of an increment belong to the present
    /// epoch again, whether they were taken or not.
    pub fn cancel_checkpoint(&mut self, extent: CheckpointExtent) {
        match extent {
            CheckpointExtent::Full | CheckpointExtent::Disks => *self.whole(extent) = None,
            CheckpointExtent::Epoch => {}
            CheckpointExtent::Increment => {
                let Some(increment) = self.increment.take() else { return };
                self.stale.extend(increment.stale);
                if let Some(dirty) = &mut self.dirty {
                    dirty.extend(increment.pending);
                    dirty.extend(increment.taken);
                }
            }
        }
    }
}
