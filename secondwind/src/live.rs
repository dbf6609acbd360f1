//! `secondwind run` and `secondwind record`: a machine live on this host, unprotected.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use log_format::{ChainHash, Event, LoggedOutput, Output, Position, SegmentHeader};
use machine::{Machine, RiscvMachine};
use netbuf::{PortId, PortSender, VmId};
use primary::{Batcher, Recorded, Recorder, RecorderConfig, Step};
use serde_json::json;
use store::{LogOptions, LogWriter};

use crate::bare::{self, BareArgs};
use crate::console::{Console, Keys};
use crate::disk::{DiskMode, DiskSpec};
use crate::options::VmOptions;
use crate::vm::Vm;

/// Runs a machine on this host, unprotected.
///
/// The guest's console is on the terminal: Ctrl-A x ends the machine, Ctrl-A a sends a
/// Ctrl-A. The exit status is the guest's.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  secondwind run --guest ledger --forward 7000:7000
  secondwind run --guest debian --append secondwind.run=shell
  secondwind run --kernel Image --initrd initramfs.cpio.gz --append 'console=ttyS0' --memory 1G
  secondwind run --kernel Image --disk root.qcow2,serial=root --disk data.img,format=raw
  secondwind run --kernel Image --disk root.qcow2,overlay=mine.qcow2    root.qcow2 stays as it is
  secondwind run --guest debian-disk --append secondwind.run=sqlite:4
  secondwind run --kernel test.elf          a bare M-mode program that ends through tohost
  secondwind run --kernel test.elf --signature test.signature --max-instructions 100000000")]
pub struct RunArgs {
    #[command(flatten)]
    vm: VmOptions,
    #[command(flatten)]
    live: LiveArgs,
    #[command(flatten)]
    bare: BareArgs,
}

/// Runs a machine and records all its inputs, so that `secondwind replay` can do it again.
#[derive(clap::Args)]
#[command(after_help = "\
The folder keeps the log and the boot images. Disk images are not copied: what the guest writes
goes to an overlay that ends with the run, and a replay needs the images as they were.

Examples:
  secondwind record /tmp/rec --guest debian --forward 6379:6379
  secondwind record /tmp/rec --guest ledger --for 10")]
pub struct RecordArgs {
    /// Folder to record into; it must not hold a recording yet
    dir: PathBuf,
    #[command(flatten)]
    vm: VmOptions,
    #[command(flatten)]
    live: LiveArgs,
    /// Take no digest but the last: to measure what they cost. A replay compares outputs alone
    #[arg(long)]
    no_digests: bool,
}

#[derive(clap::Args)]
pub struct LiveArgs {
    /// End the machine after this many seconds
    #[arg(long = "for", value_name = "SECONDS")]
    pub seconds: Option<f64>,
    /// Write figures of the run to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// What the machine's thread is told.
enum Input {
    Event(Event),
    Stop,
}

/// Recorded stretches that wait for the disk before the machine waits for them.
const WAITING_STRETCHES: usize = 1024;
/// A batch is closed at this size, or when its oldest stretch is this old.
const BATCH_BYTES: u64 = 64 << 10;
const BATCH_AGE_NS: u64 = 500_000_000;
/// Recorded stretches without outputs are handed to the log this often.
const HAND_ON_INTERVAL_NS: u64 = 50_000_000;
/// The name of a machine that has no other.
const NAME: &str = "vm";

/// Runs `secondwind run`.
pub fn run(args: RunArgs) -> Result<ExitCode> {
    if args.bare.are_given() {
        return bare::run(&args.bare, &args.vm, &args.live, NAME);
    }
    let vm = Vm::from_options(&args.vm, NAME)?;
    let machine = vm.build(DiskMode::Direct)?;
    go_live(&vm, machine, None, recorder_config(false), &args.live)
}

/// Runs `secondwind record`.
pub fn record(args: RecordArgs) -> Result<ExitCode> {
    let vm = Vm::from_options(&args.vm, NAME)?;
    let machine = vm.build(DiskMode::Overlay)?;
    let writer = begin_recording(&args.dir, &vm, &machine)?;
    go_live(&vm, machine, Some(writer), recorder_config(!args.no_digests), &args.live)
}

fn begin_recording(dir: &Path, vm: &Vm, machine: &RiscvMachine) -> Result<LogWriter> {
    let is_new = !dir.exists();
    let header = |boot| SegmentHeader::at_boot(NAME.to_owned(), machine.identity(), 0, boot);
    // The log first: it refuses a folder that holds one, before any image is overwritten.
    let recipe = vm.recipe()?;
    let writer = LogWriter::create(dir, header(recipe), LogOptions::default())?;
    if let Err(error) = vm.save_images(dir) {
        drop(writer);
        if is_new {
            // Nothing half-done stays behind; the error says why.
            let _ = std::fs::remove_dir_all(dir);
        }
        return Err(error);
    }
    Ok(writer)
}

fn go_live(
    vm: &Vm,
    machine: RiscvMachine,
    writer: Option<LogWriter>,
    config: RecorderConfig,
    args: &LiveArgs,
) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (inputs, received) = channel();
    let ports = runtime.block_on(open_ports(vm, &inputs))?;
    let console = Console::open();
    read_keys(&console, &inputs)?;
    stop_on_signal(&runtime, &inputs)?;

    let identity = machine.identity();
    let recording =
        writer.map(|writer| Recording::start(writer, ChainHash::genesis(&identity))).transpose()?;
    let (disks, console_out) = (vm.disks.clone(), std::io::stdout());
    let mut live = Live { ports, recording, config, disks, console_out, epoch: Instant::now() };
    let cpu_before_s = cpu_seconds();
    let ended = live.run(machine, &received, args.seconds)?;
    let wall_s = live.epoch.elapsed().as_secs_f64();
    drop(console);
    let log_bytes = live.recording.take().map(Recording::finish).transpose()?;
    if let Some(path) = &args.report {
        let report = json!({
            "instructions": ended.instructions, "guest_ns": ended.guest_ns, "wall_s": wall_s,
            "cpu_s": cpu_seconds() - cpu_before_s, "guest_exit": ended.code, "log_bytes": log_bytes,
        });
        std::fs::write(path, format!("{report}\n"))
            .with_context(|| format!("cannot write the report to {}", path.display()))?;
    }
    Ok(ended.code.map_or(ExitCode::SUCCESS, |code| ExitCode::from(code.min(255) as u8)))
}

async fn open_ports(vm: &Vm, inputs: &Sender<Input>) -> Result<Vec<PortSender>> {
    let mut senders = Vec::new();
    for (port, spec) in vm.nets.iter().enumerate() {
        let number = u8::try_from(port).context("too many network ports")?;
        let handle = netbuf::port::open(spec, PortId { vm: VmId::from_name(NAME), port: number }, 1).await?;
        let (sender, mut incoming) = handle.split();
        sender.set_live(true)?;
        senders.push(sender);
        let inputs = inputs.clone();
        tokio::spawn(async move {
            while let Some(frame) = incoming.recv().await {
                if inputs.send(Input::Event(Event::NetworkIn { port: number, frame })).is_err() {
                    break;
                }
            }
        });
    }
    Ok(senders)
}

/// Carries what is typed to the machine, on a thread that ends with the process.
fn read_keys(console: &Console, inputs: &Sender<Input>) -> Result<()> {
    let (mut keys, inputs) = (console.keys(), inputs.clone());
    std::thread::Builder::new().name("console".into()).spawn(move || {
        loop {
            let input = match keys.read() {
                Keys::Bytes(bytes) => Input::Event(Event::ConsoleIn(Bytes::from(bytes))),
                Keys::Quit => Input::Stop,
                Keys::Closed => return,
            };
            if inputs.send(input).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

fn stop_on_signal(runtime: &tokio::runtime::Runtime, inputs: &Sender<Input>) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let _context = runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let (mut signals, inputs) = (signal(kind)?, inputs.clone());
        runtime.spawn(async move {
            while signals.recv().await.is_some() {
                // The machine's thread may be gone already.
                let _ = inputs.send(Input::Stop);
            }
        });
    }
    Ok(())
}

/// The machine's own loop, on the thread that calls it.
struct Live {
    ports: Vec<PortSender>,
    recording: Option<Recording>,
    config: RecorderConfig,
    disks: Vec<DiskSpec>,
    console_out: std::io::Stdout,
    epoch: Instant,
}

/// How a run ended.
struct Ended {
    instructions: u64,
    guest_ns: u64,
    /// The guest's exit status, unless it was stopped from outside.
    code: Option<u32>,
}

impl Live {
    fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    fn run(
        &mut self,
        machine: RiscvMachine,
        inputs: &Receiver<Input>,
        seconds: Option<f64>,
    ) -> Result<Ended> {
        let seed = crate::vm::entropy_seed()?;
        // Guest time begins where the wall clock is read, with nothing between.
        let mut recorder = Recorder::new(machine, self.config, 0, self.now_ns());
        recorder.handle_input(Event::WallClock { unix_ns: crate::vm::unix_ns() }, self.now_ns());
        recorder.handle_input(Event::Entropy(seed), self.now_ns());
        let end_ns = seconds.map(|seconds| (seconds.max(0.0) * 1e9) as u64);
        let code = loop {
            let now_ns = self.now_ns();
            if end_ns.is_some_and(|end_ns| now_ns >= end_ns) {
                break None;
            }
            match recorder.step(now_ns) {
                Step::Continue | Step::Stalled => {
                    let recorded = recorder.poll_recorded(now_ns);
                    self.hand_on(recorded)?;
                    if drain(&mut recorder, inputs, now_ns) {
                        break None;
                    }
                }
                Step::Sleep { until_ns } => {
                    let recorded = recorder.take_recorded(now_ns);
                    self.hand_on(recorded)?;
                    let until_ns = [until_ns, end_ns].into_iter().flatten().min();
                    match wait(inputs, until_ns.map(|until_ns| until_ns.saturating_sub(now_ns))) {
                        Some(Input::Stop) => break None,
                        Some(Input::Event(event)) => recorder.handle_input(event, self.now_ns()),
                        None => {}
                    }
                }
                Step::Halted { code } => break Some(code),
                Step::HostFault { disk } => bail!(
                    "disk {disk} ({}) could not be read or written: {}; see to it and start again",
                    self.disks[usize::from(disk)].path.display(),
                    recorder.machine().host_fault().unwrap_or("the host does not say why"),
                ),
            }
        };
        if self.recording.is_some() {
            recorder.record_digest();
        }
        let now_ns = self.now_ns();
        let last = recorder.take_recorded(now_ns);
        self.hand_on(last)?;
        let moment = recorder.moment();
        Ok(Ended { instructions: moment.icount, guest_ns: moment.time_ns, code })
    }

    /// Sends outputs on their way, and the rest to the log.
    fn hand_on(&mut self, recorded: Option<Recorded>) -> Result<()> {
        let Some(recorded) = recorded else { return Ok(()) };
        recorded.outputs.iter().for_each(|output| self.release(output));
        match &self.recording {
            Some(recording) => recording.push(recorded),
            None => Ok(()),
        }
    }

    fn release(&mut self, output: &LoggedOutput) {
        match &output.output {
            Output::Frame { port, frame } => {
                if let Some(port) = self.ports.get(usize::from(*port)) {
                    port.send(frame.clone());
                }
            }
            Output::Console(bytes) => {
                // A closed terminal does not stop the machine.
                let _ = self.console_out.write_all(bytes).and_then(|()| self.console_out.flush());
            }
        }
    }
}

/// Nobody waits for the log of a recording: it is handed on in large pieces. A machine that
/// is not recorded needs no digests.
fn recorder_config(with_digests: bool) -> RecorderConfig {
    let recorded = RecorderConfig { hand_on_interval_ns: HAND_ON_INTERVAL_NS, ..RecorderConfig::default() };
    if with_digests {
        return recorded;
    }
    RecorderConfig { digest_interval_instructions: u64::MAX, digest_interval_ns: u64::MAX, ..recorded }
}

/// Injects what has come. Whether the machine is to stop.
fn drain(recorder: &mut Recorder<RiscvMachine>, inputs: &Receiver<Input>, now_ns: u64) -> bool {
    while let Ok(input) = inputs.try_recv() {
        match input {
            Input::Event(event) => recorder.handle_input(event, now_ns),
            Input::Stop => return true,
        }
    }
    false
}

fn wait(inputs: &Receiver<Input>, at_most_ns: Option<u64>) -> Option<Input> {
    match at_most_ns {
        None => inputs.recv().ok(),
        Some(at_most_ns) => inputs.recv_timeout(Duration::from_nanos(at_most_ns)).ok(),
    }
}

/// Writes the log on a thread of its own.
struct Recording {
    stretches: SyncSender<Recorded>,
    writer: std::thread::JoinHandle<Result<u64>>,
}

impl Recording {
    fn start(writer: LogWriter, chain: ChainHash) -> Result<Recording> {
        let (stretches, received) = sync_channel(WAITING_STRETCHES);
        let thread = std::thread::Builder::new().name("log".into());
        let writer = thread.spawn(move || write_log(writer, chain, &received))?;
        Ok(Recording { stretches, writer })
    }

    fn push(&self, recorded: Recorded) -> Result<()> {
        // The writer ends early only with an error, which `finish` gives.
        self.stretches.send(recorded).ok().context("the log could not be written")
    }

    /// Waits until all is on disk. Bytes of the log.
    fn finish(self) -> Result<u64> {
        drop(self.stretches);
        self.writer.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the log's writer failed")))
    }
}

fn write_log(mut writer: LogWriter, chain: ChainHash, stretches: &Receiver<Recorded>) -> Result<u64> {
    let epoch = Instant::now();
    let mut batcher = Batcher::new(Position::default(), chain, 0);
    let mut bytes = 0;
    let mut seal = |batcher: &mut Batcher, writer: &mut LogWriter| -> Result<()> {
        let batch = batcher.seal(batcher.outputs());
        bytes += batch.bytes().len() as u64;
        Ok(writer.append(&batch)?)
    };
    while let Ok(recorded) = stretches.recv() {
        let now_ns = epoch.elapsed().as_nanos() as u64;
        batcher.push(recorded, now_ns);
        let old =
            batcher.opened_at_ns().is_some_and(|opened_ns| now_ns.saturating_sub(opened_ns) >= BATCH_AGE_NS);
        if batcher.open_bytes() >= BATCH_BYTES || old {
            seal(&mut batcher, &mut writer)?;
        }
    }
    if !batcher.is_empty() {
        seal(&mut batcher, &mut writer)?;
    }
    writer.finish()?;
    Ok(bytes)
}

/// Processor time of this process so far.
fn cpu_seconds() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return 0.0 };
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}
