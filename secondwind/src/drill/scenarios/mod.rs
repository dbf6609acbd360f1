//! `secondwind drill FILE...` and `secondwind drill --all`: scenarios from TOML files.
//!
//! [`mod@file`], [`step`] and [`condition`] say what a scenario is, [`catalog`] where it comes
//! from, [`play`] does it on [`hosts`], [`judge`] says whether it came out as expected, and
//! [`results`] and [`page`] show it.

mod catalog;
mod condition;
mod etcd;
mod file;
mod hosts;
mod judge;
mod page;
mod play;
mod results;
mod step;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::args::{DrillArgs, Guest};
use super::clock::Clock;
use super::page::escape;
use super::progress::Progress;
use super::{interruption, keep};
use file::{ArbiterKind, Scenario};
use play::{FalseAlarm, Props};
use results::{Outcome, ScenarioResult};

/// A host that is short of processors may take a node for dead before anything was broken;
/// so often a scenario is begun again.
const FALSE_STARTS: u32 = 3;
/// How long blocking questions to agents may hold up the end.
const LINGER: Duration = Duration::from_millis(200);

/// Prints the scenarios that come along.
///
/// # Errors
/// When one is wrong.
pub fn list() -> Result<ExitCode> {
    for scenario in catalog::built_in()? {
        println!("{:<24} {}", scenario.name, scenario.description);
    }
    Ok(ExitCode::SUCCESS)
}

/// Plays scenarios one after the other. The exit status says whether all came out as expected.
///
/// # Errors
/// When a scenario is wrong, the drill is interrupted, or its report cannot be written.
pub fn drill(args: &DrillArgs, seed: u64) -> Result<ExitCode> {
    let mut scenarios = if args.all { catalog::built_in()? } else { Vec::new() };
    scenarios.extend(catalog::named(&args.scenarios)?);
    let newer_program = match &args.upgrade_to {
        Some(path) => {
            path.canonicalize().with_context(|| format!("there is no binary at {}", path.display()))?
        }
        None => std::env::current_exe().context("cannot tell where this program is")?,
    };
    // Agents die with the thread that starts them: this one, which stays to the end.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            interrupted = interruption() => Err(interrupted),
            results = play_all(args, &scenarios, seed, newer_program) => results,
        }
    });
    runtime.shutdown_timeout(LINGER);
    let results = outcome?;
    write(args, &results)?;
    println!("{}", results::table(&results));
    Ok(if results.iter().all(ScenarioResult::is_well) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn play_all(
    args: &DrillArgs,
    scenarios: &[Scenario],
    seed: u64,
    newer_program: PathBuf,
) -> Result<Vec<ScenarioResult>> {
    let mut results = Vec::new();
    let planned = scenarios.len() * args.repeat as usize;
    let seeds = (0..args.repeat).map(|turn| seed.wrapping_add(u64::from(turn)));
    for (seed, scenario) in seeds.flat_map(|seed| scenarios.iter().map(move |scenario| (seed, scenario))) {
        let begun = Instant::now();
        let (outcome, false_starts) = play_one(args, scenario, seed, &newer_program).await?;
        let result = ScenarioResult {
            name: scenario.name.clone(),
            description: scenario.description.clone(),
            took_s: begun.elapsed().as_secs_f64(),
            false_starts,
            outcome,
        };
        if !args.quiet {
            let reason =
                if result.is_well() { String::new() } else { format!(": {}", result.reasons().join("; ")) };
            eprintln!(
                "[{}/{planned}] {:<24} {} in {:.1} s, seed {seed}{reason}",
                results.len() + 1,
                result.name,
                result.verdict(),
                result.took_s
            );
        }
        let is_well = result.is_well();
        results.push(result);
        if !is_well && args.repeat > 1 && !args.keep_going {
            break;
        }
    }
    Ok(results)
}

/// Plays a scenario, again after a false start.
async fn play_one(
    args: &DrillArgs,
    scenario: &Scenario,
    seed: u64,
    newer_program: &std::path::Path,
) -> Result<(Outcome, u32)> {
    if let Some(lacking) = lacking(scenario) {
        return Ok((Outcome::Skipped(lacking), 0));
    }
    let mut false_starts = 0;
    loop {
        let folder = tempfile::Builder::new()
            .prefix("secondwind-drill-")
            .tempdir()
            .context("cannot make a folder for temporary files; free some space, or set TMPDIR")?;
        let clock = Clock::start();
        let mut progress = Progress::new(clock, args.quiet, args.repeat > 1 || args.all);
        let newer_program = newer_program.to_owned();
        let props = Props { seed, folder: folder.path(), newer_program, clock, engine: args.engine };
        let played = match play::play(scenario, &props, &mut progress).await {
            Err(error) if error.is::<FalseAlarm>() && false_starts < FALSE_STARTS => {
                false_starts += 1;
                progress.detail("false alarm; it is begun again");
                continue;
            }
            Err(error) => return Ok((Outcome::Failed(crate::one_line(&error)), false_starts)),
            Ok(played) => played,
        };
        progress.live("the history is checked");
        let judged = scenario.clone();
        let judging =
            tokio::task::spawn_blocking(move || (judge::judge(&judged, &played), played.machine.history));
        let (report, operations) = judging.await.context("the history could not be checked")?;
        let name = if args.repeat > 1 { format!("{}-{seed}", scenario.name) } else { scenario.name.clone() };
        if let Some(kept) = keep::keep(args.keep.as_deref(), Some(name), folder, &report, &operations)? {
            progress.step(format!("logs, timelines and history are kept in {}", kept.display()));
        }
        return Ok((Outcome::Played(Box::new(report), operations), false_starts));
    }
}

/// What this host lacks for a scenario.
fn lacking(scenario: &Scenario) -> Option<String> {
    if scenario.agents.arbiter == ArbiterKind::Etcd && !etcd::is_installed() {
        return Some("there is no etcd here (Debian package etcd-server)".to_owned());
    }
    match scenario.guest {
        Guest::Ledger => None,
        Guest::Debian => crate::vm::find_debian().err().map(|error| format!("{error:#}")),
    }
}

fn write(args: &DrillArgs, results: &[ScenarioResult]) -> Result<()> {
    let write = |path: &Option<PathBuf>, text: &dyn Fn() -> Result<String>| match path {
        Some(path) => {
            std::fs::write(path, text()?).with_context(|| format!("cannot write {}", path.display()))
        }
        None => Ok(()),
    };
    write(&args.json, &|| Ok(results::json(results)?))?;
    write(&args.junit, &|| Ok(results::junit(results)))?;
    write(&args.html, &|| Ok(page::page(results)))
}
