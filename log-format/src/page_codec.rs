//! How the pages and disk blocks of an increment are packed.
//!
//! | code | encoding | packed bytes |
//! | --- | --- | --- |
//! | 0 | raw | the 4096 bytes |
//! | 1 | zero | none |
//! | 2 | delta | what differs from the same page before the increment (pages only) |
//! | 3 | copy | number of a page, u64 little-endian, that held the same before the increment |
//! | 4 | zstd | a zstd frame of the 4096 bytes |
//!
//! A delta is a sequence of runs: how many bytes stay, how many change (both LEB128, at most
//! two bytes each), and those that change XORed with the old ones; after the last run all bytes
//! stay. Remus, and QEMU's XBZRLE, pack pages in this manner.
//!
//! The sources of delta and copy are read as they were *before* the increment, so that its parts
//! can be unpacked in any order, and all of them before any of them is put in place.
//!
//! The [`Encoder`] chooses page by page: an encoding is tried as long as it pays, in bytes saved
//! for the time spent, on the link at hand.

mod delta;
mod encoder;
#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use encoder::{Encoder, EncodingStatistics, Statistics};

use crate::{CheckpointPart, DiskBlock, EncodedBlock, EncodedPage, EncodedPart, Page, compress};

/// Bytes of a page, and of a disk block.
pub const PAGE_BYTES: usize = 4096;

/// How a page or block is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Encoding {
    /// As it is.
    Raw = 0,
    /// All bytes are 0.
    Zero = 1,
    /// What differs from the same page before the increment.
    Delta = 2,
    /// It is what another page was before the increment.
    Copy = 3,
    /// As a zstd frame.
    Zstd = 4,
}

impl Encoding {
    /// Every encoding, by its code.
    pub const ALL: [Encoding; 5] =
        [Encoding::Raw, Encoding::Zero, Encoding::Delta, Encoding::Copy, Encoding::Zstd];

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Raw => "raw",
            Encoding::Zero => "zero",
            Encoding::Delta => "delta",
            Encoding::Copy => "copy",
            Encoding::Zstd => "zstd",
        }
    }
}

/// What does not unpack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// No such encoding.
    #[error("found page encoding {found}, expected 0 to 4; update this side")]
    UnknownEncoding {
        /// Its code.
        found: u8,
    },
    /// Too few or too many bytes.
    #[error("found {found} bytes for a {} page, expected {expected}", encoding.name())]
    Length {
        /// How it is packed.
        encoding: Encoding,
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        expected: usize,
    },
    /// A delta's runs do not fit a page, or do not follow one another.
    #[error("a delta goes wrong at its byte {offset}; the sender is faulty")]
    Delta {
        /// Offset into the delta.
        offset: usize,
    },
    /// A delta or a copy stands on a page that is not there.
    #[error("it stands on page {index}, which this machine does not have")]
    NoSource {
        /// Number of the page.
        index: u64,
    },
    /// A disk block has no page that it could be a delta of.
    #[error("block {index} is a delta, which only pages may be")]
    BlockDelta {
        /// Number of the block.
        index: u64,
    },
    /// The zstd frame is damaged.
    #[error("zstd: {0}")]
    Zstd(String),
}

/// Unpacks the pages and blocks of a part. `source` gives the contents that a page had before
/// the increment.
///
/// # Errors
/// Says what does not unpack. Nothing is done then.
pub fn decode_part<'a>(
    part: &EncodedPart,
    source: impl Fn(u64) -> Option<&'a [u8]>,
) -> Result<CheckpointPart, PageError> {
    let pages = part.pages.iter().map(|page| decode_page(page, &source)).collect::<Result<_, _>>()?;
    let blocks = part.blocks.iter().map(|block| decode_block(block, &source)).collect::<Result<_, _>>()?;
    Ok(CheckpointPart { pages, blocks })
}

fn decode_page<'a>(page: &EncodedPage, source: &impl Fn(u64) -> Option<&'a [u8]>) -> Result<Page, PageError> {
    let EncodedPage { index, encoding, packed } = page;
    let data = unpack(*encoding, packed, Some(*index), source)?;
    Ok(Page { index: *index, data })
}

fn decode_block<'a>(
    block: &EncodedBlock,
    source: &impl Fn(u64) -> Option<&'a [u8]>,
) -> Result<DiskBlock, PageError> {
    let EncodedBlock { disk, index, encoding, packed } = block;
    if *encoding == Encoding::Delta as u8 {
        return Err(PageError::BlockDelta { index: *index });
    }
    let data = unpack(*encoding, packed, None, source)?;
    let data = data.unwrap_or(Bytes::from_static(&[0; PAGE_BYTES]));
    Ok(DiskBlock { disk: *disk, index: *index, data })
}

/// The contents; `None` for zeros. `base` is the page that a delta changes.
fn unpack<'a>(
    code: u8,
    packed: &Bytes,
    base: Option<u64>,
    source: &impl Fn(u64) -> Option<&'a [u8]>,
) -> Result<Option<Bytes>, PageError> {
    let Some(encoding) = Encoding::ALL.into_iter().find(|encoding| *encoding as u8 == code) else {
        return Err(PageError::UnknownEncoding { found: code });
    };
    let length = |expected| match packed.len() {
        found if found == expected => Ok(()),
        found => Err(PageError::Length { encoding, found, expected }),
    };
    let page = |index| {
        let contents = source(index).filter(|contents| contents.len() == PAGE_BYTES);
        contents.ok_or(PageError::NoSource { index })
    };
    Ok(Some(match encoding {
        Encoding::Raw => {
            length(PAGE_BYTES)?;
            packed.clone()
        }
        Encoding::Zero => {
            length(0)?;
            return Ok(None);
        }
        Encoding::Delta => delta::apply(page(base.unwrap_or(u64::MAX))?, packed)?.into(),
        Encoding::Copy => {
            length(size_of::<u64>())?;
            let index = packed.iter().rev().fold(0, |index, byte| index << 8 | u64::from(*byte));
            Bytes::copy_from_slice(page(index)?)
        }
        Encoding::Zstd => {
            let plain = compress::unpack_exactly(packed, PAGE_BYTES).map_err(PageError::Zstd)?;
            plain.into()
        }
    }))
}
