//! What was written to a disk, block by block, for a side that compares it with another's.

use std::io;

use log_format::Digest;

use super::Disk;
use crate::contract::content_hash;

impl Disk {
    /// Hash of a block's contents; `None` for one that was never written to.
    ///
    /// # Errors
    /// When the store fails.
    pub fn content_hash(&mut self, block: u64) -> io::Result<Option<Digest>> {
        if !self.written.contains_key(&block) {
            return Ok(None);
        }
        Ok(Some(content_hash(&self.read_block(block)?)))
    }

    /// Makes every block its base image's again but those of which `keep` is true. No
    /// checkpoint may be under way.
    ///
    /// # Errors
    /// When the store fails.
    pub fn keep_only(&mut self, keep: impl Fn(u64) -> bool) -> io::Result<()> {
        let given_up: Vec<u64> = self.written.keys().copied().filter(|block| !keep(*block)).collect();
        for block in given_up {
            self.store.revert_block(block)?;
            if let Some(written) = self.written.remove(&block) {
                self.hash_sum = self.hash_sum.wrapping_sub(written.hash);
            }
            self.stale.remove(&block);
            if let Some(dirty) = &mut self.dirty {
                dirty.remove(&block);
            }
        }
        Ok(())
    }
}
