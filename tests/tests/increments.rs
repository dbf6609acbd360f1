//! A backup that stands at a checkpoint: increments of a machine that runs on, taken by the
//! production's own threads' code, lead it from state to state; and from any of them it follows
//! the log to where the primary is.

use backup::{DivergenceKind, FromReplayer, ReplayReport, ReplayWorker, ToReplayer, WholeIncrement};
use bytes::Bytes;
use log_format::{
    ChainHash, Digest, EncodedPage, Event, IncrementEnd, IncrementStart, Position, SealedBatch,
};
use machine::disk::{BlockStore, MemDisk};
use machine::{BootImages, CheckpointExtent, DiskConfig, Machine, MachineConfig, NetConfig, RiscvMachine};
use primary::{Batcher, CheckpointBegun, FromMachine, MachineRequest, Recorder, RecorderConfig, Step, Vcpu};
use secondwind_tests::sim::ledger::{Operation, Request};
use secondwind_tests::sim::random::Random;
use secondwind_tests::sim::toy::{ToyConfig, ToyMachine};

const BUDGET: u64 = 1_000_000;

/// A primary in small: its machine's thread, and the log and increments that come of it.
struct Live<M> {
    vcpu: Vcpu<M>,
    batcher: Batcher,
    now_ns: u64,
    /// What was not handed to the backup yet.
    batches: Vec<SealedBatch>,
    /// Batches sealed up to the state on which the next increment builds.
    base: u64,
    checkpoints: u64,
    begun: Option<(IncrementStart, Vec<log_format::EncodedPart>)>,
    whole: Option<WholeIncrement>,
    packed_bytes: u64,
    random: Random,
    requests: u64,
}

impl<M: Machine> Live<M> {
    fn new(machine: M, config: RecorderConfig, seed: u64) -> Live<M> {
        let chain = ChainHash::genesis(&machine.identity());
        let from = Position { term: 1, ..Position::default() };
        let mut vcpu = Vcpu::new(Recorder::new(machine, config, 0, 0));
        vcpu.handle_input(Event::Entropy(Bytes::from_static(b"seed")), 0);
        Live {
            vcpu,
            batcher: Batcher::new(from, chain, 0),
            now_ns: 0,
            batches: Vec::new(),
            base: 0,
            checkpoints: 0,
            begun: None,
            whole: None,
            packed_bytes: 0,
            random: Random::new(seed),
            requests: 0,
        }
    }

    /// Lets the machine's thread make so many turns.
    fn run(&mut self, turns: u64) {
        for _ in 0..turns {
            if self.random.chance(40) {
                self.requests += 1;
                let operation = Operation::Append(self.requests);
                let frame = Request { client: 1, number: self.requests, operation }.to_frame();
                self.vcpu.handle_input(Event::NetworkIn { port: 0, frame }, self.now_ns);
            }
            let step = self.vcpu.turn(self.now_ns);
            self.now_ns += 40_000;
            if let Step::Sleep { until_ns: Some(until_ns) } = step {
                self.now_ns = self.now_ns.max(until_ns);
            }
            self.listen();
        }
    }

    fn listen(&mut self) {
        while let Some(message) = self.vcpu.poll() {
            match message {
                FromMachine::Recorded(recorded) => {
                    self.batcher.push(recorded, self.now_ns);
                    if self.random.chance(200) {
                        self.seal();
                    }
                }
                FromMachine::CheckpointBegun { begun, .. } => self.checkpoint_begun(*begun),
                FromMachine::IncrementPart { part, .. } => {
                    self.begun.as_mut().expect("an increment was begun").1.push(part);
                }
                FromMachine::IncrementEnd { parts, digest, packed_bytes, .. } => {
                    let (start, shipped) = self.begun.take().expect("an increment was begun");
                    assert_eq!(packed_bytes, shipped.iter().map(|part| part.packed_bytes() as u64).sum());
                    self.packed_bytes += packed_bytes;
                    self.base = start.position.sequence;
                    let end = IncrementEnd { parts, digest };
                    self.whole = Some(WholeIncrement { start, parts: shipped, end });
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn seal(&mut self) {
        let batch = self.batcher.seal(0);
        self.batches.push(batch);
    }

    fn checkpoint_begun(&mut self, begun: CheckpointBegun) {
        self.batcher.push(begun.before, self.now_ns);
        self.seal();
        let position = self.batcher.position();
        assert_eq!(position.moment, begun.head.moment);
        match begun.extent {
            CheckpointExtent::Full | CheckpointExtent::Disks => {}
            CheckpointExtent::Epoch => self.base = position.sequence,
            CheckpointExtent::Increment => {
                let start = IncrementStart {
                    position,
                    chain: self.batcher.chain(),
                    base: self.base,
                    events_before: begun.events_before,
                    released_outputs: 0,
                    held: Vec::new(),
                    head: begun.head,
                };
                self.begun = Some((start, Vec::new()));
            }
        }
    }

    fn begin(&mut self, extent: CheckpointExtent) -> u64 {
        self.checkpoints += 1;
        let checkpoint = self.checkpoints;
        let request = MachineRequest::BeginCheckpoint { checkpoint, extent, fresh: false };
        self.vcpu.handle_request(request, self.now_ns);
        self.listen();
        checkpoint
    }

    /// An increment from the last state to the present one, taken while the guest goes on.
    fn increment(&mut self) -> WholeIncrement {
        self.begin(CheckpointExtent::Increment);
        for _ in 0..10_000 {
            self.run(1);
            if let Some(whole) = self.whole.take() {
                return whole;
            }
        }
        panic!("the increment does not end");
    }

    /// Seals what there is, and gives the digest of the state there.
    fn finish(mut self) -> (Vec<SealedBatch>, Digest) {
        self.vcpu.stop(self.now_ns);
        self.listen();
        self.seal();
        let batches = std::mem::take(&mut self.batches);
        (batches, self.vcpu.into_machine().digest())
    }
}

/// A backup's replay thread in small.
struct Standby<M, F> {
    worker: ReplayWorker<M, F>,
}

impl<M: Machine, F: FnMut() -> M> Standby<M, F> {
    fn new(new_machine: F) -> Self {
        let mut worker = ReplayWorker::new(new_machine);
        worker.handle(ToReplayer::Boot { generation: 1 });
        Standby { worker }
    }

    fn push(&mut self, batches: impl IntoIterator<Item = SealedBatch>) {
        batches.into_iter().for_each(|batch| self.worker.handle(ToReplayer::Batch(batch)));
    }

    /// Works off all commands. What was reported beside progress.
    fn work(&mut self) -> Vec<ReplayReport> {
        while self.worker.turn(BUDGET) {}
        let reports = std::iter::from_fn(|| self.worker.poll());
        let reports = reports.map(|FromReplayer { report, .. }| report);
        reports.filter(|report| !matches!(report, ReplayReport::Progress { .. })).collect()
    }
}

fn ledger() -> RiscvMachine {
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
    RiscvMachine::new(config, &BootImages::supervisor(kernel.into(), None), disks).expect("it boots")
}

fn toy() -> ToyMachine {
    ToyMachine::new(ToyConfig::default())
}

fn toy_config() -> RecorderConfig {
    RecorderConfig {
        slice_instructions: 64,
        digest_interval_instructions: 2_000,
        digest_interval_ns: 10_000_000,
        digest_min_instructions: 100,
        ..RecorderConfig::default()
    }
}

/// Replay, stand, increments (with the log beside them or without), and the end of it: the log
/// after the last increment brings the backup to where the primary is.
fn lead_from_state_to_state<M: Machine, F: FnMut() -> M>(
    mut live: Live<M>,
    new_machine: F,
    turns: u64,
    ships_log: bool,
) -> u64 {
    let mut standby = Standby::new(new_machine);
    live.run(turns);
    live.begin(CheckpointExtent::Epoch);
    standby.push(live.batches.drain(..));
    let at = live.base;
    standby.worker.handle(ToReplayer::Stand { sequence: at });
    // In one stream: these wait until the machine stands.
    live.run(turns);
    let first = live.increment();
    let mut expected = vec![ReplayReport::Standing { sequence: at }];
    let mut next = Some(first);
    for round in 0..6 {
        let whole = next.take().unwrap_or_else(|| live.increment());
        let sequence = whole.start.position.sequence;
        let log = live.batches.drain(..).filter(|batch| ships_log || batch.sequence > sequence);
        standby.push(log.collect::<Vec<_>>());
        standby.worker.handle(ToReplayer::Increment(Box::new(whole)));
        expected.push(ReplayReport::Applied { sequence });
        if round > 0 {
            assert_eq!(standby.work(), std::mem::take(&mut expected));
        }
        live.run(turns / 4);
    }
    let packed_bytes = live.packed_bytes;
    let (rest, digest) = live.finish();
    standby.push(rest);
    standby.worker.handle(ToReplayer::Finish);
    let reports = standby.work();
    assert!(matches!(reports[..], [ReplayReport::Finished { .. }]), "{reports:?}");
    let mut machine = standby.worker.into_machine().expect("it follows");
    assert_eq!(machine.digest(), digest);
    packed_bytes
}

#[test]
fn increments_lead_a_toy_from_state_to_state() {
    for seed in 0..40 {
        let live = Live::new(toy(), toy_config(), seed);
        lead_from_state_to_state(live, toy, 200 + seed * 7, seed % 2 == 0);
    }
}

#[test]
fn increments_lead_a_real_machine_with_a_disk_from_state_to_state() {
    for (seed, ships_log) in [(1, true), (2, false)] {
        let live = Live::new(ledger(), RecorderConfig::default(), seed);
        lead_from_state_to_state(live, ledger, 3_000, ships_log);
    }
}

type ToyStandby = Standby<ToyMachine, fn() -> ToyMachine>;

/// A toy that ran and stands at the end of an epoch, its backup beside it.
fn standing(seed: u64) -> (Live<ToyMachine>, ToyStandby) {
    let mut live = Live::new(toy(), toy_config(), seed);
    let mut standby = Standby::new(toy as fn() -> ToyMachine);
    live.run(300);
    live.begin(CheckpointExtent::Epoch);
    standby.push(live.batches.drain(..));
    standby.worker.handle(ToReplayer::Stand { sequence: live.base });
    assert_eq!(standby.work(), [ReplayReport::Standing { sequence: live.base }]);
    (live, standby)
}

#[test]
fn a_takeover_applies_what_is_whole_and_follows_the_rest() {
    let (mut live, mut standby) = standing(3);
    live.run(200);
    let first = live.increment();
    live.run(100);
    let second = live.increment();
    let sequence = second.start.position.sequence;
    let (log, digest) = live.finish();
    standby.push(log);
    // Staged, and not applied yet, when the primary dies.
    standby.worker.handle(ToReplayer::Increment(Box::new(first)));
    standby.worker.handle(ToReplayer::Increment(Box::new(second)));
    standby.worker.handle(ToReplayer::Finish);
    let reports = standby.work();
    assert!(matches!(reports[1], ReplayReport::Applied { sequence: applied } if applied == sequence));
    assert!(matches!(reports[2..], [ReplayReport::Finished { .. }]), "{reports:?}");
    assert_eq!(standby.worker.into_machine().expect("it follows").digest(), digest);
}

#[test]
fn a_standing_backup_follows_again() {
    let (mut live, mut standby) = standing(4);
    live.run(200);
    let whole = live.increment();
    live.run(200);
    standby.push(live.batches.drain(..));
    standby.worker.handle(ToReplayer::Increment(Box::new(whole)));
    standby.worker.handle(ToReplayer::Follow);
    standby.work();
    // And stands again, where the next epoch begins.
    live.run(50);
    live.begin(CheckpointExtent::Epoch);
    standby.push(live.batches.drain(..));
    standby.worker.handle(ToReplayer::Stand { sequence: live.base });
    assert_eq!(standby.work(), [ReplayReport::Standing { sequence: live.base }]);
    live.run(60);
    let whole = live.increment();
    let sequence = whole.start.position.sequence;
    standby.worker.handle(ToReplayer::Increment(Box::new(whole)));
    assert_eq!(standby.work(), [ReplayReport::Applied { sequence }]);
}

#[test]
fn a_cancelled_increment_is_in_the_next_one() {
    let (mut live, mut standby) = standing(5);
    live.run(200);
    let checkpoint = live.begin(CheckpointExtent::Increment);
    live.vcpu.handle_request(MachineRequest::CancelCheckpoint { checkpoint }, live.now_ns);
    live.run(100);
    assert!(live.whole.is_none() && !live.vcpu.is_taking_increment());
    live.begin(CheckpointExtent::Increment);
    // Begun anew before its end: the same.
    let whole = live.increment();
    let sequence = whole.start.position.sequence;
    standby.worker.handle(ToReplayer::Increment(Box::new(whole)));
    assert_eq!(standby.work(), [ReplayReport::Applied { sequence }]);
}

#[test]
fn a_full_checkpoint_and_increments_do_not_disturb_each_other() {
    let (mut live, mut standby) = standing(6);
    live.run(100);
    let full = live.begin(CheckpointExtent::Full);
    let whole = live.increment();
    let sequence = whole.start.position.sequence;
    standby.worker.handle(ToReplayer::Increment(Box::new(whole)));
    assert_eq!(standby.work(), [ReplayReport::Applied { sequence }]);
    live.vcpu.handle_request(MachineRequest::CancelCheckpoint { checkpoint: full }, live.now_ns);
    live.run(20);
    let whole = live.increment();
    let sequence = whole.start.position.sequence;
    standby.worker.handle(ToReplayer::Increment(Box::new(whole)));
    assert_eq!(standby.work(), [ReplayReport::Applied { sequence }]);
}

/// Applies an increment with `damage` done to it. What is reported, and whether the machine is
/// still in the state before.
fn damaged(damage: impl FnOnce(&mut WholeIncrement)) -> (DivergenceKind, bool) {
    let (mut live, mut standby) = standing(7);
    live.run(200);
    let mut whole = live.increment();
    let before = standby.worker.moment();
    damage(&mut whole);
    standby.worker.handle(ToReplayer::Increment(Box::new(whole)));
    let reports = standby.work();
    let [ReplayReport::Diverged(divergence)] = &reports[..] else { panic!("{reports:?}") };
    let kept = standby.worker.diverged_machine().expect("it is kept for diagnosis");
    (divergence.kind.clone(), Some(kept.moment()) == before)
}

#[test]
fn a_damaged_increment_leaves_the_state_before() {
    let says = |kind: DivergenceKind, text: &str| {
        assert!(matches!(kind, DivergenceKind::Increment { .. }), "{kind}");
        assert!(kind.to_string().contains(text), "{kind}");
    };
    let (kind, is_before) = damaged(|whole| drop(whole.parts.pop()));
    says(kind, "parts");
    assert!(is_before);
    let last_page = |whole: &mut WholeIncrement, change: &dyn Fn(&mut EncodedPage)| {
        change(whole.parts.iter_mut().rev().find_map(|part| part.pages.last_mut()).expect("it has pages"));
    };
    let (kind, is_before) = damaged(|whole| last_page(whole, &|page| page.encoding = 77));
    says(kind, "page encoding 77");
    assert!(is_before);
    let (kind, is_before) = damaged(|whole| {
        last_page(whole, &|page| {
            (page.index, page.encoding, page.packed) = (1 << 40, 1, Bytes::new());
        });
    });
    says(kind, "page 1099511627776");
    assert!(is_before);
    let (kind, is_before) = damaged(|whole| whole.start.head.state.truncate(5));
    says(kind, "does not decode");
    assert!(is_before);
    let (kind, is_before) = damaged(|whole| whole.start.base += 1);
    says(kind, "leads from batch");
    assert!(is_before);
}

#[test]
fn an_increment_that_leads_elsewhere_is_a_divergence() {
    let (kind, is_before) = damaged(|whole| {
        let page = whole.parts[0].pages.first_mut().expect("it has pages");
        (page.encoding, page.packed) = (0, vec![0x5a; 4096].into());
    });
    assert!(matches!(kind, DivergenceKind::Digest { .. }), "{kind}");
    assert!(!is_before, "the state that came of it is kept");
}

#[test]
fn an_increment_has_no_place_where_the_machine_follows() {
    let (mut live, mut standby) = standing(8);
    live.run(200);
    let whole = live.increment();
    standby.push(live.batches.drain(..));
    standby.worker.handle(ToReplayer::Follow);
    standby.work();
    standby.worker.handle(ToReplayer::Increment(Box::new(whole)));
    let reports = standby.work();
    assert!(matches!(reports[..], [ReplayReport::Diverged(_)]), "{reports:?}");
}
