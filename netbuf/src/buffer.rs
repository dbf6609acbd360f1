//! The output buffer: law 2 (output commit) as a type.

use std::collections::VecDeque;

use log_format::{LoggedOutput, Moment, Output};

use crate::delay::DelayHistogram;

/// Holds what a machine sends until its moment is committed.
///
/// No I/O and no clock: the caller passes the time in monotonic nanoseconds.
///
/// # States and order of calls
///
/// ```text
///               release_all
///   protected ----------------> unprotected      (a fresh buffer is protected)
///       ^                            |
///       +---------- protect ---------+
///
///   hold (in the machine's order) -> commit(moment) -> poll_release until None
/// ```
///
/// - On a primary: [`hold`](Self::hold) each output as the machine makes it, *before* the
///   batch that covers it is closed; [`commit`](Self::commit) the end of each batch that
///   every required backup acknowledged; hand [`poll_release`](Self::poll_release) to the
///   ports; tell the backups [`released_before`](Self::released_before) afterwards.
/// - On a backup: `hold` what the replay makes and
///   [`drop_released_before`](Self::drop_released_before) what the primary told. At
///   takeover [`take_held`](Self::take_held) is what has to be sent again: TCP copes with a
///   duplicate, never with a gap.
///
/// A commit frees only what is held when it is called. An output made at the very moment a
/// batch ended, but after an event of the next batch, so waits for that batch.
///
/// # Back-pressure
///
/// An output that was made cannot be unmade, so `hold` never refuses. The buffer asks for
/// rest instead: while [`is_full`](Self::is_full), the caller does not run the machine. The
/// limits are exceeded at most by what one run slice puts out.
#[derive(Debug)]
pub struct OutputBuffer {
    limits: BufferLimits,
    protected: bool,
    /// Oldest first. The first `releasable` of them are committed.
    held: VecDeque<Held>,
    releasable: usize,
    held_bytes: u64,
    /// Moment and ordinal of the newest output ever held.
    newest: Option<(Moment, u64)>,
    released_before: u64,
    counters: Counters,
}

/// When [`OutputBuffer::is_full`] asks for rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferLimits {
    /// Outputs held.
    pub outputs: usize,
    /// Bytes of frames and console output held.
    pub bytes: u64,
}

impl Default for BufferLimits {
    /// 16,384 outputs and 16 MiB: a quarter of the memory a machine may cost its host beside
    /// the guest's own, and 100 ms of a 1 Gbit/s port.
    fn default() -> Self {
        BufferLimits { outputs: 16_384, bytes: 16 << 20 }
    }
}

/// What an [`OutputBuffer`] did and holds.
#[derive(Debug, Clone)]
pub struct BufferStatistics {
    /// Outputs held now.
    pub held_outputs: usize,
    /// Their bytes.
    pub held_bytes: u64,
    /// The most bytes ever held.
    pub peak_held_bytes: u64,
    /// Outputs handed out by [`OutputBuffer::poll_release`].
    pub released_outputs: u64,
    /// Their bytes.
    pub released_bytes: u64,
    /// Outputs dropped because the primary had released them.
    pub dropped_outputs: u64,
    /// From `hold` to `poll_release`: the delay that protection adds to each output.
    pub delay: DelayHistogram,
}

#[derive(Debug)]
struct Held {
    since_ns: u64,
    output: LoggedOutput,
}

#[derive(Debug, Default)]
struct Counters {
    peak_held_bytes: u64,
    released_outputs: u64,
    released_bytes: u64,
    dropped_outputs: u64,
    delay: DelayHistogram,
}

impl OutputBuffer {
    /// An empty, protected buffer.
    pub fn new(limits: BufferLimits) -> Self {
        OutputBuffer {
            limits,
            protected: true,
            held: VecDeque::new(),
            releasable: 0,
            held_bytes: 0,
            newest: None,
            released_before: 0,
            counters: Counters::default(),
        }
    }

    /// Takes an output into custody. One that is known to be released already (see
    /// [`drop_released_before`](Self::drop_released_before)) is dropped at once.
    ///
    /// # Panics
    /// When outputs come out of the machine's order: an invariant of the caller, which law 2
    /// stands on.
    pub fn hold(&mut self, output: LoggedOutput, now_ns: u64) {
        if let Some((moment, ordinal)) = self.newest {
            assert!(
                output.at >= moment && output.ordinal > ordinal,
                "output {} at {:?} held after output {ordinal} at {moment:?}",
                output.ordinal,
                output.at,
            );
        }
        self.newest = Some((output.at, output.ordinal));
        if output.ordinal < self.released_before {
            self.counters.dropped_outputs += 1;
            return;
        }
        self.held_bytes += bytes_of(&output.output);
        self.counters.peak_held_bytes = self.counters.peak_held_bytes.max(self.held_bytes);
        self.held.push_back(Held { since_ns: now_ns, output });
        if !self.protected {
            self.releasable = self.held.len();
        }
    }

    /// Everything held that was produced at or before `moment` may leave.
    pub fn commit(&mut self, moment: Moment) {
        while self.held.get(self.releasable).is_some_and(|held| held.output.at <= moment) {
            self.releasable += 1;
        }
    }

    /// Every output with an ordinal below this may leave. Where batches say which outputs
    /// they cover, this is exact where [`commit`](Self::commit) goes by the moment.
    pub fn commit_before(&mut self, ordinal: u64) {
        while self.held.get(self.releasable).is_some_and(|held| held.output.ordinal < ordinal) {
            self.releasable += 1;
        }
    }

    /// Goes unprotected: everything held, and everything held from now on, may leave at once.
    pub fn release_all(&mut self) {
        self.protected = false;
        self.releasable = self.held.len();
    }

    /// Goes protected: what is held from now on waits for its commit.
    pub fn protect(&mut self) {
        self.protected = true;
    }

    /// Whether outputs wait for a commit.
    pub fn is_protected(&self) -> bool {
        self.protected
    }

    /// The next output that may leave, in the machine's order.
    pub fn poll_release(&mut self, now_ns: u64) -> Option<LoggedOutput> {
        if self.releasable == 0 {
            return None;
        }
        let held = self.pop_oldest()?;
        self.released_before = held.output.ordinal + 1;
        self.counters.released_outputs += 1;
        self.counters.released_bytes += bytes_of(&held.output.output);
        self.counters.delay.record(now_ns.saturating_sub(held.since_ns));
        Some(held.output)
    }

    /// Drops every output, held now or later, whose ordinal is below `ordinal`: the primary
    /// released it. Returns how many were held.
    pub fn drop_released_before(&mut self, ordinal: u64) -> usize {
        self.released_before = self.released_before.max(ordinal);
        let mut dropped = 0;
        while self.held.front().is_some_and(|held| held.output.ordinal < ordinal) {
            self.pop_oldest();
            dropped += 1;
        }
        self.counters.dropped_outputs += dropped as u64;
        dropped
    }

    /// Takes everything held, oldest first, committed or not: what a takeover sends again.
    pub fn take_held(&mut self) -> Vec<LoggedOutput> {
        self.releasable = 0;
        self.held_bytes = 0;
        self.held.drain(..).map(|held| held.output).collect()
    }

    /// Everything held, oldest first, committed or not.
    pub fn held(&self) -> impl Iterator<Item = &LoggedOutput> {
        self.held.iter().map(|held| &held.output)
    }

    /// Every output with an ordinal below this was released.
    pub fn released_before(&self) -> u64 {
        self.released_before
    }

    /// Whether the machine should rest until something left (see the type's documentation).
    pub fn is_full(&self) -> bool {
        self.held.len() >= self.limits.outputs || self.held_bytes >= self.limits.bytes
    }

    /// Outputs held, committed or not.
    pub fn held_outputs(&self) -> usize {
        self.held.len()
    }

    /// Bytes held, committed or not.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Outputs that wait for a commit: while there are some, a batch that covers
    /// [`newest_moment`](Self::newest_moment) is due at once.
    pub fn uncommitted_outputs(&self) -> usize {
        self.held.len() - self.releasable
    }

    /// When the newest output ever held was produced.
    pub fn newest_moment(&self) -> Option<Moment> {
        self.newest.map(|(moment, _)| moment)
    }

    /// Since when the oldest output waits, in the caller's nanoseconds.
    pub fn oldest_since_ns(&self) -> Option<u64> {
        self.held.front().map(|held| held.since_ns)
    }

    /// What this buffer did and holds.
    pub fn statistics(&self) -> BufferStatistics {
        BufferStatistics {
            held_outputs: self.held.len(),
            held_bytes: self.held_bytes,
            peak_held_bytes: self.counters.peak_held_bytes,
            released_outputs: self.counters.released_outputs,
            released_bytes: self.counters.released_bytes,
            dropped_outputs: self.counters.dropped_outputs,
            delay: self.counters.delay.clone(),
        }
    }

    fn pop_oldest(&mut self) -> Option<Held> {
        let held = self.held.pop_front()?;
        self.releasable = self.releasable.saturating_sub(1);
        self.held_bytes -= bytes_of(&held.output.output);
        Some(held)
    }
}

fn bytes_of(output: &Output) -> u64 {
    let bytes = match output {
        Output::Frame { frame, .. } => frame.len(),
        Output::Console(bytes) => bytes.len(),
    };
    bytes as u64
}

#[cfg(test)]
#[path = "buffer_tests.rs"]
mod tests;
