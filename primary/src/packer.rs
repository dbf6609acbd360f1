//! Packs increments between the machine's thread and the core: on a thread of its own in the
//! driver, inline in the simulator.
//!
//! ```text
//!   vcpu -- Begin, Pages ..., End --> packer -- IncrementPart ..., IncrementEnd --> core
//! ```

use log_format::page_codec::{Encoder, Statistics};
use log_format::{CheckpointPart, Digest};

use crate::vcpu::FromMachine;

/// What the machine's thread tells the packer, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToPacker {
    /// An increment was begun. One that had not ended is given up.
    Begin {
        /// The receivers may hold another state than the one after the last increment.
        fresh: bool,
    },
    /// Pages and blocks of the increment.
    Pages {
        /// Of which checkpoint.
        checkpoint: u64,
        /// The pages.
        part: CheckpointPart,
    },
    /// The increment is whole.
    End {
        /// Which checkpoint.
        checkpoint: u64,
        /// How many parts it had.
        parts: u64,
        /// Digest of the state that it leads to.
        digest: Digest,
    },
    /// The link takes bytes at this rate.
    LinkRate {
        /// Bytes per second.
        bytes_per_s: u64,
    },
}

/// Packs the pages of increments, with what the receivers hold in mind.
pub struct Packer {
    encoder: Encoder,
    /// Packed before the increment under way.
    before: Statistics,
}

impl Packer {
    /// A packer that knows nothing of the receivers. With a clock (nanoseconds of any origin)
    /// it weighs what an encoding saves against its time; without one, the same pages are always
    /// packed in the same way.
    pub fn new(clock: Option<fn() -> u64>) -> Packer {
        Packer { encoder: Encoder::new(clock), before: Statistics::default() }
    }

    /// Takes what the machine's thread told. What the core has to know of it, if anything.
    pub fn handle(&mut self, input: ToPacker) -> Option<FromMachine> {
        match input {
            ToPacker::Begin { fresh } => {
                if fresh {
                    self.encoder.forget();
                }
                self.encoder.begin();
                self.before = *self.encoder.statistics();
                None
            }
            ToPacker::Pages { checkpoint, part } => {
                let part = self.encoder.encode(part);
                Some(FromMachine::IncrementPart { checkpoint, part })
            }
            ToPacker::End { checkpoint, parts, digest } => {
                self.encoder.end();
                let packed_bytes = self.encoder.statistics().packed_bytes() - self.before.packed_bytes();
                Some(FromMachine::IncrementEnd { checkpoint, parts, digest, packed_bytes })
            }
            ToPacker::LinkRate { bytes_per_s } => {
                self.encoder.set_link_rate(bytes_per_s);
                None
            }
        }
    }

    /// What was packed so far, by encoding.
    pub fn statistics(&self) -> &Statistics {
        self.encoder.statistics()
    }
}
