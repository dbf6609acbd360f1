//! The batches of a log by their numbers, forth and back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use log_format::SealedBatch;
use store::{LogReader, StoreError};

/// Batches kept because a look back will want them again.
const KEPT_BYTES: usize = 64 << 20;

/// A log that is read at any place. Where it is damaged, it ends.
pub struct Batches {
    dir: PathBuf,
    reader: LogReader,
    kept: BTreeMap<u64, Arc<SealedBatch>>,
    kept_bytes: usize,
    damage: Option<StoreError>,
}

impl Batches {
    /// The log in `dir`, which `reader` stands at the start of.
    pub fn new(dir: PathBuf, reader: LogReader) -> Batches {
        Batches { dir, reader, kept: BTreeMap::new(), kept_bytes: 0, damage: None }
    }

    /// The batch with this number; `None` behind the last one.
    ///
    /// # Errors
    /// When the log can no longer be read where it once could.
    pub fn get(&mut self, sequence: u64) -> Result<Option<Arc<SealedBatch>>, StoreError> {
        if let Some(batch) = self.kept.get(&sequence) {
            return Ok(Some(batch.clone()));
        }
        if self.reader.end_position().sequence + 1 != sequence {
            self.reader = LogReader::open_after(&self.dir, sequence - 1)?;
        }
        let batch = match self.reader.next() {
            Some(Ok(batch)) => Arc::new(batch),
            Some(Err(damage)) => {
                self.damage = Some(damage);
                return Ok(None);
            }
            None => return Ok(None),
        };
        self.keep(sequence, &batch);
        Ok(Some(batch))
    }

    /// What the log ends with, where it is damaged.
    pub fn damage(&self) -> Option<&StoreError> {
        self.damage.as_ref()
    }

    /// Keeps a batch, at the cost of those farthest from it.
    fn keep(&mut self, sequence: u64, batch: &Arc<SealedBatch>) {
        self.kept_bytes += batch.bytes().len();
        self.kept.insert(sequence, batch.clone());
        while self.kept_bytes > KEPT_BYTES && self.kept.len() > 1 {
            let ends = [self.kept.first_key_value(), self.kept.last_key_value()];
            let farthest = ends.into_iter().flatten().max_by_key(|(key, _)| key.abs_diff(sequence));
            let Some(key) = farthest.map(|(key, _)| *key) else { break };
            self.kept_bytes -= self.kept.remove(&key).map_or(0, |batch| batch.bytes().len());
        }
    }
}
