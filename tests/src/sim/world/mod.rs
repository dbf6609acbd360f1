//! Virtual time, and everything that happens in it.

mod arbitration;
mod clients;
mod disks;
mod leases;
mod logs;
mod restart;
pub mod scenario;
mod threads;
mod trouble;
mod wires;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use backup::{BackupEvent, Finish as BackupFinish, ReplayReport};
use bytes::Bytes;
use link::arbiter::{Arbiter, ArbiterError, CasOutcome, MemoryArbiter};
use link::arbitration::{ArbitrationError, Authority, Decision, Record, Step, arbitrate, decide};
use log_format::{Event, JoinPlan, Life, LogEntry, LoggedOutput, MachineIdentity, Message, Output};
use machine::{Machine, PrimacyStart};
use primary::{Durability, Finish as PrimaryFinish, FromMachine, PrimaryEvent, Step as VcpuStep};

use super::check::{Checks, Custody};
use super::client::Client;
use super::clock::{HostClock, RATE_MAX_PPM};
use super::coverage::{Coverage, all_pairs};
use super::disk::DiskHealth;
use super::faults::{Fault, FaultKind, Plan};
use super::ledger::{self, Reply, Request};
use super::log::HostLog;
use super::network::Network;
use super::node::{Hop, LivePrimary, Node, Role, ToVcpu, live_primary, standing_backup};
use super::random::Random;
use super::shape::{Shape, draw_mode};
use super::toy::{Defect, ToyConfig, ToyMachine};

pub use restart::Base;

const MILLISECOND_NS: u64 = 1_000_000;
const VM: &str = "toy";

/// A defect to put into the protocol, to prove that the checks see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Mutation {
    /// Output leaves when it is made.
    ReleaseEarly,
    /// Every step is granted, whatever the record says.
    SkipArbiter,
    /// A takeover forgets the outputs that may not have been sent.
    ForgetReissue,
    /// A backup acknowledges a batch before it came.
    AckUnheld,
    /// The machine of the backup has a defect.
    FlipBit,
    /// The first bid wins, however many must speak.
    IgnoreBids,
    /// Output leaves when one backup holds it, however many must.
    ReleaseAtFirst,
    /// A primary goes on though its lease has ended.
    KeepLease,
    /// What was appended to a log is called durable before it is.
    CallDurable,
    /// An increment is put in place without its last part.
    HalveIncrement,
    /// An increment is put in place without a block of the disk.
    SkipBlock,
}

/// A simulation.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// How long things go wrong.
    pub faults_for_ns: u64,
    /// Whether anything goes wrong at all.
    pub faults: bool,
    /// A defect, for the checks' own test.
    pub mutation: Option<Mutation>,
    /// Prints what happens.
    pub trace: bool,
}

impl Options {
    /// The run of this seed.
    pub fn new(seed: u64) -> Self {
        Options { seed, faults_for_ns: 3_000 * MILLISECOND_NS, faults: true, mutation: None, trace: false }
    }
}

/// Runs a cluster through its faults and to its recovery.
///
/// # Errors
/// What the checks found wrong.
pub fn run(options: Options) -> Result<Coverage, Vec<String>> {
    let mut world = World::new(options);
    world.play();
    match world.checks.violations() {
        [] => Ok(world.coverage),
        violations => Err(violations.to_vec()),
    }
}

#[derive(Debug)]
enum What {
    Timer { node: usize, epoch: u64, number: u64 },
    Thread { node: usize, epoch: u64, number: u64 },
    Hop { node: usize, epoch: u64, hop: Hop },
    Dialled { node: usize, epoch: u64 },
    Connected { node: usize, epoch: u64, link: u64 },
    Wire { link: u64, end: usize, frame: Bytes },
    Closed { link: u64, end: usize },
    ArbiterAsked { node: usize, epoch: u64, step: Step },
    ArbiterSets { node: usize, epoch: u64, step: Step, expected: Option<Record>, new: Record },
    ArbiterReply { node: usize, epoch: u64, reply: Result<Record, ArbitrationError> },
    ClientAsks { client: usize, number: u64 },
    ClientHears { reply: Reply },
    Log { node: usize, epoch: u64 },
    Fault,
    CompareDisks,
    Heal { from: usize, to: usize },
    Restart { node: usize, epoch: u64 },
    StartAgain { node: usize, epoch: u64, term: u64 },
    LeaseAsked { node: usize, epoch: u64, sent_ns: u64 },
    LeaseGiven { node: usize, epoch: u64, valid_until_ns: u64 },
    RecordSeen { node: usize, epoch: u64, record: Record },
}

impl What {
    /// Whether the arbiter is on the way to making a backup the primary.
    fn is_takeover(&self) -> bool {
        let (What::ArbiterAsked { step, .. } | What::ArbiterSets { step, .. }) = self else { return false };
        matches!(step, Step::TakeOver { .. })
    }

    /// The node that does it, if that node can stand still.
    fn node(&self) -> Option<usize> {
        match self {
            What::Timer { node, .. }
            | What::Thread { node, .. }
            | What::Hop { node, .. }
            | What::Log { node, .. }
            | What::LeaseGiven { node, .. }
            | What::RecordSeen { node, .. }
            | What::Dialled { node, .. }
            | What::Connected { node, .. }
            | What::ArbiterReply { node, .. } => Some(*node),
            _ => None,
        }
    }
}

struct Scheduled {
    at_ns: u64,
    number: u64,
    what: What,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ns, self.number).cmp(&(other.at_ns, other.number))
    }
}

struct World {
    options: Options,
    toy: ToyConfig,
    shape: Shape,
    now_ns: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    lives_begun: u64,
    random: Random,
    plan: Plan,
    /// Kinds of faults that have their effect, and until when.
    active: Vec<(FaultKind, u64)>,
    /// Nobody reaches the arbiter until then, and it takes long until then.
    arbiter_down_until_ns: u64,
    arbiter_slow_until_ns: u64,
    nodes: Vec<Node>,
    /// Where the hosts' logs are, in a run that keeps them.
    logs: Option<tempfile::TempDir>,
    network: Network,
    arbiter: MemoryArbiter,
    /// Per term: its last record.
    rules: BTreeMap<u64, Record>,
    clients: Vec<(Client, u64)>,
    checks: Checks,
    coverage: Coverage,
    healing: bool,
    powering_off: bool,
    defect_used: bool,
}

impl World {
    fn new(options: Options) -> Self {
        let mut random = Random::new(options.seed);
        // A run of seeds goes through all pairs of faults, one after the other.
        let pairs = all_pairs();
        let plan = Plan::new(pairs[(options.seed % pairs.len() as u64) as usize]);
        let shape = Shape::draw(&mut random, &plan);
        World::of(options, shape, plan, random)
    }

    fn of(options: Options, shape: Shape, plan: Plan, mut random: Random) -> Self {
        let clients = (0..random.between(1, 4)).map(|id| (Client::new(id as u8, random.fork()), 0)).collect();
        let names = ["a", "b", "c", "d"].into_iter().take(shape.hosts);
        // Each host's clock began at another time.
        let nodes: Vec<Node> = names
            .map(|name| Node::new(name, HostClock::new(random.between(0, 5_000_000 * MILLISECOND_NS))))
            .collect();
        let mut world = World {
            options,
            toy: ToyConfig { tick_ns: 15_000_000, instruction_ns: 1_000, ..ToyConfig::default() },
            shape,
            now_ns: 0,
            queue: BinaryHeap::new(),
            scheduled: 0,
            lives_begun: 0,
            random,
            plan,
            active: Vec::new(),
            arbiter_down_until_ns: 0,
            arbiter_slow_until_ns: 0,
            nodes,
            logs: None,
            network: Network::new(shape.hosts, shape.latency_ns),
            arbiter: MemoryArbiter::default(),
            rules: BTreeMap::new(),
            clients,
            checks: Checks::default(),
            coverage: Coverage::default(),
            healing: false,
            powering_off: false,
            defect_used: false,
        };
        if world.shape.logs {
            world.keep_logs();
        }
        world.begin();
        world
    }

    fn begin(&mut self) {
        let life = self.begin_life(0);
        let step = Step::ClaimStart { node: "a".to_owned(), life, authority: Authority::Rules };
        arbitrate(&self.arbiter, &step).expect("an empty arbiter lets anybody start");
        let machine = ToyMachine::new(self.toy);
        let start = PrimacyStart { life, ..PrimacyStart::boot(&machine.identity(), 1) };
        if self.shape.durable {
            self.begin_durable_log(0, Base::Boot);
        }
        self.start_primary(0, machine, start);
        let seed = Event::Entropy(Bytes::from(self.random.next_u64().to_le_bytes().to_vec()));
        self.hop(0, Hop::ToVcpu(ToVcpu::Input(seed)));
        for node in 1..self.nodes.len() {
            let join_ns = self.random.between(0, 400 * MILLISECOND_NS);
            let epoch = self.nodes[node].epoch;
            self.schedule(join_ns, What::Restart { node, epoch });
        }
        for client in 0..self.clients.len() {
            self.schedule(
                self.random.clone().between(0, MILLISECOND_NS),
                What::ClientAsks { client, number: 0 },
            );
        }
        let first_ns = self.random.between(5, 700) * MILLISECOND_NS;
        self.schedule(first_ns, What::Fault);
        self.schedule(3 * first_ns, What::CompareDisks);
    }

    /// Faults, then recovery, then the last look.
    fn play(&mut self) {
        self.run_until(self.options.faults_for_ns);
        self.heal_all();
        let quiet_ns = self.now_ns + 25_000 * MILLISECOND_NS;
        while self.now_ns < quiet_ns && !self.is_settled() && self.checks.violations().is_empty() {
            self.run_until(self.now_ns + 50 * MILLISECOND_NS);
        }
        if self.checks.violations().is_empty() && !self.is_settled() {
            let states: Vec<String> = self.nodes.iter().map(describe).collect();
            let open = self.clients.iter().filter(|(client, _)| !client.is_done()).count();
            let record = self.arbiter.read().ok().flatten();
            self.checks.violation(format!(
                "liveness: after all faults healed, {open} clients wait; nodes: {states:?}; record: {record:?}"
            ));
        }
        self.final_checks();
        if self.checks.violations().is_empty() && self.random.chance(250) {
            self.power_off();
        }
        for node in 0..self.nodes.len() {
            self.end_log(node, false);
        }
    }

    /// The guest powers itself off: both sides end, the last answer leaves, and the record lets
    /// the next start happen.
    fn power_off(&mut self) {
        // Pauses and restarts that began before the healing may still end.
        self.run_until(self.now_ns + 3_000 * MILLISECOND_NS);
        if !self.is_settled() {
            let states: Vec<String> = self.nodes.iter().map(describe).collect();
            return self
                .checks
                .violation(format!("liveness: protection was lost without a fault: {states:?}"));
        }
        self.powering_off = true;
        let request = Request { client: u8::MAX, number: 1, operation: ledger::Operation::PowerOff };
        let holder = self.nodes.iter().position(|node| matches!(node.role, Role::Primary(_)));
        let Some(node) = holder else { return };
        let event = Event::NetworkIn { port: 0, frame: request.to_frame() };
        self.hop(node, Hop::ToVcpu(ToVcpu::Input(event)));
        self.run_until(self.now_ns + 3_000 * MILLISECOND_NS);
        let record = self.arbiter.read().ok().flatten();
        let ended = self.coverage.times("guest ended");
        let free = record.as_ref().is_some_and(|record| record.backups.is_empty());
        // A host that was not in step need not end.
        if ended < 2 || !free || !self.checks.has_answered(u8::MAX) {
            let states: Vec<String> = self.nodes.iter().map(describe).collect();
            let text = format!("a power-off ended {ended} sides: {states:?}, record: {record:?}");
            self.checks.violation(text);
        }
    }

    fn final_checks(&mut self) {
        let history: Vec<_> = self.clients.iter().flat_map(|(client, _)| client.history().to_vec()).collect();
        let ledger =
            self.holder().filter(|_| self.is_settled()).map(|live| live.vcpu.recorder().machine().ledger());
        self.coverage.add("operations", history.len() as u64);
        if self.checks.violations().is_empty() {
            self.checks.finish(&history, ledger);
        }
    }

    fn run_until(&mut self, until_ns: u64) {
        // What comes after something wrong says nothing more.
        while self.queue.peek().is_some_and(|Reverse(next)| next.at_ns <= until_ns) {
            if !self.checks.violations().is_empty() {
                return;
            }
            let Some(Reverse(next)) = self.queue.pop() else { break };
            self.now_ns = next.at_ns;
            self.happen(next.what);
        }
        self.now_ns = self.now_ns.max(until_ns);
    }

    /// Every client is answered, and the machine is protected.
    fn is_settled(&self) -> bool {
        let protected = self.holder().is_some_and(|live| live.core.is_protected());
        protected && self.clients.iter().all(|(client, _)| client.is_done())
    }

    /// The arbiter's record.
    fn record(&self) -> Option<Record> {
        self.arbiter.read().ok().flatten()
    }

    /// The primary that the record names: a stale one may still believe in itself.
    fn holder(&self) -> Option<&LivePrimary> {
        let record = self.arbiter.read().ok().flatten()?;
        self.nodes.iter().filter(|node| node.name == record.holder).find_map(|node| match &node.role {
            Role::Primary(live) if live.core.term() == record.term => Some(&**live),
            _ => None,
        })
    }

    fn schedule(&mut self, at_ns: u64, what: What) {
        self.scheduled += 1;
        self.queue.push(Reverse(Scheduled { at_ns, number: self.scheduled, what }));
    }

    fn count(&mut self, what: &str) {
        self.coverage.count(what);
    }

    fn trace(&self, text: impl FnOnce() -> String) {
        if self.options.trace {
            println!("{:>13.6} ms  {}", self.now_ns as f64 / MILLISECOND_NS as f64, text());
        }
    }

    fn happen(&mut self, what: What) {
        if let Some(node) = what.node()
            && self.nodes[node].paused_until_ns > self.now_ns
        {
            let until_ns = self.nodes[node].paused_until_ns;
            return self.schedule(until_ns, what);
        }
        match what {
            What::Timer { node, epoch, number } => {
                if self.lives(node, epoch) && self.nodes[node].timer == number {
                    self.timer(node);
                }
            }
            What::Thread { node, epoch, number } => {
                if self.lives(node, epoch) && self.nodes[node].thread == number {
                    self.thread_turn(node);
                }
            }
            What::Hop { node, epoch, hop } if self.lives(node, epoch) => self.hop_arrives(node, hop),
            What::Dialled { node, epoch } if self.lives(node, epoch) => self.dialled(node),
            What::Connected { node, epoch, link } => self.accepted(node, epoch, link),
            What::Wire { link, end, frame } => self.frame_arrives(link, end, frame),
            What::Closed { link, end } => self.close_end(link, end),
            What::ArbiterAsked { node, epoch, step } => self.arbiter_asked(node, epoch, step),
            What::ArbiterSets { node, epoch, step, expected, new } => {
                self.arbiter_sets(node, epoch, step, expected, new);
            }
            What::ArbiterReply { node, epoch, reply } if self.lives(node, epoch) => {
                self.arbiter_replies(node, reply);
            }
            What::ClientAsks { client, number } => self.client_asks(client, number),
            What::ClientHears { reply } => self.client_hears(&reply),
            What::Log { node, epoch } if self.lives(node, epoch) => self.log_turn(node),
            What::Fault => self.fault(),
            What::CompareDisks => self.compare_disks(),
            What::Heal { from, to } => self.heal(from, to),
            What::Restart { node, epoch } if self.lives(node, epoch) => self.start_backup(node),
            What::StartAgain { node, epoch, term } if self.lives(node, epoch) => {
                self.start_again(node, term);
            }
            What::LeaseAsked { node, epoch, sent_ns } => self.lease_asked(node, epoch, sent_ns),
            What::LeaseGiven { node, epoch, valid_until_ns } if self.lives(node, epoch) => {
                self.lease_given(node, valid_until_ns);
            }
            What::RecordSeen { node, epoch, record } if self.lives(node, epoch) => {
                self.record_seen(node, &record);
            }
            What::Hop { .. }
            | What::Dialled { .. }
            | What::ArbiterReply { .. }
            | What::Log { .. }
            | What::StartAgain { .. }
            | What::LeaseGiven { .. }
            | What::RecordSeen { .. }
            | What::Restart { .. } => {}
        }
    }

    /// What a host's clock shows now: all its cores ever know of time.
    fn clock_ns(&self, node: usize) -> u64 {
        self.nodes[node].clock.shows_ns(self.now_ns)
    }

    /// A node begins anew: the arbiter is to know it from what it was before.
    fn begin_life(&mut self, node: usize) -> Life {
        self.lives_begun += 1;
        self.nodes[node].life = Life(self.lives_begun);
        self.nodes[node].life
    }

    fn lives(&self, node: usize, epoch: u64) -> bool {
        self.nodes[node].epoch == epoch
    }
}

fn describe(node: &Node) -> String {
    let name = &node.name;
    match &node.role {
        Role::Down => format!("{name}: down"),
        Role::Primary(live) => {
            let (mode, why) = live.core.mode();
            format!(
                "{name}: primary of term {}, {}, mode {mode} ({why}), {:?}, {} outputs held, braked {}",
                live.core.term(),
                live.core.state_name(),
                live.core.backups(),
                live.core.buffer_statistics().held_outputs,
                live.braked,
            )
        }
        Role::Backup(standing) => {
            let core = &standing.core;
            format!("{name}: backup in term {}, {}, mode {}", core.term(), core.state_name(), core.mode())
        }
    }
}
