//! What a drill is going to do, decided before it begins.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, bail};
use machine::Engine;

use super::args::{DrillArgs, Fault, Guest};
use super::load::LoadPlan;
use super::workload::Workload;
use crate::options::parse_size_bytes;

/// One machine's life: booted, protected, and then some faults in a row.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The guest.
    pub guest: Guest,
    /// What executes it.
    pub engine: Engine,
    /// Its memory.
    pub memory_bytes: u64,
    /// Size of its disk, where it has one.
    pub disk_bytes: Option<u64>,
    /// What is broken.
    pub fault: Fault,
    /// How many times.
    pub rounds: u32,
    /// Seed of every random choice.
    pub seed: u64,
    /// What the clients do.
    pub load: LoadPlan,
    /// How long each part takes.
    pub phases: Phases,
}

/// How long the parts of a drill take, and how long it waits at most.
#[derive(Debug, Clone)]
pub struct Phases {
    /// Load on the unprotected machine, to compare with.
    pub baseline: Duration,
    /// Load on the protected machine before the fault, at least ...
    pub protected_least: Duration,
    /// ... and at most: the moment is chosen at random.
    pub protected_most: Duration,
    /// Load after the fault, before a new backup comes.
    pub after: Duration,
    /// Load at the end, protected again.
    pub end: Duration,
    /// How long the guest may take to answer its first client.
    pub boot_limit: Duration,
    /// How long a backup may take until it is counted on.
    pub join_limit: Duration,
    /// How long the two sides may take until one goes on alone.
    pub takeover_limit: Duration,
}

/// After so many faults a chain goes on with a fresh machine: the ledger and the history of
/// its clients grow all the time.
const ROUNDS_PER_MACHINE: u32 = 50;
/// A key's history is checked in the square of its length.
const OPERATIONS_PER_KEY: u64 = 200;
const GUEST_ADDRESS: Ipv4Addr = netbuf::DEFAULT_GUEST_ADDRESS;
const DEFAULT_CONNECTIONS: u16 = 8;

impl Plan {
    /// The plans of the machines that a drill runs one after the other.
    ///
    /// # Errors
    /// When the memory's size is none.
    pub fn from_args(args: &DrillArgs, seed: u64) -> Result<Vec<Plan>> {
        let memory_bytes = match (&args.memory, args.guest) {
            (Some(size), _) => parse_size_bytes(size)?,
            (None, guest) => guest.memory_bytes(),
        };
        let disk_bytes = args.disk.as_deref().map(parse_size_bytes).transpose()?;
        if let Some(bytes) = disk_bytes {
            if args.guest == Guest::Ledger {
                bail!("the ledger keeps nothing on a disk; give --guest debian with --disk");
            }
            if !bytes.is_multiple_of(1 << 20) {
                bail!("--disk {bytes} bytes is no whole number of MiB; write it as 64M");
            }
        }
        let machines = args.faults().div_ceil(ROUNDS_PER_MACHINE);
        let plan_of = |machine: u32| {
            let rounds = ROUNDS_PER_MACHINE.min(args.faults() - machine * ROUNDS_PER_MACHINE);
            // The first machine's seed is the drill's, so that one drill can be repeated.
            let seed = seed.wrapping_add(u64::from(machine));
            Plan {
                guest: args.guest,
                engine: args.engine,
                memory_bytes,
                disk_bytes,
                fault: args.fault(),
                rounds,
                seed,
                load: load_plan(args.guest, args.connections, seed),
                phases: if args.faults() > 1 {
                    Phases::short(args.guest)
                } else {
                    Phases::single(args.guest)
                },
            }
        };
        Ok((0..machines).map(plan_of).collect())
    }
}

/// What the clients of `guest` do, over so many connections.
pub fn load_plan(guest: Guest, connections: Option<u16>, seed: u64) -> LoadPlan {
    let (workload, interval_ms) = match guest {
        Guest::Ledger => (Workload::Ledger, 5),
        Guest::Debian => (Workload::Redis, 16),
    };
    let connections = usize::from(connections.unwrap_or(DEFAULT_CONNECTIONS));
    let hosts = connections.min(4);
    LoadPlan {
        workload,
        guest: GUEST_ADDRESS,
        hosts,
        connections,
        interval: Duration::from_millis(interval_ms),
        put_percent: 40,
        keys: 6,
        operations_per_key: OPERATIONS_PER_KEY,
        seed,
    }
}

impl Phases {
    /// One fault, to be watched.
    fn single(guest: Guest) -> Phases {
        let ms = Duration::from_millis;
        Phases {
            baseline: ms(3000),
            protected_least: ms(3000),
            protected_most: ms(4500),
            after: ms(1500),
            end: ms(1500),
            boot_limit: boot_limit(guest),
            join_limit: ms(30_000),
            takeover_limit: ms(15_000),
        }
    }

    /// Many faults in a row.
    fn short(guest: Guest) -> Phases {
        let ms = Duration::from_millis;
        Phases {
            baseline: ms(1000),
            protected_least: ms(300),
            protected_most: ms(1500),
            after: ms(200),
            end: ms(300),
            ..Phases::single(guest)
        }
    }
}

/// How long the guest may take to answer its first client.
pub fn boot_limit(guest: Guest) -> Duration {
    match guest {
        Guest::Ledger => Duration::from_secs(20),
        // Six seconds on a quiet machine.
        Guest::Debian => Duration::from_secs(120),
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

    fn plans(words: &[&str]) -> Result<Vec<Plan>> {
        Plan::from_args(&Line::parse_from([&["drill"], words].concat()).drill, 7)
    }

    #[test]
    fn a_long_chain_is_shared_out_among_machines() {
        let rounds =
            |words: &[&str]| -> Vec<u32> { plans(words).unwrap().iter().map(|plan| plan.rounds).collect() };
        assert_eq!(rounds(&[]), [1]);
        assert_eq!(rounds(&["--repeat", "50"]), [50]);
        assert_eq!(rounds(&["--repeat", "120"]), [50, 50, 20]);
        assert_eq!(rounds(&["--kills", "70"]), [50, 20]);
    }

    #[test]
    fn a_disk_is_for_guests_that_use_one() {
        assert!(plans(&["--disk", "64M"]).is_err());
        assert!(plans(&["--guest", "debian", "--disk", "1000"]).is_err());
        let plan = &plans(&["--guest", "debian", "--disk", "64M"]).unwrap()[0];
        assert_eq!(plan.disk_bytes, Some(64 << 20));
    }

    #[test]
    fn memory_that_is_no_size_is_refused() {
        assert!(plans(&["--memory", "lots"]).is_err());
        assert_eq!(plans(&["--memory", "1G"]).unwrap()[0].memory_bytes, 1 << 30);
    }
}
