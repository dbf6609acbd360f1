//! `secondwind debug`: a recording under gdb, forth and back.
//!
//! gdb speaks its remote protocol over TCP; every hart is a thread. Nothing executes but the
//! replay: a recording is never changed, so registers and memory can be read and not written.

mod monitor;
mod registers;
mod target;

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};

use anyhow::{Context, Result, bail};
use gdbstub::stub::{DisconnectReason, GdbStub};
use machine::Engine;

use crate::history::{DEFAULT_SNAPSHOT_BYTES, History};
use crate::options::parse_size_bytes;
use crate::recording::Recording;
use target::{DebugTarget, EventLoop};

/// Where gdb is told to connect to unless somebody says otherwise.
const DEFAULT_LISTEN: &str = "127.0.0.1:1234";
/// The gdb that is started unless somebody says otherwise.
const DEFAULT_GDB: &str = "gdb-multiarch";

/// Opens a recording for gdb, which can go back in it.
///
/// gdb reverse-steps and reverse-continues by replay from the nearest snapshot. What is
/// recorded does not change: registers and memory cannot be written.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  secondwind debug /tmp/rec --gdb --symbols vmlinux      starts gdb, connected
  secondwind debug /tmp/rec                              waits for a gdb on 127.0.0.1:1234
  secondwind debug /tmp/rec --gdb=riscv64-unknown-elf-gdb

In gdb: break, watch, continue, stepi, reverse-continue, reverse-stepi, info threads (the harts),
info registers csr, and `monitor help`: where one stands, goto, events, the console.")]
pub struct DebugArgs {
    /// Folder of the recording
    dir: PathBuf,
    /// Address to wait for gdb at; whoever reaches it can read the guest's memory
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "gdb")]
    listen: Option<SocketAddr>,
    /// Start this gdb, connected [default program: gdb-multiarch]
    #[arg(long, value_name = "GDB", num_args = 0..=1, require_equals = true, default_missing_value = DEFAULT_GDB)]
    gdb: Option<PathBuf>,
    /// ELF file with symbols: the guest's kernel (vmlinux) or program
    #[arg(long, value_name = "ELF")]
    symbols: Option<PathBuf>,
    /// Secret key, where the recording is of a machine restored from an encrypted checkpoint
    #[arg(long, value_name = "FILE")]
    decrypt: Option<PathBuf>,
    /// What executes the guest: interpreter, translator (to x86-64 code) or auto, the faster one
    #[arg(long, value_name = "ENGINE", default_value_t)]
    engine: Engine,
    /// Memory that snapshots may take, which make the way back short
    #[arg(long, value_name = "SIZE")]
    snapshot_memory: Option<String>,
}

/// Runs `secondwind debug`.
pub fn debug(args: DebugArgs) -> Result<ExitCode> {
    if let Some(symbols) = args.symbols.as_ref().filter(|symbols| !symbols.is_file()) {
        bail!("there is no file {}; give --symbols an ELF file", symbols.display());
    }
    let snapshot_bytes = args.snapshot_memory.as_deref().map(parse_size_bytes).transpose();
    let snapshot_bytes = snapshot_bytes.context("--snapshot-memory")?.unwrap_or(DEFAULT_SNAPSHOT_BYTES);
    let secret = crate::checkpoint::keys::secret_key(args.decrypt.as_deref())?;
    let mut recording = Recording::open(&args.dir, secret.as_ref())?;
    recording.replayer.machine_mut().set_engine(args.engine);
    let history = History::new(recording, snapshot_bytes);
    let mut target = DebugTarget::new(history)?;
    match &args.gdb {
        Some(gdb) => with_gdb(&mut target, gdb, args.symbols.as_deref()),
        None => {
            let default = DEFAULT_LISTEN.parse().expect("an address");
            wait_for_gdb(&mut target, args.listen.unwrap_or(default), args.symbols.as_deref())
        }
    }
}

fn wait_for_gdb(target: &mut DebugTarget, listen: SocketAddr, symbols: Option<&Path>) -> Result<ExitCode> {
    let listener = TcpListener::bind(listen)
        .with_context(|| format!("cannot listen on {listen}; choose another --listen ADDRESS:PORT"))?;
    let address = listener.local_addr()?;
    let words: Vec<String> = gdb_arguments(address, symbols).iter().map(|word| quoted(word)).collect();
    eprintln!("waiting for gdb on {address}; connect with\n  {DEFAULT_GDB} {}", words.join(" "));
    let (connection, _) = listener.accept()?;
    serve(target, connection)?;
    Ok(ExitCode::SUCCESS)
}

fn with_gdb(target: &mut DebugTarget, gdb: &Path, symbols: Option<&Path>) -> Result<ExitCode> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    // Ctrl-C on the terminal is gdb's, which then asks for an interrupt.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _ignored = {
        let _context = runtime.enter();
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?
    };
    let mut script = tempfile::Builder::new().suffix(".gdb").tempfile()?;
    script.write_all(monitor::GDB_COMMANDS.as_bytes())?;
    let mut child = Command::new(gdb)
        .args(["-q", "-x"])
        .arg(script.path())
        .args(gdb_arguments(listener.local_addr()?, symbols))
        .spawn()
        .with_context(|| {
            format!("cannot start {}; install gdb-multiarch, or name a gdb with --gdb=GDB", gdb.display())
        })?;
    if let Some(connection) = accept_from(&listener, &mut child)? {
        serve(target, connection)?;
    }
    let status = child.wait()?;
    Ok(ExitCode::from(status.code().map_or(1, |code| code.clamp(0, 255) as u8)))
}

/// The connection of a gdb that was started; `None` when it ended without one.
fn accept_from(listener: &TcpListener, child: &mut Child) -> Result<Option<TcpStream>> {
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((connection, _)) => {
                connection.set_nonblocking(false)?;
                return Ok(Some(connection));
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if child.try_wait()?.is_some() {
                    return Ok(None);
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn gdb_arguments(address: SocketAddr, symbols: Option<&Path>) -> Vec<String> {
    // A `monitor goto` may replay for minutes before it answers.
    let remote = format!("target remote {address}");
    let commands = ["set architecture riscv:rv64", "set remotetimeout 3600", &remote].map(str::to_owned);
    let commands = commands.into_iter().flat_map(|command| ["-ex".to_owned(), command]);
    commands.chain(symbols.map(|symbols| symbols.display().to_string())).collect()
}

fn quoted(word: &str) -> String {
    if word.contains(' ') { format!("'{word}'") } else { word.to_owned() }
}

/// Serves one gdb until it detaches, kills, or goes away.
fn serve(target: &mut DebugTarget, connection: TcpStream) -> Result<()> {
    let stub = GdbStub::new(connection);
    match stub.run_blocking::<EventLoop>(target) {
        Ok(DisconnectReason::Disconnect | DisconnectReason::Kill) => Ok(()),
        Ok(DisconnectReason::TargetExited(_) | DisconnectReason::TargetTerminated(_)) => Ok(()),
        Err(error) if error.is_target_error() => {
            Err(error.into_target_error().unwrap_or_else(|| anyhow::anyhow!("the replay failed")))
        }
        // gdb is gone: that is an end like another.
        Err(error) if error.is_connection_error() => Ok(()),
        Err(error) => Err(anyhow::anyhow!("gdb and this program do not understand each other: {error}")),
    }
}
