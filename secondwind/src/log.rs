//! `secondwind log`: looks at a recording without running it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use log_format::{Batch, Event, LogEntry, Moment};
use serde_json::{Value, json};
use store::{LogEnd, LogReader, Report};

/// Looks at a recording without running it.
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
#[command(after_help = "\
Examples:
  secondwind log stat /tmp/rec             what is in it, and how it ends
  secondwind log show /tmp/rec --last 20   its last batches, event by event
  secondwind log verify /tmp/rec           every checksum and every link; exit status 1 if damaged")]
pub struct LogArgs {
    #[command(subcommand)]
    command: LogCommand,
}

#[derive(clap::Subcommand)]
enum LogCommand {
    /// Counts what is in a recording
    Stat(Looked),
    /// Prints its batches with their events, digests and outputs
    Show(ShowArgs),
    /// Checks every record; exit status 1 where something is wrong
    Verify(Looked),
}

#[derive(clap::Args)]
struct Looked {
    /// Folder of the recording
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct ShowArgs {
    #[command(flatten)]
    looked: Looked,
    /// Only batches that end at or after this icount
    #[arg(long, value_name = "ICOUNT", default_value_t = 0)]
    from: u64,
    /// Only batches that end at or before this icount
    #[arg(long, value_name = "ICOUNT", default_value_t = u64::MAX, hide_default_value = true)]
    to: u64,
    /// Only the last N of them
    #[arg(long, value_name = "N")]
    last: Option<usize>,
}

/// Runs `secondwind log`.
pub fn log(args: LogArgs) -> Result<ExitCode> {
    match args.command {
        LogCommand::Stat(looked) => {
            let report = store::verify(&looked.dir)?;
            print_report(&looked, &report)?;
            Ok(ExitCode::SUCCESS)
        }
        LogCommand::Show(show_args) => show(show_args),
        LogCommand::Verify(looked) => {
            let report = store::verify(&looked.dir)?;
            match (&report.end, looked.json) {
                (_, true) => print_report(&looked, &report)?,
                (LogEnd::Whole(_), false) => {
                    let increments = match report.increments {
                        0 => String::new(),
                        increments => format!(" and {increments} increments"),
                    };
                    println!(
                        "whole: {} batches{increments} in {} segments",
                        report.batches,
                        report.segments.len()
                    );
                }
                (LogEnd::Damaged(error), false) => {
                    println!("readable up to batch {} ({})", report.batches, moment(report.last.moment));
                    eprintln!("secondwind: {error}");
                }
            }
            Ok(if report.end.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

fn print_report(looked: &Looked, report: &Report) -> Result<()> {
    let fields = stat_json(&looked.dir, report);
    if looked.json {
        println!("{}", serde_json::to_string_pretty(&fields)?);
        return Ok(());
    }
    for (name, value) in fields.as_object().into_iter().flatten() {
        match value {
            Value::Object(counts) => {
                println!("{}", name.replace('_', " "));
                counts.iter().for_each(|(name, value)| println!("  {:<26} {value}", name.replace('_', " ")));
            }
            Value::String(text) => println!("{:<28} {text}", name.replace('_', " ")),
            value => println!("{:<28} {value}", name.replace('_', " ")),
        }
    }
    Ok(())
}

fn stat_json(dir: &Path, report: &Report) -> Value {
    let events = &report.events;
    let seconds = report.last.moment.time_ns.saturating_sub(report.first.moment.time_ns) as f64 / 1e9;
    let end = match &report.end {
        LogEnd::Whole(ending) => format!("whole ({ending:?})").to_lowercase(),
        LogEnd::Damaged(error) => format!("damaged: {error}"),
    };
    json!({
        "directory": dir.display().to_string(),
        "machine": report.header.vm,
        "semantics": report.header.identity.semantics,
        "segments": report.segments.len(),
        "batches": report.batches,
        "bytes": report.batch_bytes,
        "increments": report.increments,
        "increment_bytes": report.increment_bytes,
        "instructions": report.last.moment.icount,
        "guest_seconds": seconds,
        "bytes_per_guest_second": if seconds > 0.0 { report.batch_bytes as f64 / seconds } else { 0.0 },
        "digests": report.digests,
        "outputs": report.outputs,
        "events": {
            "network_in": events.network_in,
            "network_in_bytes": events.network_in_bytes,
            "console_in": events.console_in,
            "clock_advances": events.clock_advances,
            "clock_advanced_ns": events.clock_advance_ns,
            "entropy": events.entropy,
            "wall_clock": events.wall_clock,
            "control": events.control,
        },
        "end": end,
    })
}

fn show(args: ShowArgs) -> Result<ExitCode> {
    let mut reader = LogReader::open(&args.looked.dir)?;
    let mut chosen = std::collections::VecDeque::new();
    let mut failed = None;
    while let Some(entry) = reader.next_entry() {
        match entry {
            Ok(entry) if (args.from..=args.to).contains(&end_of(&entry).icount) => match args.last {
                None => show_entry(&entry, args.looked.json)?,
                Some(last) => {
                    chosen.push_back(entry);
                    if chosen.len() > last {
                        chosen.pop_front();
                    }
                }
            },
            Ok(_) => {}
            Err(error) => failed = Some(error),
        }
    }
    for entry in &chosen {
        show_entry(entry, args.looked.json)?;
    }
    failed.map_or(Ok(ExitCode::SUCCESS), |error| Err(error.into()))
}

fn end_of(entry: &LogEntry) -> Moment {
    match entry {
        LogEntry::Batch(batch) => batch.end,
        LogEntry::Increment(whole) => whole.start.head.moment,
    }
}

fn show_entry(entry: &LogEntry, as_json: bool) -> Result<()> {
    let whole = match entry {
        LogEntry::Batch(batch) => return show_batch(batch, as_json),
        LogEntry::Increment(whole) => whole,
    };
    let (from, to, end) = (whole.start.base, whole.sequence(), end_of(entry));
    let units: usize = whole.parts.iter().map(|part| part.pages.len() + part.blocks.len()).sum();
    match as_json {
        true => println!(
            "{}",
            json!({
                "increment": to, "base": from, "term": whole.start.position.term,
                "end_icount": end.icount, "end_time_ns": end.time_ns,
                "units": units, "digest": whole.end.digest.to_string(),
            })
        ),
        false => println!(
            "increment from batch {from} to {to} term {} up to {}: {units} pages and blocks, digest {}",
            whole.start.position.term,
            moment(end),
            whole.end.digest
        ),
    }
    Ok(())
}

fn show_batch(batch: &Batch, as_json: bool) -> Result<()> {
    if as_json {
        let events: Vec<Value> = batch
            .events
            .iter()
            .map(|event| json!({ "icount": event.at.icount, "time_ns": event.at.time_ns, "event": describe(&event.event) }))
            .collect();
        let digests: Vec<Value> = batch
            .digests
            .iter()
            .map(|digest| json!({ "icount": digest.at.icount, "digest": digest.digest.to_string() }))
            .collect();
        let line = json!({
            "batch": batch.sequence, "term": batch.term,
            "end_icount": batch.end.icount, "end_time_ns": batch.end.time_ns,
            "first_output": batch.first_output, "output_hashes": batch.output_hashes,
            "events": events, "digests": digests,
        });
        println!("{line}");
        return Ok(());
    }
    println!("batch {} term {} up to {}", batch.sequence, batch.term, moment(batch.end));
    for event in &batch.events {
        println!("  {}  {}", moment(event.at), describe(&event.event));
    }
    for digest in &batch.digests {
        println!("  {}  digest {}", moment(digest.at), digest.digest);
    }
    for (number, hash) in (batch.first_output..).zip(&batch.output_hashes) {
        println!("  output {number} has hash {hash:08x}");
    }
    Ok(())
}

/// A moment, for people.
pub fn moment(at: Moment) -> String {
    format!("icount {} at {:.6} s", at.icount, at.time_ns as f64 / 1e9)
}

/// An event in a few words.
pub fn describe(event: &Event) -> String {
    match event {
        Event::NetworkIn { port, frame } => format!("network {port}: frame of {} bytes", frame.len()),
        Event::ConsoleIn(bytes) => format!("console: {:?}", String::from_utf8_lossy(bytes)),
        Event::ClockAdvance { delta_ns } => format!("clock advance by {delta_ns} ns"),
        Event::Entropy(seed) => format!("entropy seed of {} bytes", seed.len()),
        Event::WallClock { unix_ns } => format!("wall clock {unix_ns} ns since 1970"),
        Event::Control(control) => format!("control {control:?}"),
    }
}
