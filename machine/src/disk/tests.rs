//! What a disk keeps, digests and hands to checkpoints.

use proptest::prelude::*;

use super::*;

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
    disk.begin_checkpoint();
    disk.write(0, &[9; SECTOR_BYTES]).unwrap();
    disk.write(40, &[9; SECTOR_BYTES]).unwrap();
    assert_eq!(disk.held_bytes(), BLOCK_BYTES as u64);
    let mut taken = Vec::new();
    loop {
        let part = disk.take_blocks(3, 1).unwrap();
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
    one.begin_checkpoint();
    other.begin_checkpoint();
    assert_eq!(one.take_blocks(0, 100).unwrap(), other.take_blocks(0, 100).unwrap());
}

#[test]
fn zeroing_what_is_zero_and_unwritten_changes_nothing() {
    let mut disk = disk();
    disk.zero(0, 128, true).unwrap();
    assert_eq!(disk.digest().unwrap(), 0);
    disk.begin_checkpoint();
    assert!(disk.take_blocks(0, 100).unwrap().is_empty());
}

/// What a guest, or the machine's owner, does to a disk.
#[derive(Debug, Clone)]
enum Deed {
    Write { sector: u64, sectors: u64, fill: u8 },
    Zero { sector: u64, sectors: u64, release: bool },
    Digest,
    Begin,
    Take(usize),
    Revert,
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
        1 => Just(Deed::Begin),
        3 => (1..4usize).prop_map(Deed::Take),
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
    /// The contents when the checkpoint was begun, and what was taken of it so far.
    checkpoint: Option<(Vec<u8>, BTreeMap<u64, Bytes>)>,
}

impl Model {
    fn range(&mut self, sector: u64, sectors: u64) -> &mut [u8] {
        &mut self.bytes[sector as usize * SECTOR_BYTES..][..sectors as usize * SECTOR_BYTES]
    }
}

/// Does `deed` to both. A checkpoint that is complete restores to what was when it began.
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
        Deed::Begin => {
            disk.begin_checkpoint();
            model.checkpoint = Some((model.bytes.clone(), BTreeMap::new()));
        }
        Deed::Take(limit) => {
            let blocks = disk.take_blocks(0, limit).unwrap();
            let Some((frozen, mut taken)) = model.checkpoint.take() else { return };
            if blocks.is_empty() {
                assert!(contents(&mut restored(&taken)) == frozen);
            } else {
                taken.extend(blocks.into_iter().map(|block| (block.index, block.data)));
                model.checkpoint = Some((frozen, taken));
            }
        }
        Deed::Revert => {
            disk.revert().unwrap();
            *model = Model { bytes: base(), checkpoint: None };
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
        let mut model = Model { bytes: base(), checkpoint: None };
        let mut twin_model = Model { bytes: base(), checkpoint: None };
        for deed in &deeds {
            do_to_both(deed, &mut disk, &mut model);
            if !matches!(deed, Deed::Digest) {
                do_to_both(deed, &mut twin, &mut twin_model);
            }
        }
        prop_assert!(contents(&mut disk) == model.bytes);
        prop_assert_eq!(disk.digest().unwrap(), twin.digest().unwrap());

        // A checkpoint makes the same disk, digest and all.
        disk.begin_checkpoint();
        let blocks = disk.take_blocks(0, usize::MAX).unwrap();
        let mut other = restored(&blocks.into_iter().map(|block| (block.index, block.data)).collect());
        prop_assert!(contents(&mut other) == model.bytes);
        prop_assert_eq!(other.digest().unwrap(), disk.digest().unwrap());
    }
}
