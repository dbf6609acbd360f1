//! Any bytes as a checkpoint file: refused, or whole. Also the body of the fuzz target.

use std::path::Path;
use std::sync::OnceLock;

use log_format::checkpoint_file::{FileHeader, Trailer, chunk_root, signed_message};
use ring::signature::{Ed25519KeyPair, KeyPair};
use store::checkpoint::{Chain, CheckpointError, Trust};

/// Most a file of these bytes may unpack to: a chunk of each kind is bounded, and there are not
/// more of them than the file has rows for.
const UNPACKED_LIMIT_BYTES: usize = 1 << 30;

/// Opens and loads a file of these bytes. How many units came out of it.
pub fn file(bytes: &[u8], path: &Path) -> Option<usize> {
    std::fs::write(path, bytes).expect("the test's folder takes a file");
    let chain = Chain::open(path, &[], &Trust::AnySigner, None).ok()?;
    let _ = chain.last().bundled_image("kernel");
    let mut units = 0;
    let loaded = chain.load(&[], |part| {
        units += part.pages.len() + part.blocks.len();
        assert!(units * 4096 <= UNPACKED_LIMIT_BYTES);
        Ok::<(), CheckpointError>(())
    });
    loaded.is_ok().then_some(units)
}

/// The bytes with every hash, length and signature made good, as far as there is something to
/// make good: so that a fuzzer reaches what lies behind them.
pub fn resealed(bytes: &[u8]) -> Option<Vec<u8>> {
    const ROW_BYTES: usize = 44;
    let trailer_at = bytes.len().checked_sub(Trailer::BYTES)?;
    let told: [u8; 8] = bytes.get(trailer_at + 8..trailer_at + 16)?.try_into().ok()?;
    let index_at = usize::try_from(u64::from_le_bytes(told)).ok()?;
    if index_at < FileHeader::BYTES || index_at > trailer_at {
        return None;
    }
    let mut good = bytes[..trailer_at].to_vec();
    let mut chunk_at = FileHeader::BYTES;
    for row in (index_at..trailer_at).step_by(ROW_BYTES) {
        let stored: [u8; 4] = good.get(row + 8..row + 12)?.try_into().ok()?;
        let end = chunk_at.checked_add(u32::from_le_bytes(stored) as usize)?;
        let hash = *blake3::hash(good.get(chunk_at..end)?).as_bytes();
        good.get_mut(row + 12..row + ROW_BYTES)?.copy_from_slice(&hash);
        chunk_at = end;
    }
    let header = <&[u8; FileHeader::BYTES]>::try_from(&good[..FileHeader::BYTES]).ok()?;
    let root = chunk_root(header, &good[index_at..]);
    static KEY: OnceLock<Ed25519KeyPair> = OnceLock::new();
    let key = KEY.get_or_init(|| Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed has 32 bytes"));
    let mut trailer = Trailer {
        index_offset: index_at as u64,
        index_bytes: (trailer_at - index_at) as u64,
        root,
        signer: [0; 32],
        signature: [0; 64],
    };
    trailer.signer.copy_from_slice(key.public_key().as_ref());
    trailer.signature.copy_from_slice(key.sign(&signed_message(&root)).as_ref());
    good.extend(trailer.encode());
    Some(good)
}
