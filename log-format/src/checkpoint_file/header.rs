//! The header: 64 bytes at the start of a file.
//!
//! | offset | bytes | field |
//! | ---: | ---: | --- |
//! | 0 | 8 | magic `89 53 57 43 50 0d 0a 1a` |
//! | 8 | 2 | version |
//! | 10 | 1 | kind |
//! | 11 | 1 | cipher |
//! | 12 | 4 | zero |
//! | 16 | 16 | key check: tells the secret key; zero without cipher |
//! | 32 | 32 | salt; zero without cipher |

use super::{FormatError, OLDEST_VERSION, VERSION, number};

/// Begins with a byte that starts no text, and holds both kinds of line end: a transfer that
/// changes text damages it visibly.
const MAGIC: [u8; 8] = *b"\x89SWCP\r\n\x1a";

/// The header of a checkpoint file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHeader {
    /// Version of the format.
    pub version: u16,
    /// Whether it stands alone.
    pub kind: FileKind,
    /// How its chunks are encrypted.
    pub cipher: Cipher,
}

/// Whether a checkpoint stands alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// It does.
    Full,
    /// It needs the base that its description names.
    Incremental,
}

/// How the chunks of a file are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// Not at all.
    None,
    /// ChaCha20-Poly1305, with a key of this file alone, derived from a secret key and the salt.
    ChaCha20Poly1305 {
        /// Tells whether a secret key is the right one.
        key_check: [u8; 16],
        /// Makes the key one of this file alone.
        salt: [u8; 32],
    },
}

impl FileHeader {
    /// Bytes of a header.
    pub const BYTES: usize = 64;

    /// A header of the present version.
    pub fn new(kind: FileKind, cipher: Cipher) -> FileHeader {
        FileHeader { version: VERSION, kind, cipher }
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; FileHeader::BYTES] {
        let mut bytes = [0; FileHeader::BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[10] = match self.kind {
            FileKind::Full => 0,
            FileKind::Incremental => 1,
        };
        if let Cipher::ChaCha20Poly1305 { key_check, salt } = &self.cipher {
            bytes[11] = 1;
            bytes[16..32].copy_from_slice(key_check);
            bytes[32..].copy_from_slice(salt);
        }
        bytes
    }

    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// When it is none, of another version, or damaged.
    pub fn decode(bytes: &[u8]) -> Result<FileHeader, FormatError> {
        let magic = &bytes[..bytes.len().min(MAGIC.len())];
        if magic != &MAGIC[..magic.len()] || magic.is_empty() {
            return Err(FormatError::NotACheckpoint { found: magic.to_vec() });
        }
        if bytes.len() < FileHeader::BYTES {
            let (found, expected) = (bytes.len() as u64, FileHeader::BYTES as u64);
            return Err(FormatError::Length { found, expected });
        }
        let version = u16::from_le_bytes(number(bytes, 8));
        if version > VERSION {
            return Err(FormatError::FutureVersion { found: version });
        }
        let damaged = |cause: String| FormatError::damaged("header", cause);
        if version < OLDEST_VERSION {
            return Err(damaged(format!("found version {version}")));
        }
        let kind = match bytes[10] {
            0 => FileKind::Full,
            1 => FileKind::Incremental,
            kind => return Err(damaged(format!("found kind {kind}, expected 0 or 1"))),
        };
        let cipher = match bytes[11] {
            0 => Cipher::None,
            1 => Cipher::ChaCha20Poly1305 { key_check: number(bytes, 16), salt: number(bytes, 32) },
            cipher => return Err(damaged(format!("found cipher {cipher}, expected 0 or 1"))),
        };
        let header = FileHeader { version, kind, cipher };
        if header.encode() != bytes[..FileHeader::BYTES] {
            return Err(damaged("found bytes that should be zero".to_owned()));
        }
        Ok(header)
    }
}
