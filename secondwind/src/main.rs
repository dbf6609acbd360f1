//! The command line: a thin shell over the crates that do the work.
//!
//! Exit status: 0 success, 1 an error (one line on standard error), 2 wrong usage, 3 a
//! divergence was found, 4 fenced: another machine took over. `run`, `record` and `replay`
//! give the guest's own exit status where it has one; 124 says that a bare-metal program was
//! ended by a limit.

mod agent;
mod bare;
mod checkpoint;
mod console;
mod control;
mod debug;
mod diff;
mod disk;
mod drill;
mod history;
mod kept_image;
mod keygen;
mod live;
mod log;
mod options;
mod recording;
mod replay;
mod restore;
mod resume;
mod status;
mod switch;
mod transfer;
mod verify;
mod vm;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

/// Keeps a virtual machine running when the host under it dies.
#[derive(Parser)]
#[command(version, propagate_version = true, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "\
Examples:
  secondwind drill                                    kill a host and watch the VM survive
  secondwind run --guest ledger --forward 7000:7000   run a guest, unprotected
  secondwind record /tmp/rec --guest ledger           record every input of a run ...
  secondwind replay /tmp/rec                          ... and do it again, bit for bit
  secondwind checkpoint vm.swc                        a running machine's state as a file ...
  secondwind restore vm.swc                           ... and the machine goes on from it")]
struct Cli {
    /// More messages: -v what happens, -vv why, -vvv everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Primary(agent::PrimaryArgs),
    Backup(agent::BackupArgs),
    Agent(agent::AgentArgs),
    Drill(drill::DrillArgs),
    Run(live::RunArgs),
    Record(live::RecordArgs),
    Checkpoint(checkpoint::CheckpointArgs),
    Restore(restore::RestoreArgs),
    Replay(replay::ReplayArgs),
    Diff(diff::DiffArgs),
    Debug(debug::DebugArgs),
    Log(log::LogArgs),
    Switch(switch::SwitchArgs),
    Keygen(keygen::KeygenArgs),
    Status(status::StatusArgs),
    Takeover(status::TakeoverArgs),
    Switchover(transfer::SwitchoverArgs),
    Migrate(transfer::MigrateArgs),
    Stop(status::StopArgs),
    VerifyDisk(verify::VerifyDiskArgs),
}

/// How long this process runs.
fn process_age() -> Duration {
    static STARTED: OnceLock<Instant> = OnceLock::new();
    STARTED.get_or_init(Instant::now).elapsed()
}

/// Has large allocations (boot images, checkpoints) given back to the host when they are freed. By itself
/// glibc takes to keeping them after the first: 30 MiB for each machine.
///
/// And has all threads take small ones from the same arena. One of its own would grow page by page, with a
/// system call and a fault for each: on the way of every output of a protected machine. This one grows by
/// a little more than is asked for; with glibc's own 128 KiB an agent takes 1 MiB more.
fn set_up_allocator() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE_BYTES: libc::c_int = 256 << 10;
        const ARENAS: libc::c_int = 1;
        const GROWTH_BYTES: libc::c_int = 16 << 10;
        // SAFETY: called before any other thread is there; a value that is refused changes nothing.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
            libc::mallopt(libc::M_ARENA_MAX, ARENAS);
            libc::mallopt(libc::M_TOP_PAD, GROWTH_BYTES);
        }
    }
}

fn main() -> ExitCode {
    set_up_allocator();
    process_age();
    let cli = Cli::parse();
    trace_to_stderr(cli.verbose);
    let result = match cli.command {
        Command::Primary(args) => agent::primary(args),
        Command::Backup(args) => agent::backup(args),
        Command::Agent(args) => agent::agent(args),
        Command::Drill(args) => drill::drill(args),
        Command::Run(args) => live::run(args),
        Command::Record(args) => live::record(args),
        Command::Checkpoint(args) => checkpoint::checkpoint(&args).map(|()| ExitCode::SUCCESS),
        Command::Restore(args) => restore::restore(&args),
        Command::Replay(args) => replay::replay(args),
        Command::Diff(args) => diff::diff(args),
        Command::Debug(args) => debug::debug(args),
        Command::Log(args) => log::log(args),
        Command::Switch(args) => switch::switch(args).map(|()| ExitCode::SUCCESS),
        Command::Keygen(args) => keygen::keygen(args).map(|()| ExitCode::SUCCESS),
        Command::Status(args) => status::status(args).map(|()| ExitCode::SUCCESS),
        Command::Takeover(args) => status::takeover(args).map(|()| ExitCode::SUCCESS),
        Command::Switchover(args) => transfer::switchover(&args).map(|()| ExitCode::SUCCESS),
        Command::Migrate(args) => transfer::migrate(&args).map(|()| ExitCode::SUCCESS),
        Command::Stop(args) => status::stop(args).map(|()| ExitCode::SUCCESS),
        Command::VerifyDisk(args) => verify::verify_disk(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("secondwind: {}", one_line(&error));
        ExitCode::FAILURE
    })
}

/// The error with its causes, which must not repeat each other, on one line.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !line.contains(&cause) {
            let separator = if line.is_empty() { "" } else { ": " };
            line = format!("{line}{separator}{}", cause.replace('\n', " "));
        }
    }
    line
}

fn trace_to_stderr(verbose: u8) {
    use tracing_subscriber::EnvFilter;
    let default = ["warn", "info", "debug", "trace"][usize::from(verbose.min(3))];
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}
