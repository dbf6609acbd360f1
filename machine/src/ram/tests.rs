//! What memory digests and hands to checkpoints, whatever is under way at once.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::freeze::ZERO_PAGES_AT_ONCE;
use super::*;
use crate::CheckpointExtent::{self, Epoch, Full, Increment};

fn address(page: u64) -> u64 {
    RAM_BASE + page * PAGE_BYTES as u64
}

fn take_all(ram: &mut Ram, extent: CheckpointExtent) -> Vec<Page> {
    let mut all = Vec::new();
    loop {
        let part = ram.take_pages(extent, 3);
        if part.is_empty() {
            return all;
        }
        all.extend(part);
    }
}

fn indices(pages: &[Page]) -> Vec<u64> {
    pages.iter().map(|page| page.index).collect()
}

#[test]
fn a_checkpoint_of_much_zero_memory_is_taken_in_short_calls_and_is_whole() {
    let pages = 3 * ZERO_PAGES_AT_ONCE as u64;
    let mut ram = Ram::new(pages);
    let written = [0, 5_000, pages - 1];
    for page in written {
        ram.write(address(page) + 8, &page.to_le_bytes().map(|byte| byte | 1)).expect("inside");
    }
    ram.digest();
    // Zero by its bytes, and by no hash.
    ram.write(address(7), &[0; 8]).expect("inside");
    ram.begin_checkpoint(Full);
    ram.write(address(5_000), &[9; 8]).expect("inside");
    ram.write(address(6_000), &[9; 8]).expect("inside");
    let (mut calls, mut found) = (0, Vec::new());
    loop {
        let part = ram.take_pages(Full, 64);
        if part.is_empty() {
            break;
        }
        calls += 1;
        found.extend(part.into_iter().filter_map(|page| Some((page.index, page.data?))));
    }
    assert!(calls >= 3, "{calls} calls for {pages} pages");
    let indices: Vec<u64> = found.iter().map(|(index, _)| *index).collect();
    assert_eq!(indices, written);
    assert_eq!(found[1].1[..8], [0; 8], "the old contents of a page that was written to");
    assert_eq!(ram.held_bytes(), 0);
}

#[test]
fn an_increment_has_what_the_epoch_wrote_and_no_more() {
    let mut ram = Ram::new(300);
    ram.write(address(250), &[1]).expect("inside");
    ram.digest();
    assert_eq!(ram.begin_checkpoint(Epoch), 1);
    ram.write(address(4), &[1]).expect("inside");
    ram.write(address(260), &[0]).expect("inside");
    assert_eq!(ram.begin_checkpoint(Increment), 2);
    let pages = take_all(&mut ram, Increment);
    assert_eq!(indices(&pages), [4, 260]);
    assert!(pages[0].data.is_some() && pages[1].data.is_none(), "zeros have no data, but are said");
    ram.end_increment();
    assert_eq!(ram.begin_checkpoint(Increment), 0);
}

#[test]
fn without_an_epoch_an_increment_has_everything() {
    let mut ram = Ram::new(300);
    for page in [2, 64, 299] {
        ram.write(address(page), &[1]).expect("inside");
    }
    ram.digest();
    ram.begin_checkpoint(Increment);
    assert_eq!(indices(&take_all(&mut ram, Increment)), [2, 64, 299]);
}

#[test]
fn a_cancelled_increment_is_in_the_next_one() {
    let mut ram = Ram::new(300);
    ram.begin_checkpoint(Epoch);
    for page in [1, 2, 3, 4] {
        ram.write(address(page), &[1]).expect("inside");
    }
    ram.begin_checkpoint(Increment);
    assert_eq!(ram.take_pages(Increment, 2).len(), 2);
    ram.write(address(9), &[1]).expect("inside");
    ram.cancel_checkpoint(Increment);
    ram.begin_checkpoint(Increment);
    assert_eq!(indices(&take_all(&mut ram, Increment)), [1, 2, 3, 4, 9]);
    // Taken whole, but not ended: nobody is known to have it.
    ram.begin_checkpoint(Increment);
    assert_eq!(indices(&take_all(&mut ram, Increment)), [1, 2, 3, 4, 9]);
    ram.end_increment();
    ram.begin_checkpoint(Increment);
    assert_eq!(take_all(&mut ram, Increment), []);
}

#[derive(Debug, Clone)]
enum Deed {
    /// A device's write.
    Write {
        page: u64,
        fill: u8,
    },
    /// A hart's store, with a right that it may have cached.
    Store {
        page: u64,
        fill: u8,
    },
    MarkCode(u64),
    MarkTable(u64),
    Digest,
    Begin(CheckpointExtent),
    Take(CheckpointExtent, usize),
    Cancel(CheckpointExtent),
}

const MODEL_PAGES: u64 = 70;

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let page = prop_oneof![0..6u64, 60..MODEL_PAGES];
    let extent = prop_oneof![2 => Just(Full), 1 => Just(Epoch), 4 => Just(Increment)];
    let deed = prop_oneof![
        6 => (page.clone(), 0..3u8).prop_map(|(page, fill)| Deed::Write { page, fill }),
        10 => (page.clone(), 0..3u8).prop_map(|(page, fill)| Deed::Store { page, fill }),
        1 => page.clone().prop_map(Deed::MarkCode),
        1 => page.prop_map(Deed::MarkTable),
        2 => Just(Deed::Digest),
        3 => extent.clone().prop_map(Deed::Begin),
        9 => (extent.clone(), 1..5usize).prop_map(|(extent, limit)| Deed::Take(extent, limit)),
        1 => extent.prop_map(Deed::Cancel),
    ];
    prop::collection::vec(deed, 1..120)
}

/// Memory, and what everybody else should know of it.
struct Model {
    ram: Ram,
    /// What the memory holds.
    contents: Vec<u8>,
    /// What a receiver of all increments holds.
    received: Vec<u8>,
    /// Contents when it was begun, and the pages taken so far.
    full: Option<(Vec<u8>, Vec<Page>)>,
    /// See `full`.
    increment: Option<(Vec<u8>, Vec<Page>)>,
    /// Pages that a hart believes it may store to, and as of which generation.
    rights: BTreeSet<u64>,
    rights_generation: u64,
    watched_generation: u64,
}

impl Model {
    fn new() -> Model {
        let contents = vec![0; MODEL_PAGES as usize * PAGE_BYTES];
        Model {
            ram: Ram::new(MODEL_PAGES),
            received: contents.clone(),
            contents,
            full: None,
            increment: None,
            rights: BTreeSet::new(),
            rights_generation: 0,
            watched_generation: 0,
        }
    }

    fn page(&mut self, page: u64) -> &mut [u8] {
        &mut self.contents[page as usize * PAGE_BYTES..][..PAGE_BYTES]
    }

    fn act(&mut self, deed: &Deed) {
        match *deed {
            Deed::Write { page, fill } => {
                self.ram.write(address(page) + 100, &[fill; 8]).expect("inside");
                self.page(page)[100..108].fill(fill);
            }
            Deed::Store { page, fill } => self.store(page, fill),
            Deed::MarkCode(page) => self.ram.mark_code(page, 64, 4),
            Deed::MarkTable(page) => self.ram.mark_table(page),
            Deed::Digest => assert_eq!(self.ram.digest(), digest_of(&self.contents)),
            Deed::Begin(Full) => {
                self.ram.begin_checkpoint(Full);
                self.full = Some((self.contents.clone(), Vec::new()));
            }
            // Not of memory.
            Deed::Begin(CheckpointExtent::Disks) => {
                self.ram.begin_checkpoint(CheckpointExtent::Disks);
            }
            Deed::Begin(Epoch) => {
                self.ram.begin_checkpoint(Epoch);
                self.received.clone_from(&self.contents);
                self.increment = None;
            }
            Deed::Begin(Increment) => {
                self.ram.begin_checkpoint(Increment);
                self.increment = Some((self.contents.clone(), Vec::new()));
            }
            Deed::Take(extent, limit) => self.take(extent, limit),
            Deed::Cancel(extent) => {
                self.ram.cancel_checkpoint(extent);
                match extent {
                    Full => self.full = None,
                    Epoch | CheckpointExtent::Disks => {}
                    Increment => self.increment = None,
                }
            }
        }
    }

    /// As a hart does it: see [`Ram`].
    fn store(&mut self, page: u64, fill: u8) {
        if self.rights_generation != self.ram.write_generation() {
            self.rights.clear();
            self.rights_generation = self.ram.write_generation();
        }
        match self.ram.watched_since(self.watched_generation) {
            Some(pages) => pages.for_each(|page| _ = self.rights.remove(&page)),
            None => self.rights.clear(),
        }
        self.watched_generation = self.ram.watched_generation();
        if self.ram.is_watched(page) {
            assert!(!self.rights.contains(&page), "a right to a watched page");
            self.ram.write_watched(address(page) + 32, &[fill; 8]).expect("inside");
        } else {
            if self.rights.insert(page) {
                self.ram.prepare_write(page);
            }
            let start = page as usize * PAGE_BYTES + 32;
            // SAFETY: the bytes lie inside memory, and nobody holds a reference to them.
            unsafe { self.ram.host_base().add(start).write_bytes(fill, 8) };
        }
        self.page(page)[32..40].fill(fill);
    }

    fn take(&mut self, extent: CheckpointExtent, limit: usize) {
        let part = self.ram.take_pages(extent, limit);
        let under_way = match extent {
            Full => &mut self.full,
            Epoch | CheckpointExtent::Disks => return assert_eq!(part, []),
            Increment => &mut self.increment,
        };
        let Some((_, taken)) = under_way else { return assert_eq!(part, []) };
        if !part.is_empty() {
            return taken.extend(part);
        }
        let Some((frozen, taken)) = under_way.take() else { return };
        if extent == Full {
            let mut restored = vec![0; frozen.len()];
            put(&mut restored, &taken);
            assert!(restored == frozen, "a full checkpoint is what was frozen");
        } else {
            self.ram.end_increment();
            put(&mut self.received, &taken);
            assert!(self.received == frozen, "what was received before and an increment is what was frozen");
            assert_eq!(self.ram.increment_digest(), Some(digest_of(&frozen)));
        }
    }
}

fn put(contents: &mut [u8], pages: &[Page]) {
    for page in pages {
        let place = &mut contents[page.index as usize * PAGE_BYTES..][..PAGE_BYTES];
        match &page.data {
            Some(data) => place.copy_from_slice(data),
            None => place.fill(0),
        }
    }
}

fn digest_of(contents: &[u8]) -> u128 {
    let mut ram = Ram::new(MODEL_PAGES);
    ram.write(RAM_BASE, contents).expect("inside");
    ram.digest()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn memory_is_what_a_simple_model_says(deeds in deeds()) {
        let mut model = Model::new();
        deeds.iter().for_each(|deed| model.act(deed));
        // What is under way ends well, and so does one more increment.
        (0..40).for_each(|_| [Full, Increment].into_iter().for_each(|extent| model.take(extent, 4)));
        model.act(&Deed::Begin(Increment));
        (0..40).for_each(|_| model.take(Increment, 4));
        prop_assert!(model.received == model.contents);
        prop_assert_eq!(model.ram.held_bytes(), 0);
        prop_assert_eq!(model.ram.digest(), digest_of(&model.contents));
    }
}

#[test]
fn memory_that_no_host_has_is_an_error() {
    for pages in [0, 1 << 50, u64::MAX / 4096, u64::MAX] {
        assert!(Ram::try_new(pages).is_err(), "{pages} pages");
    }
}
