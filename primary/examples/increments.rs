//! Runs a guest in real time and takes increments of it, as checkpoint mode does, but ships them
//! nowhere: a measuring aid for `bench/run modes`. Prints the guest's console, and at the end
//! one line of JSON.
//!
//! `increments KERNEL [--net] [--initrd FILE] [--append WORDS] [--memory MIB] [--per-second N]
//! [--link BYTES_PER_S] [--after TEXT] [--for SECONDS]`
//!
//! Without `--per-second` no epoch is ever begun: what the guest does then is what increments
//! are measured against. Measuring begins when the console has shown TEXT.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use link::clock::monotonic_ns;
use log_format::page_codec::{Encoding, Statistics};
use log_format::{Event, LoggedOutput, Output};
use machine::{BootImages, CheckpointExtent, MachineConfig, NetConfig, RiscvMachine};
use nix::time::{ClockId, clock_gettime};
use primary::{FromMachine, MachineRequest, Packer, Recorder, RecorderConfig, Step, ToPacker, Told, Vcpu};

/// Parts that wait to be packed, as in the driver.
const QUEUE_PARTS: usize = 32;
/// How long the loop sleeps at most.
const NAP_NS: u64 = 1_000_000;

type Failure = Box<dyn std::error::Error>;

struct Options {
    config: MachineConfig,
    images: BootImages,
    per_second: u64,
    link_bytes_per_s: u64,
    after: String,
    limit_ns: u64,
}

fn options() -> Result<Options, Failure> {
    let mut config = MachineConfig { memory_bytes: 256 << 20, ..MachineConfig::default() };
    let (mut kernel, mut initrd) = (None, None);
    let (mut per_second, mut link_bytes_per_s, mut limit_ns) = (0, 125_000_000, u64::MAX);
    let mut after = String::new();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--initrd" => initrd = Some(Bytes::from(std::fs::read(value()?)?)),
            "--net" => config.nets.push(NetConfig { mac: [2, 0, 0, 0, 0, 1] }),
            "--append" => config.bootargs = value()?,
            "--memory" => config.memory_bytes = value()?.parse::<u64>()? << 20,
            "--per-second" => per_second = value()?.parse()?,
            "--link" => link_bytes_per_s = value()?.parse()?,
            "--after" => after = value()?,
            "--for" => limit_ns = value()?.parse::<u64>()?.saturating_mul(1_000_000_000),
            _ => {
                kernel = Some(Bytes::from(std::fs::read(&word).map_err(|error| format!("{word}: {error}"))?))
            }
        }
    }
    let images = BootImages::supervisor(kernel.ok_or("which kernel?")?, initrd);
    Ok(Options { config, images, per_second, link_bytes_per_s, after, limit_ns })
}

fn main() -> Result<(), Failure> {
    let options = options()?;
    let machine = RiscvMachine::new(options.config.clone(), &options.images, Vec::new())?;
    let now_ns = monotonic_ns();
    let mut vcpu = Vcpu::new(Recorder::new(machine, RecorderConfig::default(), 0, now_ns));
    vcpu.handle_input(Event::Entropy(Bytes::from_static(b"the same in each run")), now_ns);
    let rate = MachineRequest::LinkRate { bytes_per_s: options.link_bytes_per_s };
    vcpu.handle_request(rate, now_ns);
    let (queue, inputs) = sync_channel(QUEUE_PARTS);
    let encoder = std::thread::spawn(move || pack(&inputs));
    let mut run = Run::new(vcpu, queue, options);
    while run.turn()? {}
    run.finish(encoder)
}

/// A guest under measurement.
struct Run {
    vcpu: Vcpu<RiscvMachine>,
    queue: SyncSender<ToPacker>,
    /// What found no room in it.
    waiting: VecDeque<ToPacker>,
    options: Options,
    console: String,
    started: Option<Started>,
    next_ns: u64,
    checkpoints: u64,
    pauses_ns: Vec<u64>,
    /// The same in processor time: what a busy host does to it left out.
    pauses_cpu_ns: Vec<u64>,
    dirty_units: Vec<u64>,
    /// Increments that were due while the one before was still being taken.
    late: u64,
}

/// Where measuring began.
struct Started {
    at_ns: u64,
    /// Processor time of the machine's thread.
    cpu_ns: u64,
    icount: u64,
}

impl Run {
    fn new(vcpu: Vcpu<RiscvMachine>, queue: SyncSender<ToPacker>, options: Options) -> Run {
        Run {
            vcpu,
            queue,
            waiting: VecDeque::new(),
            options,
            console: String::new(),
            started: None,
            next_ns: 0,
            checkpoints: 0,
            pauses_ns: Vec::new(),
            pauses_cpu_ns: Vec::new(),
            dirty_units: Vec::new(),
            late: 0,
        }
    }

    /// Whether the guest goes on.
    fn turn(&mut self) -> Result<bool, Failure> {
        self.begin_what_is_due(monotonic_ns());
        self.push_waiting()?;
        self.vcpu.hold_increment(!self.waiting.is_empty());
        let step = self.vcpu.turn(monotonic_ns());
        self.hand_on()?;
        if let Step::Sleep { until_ns } = step {
            let nap_ns = until_ns.unwrap_or(u64::MAX).saturating_sub(monotonic_ns()).min(NAP_NS);
            std::thread::sleep(Duration::from_nanos(nap_ns));
        }
        let began_ns = self.started.as_ref().map(|started| started.at_ns);
        let over = began_ns.is_some_and(|at_ns| monotonic_ns() - at_ns >= self.options.limit_ns);
        Ok(!over && !matches!(step, Step::Halted { .. } | Step::HostFault { .. }))
    }

    fn begin_what_is_due(&mut self, now_ns: u64) {
        let interval_ns = 1_000_000_000u64.checked_div(self.options.per_second);
        if self.started.is_none() && self.console.contains(&self.options.after) {
            let icount = self.vcpu.recorder().moment().icount;
            self.started = Some(Started { at_ns: now_ns, cpu_ns: thread_cpu_ns(), icount });
            if let Some(interval_ns) = interval_ns {
                self.begin(CheckpointExtent::Epoch, now_ns);
                self.next_ns = now_ns + interval_ns;
            }
        }
        if let Some(interval_ns) = interval_ns
            && self.started.is_some()
            && now_ns >= self.next_ns
        {
            self.next_ns += interval_ns;
            match self.vcpu.is_taking_increment() {
                true => self.late += 1,
                false => self.begin(CheckpointExtent::Increment, now_ns),
            }
        }
    }

    fn begin(&mut self, extent: CheckpointExtent, now_ns: u64) {
        self.checkpoints += 1;
        let (checkpoint, began_cpu_ns) = (self.checkpoints, thread_cpu_ns());
        self.vcpu
            .handle_request(MachineRequest::BeginCheckpoint { checkpoint, extent, fresh: false }, now_ns);
        if extent == CheckpointExtent::Increment {
            self.pauses_ns.push(monotonic_ns() - now_ns);
            self.pauses_cpu_ns.push(thread_cpu_ns() - began_cpu_ns);
        }
    }

    fn hand_on(&mut self) -> Result<(), Failure> {
        while let Some(told) = self.vcpu.poll_unpacked() {
            match told {
                Told::ToPacker(input) => self.waiting.push_back(input),
                Told::ToCore(FromMachine::Recorded(recorded)) => self.print(recorded.outputs)?,
                Told::ToCore(FromMachine::CheckpointBegun { begun, .. }) => {
                    if begun.extent == CheckpointExtent::Increment {
                        self.dirty_units.push(begun.dirty_units);
                    }
                    self.print(begun.before.outputs)?;
                }
                Told::ToCore(_) => {}
            }
        }
        self.push_waiting()
    }

    /// Hands on to the encoder what it has room for, as the driver does.
    fn push_waiting(&mut self) -> Result<(), Failure> {
        while let Some(input) = self.waiting.pop_front() {
            match self.queue.try_send(input) {
                Ok(()) => {}
                Err(TrySendError::Full(input)) => {
                    self.waiting.push_front(input);
                    break;
                }
                Err(TrySendError::Disconnected(_)) => return Err("the encoder's thread panicked".into()),
            }
        }
        Ok(())
    }

    fn print(&mut self, outputs: Vec<LoggedOutput>) -> Result<(), Failure> {
        for logged in outputs {
            let Output::Console(bytes) = logged.output else { continue };
            if self.started.is_none() {
                self.console.push_str(&String::from_utf8_lossy(&bytes));
            }
            std::io::stdout().write_all(&bytes)?;
            std::io::stdout().flush()?;
        }
        Ok(())
    }

    fn finish(self, encoder: JoinHandle<Packed>) -> Result<(), Failure> {
        let Started { at_ns, cpu_ns, icount } =
            self.started.ok_or("the guest ended before measuring began")?;
        let seconds = (monotonic_ns() - at_ns) as f64 / 1e9;
        let cpu_seconds = (thread_cpu_ns() - cpu_ns) as f64 / 1e9;
        let instructions = self.vcpu.recorder().moment().icount - icount;
        for input in self.waiting {
            self.queue.send(input)?;
        }
        drop(self.queue);
        let packed = encoder.join().map_err(|_| "the encoder's thread panicked")?;
        let encodings = Encoding::ALL.map(|encoding| {
            let of = packed.statistics.of(encoding);
            format!("\"{}\": [{}, {}]", encoding.name(), of.units, of.packed_bytes)
        });
        println!(
            "\n{{\"seconds\": {seconds:.3}, \"cpu_seconds\": {cpu_seconds:.3}, \"instructions\": {instructions}, \"increments\": {}, \
             \"late\": {}, \"pause_us\": {}, \"pause_cpu_us\": {}, \"dirty_units\": {}, \"whole_us\": {}, \"encodings\": {{{}}}}}",
            self.pauses_ns.len(),
            self.late,
            percentiles(&self.pauses_ns, 1000.0),
            percentiles(&self.pauses_cpu_ns, 1000.0),
            percentiles(&self.dirty_units, 1.0),
            percentiles(&packed.whole_ns, 1000.0),
            encodings.join(", "),
        );
        Ok(())
    }
}

/// Processor time of this thread.
fn thread_cpu_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// What the encoder's thread did.
struct Packed {
    statistics: Statistics,
    /// From each increment's begin to its end, packed.
    whole_ns: Vec<u64>,
}

fn pack(inputs: &Receiver<ToPacker>) -> Packed {
    let mut packer = Packer::new(Some(monotonic_ns));
    let (mut whole_ns, mut began_ns) = (Vec::new(), 0);
    while let Ok(input) = inputs.recv() {
        let (begins, ends) = (matches!(input, ToPacker::Begin { .. }), matches!(input, ToPacker::End { .. }));
        packer.handle(input);
        if begins {
            began_ns = monotonic_ns();
        } else if ends {
            whole_ns.push(monotonic_ns() - began_ns);
        }
    }
    Packed { statistics: *packer.statistics(), whole_ns }
}

/// `{"p50": ..., "p99": ..., "max": ...}`, or `null` of nothing.
fn percentiles(values: &[u64], unit: f64) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let Some(last) = sorted.len().checked_sub(1) else { return "null".to_owned() };
    let at = |part: f64| sorted[(last as f64 * part).ceil() as usize] as f64 / unit;
    format!("{{\"p50\": {:.1}, \"p99\": {:.1}, \"max\": {:.1}}}", at(0.5), at(0.99), at(1.0))
}
