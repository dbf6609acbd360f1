//! Where output waits for the disks: what a host keeps of its machine beside the log, and the start
//! after all hosts lost their power at once.

use link::arbitration::Authority;
use log_format::{CheckpointPart, CheckpointStart, Moment, Position};

use backup::{FromReplayer, ReplayWorker, ToReplayer};
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
        if !self.shape.durable {
            return;
        }
        match command {
            ToReplayer::Boot { .. } => self.begin_durable_log(node, Base::Boot),
            ToReplayer::RestoreBegin { start, .. } => {
                self.begin_durable_log(node, Base::Checkpoint(start.clone(), Vec::new()));
            }
            _ => {}
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
        self.end_log(node, false);
        let place = base.place();
        self.nodes[node].base = Some(base);
        self.begin_log(node, ToyMachine::new(self.toy).identity(), place);
        self.nodes[node].log_busy = true;
        self.schedule_log(node, 0);
    }

    /// All hosts lose their power. Who was the primary starts again from its disk.
    pub(super) fn cut_power(&mut self) -> Option<u64> {
        let record = self.record().filter(|_| self.shape.durable)?;
        let holder = self.position_of(&record.holder)?;
        let leads = match &self.nodes[holder].role {
            Role::Primary(live) => live.core.term() == record.term && live.core.finished().is_none(),
            _ => false,
        };
        let sound = self.nodes[holder].log.as_ref().is_some_and(HostLog::is_sound);
        // A takeover that is asked for may reach the arbiter after all are dead: then the record
        // names a host that never led.
        let claimed = self.queue.iter().any(|Reverse(scheduled)| scheduled.what.is_takeover());
        if !leads || !sound || claimed || self.is_ending(holder) || self.nodes[holder].base.is_none() {
            return None;
        }
        let base = self.nodes[holder].base.take();
        let read = self.nodes[holder].log.as_mut().map(HostLog::end_and_read);
        let longest_ns = 900 * MILLISECOND_NS;
        for node in (0..self.nodes.len()).filter(|node| *node != holder) {
            let after_ns = self.random.between(10 * MILLISECOND_NS, longest_ns);
            self.stop_node(node, true, after_ns);
        }
        self.end_node(holder);
        match (base, read) {
            (Some(base), Some(Ok(batches))) => self.nodes[holder].durable = Some((base, batches)),
            (_, Some(Err(text))) => self.log_is_wrong(holder, &text),
            _ => {}
        }
        let at_ns = self.now_ns + self.random.between(10 * MILLISECOND_NS, longest_ns);
        let epoch = self.nodes[holder].epoch;
        self.schedule(at_ns, What::StartAgain { node: holder, epoch, term: record.term });
        Some(self.now_ns + longest_ns)
    }

    /// The holder of that term starts again from what its disk holds.
    pub(super) fn start_again(&mut self, node: usize, term: u64) {
        if self.is_arbiter_cut(node) {
            let (at_ns, epoch) = (self.now_ns + 30 * MILLISECOND_NS, self.nodes[node].epoch);
            return self.schedule(at_ns, What::StartAgain { node, epoch, term });
        }
        let Some((base, batches)) = self.nodes[node].durable.take() else { return };
        let authority = Authority::Log { term };
        let life = self.begin_life(node);
        let claim = Step::ClaimStart { node: self.nodes[node].name.clone(), life, authority };
        let term = match arbitrate(&self.arbiter, &claim) {
            Ok(record) => record.term,
            Err(error) => {
                return self.checks.violation(format!("a start from the durable log: {error}"));
            }
        };
        let name = self.nodes[node].name.clone();
        self.rules.insert(term, Record::alone(term, &name).lived(&name, life));
        match replay(self.toy, &base, &batches, term) {
            Ok((machine, start)) => {
                let start = PrimacyStart { life, ..start };
                self.count("started again from the disk");
                self.trace(|| format!("{} starts again: {start:?}", self.nodes[node].name));
                let name = self.nodes[node].name.clone();
                self.checks.took_over(&name, machine.ledger().0);
                self.begin_durable_log(node, base);
                self.write_log_now(node, batches);
                self.start_primary(node, machine, start);
            }
            Err(text) => self.checks.violation(format!("law 1: a log does not replay: {text}")),
        }
    }
}

/// The machine after all of these batches, and how its next primacy begins.
fn replay(
    toy: ToyConfig,
    base: &Base,
    batches: &[SealedBatch],
    term: u64,
) -> Result<(ToyMachine, PrimacyStart), String> {
    let mut worker = ReplayWorker::new(|| ToyMachine::new(toy));
    let mut start = PrimacyStart::boot(&ToyMachine::new(toy).identity(), term);
    match base {
        Base::Boot => worker.handle(ToReplayer::Boot { generation: 1 }),
        Base::Checkpoint(checkpoint, parts) => {
            start.from.sequence = checkpoint.position.sequence;
            start.chain = checkpoint.chain;
            start.outputs_logged = checkpoint.head.outputs_before;
            start.outputs_released = checkpoint.released_outputs;
            start.reissue.clone_from(&checkpoint.held);
            worker.handle(ToReplayer::RestoreBegin { generation: 1, start: checkpoint.clone() });
            parts.iter().for_each(|part| worker.handle(ToReplayer::RestorePart(part.clone())));
            worker.handle(ToReplayer::RestoreEnd);
        }
    }
    if let Some(last) = batches.last() {
        start.from.sequence = last.sequence;
        start.chain = last.chain();
        start.outputs_logged = last.outputs_after();
        start.outputs_released = last.released_outputs;
    }
    batches.iter().for_each(|batch| worker.handle(ToReplayer::Batch(batch.clone())));
    worker.handle(ToReplayer::Finish);
    let mut end: Option<(Moment, u64)> = None;
    for _ in 0..REPLAY_TURNS {
        worker.turn(5_000);
        while let Some(FromReplayer { report, .. }) = worker.poll() {
            match report {
                ReplayReport::Progress { outputs, .. } => start.reissue.extend(outputs),
                ReplayReport::Finished { moment, counted, .. } => end = Some((moment, counted.events)),
                ReplayReport::Diverged(divergence) => return Err(divergence.to_string()),
                ReplayReport::RestoreFailed { text } => return Err(text),
                // Nobody asks for the others here.
                _ => {}
            }
        }
        if end.is_some() {
            break;
        }
    }
    let (moment, events) = end.ok_or("the replay does not end")?;
    start.events_before = events;
    start.from = Position { term, moment, ..start.from };
    let released = start.outputs_released;
    start.reissue.retain(|output| output.ordinal >= released);
    let machine = worker.into_machine().ok_or("no machine is left")?;
    Ok((machine, start))
}
