//! What a user can say to `secondwind drill`.

use std::path::PathBuf;

use clap::ValueEnum;
use machine::Engine;

/// Kills a host under a running machine, and checks that its clients do not notice.
///
/// Starts a primary and a backup as two processes, a guest, and clients on a network of
/// their own that keep TCP connections open; breaks something in the middle of the load;
/// then says what was lost. Needs no root, no network and no other program. The exit status
/// is 0 only if every check held.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  secondwind drill                                   SIGKILL the primary under load
  secondwind drill --kill backup                     ... the backup: the guest goes on, a new one joins
  secondwind drill --cut link                        cut the wire between the two: one side must stop
  secondwind drill --guest debian --html drill.html  Linux and Redis, with a page that shows it
  secondwind drill --kills 1000                      1000 kills in a row, a fresh machine now and then
  secondwind drill --guest debian --disk 64M         Redis that keeps everything on a disk
  secondwind drill --repeat 500                      500 kills in a row on the same connections
  secondwind drill --all --junit drill.xml           every scenario that comes along; --list shows them
  secondwind drill kill-backup my-scenario.toml      some scenarios
  secondwind drill --seed 7 --keep /tmp/drill        the same choices again; keep logs and history")]
pub struct DrillArgs {
    /// Scenarios to play instead: TOML files, folders of them, or names from --list
    #[arg(value_name = "SCENARIO", conflicts_with_all = ["kill", "cut", "guest", "memory", "connections", "strict", "kills", "disk"])]
    pub scenarios: Vec<PathBuf>,
    /// Play all scenarios that come along
    #[arg(long, conflicts_with_all = ["kill", "cut", "guest", "memory", "connections", "strict", "kills", "disk"])]
    pub all: bool,
    /// Print the scenarios that come along
    #[arg(long, exclusive = true)]
    pub list: bool,
    /// What rolling upgrades in scenarios upgrade to [default: this same program]
    #[arg(long, value_name = "BINARY")]
    pub upgrade_to: Option<PathBuf>,
    /// The guest: the built-in ledger, or Debian with Redis (made by guest/debian/build)
    #[arg(long, value_enum, default_value_t = Guest::Ledger)]
    pub guest: Guest,
    /// What executes the guest on each host: interpreter, translator (to x86-64 code) or auto
    #[arg(long, value_name = "ENGINE", default_value_t)]
    pub engine: Engine,
    /// Which side to kill with SIGKILL [default: primary]
    #[arg(long, value_enum, value_name = "SIDE", conflicts_with = "cut")]
    pub kill: Option<Side>,
    /// What to cut: the link between the two sides
    #[arg(long, value_enum, value_name = "WHAT")]
    pub cut: Option<Cuttable>,
    /// How many faults in a row; each time a new backup joins, and the clients' connections
    /// stay open all along. With scenarios: how many times all of them, with the next seed each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub repeat: u32,
    /// So many SIGKILLs to the primary in a row: the same as --kill primary --repeat N
    #[arg(long, value_name = "N", conflicts_with_all = ["kill", "cut", "repeat"],
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub kills: Option<u32>,
    /// Give the guest a disk of this size, as 64M, on which it keeps what it acknowledges; for
    /// debian: Redis flushes each write before it answers
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<String>,
    /// With --repeat or --kills: go on after a failure, on a fresh machine
    #[arg(long)]
    pub keep_going: bool,
    /// Seed of every random choice [default: a new one, printed]
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Guest memory, as 256M or 1G [default: 64M for ledger, 256M for debian]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// TCP connections of the clients [default: 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=128))]
    pub connections: Option<u16>,
    /// Also check the figures that a quiet machine must reach: blackout, added delay,
    /// checkpoint pause, memory
    #[arg(long)]
    pub strict: bool,
    /// Keep logs, timelines and the clients' history in this folder
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Write the report to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// With scenarios: write the results to this file as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write the report to this file as an HTML page with a drawn timeline
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print the verdict only
    #[arg(long, short)]
    pub quiet: bool,
}

/// A guest that drills know how to load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Guest {
    /// The built-in one.
    Ledger,
    /// Debian's kernel, busybox and Redis.
    Debian,
}

/// A side of the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Side {
    /// The one that runs the machine.
    Primary,
    /// The one that stands by.
    Backup,
}

/// What can be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Cuttable {
    /// The link between primary and backup.
    Link,
}

/// What a drill breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL for the primary.
    KillPrimary,
    /// SIGKILL for the backup.
    KillBackup,
    /// A partition between the two, while both are seen by the clients and the arbiter.
    CutLink,
}

impl DrillArgs {
    /// How many faults there are in a row.
    pub fn faults(&self) -> u32 {
        self.kills.unwrap_or(self.repeat)
    }

    /// Whether scenarios are to be played.
    pub fn plays_scenarios(&self) -> bool {
        self.all || !self.scenarios.is_empty()
    }

    /// What is to be broken.
    pub fn fault(&self) -> Fault {
        match (self.cut, self.kill) {
            (Some(Cuttable::Link), _) => Fault::CutLink,
            (None, Some(Side::Backup)) => Fault::KillBackup,
            (None, Some(Side::Primary) | None) => Fault::KillPrimary,
        }
    }
}

impl Guest {
    /// As `--guest` names it.
    pub fn name(self) -> &'static str {
        match self {
            Guest::Ledger => "ledger",
            Guest::Debian => "debian",
        }
    }

    /// The memory that it is given where nothing else is said.
    pub fn memory_bytes(self) -> u64 {
        match self {
            Guest::Ledger => 64 << 20,
            Guest::Debian => 256 << 20,
        }
    }
}

impl Fault {
    /// What is lost, in a word.
    pub fn name(self) -> &'static str {
        match self {
            Fault::KillPrimary => "primary",
            Fault::KillBackup => "backup",
            Fault::CutLink => "link",
        }
    }

    /// What the drill does, as an entry of the timeline.
    pub fn deed(self, victim: &str) -> String {
        match self {
            Fault::KillPrimary => format!("SIGKILL to the primary {victim}"),
            Fault::KillBackup => format!("SIGKILL to the backup {victim}"),
            Fault::CutLink => "the link is cut".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        drill: DrillArgs,
    }

    fn fault(words: &[&str]) -> Result<Fault, clap::Error> {
        Line::try_parse_from([&["drill"], words].concat()).map(|line| line.drill.fault())
    }

    #[test]
    fn the_fault_follows_from_the_flags() {
        assert_eq!(fault(&[]).unwrap(), Fault::KillPrimary);
        assert_eq!(fault(&["--kill", "primary"]).unwrap(), Fault::KillPrimary);
        assert_eq!(fault(&["--kill", "backup"]).unwrap(), Fault::KillBackup);
        assert_eq!(fault(&["--cut", "link"]).unwrap(), Fault::CutLink);
        assert!(fault(&["--cut", "link", "--kill", "backup"]).is_err());
        assert!(fault(&["--repeat", "0"]).is_err());
    }
}
