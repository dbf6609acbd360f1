//! The bytes of an overlay's journal: a mark, then records, each a change that takes effect whole
//! or not at all.
//!
//! All numbers are little-endian. The first 4096 bytes are the mark's, of which it uses one
//! sector: `SWmark\x01\n`, a byte that is 1 while the disk is between two states, 7 zeros, and the
//! first 16 bytes of BLAKE3 over these 16. A mark that is damaged counts as set, one that was
//! never written as not set. Records follow without a gap:
//!
//! | offset | bytes | field |
//! | ---: | ---: | --- |
//! | 0 | 8 | magic `SWjrnl\x01\n` |
//! | 8 | 8 | generation: records of another one are left over from before |
//! | 16 | 8 | number in its generation, from 0 |
//! | 24 | 8 | length of the overlay's file after it, in bytes |
//! | 32 | 4 | how many pages |
//! | 36 | 4 | zeros |
//! | 40 | 16 | first 16 bytes of BLAKE3 over bytes 0 to 39 and all that follows byte 63 |
//! | 56 | 8 | zeros |
//! | 64 | 8 each | numbers of the pages, ascending |
//! | | 4096 each | the pages |

use std::io;

use super::medium::Medium;

/// Bytes of a page, the unit in which a file is changed.
pub const PAGE_BYTES: usize = 4096;

const MAGIC: [u8; 8] = *b"SWjrnl\x01\n";
const HEADER_BYTES: usize = 64;
const CHECKSUM: std::ops::Range<usize> = 40..56;
const MARK_MAGIC: [u8; 8] = *b"SWmark\x01\n";
/// Bytes of the mark as far as they are used.
const MARK_BYTES: usize = 32;
/// Where records begin.
pub const RECORDS_AT: u64 = 4096;

/// A page of a file.
pub type Page = Box<[u8; PAGE_BYTES]>;

/// What a record says beside its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHead {
    /// Tells its records from those left over from before.
    pub generation: u64,
    /// Its number in its generation.
    pub number: u64,
    /// Length of the file after it, in bytes.
    pub file_bytes: u64,
}

/// A record's bytes.
pub fn encode<'a>(
    head: RecordHead,
    pages: impl ExactSizeIterator<Item = (u64, &'a Page)> + Clone,
) -> Vec<u8> {
    let count = pages.len();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + count * (8 + PAGE_BYTES));
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&head.generation.to_le_bytes());
    bytes.extend_from_slice(&head.number.to_le_bytes());
    bytes.extend_from_slice(&head.file_bytes.to_le_bytes());
    bytes.extend_from_slice(&(count as u32).to_le_bytes());
    bytes.resize(HEADER_BYTES, 0);
    pages.clone().for_each(|(index, _)| bytes.extend_from_slice(&index.to_le_bytes()));
    pages.for_each(|(_, page)| bytes.extend_from_slice(&page[..]));
    let checksum = checksum(&bytes[..HEADER_BYTES], &bytes[HEADER_BYTES..]);
    bytes[CHECKSUM].copy_from_slice(&checksum);
    bytes
}

/// Reads the records of the journal's generation, in order, up to where they end or are torn.
/// Gives each to `take`; the last one's head, and where it ends, come back.
///
/// # Errors
/// When the journal cannot be read. What is no record is not an error, but the end.
pub fn read(journal: &dyn Medium, mut take: impl FnMut(u64, Page)) -> io::Result<Option<(RecordHead, u64)>> {
    let mut last: Option<(RecordHead, u64)> = None;
    let len_bytes = journal.len_bytes()?;
    loop {
        let at = last.map_or(RECORDS_AT, |(_, end)| end);
        let mut header = [0; HEADER_BYTES];
        if journal.read_at(at, &mut header)? < HEADER_BYTES {
            return Ok(last);
        }
        let Some((head, count)) = parse(&header) else { return Ok(last) };
        let body_bytes = u64::from(count) * (8 + PAGE_BYTES as u64);
        let follows = match last {
            Some((before, _)) => head.generation == before.generation && head.number == before.number + 1,
            None => head.number == 0,
        };
        if !follows || len_bytes.saturating_sub(at + HEADER_BYTES as u64) < body_bytes {
            return Ok(last);
        }
        let mut body = vec![0; body_bytes as usize];
        let found = journal.read_at(at + HEADER_BYTES as u64, &mut body)?;
        if found < body.len() || header[CHECKSUM] != checksum(&header, &body) {
            return Ok(last);
        }
        let (numbers, pages) = body.split_at(count as usize * 8);
        for (number, page) in numbers.chunks_exact(8).zip(pages.chunks_exact(PAGE_BYTES)) {
            let mut copy = Box::new([0; PAGE_BYTES]);
            copy.copy_from_slice(page);
            take(u64_at(number, 0), copy);
        }
        last = Some((head, at + HEADER_BYTES as u64 + body_bytes));
    }
}

fn parse(header: &[u8; HEADER_BYTES]) -> Option<(RecordHead, u32)> {
    if header[..8] != MAGIC {
        return None;
    }
    let mut word = [0; 4];
    word.copy_from_slice(&header[32..36]);
    let count = u32::from_le_bytes(word);
    let head = RecordHead {
        generation: u64_at(header, 8),
        number: u64_at(header, 16),
        file_bytes: u64_at(header, 24),
    };
    Some((head, count))
}

/// The bytes of the mark.
pub fn encode_mark(is_incomplete: bool) -> [u8; MARK_BYTES] {
    let mut bytes = [0; MARK_BYTES];
    bytes[..8].copy_from_slice(&MARK_MAGIC);
    bytes[8] = u8::from(is_incomplete);
    let hash = blake3::hash(&bytes[..16]);
    bytes[16..].copy_from_slice(&hash.as_bytes()[..16]);
    bytes
}

/// Whether the disk is between two states: part of one, part of another.
///
/// # Errors
/// When the journal cannot be read.
pub fn is_incomplete(journal: &dyn Medium) -> io::Result<bool> {
    let mut found = [0; MARK_BYTES];
    journal.read_at(0, &mut found)?;
    Ok(found != [0; MARK_BYTES] && found != encode_mark(false))
}

fn checksum(header: &[u8], body: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header[..CHECKSUM.start]).update(body);
    let mut first = [0; 16];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    first
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}
