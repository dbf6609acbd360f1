//! Faults, done to the world.

use super::*;

impl World {
    pub(super) fn fault(&mut self) {
        if self.healing || !self.options.faults {
            return;
        }
        let fault = self.plan.draw(&mut self.random, self.nodes.len());
        let state = self.protection_state();
        let until_ns = self.inject(fault);
        if let Some(until_ns) = until_ns {
            self.trace(|| format!("FAULT {fault:?}"));
            self.note_fault(fault.kind, until_ns, state);
        }
        let next_ns = self.plan.outcome(&mut self.random, fault, until_ns.is_some());
        self.schedule(self.now_ns + next_ns, What::Fault);
    }

    /// Counts a fault, and with it each other that still has its effect.
    fn note_fault(&mut self, kind: FaultKind, until_ns: u64, state: &str) {
        self.count(kind.name());
        let now_ns = self.now_ns;
        self.active.retain(|(_, until_ns)| *until_ns > now_ns);
        for (other, _) in &self.active {
            self.coverage.count_pair(kind, *other, state);
        }
        self.active.push((kind, until_ns));
    }

    /// How the machine is protected, by the record's holder.
    fn protection_state(&self) -> &'static str {
        self.holder().map_or("without a primary", |live| live.core.state_name())
    }

    /// Does it. Until when it has its effect; `None` when it could not be done.
    fn inject(&mut self, fault: Fault) -> Option<u64> {
        /// How long what happens in a moment goes on having its effect, roughly.
        const MOMENT_NS: u64 = 60 * MILLISECOND_NS;
        let Fault { kind, host, other, for_ns } = fault;
        let until_ns = self.now_ns + for_ns;
        let moment = Some(self.now_ns + MOMENT_NS);
        match kind {
            FaultKind::CrashPrimary => return self.crash_holder(),
            FaultKind::CrashBackup => return self.crash_backup(host),
            FaultKind::Pause => self.pause(host, for_ns),
            FaultKind::Partition => self.partition(host, other, true, for_ns),
            FaultKind::OneWayPartition => self.partition(host, other, false, for_ns),
            FaultKind::Reset => return moment.filter(|_| self.reset_links()),
            FaultKind::Corruption | FaultKind::Duplication | FaultKind::Reordering | FaultKind::Loss => {
                return self.damage_wire(kind);
            }
            FaultKind::ArbiterCut => self.nodes[host].arbiter_cut_until_ns = until_ns,
            FaultKind::ArbiterDown => {
                self.arbiter_down_until_ns = self.arbiter_down_until_ns.max(until_ns);
            }
            FaultKind::ArbiterSlow => {
                self.arbiter_slow_until_ns = self.arbiter_slow_until_ns.max(until_ns);
            }
            FaultKind::ArbiterAnswerLost => {
                self.nodes.iter_mut().for_each(|node| node.lose_answer = true);
            }
            FaultKind::AnswerAfterPause => self.nodes[host].pause_before_answer_ns = Some(for_ns),
            FaultKind::SlowMachine => self.nodes[host].slow_until_ns = until_ns,
            FaultKind::DiskFull | FaultKind::DiskFailing | FaultKind::DiskSlow | FaultKind::BitRot => {
                return self.trouble_disk(kind, host, until_ns);
            }
            FaultKind::ClockRate => self.change_clock_rate(host),
            FaultKind::ClockJump => self.jump_clock(host),
            FaultKind::OperatorGoesAlone => return moment.filter(|_| self.operator_goes_alone()),
            FaultKind::OperatorStopsPrimary => return moment.filter(|_| self.operator_stops_primary()),
            FaultKind::OperatorSwitchesOver => return moment.filter(|_| self.operator_switches_over()),
            FaultKind::OperatorChangesMode => return moment.filter(|_| self.operator_changes_mode()),
            FaultKind::PowerCut => return self.cut_power(),
        }
        Some(until_ns)
    }

    /// A process stands still.
    pub(super) fn pause(&mut self, node: usize, for_ns: u64) {
        // What waits for the end of a pause keeps its order only if that never comes nearer.
        let until_ns = &mut self.nodes[node].paused_until_ns;
        *until_ns = (*until_ns).max(self.now_ns + for_ns);
    }

    /// Cuts one host from another, or from all others.
    fn partition(&mut self, host: usize, other: usize, both: bool, for_ns: u64) {
        let isolated = self.random.chance(400);
        let others = (0..self.nodes.len()).filter(|to| *to != host && (isolated || *to == other));
        for to in others {
            self.cut(host, to, for_ns);
            if both {
                self.cut(to, host, for_ns);
            }
        }
    }

    fn cut(&mut self, from: usize, to: usize, for_ns: u64) {
        self.network.cut[from][to] = true;
        self.schedule(self.now_ns + for_ns, What::Heal { from, to });
    }

    /// Damages the next frame of a connection; TLS would end it at once, the cores must bear it
    /// for a while.
    fn damage_wire(&mut self, kind: FaultKind) -> Option<u64> {
        let ids: Vec<u64> = self.network.links.keys().copied().collect();
        if ids.is_empty() {
            return None;
        }
        let id = *self.random.pick(&ids);
        let end = self.random.between(0, 1) as usize;
        if let Some(link) = self.network.links.get_mut(&id) {
            link.fault[end] = kind.wire();
        }
        let later_ns = self.now_ns + self.random.between(5, 80) * MILLISECOND_NS;
        self.schedule(later_ns, What::Closed { link: id, end });
        self.schedule(later_ns, What::Closed { link: id, end: 1 - end });
        Some(later_ns)
    }

    fn trouble_disk(&mut self, kind: FaultKind, host: usize, until_ns: u64) -> Option<u64> {
        let durable = self.shape.durable;
        let log = self.nodes[host].log.as_mut()?;
        match kind {
            // Who waits for a disk that failed cannot go on.
            FaultKind::DiskFailing if durable => return None,
            FaultKind::DiskFull => log.fall_ill(DiskHealth::Full, until_ns),
            FaultKind::DiskFailing => log.fall_ill(DiskHealth::Failing, until_ns),
            FaultKind::BitRot => return log.rot().then_some(until_ns),
            _ => log.slow_until_ns = until_ns,
        }
        Some(until_ns)
    }

    fn change_clock_rate(&mut self, node: usize) {
        let ppm = self.random.between(0, 2 * RATE_MAX_PPM as u64) as i64 - RATE_MAX_PPM;
        self.nodes[node].clock.set_rate(self.now_ns, ppm);
        self.clock_changed(node);
    }

    fn jump_clock(&mut self, node: usize) {
        let by_ns = match self.random.chance(500) {
            true => self.random.between(1, 400) * MILLISECOND_NS,
            false => self.random.between(400, 90_000) * MILLISECOND_NS,
        };
        self.nodes[node].clock.jump(self.now_ns, by_ns);
        self.clock_changed(node);
    }

    /// What a host's threads wait for comes at another time now.
    fn clock_changed(&mut self, node: usize) {
        if self.nodes[node].paused_until_ns <= self.now_ns {
            self.pump(node);
        }
        self.wake_thread(node, self.now_ns);
    }

    pub(super) fn position_of(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// Kills the record's holder, if enough of those that it counts on can go on. That goes for
    /// the set that it asked the arbiter for, too: the record may name that any moment.
    pub(super) fn crash_holder(&mut self) -> Option<u64> {
        let record = self.record()?;
        let holder = self.position_of(&record.holder)?;
        let asked = self.nodes[holder].asked_set.clone();
        let is_primary = matches!(self.nodes[holder].role, Role::Primary(_));
        let survived = [Some(record), asked].iter().flatten().all(|record| self.survives(record));
        (is_primary && survived).then(|| self.crash(holder))
    }

    /// Whether enough backups are whole to take over without the holder.
    fn survives(&self, record: &Record) -> bool {
        let heirs = self.nodes.iter().filter(|node| node.is_heir(record));
        !record.backups.is_empty() && heirs.count() >= record.bids_needed()
    }

    /// Kills a process, which is started again later: then.
    fn crash(&mut self, node: usize) -> u64 {
        let after_ns = self.random.between(10, 1_200) * MILLISECOND_NS;
        let power_lost = self.random.chance(500);
        self.stop_node(node, power_lost, after_ns);
        self.now_ns + after_ns
    }

    /// Kills a backup, if the record's holder lives: this one, or the first after it.
    pub(super) fn crash_backup(&mut self, host: usize) -> Option<u64> {
        let record = self.record()?;
        let holder = self.position_of(&record.holder)?;
        let lives = match &self.nodes[holder].role {
            Role::Primary(live) => live.core.finished().is_none(),
            _ => false,
        };
        // A backup whose question is under way may be the primary already.
        let is_backup = |node: &usize| match &self.nodes[*node].role {
            Role::Backup(standing) => standing.core.state_name() != "claiming",
            _ => false,
        };
        let hosts = self.nodes.len();
        let backup = (0..hosts).map(|turn| (host + turn) % hosts).find(is_backup)?;
        (lives && !self.is_ending(holder)).then(|| self.crash(backup))
    }

    pub(super) fn is_ending(&self, node: usize) -> bool {
        match &self.nodes[node].role {
            Role::Primary(live) => live.core.state_name() == "ending",
            _ => false,
        }
    }

    pub(super) fn reset_links(&mut self) -> bool {
        let ids: Vec<u64> = self.network.links.keys().copied().collect();
        for id in &ids {
            for end in 0..2 {
                let delay_ns = self.network.delay_ns(&mut self.random);
                self.schedule(self.now_ns + delay_ns, What::Closed { link: *id, end });
            }
        }
        !ids.is_empty()
    }

    pub(super) fn operator_goes_alone(&mut self) -> bool {
        for node in 0..self.nodes.len() {
            let clock_ns = self.clock_ns(node);
            if let Some(live) = self.nodes[node].primary()
                && live.core.state_name() == "degraded"
            {
                live.core.handle_operator(primary::Operator::GoAlone, clock_ns);
                self.pump(node);
                return true;
            }
        }
        false
    }

    /// The operator tells the record's holder something.
    pub(super) fn operator_says(&mut self, command: primary::Operator) -> bool {
        let Some(holder) = self.record().and_then(|record| self.position_of(&record.holder)) else {
            return false;
        };
        let clock_ns = self.clock_ns(holder);
        let Some(live) = self.nodes[holder].primary().filter(|live| live.core.finished().is_none()) else {
            return false;
        };
        live.core.handle_operator(command, clock_ns);
        self.pump(holder);
        true
    }

    /// An orderly stop is only survived with enough backups that are whole and in sight.
    pub(super) fn operator_stops_primary(&mut self) -> bool {
        let Some(record) = self.record() else { return false };
        let Some(holder) = self.position_of(&record.holder) else { return false };
        let in_sight = |node: &usize| {
            let other = &self.nodes[*node];
            other.is_heir(&record) && self.network.is_whole(holder, *node)
        };
        let heirs = (0..self.nodes.len()).filter(in_sight).count();
        let is_protected =
            matches!(&self.nodes[holder].role, Role::Primary(live) if live.core.is_protected());
        let asked = self.nodes[holder].asked_set.is_some();
        let survived = is_protected && !asked && heirs >= record.bids_needed();
        survived && self.operator_says(primary::Operator::Stop)
    }

    /// A switchover that cannot be done leaves everything as it was.
    fn operator_switches_over(&mut self) -> bool {
        let to = match self.random.chance(500) {
            true => None,
            false => Some(self.random.pick(&["a", "b", "c"]).to_string()),
        };
        self.operator_says(primary::Operator::SwitchOver { to })
    }

    fn operator_changes_mode(&mut self) -> bool {
        let choice = draw_mode(&mut self.random);
        self.operator_says(primary::Operator::SetMode(choice))
    }

    pub(super) fn heal_all(&mut self) {
        self.healing = true;
        self.trace(|| "HEALED".to_owned());
        for node in &mut self.nodes {
            node.slow_until_ns = 0;
            node.arbiter_cut_until_ns = 0;
            node.lose_answer = false;
            node.pause_before_answer_ns = None;
            if let Some(log) = &mut node.log {
                log.recover();
            }
        }
        self.arbiter_down_until_ns = 0;
        self.arbiter_slow_until_ns = 0;
        for from in 0..self.nodes.len() {
            for to in 0..self.nodes.len() {
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
}
