//! What the paths of every instruction, event and frame take of the allocator once they are warm.
//!
//! Nothing per instruction. A frame that comes alone is the worst case: it makes a hand-on, a batch and an
//! acknowledgement of its own, whose lists many share under load.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use backup::{Counted, Replayer};
use bytes::Bytes;
use log_format::{Ack, Event, Message, Output, SealedBatch};
use machine::{BootImages, Engine, Exit, Machine, MachineConfig, NetConfig, RiscvMachine};
use primary::{FromMachine, Primary, Recorded, Recorder, RecorderConfig, Step};
use secondwind_tests::work;

/// The system's allocator, with a count of what each thread asked it for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count_one() {
    // A thread that ends has nobody to count for.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call goes to the system's allocator as it came; the count allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_one();
        // SAFETY: the caller's promises are those that are asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count_one();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count_one();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, bytes) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is done, and how often the allocator was asked meanwhile.
fn counted<T>(total: &mut u64, work: impl FnOnce() -> T) -> T {
    let before = ALLOCATIONS.get();
    let result = work();
    *total += ALLOCATIONS.get() - before;
    result
}

fn ledger(bootargs: &str, engine: Engine) -> RiscvMachine {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../guest/ledger/ledger.elf");
    let kernel = std::fs::read(path).expect("the built-in guest is committed");
    let config = MachineConfig {
        memory_bytes: 32 << 20,
        nets: vec![NetConfig { mac: [2, 0, 0, 0, 0, 1] }],
        bootargs: bootargs.into(),
        ..MachineConfig::default()
    };
    let images = BootImages::supervisor(kernel.into(), None);
    let mut machine = RiscvMachine::new(config, &images, Vec::new()).expect("it boots");
    machine.set_engine(engine);
    machine
}

#[test]
fn executing_allocates_nothing() {
    for &engine in Engine::all() {
        let mut machine = ledger("ip=10.0.2.15 burn", engine);
        let mut go = |until: u64| {
            while machine.moment().icount < until {
                if let Exit::Idle { wake_ns } = machine.run(until) {
                    machine.advance_idle(wake_ns.unwrap_or(u64::MAX));
                }
            }
        };
        go(50_000_000);
        let mut total = 0;
        counted(&mut total, || go(150_000_000));
        assert_eq!(total, 0, "allocations of the {engine} in 10^8 instructions");
    }
}

/// A question to the guest that it answers with one frame.
fn question() -> Bytes {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([2, 0, 0, 0, 0, 9, 10, 0, 2, 2]);
    frame.extend([0, 0, 0, 0, 0, 0, 10, 0, 2, 15]);
    frame.resize(60, 0);
    frame.into()
}

/// Allocations of each stage on the way of a frame and its answer.
#[derive(Debug, Default)]
struct Stages {
    /// The recorder and the machine in it: the frame to the guest, the answer out of it.
    record: u64,
    /// The primary's core: batch, acknowledgement, release.
    core: u64,
    /// The backup: a batch from its bytes.
    decode: u64,
    /// The backup: the same execution again, and the comparison.
    replay: u64,
}

/// A machine that is recorded, its primary, and a replay of the same log.
struct Bench {
    recorder: Recorder<RiscvMachine>,
    primary: Primary,
    replayer: Replayer<RiscvMachine>,
    now_ns: u64,
    stages: Stages,
}

impl Bench {
    fn new(engine: Engine) -> Bench {
        let machine = || ledger("ip=10.0.2.15", engine);
        // A digest encodes the whole state, now and then and not per event.
        let config = RecorderConfig {
            digest_interval_instructions: u64::MAX,
            digest_interval_ns: u64::MAX,
            ..RecorderConfig::default()
        };
        Bench {
            recorder: Recorder::new(machine(), config, 0, 0),
            primary: work::protected(),
            replayer: Replayer::new(machine(), 0, Counted::default()),
            now_ns: 0,
            stages: Stages::default(),
        }
    }

    /// Executes until the guest has sent a frame, or waits with nothing to do.
    fn run(&mut self, input: Option<Bytes>) -> usize {
        let mut frames = 0;
        if let Some(frame) = input {
            let event = Event::NetworkIn { port: 0, frame };
            counted(&mut self.stages.record, || self.recorder.handle_input(event, self.now_ns));
        }
        loop {
            let step = counted(&mut self.stages.record, || self.recorder.step(self.now_ns));
            let recorded = counted(&mut self.stages.record, || self.recorder.poll_recorded(self.now_ns));
            if let Some(recorded) = recorded {
                frames += self.hand_on(recorded);
            }
            match step {
                Step::Continue => {}
                Step::Sleep { until_ns } if frames == 0 => {
                    let Some(until_ns) = until_ns else { return 0 };
                    self.now_ns = until_ns;
                }
                Step::Sleep { .. } => return frames,
                other => panic!("{other:?}"),
            }
        }
    }

    /// What was recorded goes to the backup, is acknowledged and released. How many frames left.
    fn hand_on(&mut self, recorded: Recorded) -> usize {
        let Bench { primary, replayer, now_ns, stages, .. } = self;
        let told = FromMachine::Recorded(recorded);
        counted(&mut stages.core, || primary.handle_machine(told, *now_ns));
        while let Some(message) = counted(&mut stages.core, || primary.poll_transmit(work::CONNECTION, true))
        {
            let Message::Batch(sealed) = message else { continue };
            let bytes = sealed.bytes().clone();
            let received =
                counted(&mut stages.decode, || SealedBatch::decode(&bytes).expect("it was sealed"));
            counted(&mut stages.replay, || {
                replayer.push_batch(received.batch());
                while !replayer.step(1_000_000).expect("it replays").caught_up {}
                drop(replayer.take_outputs());
            });
            let ack = Ack { term: 1, sequence: received.batch().sequence, durable: false };
            counted(&mut stages.core, || {
                primary.handle_message(work::CONNECTION, Message::Ack(ack), *now_ns);
            });
        }
        let mut frames = 0;
        while let Some(output) = counted(&mut stages.core, || primary.poll_release(*now_ns)) {
            frames += usize::from(matches!(output.output, Output::Frame { .. }));
        }
        frames
    }
}

#[test]
fn a_frame_allocates_little() {
    const FRAMES: u64 = 1000;
    for &engine in Engine::all() {
        let mut bench = Bench::new(engine);
        let question = question();
        // The guest boots, and every queue grows to what it needs.
        for _ in 0..500 {
            bench.run(Some(question.clone()));
        }
        bench.stages = Stages::default();
        for number in 0..FRAMES {
            assert_eq!(bench.run(Some(question.clone())), 1, "frame {number} is answered");
        }
        let Stages { record, core, decode, replay } = bench.stages;
        let few = |what: &str, found: u64, each: u64| {
            // Tables that still double, code that gets hot only now: some, whatever the number of frames.
            let limit = each * FRAMES + FRAMES / 10;
            assert!(found <= limit, "{engine}: {what} allocates {found} times for {FRAMES} frames");
        };
        // The answer's bytes; the lists of events and of outputs, which go to another thread.
        few("recording", record, 3);
        // The batch's hashes, its frame (with room for the event), what is written into it (distances,
        // hashes), what makes frame and batch shared by all who keep them; the name of who acknowledges.
        few("the primary's core", core, 8);
        // The frame's bytes; the lists of events and of hashes, the latter's bytes; the reader's buffer;
        // what makes the batch shared.
        few("decoding a batch", decode, 6);
        // The answer's bytes; the list of outputs; what makes the frame's bytes shared.
        few("replaying", replay, 3);
    }
}
