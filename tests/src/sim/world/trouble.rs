//! Faults, done to the world.

use super::*;

impl World {
    pub(super) fn fault(&mut self) {
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
    pub(super) fn inject(&mut self, fault: Fault) -> bool {
        let now_ns = self.now_ns;
        match fault {
            Fault::CrashPrimary => return self.crash_holder(),
            Fault::CrashBackup => return self.crash_backup(),
            Fault::Pause { node, for_ns } => {
                // What waits for the end of a pause keeps its order only if that never comes nearer.
                let until_ns = &mut self.nodes[node].paused_until_ns;
                *until_ns = (*until_ns).max(now_ns + for_ns);
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

    pub(super) fn position_of(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// Kills the record's holder, if its registered backup can go on.
    pub(super) fn crash_holder(&mut self) -> bool {
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
    pub(super) fn crash_backup(&mut self) -> bool {
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
    pub(super) fn operator_stops_primary(&mut self) -> bool {
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

    pub(super) fn heal_all(&mut self) {
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
}
