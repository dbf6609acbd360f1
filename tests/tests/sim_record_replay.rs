//! Law 1 for one recorder and one replayer: what was recorded live is replayed bit for bit,
//! however either side cuts time.

use backup::{Counted, DivergenceKind, ReplayReport, ReplayWorker, Replayer, ToReplayer};
use bytes::Bytes;
use log_format::{
    Batch, ChainHash, CheckpointStart, Control, Event, LoggedOutput, Moment, Position, SealedBatch,
};
use machine::{CheckpointExtent, Machine};
use primary::{Batcher, FromMachine, Recorded, Recorder, RecorderConfig, Step, Vcpu};
use secondwind_tests::sim::ledger::{Operation, Request};
use secondwind_tests::sim::random::Random;
use secondwind_tests::sim::toy::{Defect, ToyConfig, ToyMachine};

const MILLISECOND_NS: u64 = 1_000_000;

fn recorder_config() -> RecorderConfig {
    RecorderConfig {
        slice_instructions: 64,
        digest_interval_instructions: 2_000,
        digest_interval_ns: 10 * MILLISECOND_NS,
        digest_min_instructions: 100,
        ..RecorderConfig::default()
    }
}

/// A live run under random inputs and a host that runs now fast, now slowly.
struct Live {
    random: Random,
    recorder: Recorder<ToyMachine>,
    batcher: Batcher,
    now_ns: u64,
    batches: Vec<SealedBatch>,
    outputs: Vec<LoggedOutput>,
    clock_advances: usize,
    requests: u64,
}

impl Live {
    fn new(seed: u64) -> Live {
        let mut random = Random::new(seed);
        let now_ns = random.between(0, 1 << 40);
        let machine = ToyMachine::new(ToyConfig::default());
        let chain = ChainHash::genesis(&machine.identity());
        let from = Position { term: 1, ..Position::default() };
        let mut recorder = Recorder::new(machine, recorder_config(), 0, now_ns);
        recorder.handle_input(Event::Entropy(Bytes::from_static(b"seed")), now_ns);
        Live {
            random,
            recorder,
            batcher: Batcher::new(from, chain, 0),
            now_ns,
            batches: Vec::new(),
            outputs: Vec::new(),
            clock_advances: 0,
            requests: 0,
        }
    }

    fn take_up(&mut self, recorded: Recorded) {
        self.clock_advances +=
            recorded.events.iter().filter(|e| matches!(e.event, Event::ClockAdvance { .. })).count();
        self.outputs.extend(recorded.outputs.iter().cloned());
        self.batcher.push(recorded, self.now_ns);
        if self.random.chance(300) {
            let batch = self.batcher.seal(0);
            self.batches.push(batch);
        }
    }

    fn input(&mut self) {
        let event = match self.random.between(0, 9) {
            0 => Event::ConsoleIn(Bytes::from_static(b"hello")),
            1 => Event::Control(Control::Announce),
            2 => Event::Entropy(Bytes::from(self.random.next_u64().to_le_bytes().to_vec())),
            _ => {
                self.requests += 1;
                let operation = Operation::Append(self.random.next_u64());
                let request = Request { client: 1, number: self.requests, operation };
                Event::NetworkIn { port: 0, frame: request.to_frame() }
            }
        };
        self.recorder.handle_input(event, self.now_ns);
    }

    fn turn(&mut self) {
        if self.random.chance(30) {
            self.input();
        }
        let step = self.recorder.step(self.now_ns);
        let recorded = match step {
            Step::Sleep { .. } => self.recorder.take_recorded(self.now_ns),
            _ => self.recorder.poll_recorded(self.now_ns),
        };
        if let Some(recorded) = recorded {
            self.take_up(recorded);
        }
        self.now_ns += match self.random.between(0, 99) {
            // The host is busy elsewhere, or the process stood still.
            0 => self.random.between(0, 50 * MILLISECOND_NS),
            1..30 => self.random.between(0, MILLISECOND_NS),
            _ => self.random.between(1_000, 60_000),
        };
    }

    fn finish(&mut self) {
        self.recorder.record_digest();
        if let Some(recorded) = self.recorder.take_recorded(self.now_ns) {
            self.take_up(recorded);
        }
        let last = self.batcher.seal(0);
        self.batches.push(last);
    }
}

fn record(seed: u64, turns: usize) -> Live {
    let mut live = Live::new(seed);
    (0..turns).for_each(|_| live.turn());
    live.finish();
    live
}

fn replay_all(
    replayer: &mut Replayer<ToyMachine>,
    batches: &[SealedBatch],
    random: &mut Random,
) -> Result<Vec<LoggedOutput>, backup::Divergence> {
    let mut outputs = Vec::new();
    for batch in batches {
        if random.chance(200) {
            let event = batch.events.first().map_or(batch.end, |first| first.at);
            let digest = batch.digests.first().map_or(batch.end, |first| first.at);
            replayer.push_mark(event.min(digest));
        }
        for _ in 0..random.between(0, 3) {
            replayer.step(random.between(1, 500))?;
        }
        replayer.push_batch(batch);
        if random.chance(500) {
            outputs.append(&mut replayer.take_outputs());
        }
    }
    while !replayer.step(random.between(1, 5_000))?.caught_up {}
    outputs.append(&mut replayer.take_outputs());
    Ok(outputs)
}

#[test]
fn a_replay_equals_the_recording_however_time_is_cut() {
    for seed in 0..60 {
        let mut live = record(seed, 4_000);
        assert!(live.outputs.len() > 40 && live.clock_advances > 0, "seed {seed}: nothing happened");
        let mut replayer = Replayer::new(ToyMachine::new(ToyConfig::default()), 0, Counted::default());
        let mut random = Random::new(seed + 1_000);
        let outputs = replay_all(&mut replayer, &live.batches, &mut random)
            .unwrap_or_else(|divergence| panic!("seed {seed}: {divergence}"));
        assert_eq!(outputs, live.outputs, "seed {seed}");
        let progress = replayer.step(1).expect("no divergence");
        assert!(progress.digests_verified > 10, "seed {seed}");
        assert_eq!(progress.outputs_verified, live.outputs.len() as u64);
        let replayed = replayer.machine_mut().digest();
        let mut machine = live_machine(&mut live);
        assert_eq!(replayed, machine.digest(), "seed {seed}");
        assert_eq!(replayer.moment(), machine.moment());
    }
}

fn live_machine(live: &mut Live) -> ToyMachine {
    let idle = Recorder::new(ToyMachine::new(ToyConfig::default()), recorder_config(), 0, 0);
    std::mem::replace(&mut live.recorder, idle).into_machine()
}

#[test]
fn a_checkpoint_taken_while_running_and_the_log_after_it_reach_the_same_state() {
    for seed in 0..30 {
        let mut live = record(seed, 600);
        let begun = live.recorder.begin_checkpoint(CheckpointExtent::Full, live.now_ns);
        assert!(begun.before.is_mark());
        let position = live.batcher.position();
        assert_eq!(position.moment, begun.head.moment);
        let mut copy = ToyMachine::new(ToyConfig::default());
        copy.restore_begin(&begun.head).expect("same identity");
        loop {
            (0..40).for_each(|_| live.turn());
            let part = live.recorder.take_checkpoint_pages(CheckpointExtent::Full, 3);
            if part.is_empty() {
                break;
            }
            copy.restore_part(&part).expect("inside memory");
        }
        (0..500).for_each(|_| live.turn());
        live.finish();
        assert_eq!(copy.digest(), begun.head.digest, "seed {seed}");
        let counted = Counted { events: begun.events_before, outputs: begun.head.outputs_before };
        let mut replayer = Replayer::new(copy, position.sequence, counted);
        let rest = &live.batches[position.sequence as usize..];
        let outputs = replay_all(&mut replayer, rest, &mut Random::new(seed)).expect("no divergence");
        assert_eq!(outputs, live.outputs[begun.head.outputs_before as usize..]);
        let replayed = replayer.machine_mut().digest();
        assert_eq!(replayed, live_machine(&mut live).digest(), "seed {seed}");
    }
}

#[test]
fn a_defect_of_one_machine_is_found_between_two_digests() {
    for seed in 0..10 {
        let live = record(seed, 3_000);
        let icount = live.recorder.moment().icount / 2;
        let defect = Some(Defect::FlipBit { icount });
        let machine = ToyMachine::new(ToyConfig::default()).with_defect(defect);
        let mut replayer = Replayer::new(machine, 0, Counted::default());
        let divergence = replay_all(&mut replayer, &live.batches, &mut Random::new(seed))
            .expect_err("a flipped bit is found");
        assert!(matches!(divergence.kind, DivergenceKind::Digest { .. }), "{divergence}");
        assert!(divergence.verified_at.icount < icount && icount <= divergence.found_at.icount);
        assert!(divergence.found_at.icount - divergence.verified_at.icount < 4_000, "{divergence}");
    }
}

#[test]
fn a_changed_log_is_found() {
    let live = record(7, 3_000);
    let change = |change: fn(&mut Batch) -> bool| {
        let mut random = Random::new(7);
        let mut replayer = Replayer::new(ToyMachine::new(ToyConfig::default()), 0, Counted::default());
        let mut changed = false;
        for sealed in &live.batches {
            let mut batch = sealed.batch().clone();
            changed = changed || change(&mut batch);
            replayer.push_batch(&batch);
        }
        assert!(changed);
        replay_all(&mut replayer, &[], &mut random).expect_err("found").kind
    };
    let hash = change(|batch| batch.output_hashes.first_mut().map(|hash| *hash ^= 1).is_some());
    assert!(matches!(hash, DivergenceKind::Output { .. }));
    let missing = change(|batch| batch.sequence > 20 && batch.output_hashes.pop().is_some());
    assert!(matches!(missing, DivergenceKind::OutputCount { .. } | DivergenceKind::Output { .. }));
    let moved = change(|batch| {
        let Some(event) = batch.events.iter_mut().find(|event| event.at.icount > 0) else { return false };
        event.at.time_ns += 1;
        true
    });
    assert!(matches!(moved, DivergenceKind::Moment { .. }));
    let dropped = change(|batch| batch.sequence > 3 && batch.events.pop().is_some());
    assert!(!matches!(dropped, DivergenceKind::OutputCount { .. }), "{dropped}");
}

#[test]
fn an_idle_guest_logs_nothing_and_sleeps() {
    let config = ToyConfig { tick_ns: 10 * MILLISECOND_NS, chatter_ticks: 0, ..ToyConfig::default() };
    let mut recorder = Recorder::new(ToyMachine::new(config), RecorderConfig::default(), 0, 0);
    let (mut now_ns, mut steps, mut outputs) = (0, 0, 0);
    while now_ns < 10_000 * MILLISECOND_NS {
        steps += 1;
        match recorder.step(now_ns) {
            Step::Sleep { until_ns } => now_ns = until_ns.expect("a tick is due") + 20_000,
            Step::Continue => now_ns += 10_000,
            other => panic!("{other:?}"),
        }
        if let Some(recorded) = recorder.take_recorded(now_ns) {
            assert_eq!(recorded.events.len(), 0);
            // A digest comes only beside something that is logged anyway.
            assert!(recorded.digests.is_empty() || !recorded.outputs.is_empty());
            outputs += recorded.outputs.len();
        }
    }
    assert!(steps < 6_000, "{steps} steps in 10 s");
    assert!(outputs > 0, "ticks happened");
    let lag_ns = now_ns - recorder.moment().time_ns;
    assert!(lag_ns < 11 * MILLISECOND_NS, "guest time follows real time, lag {lag_ns} ns");
}

#[test]
fn guest_time_is_never_ahead_and_a_takeover_makes_good_with_one_advance() {
    let mut live = record(3, 500);
    assert!(live.recorder.moment().time_ns <= live.now_ns);
    let (events, offset_ns) = (live.recorder.events_before(), live.recorder.clock_offset_ns());
    let machine = live_machine(&mut live);
    let before = machine.moment();
    let now_ns = live.now_ns + 700 * MILLISECOND_NS;
    let mut recorder = Recorder::take_over(machine, recorder_config(), events, offset_ns, now_ns);
    recorder.step(now_ns);
    let recorded = recorder.take_recorded(now_ns).expect("something happened");
    let advances: Vec<u64> = recorded
        .events
        .iter()
        .filter_map(|logged| match logged.event {
            Event::ClockAdvance { delta_ns } => Some(delta_ns),
            _ => None,
        })
        .collect();
    let [delta_ns] = advances[..] else { panic!("{advances:?}") };
    assert!(delta_ns >= 700 * MILLISECOND_NS);
    assert_eq!(recorded.events[0].at, before);
    assert!(recorder.moment() > before);
    // An offset from a clock that is behind never takes guest time back.
    let machine = recorder.into_machine();
    let here = machine.moment();
    let mut recorder = Recorder::take_over(machine, recorder_config(), 0, i64::MIN, now_ns);
    recorder.step(now_ns + 1);
    assert!(recorder.moment() >= here);
}

#[test]
fn a_halted_guest_is_replayed_to_its_end() {
    let mut live = record(11, 200);
    let request = Request { client: 2, number: 1, operation: Operation::PowerOff };
    live.recorder.handle_input(Event::NetworkIn { port: 0, frame: request.to_frame() }, live.now_ns);
    while !matches!(live.recorder.step(live.now_ns), Step::Halted { code: 0 }) {
        live.now_ns += MILLISECOND_NS;
    }
    live.finish();
    let mut replayer = Replayer::new(ToyMachine::new(ToyConfig::default()), 0, Counted::default());
    let outputs = replay_all(&mut replayer, &live.batches, &mut Random::new(1)).expect("no divergence");
    assert_eq!(replayer.probe_halt(), Some(0));
    assert_eq!(outputs.len(), live.outputs.len());
}

#[test]
fn a_checkpoint_that_holds_too_much_stalls_the_guest_until_pages_are_taken() {
    let config = RecorderConfig { checkpoint_held_max_bytes: 4 * 4096, ..recorder_config() };
    let mut recorder = Recorder::new(ToyMachine::new(ToyConfig::default()), config, 0, 0);
    recorder.begin_checkpoint(CheckpointExtent::Full, 0);
    let mut now_ns = 0;
    while recorder.step(now_ns) != Step::Stalled {
        now_ns += MILLISECOND_NS;
        assert!(now_ns < 10_000 * MILLISECOND_NS, "never stalled");
    }
    let stalled_at = recorder.moment();
    recorder.step(now_ns + MILLISECOND_NS);
    assert_eq!(recorder.moment(), stalled_at);
    while !recorder.take_checkpoint_pages(CheckpointExtent::Full, 4).is_empty() {}
    now_ns += 5 * MILLISECOND_NS;
    recorder.step(now_ns);
    assert!(recorder.moment() > stalled_at);
    assert_ne!(recorder.moment(), Moment::BOOT);
}

/// A checkpoint's end that comes twice must not cost the machine (found by the simulator).
#[test]
fn a_worker_keeps_its_machine_when_the_end_of_a_checkpoint_is_repeated() {
    let mut live = record(5, 300);
    let begun = live.recorder.begin_checkpoint(CheckpointExtent::Full, live.now_ns);
    let start = CheckpointStart {
        position: live.batcher.position(),
        chain: live.batcher.chain(),
        events_before: begun.events_before,
        released_outputs: begun.head.outputs_before,
        held: Vec::new(),
        head: begun.head,
    };
    let mut worker = ReplayWorker::new(|| ToyMachine::new(ToyConfig::default()));
    worker.handle(ToReplayer::RestoreBegin { generation: 1, start: Box::new(start) });
    loop {
        let part = live.recorder.take_checkpoint_pages(CheckpointExtent::Full, 7);
        if part.is_empty() {
            break;
        }
        worker.handle(ToReplayer::RestorePart(part));
    }
    worker.handle(ToReplayer::RestoreEnd);
    worker.handle(ToReplayer::RestoreEnd);
    worker.handle(ToReplayer::Finish);
    worker.turn(1_000);
    let reports: Vec<ReplayReport> = std::iter::from_fn(|| worker.poll()).map(|told| told.report).collect();
    assert_eq!(reports[0], ReplayReport::Restored);
    assert!(matches!(reports.last(), Some(ReplayReport::Finished { .. })), "{reports:?}");
    assert!(worker.into_machine().is_some());
}

#[test]
fn a_state_kept_for_diagnosis_restores_to_the_machine_it_was_taken_from() {
    let machine = ToyMachine::new(ToyConfig::default());
    let mut vcpu = Vcpu::new(Recorder::new(machine, recorder_config(), 0, 0));
    vcpu.handle_input(Event::Entropy(Bytes::from_static(b"seed")), 0);
    for now_ns in (0..50).map(|turn| turn * MILLISECOND_NS) {
        vcpu.turn(now_ns);
    }
    let mut copy = ToyMachine::new(ToyConfig::default());
    let digest = vcpu
        .keep_state(50 * MILLISECOND_NS, |head, next_part| {
            copy.restore_begin(&head).expect("it is the same machine");
            loop {
                let part = next_part();
                if part.is_empty() {
                    return head.digest;
                }
                copy.restore_part(&part).expect("the part lies in the machine");
            }
        })
        .expect("no checkpoint is under way");
    assert_eq!(copy.digest(), digest);

    // What was recorded before it is told, and no state is kept while a checkpoint is shipped.
    assert!(matches!(vcpu.poll(), Some(FromMachine::Recorded(_))));
    let extent = CheckpointExtent::Full;
    let begin = primary::MachineRequest::BeginCheckpoint { checkpoint: 1, extent, fresh: false };
    vcpu.handle_request(begin, 60 * MILLISECOND_NS);
    assert!(vcpu.keep_state(60 * MILLISECOND_NS, |_, _| ()).is_none());
}
