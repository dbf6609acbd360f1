//! The arbiter: asked, racing, answering, and not always reached.

use super::*;

impl World {
    pub(super) fn ask_arbiter(&mut self, node: usize, step: Step) {
        self.trace(|| format!("{} asks the arbiter: {step}", self.nodes[node].name));
        let delay_ns = self.random.between(50_000, 4 * MILLISECOND_NS);
        let epoch = self.nodes[node].epoch;
        if self.nodes[node].arbiter_cut_until_ns > self.now_ns {
            let reply = Err(ArbitrationError::Unreachable(ArbiterError::Withdrawn));
            return self.schedule(self.now_ns + 5 * delay_ns, What::ArbiterReply { node, epoch, reply });
        }
        self.schedule(self.now_ns + delay_ns, What::ArbiterAsked { node, epoch, step });
    }

    pub(super) fn arbiter_asked(&mut self, node: usize, epoch: u64, step: Step) {
        let current = self.arbiter.read().ok().flatten();
        self.arbiter_decides(node, epoch, step, current);
    }

    pub(super) fn arbiter_decides(&mut self, node: usize, epoch: u64, step: Step, current: Option<Record>) {
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

    pub(super) fn arbiter_sets(
        &mut self,
        node: usize,
        epoch: u64,
        step: Step,
        expected: Option<Record>,
        new: Record,
    ) {
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

    pub(super) fn arbiter_answers(
        &mut self,
        node: usize,
        epoch: u64,
        reply: Result<Record, ArbitrationError>,
    ) {
        let delay_ns = self.random.between(50_000, 4 * MILLISECOND_NS);
        let lost = std::mem::take(&mut self.nodes[node].lose_answer);
        let cut = self.nodes[node].arbiter_cut_until_ns > self.now_ns;
        let (reply, delay_ns) = match lost || cut {
            true => (Err(ArbitrationError::Unreachable(ArbiterError::Withdrawn)), 8 * delay_ns),
            false => (reply, delay_ns),
        };
        self.schedule(self.now_ns + delay_ns, What::ArbiterReply { node, epoch, reply });
    }

    pub(super) fn arbiter_replies(&mut self, node: usize, reply: Result<Record, ArbitrationError>) {
        let now_ns = self.now_ns;
        self.trace(|| format!("the arbiter answers {}: {reply:?}", self.nodes[node].name));
        match &mut self.nodes[node].role {
            Role::Primary(live) => live.core.handle_arbiter_reply(reply, now_ns),
            Role::Backup(standing) => standing.core.handle_arbiter_reply(reply, now_ns),
            Role::Down => return,
        }
        self.pump(node);
    }
}
