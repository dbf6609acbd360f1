//! Clients' requests and answers, and what is noted for the coverage.

use super::*;

impl World {
    pub(super) fn client_asks(&mut self, client: usize, number: u64) {
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

    pub(super) fn client_waits(&mut self, client: usize) {
        let now_ns = self.now_ns;
        let (who, current) = &mut self.clients[client];
        if who.is_done() && who.finishing {
            return;
        }
        *current += 1;
        let (number, pause_ns) = (*current, who.pause_ns());
        self.schedule(now_ns + pause_ns, What::ClientAsks { client, number });
    }

    pub(super) fn client_hears(&mut self, reply: &Reply) {
        let now_ns = self.now_ns;
        let client = usize::from(reply.client);
        if client < self.clients.len() && self.clients[client].0.answered(reply, now_ns) {
            self.client_waits(client);
        }
    }

    pub(super) fn note_primary(&mut self, node: usize, event: &PrimaryEvent) {
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
            PrimaryEvent::Diverged { .. } => {
                self.count("divergence reported");
                self.keep_primary_state(node);
            }
            PrimaryEvent::ModeChanged { mode, .. } => self.count(&format!("mode: {mode}")),
            PrimaryEvent::LeaseLost => self.count("lease lost"),
            PrimaryEvent::SwitchoverFailed { .. } => self.count("switchover failed"),
            PrimaryEvent::BackupLost { .. } => self.count("backup lost"),
            PrimaryEvent::CheckpointShipped { counts, .. } if counts.saved_bytes() > 0 => {
                self.count("join: by what differs");
            }
            PrimaryEvent::DisksCompared(found) => self.disks_compared(node, found),
            PrimaryEvent::ProtocolError { .. } => self.count("protocol error"),
            _ => {}
        }
    }

    pub(super) fn note_backup(&mut self, node: usize, event: &BackupEvent) {
        self.trace(|| format!("{} (backup): {event:?}", self.nodes[node].name));
        match event {
            BackupEvent::ClaimRefused { .. } => self.count("claim refused"),
            BackupEvent::ProtocolError { .. } => self.count("protocol error"),
            BackupEvent::Diverged(_) => self.count("divergence found"),
            BackupEvent::Suspected { .. } => self.count("suspected"),
            BackupEvent::BidPlaced { .. } => self.count("bid placed"),
            BackupEvent::ModeChanged { .. } => self.count("backup changed mode"),
            _ => {}
        }
    }
}
