//! What a disk keeps, digests and hands to checkpoints.

use proptest::prelude::*;

use super::*;
use crate::CheckpointExtent::{self, Disks, Epoch, Full, Increment};

fn disk() -> Disk {
    Disk::new(Box::new(MemDisk::zeroed(16 * BLOCK_BYTES))).unwrap()
}

#[test]
fn digest_follows_contents_only() {
    let (mut one, mut other) = (disk(), disk());
    let base = one.digest().unwrap();
    one.write(9, &[1; SECTOR_BYTES]).unwrap();
    assert_ne!(one.digest().unwrap(), base);
    other.write(9, &[2; SECTOR_BYTES]).unwrap();
    other.digest().unwrap();
    other.write(9, &[1; SECTOR_BYTES]).unwrap();
    assert_eq!(one.digest().unwrap(), other.digest().unwrap());
    one.revert().unwrap();
    assert_eq!(one.digest().unwrap(), base);
}

#[test]
fn a_checkpoint_shows_the_frozen_contents() {
    let mut disk = disk();
    disk.write(0, &[1; BLOCK_BYTES]).unwrap();
    disk.write(80, &[2; SECTOR_BYTES]).unwrap();
    disk.begin_checkpoint(Full);
    disk.write(0, &[9; SECTOR_BYTES]).unwrap();
    disk.write(40, &[9; SECTOR_BYTES]).unwrap();
    assert_eq!(disk.held_bytes(), BLOCK_BYTES as u64);
    let mut taken = Vec::new();
    loop {
        let part = disk.take_blocks(Full, 3, 1).unwrap();
        if part.is_empty() {
            break;
        }
        taken.extend(part);
    }
    assert_eq!(taken.iter().map(|block| (block.disk, block.index)).collect::<Vec<_>>(), [(3, 0), (3, 10)]);
    assert_eq!(disk.held_bytes(), 0);
    assert!(taken[0].data.iter().all(|byte| *byte == 1));
    assert_eq!((taken[1].data[0], taken[1].data[SECTOR_BYTES]), (2, 0));
}

#[test]
fn ranges_past_the_end_are_refused() {
    let disk = disk();
    assert!(disk.holds(127, 512) && disk.holds(128, 0));
    assert!(!disk.holds(128, 512) && !disk.holds(u64::MAX, 512) && !disk.holds(0, 100));
}

/// A store that kept two blocks from an earlier run, and notes what is a change as a whole.
struct Keeping(MemDisk, std::sync::Arc<std::sync::Mutex<Vec<&'static str>>>);

impl BlockStore for Keeping {
    fn len_sectors(&self) -> u64 {
        self.0.len_sectors()
    }
    fn base_hash(&self) -> [u8; 32] {
        self.0.base_hash()
    }
    fn read(&mut self, sector: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read(sector, into)
    }
    fn write(&mut self, sector: u64, from: &[u8]) -> io::Result<()> {
        self.0.write(sector, from)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
    fn revert(&mut self) -> io::Result<()> {
        self.0.revert()
    }
    fn revert_block(&mut self, block: u64) -> io::Result<()> {
        self.0.revert_block(block)
    }
    fn kept_blocks(&mut self) -> io::Result<Vec<u64>> {
        Ok(vec![2, 5])
    }
    fn begin_change(&mut self) -> io::Result<()> {
        self.1.lock().unwrap().push("begin");
        Ok(())
    }
    fn end_change(&mut self) -> io::Result<()> {
        self.1.lock().unwrap().push("end");
        Ok(())
    }
}

#[test]
fn what_a_store_kept_counts_as_written() {
    let mut store = MemDisk::zeroed(16 * BLOCK_BYTES);
    for block in [2, 5] {
        store.write(block * BLOCK_SECTORS, &[block as u8; BLOCK_BYTES]).unwrap();
    }
    let changes = std::sync::Arc::default();
    let mut kept = Disk::new(Box::new(Keeping(store, std::sync::Arc::clone(&changes)))).unwrap();
    let mut written = disk();
    for block in [2, 5] {
        written.write(block * BLOCK_SECTORS, &[block as u8; BLOCK_BYTES]).unwrap();
    }
    assert!(!kept.is_base() && disk().is_base());
    assert_eq!(kept.digest().unwrap(), written.digest().unwrap());
    kept.begin_checkpoint(CheckpointExtent::Full);
    let taken = kept.take_blocks(CheckpointExtent::Full, 0, 100).unwrap();
    assert_eq!(taken.iter().map(|block| block.index).collect::<Vec<_>>(), [2, 5]);
    kept.revert().unwrap();
    assert_eq!(kept.digest().unwrap(), disk().digest().unwrap());
    kept.begin_change().unwrap();
    kept.end_change().unwrap();
    assert_eq!(*changes.lock().unwrap(), ["begin", "end"]);
}

#[test]
fn blocks_that_are_given_up_are_the_base_images_again() {
    let (mut disk, mut expected) = (disk(), disk());
    for block in 0..8 {
        disk.write(block * BLOCK_SECTORS, &[block as u8 + 1; BLOCK_BYTES]).unwrap();
    }
    expected.write(3 * BLOCK_SECTORS, &[4; BLOCK_BYTES]).unwrap();
    let hash = crate::contract::content_hash(&[4; BLOCK_BYTES]);
    assert_eq!(disk.content_hash(3).unwrap(), Some(hash));
    assert_eq!(disk.content_hash(9).unwrap(), None, "never written to");
    // Some hashed already, some not.
    disk.digest().unwrap();
    disk.write(0, &[9; SECTOR_BYTES]).unwrap();
    disk.keep_only(|block| block == 3).unwrap();
    assert_eq!(disk.digest().unwrap(), expected.digest().unwrap());
    assert_eq!(disk.written.keys().collect::<Vec<_>>(), [&3]);
    let mut found = vec![1; BLOCK_BYTES];
    disk.read(0, &mut found).unwrap();
    assert_eq!(found, [0; BLOCK_BYTES]);
}

#[test]
fn the_disks_alone_are_frozen_beside_a_full_checkpoint() {
    let mut disk = disk();
    let write = |disk: &mut Disk, block: u64, fill: u8| {
        disk.write(block * BLOCK_SECTORS, &[fill; BLOCK_BYTES]).unwrap();
    };
    let take = |disk: &mut Disk, extent, limit| -> Vec<(u64, u8)> {
        let taken = disk.take_blocks(extent, 0, limit).unwrap();
        taken.iter().map(|block| (block.index, block.data[0])).collect()
    };
    (0..3).for_each(|block| write(&mut disk, block, 1));
    disk.begin_checkpoint(Disks);
    write(&mut disk, 0, 2);
    write(&mut disk, 5, 2);
    // Begun later, it holds what was written meanwhile, too.
    disk.begin_checkpoint(Full);
    write(&mut disk, 1, 3);
    write(&mut disk, 6, 3);
    assert_eq!(take(&mut disk, Disks, 2), [(0, 1), (1, 1)]);
    assert_eq!(take(&mut disk, Full, 9), [(0, 2), (1, 1), (2, 1), (5, 2)]);
    write(&mut disk, 2, 4);
    assert_eq!(take(&mut disk, Disks, 9), [(2, 1)]);
    assert!(take(&mut disk, Disks, 9).is_empty());
    assert_eq!(disk.held_bytes(), 0);
    disk.begin_checkpoint(Disks);
    write(&mut disk, 0, 5);
    disk.cancel_checkpoint(Disks);
    assert_eq!(disk.held_bytes(), 0);
}

#[test]
fn zeroed_blocks_are_written_zeros() {
    let (mut one, mut other) = (disk(), disk());
    for disk in [&mut one, &mut other] {
        disk.write(0, &[1; 3 * BLOCK_BYTES]).unwrap();
        disk.digest().unwrap();
    }
    one.zero(4, 16, true).unwrap();
    other.write(4, &[0; 16 * SECTOR_BYTES]).unwrap();
    assert_eq!(one.digest().unwrap(), other.digest().unwrap());
    one.begin_checkpoint(Full);
    other.begin_checkpoint(Full);
    assert_eq!(one.take_blocks(Full, 0, 100).unwrap(), other.take_blocks(Full, 0, 100).unwrap());
}

#[test]
fn zeroing_what_is_zero_and_unwritten_changes_nothing() {
    let mut disk = disk();
    disk.zero(0, 128, true).unwrap();
    assert_eq!(disk.digest().unwrap(), 0);
    disk.begin_checkpoint(Full);
    assert!(disk.take_blocks(Full, 0, 100).unwrap().is_empty());
}

/// What a guest, or the machine's owner, does to a disk.
#[derive(Debug, Clone)]
enum Deed {
    Write { sector: u64, sectors: u64, fill: u8 },
    Zero { sector: u64, sectors: u64, release: bool },
    Digest,
    Begin(CheckpointExtent),
    Take(CheckpointExtent, usize),
    Cancel(CheckpointExtent),
    Revert,
}

fn extent() -> impl Strategy<Value = CheckpointExtent> + Clone {
    prop_oneof![2 => Just(Full), 2 => Just(Disks), 1 => Just(Epoch), 4 => Just(Increment)]
}

/// Odd on purpose: the last block is a part of one.
const MODEL_SECTORS: u64 = 10 * BLOCK_SECTORS + 3;

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let range = (0..MODEL_SECTORS).prop_flat_map(|sector| (Just(sector), 0..=(MODEL_SECTORS - sector)));
    let deed = prop_oneof![
        4 => (range.clone(), 0..4u8).prop_map(|((sector, sectors), fill)| Deed::Write { sector, sectors, fill }),
        4 => (range, any::<bool>())
            .prop_map(|((sector, sectors), release)| Deed::Zero { sector, sectors, release }),
        2 => Just(Deed::Digest),
        2 => extent().prop_map(Deed::Begin),
        6 => (extent(), 1..4usize).prop_map(|(extent, limit)| Deed::Take(extent, limit)),
        1 => extent().prop_map(Deed::Cancel),
        1 => Just(Deed::Revert),
    ];
    prop::collection::vec(deed, 1..40)
}

/// The base image: two blocks of data, then zeros.
fn base() -> Vec<u8> {
    let mut base = vec![0; MODEL_SECTORS as usize * SECTOR_BYTES];
    base[..2 * BLOCK_BYTES].fill(5);
    base
}

/// The simplest disk there is.
struct Model {
    bytes: Vec<u8>,
    /// What a receiver of all increments holds.
    received: Vec<u8>,
    /// The contents when the checkpoint was begun, and what was taken of it so far.
    full: Option<(Vec<u8>, Blocks)>,
    /// See `full`.
    alone: Option<(Vec<u8>, Blocks)>,
    /// See `full`.
    increment: Option<(Vec<u8>, Blocks)>,
}

type Blocks = BTreeMap<u64, Bytes>;

impl Model {
    fn new() -> Model {
        Model { bytes: base(), received: base(), full: None, alone: None, increment: None }
    }

    fn range(&mut self, sector: u64, sectors: u64) -> &mut [u8] {
        &mut self.bytes[sector as usize * SECTOR_BYTES..][..sectors as usize * SECTOR_BYTES]
    }

    /// What `disk` hands out is what was when its checkpoint began.
    fn take(&mut self, disk: &mut Disk, extent: CheckpointExtent, limit: usize) {
        let blocks = disk.take_blocks(extent, 0, limit).unwrap();
        let under_way = match extent {
            Full => &mut self.full,
            Disks => &mut self.alone,
            Epoch => return assert!(blocks.is_empty()),
            Increment => &mut self.increment,
        };
        let Some((_, taken)) = under_way else { return assert!(blocks.is_empty()) };
        if !blocks.is_empty() {
            return taken.extend(blocks.into_iter().map(|block| (block.index, block.data)));
        }
        let Some((frozen, taken)) = under_way.take() else { return };
        if extent != Increment {
            return assert!(contents(&mut restored(&taken)) == frozen);
        }
        disk.end_increment();
        for (index, data) in taken {
            let start = index as usize * BLOCK_BYTES;
            let end = (start + BLOCK_BYTES).min(self.received.len());
            self.received[start..end].copy_from_slice(&data[..end - start]);
        }
        assert!(self.received == frozen);
        assert!(disk.increment_digest().is_some());
    }
}

/// Does `deed` to both.
fn do_to_both(deed: &Deed, disk: &mut Disk, model: &mut Model) {
    match *deed {
        Deed::Write { sector, sectors, fill } => {
            disk.write(sector, &vec![fill; sectors as usize * SECTOR_BYTES]).unwrap();
            model.range(sector, sectors).fill(fill);
        }
        Deed::Zero { sector, sectors, release } => {
            disk.zero(sector, sectors, release).unwrap();
            model.range(sector, sectors).fill(0);
        }
        Deed::Digest => {
            disk.digest().unwrap();
        }
        Deed::Begin(extent) => {
            disk.begin_checkpoint(extent);
            let begun = Some((model.bytes.clone(), BTreeMap::new()));
            match extent {
                Full => model.full = begun,
                Disks => model.alone = begun,
                Epoch => (model.received, model.increment) = (model.bytes.clone(), None),
                Increment => model.increment = begun,
            }
        }
        Deed::Take(extent, limit) => model.take(disk, extent, limit),
        Deed::Cancel(extent) => {
            disk.cancel_checkpoint(extent);
            match extent {
                Full => model.full = None,
                Disks => model.alone = None,
                Epoch => {}
                Increment => model.increment = None,
            }
        }
        Deed::Revert => {
            disk.revert().unwrap();
            *model = Model::new();
        }
    }
}

/// Another disk, with the blocks of a checkpoint put back.
fn restored(blocks: &BTreeMap<u64, Bytes>) -> Disk {
    let mut disk = Disk::new(Box::new(MemDisk::new(base()))).unwrap();
    for (index, data) in blocks {
        disk.put_block(*index, data[..].try_into().unwrap()).unwrap();
    }
    disk
}

fn contents(disk: &mut Disk) -> Vec<u8> {
    let mut found = vec![0xee; MODEL_SECTORS as usize * SECTOR_BYTES];
    disk.read(0, &mut found).unwrap();
    found
}

proptest! {
    #[test]
    fn a_disk_is_what_a_simple_model_says(deeds in deeds()) {
        let mut disk = Disk::new(Box::new(MemDisk::new(base()))).unwrap();
        // Digests are taken at other moments here: they must not matter.
        let mut twin = Disk::new(Box::new(MemDisk::new(base()))).unwrap();
        let mut model = Model::new();
        let mut twin_model = Model::new();
        for deed in &deeds {
            do_to_both(deed, &mut disk, &mut model);
            if !matches!(deed, Deed::Digest) {
                do_to_both(deed, &mut twin, &mut twin_model);
            }
        }
        prop_assert!(contents(&mut disk) == model.bytes);
        prop_assert_eq!(disk.digest().unwrap(), twin.digest().unwrap());

        // A checkpoint makes the same disk, digest and all.
        do_to_both(&Deed::Cancel(Full), &mut disk, &mut model);
        disk.begin_checkpoint(Full);
        let blocks = disk.take_blocks(Full, 0, usize::MAX).unwrap();
        let mut other = restored(&blocks.into_iter().map(|block| (block.index, block.data)).collect());
        prop_assert!(contents(&mut other) == model.bytes);
        prop_assert_eq!(other.digest().unwrap(), disk.digest().unwrap());

        // So does an increment, with all that was received before.
        (0..40).for_each(|_| [Full, Disks, Increment].into_iter().for_each(|extent| model.take(&mut disk, extent, 4)));
        do_to_both(&Deed::Begin(Increment), &mut disk, &mut model);
        (0..40).for_each(|_| model.take(&mut disk, Increment, 4));
        prop_assert!(model.received == model.bytes);
        prop_assert_eq!(disk.increment_digest().unwrap(), disk.digest().unwrap());
        prop_assert_eq!(disk.held_bytes(), 0);
    }
}
