//! `secondwind diff`: where two recordings, or a recording and its replay, part.

mod bisect;
mod logs;
#[cfg(test)]
mod tests;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use backup::Divergence;
use serde_json::json;
use store::checkpoint::SecretKey;

use crate::history::{Arrival, DEFAULT_SNAPSHOT_BYTES, Flip, History, Until};
use crate::recording::Recording;
use bisect::Parting;
use logs::LogDifferences;

/// Exit status where there is a difference.
const DIFFERENT: u8 = 3;
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Finds where two recordings part: first event, first digest, and the one instruction.
///
/// Compares the logs, replays both, and where one replay differs from its log, narrows the
/// difference down to one instruction by bisection between the two replays. Exit status 0
/// where they are equal, 3 where they differ.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  secondwind diff /tmp/rec /tmp/copy          what differs between two recordings
  secondwind diff /tmp/rec /tmp/rec           whether a recording replays as it was recorded
  secondwind diff /tmp/rec /tmp/copy --json   the same for programs")]
pub struct DiffArgs {
    /// Folder of the one recording
    a: PathBuf,
    /// Folder of the other recording; may be the same
    b: PathBuf,
    /// Secret key, where a recording is of a machine restored from an encrypted checkpoint
    #[arg(long, value_name = "FILE")]
    decrypt: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// For tests and drills: flips a bit of a register in the replay of B
    #[arg(long, value_name = "ICOUNT:HART:xN:BIT", hide = true)]
    flip_bit: Option<Flip>,
}

/// What was found.
struct Findings {
    logs: LogDifferences,
    /// Where the replays differ from their own recordings.
    divergences: [Option<Divergence>; 2],
    parting: Option<Parting>,
}

/// Runs `secondwind diff`.
pub fn diff(args: DiffArgs) -> Result<ExitCode> {
    let secret = crate::checkpoint::keys::secret_key(args.decrypt.as_deref())?;
    let findings = compare(&args.a, &args.b, secret.as_ref(), args.flip_bit)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&findings.to_json())?);
    } else {
        findings.lines().iter().for_each(|line| println!("{line}"));
    }
    Ok(if findings.are_equal() { ExitCode::SUCCESS } else { ExitCode::from(DIFFERENT) })
}

fn compare(a: &Path, b: &Path, secret: Option<&SecretKey>, flip: Option<Flip>) -> Result<Findings> {
    let logs = LogDifferences::between(a, b)?;
    let mut findings = Findings { logs, divergences: [None, None], parting: None };
    if !findings.logs.machine.is_empty() {
        return Ok(findings);
    }
    let mut shown = Shown::new();
    let mut sides = [open(a, secret)?, open(b, secret)?];
    check_flip(&sides[1], flip)?;
    sides[1].set_flip(flip);
    for (side, history) in sides.iter_mut().enumerate() {
        shown.title = if side == 0 { "replaying A" } else { "replaying B" };
        let mut show = || {
            shown.elapsed();
            false
        };
        let arrival = history.resume(Until::Stop, &mut show)?;
        assert_eq!(arrival, Arrival::End, "nothing else ends a replay without breakpoints");
        findings.divergences[side] = history.divergence().cloned();
    }
    let first = findings.divergences.iter().flatten().min_by_key(|divergence| divergence.found_at);
    let interval = match (first, &findings.logs.digest) {
        (Some(divergence), _) => Some((divergence.verified_at.icount, divergence.found_at.icount)),
        // Both replays are as recorded, and yet differ: this program is not deterministic.
        (None, Some((a, _))) => Some((sides[0].start_icount(), a.at.icount)),
        (None, None) => None,
    };
    // Behind the first event that differs, the executions differ as they should.
    let event_icount = findings
        .logs
        .event
        .as_ref()
        .and_then(|(_, a, b)| a.iter().chain(b).map(|event| event.at.icount).min());
    if let Some((equal, differing)) = interval {
        let [a, b] = &mut sides;
        let differing = differing.min(event_icount.unwrap_or(u64::MAX)).max(equal);
        shown.title = "bisecting";
        findings.parting = Parting::find(a, b, equal, differing, &mut |from, to| shown.interval(from, to))?;
    }
    Ok(findings)
}

fn open(dir: &Path, secret: Option<&SecretKey>) -> Result<History> {
    Ok(History::new(Recording::open(dir, secret)?, DEFAULT_SNAPSHOT_BYTES / 2))
}

fn check_flip(history: &History, flip: Option<Flip>) -> Result<()> {
    if let Some(Flip { hart, .. }) = flip.filter(|flip| history.machine().hart(flip.hart).is_none()) {
        bail!("the recorded machine has no hart {hart}; its harts are numbered from 0");
    }
    Ok(())
}

impl Findings {
    fn are_equal(&self) -> bool {
        self.logs.is_empty() && self.divergences.iter().all(Option::is_none)
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = self.logs.lines();
        lines.extend(self.logs.damage.iter().map(|damage| format!("compared up to damage: {damage}")));
        for (side, divergence) in ["A", "B"].iter().zip(&self.divergences) {
            if let Some(divergence) = divergence {
                lines.push(format!(
                    "the replay of {side} differs from its own recording between icount {} and {}: {}",
                    divergence.verified_at.icount, divergence.found_at.icount, divergence.kind
                ));
            }
        }
        match &self.parting {
            Some(parting) => lines.extend(parting.lines()),
            None if self.divergences.iter().any(Option::is_some) => lines.push(
                "the two replays do not differ there, so there is nothing to narrow down: the recording was made \
                 by a program that executes something else; replay it with that one"
                    .to_owned(),
            ),
            None => {}
        }
        if self.are_equal() {
            lines.push("equal: the logs, and both replays".to_owned());
        }
        lines
    }

    fn to_json(&self) -> serde_json::Value {
        let divergence = |divergence: &Option<Divergence>| {
            divergence.as_ref().map(|found| {
                json!({
                    "verified_icount": found.verified_at.icount, "found_icount": found.found_at.icount,
                    "kind": found.kind.to_string(),
                })
            })
        };
        json!({
            "equal": self.are_equal(),
            "logs": self.logs.to_json(),
            "divergence_a": divergence(&self.divergences[0]),
            "divergence_b": divergence(&self.divergences[1]),
            "parting": self.parting.as_ref().map(Parting::to_json),
        })
    }
}

/// What is shown on the way, on a terminal.
struct Shown {
    title: &'static str,
    is_live: bool,
    since: Instant,
    last: Instant,
}

impl Shown {
    fn new() -> Shown {
        let now = Instant::now();
        Shown { title: "", is_live: std::io::stderr().is_terminal(), since: now, last: now }
    }

    fn elapsed(&mut self) {
        let text = format!("{} for {} s", self.title, self.since.elapsed().as_secs());
        self.show(&text);
    }

    fn interval(&mut self, from: u64, to: u64) {
        self.show(&format!("{} between icount {from} and {to}", self.title));
    }

    fn show(&mut self, text: &str) {
        if self.is_live && self.last.elapsed() >= PROGRESS_INTERVAL {
            self.last = Instant::now();
            eprint!("\r\x1b[K{text}");
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if self.is_live {
            eprint!("\r\x1b[K");
        }
    }
}
