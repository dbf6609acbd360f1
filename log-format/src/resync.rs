//! What two sides say about disks and about what the other side has already.
//!
//! A backup that joins by a checkpoint, and held a state of the same machine before, has most of
//! what the checkpoint would ship. Then hashes go first:
//!
//! ```text
//!   backup                                   primary
//!     | <-- Welcome{plan Checkpoint} --------- |
//!     | -- Donor{memory, disks} -------------> |
//!     | <-- CheckpointHead ------------------- |
//!     | <-- Offer{bite 0: numbers, hashes} --- |
//!     | -- Want{bite 0: those that differ} --> |
//!     | <-- CheckpointPart{those} ------------ |   as soon as the Want came; offers run ahead
//!     | <-- CheckpointEnd -------------------- |   what was never offered is not part of it
//! ```
//!
//! Disks are compared on request at the same place of the log (`DiskCheck`, `DiskHashes`), and
//! their base images are copied before there is a machine (`ImageRequest`, `ImageReply`: each
//! answer stands for itself).

use std::net::SocketAddr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::frame::FrameKind;
use crate::message::Record;
use crate::{ChainHash, Digest, Position};

/// What the joining side has of an earlier state of the same machine (backup to primary).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Donor {
    /// The backup's term.
    #[serde(skip)]
    pub term: u64,
    /// Its memory.
    pub memory: bool,
    /// What was written to its disks.
    pub disks: bool,
}

/// Hashes of pages and blocks of the checkpoint under way (primary to backup).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Counts the offers of a checkpoint, from 0.
    pub bite: u64,
    /// Memory pages.
    pub pages: Vec<OfferedPage>,
    /// Disk blocks.
    pub blocks: Vec<OfferedBlock>,
}

/// A page that the other side may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedPage {
    /// Number of the page: guest-physical offset in RAM / 4096.
    pub index: u64,
    /// XXH3-128 of its contents, without seed.
    pub hash: Digest,
}

/// A disk block that the other side may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedBlock {
    /// Index of the disk.
    pub disk: u8,
    /// Number of the block: byte offset / 4096.
    pub index: u64,
    /// XXH3-128 of its contents, without seed.
    pub hash: Digest,
}

/// What of an offer is not there (backup to primary).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// Of which offer.
    pub bite: u64,
    /// A bit for each page of it, the first in the lowest bit of the first byte.
    pub pages: Bytes,
    /// A bit for each block of it.
    pub blocks: Bytes,
}

/// Asks to hash what is on the disks after a batch (primary to backup).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCheck {
    /// The primary's term.
    #[serde(skip)]
    pub term: u64,
    /// After which batch.
    #[serde(skip)]
    pub sequence: u64,
    /// Number of the check; the answers carry it.
    pub check: u64,
}

/// Hashes of what was written to the disks (backup to primary).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskHashes {
    /// Of which check.
    pub check: u64,
    /// Blocks, ascending by disk and number.
    pub blocks: Vec<OfferedBlock>,
    /// Whether these are the last.
    pub is_last: bool,
    /// Why there are no more, where that is for a fault; empty when all went well.
    pub error: String,
}

/// Where the sender will listen when it is the primary (backup to primary, once it is welcome).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Where it listens. An unspecified IP address (0.0.0.0, ::) stands for that of its connection.
    #[serde(with = "socket_address")]
    pub listen: SocketAddr,
}

/// A socket's address as a string, `127.0.0.1:7420` or `[::1]:7420`.
mod socket_address {
    use std::net::SocketAddr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(address: &SocketAddr, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(address)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| de::Error::custom(format!("found {text:?}, expected an address and a port")))
    }
}

/// Asks for a part of a base image (backup to primary, first message of a connection).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRequest {
    /// Name of the virtual machine.
    pub vm: String,
    /// Index of the disk.
    pub disk: u8,
    /// What of it.
    pub part: ImagePart,
    /// The first byte.
    pub at: u64,
    /// How many bytes from there on.
    pub len_bytes: u64,
}

/// What is asked of a base image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum ImagePart {
    /// Its size and hash.
    Identity,
    /// A hash for each chunk of 64 KiB: BLAKE3, 32 bytes each.
    Hashes,
    /// Its bytes.
    Contents,
}

/// A part of a base image (primary to backup).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageReply {
    /// Index of the disk.
    pub disk: u8,
    /// What of it.
    pub part: ImagePart,
    /// The first byte that it is about.
    pub at: u64,
    /// Size of the whole image in bytes.
    pub image_bytes: u64,
    /// BLAKE3 of the whole image.
    #[serde(with = "serde_bytes")]
    pub image_hash: [u8; 32],
    /// Hashes or contents.
    pub data: Bytes,
}

/// Bytes of an image that one hash of [`ImagePart::Hashes`] stands for.
pub const IMAGE_CHUNK_BYTES: u64 = 64 << 10;

impl Want {
    /// What is wanted of an offer: `page` and `block` are asked in its order.
    pub fn of(
        offer: &Offer,
        mut page: impl FnMut(&OfferedPage) -> bool,
        mut block: impl FnMut(&OfferedBlock) -> bool,
    ) -> Want {
        Want {
            bite: offer.bite,
            pages: bits(offer.pages.iter().map(&mut page)),
            blocks: bits(offer.blocks.iter().map(&mut block)),
        }
    }

    /// Whether it answers an offer with this many pages and blocks.
    pub fn fits(&self, pages: usize, blocks: usize) -> bool {
        let fits = |bits: &Bytes, count: usize| {
            let spare = bits.last().map_or(0, |last| last.checked_shr(count as u32 % 8).unwrap_or(0));
            bits.len() == count.div_ceil(8) && (count.is_multiple_of(8) || spare == 0)
        };
        fits(&self.pages, pages) && fits(&self.blocks, blocks)
    }

    /// Whether the page in this place of the offer is wanted.
    pub fn wants_page(&self, place: usize) -> bool {
        bit(&self.pages, place)
    }

    /// Whether the block in this place of the offer is wanted.
    pub fn wants_block(&self, place: usize) -> bool {
        bit(&self.blocks, place)
    }
}

fn bits(wanted: impl Iterator<Item = bool>) -> Bytes {
    let mut bytes = Vec::new();
    for (place, wanted) in wanted.enumerate() {
        if place % 8 == 0 {
            bytes.push(0u8);
        }
        if let Some(last) = bytes.last_mut() {
            *last |= u8::from(wanted) << (place % 8);
        }
    }
    bytes.into()
}

fn bit(bits: &Bytes, place: usize) -> bool {
    bits.get(place / 8).is_some_and(|byte| byte >> (place % 8) & 1 == 1)
}

impl From<ImagePart> for u8 {
    fn from(part: ImagePart) -> u8 {
        match part {
            ImagePart::Identity => 1,
            ImagePart::Hashes => 2,
            ImagePart::Contents => 3,
        }
    }
}

impl TryFrom<u8> for ImagePart {
    type Error = String;

    fn try_from(code: u8) -> Result<Self, String> {
        match code {
            1 => Ok(ImagePart::Identity),
            2 => Ok(ImagePart::Hashes),
            3 => Ok(ImagePart::Contents),
            _ => Err(format!("found part {code} of an image, expected 1 to 3")),
        }
    }
}

impl Record for Donor {
    const KIND: FrameKind = FrameKind::Donor;

    fn place(&self) -> (Position, ChainHash) {
        (Position { term: self.term, ..Position::default() }, ChainHash::NONE)
    }

    fn set_place(&mut self, position: Position, _: ChainHash) {
        self.term = position.term;
    }
}

impl Record for DiskCheck {
    const KIND: FrameKind = FrameKind::DiskCheck;

    fn place(&self) -> (Position, ChainHash) {
        let position = Position { term: self.term, sequence: self.sequence, ..Position::default() };
        (position, ChainHash::NONE)
    }

    fn set_place(&mut self, position: Position, _: ChainHash) {
        self.term = position.term;
        self.sequence = position.sequence;
    }
}

/// Records of which the header carries nothing.
macro_rules! without_place {
    ($($type:ty => $kind:ident,)*) => {
        $(impl Record for $type {
            const KIND: FrameKind = FrameKind::$kind;

            fn place(&self) -> (Position, ChainHash) {
                Default::default()
            }

            fn set_place(&mut self, _: Position, _: ChainHash) {}
        })*
    };
}

without_place! {
    Offer => Offer,
    Want => Want,
    DiskHashes => DiskHashes,
    ImageRequest => ImageRequest,
    ImageReply => ImageReply,
    Address => Address,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_told_bit_by_bit() {
        let page = |index| OfferedPage { index, hash: Digest::default() };
        let block = |index| OfferedBlock { disk: 0, index, hash: Digest::default() };
        let offer =
            Offer { bite: 3, pages: (0..11).map(page).collect(), blocks: (0..8).map(block).collect() };
        let want = Want::of(&offer, |page| page.index % 3 == 0, |block| block.index == 7);
        assert_eq!((want.bite, want.pages.len(), want.blocks.len()), (3, 2, 1));
        let pages: Vec<usize> = (0..20).filter(|place| want.wants_page(*place)).collect();
        assert_eq!(pages, [0, 3, 6, 9]);
        assert_eq!((0..20).filter(|place| want.wants_block(*place)).collect::<Vec<_>>(), [7]);
        assert!(want.fits(11, 8));
        for (pages, blocks) in [(9, 8), (11, 7), (17, 8), (8, 8), (0, 8)] {
            assert!(!want.fits(pages, blocks), "{pages} pages, {blocks} blocks");
        }
        assert!(Want::default().fits(0, 0));
    }
}
