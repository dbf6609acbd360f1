//! What a machine can do: all that the rest of the system knows of one.

use log_format::{CheckpointHead, CheckpointPart, Digest, Event, LoggedOutput, MachineIdentity, Moment};

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

    /// Digest of the whole state. Costs a hash of the pages written since the last call.
    fn digest(&mut self) -> Digest;

    /// Freezes a checkpoint of the present state, copy-on-write: takes time in the order of
    /// a bit per page. Its pages are then taken with [`Machine::take_checkpoint_pages`]
    /// while execution goes on. Begins anew if one was under way.
    fn begin_checkpoint(&mut self) -> CheckpointHead;

    /// Takes up to `limit` parts of the checkpoint under way: first pages, then disk
    /// blocks. Returns an empty part when all were taken; the checkpoint is then at its end.
    fn take_checkpoint_pages(&mut self, limit: usize) -> CheckpointPart;

    /// Bytes held aside because the guest wrote to pages of the checkpoint under way that
    /// were not taken yet.
    fn checkpoint_held_bytes(&self) -> u64;

    /// Gives up the checkpoint under way, if there is one.
    fn cancel_checkpoint(&mut self);

    /// Starts to replace this machine's state by a checkpoint's. Pages not given by
    /// [`Machine::restore_part`] afterwards are zero.
    ///
    /// # Errors
    /// When the head is not one of a machine with this identity and semantics. The machine
    /// is then unchanged.
    fn restore_begin(&mut self, head: &CheckpointHead) -> Result<(), RestoreError>;

    /// Puts pages and disk blocks of the checkpoint being restored into place.
    ///
    /// # Errors
    /// When a page or block lies outside the machine.
    fn restore_part(&mut self, part: &CheckpointPart) -> Result<(), RestoreError>;
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
    /// The host failed to read or write this disk. The machine stops for good: its state no
    /// longer follows from its log. A backup takes over from what was committed.
    HostFault {
        /// Index of the disk.
        disk: u8,
    },
    /// The guest powered itself off, or ended through `tohost` with this code.
    Halted {
        /// Exit status: 0 is success.
        code: u32,
    },
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
