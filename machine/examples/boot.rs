//! Boots a kernel or a bare program and prints its console: a measuring aid.
//!
//! `boot KERNEL [--initrd FILE] [--append WORDS] [--memory MIB] [--harts N] [--bare]
//! [--firmware FILE] [--net] [--for SECONDS] [--engine interpreter|translator|auto]`

use std::io::Write;
use std::time::Instant;

use bytes::Bytes;
use log_format::{Event, Output};
use machine::{BootImages, CheckpointExtent, Engine, Exit, Machine, MachineConfig, NetConfig, RiscvMachine};

#[expect(clippy::disallowed_methods, reason = "it measures real time, the machine knows none")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = MachineConfig::default();
    let (mut kernel, mut firmware, mut initrd) = (None, None, None);
    let (mut bare, mut limit_s, mut engine) = (false, f64::INFINITY, Engine::Auto);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--initrd" => initrd = Some(Bytes::from(std::fs::read(value()?)?)),
            "--firmware" => firmware = Some(Bytes::from(std::fs::read(value()?)?)),
            "--append" => config.bootargs = value()?,
            "--memory" => config.memory_bytes = value()?.parse::<u64>()? << 20,
            "--harts" => config.harts = value()?.parse()?,
            "--for" => limit_s = value()?.parse()?,
            "--net" => config.nets.push(NetConfig { mac: [2, 0, 0, 0, 0, 1] }),
            "--engine" => engine = value()?.parse()?,
            "--bare" => bare = true,
            _ => kernel = Some(Bytes::from(std::fs::read(&word)?)),
        }
    }
    let kernel = kernel.ok_or("which kernel?")?;
    let images = match firmware {
        _ if bare => BootImages::bare(kernel),
        Some(firmware) => BootImages::firmware(firmware, kernel, initrd),
        None => BootImages::supervisor(kernel, initrd),
    };
    let mut machine = RiscvMachine::new(config, &images, Vec::new())?;
    machine.set_engine(engine);
    machine.inject(&Event::Entropy(Bytes::from_static(b"the same in each run")));
    let started = Instant::now();
    let mut exits = 0u64;
    let code = loop {
        let here = machine.moment();
        if here.time_ns as f64 > limit_s * 1e9 {
            break 124;
        }
        let exit = machine.run(here.icount + 10_000_000);
        exits += 1;
        for made in machine.take_outputs() {
            if let Output::Console(bytes) = made.output {
                std::io::stdout().write_all(&bytes)?;
                std::io::stdout().flush()?;
            }
        }
        match exit {
            Exit::Limit | Exit::Output | Exit::Stopped => {}
            Exit::Idle { wake_ns: Some(wake_ns) } => {
                machine.advance_idle(wake_ns);
            }
            Exit::Idle { wake_ns: None } => break 125,
            Exit::HostFault { part } => return Err(format!("{part} failed").into()),
            Exit::Halted { code } => break code,
        }
    };
    let (moment, seconds) = (machine.moment(), started.elapsed().as_secs_f64());
    let before = Instant::now();
    let digest = machine.digest();
    let (digest_took, before) = (before.elapsed(), Instant::now());
    let head = machine.begin_checkpoint(CheckpointExtent::Full).head;
    let (checkpoint_took, before) = (before.elapsed(), Instant::now());
    machine.digest();
    let digest_again_took = before.elapsed();
    eprintln!(
        "{} instructions, {:.3} guest s, {seconds:.3} s, {:.0} MIPS, {exits} exits, digest {digest}",
        moment.icount,
        moment.time_ns as f64 / 1e9,
        moment.icount as f64 / seconds / 1e6,
    );
    eprintln!(
        "digest {digest_took:?}, again {digest_again_took:?}; begin_checkpoint {checkpoint_took:?}, {} bytes",
        head.state.len()
    );
    std::process::exit(i32::try_from(code).unwrap_or(1));
}
