//! Frames and connections on their way between two nodes.

use super::*;

impl World {
    pub(super) fn send(&mut self, node: usize, link: u64, message: &Message) {
        let unheld = match message {
            Message::Ack(ack) if self.options.mutation == Some(Mutation::AckUnheld) => {
                Some(Message::Ack(log_format::Ack { sequence: ack.sequence + 1, ..*ack }))
            }
            _ => None,
        };
        let message = unheld.as_ref().unwrap_or(message);
        let Ok(frame) = message.encode() else {
            return self.checks.violation(format!("a {:?} does not encode", message.kind()));
        };
        let Some(end) = self.network.links.get(&link).map(|link| 1 - link.end_of(node)) else { return };
        let at_ns = self.network.delivery_ns(link, end, message, self.now_ns, &mut self.random);
        self.schedule(at_ns, What::Wire { link, end, frame });
    }

    pub(super) fn dialled(&mut self, node: usize) {
        let (now_ns, clock_ns) = (self.now_ns, self.clock_ns(node));
        let target = self.dial_target(node);
        let Some(standing) = self.nodes[node].backup() else { return };
        let Some(other) = target else {
            standing.core.handle_dial_failed(clock_ns);
            return self.pump(node);
        };
        let epochs = [self.nodes[node].epoch, self.nodes[other].epoch];
        let link = self.network.connect([node, other], epochs);
        self.schedule(now_ns, What::Connected { node: other, epoch: epochs[1], link });
        let name = Some(self.nodes[other].name.clone());
        if let Some(standing) = self.nodes[node].backup() {
            standing.core.handle_connected(backup::ConnectionId(link), name, clock_ns);
        }
        self.pump(node);
    }

    /// Who answers: each attempt begins with another host, so that a stale primary is not all
    /// that is ever found.
    fn dial_target(&mut self, node: usize) -> Option<usize> {
        let hosts = self.nodes.len();
        let first = self.nodes[node].dials;
        self.nodes[node].dials += 1;
        (0..hosts - 1).map(|turn| (node + 1 + (first + turn) % (hosts - 1)) % hosts).find(|other| {
            matches!(self.nodes[*other].role, Role::Primary(_)) && self.network.is_whole(node, *other)
        })
    }

    pub(super) fn accepted(&mut self, node: usize, epoch: u64, link: u64) {
        let clock_ns = self.clock_ns(node);
        let dialler = self.network.links.get(&link).map(|link| link.ends[0]);
        let name = dialler.map(|dialler| self.nodes[dialler].name.clone());
        let lives = self.lives(node, epoch) && name.is_some();
        match self.nodes[node].primary().filter(|_| lives) {
            Some(live) => {
                live.core.handle_connected(primary::ConnectionId(link), name, clock_ns);
                self.pump(node);
            }
            None => self.close_link(node, link),
        }
    }

    pub(super) fn frame_arrives(&mut self, id: u64, end: usize, frame: Bytes) {
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

    pub(super) fn deliver(&mut self, node: usize, link: u64, message: Message) {
        let now_ns = self.clock_ns(node);
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
    pub(super) fn end_told(&mut self, node: usize, link: u64) {
        let now_ns = self.clock_ns(node);
        match &mut self.nodes[node].role {
            Role::Primary(live) => live.core.handle_closed(primary::ConnectionId(link), now_ns),
            Role::Backup(standing) => standing.core.handle_closed(backup::ConnectionId(link), now_ns),
            Role::Down => return,
        }
        self.pump(node);
    }

    /// A node closes its end: the other hears of it, unless the way is cut.
    pub(super) fn close_link(&mut self, node: usize, id: u64) {
        let Some(end) = self.network.links.get(&id).map(|link| link.end_of(node)) else { return };
        self.shut(id, end);
        if self.nodes[node].primary().is_some() {
            // The driver of a listener tells its core when a connection is gone.
            let now_ns = self.clock_ns(node);
            if let Some(live) = self.nodes[node].primary() {
                live.core.handle_closed(primary::ConnectionId(id), now_ns);
            }
        }
    }

    pub(super) fn shut(&mut self, id: u64, end: usize) {
        let delay_ns = self.network.delay_ns(&mut self.random);
        let Some(link) = self.network.links.get_mut(&id) else { return };
        link.open[end] = false;
        // What was sent before arrives before.
        let at_ns = (self.now_ns + delay_ns).max(link.last_delivery_to(1 - end) + 1);
        self.schedule(at_ns, What::Closed { link: id, end: 1 - end });
    }

    pub(super) fn close_end(&mut self, id: u64, end: usize) {
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

    pub(super) fn heal(&mut self, from: usize, to: usize) {
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
}
