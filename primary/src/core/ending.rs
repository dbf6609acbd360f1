//! How a primacy ends by its own will: the guest ended, the operator stops it, or hands it over.

use log_format::GoodbyeReason;

use super::{Finish, Primary, PrimaryEvent};

/// How the primacy is about to end.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    pub(super) finish: Finish,
    pub(super) due_ns: u64,
    /// The batch that covers everything.
    pub(super) last_sequence: u64,
    pub(super) goodbye_said: bool,
}

impl Ending {
    /// Whether this one, which was counted on so far, still is.
    pub(super) fn counts_on(&self, name: &str) -> bool {
        match &self.finish {
            // Nobody else is to be asked when it takes over.
            Finish::SwitchedOver { to } => to == name,
            // Who leaves for good needs the heir that the record names, even one out of sight.
            finish if finish.wants_heir() => true,
            // A guest that ended needs none: the record must let the next start happen.
            _ => !self.goodbye_said,
        }
    }
}

impl Primary {
    pub(super) fn begin_ending(&mut self, finish: Finish, now_ns: u64) {
        if self.ending.is_some() || self.finished.is_some() {
            return;
        }
        if !self.batcher.is_empty() {
            self.seal(now_ns);
        }
        self.ending = Some(Ending {
            finish,
            due_ns: now_ns.saturating_add(self.config.ending_max_ns),
            last_sequence: self.tail.last_sequence(),
            goodbye_said: false,
        });
        self.settle(now_ns);
    }

    /// The operator wants a backup to go on in this one's place.
    pub(super) fn begin_switchover(&mut self, to: Option<String>, now_ns: u64) {
        let ready = |node: &String| {
            self.peers.get(node).is_some_and(|peer| {
                peer.connection.is_some() && self.commit.counted.has(node, peer.incarnation)
            })
        };
        let heir = match to {
            Some(node) if ready(&node) => Some(node),
            Some(_) => None,
            None => self.commit.counted.names().into_iter().find(ready),
        };
        match heir {
            Some(to) if self.ending.is_none() => {
                self.begin_ending(Finish::SwitchedOver { to }, now_ns);
            }
            _ => self.events.push_back(PrimaryEvent::SwitchoverFailed {
                text: "no backup of that name is registered and in step".to_owned(),
            }),
        }
    }

    /// An ending waits until the backups hold everything and output has left, but not longer
    /// than it may.
    pub(super) fn progress_ending(&mut self, now_ns: u64) {
        let Some(ending) = self.ending.clone() else { return };
        let overdue = now_ns >= ending.due_ns;
        if let Finish::SwitchedOver { to } = &ending.finish {
            return self.progress_switchover(&to.clone(), &ending, overdue, now_ns);
        }
        let held = self.peers.values().all(|peer| peer.acked >= ending.last_sequence || !peer.ready);
        if !ending.goodbye_said && (held || overdue) {
            self.say_last_goodbyes(&ending.finish);
            self.note_goodbye(now_ns);
            return self.settle(now_ns);
        }
        // A guest that ended needs no heir: the record must let the next start happen.
        let heir_wanted = ending.finish.wants_heir();
        let settled = heir_wanted || !self.commit.may_be_registered();
        let left = heir_wanted || self.buffer.uncommitted_outputs() == 0;
        if ending.goodbye_said && (settled && left || overdue) {
            self.finish(ending.finish);
        }
    }

    /// The heir gets all there is, then the word. Until it has taken the term this side can
    /// still go on: the arbiter decides.
    fn progress_switchover(&mut self, to: &str, ending: &Ending, overdue: bool, now_ns: u64) {
        let heir = self.peers.get(to).filter(|peer| peer.connection.is_some());
        // The record names the heir and nobody else.
        let alone = self.commit.change.is_none() && self.commit.counted.names().len() == 1;
        match heir {
            Some(peer) if !ending.goodbye_said && alone && peer.acked >= ending.last_sequence => {
                if let Some(id) = peer.connection {
                    self.say_goodbye(id, GoodbyeReason::Stopping, "this side hands the machine over");
                }
                self.handed_to = Some(to.to_owned());
                self.probe_due_ns = now_ns;
                self.note_goodbye(now_ns);
            }
            Some(_) if !overdue => {}
            // It said goodbye, or is lost: the term may be its own by now.
            None if ending.goodbye_said && !overdue => {}
            _ => {
                self.ending = None;
                let text = format!("{to} did not take over in time");
                self.events.push_back(PrimaryEvent::SwitchoverFailed { text: text.clone() });
                // Losing the heir asks the arbiter: where it took over, this side is fenced.
                match self.peers.contains_key(to) {
                    true => self.lose_peer(to, &text, now_ns),
                    false => self.settle(now_ns),
                }
            }
        }
    }

    fn note_goodbye(&mut self, now_ns: u64) {
        if let Some(ending) = &mut self.ending {
            ending.goodbye_said = true;
            ending.due_ns = now_ns.saturating_add(self.config.ending_max_ns);
        }
    }

    fn say_last_goodbyes(&mut self, finish: &Finish) {
        let (reason, text) = match finish {
            Finish::GuestEnded { code } => {
                (GoodbyeReason::GuestEnded, format!("the guest ended with status {code}"))
            }
            Finish::HostFault { part } => {
                (GoodbyeReason::Stopping, format!("the host failed to read or write {part}"))
            }
            Finish::Stopped | Finish::Fenced { .. } | Finish::SwitchedOver { .. } => {
                (GoodbyeReason::Stopping, "the operator stopped this side".to_owned())
            }
        };
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            self.say_goodbye(id, reason, &text);
        }
        self.peers.clear();
    }

    pub(super) fn finish(&mut self, finish: Finish) {
        if self.finished.is_none() {
            self.finished = Some(finish);
            self.events.push_back(PrimaryEvent::Finished);
        }
    }
}
