//! What a machine can do: all that the rest of the system knows of one.

use std::fmt;

use log_format::{CheckpointHead, CheckpointPart, Digest, Event, LoggedOutput, MachineIdentity, Moment};
use xxhash_rust::xxh3::xxh3_128;

/// A deterministic machine.
///
/// # Order of calls
///
/// ```text
///         inject, advance_idle, digest, begin_checkpoint ...   (any order, any time)
///            |
///   new -> run -> Exit -> take_outputs -> run -> ...
/// ```
///
/// `run` executes; time passes only in `run`, in `advance_idle` and by
/// [`Event::ClockAdvance`]. How a stretch is cut into `run` calls never changes the state
/// reached nor the outputs (law 1).
pub trait Machine: Send {
    /// What this machine is made of.
    fn identity(&self) -> MachineIdentity;

    /// Where execution stands.
    fn moment(&self) -> Moment;

    /// Executes until `icount` is reached exactly, or until an [`Exit`] that comes first.
    /// Returns [`Exit::Limit`] at once when the machine already stands at or past `icount`.
    /// Never moves an idle clock.
    fn run(&mut self, icount: u64) -> Exit;

    /// While the machine is idle: moves guest time to `time_ns`, or to the time at which a
    /// hart wakes if that comes first. Returns the time reached. Without effect when the
    /// machine is not idle or `time_ns` is in its past.
    fn advance_idle(&mut self, time_ns: u64) -> u64;

    /// Injects an event at the present moment.
    ///
    /// An event that a device cannot take (queue full, no such port) is dropped in the same
    /// way on every replay; that is not an error.
    fn inject(&mut self, event: &Event);

    /// Takes what the machine sent to the world since the last call, oldest first.
    fn take_outputs(&mut self) -> Vec<LoggedOutput>;

    /// The same, to the end of a list that its owner fills again and again.
    fn append_outputs(&mut self, list: &mut Vec<LoggedOutput>) {
        list.append(&mut self.take_outputs());
    }

    /// Digest of the whole state. Costs a hash of the pages written since the last call.
    fn digest(&mut self) -> Digest;

    /// Freezes a checkpoint of the present state, copy-on-write. Its pages are then taken with
    /// [`Machine::take_checkpoint_pages`] while execution goes on. See [`CheckpointExtent`] for
    /// what it holds and what beginning it costs. Begins anew if one of this extent was under
    /// way.
    ///
    /// A [`CheckpointExtent::Full`], a [`CheckpointExtent::Increment`] and a
    /// [`CheckpointExtent::Disks`] may be under way at once; none changes another.
    fn begin_checkpoint(&mut self, extent: CheckpointExtent) -> BegunCheckpoint;

    /// Takes up to `limit` (not 0) parts of the checkpoint of this extent: first pages, then
    /// disk blocks. Returns an empty part when all were taken; the checkpoint is then at its
    /// end. An increment's page of zeros has no data; a full checkpoint leaves it out.
    fn take_checkpoint_pages(&mut self, extent: CheckpointExtent, limit: usize) -> CheckpointPart;

    /// Digest of the state that the increment begun last froze: what [`Machine::digest`] would
    /// have returned then. `None` until its empty last part was taken.
    fn checkpoint_digest(&self) -> Option<Digest>;

    /// Bytes held aside because the guest wrote to pages of the checkpoints under way that
    /// were not taken yet.
    fn checkpoint_held_bytes(&self) -> u64;

    /// Gives up the checkpoint of this extent, if there is one under way. What an increment
    /// froze, taken or not, belongs to the present epoch again: the next one has it all.
    fn cancel_checkpoint(&mut self, extent: CheckpointExtent);

    /// Starts to replace this machine's state by a checkpoint's. Pages not given by
    /// [`Machine::restore_part`] afterwards are zero.
    ///
    /// # Errors
    /// When the head is not one of a machine with this identity and semantics, or the host has no
    /// room for its memory. The machine is then unchanged.
    fn restore_begin(&mut self, head: &CheckpointHead) -> Result<(), RestoreError>;

    /// Replaces everything but pages and disk blocks by what an increment's head holds.
    /// [`Machine::restore_part`] then puts its pages and blocks over those that are there.
    ///
    /// # Errors
    /// When the head is not one of a machine with this identity and semantics. The machine
    /// is then unchanged.
    fn restore_update(&mut self, head: &CheckpointHead) -> Result<(), RestoreError>;

    /// The present contents of a page of memory, 4096 bytes; `None` when there is no such page.
    fn page(&self, index: u64) -> Option<&[u8]>;

    /// Whether [`Machine::restore_part`] would take a part.
    ///
    /// # Errors
    /// When a page or block lies outside the machine.
    fn check_part(&self, part: &CheckpointPart) -> Result<(), RestoreError>;

    /// Puts pages and disk blocks of the checkpoint being restored into place.
    ///
    /// # Errors
    /// When a page or block lies outside the machine; nothing was put into place then.
    fn restore_part(&mut self, part: &CheckpointPart) -> Result<(), RestoreError>;

    /// What of this machine's state a checkpoint of a later one may share.
    fn kept(&self) -> Kept {
        Kept::default()
    }

    /// Starts to replace this machine's state by a checkpoint's, in place: pages and disk blocks
    /// stay until [`Machine::restore_part`] gives others, or [`Machine::keep_only`] takes away
    /// those that are no part of the checkpoint. Checkpoints under way are given up.
    ///
    /// # Errors
    /// When the head is not one of a machine with this identity and semantics. The machine
    /// is then unchanged.
    fn restore_over(&mut self, head: &CheckpointHead) -> Result<(), RestoreError> {
        self.restore_update(head)?;
        self.cancel_checkpoint(CheckpointExtent::Full);
        self.cancel_checkpoint(CheckpointExtent::Increment);
        self.cancel_checkpoint(CheckpointExtent::Disks);
        Ok(())
    }

    /// [`content_hash`] of a page; `None` where there is none, or it is known to be zeros.
    fn hash_page(&mut self, index: u64) -> Option<Digest> {
        self.page(index).map(content_hash)
    }

    /// [`content_hash`] of a block that was written to; `None` for any other.
    fn hash_block(&mut self, disk: u8, index: u64) -> Option<Digest> {
        let _ = (disk, index);
        None
    }

    /// Makes all pages zeros, and all blocks those of the base images, but those of which the
    /// functions, of a page and of a disk and block, are true.
    fn keep_only(&mut self, pages: &dyn Fn(u64) -> bool, blocks: &dyn Fn(u8, u64) -> bool) {
        let _ = (pages, blocks);
    }

    /// What was restored is whole and right: disks that outlive this process may show it. A
    /// process that dies before leaves them as they were, or marked as not whole.
    fn restore_end(&mut self) {}

    /// Makes every disk its base image again, whatever it kept from an earlier run: for a
    /// machine that is to follow a log from the boot on.
    fn revert_disks(&mut self) {}
}

/// See [`Machine::kept`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Memory: it has executed.
    pub memory: bool,
    /// Blocks written to its disks.
    pub disks: bool,
}

/// Hash of a page's or block's contents, by which two sides find out what they share: XXH3-128,
/// little-endian.
pub fn content_hash(data: &[u8]) -> Digest {
    Digest(xxh3_128(data).to_le_bytes())
}

/// How much of a machine a checkpoint holds.
///
/// An *epoch* is the stretch between two increments. Before the first one begins, everything
/// that was ever written to counts as written in the present epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointExtent {
    /// Everything. Neither ends nor begins an epoch. Beginning it costs a digest, and a look at
    /// a bit per page.
    Full,
    /// No pages and no blocks: begins an epoch, and gives up an increment under way. Its head
    /// has no digest (zero). Beginning it costs a look at a bit per page.
    Epoch,
    /// The pages and blocks that were written to in the present epoch, and perhaps some more;
    /// begins the next epoch. Its head has no digest (zero): [`Machine::checkpoint_digest`]
    /// gives it at the end. Beginning it costs a look at a bit per page and a note for each page
    /// it holds; hashing and copying come as they are taken.
    Increment,
    /// No pages: the blocks that were ever written to, to compare them with another side's. Neither
    /// ends nor begins an epoch. Its head has no digest (zero). Beginning it costs nothing.
    Disks,
}

/// A checkpoint that was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BegunCheckpoint {
    /// Everything but pages and blocks.
    pub head: CheckpointHead,
    /// Pages and blocks written to in the epoch that ended with it: for an increment, as many
    /// as it holds; 0 for a full checkpoint.
    pub dirty_units: u64,
}

/// Why [`Machine::run`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The limit was reached.
    Limit,
    /// There are outputs to take; execution can go on at once.
    Output,
    /// A debugger's wish came true, which only a machine that was given one comes back with;
    /// execution can go on at once.
    Stopped,
    /// Every hart waits. The next timer or device deadline is at this guest time, if any.
    Idle {
        /// Guest time in nanoseconds at which a hart or a device wakes by itself.
        wake_ns: Option<u64>,
    },
    /// The host failed to read or write something of the machine's. It stops for good: its state no
    /// longer follows from its log. A backup takes over from what was committed.
    HostFault {
        /// What.
        part: HostPart,
    },
    /// The guest powered itself off, or ended through `tohost` with this code.
    Halted {
        /// Exit status: 0 is success.
        code: u32,
    },
}

/// What of the machine's is on the host's storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPart {
    /// The disk of this index.
    Disk(u8),
    /// What a reset loads again.
    BootImages,
}

impl fmt::Display for HostPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPart::Disk(disk) => write!(f, "disk {disk}"),
            HostPart::BootImages => f.write_str("the boot images kept for a reset"),
        }
    }
}

/// Why a checkpoint cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Taken from another machine.
    #[error(
        "the checkpoint is of another machine: its {what} is {found}, here it is {expected}; start this side with the same configuration and images"
    )]
    Foreign {
        /// Which part of the identity differs.
        what: &'static str,
        /// In the checkpoint.
        found: String,
        /// On this side.
        expected: String,
    },
    /// This host has no room for the memory.
    #[error("this host has no room for the guest's memory ({0}); make room")]
    HostMemory(String),
    /// Its bytes do not decode.
    #[error("the checkpoint's machine state does not decode: {0}; take a new checkpoint")]
    Malformed(String),
    /// A page or block lies outside the machine.
    #[error(
        "the checkpoint holds {what} {index}, the machine has {limit}; start this side with the same memory and disks"
    )]
    OutOfRange {
        /// "page" or "disk block".
        what: &'static str,
        /// Its number.
        index: u64,
        /// How many there are.
        limit: u64,
    },
}
