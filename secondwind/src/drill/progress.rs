//! What a drill shows while it runs: a line for each step and, on a terminal, a last line
//! that moves.

use std::io::{IsTerminal, Write};

use super::clock::{Clock, ms};
use super::report::TimelineEntry;

/// Shows progress on standard error and keeps the drill's own part of the timeline.
pub struct Progress {
    clock: Clock,
    /// Nothing is shown.
    is_quiet: bool,
    has_live_line: bool,
    is_terminal: bool,
    steps: Vec<TimelineEntry>,
}

/// What the drill calls itself in the timeline.
pub const DRILL: &str = "drill";

impl Progress {
    /// Progress of a drill that began at the beginning of `clock`.
    pub fn new(clock: Clock, is_quiet: bool) -> Progress {
        let is_terminal = std::io::stderr().is_terminal();
        Progress { clock, is_quiet, has_live_line: false, is_terminal, steps: Vec::new() }
    }

    /// Notes that something happens now, and shows it.
    pub fn step(&mut self, what: impl Into<String>) {
        self.step_at(self.clock.now_ns(), what);
    }

    /// The same of a moment that has just passed.
    pub fn step_at(&mut self, at_ns: u64, what: impl Into<String>) {
        let entry = TimelineEntry { at_ms: ms(at_ns), who: DRILL.to_owned(), what: what.into() };
        if !self.is_quiet {
            self.clear();
            // Without standard error there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "{:>8.2} s  {}", entry.at_ms / 1e3, entry.what);
        }
        self.steps.push(entry);
    }

    /// Shows the present state on the moving line; nothing where there is no terminal.
    pub fn live(&mut self, state: &str) {
        if self.is_terminal && !self.is_quiet {
            self.has_live_line = true;
            let now_s = ms(self.clock.now_ns()) / 1e3;
            let mut stderr = std::io::stderr();
            let _ = write!(stderr, "\r\x1b[K{now_s:>8.2} s  {state}").and_then(|()| stderr.flush());
        }
    }

    /// Removes the moving line.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.has_live_line) {
            let mut stderr = std::io::stderr();
            let _ = write!(stderr, "\r\x1b[K").and_then(|()| stderr.flush());
        }
    }

    /// The steps until now.
    pub fn steps(&self) -> Vec<TimelineEntry> {
        self.steps.clone()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
