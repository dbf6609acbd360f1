//! Brings a machine that held an earlier state to a checkpoint's, in place: what it has already
//! is not asked for.

use std::collections::BTreeSet;

use log_format::{CheckpointPart, Offer, OfferedBlock, OfferedPage, Want};
use machine::Machine;
use machine::ram::PAGE_BYTES;

/// What a checkpoint mentioned so far. What it never does is not part of it: zero pages, and
/// blocks of the base image.
#[derive(Debug)]
pub(crate) struct Mentioned {
    /// For each page; `None` where there was nothing before, so that nothing is taken away.
    pages: Option<Vec<bool>>,
    blocks: BTreeSet<(u8, u64)>,
}

impl Mentioned {
    /// Nothing so far, of a machine with an earlier state and this much memory; without an
    /// earlier state, `None`.
    pub(crate) fn new(ram_bytes: Option<u64>) -> Mentioned {
        let pages = ram_bytes.map(|bytes| vec![false; (bytes / PAGE_BYTES as u64) as usize]);
        Mentioned { pages, blocks: BTreeSet::new() }
    }

    /// What of an offer the machine does not have.
    pub(crate) fn want<M: Machine>(&mut self, machine: &mut M, offer: &Offer) -> Want {
        offer.pages.iter().for_each(|page| self.note_page(page.index));
        self.blocks.extend(offer.blocks.iter().map(|block| (block.disk, block.index)));
        let machine = std::cell::RefCell::new(machine);
        let page = |page: &OfferedPage| machine.borrow_mut().hash_page(page.index) != Some(page.hash);
        let block = |block: &OfferedBlock| {
            machine.borrow_mut().hash_block(block.disk, block.index) != Some(block.hash)
        };
        Want::of(offer, page, block)
    }

    /// A part comes, offered before or not.
    pub(crate) fn note(&mut self, part: &CheckpointPart) {
        part.pages.iter().for_each(|page| self.note_page(page.index));
        self.blocks.extend(part.blocks.iter().map(|block| (block.disk, block.index)));
    }

    /// The checkpoint is whole: takes away what it did not mention.
    pub(crate) fn finish<M: Machine>(self, machine: &mut M) {
        let Some(pages) = self.pages else { return };
        let has_page = |index: u64| pages.get(index as usize).copied().unwrap_or(false);
        machine.keep_only(&has_page, &|disk, index| self.blocks.contains(&(disk, index)));
    }

    /// A page outside the machine is refused where it is put into place.
    fn note_page(&mut self, index: u64) {
        let pages = self.pages.as_mut().zip(usize::try_from(index).ok());
        if let Some(page) = pages.and_then(|(pages, index)| pages.get_mut(index)) {
            *page = true;
        }
    }
}
