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
    /// Details are shown on the moving line only.
    is_terse: bool,
    has_live_line: bool,
    is_terminal: bool,
    steps: Vec<TimelineEntry>,
}

/// What the drill calls itself in the timeline.
pub const DRILL: &str = "drill";

impl Progress {
    /// Progress of a drill that began at the beginning of `clock`; terse where it will do
    /// the same thing many times.
    pub fn new(clock: Clock, is_quiet: bool, is_terse: bool) -> Progress {
        let is_terminal = std::io::stderr().is_terminal();
        Progress { clock, is_quiet, is_terse, has_live_line: false, is_terminal, steps: Vec::new() }
    }

    /// Notes that something happens now, and shows it.
    pub fn step(&mut self, what: impl Into<String>) {
        let entry = self.note(self.clock.now_ns(), what.into(), false);
        self.print(&entry);
    }

    /// The same of what happens in every round.
    pub fn detail(&mut self, what: impl Into<String>) {
        let entry = self.note(self.clock.now_ns(), what.into(), false);
        self.show(&entry);
    }

    /// The same of what was broken a moment ago.
    pub fn fault_at(&mut self, at_ns: u64, what: impl Into<String>) {
        let entry = self.note(at_ns, what.into(), true);
        self.show(&entry);
    }

    fn show(&mut self, entry: &TimelineEntry) {
        match self.is_terse {
            true => self.live(&entry.what),
            false => self.print(entry),
        }
    }

    /// Shows how a round went, where its details were not shown.
    pub fn round(&mut self, what: &str) {
        if self.is_terse {
            let at_ms = ms(self.clock.now_ns());
            self.print(&TimelineEntry {
                at_ms,
                who: DRILL.to_owned(),
                what: what.to_owned(),
                is_fault: false,
            });
        }
    }

    fn note(&mut self, at_ns: u64, what: String, is_fault: bool) -> TimelineEntry {
        let entry = TimelineEntry { at_ms: ms(at_ns), who: DRILL.to_owned(), what, is_fault };
        self.steps.push(entry.clone());
        entry
    }

    fn print(&mut self, entry: &TimelineEntry) {
        if !self.is_quiet {
            self.clear();
            // Without standard error there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "{:>8.2} s  {}", entry.at_ms / 1e3, entry.what);
        }
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
