//! What the machine sends to the world, and the batching of its console.

use bytes::Bytes;
use log_format::{LoggedOutput, Moment, Output};
use serde::{Deserialize, Serialize};

/// A console output holds at most this many bytes.
const CONSOLE_BATCH_BYTES: usize = 256;
/// A started console line is sent this long after its first byte at the latest.
const CONSOLE_DELAY_NS: u64 = 5_000_000;

/// Outputs made and not taken yet, and the console line that is being written.
///
/// Console bytes leave at a newline, at [`CONSOLE_BATCH_BYTES`], or [`CONSOLE_DELAY_NS`] of
/// guest time after the first byte: rules that know nothing of how `run` was cut.
#[derive(Debug, Default)]
pub struct Outputs {
    state: OutputState,
    waiting: Vec<LoggedOutput>,
    /// Whether an output was made that no exit has reported yet.
    fresh: bool,
}

/// The part of [`Outputs`] that belongs to the machine's state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputState {
    made: u64,
    #[serde(with = "serde_bytes")]
    console: Vec<u8>,
    console_deadline_ns: Option<u64>,
}

impl OutputState {
    /// Whether a machine can be in this state.
    pub fn is_sound(&self) -> bool {
        self.console.len() < CONSOLE_BATCH_BYTES
            && self.console.is_empty() == self.console_deadline_ns.is_none()
    }
}

impl Outputs {
    /// Outputs of a machine that continues from `state`; none is waiting.
    pub fn from_state(state: OutputState) -> Outputs {
        Outputs { state, waiting: Vec::new(), fresh: false }
    }

    /// The part that belongs to the machine's state.
    pub fn state(&self) -> &OutputState {
        &self.state
    }

    /// How many outputs were made since boot.
    pub fn made(&self) -> u64 {
        self.state.made
    }

    /// Whether an output was made since the last call.
    pub fn take_fresh(&mut self) -> bool {
        std::mem::take(&mut self.fresh)
    }

    /// Whether [`Outputs::take_fresh`] would say so.
    pub fn has_fresh(&self) -> bool {
        self.fresh
    }

    /// Takes the outputs, oldest first.
    pub fn take(&mut self) -> Vec<LoggedOutput> {
        self.fresh = false;
        std::mem::take(&mut self.waiting)
    }

    /// Takes the outputs to the end of a list.
    pub fn append_to(&mut self, list: &mut Vec<LoggedOutput>) {
        self.fresh = false;
        list.append(&mut self.waiting);
    }

    /// A frame leaves network device `port`.
    pub fn frame(&mut self, at: Moment, port: u8, frame: Bytes) {
        self.push(at, Output::Frame { port, frame });
    }

    /// A byte is written to the console.
    pub fn console_byte(&mut self, at: Moment, byte: u8) {
        self.state.console.push(byte);
        if byte == b'\n' || self.state.console.len() >= CONSOLE_BATCH_BYTES {
            self.flush_console(at);
        } else if self.state.console_deadline_ns.is_none() {
            self.state.console_deadline_ns = Some(at.time_ns.saturating_add(CONSOLE_DELAY_NS));
        }
    }

    /// When a started console line must be sent.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.state.console_deadline_ns
    }

    /// Sends a started console line whose time has come.
    pub fn settle(&mut self, at: Moment) {
        if self.state.console_deadline_ns.is_some_and(|deadline_ns| deadline_ns <= at.time_ns) {
            self.flush_console(at);
        }
    }

    /// Sends what was written of the present console line.
    pub fn flush_console(&mut self, at: Moment) {
        self.state.console_deadline_ns = None;
        if !self.state.console.is_empty() {
            let bytes = std::mem::take(&mut self.state.console);
            self.push(at, Output::Console(bytes.into()));
        }
    }

    fn push(&mut self, at: Moment, output: Output) {
        self.waiting.push(LoggedOutput { ordinal: self.state.made, at, output });
        self.state.made += 1;
        self.fresh = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time_ns: u64) -> Moment {
        Moment { icount: 1, time_ns }
    }

    #[test]
    fn console_leaves_by_line_size_or_time() {
        let mut outputs = Outputs::default();
        b"hi\nthere".iter().for_each(|byte| outputs.console_byte(at(10), *byte));
        assert_eq!(outputs.deadline_ns(), Some(10 + CONSOLE_DELAY_NS));
        outputs.settle(at(9 + CONSOLE_DELAY_NS));
        assert_eq!(outputs.made(), 1);
        outputs.settle(at(10 + CONSOLE_DELAY_NS));
        (0..CONSOLE_BATCH_BYTES).for_each(|_| outputs.console_byte(at(99), b'x'));
        assert_eq!(outputs.deadline_ns(), None);
        let made: Vec<_> = outputs.take().into_iter().map(|made| (made.ordinal, made.output)).collect();
        let long = vec![b'x'; CONSOLE_BATCH_BYTES];
        assert_eq!(
            made,
            [
                (0, Output::Console(Bytes::from_static(b"hi\n"))),
                (1, Output::Console(Bytes::from_static(b"there"))),
                (2, Output::Console(long.into())),
            ]
        );
    }
}
