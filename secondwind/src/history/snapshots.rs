//! States of a machine along its history, kept in memory: the nearest one is where a way back
//! begins.
//!
//! What did not change between two snapshots is kept once. When they take more than they may, those
//! go first whose neighbours are close, seen from where the debugger stands: near by they lie
//! dense, far away thin.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backup::Course;
use bytes::Bytes;
use log_format::{CheckpointHead, CheckpointPart, DiskBlock, Page};
use machine::{CheckpointExtent, Machine, RestoreError, RiscvMachine};

/// Pages taken or restored by one call.
const PAGES_AT_ONCE: usize = 4096;

/// A state of the machine, and where its log goes on.
pub struct Snapshot {
    /// Where it was taken.
    pub icount: u64,
    /// Where the replay stands in the log.
    pub course: Course,
    /// Whether a bit that is to be flipped was flipped before it.
    pub flipped: bool,
    head: CheckpointHead,
    /// Pages and blocks, in the order of their places.
    contents: Vec<(Place, Arc<Held>)>,
}

/// Where something is kept: 0 for memory, or the number of a disk plus 1; and the page or block.
type Place = (u16, u64);

/// A page or block, counted as long as somebody holds it.
struct Held {
    bytes: Bytes,
    total_bytes: Arc<AtomicU64>,
}

impl Held {
    fn new(bytes: Bytes, total_bytes: &Arc<AtomicU64>) -> Held {
        total_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Held { bytes, total_bytes: total_bytes.clone() }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.total_bytes.fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
    }
}

/// Snapshots in the order of their icounts; the first one stays.
pub struct Snapshots {
    kept: Vec<Snapshot>,
    limit_bytes: u64,
    total_bytes: Arc<AtomicU64>,
}

impl Snapshots {
    /// None yet; they may take about this much.
    pub fn new(limit_bytes: u64) -> Snapshots {
        Snapshots { kept: Vec::new(), limit_bytes, total_bytes: Arc::default() }
    }

    /// The last one at or before an icount.
    pub fn at_or_before(&self, icount: u64) -> Option<&Snapshot> {
        self.kept[..self.kept.partition_point(|snapshot| snapshot.icount <= icount)].last()
    }

    /// The last one before an icount.
    pub fn before(&self, icount: u64) -> Option<&Snapshot> {
        self.kept[..self.kept.partition_point(|snapshot| snapshot.icount < icount)].last()
    }

    /// How many there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Keeps the machine's present state, unless there is one of this icount.
    pub fn take(&mut self, machine: &mut RiscvMachine, course: &Course, flipped: bool) {
        let icount = machine.moment().icount;
        let place = self.kept.partition_point(|snapshot| snapshot.icount < icount);
        if self.kept.get(place).is_some_and(|snapshot| snapshot.icount == icount) {
            return;
        }
        let head = machine.begin_checkpoint(CheckpointExtent::Full).head;
        let mut contents = Vec::new();
        let before = place.checked_sub(1).map_or(&[][..], |before| &self.kept[before].contents[..]);
        let mut before = before.iter().peekable();
        loop {
            let part = machine.take_checkpoint_pages(CheckpointExtent::Full, PAGES_AT_ONCE);
            if part.is_empty() {
                break;
            }
            for (place, bytes) in places_of(part) {
                while before.next_if(|(earlier, _)| *earlier < place).is_some() {}
                let same = before.next_if(|(earlier, held)| *earlier == place && held.bytes == bytes);
                let held = match same {
                    Some((_, held)) => held.clone(),
                    None => Arc::new(Held::new(bytes, &self.total_bytes)),
                };
                contents.push((place, held));
            }
        }
        self.kept.insert(place, Snapshot { icount, course: course.clone(), flipped, head, contents });
        self.thin_out(icount);
    }

    /// Bytes that all of them take together.
    pub fn bytes(&self) -> u64 {
        let entries: usize = self.kept.iter().map(|snapshot| snapshot.contents.len()).sum();
        self.total_bytes.load(Ordering::Relaxed) + (entries * size_of::<(Place, Arc<Held>)>()) as u64
    }

    fn thin_out(&mut self, here: u64) {
        while self.bytes() > self.limit_bytes && self.kept.len() > 2 {
            // How close the neighbours are, relative to the distance from here.
            let closeness = |index: usize| {
                let after = self.kept.get(index + 1).map_or(here, |snapshot| snapshot.icount);
                let gap = after.saturating_sub(self.kept[index - 1].icount);
                gap as f64 / (self.kept[index].icount.abs_diff(here) + 1) as f64
            };
            let candidates = (1..self.kept.len()).filter(|index| self.kept[*index].icount != here);
            let Some(index) = candidates.min_by(|one, other| closeness(*one).total_cmp(&closeness(*other)))
            else {
                break;
            };
            self.kept.remove(index);
        }
    }
}

impl Snapshot {
    /// Brings the machine to this state.
    ///
    /// # Errors
    /// When it is another machine's.
    pub fn restore(&self, machine: &mut RiscvMachine) -> Result<(), RestoreError> {
        machine.restore_begin(&self.head)?;
        for chunk in self.contents.chunks(PAGES_AT_ONCE) {
            let mut part = CheckpointPart::default();
            for ((store, index), held) in chunk {
                let (index, data) = (*index, held.bytes.clone());
                match store.checked_sub(1) {
                    None => part.pages.push(Page { index, data: Some(data) }),
                    Some(disk) => part.blocks.push(DiskBlock { disk: disk as u8, index, data }),
                }
            }
            machine.restore_part(&part)?;
        }
        Ok(())
    }
}

fn places_of(part: CheckpointPart) -> impl Iterator<Item = (Place, Bytes)> {
    // A page without contents is zero, as every page is that is not restored.
    let pages = part.pages.into_iter().filter_map(|page| Some(((0, page.index), page.data?)));
    let blocks = part.blocks.into_iter();
    pages.chain(blocks.map(|block| ((u16::from(block.disk) + 1, block.index), block.data)))
}
