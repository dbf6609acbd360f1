//! Small checkpoints to write and read, shared by the tests and the fuzz target.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use log_format::checkpoint_file::Description;
use log_format::{CheckpointHead, CheckpointPart, Digest, DiskBlock, MachineIdentity, Moment, Page};
use store::checkpoint::{
    Chain, CheckpointError, CheckpointFile, CheckpointWriter, Image, Images, Plan, SecretKey, SigningKey,
    Trust, Written,
};

/// Pages of the small machine.
pub const PAGES: u64 = 1024;
/// Blocks of its only disk.
pub const BLOCKS: u64 = 64;

/// A folder with a key that signs and one that encrypts.
pub struct Desk {
    pub folder: tempfile::TempDir,
    pub signer: SigningKey,
    pub secret: SecretKey,
}

impl Desk {
    pub fn new() -> Desk {
        let folder = tempfile::tempdir().unwrap();
        let signer = new_signer(&folder.path().join("sign"));
        let secret = new_secret(&folder.path().join("secret"));
        Desk { folder, signer, secret }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Trusts its own key only.
    pub fn trust(&self) -> Trust {
        Trust::Keys(vec![self.signer.public()])
    }

    /// Writes a checkpoint of this state.
    pub fn write(&self, name: &str, state: &State, how: How<'_>) -> Result<Written, CheckpointError> {
        let plan = Plan {
            description: state.description(),
            images: &Images::new(state.images.clone()),
            base: how.base,
            signer: &self.signer,
            secret: how.is_secret.then_some(&self.secret),
        };
        let mut writer = CheckpointWriter::create(&self.path(name), plan)?;
        for pages in state.pages.chunks(100) {
            writer.push(&CheckpointPart { pages: pages.to_vec(), blocks: vec![] })?;
        }
        for blocks in state.blocks.chunks(7) {
            writer.push(&CheckpointPart { pages: vec![], blocks: blocks.to_vec() })?;
        }
        writer.finish()
    }

    /// Reads back all that a checkpoint holds.
    pub fn read(&self, path: &Path, images: &[Bytes]) -> Result<State, CheckpointError> {
        read(path, &[], &self.trust(), Some(&self.secret), images)
    }
}

/// How a checkpoint is written.
#[derive(Default)]
pub struct How<'a> {
    pub base: Option<&'a CheckpointFile>,
    pub is_secret: bool,
}

pub fn new_signer(path: &Path) -> SigningKey {
    store::checkpoint::generate_signing(path).unwrap();
    SigningKey::load(path).unwrap()
}

pub fn new_secret(path: &Path) -> SecretKey {
    store::checkpoint::generate_secret(path).unwrap();
    SecretKey::load(path).unwrap()
}

/// Reads back all that a checkpoint and what it builds on hold.
pub fn read(
    path: &Path,
    bases: &[PathBuf],
    trust: &Trust,
    secret: Option<&SecretKey>,
    images: &[Bytes],
) -> Result<State, CheckpointError> {
    let chain = Chain::open(path, bases, trust, secret)?;
    let description = chain.last().description().clone();
    let mut state =
        State { pages: vec![], blocks: vec![], images: vec![], icount: description.head.moment.icount };
    chain.load(images, |part| {
        state.pages.extend(part.pages);
        state.blocks.extend(part.blocks);
        Ok::<(), CheckpointError>(())
    })?;
    state.pages.sort_by_key(|page| page.index);
    state.blocks.sort_by_key(|block| (block.disk, block.index));
    for reference in &description.images {
        if let Some(bytes) = chain.last().bundled_image(&reference.name)? {
            state.images.push(Image { name: reference.name.clone(), bytes, bundled: true });
        }
    }
    Ok(state)
}

/// What is checkpointed: some pages, some blocks, boot images.
#[derive(Debug, Clone)]
pub struct State {
    pub pages: Vec<Page>,
    pub blocks: Vec<DiskBlock>,
    pub images: Vec<Image>,
    pub icount: u64,
}

impl PartialEq for State {
    fn eq(&self, other: &State) -> bool {
        (&self.pages, &self.blocks, self.icount) == (&other.pages, &other.blocks, other.icount)
    }
}

/// A page or block that looks like `seed`: some compress, some do not.
pub fn unit(seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let bytes: Vec<u8> = match seed % 3 {
        0 => (0..4096).map(|_| next() as u8).collect(),
        1 => vec![seed as u8 | 1; 4096],
        _ => (0..4096).map(|byte| (byte / 64) as u8 ^ seed as u8).collect(),
    };
    bytes.into()
}

impl State {
    /// Pages, some of them from a boot image, and disk blocks.
    pub fn some() -> State {
        let kernel: Vec<u8> = (0..20).flat_map(|page| unit(3000 + 3 * page)).chain([7; 100]).collect();
        let kernel = Image { name: "kernel".into(), bytes: kernel.into(), bundled: false };
        let mut pages: Vec<Page> =
            (0..600).map(|index| Page { index: index * 3 / 2, data: Some(unit(index)) }).collect();
        for (page, held) in pages[200..220].iter_mut().zip(0..) {
            page.data = Some(kernel.bytes.slice(held * 4096..(held + 1) * 4096));
        }
        let blocks = (0..30).map(|block| DiskBlock { disk: 0, index: block * 2, data: unit(500 + block) });
        State { pages, blocks: blocks.collect(), images: vec![kernel], icount: 77 }
    }

    /// The same machine somewhat later.
    pub fn later(&self) -> State {
        let mut later = self.clone();
        later.icount += 1;
        later.pages[17].data = Some(unit(9017));
        later.pages.remove(300);
        later.blocks[3].data = unit(9003);
        later
    }

    pub fn image_bytes(&self) -> Vec<Bytes> {
        self.images.iter().map(|image| image.bytes.clone()).collect()
    }

    pub fn description(&self) -> Description {
        Description {
            vm: "vm".into(),
            program: "test".into(),
            taken_unix_ns: 5,
            events_before: 6,
            base: None,
            head: CheckpointHead {
                identity: MachineIdentity {
                    semantics: 1,
                    config: [1; 32],
                    boot_images: [2; 32],
                    disks: vec![(BLOCKS * 4096, [3; 32])],
                },
                moment: Moment { icount: self.icount, time_ns: 78 },
                outputs_before: 3,
                ram_bytes: PAGES * 4096,
                digest: Digest([5; 16]),
                state: vec![9; 100].into(),
            },
            recipe: Bytes::from_static(b"recipe"),
            images: vec![],
        }
    }
}
