//! The side that packs: what the receiver is known to hold, and which encodings pay.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::{Encoding, PAGE_BYTES, delta};
use crate::{CheckpointPart, EncodedBlock, EncodedPage, EncodedPart, compress};

/// Pages whose contents at the receiver are kept: 64 MiB of them.
const KNOWN_PAGES: usize = 16 << 10;
/// A delta of more bytes than this is not worth its page in the receiver's cache misses.
const DELTA_MAX_BYTES: usize = PAGE_BYTES * 3 / 4;
/// A delta of at most this many bytes is not tried to be beaten.
const DELTA_GOOD_BYTES: usize = PAGE_BYTES / 8;
/// Link that is assumed until it is known: 1 Gbit/s.
const LINK_BYTES_PER_S: u64 = 125_000_000;
/// Without a clock, an encoding pays that saves this part of what it is tried on.
const SAVED_MIN_DIVISOR: u64 = 16;
/// An encoding that does not pay is tried once in so many pages all the same.
const PROBE_INTERVAL: u64 = 32;
/// After so many tries of an encoding the older ones count half.
const DECAY_INTERVAL: u64 = 256;

/// Packs the parts of one increment after another.
///
/// # Order of calls
///
/// ```text
///   new -> begin -> encode ... -> end -> begin -> ...
/// ```
///
/// `begin` after `begin` gives up the increment before: its receiver does so, too. Call
/// [`Encoder::forget`] when a receiver may hold another state than the one after the last
/// increment that ended.
pub struct Encoder {
    /// Nanoseconds of any origin, to weigh what an encoding saves against its time.
    clock: Option<fn() -> u64>,
    link_bytes_per_s: u64,
    known: Known,
    /// What the receiver will hold after the increment under way; no data for zeros.
    staged: Vec<(u64, Option<Bytes>)>,
    copy: Trial,
    delta: Trial,
    zstd: Trial,
    statistics: Statistics,
}

/// What was packed, by encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    by_encoding: [EncodingStatistics; Encoding::ALL.len()],
}

/// What was packed in one encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncodingStatistics {
    /// Pages and blocks.
    pub units: u64,
    /// Bytes that they were packed to.
    pub packed_bytes: u64,
}

impl Statistics {
    /// What was packed in this encoding.
    pub fn of(&self, encoding: Encoding) -> EncodingStatistics {
        self.by_encoding[encoding as usize]
    }

    /// Pages and blocks in all.
    pub fn units(&self) -> u64 {
        self.by_encoding.iter().map(|statistics| statistics.units).sum()
    }

    /// Bytes that they were packed to.
    pub fn packed_bytes(&self) -> u64 {
        self.by_encoding.iter().map(|statistics| statistics.packed_bytes).sum()
    }
}

impl Encoder {
    /// An encoder that knows nothing of the receiver. Without a clock it chooses by bytes alone,
    /// and the same parts are always packed in the same way.
    pub fn new(clock: Option<fn() -> u64>) -> Encoder {
        Encoder {
            clock,
            link_bytes_per_s: LINK_BYTES_PER_S,
            known: Known::default(),
            staged: Vec::new(),
            copy: Trial::default(),
            delta: Trial::default(),
            zstd: Trial::default(),
            statistics: Statistics::default(),
        }
    }

    /// Says how fast the link takes bytes: what is slower to save than to send does not pay.
    pub fn set_link_rate(&mut self, bytes_per_s: u64) {
        self.link_bytes_per_s = bytes_per_s.max(1);
    }

    /// Forgets what the receiver holds: neither delta nor copy until it was sent again.
    pub fn forget(&mut self) {
        self.known = Known::default();
        self.staged.clear();
    }

    /// Begins an increment.
    pub fn begin(&mut self) {
        self.staged.clear();
    }

    /// Ends it: the receiver has it whole, or is given up.
    pub fn end(&mut self) {
        for (page, data) in std::mem::take(&mut self.staged) {
            self.known.set(page, data);
        }
    }

    /// What was packed so far.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Packs pages and blocks.
    pub fn encode(&mut self, part: CheckpointPart) -> EncodedPart {
        let mut encoded = EncodedPart::default();
        for page in part.pages {
            let (encoding, packed) = match &page.data {
                Some(data) => self.pack(Some(page.index), data),
                None => (Encoding::Zero, Bytes::new()),
            };
            self.note(encoding, packed.len());
            self.staged.push((page.index, page.data));
            encoded.pages.push(EncodedPage { index: page.index, encoding: encoding as u8, packed });
        }
        for block in part.blocks {
            let is_zero = block.data.iter().all(|byte| *byte == 0);
            let (encoding, packed) = match is_zero {
                true => (Encoding::Zero, Bytes::new()),
                false => self.pack(None, &block.data),
            };
            self.note(encoding, packed.len());
            let (disk, index, encoding) = (block.disk, block.index, encoding as u8);
            encoded.blocks.push(EncodedBlock { disk, index, encoding, packed });
        }
        encoded
    }

    fn note(&mut self, encoding: Encoding, packed_bytes: usize) {
        let statistics = &mut self.statistics.by_encoding[encoding as usize];
        statistics.units += 1;
        statistics.packed_bytes += packed_bytes as u64;
    }

    /// Packs contents that are not zero. `page` is the page that they are of, if of a page.
    fn pack(&mut self, page: Option<u64>, data: &Bytes) -> (Encoding, Bytes) {
        if data.len() != PAGE_BYTES {
            // Nobody makes such a part; what unpacks it says what is wrong.
            return (Encoding::Raw, data.clone());
        }
        let (clock, link) = (self.clock, self.link_bytes_per_s);
        let known = &self.known;
        let copy =
            self.copy.attempt(clock, link, || known.find(data).map(|source| source.to_le_bytes().to_vec()));
        if let Some(packed) = copy {
            return (Encoding::Copy, packed.into());
        }
        let old = page.and_then(|page| known.pages.get(&page));
        let delta = old.and_then(|old| {
            self.delta.attempt(clock, link, || delta::pack(&old.data, data, DELTA_MAX_BYTES))
        });
        if let Some(packed) = delta.as_ref().filter(|packed| packed.len() <= DELTA_GOOD_BYTES) {
            return (Encoding::Delta, Bytes::copy_from_slice(packed));
        }
        let zstd = self.zstd.attempt(clock, link, || compress::pack(data));
        match (delta, zstd) {
            (Some(delta), Some(zstd)) if zstd.len() < delta.len() => (Encoding::Zstd, zstd.into()),
            (Some(delta), _) => (Encoding::Delta, delta.into()),
            (None, Some(zstd)) => (Encoding::Zstd, zstd.into()),
            (None, None) => (Encoding::Raw, data.clone()),
        }
    }
}

/// Whether an encoding pays: what trying it cost and saved of late.
#[derive(Debug, Default)]
struct Trial {
    tries: u64,
    skipped: u64,
    saved_bytes: u64,
    spent_ns: u64,
}

impl Trial {
    /// Tries an encoding, unless it does not pay.
    fn attempt(
        &mut self,
        clock: Option<fn() -> u64>,
        link_bytes_per_s: u64,
        encoding: impl FnOnce() -> Option<Vec<u8>>,
    ) -> Option<Vec<u8>> {
        if !self.pays(clock.is_some(), link_bytes_per_s) {
            self.skipped += 1;
            if !self.skipped.is_multiple_of(PROBE_INTERVAL) {
                return None;
            }
        }
        let began_ns = clock.map_or(0, |clock| clock());
        let packed = encoding().filter(|packed| packed.len() < PAGE_BYTES);
        self.spent_ns += clock.map_or(0, |clock| clock().saturating_sub(began_ns));
        self.saved_bytes += packed.as_ref().map_or(0, |packed| (PAGE_BYTES - packed.len()) as u64);
        self.tries += 1;
        if self.tries == DECAY_INTERVAL {
            self.tries /= 2;
            self.saved_bytes /= 2;
            self.spent_ns /= 2;
        }
        packed
    }

    fn pays(&self, has_clock: bool, link_bytes_per_s: u64) -> bool {
        if self.tries < PROBE_INTERVAL {
            return true;
        }
        if !has_clock {
            return self.saved_bytes * SAVED_MIN_DIVISOR >= self.tries * PAGE_BYTES as u64;
        }
        // Sending the saved bytes would have taken at least as long.
        let saved = u128::from(self.saved_bytes) * 1_000_000_000;
        saved >= u128::from(self.spent_ns) * u128::from(link_bytes_per_s)
    }
}

/// What the receiver holds, as far as it is kept in mind here.
#[derive(Default)]
struct Known {
    pages: BTreeMap<u64, KnownPage>,
    /// A page that holds contents with this hash.
    by_hash: BTreeMap<u64, u64>,
    /// Pages and their stamps, oldest first; a page with a newer stamp was sent again since.
    order: VecDeque<(u64, u64)>,
    stamp: u64,
}

struct KnownPage {
    data: Bytes,
    hash: u64,
    stamp: u64,
}

impl Known {
    /// A page with just these contents.
    fn find(&self, data: &[u8]) -> Option<u64> {
        let page = *self.by_hash.get(&xxh3_64(data))?;
        self.pages.get(&page).filter(|known| known.data == data).map(|_| page)
    }

    /// Notes what a page holds now.
    fn set(&mut self, page: u64, data: Option<Bytes>) {
        self.remove(page);
        let Some(data) = data else { return };
        self.stamp += 1;
        let (hash, stamp) = (xxh3_64(&data), self.stamp);
        self.by_hash.insert(hash, page);
        self.pages.insert(page, KnownPage { data, hash, stamp });
        self.order.push_back((page, stamp));
        while self.pages.len() > KNOWN_PAGES || self.order.len() > 2 * KNOWN_PAGES {
            let Some((page, stamp)) = self.order.pop_front() else { break };
            if self.pages.get(&page).is_some_and(|known| known.stamp == stamp) {
                self.remove(page);
            }
        }
    }

    fn remove(&mut self, page: u64) {
        if let Some(known) = self.pages.remove(&page)
            && self.by_hash.get(&known.hash) == Some(&page)
        {
            self.by_hash.remove(&known.hash);
        }
    }
}
