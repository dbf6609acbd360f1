//! What memory holds, page by page, for a side that compares it with another's.

use log_format::Digest;

use super::{HASH_STALE, PAGE_BYTES, RAM_BASE, Ram};
use crate::contract::content_hash;

impl Ram {
    /// Hash of a page's contents; `None` for a page that there is not, or of zeros.
    pub fn content_hash(&self, page: u64) -> Option<Digest> {
        let is_here = page < self.pages();
        (is_here && !self.is_known_zero(page)).then(|| content_hash(self.page_bytes(page)))
    }

    /// Zeroes every page but those of which `keep` is true.
    pub fn keep_only(&mut self, keep: impl Fn(u64) -> bool) {
        for page in 0..self.pages() {
            if !keep(page) && !self.is_known_zero(page) {
                let address = RAM_BASE + page * PAGE_BYTES as u64;
                self.write(address, &[0; PAGE_BYTES]).expect("the page lies in memory");
            }
        }
    }

    /// Known without a look at memory that the host may not even have given yet.
    fn is_known_zero(&self, page: u64) -> bool {
        self.flags[page as usize] & HASH_STALE == 0 && self.hashes[page as usize] == 0
    }
}
