//! Checkpoints of memory: frozen states whose pages are taken while the guest goes on.
//!
//! A full checkpoint and an increment may be under way at once, and do not know of each other:
//! each has a flag for the pages that it still has to take, and the old contents of those that
//! were written to meanwhile. Freezing costs a look at a byte per page; copying and hashing
//! happens page by page, as they are taken or first written to.

use std::collections::BTreeMap;

use bytes::Bytes;
use log_format::Page;

use super::{
    DIRTY, FULL_PENDING, HASH_STALE, INCREMENT_PENDING, PAGE_BYTES, Ram, WRITTEN, is_zero, page_hash,
};
use crate::contract::CheckpointExtent;

/// Zero pages passed over by one [`Ram::take_pages`] of a full checkpoint at most.
pub(super) const ZERO_PAGES_AT_ONCE: usize = 4096;
/// Pages whose flags are looked at together when an epoch begins.
const FLAGS_AT_ONCE: usize = 64;

/// A full checkpoint under way.
#[derive(Default)]
pub(super) struct FullFreeze {
    /// The next page to take; the number of pages at the end.
    cursor: u64,
    /// Old contents of pages that were written to before they were taken.
    held: BTreeMap<u64, Bytes>,
}

/// An increment: under way, or taken to its end.
#[derive(Default)]
pub(super) struct IncrementFreeze {
    pages: Vec<FrozenPage>,
    /// How many of them were taken.
    taken: usize,
    /// See [`FullFreeze::held`].
    held: BTreeMap<u64, Bytes>,
    /// Like the sum of the memory's hashes, of the frozen state; right once no page is stale.
    hash_sum: u128,
    has_ended: bool,
}

/// A page of an increment.
struct FrozenPage {
    page: u64,
    /// Its frozen contents were not hashed yet.
    is_stale: bool,
}

impl Ram {
    /// Freezes the present state for [`Ram::take_pages`], or begins an epoch. An increment
    /// that was not taken to its end is cancelled first.
    ///
    /// Returns how many pages were written to in the epoch that ends with it; 0 for a full
    /// checkpoint, which ends none. Pages written to since the last digest count, too.
    pub fn begin_checkpoint(&mut self, extent: CheckpointExtent) -> u64 {
        self.write_generation += 1;
        match extent {
            CheckpointExtent::Full => {
                self.flags.iter_mut().for_each(|flags| *flags |= FULL_PENDING);
                self.full = Some(FullFreeze::default());
                0
            }
            CheckpointExtent::Epoch => {
                self.cancel_checkpoint(CheckpointExtent::Increment);
                let is_dirty = |flags: &&mut u8| **flags & DIRTY != 0;
                let dirty = self.flags.iter_mut().filter(is_dirty).map(|flags| *flags &= !DIRTY);
                dirty.count() as u64
            }
            CheckpointExtent::Increment => self.begin_increment(),
            CheckpointExtent::Disks => 0,
        }
    }

    fn begin_increment(&mut self) -> u64 {
        self.cancel_checkpoint(CheckpointExtent::Increment);
        let mut increment = IncrementFreeze { hash_sum: self.hash_sum, ..IncrementFreeze::default() };
        for (chunk, flags) in self.flags.chunks_mut(FLAGS_AT_ONCE).enumerate() {
            if flags.iter().fold(0, |all, flags| all | flags) & WRITTEN == 0 {
                continue;
            }
            let first = chunk * FLAGS_AT_ONCE;
            for (page, flags) in (first..).zip(flags) {
                // What is not dirty, but stale, has yet to be hashed as it is now.
                if *flags & WRITTEN != 0 {
                    let is_stale = *flags & HASH_STALE != 0;
                    increment.pages.push(FrozenPage { page: page as u64, is_stale });
                    *flags = *flags & !DIRTY | INCREMENT_PENDING;
                }
            }
        }
        let pages = increment.pages.len();
        self.increment = Some(increment);
        pages as u64
    }

    /// Keeps the contents of a page, with these flags, that is about to be written to, for the
    /// checkpoints that still have to take it.
    pub(super) fn hold_frozen(&mut self, page: u64, flags: u8) {
        if flags & (FULL_PENDING | INCREMENT_PENDING) == 0 {
            return;
        }
        let old = Bytes::copy_from_slice(self.page_bytes(page));
        if flags & FULL_PENDING != 0
            && let Some(full) = &mut self.full
        {
            full.held.insert(page, old.clone());
        }
        if flags & INCREMENT_PENDING != 0
            && let Some(increment) = &mut self.increment
        {
            increment.held.insert(page, old);
        }
    }

    /// Takes up to `limit` frozen pages; empty at the end.
    ///
    /// A full checkpoint has no zero pages, but after a long run of them one stands for all, so
    /// that a call takes a short time whatever the size of the memory. An epoch has no pages.
    pub fn take_pages(&mut self, extent: CheckpointExtent, limit: usize) -> Vec<Page> {
        match extent {
            CheckpointExtent::Full => self.take_full(limit),
            CheckpointExtent::Epoch | CheckpointExtent::Disks => Vec::new(),
            CheckpointExtent::Increment => self.take_increment(limit),
        }
    }

    fn take_full(&mut self, limit: usize) -> Vec<Page> {
        let mut taken = Vec::new();
        let Some(mut full) = self.full.take() else { return taken };
        let mut looked_at = 0;
        while full.cursor < self.pages() && taken.len() < limit {
            let page = full.cursor;
            full.cursor += 1;
            looked_at += 1;
            if let Some(data) = self.take_unless_zero(&mut full, page) {
                taken.push(Page { index: page, data: Some(data) });
            } else if looked_at >= ZERO_PAGES_AT_ONCE {
                if taken.is_empty() {
                    taken.push(Page { index: page, data: None });
                }
                break;
            }
        }
        let is_under_way = full.cursor < self.pages() || !taken.is_empty();
        self.full = is_under_way.then_some(full);
        taken
    }

    /// What a page held when the checkpoint was begun; `None` for zeros.
    fn take_unless_zero(&mut self, full: &mut FullFreeze, page: u64) -> Option<Bytes> {
        let flags = self.flags[page as usize];
        self.flags[page as usize] &= !FULL_PENDING;
        if let Some(old) = full.held.remove(&page) {
            return (!is_zero(&old)).then_some(old);
        }
        // A page that was not written to since the last digest is zero if its hash says so. That
        // spares a look at memory that the host has not even given yet.
        if flags & HASH_STALE == 0 && self.hashes[page as usize] == 0 {
            return None;
        }
        let data = self.page_bytes(page);
        (!is_zero(data)).then(|| Bytes::copy_from_slice(data))
    }

    fn take_increment(&mut self, limit: usize) -> Vec<Page> {
        let Some(mut increment) = self.increment.take() else { return Vec::new() };
        let end = increment.taken.saturating_add(limit).min(increment.pages.len());
        let taken = (increment.taken..end)
            .map(|at| {
                self.settle_frozen(&mut increment, at);
                let page = increment.pages[at].page;
                self.flags[page as usize] &= !INCREMENT_PENDING;
                let old = increment.held.remove(&page);
                let data = match &old {
                    Some(old) => &old[..],
                    None => self.page_bytes(page),
                };
                let is_zero = is_zero(data);
                let data = old.unwrap_or_else(|| match is_zero {
                    true => Bytes::new(),
                    false => Bytes::copy_from_slice(self.page_bytes(page)),
                });
                Page { index: page, data: (!is_zero).then_some(data) }
            })
            .collect();
        increment.taken = end;
        self.increment = Some(increment);
        taken
    }

    /// Hashes what the increment under way has frozen, so that the hash of each page is that of
    /// a state not before it.
    pub(super) fn settle_increment(&mut self) {
        let Some(mut increment) = self.increment.take() else { return };
        (increment.taken..increment.pages.len()).for_each(|at| self.settle_frozen(&mut increment, at));
        self.increment = Some(increment);
    }

    /// Hashes the frozen contents of a page. The hash that it replaces is still that of the
    /// last digest before the freeze: a later digest settles all frozen pages first.
    fn settle_frozen(&mut self, increment: &mut IncrementFreeze, at: usize) {
        let FrozenPage { page, is_stale } = &mut increment.pages[at];
        if !std::mem::replace(is_stale, false) {
            return;
        }
        let page = *page;
        let hash = match increment.held.get(&page) {
            Some(old) => page_hash(page, old),
            None => {
                // Nobody wrote to it since, nor has the right to without a look at its flags.
                self.flags[page as usize] &= !HASH_STALE;
                page_hash(page, self.page_bytes(page))
            }
        };
        let before = std::mem::replace(&mut self.hashes[page as usize], hash);
        for sum in [&mut self.hash_sum, &mut increment.hash_sum] {
            *sum = sum.wrapping_sub(before).wrapping_add(hash);
        }
    }

    /// Ends the increment under way: all of it was taken, and nobody will cancel it.
    pub fn end_increment(&mut self) {
        if let Some(increment) = &mut self.increment {
            assert!(increment.taken == increment.pages.len(), "an increment ends when all of it was taken");
            increment.pages.clear();
            increment.taken = 0;
            increment.has_ended = true;
        }
    }

    /// What [`Ram::digest`] would have said of the state that the increment froze; `None`
    /// before its end.
    pub fn increment_digest(&self) -> Option<u128> {
        self.increment.as_ref().filter(|increment| increment.has_ended).map(|increment| increment.hash_sum)
    }

    /// Bytes of old page contents held for the checkpoints under way, at most: what two of them
    /// hold counts twice.
    pub fn held_bytes(&self) -> u64 {
        let full = self.full.as_ref().map_or(0, |full| full.held.len());
        let increment = self.increment.as_ref().map_or(0, |increment| increment.held.len());
        ((full + increment) * PAGE_BYTES) as u64
    }

    /// Gives up the checkpoint under way. The pages of an increment belong to the present epoch
    /// again, whether they were taken or not.
    pub fn cancel_checkpoint(&mut self, extent: CheckpointExtent) {
        match extent {
            CheckpointExtent::Full => {
                if self.full.take().is_some() {
                    self.flags.iter_mut().for_each(|flags| *flags &= !FULL_PENDING);
                }
            }
            CheckpointExtent::Epoch | CheckpointExtent::Disks => {}
            CheckpointExtent::Increment => {
                for FrozenPage { page, .. } in self.increment.take().into_iter().flat_map(|old| old.pages) {
                    let flags = &mut self.flags[page as usize];
                    *flags = *flags & !INCREMENT_PENDING | DIRTY;
                }
            }
        }
    }
}
