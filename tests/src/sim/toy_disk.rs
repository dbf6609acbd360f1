//! The toy machine's disk: a few blocks that checkpoints copy.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use log_format::DiskBlock;
use machine::CheckpointExtent;
use xxhash_rust::xxh3::xxh3_128;

/// Blocks it has.
pub const BLOCKS: u64 = 24;

/// What was written to the disk. A block that never was reads as nothing.
#[derive(Debug, Default)]
pub struct ToyDisk {
    blocks: BTreeMap<u64, Bytes>,
    /// Sum of all blocks' hashes.
    hash: u128,
    /// Written in the present epoch.
    dirty: BTreeSet<u64>,
    full: VecDeque<DiskBlock>,
    alone: VecDeque<DiskBlock>,
    increment: Option<FrozenIncrement>,
    /// A block that the host's disk does not read as it was written.
    rotten: Option<u64>,
    /// The same, when the disk was frozen alone.
    was_rotten: Option<u64>,
}

/// What an increment holds of the disk.
#[derive(Debug)]
struct FrozenIncrement {
    dirty: BTreeSet<u64>,
    left: VecDeque<DiskBlock>,
}

impl ToyDisk {
    /// Writes a block.
    pub fn write(&mut self, index: u64, data: Bytes) {
        let index = index % BLOCKS;
        self.rotten = self.rotten.filter(|rotten| *rotten != index);
        let after = block_hash(index, &data);
        let before = self.blocks.insert(index, data).map_or(0, |before| block_hash(index, &before));
        self.hash = self.hash.wrapping_sub(before).wrapping_add(after);
        self.dirty.insert(index);
    }

    /// What a block holds that was written to.
    pub fn block(&self, index: u64) -> Option<&Bytes> {
        self.blocks.get(&index)
    }

    /// A bit flips in a block that was written to. Whoever compares disks should see it. It does no
    /// other harm: a toy reads its disk for nothing else.
    pub fn rot(&mut self, number: u64) {
        let written = self.blocks.len() as u64;
        self.rotten = self.blocks.keys().nth((number % written.max(1)) as usize).copied();
    }

    /// The disk is well again.
    pub fn heal(&mut self) {
        self.rotten = None;
    }

    /// What was wrong with it when it was frozen alone.
    pub fn was_rotten(&self) -> Option<u64> {
        self.was_rotten
    }

    /// Whether nothing was written to it.
    pub fn is_base(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Forgets all writes but those to blocks of which `keep` is true.
    pub fn keep_only(&mut self, keep: impl Fn(u64) -> bool) {
        let hash = &mut self.hash;
        self.rotten = self.rotten.filter(|index| keep(*index));
        self.blocks.retain(|index, data| {
            let kept = keep(*index);
            if !kept {
                *hash = hash.wrapping_sub(block_hash(*index, data));
            }
            kept
        });
        self.dirty.retain(|index| keep(*index));
    }

    /// Hash of all that it holds.
    pub fn hash(&self) -> u128 {
        self.hash
    }

    /// Freezes it for a checkpoint. How many blocks were written in the epoch that ends.
    pub fn begin_checkpoint(&mut self, extent: CheckpointExtent) -> u64 {
        match extent {
            CheckpointExtent::Full | CheckpointExtent::Disks => {
                let blocks = self.blocks.keys().map(|index| block(*index, &self.blocks)).collect();
                *self.whole(extent) = blocks;
                if extent == CheckpointExtent::Disks {
                    self.was_rotten = self.rotten;
                }
                0
            }
            CheckpointExtent::Epoch => {
                self.cancel_checkpoint(CheckpointExtent::Increment);
                std::mem::take(&mut self.dirty).len() as u64
            }
            CheckpointExtent::Increment => {
                self.cancel_checkpoint(CheckpointExtent::Increment);
                let dirty = std::mem::take(&mut self.dirty);
                let left = dirty.iter().map(|index| block(*index, &self.blocks)).collect();
                let count = dirty.len() as u64;
                self.increment = Some(FrozenIncrement { dirty, left });
                count
            }
        }
    }

    /// The next blocks of a checkpoint.
    pub fn take(&mut self, extent: CheckpointExtent, limit: usize) -> Vec<DiskBlock> {
        match extent {
            CheckpointExtent::Full | CheckpointExtent::Disks => {
                let rotten = self.was_rotten.filter(|_| extent == CheckpointExtent::Disks);
                let whole = self.whole(extent);
                let count = limit.min(whole.len());
                let mut taken: Vec<DiskBlock> = whole.drain(..count).collect();
                for block in taken.iter_mut().filter(|block| Some(block.index) == rotten) {
                    let mut data = block.data.to_vec();
                    data[7] ^= 1;
                    block.data = data.into();
                }
                taken
            }
            CheckpointExtent::Epoch => Vec::new(),
            CheckpointExtent::Increment => self.increment.as_mut().map_or(Vec::new(), |increment| {
                let count = limit.min(increment.left.len());
                increment.left.drain(..count).collect()
            }),
        }
    }

    fn whole(&mut self, extent: CheckpointExtent) -> &mut VecDeque<DiskBlock> {
        match extent {
            CheckpointExtent::Disks => &mut self.alone,
            _ => &mut self.full,
        }
    }

    /// All of the increment was taken.
    pub fn end_increment(&mut self) {
        self.increment = None;
    }

    /// Gives a checkpoint up: what an increment froze belongs to the present epoch again.
    pub fn cancel_checkpoint(&mut self, extent: CheckpointExtent) {
        match extent {
            CheckpointExtent::Full | CheckpointExtent::Disks => self.whole(extent).clear(),
            CheckpointExtent::Epoch => {}
            CheckpointExtent::Increment => {
                self.dirty.extend(self.increment.take().into_iter().flat_map(|increment| increment.dirty));
            }
        }
    }

    /// Puts a block of a checkpoint in place.
    pub fn put(&mut self, block: &DiskBlock) {
        self.write(block.index, block.data.clone());
    }
}

fn block_hash(index: u64, data: &[u8]) -> u128 {
    xxh3_128(data).rotate_left(index as u32)
}

fn block(index: u64, blocks: &BTreeMap<u64, Bytes>) -> DiskBlock {
    DiskBlock { disk: 0, index, data: blocks.get(&index).cloned().unwrap_or_default() }
}
