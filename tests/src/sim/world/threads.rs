//! A node's threads, and what its cores want of the world.

use backup::{ToReplayer, WholeIncrement};
use log_format::CheckpointPart;
use machine::CheckpointExtent;
use primary::Release;

use super::*;

impl World {
    pub(super) fn start_primary(&mut self, node: usize, machine: ToyMachine, start: PrimacyStart) {
        let mut config = primary::CoreConfig::new(VM, &self.nodes[node].name, machine.identity());
        let Shape { policy, backups_max, release, durable, mode, trigger, .. } = self.shape;
        config.on_backup_loss = policy;
        config.backups_max = backups_max;
        config.release = match self.options.mutation {
            Some(Mutation::ReleaseAtFirst) => Release::Any,
            _ => release,
        };
        config.durability = if durable { Durability::Disk } else { Durability::Memory };
        config.mode = mode;
        config.epoch.trigger = trigger;
        // So that runs of a few seconds meet some.
        config.epoch.takeover_within_ns = 60 * MILLISECOND_NS;
        config.epoch.log_max_bytes = 8_000;
        // Small bounds, so that runs of a few seconds meet them.
        config.tail_max_bytes = 6_000;
        config.unacked_max_bytes = 24_000;
        config.checkpoint_bite_pages = 5;
        config.checkpoint_window_bytes = 40_000;
        config.store = self.nodes[node].log.is_some();
        if !durable {
            self.begin_log(node, machine.identity(), (start.from.sequence, start.outputs_logged));
        }
        let clock_ns = self.clock_ns(node);
        self.nodes[node].role = Role::Primary(live_primary(config, machine, start, clock_ns));
        self.begin_lease(node);
        self.wake_thread(node, self.now_ns);
        self.pump(node);
    }

    pub(super) fn start_backup(&mut self, node: usize) {
        let machine = ToyMachine::new(self.toy);
        let mut config = backup::CoreConfig::new(VM, &self.nodes[node].name, machine.identity());
        config.life = self.begin_life(node);
        config.has_boot_images = self.random.chance(500);
        config.unreplayed_max_bytes = 20_000;
        let defect = (self.options.mutation == Some(Mutation::FlipBit) && !self.defect_used)
            .then_some(Defect::FlipBit { icount: 9_000 });
        self.defect_used = true;
        config.store = self.nodes[node].log.is_some();
        config.durable = self.shape.durable;
        if !self.shape.durable {
            self.begin_log(node, machine.identity(), (0, 0));
        }
        let first = self.left_to(node);
        let clock_ns = self.clock_ns(node);
        self.count("start backup");
        self.trace(|| format!("{} starts as a backup", self.nodes[node].name));
        self.nodes[node].role = Role::Backup(standing_backup(config, self.toy, (defect, first), clock_ns));
        self.pump(node);
    }

    /// The process of a node is gone.
    pub(super) fn stop_node(&mut self, node: usize, power_lost: bool, restart_after_ns: u64) {
        self.end_log(node, power_lost);
        self.end_node(node);
        let epoch = self.nodes[node].epoch;
        self.schedule(self.now_ns + restart_after_ns, What::Restart { node, epoch });
    }

    /// The process of a node is gone for good.
    pub(super) fn end_node(&mut self, node: usize) {
        self.end_log(node, false);
        self.nodes[node].remember_covered();
        self.leave(node);
        self.nodes[node].refused = false;
        self.nodes[node].asked_set = None;
        self.nodes[node].base = None;
        self.nodes[node].epoch += 1;
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
    }

    pub(super) fn hop(&mut self, node: usize, hop: Hop) {
        let delay_ns = self.random.between(2_000, 40_000);
        let last = &mut self.nodes[node].last_hop_ns[hop.queue()];
        *last = (*last + 1).max(self.now_ns + delay_ns);
        let (at_ns, epoch) = (*last, self.nodes[node].epoch);
        self.schedule(at_ns, What::Hop { node, epoch, hop });
    }

    pub(super) fn wake_thread(&mut self, node: usize, at_ns: u64) {
        self.nodes[node].thread += 1;
        let (epoch, number) = (self.nodes[node].epoch, self.nodes[node].thread);
        self.schedule(at_ns, What::Thread { node, epoch, number });
    }

    pub(super) fn hop_arrives(&mut self, node: usize, hop: Hop) {
        let (now_ns, clock_ns) = (self.now_ns, self.clock_ns(node));
        match (hop, &mut self.nodes[node].role) {
            (Hop::ToVcpu(message), Role::Primary(live)) => {
                match message {
                    ToVcpu::Input(event) => live.vcpu.handle_input(event, clock_ns),
                    ToVcpu::Request(request) => live.vcpu.handle_request(request, clock_ns),
                    ToVcpu::Brake(braked) => live.vcpu.brake(braked, clock_ns),
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
                live.core.handle_machine(message, clock_ns);
                self.pump(node);
            }
            (Hop::ToReplayer(command), Role::Backup(standing)) => {
                let may_be_restored = matches!(command, ToReplayer::RestoreEnd);
                standing.worker.handle(command);
                if may_be_restored {
                    // Before the machine goes on.
                    self.keep_restored(node);
                }
                self.wake_thread(node, now_ns);
            }
            (Hop::FromReplayer(report), Role::Backup(_)) => {
                if let ReplayReport::Diverged(divergence) = &report.report
                    && self.options.mutation != Some(Mutation::FlipBit)
                {
                    let (name, text) = (self.nodes[node].name.clone(), divergence.to_string());
                    return self.checks.diverged(&name, &text);
                }
                self.note_hashed(node, &report);
                let Role::Backup(_) = &self.nodes[node].role else { return };
                if matches!(report.report, ReplayReport::Diverged(_)) {
                    // What it acknowledged before may leave until its primary hears of it.
                    self.nodes[node].remember_covered();
                    self.keep_diverged(node);
                }
                if let Some(standing) = self.nodes[node].backup() {
                    standing.core.handle_replayed(report, clock_ns);
                }
                self.pump(node);
            }
            _ => {}
        }
    }

    pub(super) fn thread_turn(&mut self, node: usize) {
        let (now_ns, clock_ns) = (self.now_ns, self.clock_ns(node));
        let clock = self.nodes[node].clock;
        let slow = self.nodes[node].slow_until_ns > now_ns;
        let effort_ns = self.random.between(20_000, 130_000) * if slow { 12 } else { 1 };
        let mut hops = Vec::new();
        let next_ns = match &mut self.nodes[node].role {
            Role::Primary(live) => {
                let step = live.vcpu.turn(clock_ns);
                hops.extend(std::iter::from_fn(|| live.vcpu.poll()).map(Hop::FromVcpu));
                match step {
                    VcpuStep::Continue => Some(now_ns + effort_ns),
                    VcpuStep::Sleep { until_ns } => {
                        until_ns.map(|until_ns| clock.reaches_ns(until_ns).max(now_ns + 1_000))
                    }
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

    pub(super) fn timer(&mut self, node: usize) {
        let clock_ns = self.clock_ns(node);
        match &mut self.nodes[node].role {
            Role::Primary(live) => live.core.handle_timeout(clock_ns),
            Role::Backup(standing) => standing.core.handle_timeout(clock_ns),
            Role::Down => return,
        }
        self.pump(node);
    }

    pub(super) fn pump(&mut self, node: usize) {
        match &self.nodes[node].role {
            Role::Primary(_) => self.pump_primary(node),
            Role::Backup(_) => {
                self.nodes[node].remember_covered();
                self.pump_backup(node);
            }
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
            let at_ns = self.nodes[node].clock.reaches_ns(due_ns).max(now_ns + 1_000);
            self.schedule(at_ns, What::Timer { node, epoch, number });
        }
    }

    pub(super) fn pump_primary(&mut self, node: usize) {
        let clock_ns = self.clock_ns(node);
        loop {
            let Some(live) = self.nodes[node].primary() else { return };
            let Some(output) = live.core.poll_release(clock_ns) else { break };
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
        let batches: Vec<_> = std::iter::from_fn(|| live.core.poll_store()).map(LogEntry::from).collect();
        let requests: Vec<_> = std::iter::from_fn(|| live.core.poll_machine_request()).collect();
        let step = live.core.poll_arbiter_request(clock_ns);
        let events: Vec<_> = std::iter::from_fn(|| live.core.poll_event()).collect();
        let stall = live.core.wants_stall();
        let brake = (stall != live.braked).then_some(stall);
        live.braked = stall;
        let finished = live.core.finished().cloned();
        self.store(node, batches);
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

    pub(super) fn pump_backup(&mut self, node: usize) {
        let (now_ns, clock_ns) = (self.now_ns, self.clock_ns(node));
        let Some(standing) = self.nodes[node].backup() else { return };
        let core = &mut standing.core;
        let commands: Vec<_> = std::iter::from_fn(|| core.poll_replayer()).collect();
        let sends: Vec<_> = std::iter::from_fn(|| core.poll_transmit()).collect();
        let closes: Vec<_> = std::iter::from_fn(|| core.poll_close()).collect();
        let entries: Vec<_> = std::iter::from_fn(|| core.poll_store()).collect();
        let dial = core.poll_dial(clock_ns);
        let step = core.poll_arbiter_request(clock_ns);
        let events: Vec<_> = std::iter::from_fn(|| core.poll_event()).collect();
        let finished = core.finished().cloned();
        for mut command in commands {
            self.keep_base(node, &command);
            if let ToReplayer::Increment(whole) = &mut command {
                self.damage_increment(whole);
            }
            self.hop(node, Hop::ToReplayer(command));
        }
        self.store(node, entries);
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

    pub(super) fn release(&mut self, node: usize, term: u64, output: &LoggedOutput) {
        let record = self.record();
        let rule = self.rules.get(&term);
        let counted = |other: &&Node| rule.is_some_and(|rule| rule.counts_on(&other.name));
        let covered = self.nodes.iter().filter(counted).filter_map(|other| other.covers(term)).collect();
        let log = self.nodes[node].log.as_ref().filter(|_| self.shape.durable);
        let custody = Custody {
            record: record.as_ref(),
            rule,
            covered,
            durable: log.map(|log| log.durable_outputs().unwrap_or(0)),
            lease_over: self.is_lease_over(node),
        };
        let name = self.nodes[node].name.clone();
        self.checks.released(&name, term, output, &custody);
        if let Output::Frame { frame, .. } = &output.output
            && let Some(reply) = Reply::from_frame(frame)
            && !self.random.chance(15)
        {
            let delay_ns = self.random.between(50_000, 400_000);
            self.schedule(self.now_ns + delay_ns, What::ClientHears { reply });
        }
    }

    /// Takes something from an increment, as the mutation of this run says.
    fn damage_increment(&mut self, whole: &mut WholeIncrement) {
        let damaged = match self.options.mutation {
            Some(Mutation::HalveIncrement) => {
                whole.end.parts = whole.end.parts.saturating_sub(1);
                whole.parts.pop().is_some()
            }
            Some(Mutation::SkipBlock) => whole.parts.iter_mut().any(|part| part.blocks.pop().is_some()),
            _ => false,
        };
        if damaged {
            self.count("increment damaged");
        }
    }

    /// Law 5: the state that diverged is kept, on the backup.
    fn keep_diverged(&mut self, node: usize) {
        let Role::Backup(standing) = &mut self.nodes[node].role else { return };
        match standing.worker.diverged_machine() {
            Some(machine) => {
                machine.begin_checkpoint(CheckpointExtent::Full);
                machine.cancel_checkpoint(CheckpointExtent::Full);
                self.count("diverged state kept: backup");
            }
            None => self.checks.violation("law 5: the state that diverged is gone".to_owned()),
        }
    }

    /// Law 5: so is the other, on the primary.
    pub(super) fn keep_primary_state(&mut self, node: usize) {
        let clock_ns = self.clock_ns(node);
        let Some(live) = self.nodes[node].primary() else { return };
        let pages = |_, next: &mut dyn FnMut() -> CheckpointPart| {
            std::iter::repeat_with(next).take_while(|part| !part.is_empty()).count()
        };
        if live.vcpu.keep_state(clock_ns, pages).is_some() {
            self.count("diverged state kept: primary");
        }
        self.wake_thread(node, self.now_ns);
    }

    pub(super) fn primary_finished(&mut self, node: usize, finish: &PrimaryFinish) {
        match finish {
            PrimaryFinish::Fenced { .. } => self.count("fenced"),
            PrimaryFinish::Stopped => self.count("stopped"),
            PrimaryFinish::GuestEnded { .. } => self.count("guest ended"),
            PrimaryFinish::HostFault { .. } => self.count("host fault"),
            PrimaryFinish::SwitchedOver { .. } => self.count("switched over"),
        }
        self.trace(|| format!("{} finished: {finish:?}", self.nodes[node].name));
        if self.powering_off {
            return self.end_node(node);
        }
        // Whoever runs it starts it again, as a backup.
        let after_ns = self.random.between(20, 300) * MILLISECOND_NS;
        self.stop_node(node, false, after_ns);
    }

    pub(super) fn backup_finished(&mut self, node: usize, finish: BackupFinish) {
        self.trace(|| format!("{} finished: {finish:?}", self.nodes[node].name));
        if self.powering_off && matches!(finish, BackupFinish::GuestEnded { .. }) {
            self.count("guest ended");
            return self.end_node(node);
        }
        let BackupFinish::TakenOver(mut start) = finish else {
            self.checks.violation(format!("{} ended as a backup: {finish:?}", self.nodes[node].name));
            return;
        };
        self.count("takeover");
        self.nodes[node].covered.insert(start.from.term - 1, start.outputs_logged);
        let Role::Backup(standing) = std::mem::replace(&mut self.nodes[node].role, Role::Down) else {
            return;
        };
        let Some(mut machine) = standing.worker.into_machine() else {
            return self.checks.violation("a takeover without a machine".to_owned());
        };
        // Only backups' disks are not what they should be, so that it is known whose.
        machine.disk_mut().heal();
        if self.options.mutation == Some(Mutation::ForgetReissue) {
            start.reissue.clear();
        }
        let name = self.nodes[node].name.clone();
        self.checks.took_over(&name, machine.ledger().0);
        let (base, durable) = (self.nodes[node].base.take(), self.nodes[node].durable.take());
        match self.shape.durable {
            true => self.write_log_now(node, Vec::new()),
            false => self.end_log(node, false),
        }
        self.nodes[node].epoch += 1;
        self.nodes[node].last_hop_ns = [0; 4];
        (self.nodes[node].base, self.nodes[node].durable) = (base, durable);
        self.start_primary(node, machine, *start);
        self.hop(node, Hop::ToVcpu(ToVcpu::Input(Event::Control(log_format::Control::Announce))));
    }
}
