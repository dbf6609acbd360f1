//! `secondwind status` and `secondwind takeover`: talk to running agents.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::control::{self, Request};

/// Shows what agents on this host are doing.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  secondwind status                              all agents of this user on this host
  secondwind status --json                       the same for programs
  secondwind status --control /run/vm1.sock      one agent")]
pub struct StatusArgs {
    /// Control socket of one agent [default: all in the runtime folder]
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Gives the operator's word: this side is, or becomes, the one live machine.
///
/// Needed only with `--arbiter manual`. Say it to one side only, and only when the other
/// side is known to be stopped or cut off for good.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  secondwind takeover --control /run/secondwind/vm-b.sock    the backup b goes live")]
pub struct TakeoverArgs {
    /// Control socket of the agent [default: the only one in the runtime folder]
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
}

/// Ends a machine that runs on this host, as Ctrl-C does.
#[derive(clap::Args)]
#[command(after_help = "\
The guest is not asked: to it, the power fails. `secondwind checkpoint VM FILE --stop` keeps its state.

Examples:
  secondwind stop          the only machine that runs here
  secondwind stop db       the machine called db")]
pub struct StopArgs {
    /// Name or control socket of the machine [default: the only one of this user on this host]
    vm: Option<PathBuf>,
}

/// Runs `secondwind stop`.
pub fn stop(args: StopArgs) -> Result<()> {
    control::ask(&control::find_socket(args.vm.as_deref())?, Request::Stop)?;
    Ok(())
}

/// Runs `secondwind status`.
pub fn status(args: StatusArgs) -> Result<()> {
    let sockets = args.control.map_or_else(control::known_sockets, |socket| vec![socket]);
    if sockets.is_empty() {
        bail!("no agent of this user runs on this host; start one, or name its socket with --control");
    }
    let mut answers = Vec::new();
    let mut failed = None;
    for socket in sockets {
        match control::ask(&socket, Request::Status) {
            Ok(answer) => answers.push(answer),
            Err(error) => failed = Some(error),
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&answers)?);
    } else {
        answers.iter().for_each(print);
    }
    failed.map_or(Ok(()), Err)
}

/// Prints the fields of an answer, nested ones indented.
fn print(answer: &Value) {
    println!("{} {} on {}", text(&answer["role"]), text(&answer["name"]), text(&answer["node"]));
    // The first of `backups` is there under its old name too.
    print_fields(answer, &["role", "name", "node", "backup"]);
}

/// Prints the fields of an object but those of these names.
pub fn print_fields(object: &Value, but: &[&str]) {
    for (key, value) in object.as_object().into_iter().flatten() {
        if !but.contains(&key.as_str()) {
            print_field(1, key, value);
        }
    }
}

fn print_field(depth: usize, key: &str, value: &Value) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            println!("{indent}{}", key.replace('_', " "));
            fields.iter().for_each(|(key, value)| print_field(depth + 1, key, value));
        }
        Value::Array(values) => {
            values.iter().enumerate().for_each(|(index, value)| {
                print_field(depth, &format!("{key} {index}"), value);
            });
        }
        value => {
            let width = 30usize.saturating_sub(indent.len());
            println!("{indent}{:<width$} {}", key.replace('_', " "), text(value));
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// Runs `secondwind takeover`.
pub fn takeover(args: TakeoverArgs) -> Result<()> {
    let socket = match args.control {
        Some(socket) => socket,
        None => match control::known_sockets().as_slice() {
            [only] => only.clone(),
            [] => bail!("no agent of this user runs on this host; name its socket with --control"),
            several => bail!("{} agents run on this host; say which with --control", several.len()),
        },
    };
    control::ask(&socket, Request::Takeover)?;
    println!("told the agent at {}; see secondwind status", socket.display());
    Ok(())
}
