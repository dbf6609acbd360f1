//! The index: a row of 44 bytes for each chunk, in the order of the chunks.
//!
//! | offset | bytes | field |
//! | ---: | ---: | --- |
//! | 0 | 1 | kind |
//! | 1 | 1 | method: 0 as it is, 1 a zstd frame |
//! | 2 | 2 | zero |
//! | 4 | 4 | bytes unpacked |
//! | 8 | 4 | bytes in the file |
//! | 12 | 32 | BLAKE3 of the bytes in the file |

use super::{CHUNK_UNITS, FileHeader, FormatError, IMAGE_CHUNK_BYTES, Root, UNIT_BYTES, number};

const ROW_BYTES: usize = 44;
const ROOT_CONTEXT: &str = "secondwind 2026-11-20 checkpoint file root";

/// What a chunk holds. In a file they come in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ChunkKind {
    /// The [`Description`](super::Description): exactly one, the first chunk.
    Description = 1,
    /// A piece of a boot image that comes along.
    Image = 2,
    /// Pages of memory, then blocks of disks.
    Units = 3,
    /// A piece of the [`Table`](super::Table).
    Table = 4,
}

/// How a chunk is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Method {
    /// As it is.
    Plain = 0,
    /// A zstd frame.
    Zstd = 1,
}

/// A row of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// What it holds.
    pub kind: ChunkKind,
    /// How it is packed.
    pub method: Method,
    /// Bytes unpacked.
    pub plain_bytes: u32,
    /// Bytes in the file.
    pub stored_bytes: u32,
    /// BLAKE3 of the bytes in the file.
    pub hash: [u8; 32],
}

/// The index.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    /// A row for each chunk.
    pub chunks: Vec<Chunk>,
}

/// Greatest length of an unpacked chunk.
pub fn chunk_limit_bytes(kind: ChunkKind) -> u32 {
    match kind {
        ChunkKind::Description => 64 << 20,
        ChunkKind::Image => IMAGE_CHUNK_BYTES as u32,
        ChunkKind::Units => (CHUNK_UNITS * UNIT_BYTES) as u32,
        ChunkKind::Table => 4 << 20,
    }
}

/// The root over a header and an index, both as bytes.
pub fn chunk_root(header: &[u8; FileHeader::BYTES], index: &[u8]) -> Root {
    let mut hasher = blake3::Hasher::new_derive_key(ROOT_CONTEXT);
    hasher.update(header);
    hasher.update(index);
    Root(*hasher.finalize().as_bytes())
}

/// A chunk's bytes, from what is left of it once it is decrypted. Never makes more than the
/// row says, and a row never says more than [`chunk_limit_bytes`].
///
/// # Errors
/// When they do not unpack to that many bytes.
pub fn unpack_chunk(chunk: &Chunk, packed: &[u8]) -> Result<Vec<u8>, FormatError> {
    let expected = chunk.plain_bytes as usize;
    let plain = match chunk.method {
        Method::Plain => packed.to_vec(),
        Method::Zstd => zstd::bulk::decompress(packed, expected)
            .map_err(|error| FormatError::damaged("chunk", error.to_string()))?,
    };
    if plain.len() != expected {
        let cause = format!("found {} bytes, expected {expected}", plain.len());
        return Err(FormatError::damaged("chunk", cause));
    }
    Ok(plain)
}

impl Index {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.chunks.len() * ROW_BYTES);
        for chunk in &self.chunks {
            bytes.extend([chunk.kind as u8, chunk.method as u8, 0, 0]);
            bytes.extend(chunk.plain_bytes.to_le_bytes());
            bytes.extend(chunk.stored_bytes.to_le_bytes());
            bytes.extend(chunk.hash);
        }
        bytes
    }

    /// Reads an index whose chunks lie between the header and `index_offset`.
    ///
    /// # Errors
    /// When a row is wrong by itself, or the chunks do not fill that space in their order.
    pub fn decode(bytes: &[u8], index_offset: u64) -> Result<Index, FormatError> {
        let damaged = |cause: String| FormatError::damaged("index", cause);
        if bytes.is_empty() || !bytes.len().is_multiple_of(ROW_BYTES) {
            return Err(damaged(format!("found {} bytes, expected rows of {ROW_BYTES}", bytes.len())));
        }
        let chunks = bytes.chunks_exact(ROW_BYTES).map(decode_row).collect::<Result<Vec<_>, _>>()?;
        let index = Index { chunks };
        let stored: u64 = index.chunks.iter().map(|chunk| u64::from(chunk.stored_bytes)).sum();
        if stored + FileHeader::BYTES as u64 != index_offset {
            return Err(damaged(format!("its chunks have {stored} bytes, before it lie {index_offset}")));
        }
        if !index.chunks.is_sorted_by_key(|chunk| chunk.kind) {
            return Err(damaged("its chunks are not in order".to_owned()));
        }
        let descriptions = index.of_kind(ChunkKind::Description).count();
        if descriptions != 1 {
            return Err(damaged(format!("found {descriptions} descriptions, expected 1")));
        }
        let units: Vec<u32> =
            index.of_kind(ChunkKind::Units).map(|(_, _, chunk)| chunk.plain_bytes).collect();
        let full = chunk_limit_bytes(ChunkKind::Units);
        let whole = units.iter().all(|bytes| *bytes != 0 && bytes.is_multiple_of(UNIT_BYTES as u32));
        if !whole || units.iter().rev().skip(1).any(|bytes| *bytes != full) {
            return Err(damaged("its unit chunks are not full".to_owned()));
        }
        Ok(index)
    }

    /// The chunks of a kind: number, offset in the file, and row.
    pub fn of_kind(&self, kind: ChunkKind) -> impl Iterator<Item = (u32, u64, &Chunk)> {
        let mut offset = FileHeader::BYTES as u64;
        let placed = (0u32..).zip(&self.chunks).map(move |(number, chunk)| {
            let at = offset;
            offset += u64::from(chunk.stored_bytes);
            (number, at, chunk)
        });
        placed.filter(move |(_, _, chunk)| chunk.kind == kind)
    }

    /// How many units the file holds.
    pub fn units(&self) -> u64 {
        let bytes = self.of_kind(ChunkKind::Units).map(|(_, _, chunk)| u64::from(chunk.plain_bytes));
        bytes.sum::<u64>() / UNIT_BYTES as u64
    }
}

fn decode_row(row: &[u8]) -> Result<Chunk, FormatError> {
    let damaged = |cause: String| FormatError::damaged("index", cause);
    let kind = match row[0] {
        1 => ChunkKind::Description,
        2 => ChunkKind::Image,
        3 => ChunkKind::Units,
        4 => ChunkKind::Table,
        kind => return Err(damaged(format!("found chunk kind {kind}, expected 1 to 4"))),
    };
    let method = match row[1] {
        0 => Method::Plain,
        1 => Method::Zstd,
        method => return Err(damaged(format!("found method {method}, expected 0 or 1"))),
    };
    if row[2..4] != [0, 0] {
        return Err(damaged("found bytes that should be zero".to_owned()));
    }
    let plain_bytes = u32::from_le_bytes(number(row, 4));
    let limit = chunk_limit_bytes(kind);
    if plain_bytes > limit {
        return Err(damaged(format!("found a chunk of {plain_bytes} bytes, expected at most {limit}")));
    }
    let stored_bytes = u32::from_le_bytes(number(row, 8));
    Ok(Chunk { kind, method, plain_bytes, stored_bytes, hash: number(row, 12) })
}
