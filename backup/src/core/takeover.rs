//! Losing sight of the primary, and taking its place.

use link::arbitration::{ArbitrationError, Record, Refusal, Step};
use log_format::{GoodbyeReason, Moment, Position};
use machine::PrimacyStart;

use super::{Backup, BackupEvent, Finish, State};
use crate::replayer::Counted;
use crate::worker::ToReplayer;

impl Backup {
    /// The arbiter answered the step that [`Backup::poll_arbiter_request`] gave last.
    pub fn handle_arbiter_reply(&mut self, reply: Result<Record, ArbitrationError>, now_ns: u64) {
        let Some(step) = self.lane.answered() else { return };
        match reply {
            Ok(record) => {
                self.lane.reached();
                if self.state == State::Claiming {
                    self.claimed(&record, step, now_ns);
                }
            }
            Err(ArbitrationError::Refused(refusal)) => {
                self.lane.reached();
                self.registered = false;
                if self.is_primary_elsewhere(&refusal) {
                    self.in_step = false;
                    self.detector = None;
                } else if let Some(detector) = &mut self.detector {
                    detector.alive(now_ns);
                }
                self.events.push_back(BackupEvent::ClaimRefused { text: refusal.to_string() });
                if self.state == State::Claiming {
                    self.rejoin_later(now_ns);
                }
            }
            Err(ArbitrationError::Unreachable(error)) => {
                self.events.push_back(BackupEvent::ArbiterUnreachable { text: error.to_string() });
                self.lane.postpone(step, now_ns);
            }
        }
        self.settle();
    }

    /// Whether a claim was refused since another node, or nobody, leads by now.
    ///
    /// Else the record names the primary that this node followed, in the same term, and only not
    /// this node: not yet, or not any more. What is held here is still all that was ever
    /// acknowledged in the term, so this side stays in step. It looks for the primary again, and may
    /// claim again: that is granted only if it was registered meanwhile, as it is where the
    /// question came just before that.
    fn is_primary_elsewhere(&self, refusal: &Refusal) -> bool {
        match refusal {
            Refusal::NotRegistered { current, .. } => {
                current.term != self.term || current.holder != self.primary
            }
            _ => true,
        }
    }

    /// The connection is gone, or is of no more use.
    pub(super) fn lost_sight(&mut self, now_ns: u64) {
        self.welcome_due_ns = None;
        self.dial_at_ns = now_ns;
        match &self.state {
            State::Following if self.in_step => {
                self.state = State::Suspecting;
                if let Some(detector) = &mut self.detector {
                    detector.closed(now_ns);
                }
            }
            State::Suspecting => self.dial_at_ns = now_ns.saturating_add(self.config.redial_interval_ns),
            State::Receiving(_) => {
                self.discard();
                self.rejoin_later(now_ns);
            }
            State::Handshake | State::Following => {
                self.state = State::Connecting;
                self.dial_at_ns = now_ns.saturating_add(self.config.redial_interval_ns);
            }
            State::Connecting
            | State::Claiming
            | State::TakingOver { .. }
            | State::Ending { .. }
            | State::Finished => {}
        }
    }

    pub(super) fn judge_primary(&mut self, now_ns: u64) {
        if !self.is_listening() {
            return;
        }
        let Some(suspicion) = self.detector.as_mut().and_then(|detector| detector.poll_suspicion(now_ns))
        else {
            return;
        };
        if self.in_step {
            let text = suspicion.to_string();
            self.events.push_back(BackupEvent::Suspected { text: text.clone() });
            return self.claim(&text);
        }
        // Not in step: nothing to take over with. Begin anew.
        self.detector = None;
        self.closing.extend(self.connection.take());
        self.lost_sight(now_ns);
    }

    /// Asks for the term. From here on the old primary is neither heard nor answered.
    pub(super) fn claim(&mut self, reason: &str) {
        if !self.in_step || !self.is_listening() {
            let text = format!("not in step with the primary: cannot take over ({reason})");
            return self.events.push_back(BackupEvent::ClaimRefused { text });
        }
        self.closing.extend(self.connection.take());
        self.outbox.clear();
        self.close_after_outbox = false;
        self.welcome_due_ns = None;
        self.pending_mark = None;
        self.state = State::Claiming;
        self.increment = None;
        self.bid_told = false;
        let held = self.held.map_or(0, |held| held.position.sequence);
        let (node, life, term) = (self.config.node.clone(), self.config.life, self.term);
        self.lane.ask(Step::TakeOver { node, life, term, held });
        self.settle();
    }

    /// The term is this node's, or others must speak first: then the step is asked again.
    fn claimed(&mut self, record: &Record, step: Step, now_ns: u64) {
        if record.holder == self.config.node && record.term > self.term {
            return self.take_over(record.term);
        }
        if !std::mem::replace(&mut self.bid_told, true) {
            let held = self.held.map_or(0, |held| held.position.sequence);
            self.events.push_back(BackupEvent::BidPlaced { held });
        }
        self.lane.postpone(step, now_ns);
        self.lane.reached();
    }

    /// The primary said goodbye.
    pub(super) fn primary_left(&mut self, reason: GoodbyeReason, text: String, now_ns: u64) {
        match reason {
            GoodbyeReason::Stopping if self.in_step => return self.claim(&text),
            GoodbyeReason::GuestEnded if self.following => {
                self.closing.extend(self.connection.take());
                self.state = State::Ending { text };
                self.commands.push_back(ToReplayer::Finish);
                return;
            }
            GoodbyeReason::GuestEnded => return self.finish(Finish::GuestEnded { text }),
            _ => {}
        }
        // It lives, or says that another does: time to come back, without suspicion.
        self.events.push_back(BackupEvent::JoinRefused { text });
        self.closing.extend(self.connection.take());
        if matches!(self.state, State::Receiving(_)) {
            self.discard();
        }
        self.registered = false;
        self.rejoin_later(now_ns);
        if let Some(detector) = &mut self.detector {
            detector.alive(now_ns);
        }
    }

    pub(super) fn replay_finished(&mut self, moment: Moment, counted: Counted, _halted: Option<u32>) {
        match self.state.clone() {
            State::TakingOver { term } => self.go_live(term, moment, counted),
            State::Ending { text } => self.finish(Finish::GuestEnded { text }),
            _ => {}
        }
    }

    fn take_over(&mut self, term: u64) {
        self.term = term;
        self.state = State::TakingOver { term };
        let unreplayed_bytes = self.unreplayed_bytes;
        self.events.push_back(BackupEvent::TakingOver { term, unreplayed_bytes });
        self.commands.push_back(ToReplayer::Finish);
    }

    fn go_live(&mut self, term: u64, moment: Moment, counted: Counted) {
        let Some(held) = self.held else { return };
        let outputs_released = self.buffer.released_before();
        let reissue = self.buffer.take_held();
        self.events.push_back(BackupEvent::Live { reissued: reissue.len() });
        self.finish(Finish::TakenOver(Box::new(PrimacyStart {
            from: Position { term, moment, sequence: held.position.sequence },
            chain: held.chain,
            events_before: counted.events,
            outputs_logged: held.outputs,
            outputs_released,
            reissue,
            clock_offset_ns: self.clock.offset_ns(),
            life: self.config.life,
        })));
    }
}
