//! The arbiter's leases, and the news of its record.

use super::*;

/// How long a lease lasts, on the arbiter's clock.
const TTL_NS: u64 = 400 * MILLISECOND_NS;
const RENEWAL_NS: u64 = 90 * MILLISECOND_NS;
/// What two clocks may differ by: `CLOCK_RATE_MARGIN_PERCENT` of the etcd arbiter's guard.
const MARGIN_PERCENT: u64 = 2;

impl World {
    /// A primacy begins: nothing leaves before its first lease.
    pub(super) fn begin_lease(&mut self, node: usize) {
        if !self.shape.leases {
            return;
        }
        let clock_ns = self.clock_ns(node);
        if let Some(live) = self.nodes[node].primary() {
            live.core.handle_lease(clock_ns, clock_ns);
        }
        self.ask_lease(node);
    }

    fn ask_lease(&mut self, node: usize) {
        let (epoch, sent_ns) = (self.nodes[node].epoch, self.clock_ns(node));
        let delay_ns = self.arbiter_delay_ns();
        self.schedule(self.now_ns + delay_ns, What::LeaseAsked { node, epoch, sent_ns });
    }

    /// The arbiter is asked for a lease, or to prolong it.
    pub(super) fn lease_asked(&mut self, node: usize, epoch: u64, sent_ns: u64) {
        if !self.lives(node, epoch) || self.nodes[node].primary().is_none() {
            return;
        }
        let delay_ns = self.arbiter_delay_ns();
        if !self.is_arbiter_cut(node) {
            self.nodes[node].lease_until_ns = self.now_ns + TTL_NS;
            // Counted from before the question, on a clock that may be slow.
            let valid_until_ns = sent_ns + TTL_NS / 100 * (100 - MARGIN_PERCENT);
            self.schedule(self.now_ns + delay_ns, What::LeaseGiven { node, epoch, valid_until_ns });
        }
        // The question itself keeps its rhythm, as far as the host's process does.
        let again_ns = (self.now_ns + RENEWAL_NS).max(self.nodes[node].paused_until_ns);
        let asked_ns = self.nodes[node].clock.shows_ns(again_ns);
        self.schedule(again_ns + delay_ns, What::LeaseAsked { node, epoch, sent_ns: asked_ns });
    }

    pub(super) fn lease_given(&mut self, node: usize, valid_until_ns: u64) {
        let clock_ns = self.clock_ns(node);
        let forever = self.options.mutation == Some(Mutation::KeepLease);
        let valid_until_ns = if forever { u64::MAX } else { valid_until_ns };
        if let Some(live) = self.nodes[node].primary() {
            live.core.handle_lease(valid_until_ns, clock_ns);
            self.pump(node);
        }
    }

    /// The record changed: whoever watches it hears of it, later.
    pub(super) fn tell_record(&mut self, record: &Record) {
        if !self.shape.leases {
            return;
        }
        for node in 0..self.nodes.len() {
            let (delay_ns, epoch) = (self.arbiter_delay_ns(), self.nodes[node].epoch);
            if !self.is_arbiter_cut(node) {
                let record = record.clone();
                self.schedule(self.now_ns + delay_ns, What::RecordSeen { node, epoch, record });
            }
        }
    }

    pub(super) fn record_seen(&mut self, node: usize, record: &Record) {
        let clock_ns = self.clock_ns(node);
        if let Some(live) = self.nodes[node].primary() {
            live.core.handle_record(record, clock_ns);
            self.pump(node);
        }
    }

    /// Whether a primary's lease has ended for certain.
    pub(super) fn is_lease_over(&self, node: usize) -> bool {
        self.shape.leases && self.nodes[node].lease_until_ns < self.now_ns
    }
}
