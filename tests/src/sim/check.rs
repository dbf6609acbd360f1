//! The laws of DESIGN.md section 2, as checks on what a cluster shows to the outside.

use std::collections::{BTreeMap, BTreeSet};

use link::arbitration::Record;
use log_format::{LoggedOutput, Moment, Output};

use super::client::Operation;
use super::ledger::Reply;

/// What was seen so far, and what was wrong with it.
#[derive(Debug, Default)]
pub struct Checks {
    /// Law 1: an output of this number was released with these contents.
    released: BTreeMap<u64, (Moment, u32)>,
    /// Law 3: who released in a term.
    releasers: BTreeMap<u64, String>,
    /// Exactly-once: the one answer to a request.
    answers: BTreeMap<(u8, u64), Reply>,
    longest_ledger: u64,
    violations: Vec<String>,
}

/// Who holds what, at the time of a release.
#[derive(Debug, Clone)]
pub struct Custody<'a> {
    /// The arbiter's record.
    pub record: Option<&'a Record>,
    /// The last record of the releaser's term: whom it counted on last, and by which rule.
    pub rule: Option<&'a Record>,
    /// Outputs since boot that each of those backups can make again.
    pub covered: Vec<u64>,
    /// Outputs since boot that are covered by what is durable on the releaser's disk, where output
    /// waits for that.
    pub durable: Option<u64>,
    /// Whether the releaser's lease has certainly ended, where there are leases.
    pub lease_over: bool,
}

impl Checks {
    /// What was wrong.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// Notes something wrong.
    pub fn violation(&mut self, text: String) {
        self.violations.push(text);
    }

    /// A node lets an output go.
    pub fn released(&mut self, node: &str, term: u64, output: &LoggedOutput, custody: &Custody<'_>) {
        self.check_law_1(node, output);
        self.check_law_2(node, term, output, custody);
        self.check_law_3(node, term, custody);
        if let Output::Frame { frame, .. } = &output.output
            && let Some(reply) = Reply::from_frame(frame)
        {
            self.check_answer(node, reply);
        }
    }

    /// Whether this client ever got an answer out of the cluster.
    pub fn has_answered(&self, client: u8) -> bool {
        self.answers.keys().any(|(answered, _)| *answered == client)
    }

    /// A node goes live in the place of another with a ledger of this length.
    pub fn took_over(&mut self, node: &str, ledger_length: u64) {
        if ledger_length < self.longest_ledger {
            self.violation(format!(
                "law 4: {node} takes over with {ledger_length} entries, a client knows of {}",
                self.longest_ledger
            ));
        }
    }

    /// The replay of a machine without a defect diverged.
    pub fn diverged(&mut self, node: &str, text: &str) {
        self.violation(format!("law 1: {node}: {text}"));
    }

    /// The end: every client is done.
    pub fn finish(&mut self, history: &[Operation], machine: Option<(u64, u64)>) {
        self.check_reissue();
        self.check_time();
        self.check_history(history);
        if let Some((length, hash)) = machine {
            self.check_ledger(history, length, hash);
        }
    }

    fn check_law_1(&mut self, node: &str, output: &LoggedOutput) {
        let found = (output.at, output.output.hash());
        let first = *self.released.entry(output.ordinal).or_insert(found);
        if first != found {
            self.violation(format!(
                "law 1: {node} releases output {} as {found:?}, it was released as {first:?}",
                output.ordinal
            ));
        }
    }

    fn check_law_2(&mut self, node: &str, term: u64, output: &LoggedOutput, custody: &Custody<'_>) {
        let ordinal = output.ordinal;
        if custody.durable.is_some_and(|outputs| ordinal >= outputs) {
            self.violation(format!(
                "law 2: {node} releases output {ordinal} in term {term}, durable are {:?}",
                custody.durable
            ));
        }
        let alone = custody
            .record
            .is_some_and(|record| record.term == term && record.holder == node && record.backups.is_empty());
        let holding = custody.covered.iter().filter(|outputs| ordinal < **outputs).count();
        let required = custody.rule.map_or(1, |rule| rule.required.max(1)) as usize;
        if !alone && holding < required {
            self.violation(format!(
                "law 2: {node} releases output {ordinal} in term {term}; the record is {:?}, the rule {:?}, covered {:?}",
                custody.record, custody.rule, custody.covered
            ));
        }
    }

    fn check_law_3(&mut self, node: &str, term: u64, custody: &Custody<'_>) {
        let first = self.releasers.entry(term).or_insert_with(|| node.to_owned());
        if first != node {
            let text = format!("law 3: {node} releases in term {term}, as {first} did");
            self.violations.push(text);
        }
        if custody.record.is_none_or(|record| record.term < term) {
            self.violation(format!("law 3: {node} releases in term {term}, which nobody gave it"));
        }
        if custody.lease_over {
            self.violation(format!("law 3: {node} releases in term {term} without a lease"));
        }
    }

    fn check_answer(&mut self, node: &str, reply: Reply) {
        self.longest_ledger = self.longest_ledger.max(reply.length);
        let key = (reply.client, reply.number);
        let first = self.answers.entry(key).or_insert_with(|| reply.clone());
        if *first != reply {
            let text = format!("law 4: {node} answers {reply:?}, the first answer was {first:?}");
            self.violations.push(text);
        }
    }

    /// Every output up to the last released one was released: a receiver copes with a
    /// duplicate, never with a gap.
    fn check_reissue(&mut self) {
        let ordinals: BTreeSet<u64> = self.released.keys().copied().collect();
        let last = ordinals.last().copied().unwrap_or(0);
        let missing: Vec<u64> = (0..last).filter(|ordinal| !ordinals.contains(ordinal)).collect();
        if !missing.is_empty() {
            self.violation(format!("a gap: outputs {missing:?} were never released, output {last} was"));
        }
    }

    /// Guest time and icount never run backwards from one output to the next, whichever host
    /// made them.
    fn check_time(&mut self) {
        let moments: Vec<(u64, Moment)> =
            self.released.iter().map(|(ordinal, (at, _))| (*ordinal, *at)).collect();
        for pair in moments.windows(2) {
            let ((before, earlier), (after, later)) = (pair[0], pair[1]);
            if later.icount < earlier.icount || later.time_ns < earlier.time_ns {
                self.violation(format!(
                    "law 1: output {after} was made at {later:?}, output {before} at {earlier:?}"
                ));
            }
        }
    }

    /// Linearizability of an append-only ledger: its length orders the operations.
    fn check_history(&mut self, history: &[Operation]) {
        let mut by_length: Vec<(u64, &Operation)> = history
            .iter()
            .filter_map(|operation| Some((operation.reply.as_ref()?.length, operation)))
            .collect();
        by_length.sort_by_key(|(length, operation)| (*length, operation.invoked_ns));
        for (length, operation) in &by_length {
            let Some(answered_ns) = operation.answered_ns else { continue };
            let stale = by_length.iter().find(|(seen, later)| {
                later.invoked_ns > answered_ns && (seen < length || later.append.is_some() && seen <= length)
            });
            if let Some((seen, later)) = stale {
                self.violation(format!(
                    "law 4: an operation invoked at {} saw {seen} entries, one answered at {answered_ns} saw {length}",
                    later.invoked_ns
                ));
            }
        }
        let appends: Vec<u64> = by_length
            .iter()
            .filter(|(_, operation)| operation.append.is_some())
            .map(|(length, _)| *length)
            .collect();
        if appends.windows(2).any(|pair| pair[0] == pair[1]) {
            self.violation("law 4: two appends got the same place in the ledger".to_owned());
        }
    }

    /// The ledger holds every append once, in the order of the answers.
    fn check_ledger(&mut self, history: &[Operation], length: u64, hash: u64) {
        let mut values = BTreeMap::new();
        for operation in history {
            if let (Some(value), Some(reply)) = (operation.append, &operation.reply) {
                values.insert(reply.length, (value, reply.hash));
            }
        }
        let mut running = 0;
        for (place, (value, replied)) in &values {
            running = Reply::next_hash(running, *value);
            if running != *replied {
                return self.violation(format!("law 4: entry {place} is not what its client appended"));
            }
        }
        if values.len() as u64 != length || running != hash {
            self.violation(format!(
                "law 4: the ledger has {length} entries with hash {hash:x}, clients appended {} with hash {running:x}",
                values.len()
            ));
        }
    }
}
