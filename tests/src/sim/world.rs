//! Virtual time, and everything that happens in it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use backup::{BackupEvent, Finish as BackupFinish, ReplayReport};
use bytes::Bytes;
use link::arbiter::{Arbiter, ArbiterError, CasOutcome, MemoryArbiter};
use link::arbitration::{ArbitrationError, Authority, Decision, Record, Step, arbitrate, decide};
use log_format::{Event, JoinPlan, LoggedOutput, Message, Output};
use machine::{Machine, PrimacyStart};
use primary::{Finish as PrimaryFinish, FromMachine, OnBackupLoss, PrimaryEvent, Step as VcpuStep};

use super::check::{Checks, Custody};
use super::client::Client;
use super::faults::Fault;
use super::ledger::Reply;
use super::network::Network;
use super::node::{Hop, LivePrimary, Node, Role, ToVcpu, live_primary, standing_backup};
use super::random::Random;
use super::toy::{Defect, ToyConfig, ToyMachine};

const MILLISECOND_NS: u64 = 1_000_000;
const HOSTS: usize = 2;
const VM: &str = "toy";

/// A defect to put into the protocol, to prove that the checks see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// Output leaves when it is made.
    ReleaseEarly,
    /// Every step is granted, whatever the record says.
    SkipArbiter,
    /// A takeover forgets the outputs that may not have been sent.
    ForgetReissue,
    /// A takeover goes live without the newest part of the log.
    ForgetNewestLog,
    /// The machine of the backup has a defect.
    FlipBit,
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

/// How often what happened.
pub type Coverage = BTreeMap<String, u64>;

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
    Fault,
    Heal { from: usize, to: usize },
    Restart { node: usize, epoch: u64 },
}

impl What {
    /// The node that does it, if that node can stand still.
    fn node(&self) -> Option<usize> {
        match self {
            What::Timer { node, .. }
            | What::Thread { node, .. }
            | What::Hop { node, .. }
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
    policy: OnBackupLoss,
    now_ns: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    random: Random,
    nodes: Vec<Node>,
    network: Network,
    arbiter: MemoryArbiter,
    /// Per term: the backup registered last.
    registered: BTreeMap<u64, String>,
    clients: Vec<(Client, u64)>,
    checks: Checks,
    coverage: Coverage,
    healing: bool,
    defect_used: bool,
}

impl World {
    fn new(options: Options) -> Self {
        let mut random = Random::new(options.seed);
        let latency_ns = *random.pick(&[(20_000, 120_000), (100_000, 2_000_000), (1_000_000, 9_000_000)]);
        let policy = match random.chance(250) {
            true => OnBackupLoss::Pause,
            false => OnBackupLoss::Continue,
        };
        let clients = (0..random.between(1, 4)).map(|id| (Client::new(id as u8, random.fork()), 0)).collect();
        let mut world = World {
            options,
            toy: ToyConfig { tick_ns: 15_000_000, instruction_ns: 1_000, ..ToyConfig::default() },
            policy,
            now_ns: 0,
            queue: BinaryHeap::new(),
            scheduled: 0,
            random,
            nodes: vec![Node::new("a"), Node::new("b")],
            network: Network::new(HOSTS, latency_ns),
            arbiter: MemoryArbiter::default(),
            registered: BTreeMap::new(),
            clients,
            checks: Checks::default(),
            coverage: Coverage::new(),
            healing: false,
            defect_used: false,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let step = Step::ClaimStart { node: "a".to_owned(), authority: Authority::Rules };
        arbitrate(&self.arbiter, &step).expect("an empty arbiter lets anybody start");
        let machine = ToyMachine::new(self.toy);
        let start = PrimacyStart::boot(&machine.identity(), 1);
        self.start_primary(0, machine, start);
        let seed = Event::Entropy(Bytes::from(self.random.next_u64().to_le_bytes().to_vec()));
        self.hop(0, Hop::ToVcpu(ToVcpu::Input(seed)));
        let join_ns = self.random.between(0, 400 * MILLISECOND_NS);
        let epoch = self.nodes[1].epoch;
        self.schedule(join_ns, What::Restart { node: 1, epoch });
        for client in 0..self.clients.len() {
            self.schedule(
                self.random.clone().between(0, MILLISECOND_NS),
                What::ClientAsks { client, number: 0 },
            );
        }
        let first_ns = self.random.between(5, 700) * MILLISECOND_NS;
        self.schedule(first_ns, What::Fault);
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
    }

    fn final_checks(&mut self) {
        let history: Vec<_> = self.clients.iter().flat_map(|(client, _)| client.history().to_vec()).collect();
        let ledger =
            self.holder().filter(|_| self.is_settled()).map(|live| live.vcpu.recorder().machine().ledger());
        *self.coverage.entry("operations".to_owned()).or_default() += history.len() as u64;
        if self.checks.violations().is_empty() {
            self.checks.finish(&history, ledger);
        }
    }

    fn run_until(&mut self, until_ns: u64) {
        while self.queue.peek().is_some_and(|Reverse(next)| next.at_ns <= until_ns) {
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
        *self.coverage.entry(what.to_owned()).or_default() += 1;
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
            What::Fault => self.fault(),
            What::Heal { from, to } => self.heal(from, to),
            What::Restart { node, epoch } if self.lives(node, epoch) => self.start_backup(node),
            What::Hop { .. } | What::Dialled { .. } | What::ArbiterReply { .. } | What::Restart { .. } => {}
        }
    }

    fn lives(&self, node: usize, epoch: u64) -> bool {
        self.nodes[node].epoch == epoch
    }

    // ---- a node's threads ----

    fn start_primary(&mut self, node: usize, machine: ToyMachine, start: PrimacyStart) {
        let mut config = primary::CoreConfig::new(VM, &self.nodes[node].name, machine.identity());
        config.on_backup_loss = self.policy;
        // Small bounds, so that runs of a few seconds meet them.
        config.tail_max_bytes = 6_000;
        config.unacked_max_bytes = 24_000;
        config.checkpoint_bite_pages = 5;
        config.checkpoint_window_bytes = 40_000;
        let now_ns = self.now_ns;
        self.nodes[node].role = Role::Primary(live_primary(config, machine, start, now_ns));
        self.wake_thread(node, now_ns);
        self.pump(node);
    }

    fn start_backup(&mut self, node: usize) {
        let machine = ToyMachine::new(self.toy);
        let mut config = backup::CoreConfig::new(VM, &self.nodes[node].name, machine.identity());
        config.has_boot_images = self.random.chance(500);
        config.unreplayed_max_bytes = 20_000;
        let defect = (self.options.mutation == Some(Mutation::FlipBit) && !self.defect_used)
            .then_some(Defect::FlipBit { icount: 9_000 });
        self.defect_used = true;
        let now_ns = self.now_ns;
        self.count("start backup");
        self.trace(|| format!("{} starts as a backup", self.nodes[node].name));
        self.nodes[node].role = Role::Backup(standing_backup(config, self.toy, defect, now_ns));
        self.pump(node);
    }

    /// The process of a node is gone.
    fn stop_node(&mut self, node: usize, restart_after_ns: u64) {
        self.nodes[node].remember_covered();
        self.nodes[node].role = Role::Down;
        self.nodes[node].epoch += 1;
        let epoch = self.nodes[node].epoch;
        self.nodes[node].last_hop_ns = [0; 4];
        let links: Vec<(u64, usize)> = self
            .network
            .links
            .iter()
            .filter(|(_, link)| link.ends.contains(&node))
            .map(|(id, link)| (*id, link.end_of(node)))
            .collect();
        for (id, end) in links {
            self.shut(id, end);
        }
        self.schedule(self.now_ns + restart_after_ns, What::Restart { node, epoch });
    }

    fn hop(&mut self, node: usize, hop: Hop) {
        let delay_ns = self.random.between(2_000, 40_000);
        let last = &mut self.nodes[node].last_hop_ns[hop.queue()];
        *last = (*last + 1).max(self.now_ns + delay_ns);
        let (at_ns, epoch) = (*last, self.nodes[node].epoch);
        self.schedule(at_ns, What::Hop { node, epoch, hop });
    }

    fn wake_thread(&mut self, node: usize, at_ns: u64) {
        self.nodes[node].thread += 1;
        let (epoch, number) = (self.nodes[node].epoch, self.nodes[node].thread);
        self.schedule(at_ns, What::Thread { node, epoch, number });
    }

    fn hop_arrives(&mut self, node: usize, hop: Hop) {
        let now_ns = self.now_ns;
        match (hop, &mut self.nodes[node].role) {
            (Hop::ToVcpu(message), Role::Primary(live)) => {
                match message {
                    ToVcpu::Input(event) => live.vcpu.handle_input(event, now_ns),
                    ToVcpu::Request(request) => live.vcpu.handle_request(request, now_ns),
                    ToVcpu::Brake(braked) => live.vcpu.brake(braked, now_ns),
                }
                self.wake_thread(node, now_ns);
            }
            (Hop::FromVcpu(message), Role::Primary(live)) => {
                if self.options.mutation == Some(Mutation::ReleaseEarly)
                    && let FromMachine::Recorded(recorded) = &message
                {
                    let (term, outputs) = (live.core.term(), recorded.outputs.clone());
                    outputs.iter().for_each(|output| self.release(node, term, output));
                }
                let Role::Primary(live) = &mut self.nodes[node].role else { return };
                live.core.handle_machine(message, now_ns);
                self.pump(node);
            }
            (Hop::ToReplayer(command), Role::Backup(standing)) => {
                standing.worker.handle(command);
                self.wake_thread(node, now_ns);
            }
            (Hop::FromReplayer(report), Role::Backup(_)) => {
                if let ReplayReport::Diverged(divergence) = &report.report
                    && self.options.mutation != Some(Mutation::FlipBit)
                {
                    let (name, text) = (self.nodes[node].name.clone(), divergence.to_string());
                    return self.checks.diverged(&name, &text);
                }
                if matches!(report.report, ReplayReport::Diverged(_)) {
                    // What it acknowledged before may leave until its primary hears of it.
                    self.nodes[node].remember_covered();
                }
                if let Some(standing) = self.nodes[node].backup() {
                    standing.core.handle_replayed(report, now_ns);
                }
                self.pump(node);
            }
            _ => {}
        }
    }

    fn thread_turn(&mut self, node: usize) {
        let now_ns = self.now_ns;
        let slow = self.nodes[node].slow_until_ns > now_ns;
        let effort_ns = self.random.between(20_000, 130_000) * if slow { 12 } else { 1 };
        let mut hops = Vec::new();
        let next_ns = match &mut self.nodes[node].role {
            Role::Primary(live) => {
                let step = live.vcpu.turn(now_ns);
                hops.extend(std::iter::from_fn(|| live.vcpu.poll()).map(Hop::FromVcpu));
                match step {
                    VcpuStep::Continue => Some(now_ns + effort_ns),
                    VcpuStep::Sleep { until_ns } => until_ns.map(|until_ns| until_ns.max(now_ns + 1_000)),
                    VcpuStep::Stalled | VcpuStep::Halted { .. } | VcpuStep::HostFault { .. } => None,
                }
            }
            Role::Backup(standing) => {
                let more = standing.worker.turn(if slow { 60 } else { 600 });
                hops.extend(std::iter::from_fn(|| standing.worker.poll()).map(Hop::FromReplayer));
                more.then_some(now_ns + effort_ns)
            }
            Role::Down => None,
        };
        hops.into_iter().for_each(|hop| self.hop(node, hop));
        if let Some(next_ns) = next_ns {
            self.wake_thread(node, next_ns);
        }
    }

    fn timer(&mut self, node: usize) {
        let now_ns = self.now_ns;
        match &mut self.nodes[node].role {
            Role::Primary(live) => live.core.handle_timeout(now_ns),
            Role::Backup(standing) => standing.core.handle_timeout(now_ns),
            Role::Down => return,
        }
        self.pump(node);
    }

    // ---- what the cores want ----

    fn pump(&mut self, node: usize) {
        match &self.nodes[node].role {
            Role::Primary(_) => self.pump_primary(node),
            Role::Backup(_) => self.pump_backup(node),
            Role::Down => return,
        }
        let now_ns = self.now_ns;
        let due_ns = match &self.nodes[node].role {
            Role::Primary(live) => live.core.poll_timeout(),
            Role::Backup(standing) => standing.core.poll_timeout(),
            Role::Down => None,
        };
        if let Some(due_ns) = due_ns {
            self.nodes[node].timer += 1;
            let (epoch, number) = (self.nodes[node].epoch, self.nodes[node].timer);
            self.schedule(due_ns.max(now_ns + 1_000), What::Timer { node, epoch, number });
        }
    }

    fn pump_primary(&mut self, node: usize) {
        let now_ns = self.now_ns;
        loop {
            let Some(live) = self.nodes[node].primary() else { return };
            let Some(output) = live.core.poll_release(now_ns) else { break };
            let term = live.core.term();
            self.release(node, term, &output);
        }
        let Some(live) = self.nodes[node].primary() else { return };
        let (mut sends, mut closes) = (Vec::new(), Vec::new());
        let ids: Vec<_> = live.core.sending().collect();
        for id in ids {
            while let Some(message) = live.core.poll_transmit(id, true) {
                sends.push((id.0, message));
            }
        }
        closes.extend(std::iter::from_fn(|| live.core.poll_close()));
        let requests: Vec<_> = std::iter::from_fn(|| live.core.poll_machine_request()).collect();
        let step = live.core.poll_arbiter_request(now_ns);
        let events: Vec<_> = std::iter::from_fn(|| live.core.poll_event()).collect();
        let stall = live.core.wants_stall();
        let brake = (stall != live.braked).then_some(stall);
        live.braked = stall;
        let finished = live.core.finished().cloned();
        sends.into_iter().for_each(|(link, message)| self.send(node, link, &message));
        closes.into_iter().for_each(|id| self.close_link(node, id.0));
        requests.into_iter().for_each(|request| self.hop(node, Hop::ToVcpu(ToVcpu::Request(request))));
        if let Some(braked) = brake {
            self.count(if braked { "brake" } else { "brake off" });
            self.hop(node, Hop::ToVcpu(ToVcpu::Brake(braked)));
        }
        if let Some(step) = step {
            self.ask_arbiter(node, step);
        }
        events.iter().for_each(|event| self.note_primary(node, event));
        if let Some(finish) = finished {
            self.primary_finished(node, &finish);
        }
    }

    fn pump_backup(&mut self, node: usize) {
        let now_ns = self.now_ns;
        let Some(standing) = self.nodes[node].backup() else { return };
        let core = &mut standing.core;
        let commands: Vec<_> = std::iter::from_fn(|| core.poll_replayer()).collect();
        let sends: Vec<_> = std::iter::from_fn(|| core.poll_transmit()).collect();
        let closes: Vec<_> = std::iter::from_fn(|| core.poll_close()).collect();
        let dial = core.poll_dial(now_ns);
        let step = core.poll_arbiter_request(now_ns);
        let events: Vec<_> = std::iter::from_fn(|| core.poll_event()).collect();
        let finished = core.finished().cloned();
        commands.into_iter().for_each(|command| self.hop(node, Hop::ToReplayer(command)));
        sends.into_iter().for_each(|(id, message)| self.send(node, id.0, &message));
        closes.into_iter().for_each(|id| self.close_link(node, id.0));
        if dial {
            let delay_ns = 2 * self.network.delay_ns(&mut self.random);
            let epoch = self.nodes[node].epoch;
            self.schedule(now_ns + delay_ns, What::Dialled { node, epoch });
        }
        if let Some(step) = step {
            self.ask_arbiter(node, step);
        }
        events.iter().for_each(|event| self.note_backup(node, event));
        if let Some(finish) = finished {
            self.backup_finished(node, finish);
        }
    }

    fn release(&mut self, node: usize, term: u64, output: &LoggedOutput) {
        let record = self.arbiter.read().ok().flatten();
        let backup = self.registered.get(&term);
        let backup_covers = self
            .nodes
            .iter()
            .filter(|other| Some(&other.name) == backup)
            .find_map(|other| other.covers(term));
        let custody = Custody { record: record.as_ref(), backup_covers };
        let name = self.nodes[node].name.clone();
        self.checks.released(&name, term, output, custody);
        if let Output::Frame { frame, .. } = &output.output
            && let Some(reply) = Reply::from_frame(frame)
            && !self.random.chance(15)
        {
            let delay_ns = self.random.between(50_000, 400_000);
            self.schedule(self.now_ns + delay_ns, What::ClientHears { reply });
        }
    }

    fn primary_finished(&mut self, node: usize, finish: &PrimaryFinish) {
        match finish {
            PrimaryFinish::Fenced { .. } => self.count("fenced"),
            PrimaryFinish::Stopped => self.count("stopped"),
            PrimaryFinish::GuestEnded { .. } => self.count("guest ended"),
            PrimaryFinish::HostFault { .. } => self.count("host fault"),
        }
        self.trace(|| format!("{} finished: {finish:?}", self.nodes[node].name));
        // Whoever runs it starts it again, as a backup.
        let after_ns = self.random.between(20, 300) * MILLISECOND_NS;
        self.stop_node(node, after_ns);
    }

    fn backup_finished(&mut self, node: usize, finish: BackupFinish) {
        self.trace(|| format!("{} finished: {finish:?}", self.nodes[node].name));
        let BackupFinish::TakenOver(mut start) = finish else {
            self.checks.violation(format!("{} ended as a backup: {finish:?}", self.nodes[node].name));
            return;
        };
        self.count("takeover");
        self.nodes[node].covered.insert(start.from.term - 1, start.outputs_logged);
        let Role::Backup(standing) = std::mem::replace(&mut self.nodes[node].role, Role::Down) else {
            return;
        };
        let Some(machine) = standing.worker.into_machine() else {
            return self.checks.violation("a takeover without a machine".to_owned());
        };
        if self.options.mutation == Some(Mutation::ForgetReissue) {
            start.reissue.clear();
        }
        let name = self.nodes[node].name.clone();
        self.checks.took_over(&name, machine.ledger().0);
        self.nodes[node].epoch += 1;
        self.nodes[node].last_hop_ns = [0; 4];
        self.start_primary(node, machine, *start);
        self.hop(node, Hop::ToVcpu(ToVcpu::Input(Event::Control(log_format::Control::Announce))));
    }

    // ---- the network ----

    fn send(&mut self, node: usize, link: u64, message: &Message) {
        let Ok(frame) = message.encode() else {
            return self.checks.violation(format!("a {:?} does not encode", message.kind()));
        };
        let Some(end) = self.network.links.get(&link).map(|link| 1 - link.end_of(node)) else { return };
        let at_ns = self.network.delivery_ns(link, end, message, self.now_ns, &mut self.random);
        self.schedule(at_ns, What::Wire { link, end, frame });
    }

    fn dialled(&mut self, node: usize) {
        let other = 1 - node;
        let listening = matches!(self.nodes[other].role, Role::Primary(_));
        let whole = self.network.is_whole(node, other);
        let now_ns = self.now_ns;
        let Some(standing) = self.nodes[node].backup() else { return };
        if !listening || !whole {
            standing.core.handle_dial_failed(now_ns);
            return self.pump(node);
        }
        let epochs = [self.nodes[node].epoch, self.nodes[other].epoch];
        let link = self.network.connect([node, other], epochs);
        self.schedule(now_ns, What::Connected { node: other, epoch: epochs[1], link });
        let name = Some(self.nodes[other].name.clone());
        if let Some(standing) = self.nodes[node].backup() {
            standing.core.handle_connected(backup::ConnectionId(link), name, now_ns);
        }
        self.pump(node);
    }

    fn accepted(&mut self, node: usize, epoch: u64, link: u64) {
        let now_ns = self.now_ns;
        let dialler = self.network.links.get(&link).map(|link| link.ends[0]);
        let name = dialler.map(|dialler| self.nodes[dialler].name.clone());
        let lives = self.lives(node, epoch) && name.is_some();
        match self.nodes[node].primary().filter(|_| lives) {
            Some(live) => {
                live.core.handle_connected(primary::ConnectionId(link), name, now_ns);
                self.pump(node);
            }
            None => self.close_link(node, link),
        }
    }

    fn frame_arrives(&mut self, id: u64, end: usize, frame: Bytes) {
        let Some(link) = self.network.links.get_mut(&id) else { return };
        let (from, to) = (link.ends[1 - end], link.ends[end]);
        if !link.open[end] {
            return;
        }
        if self.network.cut[from][to] {
            return link.held[end].push(frame);
        }
        let paused_until_ns = self.nodes[to].paused_until_ns;
        if paused_until_ns > self.now_ns {
            return self.schedule(paused_until_ns, What::Wire { link: id, end, frame });
        }
        if self.nodes[to].epoch != link.epochs[end] {
            return;
        }
        let fault = link.fault[end];
        let messages = link.arrive(end, frame, &mut self.random);
        if let Some(fault) = fault {
            self.trace(|| format!("the wire to {}: {fault:?}: {messages:?}", self.nodes[to].name));
        }
        match messages {
            Ok(messages) => messages.into_iter().for_each(|message| self.deliver(to, id, message)),
            Err(text) => {
                self.trace(|| format!("{}: {text}", self.nodes[to].name));
                self.count("connection torn down as corrupt");
                self.close_link(to, id);
                self.end_told(to, id);
            }
        }
    }

    fn deliver(&mut self, node: usize, link: u64, message: Message) {
        let now_ns = self.now_ns;
        match &mut self.nodes[node].role {
            Role::Primary(live) => {
                live.core.handle_message(primary::ConnectionId(link), message, now_ns);
            }
            Role::Backup(standing) => {
                standing.core.handle_message(backup::ConnectionId(link), message, now_ns);
            }
            Role::Down => return,
        }
        self.pump(node);
    }

    /// A node's core hears that a connection ended.
    fn end_told(&mut self, node: usize, link: u64) {
        let now_ns = self.now_ns;
        match &mut self.nodes[node].role {
            Role::Primary(live) => live.core.handle_closed(primary::ConnectionId(link), now_ns),
            Role::Backup(standing) => standing.core.handle_closed(backup::ConnectionId(link), now_ns),
            Role::Down => return,
        }
        self.pump(node);
    }

    /// A node closes its end: the other hears of it, unless the way is cut.
    fn close_link(&mut self, node: usize, id: u64) {
        let Some(end) = self.network.links.get(&id).map(|link| link.end_of(node)) else { return };
        self.shut(id, end);
        if self.nodes[node].primary().is_some() {
            // The driver of a listener tells its core when a connection is gone.
            let now_ns = self.now_ns;
            if let Some(live) = self.nodes[node].primary() {
                live.core.handle_closed(primary::ConnectionId(id), now_ns);
            }
        }
    }

    fn shut(&mut self, id: u64, end: usize) {
        let delay_ns = self.network.delay_ns(&mut self.random);
        let Some(link) = self.network.links.get_mut(&id) else { return };
        link.open[end] = false;
        // What was sent before arrives before.
        let at_ns = (self.now_ns + delay_ns).max(link.last_delivery_to(1 - end) + 1);
        self.schedule(at_ns, What::Closed { link: id, end: 1 - end });
    }

    fn close_end(&mut self, id: u64, end: usize) {
        let Some(link) = self.network.links.get_mut(&id) else { return };
        let (from, to) = (link.ends[1 - end], link.ends[end]);
        if self.network.cut[from][to] || self.nodes[to].paused_until_ns > self.now_ns {
            return self.schedule(self.now_ns + 20 * MILLISECOND_NS, What::Closed { link: id, end });
        }
        let was_open = std::mem::replace(&mut link.open[end], false);
        let same_life = link.epochs[end] == self.nodes[to].epoch;
        self.network.links.remove(&id);
        if was_open && same_life {
            self.end_told(to, id);
        }
    }

    fn heal(&mut self, from: usize, to: usize) {
        self.network.cut[from][to] = false;
        let mut frames = Vec::new();
        for (id, link) in &mut self.network.links {
            let end = link.end_of(to);
            if link.ends[1 - end] == from {
                frames.extend(link.held[end].drain(..).map(|frame| (*id, end, frame)));
            }
        }
        for (link, end, frame) in frames {
            self.schedule(self.now_ns, What::Wire { link, end, frame });
        }
    }

    // ---- the arbiter ----

    fn ask_arbiter(&mut self, node: usize, step: Step) {
        self.trace(|| format!("{} asks the arbiter: {step}", self.nodes[node].name));
        let delay_ns = self.random.between(50_000, 4 * MILLISECOND_NS);
        let epoch = self.nodes[node].epoch;
        if self.nodes[node].arbiter_cut_until_ns > self.now_ns {
            let reply = Err(ArbitrationError::Unreachable(ArbiterError::Withdrawn));
            return self.schedule(self.now_ns + 5 * delay_ns, What::ArbiterReply { node, epoch, reply });
        }
        self.schedule(self.now_ns + delay_ns, What::ArbiterAsked { node, epoch, step });
    }

    fn arbiter_asked(&mut self, node: usize, epoch: u64, step: Step) {
        let current = self.arbiter.read().ok().flatten();
        self.arbiter_decides(node, epoch, step, current);
    }

    fn arbiter_decides(&mut self, node: usize, epoch: u64, step: Step, current: Option<Record>) {
        let delay_ns = self.random.between(10_000, MILLISECOND_NS);
        if self.options.mutation == Some(Mutation::SkipArbiter)
            && let (Some(record), false) = (&current, matches!(step, Step::RegisterBackup { .. }))
        {
            let (term, holder) = match &step {
                Step::TakeOver { node, term } => (term + 1, node.clone()),
                _ => (record.term, record.holder.clone()),
            };
            return self.arbiter_answers(node, epoch, Ok(Record { term, holder, backup: None }));
        }
        match decide(&step, current.as_ref()) {
            Ok(Decision::AlreadySo(record)) => self.arbiter_answers(node, epoch, Ok(record)),
            Ok(Decision::Propose(new)) => {
                let what = What::ArbiterSets { node, epoch, step, expected: current, new };
                self.schedule(self.now_ns + delay_ns, what);
            }
            Err(refusal) => self.arbiter_answers(node, epoch, Err(ArbitrationError::Refused(refusal))),
        }
    }

    fn arbiter_sets(&mut self, node: usize, epoch: u64, step: Step, expected: Option<Record>, new: Record) {
        match self.arbiter.compare_and_set(expected.as_ref(), &new) {
            Ok(CasOutcome::Won) => {
                self.trace(|| format!("the record is now {new}"));
                if let Some(backup) = &new.backup {
                    self.registered.insert(new.term, backup.clone());
                }
                self.arbiter_answers(node, epoch, Ok(new));
            }
            Ok(CasOutcome::Lost(found)) => {
                self.count("arbiter race");
                self.arbiter_decides(node, epoch, step, found);
            }
            Err(error) => self.arbiter_answers(node, epoch, Err(ArbitrationError::Unreachable(error))),
        }
    }

    fn arbiter_answers(&mut self, node: usize, epoch: u64, reply: Result<Record, ArbitrationError>) {
        let delay_ns = self.random.between(50_000, 4 * MILLISECOND_NS);
        let lost = std::mem::take(&mut self.nodes[node].lose_answer);
        let cut = self.nodes[node].arbiter_cut_until_ns > self.now_ns;
        let (reply, delay_ns) = match lost || cut {
            true => (Err(ArbitrationError::Unreachable(ArbiterError::Withdrawn)), 8 * delay_ns),
            false => (reply, delay_ns),
        };
        self.schedule(self.now_ns + delay_ns, What::ArbiterReply { node, epoch, reply });
    }

    fn arbiter_replies(&mut self, node: usize, reply: Result<Record, ArbitrationError>) {
        let now_ns = self.now_ns;
        self.trace(|| format!("the arbiter answers {}: {reply:?}", self.nodes[node].name));
        match &mut self.nodes[node].role {
            Role::Primary(live) => live.core.handle_arbiter_reply(reply, now_ns),
            Role::Backup(standing) => standing.core.handle_arbiter_reply(reply, now_ns),
            Role::Down => return,
        }
        self.pump(node);
    }

    // ---- clients ----

    fn client_asks(&mut self, client: usize, number: u64) {
        let now_ns = self.now_ns;
        let (who, current) = &mut self.clients[client];
        if *current != number {
            return;
        }
        let request = who.request(now_ns);
        if let Some(request) = request {
            for node in 0..self.nodes.len() {
                // The harshest network: whoever may be a primary gets every request.
                if matches!(self.nodes[node].role, Role::Primary(_)) && !self.random.chance(20) {
                    let event = Event::NetworkIn { port: 0, frame: request.to_frame() };
                    self.hop(node, Hop::ToVcpu(ToVcpu::Input(event)));
                }
            }
        }
        self.client_waits(client);
    }

    fn client_waits(&mut self, client: usize) {
        let now_ns = self.now_ns;
        let (who, current) = &mut self.clients[client];
        if who.is_done() && who.finishing {
            return;
        }
        *current += 1;
        let (number, pause_ns) = (*current, who.pause_ns());
        self.schedule(now_ns + pause_ns, What::ClientAsks { client, number });
    }

    fn client_hears(&mut self, reply: &Reply) {
        let now_ns = self.now_ns;
        let client = usize::from(reply.client);
        if self.clients[client].0.answered(reply, now_ns) {
            self.client_waits(client);
        }
    }

    // ---- faults ----

    fn fault(&mut self) {
        if self.healing || !self.options.faults {
            return;
        }
        let fault = Fault::draw(&mut self.random, HOSTS);
        if self.inject(fault) {
            self.count(fault.name());
            self.trace(|| format!("FAULT {fault:?}"));
        }
        let next_ns = match self.random.chance(300) {
            true => self.random.between(0, 20 * MILLISECOND_NS),
            false => self.random.between(50, 800) * MILLISECOND_NS,
        };
        self.schedule(self.now_ns + next_ns, What::Fault);
    }

    /// Whether it could be done.
    fn inject(&mut self, fault: Fault) -> bool {
        let now_ns = self.now_ns;
        match fault {
            Fault::CrashPrimary => return self.crash_holder(),
            Fault::CrashBackup => return self.crash_backup(),
            Fault::Pause { node, for_ns } => {
                self.nodes[node].paused_until_ns = now_ns + for_ns;
            }
            Fault::Partition { from, to, both, for_ns } => {
                self.network.cut[from][to] = true;
                self.schedule(now_ns + for_ns, What::Heal { from, to });
                if both {
                    self.network.cut[to][from] = true;
                    self.schedule(now_ns + for_ns, What::Heal { from: to, to: from });
                }
            }
            Fault::Reset => return self.reset_links(),
            Fault::Wire(fault) => {
                let Some(id) = self.network.links.keys().last().copied() else { return false };
                let end = self.random.between(0, 1) as usize;
                if let Some(link) = self.network.links.get_mut(&id) {
                    link.fault[end] = Some(fault);
                }
                // TLS would end the connection at once; the cores must bear it for a while.
                let later_ns = now_ns + self.random.between(5, 80) * MILLISECOND_NS;
                self.schedule(later_ns, What::Closed { link: id, end });
                self.schedule(later_ns, What::Closed { link: id, end: 1 - end });
            }
            Fault::ArbiterCut { node, for_ns } => {
                self.nodes[node].arbiter_cut_until_ns = now_ns + for_ns;
            }
            Fault::ArbiterAnswerLost => {
                self.nodes.iter_mut().for_each(|node| node.lose_answer = true);
            }
            Fault::SlowMachine { node, for_ns } => self.nodes[node].slow_until_ns = now_ns + for_ns,
            Fault::OperatorGoAlone => return self.operator_goes_alone(),
            Fault::OperatorStopPrimary => return self.operator_stops_primary(),
        }
        true
    }

    fn position_of(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// Kills the record's holder, if its registered backup can go on.
    fn crash_holder(&mut self) -> bool {
        let Some(Record { holder, backup: Some(backup), .. }) = self.arbiter.read().ok().flatten() else {
            return false;
        };
        let (Some(holder), Some(heir)) = (self.position_of(&holder), self.position_of(&backup)) else {
            return false;
        };
        // A primary that asks to go on alone has lost its backup: that would be the second failure.
        let protected = match &self.nodes[holder].role {
            Role::Primary(live) => live.core.state_name() != "going alone",
            _ => false,
        };
        let possible = protected && self.nodes[heir].is_heir();
        if possible {
            let after_ns = self.random.between(10, 1_200) * MILLISECOND_NS;
            self.stop_node(holder, after_ns);
        }
        possible
    }

    /// Kills a backup, if the record's holder lives.
    fn crash_backup(&mut self) -> bool {
        let Some(Record { holder, .. }) = self.arbiter.read().ok().flatten() else { return false };
        let Some(holder) = self.position_of(&holder) else { return false };
        let other = 1 - holder;
        let possible = match &self.nodes[holder].role {
            Role::Primary(live) => live.core.finished().is_none(),
            _ => false,
        };
        // A backup whose question is under way may be the primary already.
        let is_backup = match &self.nodes[other].role {
            Role::Backup(standing) => standing.core.state_name() != "claiming",
            _ => false,
        };
        if possible && is_backup && !self.is_ending(holder) {
            let after_ns = self.random.between(10, 1_200) * MILLISECOND_NS;
            self.stop_node(other, after_ns);
            return true;
        }
        false
    }

    fn is_ending(&self, node: usize) -> bool {
        match &self.nodes[node].role {
            Role::Primary(live) => live.core.state_name() == "ending",
            _ => false,
        }
    }

    fn reset_links(&mut self) -> bool {
        let ids: Vec<u64> = self.network.links.keys().copied().collect();
        for id in &ids {
            for end in 0..2 {
                let delay_ns = self.network.delay_ns(&mut self.random);
                self.schedule(self.now_ns + delay_ns, What::Closed { link: *id, end });
            }
        }
        !ids.is_empty()
    }

    fn operator_goes_alone(&mut self) -> bool {
        let now_ns = self.now_ns;
        for node in 0..self.nodes.len() {
            if let Some(live) = self.nodes[node].primary()
                && live.core.state_name() == "degraded"
            {
                live.core.handle_operator(primary::Operator::GoAlone, now_ns);
                self.pump(node);
                return true;
            }
        }
        false
    }

    /// An orderly stop is only survived with a registered backup in step.
    fn operator_stops_primary(&mut self) -> bool {
        let now_ns = self.now_ns;
        for node in 0..self.nodes.len() {
            let heir = self.nodes[1 - node].is_heir() && self.network.is_whole(node, 1 - node);
            if let Some(live) = self.nodes[node].primary()
                && live.core.is_protected()
                && heir
            {
                live.core.handle_operator(primary::Operator::Stop, now_ns);
                self.pump(node);
                return true;
            }
        }
        false
    }

    fn heal_all(&mut self) {
        self.healing = true;
        self.trace(|| "HEALED".to_owned());
        for node in &mut self.nodes {
            node.slow_until_ns = 0;
            node.arbiter_cut_until_ns = 0;
            node.lose_answer = false;
        }
        for from in 0..HOSTS {
            for to in 0..HOSTS {
                if self.network.cut[from][to] {
                    self.heal(from, to);
                }
            }
        }
        for link in self.network.links.values_mut() {
            link.fault = [None; 2];
        }
        self.clients.iter_mut().for_each(|(client, _)| client.finishing = true);
    }

    // ---- notes ----

    fn note_primary(&mut self, node: usize, event: &PrimaryEvent) {
        self.trace(|| format!("{} (primary): {event:?}", self.nodes[node].name));
        match event {
            PrimaryEvent::Joining { plan, .. } => self.count(match plan {
                JoinPlan::LogFromBoot => "join: log from boot",
                JoinPlan::Resume => "join: resume",
                JoinPlan::Checkpoint => "join: checkpoint",
            }),
            PrimaryEvent::Protected { .. } => self.count("protected"),
            PrimaryEvent::Alone => self.count("alone"),
            PrimaryEvent::Paused => self.count("paused"),
            PrimaryEvent::Diverged { .. } => self.count("divergence reported"),
            PrimaryEvent::BackupLost { .. } => self.count("backup lost"),
            PrimaryEvent::ProtocolError { .. } => self.count("protocol error"),
            _ => {}
        }
    }

    fn note_backup(&mut self, node: usize, event: &BackupEvent) {
        self.trace(|| format!("{} (backup): {event:?}", self.nodes[node].name));
        match event {
            BackupEvent::ClaimRefused { .. } => self.count("claim refused"),
            BackupEvent::ProtocolError { .. } => self.count("protocol error"),
            BackupEvent::Diverged(_) => self.count("divergence found"),
            BackupEvent::Suspected { .. } => self.count("suspected"),
            _ => {}
        }
    }
}

fn describe(node: &Node) -> String {
    match &node.role {
        Role::Down => format!("{}: down", node.name),
        Role::Primary(live) => {
            format!("{}: primary of term {}, {}", node.name, live.core.term(), live.core.state_name())
        }
        Role::Backup(standing) => {
            format!("{}: backup in term {}, {}", node.name, standing.core.term(), standing.core.state_name())
        }
    }
}
