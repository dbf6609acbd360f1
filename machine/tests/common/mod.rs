//! A live driver in small, on made-up time, and the replay that follows it.
#![allow(dead_code, reason = "each test takes what it needs")]

pub mod client;

use std::cell::Cell;

use bytes::Bytes;
use log_format::{Control, Digest, Event, LoggedEvent, LoggedOutput, Moment, Output};
use machine::disk::{BlockStore, MemDisk};
use machine::{BootImages, DiskConfig, Engine, Exit, Machine, MachineConfig, NetConfig, RiscvMachine};

use client::Client;

/// A small generator: the seed is the whole story of a failure.
pub struct Dice(pub u64);

impl Dice {
    /// A number below `sides`.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    /// A number below one of these.
    pub fn upto(&mut self, sides: &[u64]) -> u64 {
        let sides = sides[self.roll(sides.len() as u64) as usize];
        self.roll(sides)
    }
}

/// What a machine did, and what was done to it.
#[derive(Default)]
pub struct Recording {
    pub events: Vec<LoggedEvent>,
    pub outputs: Vec<LoggedOutput>,
    /// When, after how many events, and what.
    pub digests: Vec<(Moment, usize, Digest)>,
    pub end: Moment,
    /// Answers that the client got.
    pub answered: usize,
}

thread_local! {
    static MACHINES: Cell<usize> = const { Cell::new(0) };
}

/// A machine, with the next engine of this host's: in each test the machines that it makes have
/// different ones in turn, so that each comparison of two machines is also one of two engines.
pub fn machine(config: MachineConfig, images: &BootImages, disks: Vec<Box<dyn BlockStore>>) -> RiscvMachine {
    let mut machine = RiscvMachine::new(config, images, disks).expect("it boots");
    let number = MACHINES.replace(MACHINES.get() + 1);
    machine.set_engine(Engine::all()[number % Engine::all().len()]);
    machine
}

/// The ledger guest with a journal on its disk, a dirtier and a burner.
pub fn ledger() -> RiscvMachine {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../guest/ledger/ledger.elf");
    let kernel = std::fs::read(path).expect("the built-in guest is committed");
    let config = MachineConfig {
        memory_bytes: 32 << 20,
        nets: vec![NetConfig { mac: [2, 0, 0, 0, 0, 1] }],
        disks: vec![DiskConfig { serial: "journal".into(), read_only: false }],
        bootargs: "ip=10.0.2.15 journal dirty=2:20 burn=20".into(),
        ..MachineConfig::default()
    };
    let disks: Vec<Box<dyn BlockStore>> = vec![Box::new(MemDisk::zeroed(4 << 20))];
    machine(config, &BootImages::supervisor(kernel.into(), None), disks)
}

/// Somebody on the machine's network.
pub trait Peer {
    /// A frame to send now, if there is one.
    fn next(&mut self, now_ns: u64) -> Option<Bytes>;
    /// Takes note of what the guest sent.
    fn see(&mut self, output: &Output);
}

/// How a recording is made.
pub struct Pace {
    /// Runs are shorter than one of these.
    pub runs: &'static [u64],
    /// How many runs lie between digests, on average.
    pub digest_every: u64,
    /// How many runs lie between events that nobody expects, on average.
    pub accident_every: u64,
}

/// Runs the ledger guest live until guest time `until_ns`, with a client and with accidents.
pub fn record(machine: &mut RiscvMachine, seed: u64, until_ns: u64) -> Recording {
    let pace = Pace { runs: &[1, 50, 3000, 60_000], digest_every: 40, accident_every: 100 };
    let mut client = Client::new(seed as u16);
    let recording = record_at(machine, seed, until_ns, &pace, &mut client);
    Recording { answered: client.answered, ..recording }
}

/// Runs `machine` live until guest time `until_ns`.
pub fn record_at(
    machine: &mut RiscvMachine,
    seed: u64,
    until_ns: u64,
    pace: &Pace,
    peer: &mut impl Peer,
) -> Recording {
    let mut dice = Dice(seed);
    let mut recording = Recording::default();
    let wall = Event::WallClock { unix_ns: 1_790_000_000_000_000_000 };
    for event in [Event::Entropy(Bytes::copy_from_slice(&seed.to_le_bytes())), wall] {
        inject(machine, &mut recording, event);
    }
    while machine.moment().time_ns < until_ns {
        let budget = 1 + dice.upto(pace.runs);
        let exit = machine.run(machine.moment().icount + budget);
        for made in machine.take_outputs() {
            peer.see(&made.output);
            recording.outputs.push(made);
        }
        if let Exit::Idle { wake_ns } = exit {
            let now_ns = machine.moment().time_ns;
            let nap_ns = if dice.roll(3) == 0 { dice.roll(400_000) } else { 2_000_000 };
            machine.advance_idle(wake_ns.unwrap_or(u64::MAX).min(now_ns + nap_ns));
        }
        if dice.roll(6) == 0
            && let Some(frame) = peer.next(machine.moment().time_ns)
        {
            inject(machine, &mut recording, Event::NetworkIn { port: 0, frame });
        }
        if dice.roll(pace.accident_every) == 0 {
            inject(machine, &mut recording, accident(&mut dice));
        }
        if dice.roll(pace.digest_every) == 0 {
            let digest = machine.digest();
            recording.digests.push((machine.moment(), recording.events.len(), digest));
        }
    }
    recording.digests.push((machine.moment(), recording.events.len(), machine.digest()));
    recording.end = machine.moment();
    recording
}

fn inject(machine: &mut RiscvMachine, recording: &mut Recording, event: Event) {
    let at = machine.moment();
    machine.inject(&event);
    recording.events.push(LoggedEvent { at, event });
}

fn accident(dice: &mut Dice) -> Event {
    match dice.roll(7) {
        0 => Event::ConsoleIn(Bytes::from(vec![b'x'; dice.roll(40) as usize])),
        1 => Event::ClockAdvance { delta_ns: dice.roll(3_000_000) },
        2 => Event::Entropy(Bytes::from(vec![7; dice.roll(40) as usize])),
        3 => Event::WallClock { unix_ns: dice.roll(u64::MAX) },
        4 => Event::Control(Control::Announce),
        5 => Event::Control(Control::PowerButton),
        _ => {
            Event::NetworkIn { port: dice.roll(2) as u8, frame: vec![0xff; dice.roll(2000) as usize].into() }
        }
    }
}

/// Brings `machine` to `to` as a replayer does, in runs of `cut()` instructions at most.
pub fn replay_to(machine: &mut RiscvMachine, to: Moment, cut: &mut impl FnMut() -> u64) {
    while machine.moment().icount < to.icount {
        let here = machine.moment();
        match machine.run(to.icount.min(here.icount + cut())) {
            Exit::Limit | Exit::Output => {}
            Exit::Stopped => {
                machine.pass_breakpoint(Some(machine.moment().icount));
                machine.pass_watchpoint(Some(machine.moment().icount));
            }
            Exit::Idle { wake_ns: Some(wake_ns) } => assert!(machine.advance_idle(wake_ns) > here.time_ns),
            other => panic!("{other:?} at {here:?}, on the way to {to:?}"),
        }
    }
    while machine.moment().time_ns < to.time_ns {
        let before_ns = machine.moment().time_ns;
        assert!(machine.advance_idle(to.time_ns) > before_ns, "at {:?}, not at {to:?}", machine.moment());
    }
    assert_eq!(machine.moment(), to);
}

/// Replays what comes after the first `events_done` events and compares all that can be
/// compared, taking over outputs that were made before.
pub fn replay(
    machine: &mut RiscvMachine,
    recording: &Recording,
    events_done: usize,
    cut: &mut impl FnMut() -> u64,
) {
    let mut digests = recording.digests.iter().filter(|(_, events, _)| *events >= events_done).peekable();
    let start = machine.moment();
    let mut outputs = Vec::new();
    for count in events_done..=recording.events.len() {
        while let Some((at, _, expected)) = digests.next_if(|(_, events, _)| *events == count) {
            if *at >= start {
                replay_to(machine, *at, cut);
                outputs.extend(machine.take_outputs());
                assert_eq!(machine.digest(), *expected, "after {count} events, at {at:?}");
            }
        }
        if let Some(logged) = recording.events.get(count) {
            replay_to(machine, logged.at, cut);
            machine.inject(&logged.event);
        }
    }
    outputs.extend(machine.take_outputs());
    let first = outputs.first().map_or(0, |made| made.ordinal as usize);
    assert_eq!(outputs, recording.outputs[first..]);
}
