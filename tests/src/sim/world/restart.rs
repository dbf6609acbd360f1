//! Where output waits for the disks: what a host keeps of its machine beside the log, and the start
//! after all hosts lost their power at once.

use link::arbitration::Authority;
use log_format::{CheckpointPart, CheckpointStart, Position};

use backup::{Counted, LogReplay, Replayer, ToReplayer};
use machine::CheckpointExtent;

use super::*;

/// The machine before a host's log.
#[derive(Debug, Clone)]
pub enum Base {
    /// As it is at its boot.
    Boot,
    /// A checkpoint.
    Checkpoint(Box<CheckpointStart>, Vec<CheckpointPart>),
}

impl Base {
    /// Batches and outputs before the log that begins with it.
    fn place(&self) -> (u64, u64) {
        match self {
            Base::Boot => (0, 0),
            Base::Checkpoint(start, _) => (start.position.sequence, start.head.outputs_before),
        }
    }
}

/// Pages of a checkpoint taken at once.
const BITE_PAGES: usize = 64;
/// Turns after which a replay that does not end is given up.
const REPLAY_TURNS: usize = 200_000;

impl World {
    /// Keeps what the replay thread is told to begin with: the log goes on from there.
    pub(super) fn keep_base(&mut self, node: usize, command: &ToReplayer) {
        let base = match command {
            _ if !self.shape.logs => return,
            ToReplayer::Boot { .. } => Base::Boot,
            ToReplayer::RestoreBegin { start, .. } => Base::Checkpoint(start.clone(), Vec::new()),
            _ => return,
        };
        match self.shape.durable {
            true => self.begin_durable_log(node, base),
            false => self.begin_log_anew(node, base.place()),
        }
    }

    /// A checkpoint may be in place now: the log begins with the machine's state, of which perhaps
    /// only a part was shipped.
    pub(super) fn keep_restored(&mut self, node: usize) {
        let host = &mut self.nodes[node];
        let Role::Backup(standing) = &mut host.role else { return };
        let Some(Base::Checkpoint(start, parts)) = &mut host.base else { return };
        let machine = standing.worker.following_machine();
        let Some(machine) = machine.filter(|machine| machine.moment() == start.head.moment) else { return };
        machine.begin_checkpoint(CheckpointExtent::Full);
        let next = || machine.take_checkpoint_pages(CheckpointExtent::Full, BITE_PAGES);
        *parts = std::iter::repeat_with(next).take_while(|part| !part.is_empty()).collect();
    }

    pub(super) fn begin_durable_log(&mut self, node: usize, base: Base) {
        let place = base.place();
        self.nodes[node].base = Some(base);
        self.begin_log_anew(node, place);
    }

    fn begin_log_anew(&mut self, node: usize, place: (u64, u64)) {
        self.end_log(node, false);
        self.begin_log(node, ToyMachine::new(self.toy).identity(), place);
        self.nodes[node].log_busy = true;
        self.schedule_log(node, 0);
    }

    /// All hosts lose their power. Who was the primary starts again from its disk, or a backup does.
    pub(super) fn cut_power(&mut self) -> Option<u64> {
        let record = self.record().filter(|_| self.shape.durable)?;
        let holder = self.position_of(&record.holder)?;
        let leads = match &self.nodes[holder].role {
            Role::Primary(live) => live.core.term() == record.term && live.core.finished().is_none(),
            _ => false,
        };
        // A takeover that is asked for may reach the arbiter after all are dead: then the record
        // names a host that never led.
        let claimed = self.queue.iter().any(|Reverse(scheduled)| scheduled.what.is_takeover());
        if !leads || claimed || self.is_ending(holder) {
            return None;
        }
        // A set of backups that is asked for may be the record's by the time that one starts again.
        let is_certain = self.nodes[holder].asked_set.is_none();
        let may_reclaim = |node: &usize| is_certain && self.may_reclaim(*node, &record);
        let mut heirs: Vec<usize> = (0..self.nodes.len()).filter(may_reclaim).collect();
        heirs.push(holder);
        heirs.retain(|node| {
            let host = &self.nodes[*node];
            let is_whole = !matches!(&host.base, Some(Base::Checkpoint(_, parts)) if parts.is_empty());
            host.base.is_some() && is_whole && host.log.as_ref().is_some_and(HostLog::is_sound)
        });
        if heirs.is_empty() {
            return None;
        }
        let first = *self.random.pick(&heirs);
        let base = self.nodes[first].base.take();
        let read = self.nodes[first].log.as_mut().map(HostLog::end_and_read);
        let longest_ns = 900 * MILLISECOND_NS;
        for node in (0..self.nodes.len()).filter(|node| *node != first) {
            let after_ns = self.random.between(10 * MILLISECOND_NS, longest_ns);
            self.stop_node(node, true, after_ns);
        }
        self.end_node(first);
        match (base, read) {
            (Some(base), Some(Ok(entries))) => self.nodes[first].durable = Some((base, entries)),
            (_, Some(Err(text))) => self.log_is_wrong(first, &text),
            _ => {}
        }
        let at_ns = self.now_ns + self.random.between(10 * MILLISECOND_NS, longest_ns);
        let epoch = self.nodes[first].epoch;
        self.schedule(at_ns, What::StartAgain { node: first, epoch, term: record.term });
        Some(self.now_ns + longest_ns)
    }

    /// Whether this node's log holds all that was released, and no other backup must speak before it.
    fn may_reclaim(&self, node: usize, record: &Record) -> bool {
        let Role::Backup(standing) = &self.nodes[node].role else { return false };
        let is_only_word = record.required as usize == record.backups.len();
        let counts = record.counts_on(&self.nodes[node].name);
        counts && is_only_word && standing.core.is_in_step() && standing.core.term() == record.term
    }

    /// A node that was the primary of that term, or its backup, starts again from what its disk holds.
    pub(super) fn start_again(&mut self, node: usize, term: u64) {
        if self.is_arbiter_cut(node) {
            let (at_ns, epoch) = (self.now_ns + 30 * MILLISECOND_NS, self.nodes[node].epoch);
            return self.schedule(at_ns, What::StartAgain { node, epoch, term });
        }
        let Some((base, entries)) = self.nodes[node].durable.take() else { return };
        let name = self.nodes[node].name.clone();
        let was_primary = self.record().is_some_and(|record| record.holder == name);
        let held = entries.iter().map(LogEntry::sequence).max().unwrap_or(base.place().0);
        // The log holds what any earlier life of this node held.
        let life = if was_primary { self.begin_life(node) } else { Life::UNKNOWN };
        let step = match was_primary {
            true => Step::ClaimStart { node: name.clone(), life, authority: Authority::Log { term } },
            false => Step::TakeOver { node: name.clone(), life, term, held },
        };
        let term = match arbitrate(&self.arbiter, &step) {
            Ok(record) => record.term,
            Err(error) => {
                return self.checks.violation(format!("a start from the durable log: {error}"));
            }
        };
        self.rules.insert(term, Record::alone(term, &name).lived(&name, life));
        match replay(self.toy, &base, &entries, term) {
            Ok((machine, start)) => {
                let start = PrimacyStart { life, ..start };
                self.count("started again from the disk");
                if !was_primary {
                    self.count("started again from a backup's disk");
                }
                if entries.iter().any(|entry| matches!(entry, LogEntry::Increment(_))) {
                    self.count("started again from increments");
                }
                self.trace(|| format!("{name} starts again: {start:?}"));
                self.checks.took_over(&name, machine.ledger().0);
                self.begin_durable_log(node, base);
                self.write_log_now(node, entries);
                self.start_primary(node, machine, start);
            }
            Err(text) => self.checks.violation(format!("law 1: a log does not replay: {text}")),
        }
    }
}

/// The machine after all of these entries, and how its next primacy begins.
fn replay(
    toy: ToyConfig,
    base: &Base,
    entries: &[LogEntry],
    term: u64,
) -> Result<(ToyMachine, PrimacyStart), String> {
    let mut machine = ToyMachine::new(toy);
    let mut from = PrimacyStart::boot(&machine.identity(), term);
    let (replayer, start) = match base {
        Base::Boot => {
            machine.revert_disks();
            (Replayer::new(machine, 0, Counted::default()), None)
        }
        Base::Checkpoint(start, parts) => {
            machine.restore_begin(&start.head).map_err(|error| error.to_string())?;
            let mut put = parts.iter().map(|part| machine.restore_part(part));
            put.try_for_each(|put| put.map_err(|error| error.to_string()))?;
            machine.restore_end();
            (from.from, from.chain) = (start.position, start.chain);
            let counted = Counted { events: start.events_before, outputs: start.head.outputs_before };
            (Replayer::new(machine, start.position.sequence, counted), Some(&**start))
        }
    };
    let increments = entries.iter().filter_map(|entry| match entry {
        LogEntry::Increment(whole) => Some((whole.start.base, whole.sequence())),
        LogEntry::Batch(_) => None,
    });
    let mut replay = LogReplay::new(replayer, start, increments);
    let mut turns = 0;
    for entry in entries {
        let (position, chain) = match entry {
            LogEntry::Batch(batch) => (batch.end_position(), batch.chain()),
            LogEntry::Increment(whole) => (whole.start.position, whole.start.chain),
        };
        if position.sequence > from.from.sequence {
            (from.from, from.chain) = (position, chain);
        }
        replay.push(entry.clone()).map_err(|divergence| divergence.to_string())?;
        while !replay.step(5_000).map_err(|divergence| divergence.to_string())?.caught_up {
            turns += 1;
            if turns > REPLAY_TURNS {
                return Err("the replay does not end".to_owned());
            }
        }
    }
    let counted = replay.replayed();
    let (reissue, outputs_released) = replay.unreleased();
    let (reissue, replayer) = (reissue.to_vec(), replay.into_replayer());
    let start = PrimacyStart {
        from: Position { term, moment: replayer.moment(), ..from.from },
        events_before: counted.events,
        outputs_logged: counted.outputs,
        outputs_released,
        reissue,
        ..from
    };
    Ok((replayer.into_machine(), start))
}
