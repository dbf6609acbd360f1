//! `secondwind run` and `secondwind record`: a machine live on this host, unprotected.

mod control;
pub mod log;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use link::clock::monotonic_ns;
use log_format::{Event, LoggedOutput, Output, SegmentHeader};
use machine::{Machine, RiscvMachine, Translation};
use netbuf::{PortId, PortSender, VmId};
use primary::{Advance, Recorded, Recorder, RecorderConfig, Snapshot, SnapshotOrder, Step};
use serde_json::json;
use store::{LogOptions, LogWriter};

use crate::bare::{self, BareArgs};
use crate::console::{Console, Keys};
use crate::disk::{self, DiskMode, DiskSpec};
use crate::options::VmOptions;
use crate::resume::{self, Origin, Resumption};
use crate::vm::Vm;
use control::LiveControl;
use log::{NewLog, Recording};

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

/// What `run`, `record` and `restore` have in common.
#[derive(clap::Args)]
pub struct LiveArgs {
    /// Name of the machine, for secondwind status and checkpoint [default: vm]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Socket on which `secondwind status` and `checkpoint` reach the machine
    /// [default: in the runtime folder, by name]
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
    /// End the machine after this many seconds
    #[arg(long = "for", value_name = "SECONDS")]
    pub seconds: Option<f64>,
    /// Write figures of the run to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// What the machine's thread is told.
pub enum Input {
    /// An input for the guest.
    Event(Event),
    /// The machine's state is wanted outside.
    Snapshot(SnapshotOrder),
    /// A guest that stands still at a snapshot goes on.
    Release,
    /// End.
    Stop,
}

/// A machine about to go live.
pub struct Start {
    /// What it is made of.
    pub vm: Vm,
    /// Its name.
    pub name: String,
    /// The command that runs it.
    pub role: &'static str,
    /// How its disks are written to.
    pub disks: DiskMode,
    /// The machine.
    pub machine: RiscvMachine,
    /// Whether it boots or goes on.
    pub origin: Origin,
    /// Events before, since boot.
    pub events_before: u64,
    /// Its log, if it is recorded.
    pub log: Option<NewLog>,
}

/// Recorded stretches without outputs are handed to the log this often.
const HAND_ON_INTERVAL_NS: u64 = 50_000_000;
/// The name of a machine that has no other.
pub const NAME: &str = "vm";
/// A snapshot's taker that is behind gets this long to catch up.
const TAKER_BEHIND_NS: u64 = 500_000;
/// How often what `secondwind status` shows is brought up to date.
const STATUS_INTERVAL_NS: u64 = 50_000_000;

/// Runs `secondwind run`.
pub fn run(args: RunArgs) -> Result<ExitCode> {
    if args.bare.are_given() {
        return bare::run(&args.bare, &args.vm, &args.live, NAME);
    }
    let name = args.live.name.clone().unwrap_or_else(|| NAME.to_owned());
    let vm = Vm::from_options(&args.vm, &name)?;
    let machine = vm.build(DiskMode::Direct)?;
    let disks = DiskMode::Direct;
    let origin = Origin::Boot;
    let start = Start { vm, name, role: "run", disks, machine, origin, events_before: 0, log: None };
    go_live(start, recorder_config(false), &args.live)
}

/// Runs `secondwind record`.
pub fn record(args: RecordArgs) -> Result<ExitCode> {
    let name = args.live.name.clone().unwrap_or_else(|| NAME.to_owned());
    let vm = Vm::from_options(&args.vm, &name)?;
    let disks = DiskMode::Overlay;
    let machine = vm.build(disks)?;
    let header = SegmentHeader::at_boot(name.clone(), machine.identity(), 0, vm.recipe()?);
    let log = Some(begin_recording(&args.dir, &vm, header, 0, |_| Ok(()))?);
    let origin = Origin::Boot;
    let start = Start { vm, name, role: "record", disks, machine, origin, events_before: 0, log };
    go_live(start, recorder_config(!args.no_digests), &args.live)
}

/// Makes the folder of a recording: its log, the boot images, and what `more` adds.
pub fn begin_recording(
    dir: &Path,
    vm: &Vm,
    header: SegmentHeader,
    outputs_before: u64,
    more: impl FnOnce(&Path) -> Result<()>,
) -> Result<NewLog> {
    let is_new = !dir.exists();
    let (position, chain) = (header.position, header.chain);
    // The log first: it refuses a folder that holds one, before any image is overwritten.
    let writer = LogWriter::create(dir, header, LogOptions::default())?;
    if let Err(error) = vm.save_images(dir).and_then(|()| more(dir)) {
        drop(writer);
        if is_new {
            // Nothing half-done stays behind; the error says why.
            let _ = std::fs::remove_dir_all(dir);
        }
        return Err(error);
    }
    Ok(NewLog { writer, position, chain, outputs_before })
}

/// Runs a machine live, to its end.
pub fn go_live(start: Start, config: RecorderConfig, args: &LiveArgs) -> Result<ExitCode> {
    let Start { vm, name, role, disks, mut machine, .. } = start;
    if args.report.is_some() {
        machine.time_translation(monotonic_ns);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (inputs, received) = channel();
    let ports = runtime.block_on(open_ports(&vm, &name, &inputs))?;
    let control = LiveControl::open(&runtime, args.control.as_deref(), &vm, &name, role, disks, &inputs)?;
    let console = Console::open();
    read_keys(&console, &inputs)?;
    stop_on_signal(&runtime, &inputs)?;

    let recording = start.log.map(Recording::start).transpose()?;
    let seed = crate::vm::entropy_seed()?;
    // Guest time begins where the wall clock is read, with nothing between.
    let Resumption { unix_ns, away_ns } = start.origin.resume_at(crate::vm::unix_ns());
    let now_ns = monotonic_ns();
    let mut recorder = Recorder::resume(machine, config, start.events_before, away_ns, now_ns);
    for event in resume::first_events(unix_ns, seed) {
        recorder.handle_input(event, now_ns);
    }
    let mut live = Live {
        ports,
        recording,
        disks: vm.disks.clone(),
        console_out: std::io::stdout(),
        control,
        snapshot: None,
        held: false,
        told_at_ns: 0,
    };
    let (cpu_before_s, first_instruction_s) = (cpu_seconds(), crate::process_age().as_secs_f64());
    let ended = live.run(recorder, &received, args.seconds)?;
    let wall_s = monotonic_ns().saturating_sub(now_ns) as f64 / 1e9;
    drop(console);
    let log_bytes = live.recording.take().map(Recording::finish).transpose()?;
    if let Some(path) = &args.report {
        let mut report = json!({
            "instructions": ended.instructions, "guest_ns": ended.guest_ns, "wall_s": wall_s,
            "cpu_s": cpu_seconds() - cpu_before_s, "guest_exit": ended.code, "log_bytes": log_bytes,
            "first_instruction_s": first_instruction_s, "away_ns": away_ns,
        });
        report_translation(&mut report, ended.translation);
        std::fs::write(path, format!("{report}\n"))
            .with_context(|| format!("cannot write the report to {}", path.display()))?;
    }
    Ok(ended.code.map_or(ExitCode::SUCCESS, |code| ExitCode::from(code.min(255) as u8)))
}

/// Adds to a report what was translated; nothing if the interpreter executes.
pub fn report_translation(report: &mut serde_json::Value, translation: Option<Translation>) {
    if let Some(Translation { blocks, bytes, ns }) = translation {
        report["translation_s"] = (ns as f64 / 1e9).into();
        report["translated_blocks"] = blocks.into();
        report["translated_bytes"] = bytes.into();
    }
}

async fn open_ports(vm: &Vm, name: &str, inputs: &Sender<Input>) -> Result<Vec<PortSender>> {
    let mut senders = Vec::new();
    for (port, spec) in vm.nets.iter().enumerate() {
        let number = u8::try_from(port).context("too many network ports")?;
        let handle = netbuf::port::open(spec, PortId { vm: VmId::from_name(name), port: number }, 1).await?;
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
    disks: Vec<DiskSpec>,
    console_out: std::io::Stdout,
    control: LiveControl,
    snapshot: Option<Snapshot>,
    /// The guest stands still at a snapshot, until it is released or stopped.
    held: bool,
    /// When the status was last brought up to date.
    told_at_ns: u64,
}

/// How a run ended.
struct Ended {
    instructions: u64,
    guest_ns: u64,
    /// The guest's exit status, unless it was stopped from outside.
    code: Option<u32>,
    translation: Option<Translation>,
}

impl Live {
    fn run(
        &mut self,
        mut recorder: Recorder<RiscvMachine>,
        inputs: &Receiver<Input>,
        seconds: Option<f64>,
    ) -> Result<Ended> {
        let end_ns = seconds.map(|seconds| monotonic_ns() + (seconds.max(0.0) * 1e9) as u64);
        let code = loop {
            let now_ns = monotonic_ns();
            if end_ns.is_some_and(|end_ns| now_ns >= end_ns) {
                break None;
            }
            let step = if self.held { Step::Stalled } else { recorder.step(now_ns) };
            let (recorded, until_ns) = match step {
                Step::Continue => (recorder.poll_recorded(now_ns), Some(now_ns)),
                Step::Stalled => (recorder.take_recorded(now_ns), None),
                Step::Sleep { until_ns } => (recorder.take_recorded(now_ns), until_ns),
                Step::Halted { code } => break Some(code),
                Step::HostFault { part } => bail!(
                    "{} could not be read or written: {}; see to it and start again",
                    disk::shown(part, &self.disks),
                    recorder.machine().host_fault().unwrap_or("the host does not say why"),
                ),
            };
            self.hand_on(recorded)?;
            self.tell_status(&recorder, now_ns);
            let until_ns = match self.advance_snapshot(&mut recorder) {
                Advance::More => Some(now_ns),
                Advance::Waiting => Some(until_ns.unwrap_or(u64::MAX).min(now_ns + TAKER_BEHIND_NS)),
                Advance::Done => until_ns,
            };
            let until_ns = [until_ns, end_ns].into_iter().flatten().min();
            if !self.take_inputs(
                &mut recorder,
                inputs,
                until_ns.map(|until_ns| until_ns.saturating_sub(now_ns)),
            )? {
                break None;
            }
        };
        if self.recording.is_some() {
            recorder.record_digest();
        }
        let last = recorder.take_recorded(monotonic_ns());
        self.hand_on(last)?;
        let moment = recorder.moment();
        let translation = recorder.machine().translation();
        Ok(Ended { instructions: moment.icount, guest_ns: moment.time_ns, code, translation })
    }

    /// Waits for an input, at most for this long, and obeys all that have come. Whether to go on.
    fn take_inputs(
        &mut self,
        recorder: &mut Recorder<RiscvMachine>,
        inputs: &Receiver<Input>,
        at_most_ns: Option<u64>,
    ) -> Result<bool> {
        let mut input = match at_most_ns {
            Some(0) => inputs.try_recv().ok(),
            Some(at_most_ns) => inputs.recv_timeout(Duration::from_nanos(at_most_ns)).ok(),
            None => inputs.recv().ok(),
        };
        while let Some(next) = input {
            let now_ns = monotonic_ns();
            match next {
                // A guest that stands still is about to end: what comes for it is lost with it.
                Input::Event(_) if self.held => {}
                Input::Event(event) => recorder.handle_input(event, now_ns),
                Input::Snapshot(order) => self.begin_snapshot(recorder, order, now_ns)?,
                Input::Release => self.held = false,
                Input::Stop => return Ok(false),
            }
            input = inputs.try_recv().ok();
        }
        Ok(true)
    }

    fn begin_snapshot(
        &mut self,
        recorder: &mut Recorder<RiscvMachine>,
        order: SnapshotOrder,
        now_ns: u64,
    ) -> Result<()> {
        if self.snapshot.is_some() {
            // The order is dropped, which its other end sees.
            return Ok(());
        }
        self.held = order.hold;
        let unix_ns = crate::vm::unix_ns();
        let (mut snapshot, before) = Snapshot::begin(recorder, order, now_ns);
        snapshot.note(unix_ns, monotonic_ns().saturating_sub(now_ns));
        self.snapshot = Some(snapshot);
        self.hand_on(Some(before))
    }

    fn advance_snapshot(&mut self, recorder: &mut Recorder<RiscvMachine>) -> Advance {
        let Some(snapshot) = &mut self.snapshot else { return Advance::Done };
        let advance = snapshot.advance(recorder);
        if advance == Advance::Done {
            self.snapshot = None;
        }
        advance
    }

    fn tell_status(&mut self, recorder: &Recorder<RiscvMachine>, now_ns: u64) {
        if now_ns.saturating_sub(self.told_at_ns) >= STATUS_INTERVAL_NS || self.told_at_ns == 0 {
            self.told_at_ns = now_ns;
            self.control.tell(recorder.moment());
        }
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
pub fn recorder_config(with_digests: bool) -> RecorderConfig {
    let recorded = RecorderConfig { hand_on_interval_ns: HAND_ON_INTERVAL_NS, ..RecorderConfig::default() };
    if with_digests {
        return recorded;
    }
    RecorderConfig { digest_interval_instructions: u64::MAX, digest_interval_ns: u64::MAX, ..recorded }
}

/// Processor time of this process so far.
fn cpu_seconds() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return 0.0 };
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}
