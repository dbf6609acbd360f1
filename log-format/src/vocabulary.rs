//! The words of DESIGN.md section 1 as types.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Newest version of the machine's semantics: what an instruction, a device or the clock does.
/// A fix that changes execution takes a new number; logs and checkpoints carry it, and a
/// machine can still be made with each earlier one (`machine::Semantics`).
pub const SEMANTICS_VERSION: u32 = 3;

/// A point of a machine's execution. Orders by `icount`, then by `time_ns`: while every
/// hart waits, icount stands still and guest time moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Moment {
    /// Instructions retired since boot, all harts together.
    pub icount: u64,
    /// Guest time since boot in nanoseconds.
    pub time_ns: u64,
}

impl Moment {
    /// The moment of power-on.
    pub const BOOT: Moment = Moment { icount: 0, time_ns: 0 };
    /// Later than every moment of an execution.
    pub const END: Moment = Moment { icount: u64::MAX, time_ns: u64::MAX };
}

/// Which life of a node: drawn at random when its role begins, since what an earlier life knew,
/// and said of itself, is gone with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Life(pub u64);

impl Life {
    /// Of a program that does not say, or of one that goes on from what its disk holds, whichever
    /// life wrote that.
    pub const UNKNOWN: Life = Life(0);

    /// Whether it was said.
    pub fn is_known(self) -> bool {
        self != Life::UNKNOWN
    }
}

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    /// Number of the primacy that wrote it.
    pub term: u64,
    /// The point of execution.
    pub moment: Moment,
    /// How many batches of the log lie before this place.
    pub sequence: u64,
}

/// One nondeterministic input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// An Ethernet frame (without FCS) arrives at a network device.
    NetworkIn {
        /// Index of the network device.
        port: u8,
        /// The frame, 14 to 65,550 bytes.
        frame: Bytes,
    },
    /// Bytes arrive at the console.
    ConsoleIn(Bytes),
    /// Guest time jumps forward, because execution lags real time.
    ClockAdvance {
        /// By how much, in nanoseconds.
        delta_ns: u64,
    },
    /// Seed of the entropy device, and of the boot's `rng-seed`.
    Entropy(Bytes),
    /// Wall-clock time for the RTC: nanoseconds since 1970 at this moment.
    WallClock {
        /// Nanoseconds since 1970-01-01 UTC.
        unix_ns: u64,
    },
    /// An operator's command to the machine.
    Control(Control),
}

/// An operator's command to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// Asks the guest to power off (gpio-keys KEY_POWER).
    PowerButton,
    /// Resets the machine as its reset line would.
    Reset,
    /// Asks the guest's network to announce itself again (virtio-net GUEST_ANNOUNCE).
    Announce,
}

/// An event with the moment at which it is injected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedEvent {
    /// When: the machine stands exactly here, before the event.
    pub at: Moment,
    /// What.
    pub event: Event,
}

/// What a machine sends to the world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// An Ethernet frame (without FCS) leaves a network device.
    Frame {
        /// Index of the network device.
        port: u8,
        /// The frame.
        frame: Bytes,
    },
    /// Bytes leave the console.
    Console(Bytes),
}

impl Output {
    /// Hash that the log records for each output and a replay compares: the low 32 bits of
    /// XXH3-64 over a kind byte, the port and the bytes.
    pub fn hash(&self) -> u32 {
        let (tag, port, bytes) = match self {
            Output::Frame { port, frame } => (0u8, *port, frame),
            Output::Console(bytes) => (1u8, 0, bytes),
        };
        let seed = u64::from(tag) | u64::from(port) << 8;
        xxhash_rust::xxh3::xxh3_64_with_seed(bytes, seed) as u32
    }
}

/// An output with the moment that produced it and its number since boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedOutput {
    /// How many outputs the machine made before this one, since boot.
    pub ordinal: u64,
    /// When it was produced.
    pub at: Moment,
    /// What.
    pub output: Output,
}

/// Digest of a whole machine state: 128 bits of XXH3 over harts, devices and pages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Digest(#[serde(with = "serde_bytes")] pub [u8; 16]);

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A digest with the moment at which it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedDigest {
    /// When: the machine stood exactly here, after every event logged for this moment so far.
    pub at: Moment,
    /// How many events the log holds before it.
    pub events_before: u64,
    /// The state's digest.
    pub digest: Digest,
}

/// What a machine is made of: two machines with equal identities that are fed the same log
/// go through the same states.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineIdentity {
    /// Version of its semantics, at most [`SEMANTICS_VERSION`].
    pub semantics: u32,
    /// Hash of the configuration: harts, memory, devices, command line.
    #[serde(with = "serde_bytes")]
    pub config: [u8; 32],
    /// Hash of kernel, initial ramdisk and firmware.
    #[serde(with = "serde_bytes")]
    pub boot_images: [u8; 32],
    /// Size in bytes and hash of each disk's base image, in device order.
    #[serde(with = "disk_images")]
    pub disks: Vec<(u64, [u8; 32])>,
}

/// Writes the hashes of [`MachineIdentity::disks`] as byte strings.
mod disk_images {
    use serde::{Deserialize, Deserializer, Serializer};
    use serde_bytes::ByteArray;

    pub(super) fn serialize<S: Serializer>(
        disks: &[(u64, [u8; 32])],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(disks.iter().map(|(size, hash)| (size, ByteArray::new(*hash))))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(u64, [u8; 32])>, D::Error> {
        let disks = Vec::<(u64, ByteArray<32>)>::deserialize(deserializer)?;
        Ok(disks.into_iter().map(|(size, hash)| (size, hash.into_array())).collect())
    }
}

/// One page of guest memory. `data` is `None` for a page of zeros, else 4096 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Number of the page: guest-physical offset in RAM / 4096.
    pub index: u64,
    /// The contents.
    pub data: Option<Bytes>,
}

/// One block of a disk that differs from the base image: 4096 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskBlock {
    /// Index of the disk.
    pub disk: u8,
    /// Number of the block: byte offset / 4096.
    pub index: u64,
    /// The contents.
    pub data: Bytes,
}

/// The small part of a checkpoint: everything but memory pages and disk blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointHead {
    /// The machine it was taken from.
    pub identity: MachineIdentity,
    /// Where it was taken.
    pub moment: Moment,
    /// Outputs made before it, since boot.
    pub outputs_before: u64,
    /// Bytes of guest memory.
    pub ram_bytes: u64,
    /// Digest of the state it holds.
    pub digest: Digest,
    /// Harts and devices, in the machine's own MessagePack form.
    pub state: Bytes,
}

/// Some pages and disk blocks of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointPart {
    /// Memory pages.
    pub pages: Vec<Page>,
    /// Disk blocks.
    pub blocks: Vec<DiskBlock>,
}

impl CheckpointPart {
    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.blocks.is_empty()
    }
}
