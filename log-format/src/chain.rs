//! The chain hash: ties every batch to all before it.

use serde::{Deserialize, Serialize};

use crate::MachineIdentity;

/// Hash of a log up to a batch. Two logs with the same chain hash at a sequence are the same
/// log up to there. 16 bytes of BLAKE3, `docs/log-format.md` section 3.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct ChainHash(#[serde(with = "serde_bytes")] pub [u8; 16]);

impl ChainHash {
    /// What headers of frames without a place in the chain carry.
    pub const NONE: ChainHash = ChainHash([0; 16]);

    /// The hash before the first batch after a boot of this machine.
    pub fn genesis(identity: &MachineIdentity) -> ChainHash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"secondwind log genesis");
        let mut body = Vec::new();
        // Writing plain numbers and byte strings to memory does not fail.
        rmp_serde::encode::write(&mut body, identity).expect("an identity serializes");
        hasher.update(&body);
        ChainHash::truncate(&hasher)
    }

    /// The hash after a batch: over the part of its header that places it (bytes 8 to 55,
    /// which hold the hash before) and its uncompressed body.
    pub(crate) fn after(place: &[u8], plain_body: &[u8]) -> ChainHash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(place);
        hasher.update(plain_body);
        ChainHash::truncate(&hasher)
    }

    fn truncate(hasher: &blake3::Hasher) -> ChainHash {
        let mut short = [0; 16];
        short.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        ChainHash(short)
    }
}

impl std::fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for ChainHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
