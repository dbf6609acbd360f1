//! How a machine is protected: the options, checked, as the cores want them.

use anyhow::{Result, bail};
use log_format::ProtectionMode;
use primary::{Durability, EpochConfig, ModeChoice, Release, Trigger};

use crate::options::{CheckpointOptions, ProtectionOptions};

/// The protection options, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protection {
    /// Which mode is wanted.
    pub mode: ModeChoice,
    /// How many backups are taken.
    pub backups: usize,
    /// How many of them must hold an output.
    pub release: Release,
    /// When log counts as held.
    pub durability: Durability,
    /// When checkpoints are taken.
    pub epoch: EpochConfig,
}

/// More than these would hold each other up.
const MOST_BACKUPS: usize = 16;
const MILLISECOND_NS: u64 = 1_000_000;
const SECOND_NS: u64 = 1_000_000_000;

impl Protection {
    /// Checks the options. `has_log` says whether this node keeps its log on disk.
    pub fn new(
        options: &ProtectionOptions,
        checkpoint: &CheckpointOptions,
        has_log: bool,
    ) -> Result<Protection> {
        let protection = Protection {
            mode: match options.mode.as_deref() {
                None | Some("replay") => ModeChoice::Fixed(ProtectionMode::Replay),
                Some("hybrid") => ModeChoice::Fixed(ProtectionMode::Hybrid),
                Some("checkpoint") => ModeChoice::Fixed(ProtectionMode::Checkpoint),
                Some("auto") => ModeChoice::Auto,
                Some(other) => {
                    bail!("--mode {other:?} is no mode; choose replay, hybrid, checkpoint or auto")
                }
            },
            backups: match options.backups {
                None => 1,
                Some(backups) if (1..=MOST_BACKUPS).contains(&backups) => backups,
                Some(backups) => bail!("--backups {backups} is out of range; choose 1 to {MOST_BACKUPS}"),
            },
            release: match options.release.as_deref() {
                None | Some("all") => Release::All,
                Some("quorum") => Release::Quorum,
                Some("any") => Release::Any,
                Some(other) => bail!("--release {other:?} is no rule; choose all, quorum or any"),
            },
            durability: match options.durability.as_deref() {
                None | Some("memory") => Durability::Memory,
                Some("disk") => Durability::Disk,
                Some(other) => bail!("--durability {other:?} is none; choose memory or disk"),
            },
            epoch: epoch(options, checkpoint)?,
        };
        protection.check_durability(has_log)?;
        Ok(protection)
    }

    fn check_durability(&self, has_log: bool) -> Result<()> {
        if self.durability == Durability::Memory {
            return Ok(());
        }
        if !has_log {
            bail!(
                "--durability disk needs a folder for the log on this node's disk; name one with --log-dir"
            );
        }
        Ok(())
    }
}

fn epoch(options: &ProtectionOptions, checkpoint: &CheckpointOptions) -> Result<EpochConfig> {
    let defaults = EpochConfig::default();
    let shortest_ns = match checkpoint.rate {
        None => defaults.shortest_ns,
        Some(rate) if (1..=1000).contains(&rate) => SECOND_NS / rate,
        Some(rate) => bail!("--checkpoint-rate {rate} is out of range; choose 1 to 1000 per second"),
    };
    let longest_ns = match checkpoint.rate_min {
        None => defaults.longest_ns.max(shortest_ns),
        Some(rate) if rate >= 1 && SECOND_NS / rate >= shortest_ns => SECOND_NS / rate,
        Some(rate) => bail!("--checkpoint-rate-min {rate} is out of range; choose 1 to --checkpoint-rate"),
    };
    let takeover_within_ns = match options.takeover_within_ms {
        None => defaults.takeover_within_ns,
        Some(milliseconds @ 10..=600_000) => milliseconds * MILLISECOND_NS,
        Some(other) => bail!("--takeover-within-ms {other} is out of range; choose 10 to 600000"),
    };
    Ok(EpochConfig {
        shortest_ns,
        longest_ns,
        pause_ns: milliseconds("--checkpoint-pause-ms", checkpoint.pause_ms, defaults.pause_ns)?,
        delay_ns: milliseconds("--checkpoint-delay-ms", checkpoint.delay_ms, defaults.delay_ns)?,
        trigger: match checkpoint.trigger.as_deref() {
            None | Some("clock") => Trigger::Clock,
            Some("output") => Trigger::Output,
            Some(other) => bail!("--checkpoint-trigger {other:?} is none; choose clock or output"),
        },
        takeover_within_ns,
        ..defaults
    })
}

fn milliseconds(flag: &str, value: Option<f64>, default_ns: u64) -> Result<u64> {
    match value {
        None => Ok(default_ns),
        Some(value) if (0.01..=10_000.0).contains(&value) => Ok((value * MILLISECOND_NS as f64) as u64),
        Some(value) => bail!("{flag} {value} is out of range; choose 0.01 to 10000"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::ConfigFile;

    fn parse(text: &str, has_log: bool) -> Result<Protection> {
        let file: ConfigFile = toml::from_str(text).expect("it is TOML");
        Protection::new(&file.protection, &file.checkpoint, has_log)
    }

    #[test]
    fn without_options_it_is_one_backup_that_replays() {
        let plain = parse("", false).unwrap();
        assert_eq!(plain.mode, ModeChoice::Fixed(ProtectionMode::Replay));
        assert_eq!((plain.backups, plain.release), (1, Release::All));
        assert_eq!((plain.durability, plain.epoch), (Durability::Memory, EpochConfig::default()));
    }

    #[test]
    fn every_option_has_its_effect() {
        let all = parse(
            "[protection]\nmode = \"hybrid\"\nbackups = 3\nrelease = \"quorum\"\ndurability = \"disk\"\n\
             takeover-within-ms = 250\n[checkpoint]\nrate = 40\nrate-min = 5\npause-ms = 0.5\n\
             delay-ms = 20.0\ntrigger = \"output\"",
            true,
        )
        .unwrap();
        let expected = Protection {
            mode: ModeChoice::Fixed(ProtectionMode::Hybrid),
            backups: 3,
            release: Release::Quorum,
            durability: Durability::Disk,
            epoch: EpochConfig {
                shortest_ns: 25_000_000,
                longest_ns: 200_000_000,
                pause_ns: 500_000,
                delay_ns: 20_000_000,
                trigger: Trigger::Output,
                takeover_within_ns: 250_000_000,
                ..EpochConfig::default()
            },
        };
        assert_eq!(all, expected);
        assert_eq!(parse("[protection]\nmode = \"auto\"", false).unwrap().mode, ModeChoice::Auto);
        assert_eq!(parse("[checkpoint]\nrate = 2", false).unwrap().epoch.longest_ns, 500_000_000);
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_way_out() {
        for (text, said) in [
            ("[protection]\nmode = \"magic\"", "replay, hybrid"),
            ("[protection]\nbackups = 0", "1 to 16"),
            ("[protection]\nrelease = \"most\"", "all, quorum or any"),
            ("[protection]\ndurability = \"tape\"", "memory or disk"),
            ("[protection]\ndurability = \"disk\"", "--log-dir"),
            ("[protection]\ntakeover-within-ms = 1", "10 to 600000"),
            ("[checkpoint]\nrate = 0", "1 to 1000"),
            ("[checkpoint]\nrate = 10\nrate-min = 20", "--checkpoint-rate"),
            ("[checkpoint]\npause-ms = -1.0", "--checkpoint-pause-ms"),
            ("[checkpoint]\ntrigger = \"moon\"", "clock or output"),
        ] {
            let error = parse(text, false).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
