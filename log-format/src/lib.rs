//! Vocabulary and bytes of the log: events, batches, checkpoints and the messages of a pair.
//!
//! No I/O, no clock, no thread. `docs/log-format.md` is the byte-level contract; the types
//! here are the only form in which the rest of the system sees those bytes.

mod vocabulary;

pub use vocabulary::*;
