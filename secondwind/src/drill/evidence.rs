//! What a drill saw, before it is judged.

use link::arbitration::Record;

use super::agents::Seen;
use super::args::{Fault, Guest};
use super::clock::ms;
use super::history::Operation;
use super::report::TimelineEntry;
use super::timeline::AgentEvent;

/// From one moment to another, in nanoseconds since the drill began.
pub type Window = std::ops::Range<u64>;

/// All that was seen of one machine's life, whatever was done to it.
pub struct Evidence {
    /// The guest.
    pub guest: Guest,
    /// Seed of the random choices.
    pub seed: u64,
    /// What the drill did.
    pub steps: Vec<TimelineEntry>,
    /// Load on the unprotected machine.
    pub unprotected: Window,
    /// Load on the protected machine, before each fault.
    pub protected: Vec<Window>,
    /// Why the drill could not go on, if so.
    pub halted: Option<String>,
    /// What the clients did; the read-back is not in it.
    pub history: Vec<Operation>,
    /// Connections that broke, each with how.
    pub broken: Vec<String>,
    /// A get of every key after the load, or why there is none.
    pub read_back: Result<Vec<Operation>, String>,
    /// Every agent that was started.
    pub agents: Vec<AgentEvidence>,
    /// Nodes that were live at the end, by their own word.
    pub live_nodes: Vec<String>,
    /// The arbiter's record at the end.
    pub record: Option<Record>,
    /// How often one side took the other for dead though nothing was broken.
    pub false_alarms: u32,
}

/// What was seen of a chain of faults, all of one kind.
pub struct ChainEvidence {
    /// Of the machine.
    pub machine: Evidence,
    /// What was broken.
    pub fault: Fault,
    /// Faults that were planned.
    pub rounds_planned: u32,
    /// The faults.
    pub rounds: Vec<Round>,
    /// Datagrams of a stale machine that the switch refused after the last fault was over.
    pub stale_at_end: u64,
}

/// One fault and what came of it. Times are in nanoseconds since the drill began.
#[derive(Debug, Clone)]
pub struct Round {
    /// Who was the primary before, and who stood by.
    pub primary: String,
    /// Who stood by.
    pub backup: String,
    /// The term before.
    pub term: u64,
    /// When the fault was made.
    pub fault_ns: u64,
    /// When one side was seen to go on alone.
    pub resolved_ns: Option<u64>,
    /// When every connection had been answered again.
    pub answered_ns: Option<u64>,
    /// When a backup was counted on again.
    pub reprotected_ns: Option<u64>,
    /// The arbiter's record once it was resolved.
    pub record: Option<Record>,
    /// Of a cut link: whether the losing side stopped and said so.
    pub loser_stopped: Option<bool>,
}

impl Round {
    /// What came of it, in a few words.
    pub fn summary(&self) -> String {
        let after_ms =
            |at_ns: Option<u64>| at_ns.map_or(0.0, |at_ns| ms(at_ns.saturating_sub(self.fault_ns)));
        format!(
            "{} goes on in term {}, all answered after {:.0} ms, protected again after {:.0} ms",
            self.survivor().unwrap_or("nobody"),
            self.record.as_ref().map_or(self.term, |record| record.term),
            after_ms(self.answered_ns),
            after_ms(self.reprotected_ns),
        )
    }

    /// The side that went on.
    pub fn survivor(&self) -> Option<&str> {
        self.record.as_ref().map(|record| record.holder.as_str())
    }

    /// Whether the backup took over.
    pub fn was_taken_over(&self) -> bool {
        self.record
            .as_ref()
            .is_some_and(|record| record.holder == self.backup && record.term == self.term + 1)
    }

    /// Whether the primary went on alone.
    pub fn went_alone(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.holder == self.primary && record.term == self.term)
    }
}

/// What was seen of an agent.
pub struct AgentEvidence {
    /// Its node's name.
    pub node: String,
    /// What was seen while it lived.
    pub seen: Seen,
    /// What it wrote down.
    pub events: Vec<AgentEvent>,
}
