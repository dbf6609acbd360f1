//! Ships of a checkpoint only what a joining backup does not have.
//!
//! ```text
//!   Unknown --Donor--> Plain (it has nothing: parts go as they are)
//!                 \--> Offering: part -> Offer ... Want -> what of it differs
//! ```
//!
//! What was offered is kept until its Want comes: the guest writes over it meanwhile.

use std::collections::VecDeque;

use log_format::{
    CheckpointPart, Digest, Donor, MODES_VERSION, Message, Offer, OfferedBlock, OfferedPage, Want,
};
use machine::content_hash;

/// What came of offering hashes, for status and timeline.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResyncCounts {
    /// Pages whose hashes were offered, and those of them that the backup wanted.
    pub offered_pages: u64,
    /// See `offered_pages`.
    pub wanted_pages: u64,
    /// Disk blocks whose hashes were offered, and those of them that the backup wanted.
    pub offered_blocks: u64,
    /// See `offered_blocks`.
    pub wanted_blocks: u64,
    /// Bytes of the pages and blocks whose hashes were offered.
    pub offered_bytes: u64,
    /// Bytes of those that the backup wanted.
    pub wanted_bytes: u64,
    /// Bytes of pages and blocks that went without an offer.
    pub plain_bytes: u64,
}

impl ResyncCounts {
    /// Bytes that were not shipped, since the backup had them.
    pub fn saved_bytes(&self) -> u64 {
        self.offered_bytes - self.wanted_bytes
    }

    /// Bytes of pages and blocks that were shipped.
    pub fn shipped_bytes(&self) -> u64 {
        self.wanted_bytes + self.plain_bytes
    }
}

/// The primary's side of one checkpoint join.
#[derive(Debug, Default)]
pub(super) struct Resync {
    /// `None` until the backup says what it has.
    donor: Option<Donor>,
    /// All of the checkpoint came by.
    has_ended: bool,
    next_bite: u64,
    /// Offers without an answer, oldest first.
    offered: VecDeque<(u64, CheckpointPart)>,
    offered_bytes: u64,
    parts: u64,
    counts: ResyncCounts,
}

impl Resync {
    /// A join of a backup that speaks this version of the protocol: an older one has nothing.
    pub(super) fn new(version: u8) -> Resync {
        let donor = (version < MODES_VERSION).then(Donor::default);
        Resync { donor, ..Resync::default() }
    }

    /// The backup says what it has.
    pub(super) fn handle_donor(&mut self, donor: Donor) {
        self.donor.get_or_insert(donor);
    }

    /// Whether it is known what the backup has: then there is something to do with a bite.
    pub(super) fn is_ready(&self) -> bool {
        self.donor.is_some()
    }

    /// All of the checkpoint came by.
    pub(super) fn handle_end(&mut self) {
        self.has_ended = true;
    }

    /// What to send for a bite of the checkpoint: at most an offer, and what goes without.
    pub(super) fn handle_part(&mut self, part: CheckpointPart) -> Vec<Message> {
        let mut messages = Vec::new();
        let donor = self.donor.unwrap_or_default();
        let (mut plain, mut offered) = (CheckpointPart::default(), CheckpointPart::default());
        // A page of zeros says only that the checkpoint went on; what is never mentioned is zero.
        let pages = part.pages.into_iter().filter(|page| page.data.is_some());
        *(if donor.memory { &mut offered.pages } else { &mut plain.pages }) = pages.collect();
        *(if donor.disks { &mut offered.blocks } else { &mut plain.blocks }) = part.blocks;
        if !plain.is_empty() {
            self.counts.plain_bytes += content_bytes(&plain);
            self.parts += 1;
            messages.push(Message::CheckpointPart(plain));
        }
        if !offered.is_empty() {
            messages.push(Message::Offer(self.offer(offered)));
        }
        messages
    }

    fn offer(&mut self, part: CheckpointPart) -> Offer {
        let page = |page: &log_format::Page| {
            let hash = page.data.as_ref().map_or(Digest::default(), |data| content_hash(data));
            OfferedPage { index: page.index, hash }
        };
        let block = |block: &log_format::DiskBlock| OfferedBlock {
            disk: block.disk,
            index: block.index,
            hash: content_hash(&block.data),
        };
        let bite = self.next_bite;
        let offer = Offer {
            bite,
            pages: part.pages.iter().map(page).collect(),
            blocks: part.blocks.iter().map(block).collect(),
        };
        let bytes = content_bytes(&part);
        self.next_bite += 1;
        self.offered_bytes += bytes;
        self.counts.offered_bytes += bytes;
        self.counts.offered_pages += part.pages.len() as u64;
        self.counts.offered_blocks += part.blocks.len() as u64;
        self.offered.push_back((bite, part));
        offer
    }

    /// The answer to the oldest offer: what to ship of it, if anything.
    ///
    /// # Errors
    /// When it answers no offer.
    pub(super) fn handle_want(&mut self, want: &Want) -> Result<Option<Message>, String> {
        let fits = |(bite, part): &&(u64, CheckpointPart)| {
            *bite == want.bite && want.fits(part.pages.len(), part.blocks.len())
        };
        if self.offered.front().filter(fits).is_none() {
            let expected = self.offered.front().map(|(bite, _)| *bite);
            return Err(format!("an answer to offer {}, expected one to {expected:?}", want.bite));
        }
        let Some((_, part)) = self.offered.pop_front() else { return Ok(None) };
        self.offered_bytes -= content_bytes(&part);
        let pages = part.pages.into_iter().enumerate().filter(|(place, _)| want.wants_page(*place));
        let blocks = part.blocks.into_iter().enumerate().filter(|(place, _)| want.wants_block(*place));
        let wanted = CheckpointPart {
            pages: pages.map(|(_, page)| page).collect(),
            blocks: blocks.map(|(_, block)| block).collect(),
        };
        self.counts.wanted_bytes += content_bytes(&wanted);
        self.counts.wanted_pages += wanted.pages.len() as u64;
        self.counts.wanted_blocks += wanted.blocks.len() as u64;
        if wanted.is_empty() {
            return Ok(None);
        }
        self.parts += 1;
        Ok(Some(Message::CheckpointPart(wanted)))
    }

    /// Whether all of the checkpoint came by and every offer was answered: then it may end.
    pub(super) fn is_settled(&self) -> bool {
        self.has_ended && self.offered.is_empty()
    }

    /// Contents kept here until their answers come.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.offered_bytes
    }

    /// How many parts were shipped.
    pub(super) fn parts(&self) -> u64 {
        self.parts
    }

    /// What came of it.
    pub(super) fn counts(&self) -> ResyncCounts {
        self.counts
    }
}

fn content_bytes(part: &CheckpointPart) -> u64 {
    let pages = part.pages.iter().filter_map(|page| page.data.as_ref());
    pages.chain(part.blocks.iter().map(|block| &block.data)).map(|data| data.len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use log_format::{DiskBlock, Page};

    use super::*;

    fn bite(pages: std::ops::Range<u64>, blocks: std::ops::Range<u64>) -> CheckpointPart {
        let data = |index: u64| Bytes::from(vec![index as u8 + 1; 4096]);
        CheckpointPart {
            pages: pages.map(|index| Page { index, data: Some(data(index)) }).collect(),
            blocks: blocks.map(|index| DiskBlock { disk: 0, index, data: data(index) }).collect(),
        }
    }

    fn resync(memory: bool, disks: bool) -> Resync {
        let mut resync = Resync::new(MODES_VERSION);
        assert!(!resync.is_ready());
        resync.handle_donor(Donor { term: 1, memory, disks });
        assert!(resync.is_ready());
        resync
    }

    #[test]
    fn who_has_nothing_gets_it_all_and_no_offers() {
        let mut resync = Resync::new(MODES_VERSION - 1);
        assert!(resync.is_ready(), "it will never say what it has");
        let part = bite(0..3, 0..2);
        assert_eq!(resync.handle_part(part.clone()), [Message::CheckpointPart(part)]);
        assert!(!resync.is_settled());
        resync.handle_end();
        assert!(resync.is_settled());
        let counts = resync.counts();
        assert_eq!((counts.shipped_bytes(), counts.saved_bytes()), (5 * 4096, 0));
        assert!(resync.handle_want(&Want::default()).is_err(), "nothing was offered");
    }

    #[test]
    fn only_what_differs_is_shipped() {
        let mut resync = resync(true, true);
        let part = bite(0..20, 5..9);
        let messages = resync.handle_part(part.clone());
        let [Message::Offer(offer)] = &messages[..] else { panic!("{messages:?}") };
        assert_eq!((offer.pages.len(), offer.blocks.len()), (20, 4));
        assert_eq!(offer.pages[3].hash, content_hash(&[4; 4096]));
        assert_eq!(resync.waiting_bytes(), 24 * 4096);
        let second = resync.handle_part(bite(20..21, 0..0));
        assert_eq!(second.len(), 1);
        resync.handle_end();
        assert!(!resync.is_settled());

        let want = Want::of(offer, |page| page.index == 17, |block| block.index == 6);
        let wrong = Want { bite: 1, ..want.clone() };
        assert!(resync.handle_want(&wrong).is_err(), "answers come in order");
        let shipped = resync.handle_want(&want).unwrap();
        let expected =
            CheckpointPart { pages: vec![part.pages[17].clone()], blocks: vec![part.blocks[1].clone()] };
        assert_eq!(shipped, Some(Message::CheckpointPart(expected)));
        let nothing = Want { bite: 1, pages: Bytes::from_static(&[0]), blocks: Bytes::new() };
        assert_eq!(resync.handle_want(&nothing), Ok(None));
        assert!(resync.is_settled() && resync.waiting_bytes() == 0);
        let counts = resync.counts();
        assert_eq!((resync.parts(), counts.shipped_bytes(), counts.saved_bytes()), (1, 2 * 4096, 23 * 4096));
        assert_eq!((counts.offered_pages, counts.wanted_pages), (21, 1));
        assert_eq!((counts.offered_blocks, counts.wanted_blocks), (4, 1));
    }

    #[test]
    fn what_it_cannot_have_goes_without_an_offer() {
        let mut resync = resync(false, true);
        let messages = resync.handle_part(bite(0..2, 0..3));
        let [Message::CheckpointPart(plain), Message::Offer(offer)] = &messages[..] else {
            panic!("{messages:?}")
        };
        assert_eq!((plain.pages.len(), plain.blocks.len()), (2, 0));
        assert_eq!((offer.pages.len(), offer.blocks.len()), (0, 3));
        let zero = CheckpointPart { pages: vec![Page { index: 9, data: None }], blocks: Vec::new() };
        assert!(resync.handle_part(zero).is_empty(), "zeros need no message");
    }
}
