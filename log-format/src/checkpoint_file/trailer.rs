//! The trailer: the last 168 bytes of a file. A file without it was not written whole.
//!
//! | offset | bytes | field |
//! | ---: | ---: | --- |
//! | 0 | 8 | magic `SWCPend\n` |
//! | 8 | 8 | offset of the index |
//! | 16 | 8 | bytes of the index |
//! | 24 | 8 | bytes of the file |
//! | 32 | 32 | root |
//! | 64 | 32 | public key of the signer |
//! | 96 | 64 | ed25519 signature of [`signed_message`] |
//! | 160 | 4 | zero |
//! | 164 | 4 | CRC-32 of bytes 0 to 163 |

use super::{FileHeader, FormatError, Root, number};

const MAGIC: [u8; 8] = *b"SWCPend\n";
const CRC_OFFSET: usize = 164;
/// What is signed begins so: a signature of this key for anything else is none for a checkpoint.
const CONTEXT: &[u8] = b"secondwind checkpoint file root\0";

/// The trailer of a checkpoint file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Where the index begins: after the last chunk.
    pub index_offset: u64,
    /// Bytes of the index.
    pub index_bytes: u64,
    /// The root.
    pub root: Root,
    /// Public key of the signer.
    pub signer: [u8; 32],
    /// Its signature.
    pub signature: [u8; 64],
}

/// The bytes that are signed.
pub fn signed_message(root: &Root) -> Vec<u8> {
    [CONTEXT, &root.0[..]].concat()
}

impl Trailer {
    /// Bytes of a trailer.
    pub const BYTES: usize = 168;

    /// Bytes of the file that it ends.
    pub fn file_bytes(&self) -> u64 {
        self.index_offset.saturating_add(self.index_bytes).saturating_add(Trailer::BYTES as u64)
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; Trailer::BYTES] {
        let mut bytes = [0; Trailer::BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.index_offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.index_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.file_bytes().to_le_bytes());
        bytes[32..64].copy_from_slice(&self.root.0);
        bytes[64..96].copy_from_slice(&self.signer);
        bytes[96..160].copy_from_slice(&self.signature);
        let crc = crc32fast::hash(&bytes[..CRC_OFFSET]);
        bytes[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the trailer of a file of `file_bytes`, which are its last ones.
    ///
    /// # Errors
    /// When the file was not written whole, was cut off, or its end is damaged.
    pub fn decode(bytes: &[u8; Trailer::BYTES], file_bytes: u64) -> Result<Trailer, FormatError> {
        let damaged = |cause: &str| FormatError::damaged("end", cause);
        if bytes[..8] != MAGIC {
            return Err(damaged("found no trailer there; the file was cut off or not written whole"));
        }
        if crc32fast::hash(&bytes[..CRC_OFFSET]).to_le_bytes() != bytes[CRC_OFFSET..] {
            return Err(damaged("its checksum differs"));
        }
        let trailer = Trailer {
            index_offset: u64::from_le_bytes(number(bytes, 8)),
            index_bytes: u64::from_le_bytes(number(bytes, 16)),
            root: Root(number(bytes, 32)),
            signer: number(bytes, 64),
            signature: number(bytes, 96),
        };
        if trailer.encode() != *bytes || trailer.index_offset < FileHeader::BYTES as u64 {
            return Err(damaged("its numbers do not agree"));
        }
        if trailer.file_bytes() != file_bytes {
            return Err(FormatError::Length { found: file_bytes, expected: trailer.file_bytes() });
        }
        Ok(trailer)
    }
}
