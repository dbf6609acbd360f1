//! Checkpoints in files: written whole or not at all, signed, and checked before use.
//!
//! `docs/checkpoint-format.md` has the bytes. [`CheckpointWriter`] takes a checkpoint's parts
//! while the guest runs on and leaves a file under its name only when all of it is on disk.
//! [`CheckpointFile`] opens one: what it gives out was signed by a key that the caller
//! [`Trust`]s.

mod chain;
mod chunks;
mod error;
mod keys;
mod packer;
mod reader;
mod units;
mod writer;

pub use chain::Chain;
pub use error::CheckpointError;
pub use keys::{PublicKey, SecretKey, SigningKey, Trust, generate_secret, generate_signing};
pub use reader::{CheckpointFile, Contents};
pub use units::{Image, Images};
pub use writer::{CheckpointWriter, Plan, Written};
