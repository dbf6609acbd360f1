//! The arbiter: asked, racing, answering, and not always reached.

use link::arbitration::Refusal;

use super::*;

impl World {
    pub(super) fn ask_arbiter(&mut self, node: usize, step: Step) {
        self.trace(|| format!("{} asks the arbiter: {step}", self.nodes[node].name));
        let delay_ns = self.arbiter_delay_ns();
        let epoch = self.nodes[node].epoch;
        if let Step::SetBackups { node: holder, term, backups, lives, required } = &step {
            let (backups, lives, required) = (backups.clone(), lives.clone(), *required);
            self.nodes[node].asked_set =
                Some(Record { backups, required, lives, ..Record::alone(*term, holder) });
        }
        if self.is_arbiter_cut(node) {
            let reply = Err(ArbitrationError::Unreachable(ArbiterError::Withdrawn));
            return self.schedule(self.now_ns + 5 * delay_ns, What::ArbiterReply { node, epoch, reply });
        }
        self.schedule(self.now_ns + delay_ns, What::ArbiterAsked { node, epoch, step });
    }

    /// One way to the arbiter.
    pub(super) fn arbiter_delay_ns(&mut self) -> u64 {
        let slow = self.arbiter_slow_until_ns > self.now_ns;
        self.random.between(50_000, 4 * MILLISECOND_NS) * if slow { 60 } else { 1 }
    }

    pub(super) fn is_arbiter_cut(&self, node: usize) -> bool {
        self.arbiter_down_until_ns.max(self.nodes[node].arbiter_cut_until_ns) > self.now_ns
    }

    pub(super) fn arbiter_asked(&mut self, node: usize, epoch: u64, step: Step) {
        if self.arbiter_down_until_ns > self.now_ns {
            let lost = Err(ArbitrationError::Unreachable(ArbiterError::Withdrawn));
            return self.arbiter_answers(node, epoch, lost);
        }
        let current = self.arbiter.read().ok().flatten();
        self.arbiter_decides(node, epoch, step, current);
    }

    pub(super) fn arbiter_decides(&mut self, node: usize, epoch: u64, step: Step, current: Option<Record>) {
        let delay_ns = self.random.between(10_000, MILLISECOND_NS);
        if self.options.mutation == Some(Mutation::SkipArbiter)
            && let Some(record) = &current
        {
            match &step {
                Step::TakeOver { node: heir, life, term, .. } => {
                    let taken = Record::alone(term + 1, heir).lived(heir, *life);
                    return self.arbiter_answers(node, epoch, Ok(taken));
                }
                Step::SetBackups { backups, .. } if backups.is_empty() => {
                    let alone = Record::alone(record.term, &record.holder);
                    return self.arbiter_answers(node, epoch, Ok(alone));
                }
                _ => {}
            }
        }
        match self.decide(&step, current.as_ref()) {
            Ok(Decision::AlreadySo(record)) => self.arbiter_answers(node, epoch, Ok(record)),
            Ok(Decision::Propose(new)) => {
                let what = What::ArbiterSets { node, epoch, step, expected: current, new };
                self.schedule(self.now_ns + delay_ns, what);
            }
            Err(refusal) => self.arbiter_answers(node, epoch, Err(ArbitrationError::Refused(refusal))),
        }
    }

    /// As the production rules say, or as a broken protocol would.
    fn decide(&self, step: &Step, current: Option<&Record>) -> Result<Decision, Refusal> {
        let mut current = current.cloned();
        if self.options.mutation == Some(Mutation::IgnoreBids)
            && let Some(record) = &mut current
        {
            record.required = record.backups.len() as u32;
            record.bids.clear();
        }
        let decision = decide(step, current.as_ref())?;
        let (Decision::Propose(mut record), Step::SetBackups { backups, .. }) = (decision.clone(), step)
        else {
            return Ok(decision);
        };
        if self.options.mutation == Some(Mutation::ReleaseAtFirst) {
            record.required = backups.len() as u32;
        }
        Ok(Decision::Propose(record))
    }

    pub(super) fn arbiter_sets(
        &mut self,
        node: usize,
        epoch: u64,
        step: Step,
        expected: Option<Record>,
        new: Record,
    ) {
        if self.arbiter_down_until_ns > self.now_ns {
            let lost = Err(ArbitrationError::Unreachable(ArbiterError::Withdrawn));
            return self.arbiter_answers(node, epoch, lost);
        }
        match self.arbiter.compare_and_set(expected.as_ref(), &new) {
            Ok(CasOutcome::Won) => {
                self.trace(|| format!("the record is now {new}"));
                self.rules.insert(new.term, new.clone());
                self.tell_record(&new);
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
        let delay_ns = self.arbiter_delay_ns();
        let lost = std::mem::take(&mut self.nodes[node].lose_answer);
        let cut = self.is_arbiter_cut(node);
        if let Some(for_ns) = self.nodes[node].pause_before_answer_ns.take() {
            self.pause(node, for_ns);
            self.count("an answer waited for a pause");
        }
        let (reply, delay_ns) = match lost || cut {
            true => (Err(ArbitrationError::Unreachable(ArbiterError::Withdrawn)), 8 * delay_ns),
            false => (reply, delay_ns),
        };
        self.nodes[node].refused = match &reply {
            // Whose primary still leads stays in step.
            Err(ArbitrationError::Refused(Refusal::NotRegistered { term, current, .. })) => {
                current.term != *term
            }
            Err(ArbitrationError::Refused(_)) => true,
            _ => false,
        };
        self.schedule(self.now_ns + delay_ns, What::ArbiterReply { node, epoch, reply });
    }

    pub(super) fn arbiter_replies(&mut self, node: usize, reply: Result<Record, ArbitrationError>) {
        let now_ns = self.clock_ns(node);
        self.nodes[node].refused = false;
        self.nodes[node].asked_set = None;
        self.trace(|| format!("the arbiter answers {}: {reply:?}", self.nodes[node].name));
        match &mut self.nodes[node].role {
            Role::Primary(live) => live.core.handle_arbiter_reply(reply, now_ns),
            Role::Backup(standing) => standing.core.handle_arbiter_reply(reply, now_ns),
            Role::Down => return,
        }
        self.pump(node);
    }
}
