//! What goes wrong, and when. Only what a fault-tolerant pair must survive: the last copy of
//! the machine is never killed.

use super::network::WireFault;
use super::random::Random;

/// Something that goes wrong, or gets well again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The primary's process is killed.
    CrashPrimary,
    /// The backup's process is killed.
    CrashBackup,
    /// A process stands still.
    Pause {
        /// Which.
        node: usize,
        /// For how long.
        for_ns: u64,
    },
    /// Nothing gets through one way or both ways.
    Partition {
        /// From here.
        from: usize,
        /// To there.
        to: usize,
        /// The way back, too.
        both: bool,
        /// For how long.
        for_ns: u64,
    },
    /// All connections break.
    Reset,
    /// The wire damages a frame.
    Wire(WireFault),
    /// A node cannot reach the arbiter.
    ArbiterCut {
        /// Which.
        node: usize,
        /// For how long.
        for_ns: u64,
    },
    /// The next answer of the arbiter is lost, though it acted.
    ArbiterAnswerLost,
    /// The machine's host is slow for a while.
    SlowMachine {
        /// Which node.
        node: usize,
        /// For how long.
        for_ns: u64,
    },
    /// The operator says to go on alone, where policy is to wait.
    OperatorGoAlone,
    /// The operator stops the primary in an orderly way: its backup takes over.
    OperatorStopPrimary,
}

impl Fault {
    /// Its name in the coverage.
    pub fn name(&self) -> &'static str {
        match self {
            Fault::CrashPrimary => "crash primary",
            Fault::CrashBackup => "crash backup",
            Fault::Pause { .. } => "pause",
            Fault::Partition { both: true, .. } => "partition",
            Fault::Partition { both: false, .. } => "one-way partition",
            Fault::Reset => "reset",
            Fault::Wire(WireFault::Corrupt) => "corruption",
            Fault::Wire(WireFault::Duplicate) => "duplication",
            Fault::Wire(WireFault::Reorder) => "reordering",
            Fault::Wire(WireFault::Drop) => "loss",
            Fault::ArbiterCut { .. } => "arbiter cut",
            Fault::ArbiterAnswerLost => "arbiter answer lost",
            Fault::SlowMachine { .. } => "slow machine",
            Fault::OperatorGoAlone => "operator goes alone",
            Fault::OperatorStopPrimary => "operator stops primary",
        }
    }

    /// Something that goes wrong among so many hosts.
    pub fn draw(random: &mut Random, hosts: usize) -> Fault {
        const MILLISECOND_NS: u64 = 1_000_000;
        let node = random.between(0, hosts as u64 - 1) as usize;
        let short_ns = random.between(1, 90) * MILLISECOND_NS;
        let long_ns = random.between(20, 1_500) * MILLISECOND_NS;
        let for_ns = if random.chance(400) { short_ns } else { long_ns };
        match random.between(0, 99) {
            0..18 => Fault::CrashPrimary,
            18..30 => Fault::CrashBackup,
            30..42 => Fault::Pause { node, for_ns },
            42..56 => {
                let to = (node + 1 + random.between(0, hosts as u64 - 2) as usize) % hosts;
                Fault::Partition { from: node, to, both: random.chance(600), for_ns }
            }
            56..64 => Fault::Reset,
            64..80 => Fault::Wire(*random.pick(&[
                WireFault::Corrupt,
                WireFault::Duplicate,
                WireFault::Reorder,
                WireFault::Drop,
            ])),
            80..87 => Fault::ArbiterCut { node, for_ns },
            87..92 => Fault::ArbiterAnswerLost,
            92..96 => Fault::SlowMachine { node, for_ns },
            96..98 => Fault::OperatorGoAlone,
            _ => Fault::OperatorStopPrimary,
        }
    }
}
