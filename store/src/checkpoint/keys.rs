//! Keys of checkpoint files: one pair signs, secret keys encrypt.
//!
//! | file | what | PEM label |
//! | --- | --- | --- |
//! | `FILE` | private ed25519 key, PKCS#8 | `PRIVATE KEY` |
//! | `FILE.pub` | its public key, SubjectPublicKeyInfo | `PUBLIC KEY` |
//! | `FILE` | 32 random bytes | `SECONDWIND SECRET KEY` |
//!
//! The first two are what `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` make.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use log_format::checkpoint_file::{Chunk, Cipher, FileHeader};
use pem::Pem;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use super::error::CheckpointError;

const PRIVATE_LABEL: &str = "PRIVATE KEY";
const PUBLIC_LABEL: &str = "PUBLIC KEY";
const SECRET_LABEL: &str = "SECONDWIND SECRET KEY";
/// What stands before the 32 bytes of an ed25519 key in a SubjectPublicKeyInfo (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// No key file is longer.
const KEY_FILE_LIMIT_BYTES: u64 = 64 << 10;
const FILE_KEY_CONTEXT: &str = "secondwind 2026-11-20 checkpoint file key";
const KEY_CHECK_CONTEXT: &str = "secondwind 2026-11-20 checkpoint key check";

/// An ed25519 key that signs.
pub struct SigningKey(Ed25519KeyPair);

/// A key that signatures are checked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(pub [u8; 32]);

/// A key that encrypts.
#[derive(Clone)]
pub struct SecretKey([u8; 32]);

/// Whose checkpoints are used.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Those signed by one of these keys.
    Keys(Vec<PublicKey>),
    /// Any whose signature holds: the caller knows by other means which root it wants, or only
    /// looks.
    AnySigner,
}

impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Makes a key that signs: `path` and, with `.pub` added, its public key. Nothing is ever
/// overwritten.
///
/// # Errors
/// When a file is there already or cannot be written.
pub fn generate_signing(path: &Path) -> Result<[PathBuf; 2], CheckpointError> {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
        .map_err(|_| CheckpointError::key(path, "the system has no randomness; try again"))?;
    let key = SigningKey::from_pkcs8(document.as_ref(), path)?;
    let public = PathBuf::from(format!("{}.pub", path.display()));
    if public.exists() {
        return Err(CheckpointError::key(&public, "exists and is not overwritten; choose another name"));
    }
    write_new(path, 0o600, &Pem::new(PRIVATE_LABEL, document.as_ref()))?;
    let spki = [&SPKI_PREFIX[..], &key.public().0].concat();
    write_new(&public, 0o644, &Pem::new(PUBLIC_LABEL, spki))?;
    Ok([path.to_owned(), public])
}

/// Makes a secret key. Nothing is ever overwritten.
///
/// # Errors
/// When the file is there already or cannot be written.
pub fn generate_secret(path: &Path) -> Result<(), CheckpointError> {
    write_new(path, 0o600, &Pem::new(SECRET_LABEL, random::<32>(path)?))
}

fn random<const N: usize>(path: &Path) -> Result<[u8; N], CheckpointError> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| CheckpointError::key(path, "the system has no randomness; try again"))?;
    Ok(bytes)
}

/// Writes a file that was not there, as a whole or not at all.
fn write_new(path: &Path, mode: u32, pem: &Pem) -> Result<(), CheckpointError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = opened.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            CheckpointError::key(path, "exists and is not overwritten; choose another name")
        }
        _ => CheckpointError::io("write", path, error),
    })?;
    let written = file.write_all(pem::encode(pem).as_bytes()).and_then(|()| file.sync_all());
    written.map_err(|error| {
        // Half a key is of no use; the error says why there is none.
        let _ = std::fs::remove_file(path);
        CheckpointError::io("write", path, error)
    })
}

/// The entries of a key file with this label.
fn read_pem(path: &Path, label: &str) -> Result<Vec<Vec<u8>>, CheckpointError> {
    let length = std::fs::metadata(path).map_err(|error| CheckpointError::io("read", path, error))?.len();
    if length > KEY_FILE_LIMIT_BYTES {
        return Err(CheckpointError::key(path, "is too long for a key; name another file"));
    }
    let text = std::fs::read(path).map_err(|error| CheckpointError::io("read", path, error))?;
    let entries = pem::parse_many(&text).unwrap_or_default();
    let found: Vec<Vec<u8>> =
        entries.into_iter().filter(|entry| entry.tag() == label).map(Pem::into_contents).collect();
    if found.is_empty() {
        let cause =
            format!("holds no {label} in PEM form; make one with secondwind keygen, or name another file");
        return Err(CheckpointError::key(path, cause));
    }
    Ok(found)
}

impl SigningKey {
    /// Reads a private key.
    ///
    /// # Errors
    /// When the file cannot be read or holds none.
    pub fn load(path: &Path) -> Result<SigningKey, CheckpointError> {
        match read_pem(path, PRIVATE_LABEL)?.as_slice() {
            [der] => SigningKey::from_pkcs8(der, path),
            several => {
                let cause = format!("holds {} private keys, expected one", several.len());
                Err(CheckpointError::key(path, cause))
            }
        }
    }

    fn from_pkcs8(der: &[u8], path: &Path) -> Result<SigningKey, CheckpointError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der);
        pair.map(SigningKey).map_err(|error| {
            CheckpointError::key(
                path,
                format!("holds no ed25519 key ({error}); make one with secondwind keygen"),
            )
        })
    }

    /// The key that its signatures are checked with.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(bytes)
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(self.0.sign(message).as_ref());
        bytes
    }
}

impl PublicKey {
    /// Reads the public keys that a file holds, or the public half of a private one.
    ///
    /// # Errors
    /// When the file cannot be read or holds none.
    pub fn load_all(path: &Path) -> Result<Vec<PublicKey>, CheckpointError> {
        let entries = read_pem(path, PUBLIC_LABEL)?;
        let parse = |der: Vec<u8>| {
            let bytes = der.strip_prefix(&SPKI_PREFIX).and_then(|key| <[u8; 32]>::try_from(key).ok());
            let cause = "holds a public key that is none of ed25519; make one with secondwind keygen";
            bytes.map(PublicKey).ok_or_else(|| CheckpointError::key(path, cause))
        };
        entries.into_iter().map(parse).collect()
    }

    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }
}

impl SecretKey {
    /// Reads a secret key.
    ///
    /// # Errors
    /// When the file cannot be read or holds none.
    pub fn load(path: &Path) -> Result<SecretKey, CheckpointError> {
        let entries = read_pem(path, SECRET_LABEL)?;
        match entries.as_slice() {
            [only] => {
                let bytes = <[u8; 32]>::try_from(&only[..]);
                bytes
                    .map(SecretKey)
                    .map_err(|_| CheckpointError::key(path, "holds a secret key of another length"))
            }
            several => {
                let cause = format!("holds {} secret keys, expected one", several.len());
                Err(CheckpointError::key(path, cause))
            }
        }
    }

    /// The cipher of a new file.
    pub(crate) fn new_cipher(&self, path: &Path) -> Result<Cipher, CheckpointError> {
        let salt = random::<32>(path)?;
        Ok(Cipher::ChaCha20Poly1305 { key_check: self.check(&salt), salt })
    }

    fn check(&self, salt: &[u8; 32]) -> [u8; 16] {
        let mut check = [0; 16];
        check.copy_from_slice(&self.derive(KEY_CHECK_CONTEXT, salt)[..16]);
        check
    }

    fn derive(&self, context: &str, salt: &[u8; 32]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(&self.0);
        hasher.update(salt);
        *hasher.finalize().as_bytes()
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey")
    }
}

/// Encrypts and decrypts the chunks of one file: each with the file's own key, its number as
/// nonce, and header, kind and number bound to it.
pub(crate) struct ChunkCipher {
    key: LessSafeKey,
    header: [u8; FileHeader::BYTES],
}

impl ChunkCipher {
    /// The cipher of a file with this header; `None` for a file in the clear.
    ///
    /// # Errors
    /// When the file needs another secret key, or one and none is given.
    pub fn new(
        header: &FileHeader,
        secret: Option<&SecretKey>,
        path: &Path,
    ) -> Result<Option<ChunkCipher>, CheckpointError> {
        let Cipher::ChaCha20Poly1305 { key_check, salt } = &header.cipher else { return Ok(None) };
        let Some(secret) = secret else { return Err(CheckpointError::Encrypted { path: path.to_owned() }) };
        if secret.check(salt) != *key_check {
            return Err(CheckpointError::WrongSecret { path: path.to_owned() });
        }
        let key = UnboundKey::new(&CHACHA20_POLY1305, &secret.derive(FILE_KEY_CONTEXT, salt));
        let key = key.expect("the key has the cipher's length");
        Ok(Some(ChunkCipher { key: LessSafeKey::new(key), header: header.encode() }))
    }

    /// Encrypts a packed chunk in place.
    pub fn seal(&self, kind: u8, number: u32, packed: &mut Vec<u8>) {
        let sealed = self.key.seal_in_place_append_tag(nonce(number), self.bound(kind, number), packed);
        sealed.expect("a chunk is shorter than the cipher's limit");
    }

    /// Decrypts a chunk as it is in the file.
    pub fn open(&self, chunk: &Chunk, number: u32, stored: &mut Vec<u8>) -> bool {
        let bound = self.bound(chunk.kind as u8, number);
        let opened = self.key.open_in_place(nonce(number), bound, stored).map(|plain| plain.len());
        match opened {
            Ok(len) => stored.truncate(len),
            Err(_) => return false,
        }
        true
    }

    fn bound(&self, kind: u8, number: u32) -> Aad<Vec<u8>> {
        Aad::from([&self.header[..], &[kind], &number.to_le_bytes()].concat())
    }
}

fn nonce(number: u32) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}
