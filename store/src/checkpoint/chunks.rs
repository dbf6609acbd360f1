//! The chunks of a file whose signature holds.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use log_format::checkpoint_file::{
    Chunk, ChunkKind, FileHeader, FormatError, Index, Trailer, chunk_root, signed_message, unpack_chunk,
};

use super::error::CheckpointError;
use super::keys::{ChunkCipher, PublicKey, SecretKey, Trust};

/// A file whose header and index were signed by somebody who is trusted.
pub struct Chunks {
    pub path: PathBuf,
    file: File,
    pub header: FileHeader,
    pub trailer: Trailer,
    index: Index,
    cipher: Option<ChunkCipher>,
}

impl Chunks {
    pub fn open(path: &Path, trust: &Trust, secret: Option<&SecretKey>) -> Result<Chunks, CheckpointError> {
        let io = |error| CheckpointError::io("read", path, error);
        let format = |cause| CheckpointError::format(path, cause);
        let file = File::open(path).map_err(io)?;
        let file_bytes = file.metadata().map_err(io)?.len();
        let mut start = vec![0; file_bytes.min(FileHeader::BYTES as u64) as usize];
        file.read_exact_at(&mut start, 0).map_err(io)?;
        let header = FileHeader::decode(&start).map_err(format)?;
        let least = (FileHeader::BYTES + Trailer::BYTES) as u64;
        if file_bytes < least {
            return Err(format(FormatError::Length { found: file_bytes, expected: least }));
        }
        let mut end = [0; Trailer::BYTES];
        file.read_exact_at(&mut end, file_bytes - Trailer::BYTES as u64).map_err(io)?;
        let trailer = Trailer::decode(&end, file_bytes).map_err(format)?;
        // Not more than the file has: its length agrees with the trailer.
        let mut index_bytes = vec![0; usize::try_from(trailer.index_bytes).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut index_bytes, trailer.index_offset).map_err(io)?;
        check_signature(path, &header, &index_bytes, &trailer, trust)?;
        let index = Index::decode(&index_bytes, trailer.index_offset).map_err(format)?;
        let cipher = ChunkCipher::new(&header, secret, path)?;
        Ok(Chunks { path: path.to_owned(), file, header, trailer, index, cipher })
    }

    /// Number, offset and row of each chunk of a kind.
    pub fn of_kind(&self, kind: ChunkKind) -> impl Iterator<Item = (u32, u64, &Chunk)> {
        self.index.of_kind(kind)
    }

    /// How many units the file holds.
    pub fn units(&self) -> u64 {
        self.index.units()
    }

    /// A chunk's bytes: checked against its hash, decrypted, unpacked.
    pub fn read(&self, number: u32, offset: u64, chunk: &Chunk) -> Result<Vec<u8>, CheckpointError> {
        // Not more than the file has: the index fills the space that the trailer says.
        let mut stored = vec![0; chunk.stored_bytes as usize];
        let read = self.file.read_exact_at(&mut stored, offset);
        read.map_err(|error| CheckpointError::io("read", &self.path, error))?;
        if *blake3::hash(&stored).as_bytes() != chunk.hash {
            return Err(self.damaged("body", format!("the hash of chunk {number} differs")));
        }
        if let Some(cipher) = &self.cipher
            && !cipher.open(chunk, number, &mut stored)
        {
            return Err(self.damaged("body", format!("chunk {number} does not decrypt")));
        }
        unpack_chunk(chunk, &stored).map_err(|cause| CheckpointError::format(&self.path, cause))
    }

    pub fn damaged(&self, part: &'static str, cause: String) -> CheckpointError {
        CheckpointError::format(&self.path, FormatError::Damaged { part, cause })
    }
}

fn check_signature(
    path: &Path,
    header: &FileHeader,
    index: &[u8],
    trailer: &Trailer,
    trust: &Trust,
) -> Result<(), CheckpointError> {
    if chunk_root(&header.encode(), index) != trailer.root {
        let cause = FormatError::Damaged { part: "index", cause: "its hash differs".to_owned() };
        return Err(CheckpointError::format(path, cause));
    }
    let signer = PublicKey(trailer.signer);
    if !signer.verifies(&signed_message(&trailer.root), &trailer.signature) {
        return Err(CheckpointError::Signature { path: path.to_owned() });
    }
    match trust {
        Trust::Keys(keys) if !keys.contains(&signer) => {
            Err(CheckpointError::Untrusted { path: path.to_owned(), signer: signer.to_string() })
        }
        Trust::Keys(_) | Trust::AnySigner => Ok(()),
    }
}
