//! The command line: a thin shell over the crates that do the work.
//!
//! Exit status: 0 success, 1 an error (one line on standard error), 2 wrong usage, 3 a
//! divergence was found, 4 fenced: another machine took over. `run`, `record` and `replay`
//! give the guest's own exit status where it has one.

mod control;
mod drill;
mod options;
mod status;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Keeps a virtual machine running when the host under it dies.
#[derive(Parser)]
#[command(version, propagate_version = true, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "\
Examples:
  secondwind drill                                    kill a host and watch the VM survive
  secondwind run --guest ledger --forward 7000:7000   run a guest, unprotected
  secondwind record /tmp/rec --guest ledger           record every input of a run ...
  secondwind replay /tmp/rec                          ... and do it again, bit for bit")]
struct Cli {
    /// More messages: -v what happens, -vv why, -vvv everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Drill(drill::DrillArgs),
    Status(status::StatusArgs),
    Takeover(status::TakeoverArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Drill(args) => drill::drill(args),
        Command::Status(args) => status::status(args).map(|()| ExitCode::SUCCESS),
        Command::Takeover(args) => status::takeover(args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("secondwind: {error:#}");
        ExitCode::FAILURE
    })
}
