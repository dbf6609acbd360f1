//! `secondwind switchover` and `secondwind migrate`: another node goes on with a machine, by plan.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;

use crate::control::{self, Request, TransferRequest};

/// Hands a machine to a backup of it, without loss; the primary becomes a backup of that one.
///
/// The backup must be registered and in step. If it does not take over in time, the primary goes on
/// as before, and the command fails.
#[derive(clap::Args)]
#[command(after_help = "\
Exit status: 0 when the backup runs the machine, 1 when the primary still does.

Examples:
  secondwind switchover                the only machine that runs here, to any of its backups
  secondwind switchover db --to b      the machine called db, to node b
  secondwind switchover db --json      the result for programs")]
pub struct SwitchoverArgs {
    /// Name or control socket of the machine [default: the only one of this user on this host]
    vm: Option<PathBuf>,
    /// The backup that takes over [default: any that could]
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Moves a running machine to another node, and ends here.
///
/// On the other node, `secondwind backup` (or `agent`) with this node's address must be running. It
/// joins by a copy-on-write checkpoint while the guest runs on, comes into step with the log, and takes
/// over when next to nothing is left. Ctrl-C, or any failure, before that leaves the machine running here.
#[derive(clap::Args)]
#[command(after_help = "\
Exit status: 0 when the other node runs the machine, 1 when this one still does.

Examples:
  secondwind backup --primary host-a:7420 ...    on host-b, node b; then, on host-a:
  secondwind migrate db --to b
  secondwind migrate db --to b --keep-source     and host-a goes on as a backup of it
  secondwind migrate db --to b --json")]
pub struct MigrateArgs {
    /// Name or control socket of the machine [default: the only one of this user on this host]
    vm: Option<PathBuf>,
    /// The node to move it to
    #[arg(long, value_name = "NODE")]
    to: String,
    /// Go on as a backup of the new primary, which takes knowing it (--peer), instead of ending
    #[arg(long)]
    keep_source: bool,
    /// How long the other node may take until it asks to join, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    join_within: f64,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs `secondwind switchover`.
pub fn switchover(args: &SwitchoverArgs) -> Result<()> {
    let request = TransferRequest { to: args.to.clone(), join_within_ms: None, keep_source: true };
    transfer(args.vm.as_deref(), request, "switched over", args.json)
}

/// Runs `secondwind migrate`.
pub fn migrate(args: &MigrateArgs) -> Result<()> {
    let request = TransferRequest {
        to: Some(args.to.clone()),
        join_within_ms: Some((args.join_within.clamp(0.0, 1e9) * 1000.0) as u64),
        keep_source: args.keep_source,
    };
    transfer(args.vm.as_deref(), request, "migrated", args.json)
}

fn transfer(vm: Option<&Path>, request: TransferRequest, done: &str, json: bool) -> Result<()> {
    let socket = control::find_socket(vm)?;
    let live = std::io::stderr().is_terminal();
    let result = control::ask_and_wait(&socket, &Request::Transfer(request), |progress| {
        if live {
            eprint!("\r\x1b[K{}", describe_progress(progress));
            let _ = std::io::stderr().flush();
        }
    });
    if live {
        eprint!("\r\x1b[K");
    }
    let result = result?;
    if json {
        println!("{}", serde_json::to_string_pretty(&result)?);
        return Ok(());
    }
    let number = |key: &str| result[key].as_f64();
    let downtime = number("downtime_ms").map_or("unknown".to_owned(), |ms| format!("{ms:.1} ms"));
    println!(
        "{} {done} to {} in {:.2} s: downtime {downtime}, {:.1} MB sent",
        result["vm"].as_str().unwrap_or_default(),
        result["to"].as_str().unwrap_or_default(),
        number("total_ms").unwrap_or_default() / 1e3,
        number("sent_bytes").unwrap_or_default() / 1e6,
    );
    Ok(())
}

fn describe_progress(progress: &Value) -> String {
    let number = |key: &str| progress[key].as_f64().unwrap_or_default();
    format!(
        "{}, {:.1} s, {:.1} MB sent",
        progress["phase"].as_str().unwrap_or_default(),
        number("total_ms") / 1e3,
        number("sent_bytes") / 1e6
    )
}
