//! The hash of an image's contents: BLAKE3 of what the guest reads, so that a raw image and
//! its qcow2 conversion are the same disk.
//!
//! BLAKE3 is a tree: subtrees are hashed on all processors at once and merged. Holes are not
//! read, but hashed as the zeros that they are.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use blake3::Hasher;
use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};

use super::image::Image;

/// What a thread hashes in one go: a power of two, as subtrees want it.
const SUBTREE_BYTES: u64 = 4 << 20;
/// What is read at once.
const READ_BYTES: u64 = 1 << 20;

/// BLAKE3 of an image's contents. `progress` is told how many bytes are done.
///
/// # Errors
/// When the image cannot be read.
pub fn of_contents(image: &dyn Image, progress: &(dyn Fn(u64) + Sync)) -> io::Result<[u8; 32]> {
    let len_bytes = image.len_bytes();
    let count = len_bytes.div_ceil(SUBTREE_BYTES);
    if count <= 1 {
        let mut hasher = Hasher::new();
        update(&mut hasher, image, 0, len_bytes)?;
        return Ok(*hasher.finalize().as_bytes());
    }
    let leaves = leaves(image, count, progress)?;
    let left = subtrees(left_subtree_len(len_bytes));
    let (left, right) = leaves.split_at(left);
    let (left, right) = (merged(left), merged(right));
    Ok(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes())
}

/// The values of all subtrees of [`SUBTREE_BYTES`], and of what is left.
fn leaves(image: &dyn Image, count: u64, progress: &(dyn Fn(u64) + Sync)) -> io::Result<Vec<ChainingValue>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count as usize);
    let next = AtomicU64::new(0);
    let found = Mutex::new(Ok(Vec::new()));
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            let leaf = leaf(image, index);
            let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match (&mut *found, leaf) {
                (Ok(leaves), Ok(leaf)) => {
                    leaves.push((index, leaf));
                    progress(leaves.len() as u64 * SUBTREE_BYTES);
                }
                (Ok(_), Err(error)) => *found = Err(error),
                (Err(_), _) => return,
            }
        }
    };
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    let mut leaves = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)?;
    leaves.sort_unstable_by_key(|(index, _)| *index);
    Ok(leaves.into_iter().map(|(_, leaf)| leaf).collect())
}

fn leaf(image: &dyn Image, index: u64) -> io::Result<ChainingValue> {
    let start = index * SUBTREE_BYTES;
    let end = (start + SUBTREE_BYTES).min(image.len_bytes());
    let mut hasher = Hasher::new();
    hasher.set_input_offset(start);
    update(&mut hasher, image, start, end)?;
    Ok(hasher.finalize_non_root())
}

/// The value of the tree over these subtrees, of which only the last may be short.
fn merged(leaves: &[ChainingValue]) -> ChainingValue {
    match leaves {
        [leaf] => *leaf,
        _ => {
            // As many to the left as a power of two allows, at least one to the right.
            let half = leaves.len().next_power_of_two() / 2;
            let (left, right) = leaves.split_at(half);
            merge_subtrees_non_root(&merged(left), &merged(right), Mode::Hash)
        }
    }
}

fn subtrees(len_bytes: u64) -> usize {
    len_bytes.div_ceil(SUBTREE_BYTES) as usize
}

/// Feeds the bytes from `start` to `end`.
fn update(hasher: &mut Hasher, image: &dyn Image, start: u64, end: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut buffer = Vec::new();
    let mut at = start;
    while at < end {
        let extent = image.extent(at, end - at)?;
        let extent_end = at + extent.len_bytes.min(end - at);
        while at < extent_end {
            let left = extent_end - at;
            if extent.is_zero {
                let bytes = left.min(ZEROS.len() as u64);
                hasher.update(&ZEROS[..bytes as usize]);
                at += bytes;
            } else {
                let bytes = left.min(READ_BYTES);
                buffer.resize(READ_BYTES as usize, 0);
                image.read_at(at, &mut buffer[..bytes as usize])?;
                hasher.update(&buffer[..bytes as usize]);
                at += bytes;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::image::{Extent, Image};
    use super::*;

    /// Every other 100,000 bytes are a hole.
    struct Striped(Vec<u8>);

    const STRIPE_BYTES: u64 = 100_000;

    impl Image for Striped {
        fn len_bytes(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
            into.copy_from_slice(&self.0[at as usize..][..into.len()]);
            Ok(())
        }

        fn write_at(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
            unreachable!("hashing does not write")
        }

        fn zero(&mut self, _: u64, _: u64, _: bool) -> io::Result<()> {
            unreachable!("hashing does not write")
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn extent(&self, at: u64, _: u64) -> io::Result<Extent> {
            let is_zero = (at / STRIPE_BYTES) % 2 == 1;
            Ok(Extent { len_bytes: STRIPE_BYTES - at % STRIPE_BYTES, is_zero })
        }
    }

    #[test]
    fn it_is_the_plain_hash_of_the_contents() {
        for len in [512, SUBTREE_BYTES - 512, SUBTREE_BYTES, SUBTREE_BYTES + 512, 3 * SUBTREE_BYTES, 21 << 20]
        {
            let byte = |at: u64| if (at / STRIPE_BYTES) % 2 == 1 { 0 } else { (at % 251) as u8 };
            let bytes: Vec<u8> = (0..len).map(byte).collect();
            let expected = *blake3::hash(&bytes).as_bytes();
            assert_eq!(of_contents(&Striped(bytes), &|_| {}).unwrap(), expected, "{len} bytes");
        }
    }
}
