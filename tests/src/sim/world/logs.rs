//! Each host's log: its thread, its disk, and what is found when its process has ended.

use super::*;

impl World {
    /// Gives every host a log of its own, in a directory that goes with the run.
    pub(super) fn keep_logs(&mut self) {
        // Thousands of small files: in memory, where the host has a place for that.
        let root = match tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()) {
            Ok(root) => root,
            Err(error) => panic!("a temporary directory for the hosts' logs: {error}"),
        };
        for node in &mut self.nodes {
            node.log = Some(HostLog::new(root.path().join(&node.name), self.random.fork()));
        }
        self.logs = Some(root);
    }

    pub(super) fn begin_log(&mut self, node: usize, identity: MachineIdentity, place: (u64, u64)) {
        if let Some(log) = &mut self.nodes[node].log {
            log.begin(identity, place);
        }
    }

    /// Appends and syncs at once, whatever the disk is like: before a primacy begins.
    pub(super) fn write_log_now(&mut self, node: usize, entries: Vec<LogEntry>) {
        self.nodes[node].log_busy = false;
        let Some(log) = &mut self.nodes[node].log else { return };
        log.recover();
        entries.into_iter().for_each(|entry| log.push(entry));
        if let Err(text) = log.turn() {
            self.log_is_wrong(node, &text);
        }
    }

    /// The core has batches and increments for the log.
    pub(super) fn store(&mut self, node: usize, entries: Vec<LogEntry>) {
        let Some(log) = self.nodes[node].log.as_mut().filter(|_| !entries.is_empty()) else { return };
        let last = entries.last().map(LogEntry::sequence);
        entries.into_iter().for_each(|entry| log.push(entry));
        if let Some(sequence) = last.filter(|_| self.options.mutation == Some(Mutation::CallDurable)) {
            self.log_synced(node, sequence);
        }
        if !std::mem::replace(&mut self.nodes[node].log_busy, true) {
            self.schedule_log(node, 0);
        }
    }

    pub(super) fn schedule_log(&mut self, node: usize, least_ns: u64) {
        let slow = self.nodes[node].log.as_ref().is_some_and(|log| log.slow_until_ns > self.now_ns);
        let delay_ns = least_ns + self.random.between(80_000, 900_000) * if slow { 80 } else { 1 };
        let epoch = self.nodes[node].epoch;
        self.schedule(self.now_ns + delay_ns, What::Log { node, epoch });
    }

    /// The log's thread has its turn.
    pub(super) fn log_turn(&mut self, node: usize) {
        self.nodes[node].log_busy = false;
        let now_ns = self.now_ns;
        let Some(log) = &mut self.nodes[node].log else { return };
        if log.ill_until_ns <= now_ns {
            log.fall_ill(DiskHealth::Well, 0);
        }
        match log.turn() {
            Ok(turn) => {
                if let Some(sequence) = turn.synced {
                    self.log_synced(node, sequence);
                }
                if turn.ended {
                    self.count("log ended");
                }
                if turn.more {
                    self.nodes[node].log_busy = true;
                    self.count("log waits for room");
                    self.schedule_log(node, 20 * MILLISECOND_NS);
                }
            }
            Err(text) => self.log_is_wrong(node, &text),
        }
    }

    /// The log of a node is on its disk up to this batch.
    fn log_synced(&mut self, node: usize, sequence: u64) {
        let clock_ns = self.clock_ns(node);
        match &mut self.nodes[node].role {
            Role::Primary(live) => {
                let term = live.core.term();
                live.core.handle_stored(term, sequence, clock_ns);
            }
            Role::Backup(standing) => {
                let term = standing.core.term();
                standing.core.handle_stored(term, sequence);
            }
            Role::Down => return,
        }
        self.pump(node);
    }

    /// The process of a node has ended: its log is read as it would be at the next start.
    pub(super) fn end_log(&mut self, node: usize, power_lost: bool) {
        self.nodes[node].log_busy = false;
        let Some(log) = &mut self.nodes[node].log else { return };
        match log.end(power_lost) {
            Ok(end) => {
                for (what, happened) in [
                    ("log read again", end.entries > 0),
                    ("log torn", end.torn),
                    ("log damage found", end.damaged),
                ] {
                    if happened {
                        self.count(what);
                    }
                }
            }
            Err(text) => self.log_is_wrong(node, &text),
        }
    }

    pub(super) fn log_is_wrong(&mut self, node: usize, text: &str) {
        let text = format!("the log of {}: {text}", self.nodes[node].name);
        self.checks.violation(text);
    }
}
