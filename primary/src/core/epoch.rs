//! Increments: what standing backups get in `hybrid` and `checkpoint` mode, and when.

use std::collections::{BTreeMap, VecDeque};

use log_format::{Digest, EncodedPart, IncrementEnd, IncrementStart, Message, Position, ProtectionMode};
use machine::CheckpointExtent;

use super::config::{EpochConfig, Trigger};
use super::{MILLISECOND_NS, MachineRequest, Primary};
use crate::recorder::CheckpointBegun;

/// What the machine's thread was asked to freeze, and for what.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    begun: u64,
    asked: BTreeMap<u64, Purpose>,
}

/// Why a checkpoint is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Purpose {
    /// All of the machine, for a backup that joins.
    Join { node: String },
    /// Nothing but the place from which increments count.
    Epoch,
    /// What was written since the last one.
    Increment,
    /// The disks, to compare them with the backups'.
    DiskCheck,
}

impl Checkpoints {
    /// A number for the next one.
    fn ask(&mut self, purpose: Purpose) -> u64 {
        self.begun += 1;
        self.asked.insert(self.begun, purpose);
        self.begun
    }

    /// The number of the next one.
    fn next(&self) -> u64 {
        self.begun + 1
    }

    pub(super) fn purpose(&self, checkpoint: u64) -> Option<Purpose> {
        self.asked.get(&checkpoint).cloned()
    }

    pub(super) fn done(&mut self, checkpoint: u64) {
        self.asked.remove(&checkpoint);
    }

    pub(super) fn asked_for(&self) -> Vec<u64> {
        self.asked.keys().copied().collect()
    }

    pub(super) fn clear(&mut self) {
        self.asked.clear();
    }

    /// Whether an epoch or an increment was asked for, and is not at its end.
    pub(super) fn is_freezing(&self) -> bool {
        self.asked.values().any(|purpose| matches!(purpose, Purpose::Epoch | Purpose::Increment))
    }

    pub(super) fn joining(&self) -> Option<(u64, &str)> {
        self.asked.iter().find_map(|(number, purpose)| match purpose {
            Purpose::Join { node } => Some((*number, node.as_str())),
            _ => None,
        })
    }
}

/// The epochs of the machine, as the standing backups know them.
#[derive(Debug)]
pub(super) struct Epochs {
    /// Number of batches up to the state from which the present epoch counts; `None` where none
    /// was begun.
    pub(super) base: Option<u64>,
    /// The increment that is being taken.
    under_way: Option<UnderWay>,
    /// Those that not every receiver said to have whole, oldest first: a connection that breaks
    /// takes what it carries with it.
    kept: VecDeque<Kept>,
    /// A backup has joined since the last increment: what that one held is not all it knows.
    pub(super) fresh: bool,
    pub(super) pacer: Pacer,
    due_ns: u64,
    /// Busy time of the machine and bytes of log when the present epoch began.
    busy_before_ns: u64,
    log_before_bytes: u64,
    /// Increments ended, their pages and bytes.
    pub(super) counters: IncrementCounters,
}

/// What was shipped in increments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IncrementCounters {
    /// Increments.
    pub increments: u64,
    /// Their pages and blocks.
    pub units: u64,
    /// Bytes of those as they were shipped, once, however many backups there are.
    pub packed_bytes: u64,
    /// How long the guest stood still for the last one, in nanoseconds.
    pub last_pause_ns: u64,
    /// Pages and blocks of the last one.
    pub last_units: u64,
}

#[derive(Debug)]
struct UnderWay {
    checkpoint: u64,
    begun_ns: u64,
    parts: u64,
    units: u64,
    pause_ns: u64,
    receivers: Vec<String>,
    kept: Kept,
}

/// An increment as it was sent.
#[derive(Debug)]
struct Kept {
    /// Number of batches up to what it builds on.
    base: u64,
    /// Number of batches up to where it leads.
    sequence: u64,
    messages: Vec<Message>,
}

impl Epochs {
    pub(super) fn new(config: EpochConfig) -> Self {
        Epochs {
            base: None,
            under_way: None,
            kept: VecDeque::new(),
            fresh: true,
            pacer: Pacer::new(config),
            due_ns: 0,
            busy_before_ns: 0,
            log_before_bytes: 0,
            counters: IncrementCounters::default(),
        }
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Whether who stands after `stood` batches can be brought to the present base by what is kept.
    pub(super) fn reaches(&self, stood: u64) -> bool {
        let under_way = self.under_way.as_ref().map(|it| &it.kept);
        let next = self.kept.iter().chain(under_way).find(|kept| kept.sequence > stood);
        next.map_or(self.base.is_some_and(|base| base <= stood), |kept| kept.base <= stood)
    }

    /// What who stands after `stood` batches lacks, and the last whole state that it leads to.
    pub(super) fn lacking(&self, stood: u64) -> (Vec<Message>, u64) {
        let under_way = self.under_way.as_ref().map(|it| &it.kept);
        let whole = self.kept.back().map_or(stood, |kept| kept.sequence.max(stood));
        let lacking = self.kept.iter().chain(under_way).filter(|kept| kept.sequence > stood);
        (lacking.flat_map(|kept| kept.messages.iter().cloned()).collect(), whole)
    }
}

impl Primary {
    /// Asks for the next increment when it is due.
    pub(super) fn drive_epochs(&mut self, now_ns: u64) {
        if self.increment_due_ns().is_some_and(|due_ns| due_ns <= now_ns) {
            self.request(Purpose::Increment);
        }
    }

    /// When the next increment is due, as things are; 0 where that is at once.
    pub(super) fn increment_due_ns(&self) -> Option<u64> {
        let base = self.epochs.base.filter(|_| self.modes.present.stands() && !self.is_over())?;
        let busy = self.epochs.under_way.is_some() || self.checkpoints.is_freezing();
        let receivers = self.peers.values().filter(|peer| peer.stands == Some(base));
        // Who is out of sight for a moment is waited for, so that not much is kept for it.
        let crowded = receivers.clone().any(|peer| peer.connection.is_none_or(|id| self.is_crowded(id)));
        if busy || receivers.count() == 0 || crowded || !self.modes.is_settled() {
            return None;
        }
        if self.wants_disks_frozen() {
            return Some(0);
        }
        match self.modes.present {
            ProtectionMode::Replay => None,
            ProtectionMode::Checkpoint => {
                // One that an increment on its way covers asks for no other.
                let last = self.tail.outputs_after(self.tail.last_sequence());
                let waits = self.buffer.uncommitted_outputs() > 0 && self.tail.outputs_after(base) < last;
                match self.config.epoch.trigger {
                    Trigger::Output if waits => Some(0),
                    Trigger::Output => Some(self.slowest_due_ns()),
                    Trigger::Clock => Some(self.epochs.due_ns),
                }
            }
            ProtectionMode::Hybrid => self.is_replay_budget_spent().then_some(0),
        }
    }

    fn slowest_due_ns(&self) -> u64 {
        self.epochs.pacer.begun_ns.saturating_add(self.config.epoch.longest_ns)
    }

    /// Whether a takeover would spend half of its time on replaying the log by now.
    fn is_replay_budget_spent(&self) -> bool {
        let (config, epochs) = (&self.config.epoch, &self.epochs);
        let busy_ns = self.busy_ns.saturating_sub(epochs.busy_before_ns);
        let log_bytes = self.tail.pushed_bytes().saturating_sub(epochs.log_before_bytes);
        busy_ns >= config.takeover_within_ns / 2 || log_bytes >= config.log_max_bytes
    }

    /// Bytes of a checkpoint wait for this connection.
    fn is_crowded(&self, id: super::ConnectionId) -> bool {
        let connection = self.connections.get(&id);
        connection.is_some_and(|connection| connection.bulk_bytes() >= self.config.checkpoint_window_bytes)
    }

    /// Asks the machine's thread to freeze something.
    pub(super) fn request(&mut self, purpose: Purpose) {
        let extent = match purpose {
            Purpose::Join { .. } => CheckpointExtent::Full,
            Purpose::DiskCheck => CheckpointExtent::Disks,
            Purpose::Epoch => CheckpointExtent::Epoch,
            Purpose::Increment => CheckpointExtent::Increment,
        };
        if matches!(purpose, Purpose::Join { .. }) {
            // Also for an increment that is asked for before the join's checkpoint has begun: the
            // machine's thread begins it afterwards, and the newcomer gets it.
            self.epochs.fresh = true;
        }
        let fresh = purpose == Purpose::Increment && std::mem::take(&mut self.epochs.fresh);
        if purpose == Purpose::Increment && self.wants_disks_frozen() {
            let disks = self.checkpoints.ask(Purpose::DiskCheck);
            self.requests.push_back(MachineRequest::FreezeDisks { checkpoint: disks });
            self.disks_frozen_with(disks, self.checkpoints.next());
        }
        let checkpoint = self.checkpoints.ask(purpose);
        self.requests.push_back(MachineRequest::BeginCheckpoint { checkpoint, extent, fresh });
    }

    /// An epoch begins at a batch's end that every backup can reach.
    pub(super) fn epoch_begun(&mut self, now_ns: u64) {
        self.seal(now_ns);
        self.note_epoch(self.tail.last_sequence(), now_ns);
    }

    fn note_epoch(&mut self, base: u64, now_ns: u64) {
        self.epochs.base = Some(base);
        self.epochs.busy_before_ns = self.busy_ns;
        self.epochs.log_before_bytes = self.tail.pushed_bytes();
        self.epochs.due_ns = self.epochs.pacer.next_ns(self.epochs.due_ns, now_ns);
        self.epochs.pacer.begun_ns = now_ns;
    }

    /// The machine began an increment: its head goes to those that stand at its base.
    pub(super) fn increment_begun(&mut self, checkpoint: u64, begun: CheckpointBegun, now_ns: u64) {
        let Some(base) = self.epochs.base else { return };
        // Each increment has a number of its own, also where nothing was logged.
        self.seal(now_ns);
        let position = Position { moment: begun.head.moment, ..self.batcher.position() };
        let start = IncrementStart {
            position,
            chain: self.batcher.chain(),
            base,
            events_before: begun.events_before,
            released_outputs: self.buffer.released_before(),
            held: self.buffer.held().cloned().collect(),
            head: begun.head,
        };
        let mut receivers = Vec::new();
        for peer in self.peers.values_mut().filter(|peer| peer.stands == Some(base)) {
            peer.stands = Some(position.sequence);
            receivers.push(peer.node.clone());
        }
        self.disks_frozen_at(checkpoint, position.sequence, &receivers);
        let message = Message::IncrementHead(start);
        receivers.iter().for_each(|node| self.send_to(node, message.clone()));
        self.epochs.under_way = Some(UnderWay {
            checkpoint,
            begun_ns: now_ns,
            parts: 0,
            units: 0,
            pause_ns: begun.pause_ns,
            receivers,
            kept: Kept { base, sequence: position.sequence, messages: vec![message] },
        });
        self.note_epoch(position.sequence, now_ns);
    }

    /// Pages of the increment under way.
    pub(super) fn handle_increment_part(&mut self, checkpoint: u64, part: EncodedPart) {
        let Some(under_way) = self.epochs.under_way.as_mut().filter(|it| it.checkpoint == checkpoint) else {
            return;
        };
        under_way.parts += 1;
        under_way.units += (part.pages.len() + part.blocks.len()) as u64;
        let message = Message::IncrementPart(part);
        under_way.kept.messages.push(message.clone());
        let receivers = under_way.receivers.clone();
        receivers.iter().for_each(|node| self.send_to(node, message.clone()));
    }

    /// The increment under way is whole.
    pub(super) fn handle_increment_end(
        &mut self,
        checkpoint: u64,
        digest: Digest,
        packed_bytes: u64,
        now_ns: u64,
    ) {
        self.checkpoints.done(checkpoint);
        let Some(under_way) = self.epochs.under_way.take_if(|it| it.checkpoint == checkpoint) else { return };
        let UnderWay { begun_ns, parts, pause_ns, units, receivers, mut kept, .. } = under_way;
        let end = Message::IncrementEnd(IncrementEnd { parts, digest });
        let sequence = kept.sequence;
        for node in &receivers {
            self.send_to(node, end.clone());
            if let Some(peer) = self.peers.get_mut(node).filter(|peer| peer.stands == Some(sequence)) {
                // Log that piles up says that a backup is slow, the size of an increment does not.
                peer.note_sent(sequence, 0, now_ns);
            }
        }
        kept.messages.push(end);
        self.epochs.kept.push_back(kept);
        let counters = &mut self.epochs.counters;
        counters.increments += 1;
        counters.units += units;
        counters.packed_bytes += packed_bytes;
        counters.last_pause_ns = pause_ns;
        counters.last_units = units;
        let sent = Sent { sequence, begun_ns, packed_bytes };
        self.epochs.pacer.note_taken(sent, pause_ns, now_ns);
        self.settle(now_ns);
    }

    /// Keeps no increment that all who are to stand at it have.
    pub(super) fn forget_increments(&mut self) {
        let standing = self.peers.values().filter(|peer| peer.stands.is_some());
        let whole = standing.map(|peer| peer.stood).min().unwrap_or(u64::MAX);
        while self.epochs.kept.pop_front_if(|kept| kept.sequence <= whole).is_some() {}
    }

    /// An increment that nobody is left for is given up: what it froze belongs to the next.
    pub(super) fn drop_orphaned_increment(&mut self) {
        let Some(under_way) = &self.epochs.under_way else { return };
        let wanted = under_way.receivers.iter().any(|node| {
            self.peers.get(node).is_some_and(|peer| peer.stands == Some(under_way.kept.sequence))
        });
        if !wanted {
            let checkpoint = under_way.checkpoint;
            self.requests.push_back(MachineRequest::CancelCheckpoint { checkpoint });
            self.checkpoints.done(checkpoint);
            // Also who joined meanwhile stands at or after the old base.
            self.epochs.base = Some(under_way.kept.base);
            self.epochs.under_way = None;
        }
    }
}

/// An increment on its way.
#[derive(Debug, Clone, Copy)]
struct Sent {
    sequence: u64,
    begun_ns: u64,
    packed_bytes: u64,
}

/// Increments smaller than this say nothing of what a link carries.
const TELLING_BYTES: u64 = 64 << 10;

/// How long the next epoch lasts: by the pause and the delay that the last ones made.
#[derive(Debug)]
pub(super) struct Pacer {
    config: EpochConfig,
    pub(super) interval_ns: u64,
    begun_ns: u64,
    /// The increments that are not acknowledged.
    waiting: VecDeque<Sent>,
    /// From the beginning of an increment to its acknowledgement, lately.
    pub(super) commit_ns: u64,
}

impl Pacer {
    fn new(config: EpochConfig) -> Self {
        // 40 a second to begin with, as Remus.
        let interval_ns = (25 * MILLISECOND_NS).clamp(config.shortest_ns, config.longest_ns);
        Pacer { config, interval_ns, begun_ns: 0, waiting: VecDeque::new(), commit_ns: 0 }
    }

    /// When the next is due, after one that was due at `due_ns` began now: what it was late by does
    /// not add up.
    fn next_ns(&self, due_ns: u64, now_ns: u64) -> u64 {
        let is_late = now_ns.saturating_sub(due_ns) > self.interval_ns / 2;
        let from_ns = if is_late { now_ns } else { due_ns.min(now_ns) };
        from_ns.saturating_add(self.interval_ns)
    }

    /// An increment was taken. A pause over its aim asks for shorter epochs, which have less to
    /// take; copying that fills the epoch, for longer ones.
    fn note_taken(&mut self, sent: Sent, pause_ns: u64, now_ns: u64) {
        self.waiting.push_back(sent);
        let taken_ns = now_ns.saturating_sub(sent.begun_ns);
        let shorter_ns = self.interval_ns * 7 / 8;
        let longer_ns = self.interval_ns + self.interval_ns / 8 + 1;
        self.interval_ns = match (pause_ns > self.config.pause_ns, taken_ns * 2 > self.interval_ns) {
            (_, true) => longer_ns,
            (true, false) => shorter_ns,
            (false, false) => self.interval_ns,
        };
        self.clamp();
    }

    /// Every increment up to this batch is acknowledged. An output waits for the rest of its
    /// epoch, and for the increment: both together aim at the delay.
    ///
    /// Gives what the link carried, in bytes per second, where that could be seen.
    pub(super) fn note_acked(&mut self, sequence: u64, now_ns: u64) -> Option<u64> {
        let mut rate = None;
        while let Some(sent) = self.waiting.pop_front_if(|sent| sent.sequence <= sequence) {
            let commit_ns = now_ns.saturating_sub(sent.begun_ns);
            if sent.packed_bytes >= TELLING_BYTES {
                let per_s = u128::from(sent.packed_bytes) * 1_000_000_000 / u128::from(commit_ns.max(1));
                rate = u64::try_from(per_s).ok();
            }
            self.commit_ns = (self.commit_ns * 7 + commit_ns) / 8;
            let aim_ns = self.config.delay_ns.saturating_sub(self.commit_ns);
            // Within reach of the aim, longer epochs cost less; beyond it, shorter ones wait less.
            self.interval_ns = match self.interval_ns > aim_ns {
                true => self.interval_ns * 15 / 16,
                false => self.interval_ns + self.interval_ns / 64 + 1,
            };
            self.clamp();
        }
        rate
    }

    fn clamp(&mut self) {
        self.interval_ns = self.interval_ns.clamp(self.config.shortest_ns, self.config.longest_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(sequence: u64, begun_ns: u64) -> Sent {
        Sent { sequence, begun_ns, packed_bytes: 1 << 20 }
    }

    #[test]
    fn the_rate_is_kept_when_each_begins_a_little_late() {
        let pacer = Pacer::new(EpochConfig::default());
        let interval_ns = pacer.interval_ns;
        let mut due_ns = interval_ns;
        for number in 1..=100 {
            assert_eq!(due_ns, number * interval_ns);
            due_ns = pacer.next_ns(due_ns, due_ns + interval_ns / 4);
        }
        // One that stood still for long does not make up for it by a burst.
        let now_ns = due_ns + 10 * interval_ns;
        assert_eq!(pacer.next_ns(due_ns, now_ns), now_ns + interval_ns);
        assert_eq!(pacer.next_ns(due_ns, 5), 5 + interval_ns, "before it was due, as one on request");
    }

    #[test]
    fn long_pauses_shorten_the_epoch_and_slow_copying_lengthens_it() {
        let mut pacer = Pacer::new(EpochConfig::default());
        let at_first_ns = pacer.interval_ns;
        assert_eq!(at_first_ns, 25 * MILLISECOND_NS);
        for number in 0..100 {
            pacer.note_taken(sent(number, 0), 3 * MILLISECOND_NS, MILLISECOND_NS);
        }
        assert_eq!(pacer.interval_ns, 10 * MILLISECOND_NS, "the shortest");
        for number in 100..200 {
            pacer.note_taken(sent(number, 0), 3 * MILLISECOND_NS, 90 * MILLISECOND_NS);
        }
        assert_eq!(pacer.interval_ns, 100 * MILLISECOND_NS, "the longest");
    }

    #[test]
    fn a_quick_link_settles_at_the_delay_that_is_aimed_at() {
        let mut pacer = Pacer::new(EpochConfig::default());
        let mut now_ns = 0;
        for number in 0..2_000 {
            pacer.note_taken(sent(number, now_ns), 0, now_ns + MILLISECOND_NS);
            let rate = pacer.note_acked(number, now_ns + 5 * MILLISECOND_NS);
            assert_eq!(rate, Some((1 << 20) * 200), "a MiB in 5 ms");
            now_ns += pacer.interval_ns;
        }
        let interval_ms = pacer.interval_ns / MILLISECOND_NS;
        assert!((22..=27).contains(&interval_ms), "{interval_ms} ms and 5 ms of commit make 30");
    }
}
