//! Joining and following: handshake, checkpoint, batches, marks, progress.

use link::arbitration::Record;
use link::detector::Detector;
use link::handshake::check_welcome;
use log_format::{
    Address, ChainHash, CheckpointEnd, CheckpointStart, Divergence as DivergenceMessage, Donor,
    GoodbyeReason, Heartbeat, HeartbeatReply, JoinPlan, MODES_VERSION, Message, Moment, ProtectionMode,
    Refuse, RefuseReason, SealedBatch, Welcome,
};

use super::{Backup, BackupEvent, Finish, Held, Receiving, State};
use crate::replayer::{Divergence, DivergenceKind, Progress};
use crate::worker::{FromReplayer, ReplayReport, ToReplayer};

/// Longest heartbeat interval that is believed.
const LONGEST_INTERVAL_NS: u64 = 60_000 * super::MILLISECOND_NS;

impl Backup {
    /// The replay thread reports.
    pub fn handle_replayed(&mut self, message: FromReplayer, now_ns: u64) {
        if message.generation != self.generation || self.finished.is_some() {
            return;
        }
        match message.report {
            ReplayReport::Restored => {
                self.following = true;
                if matches!(self.state, State::Receiving(_)) {
                    self.state = State::Following;
                }
                self.events.push_back(BackupEvent::Restored);
            }
            ReplayReport::Donor(donor) => {
                if self.connection.is_some() && matches!(self.state, State::Receiving(_)) {
                    self.outbox.push_back(Message::Donor(Donor { term: self.term, ..donor }));
                }
            }
            ReplayReport::DiskHashes(hashes) => {
                if self.connection.is_some() {
                    self.outbox.push_back(Message::DiskHashes(hashes));
                }
            }
            ReplayReport::Want(want) => {
                if self.connection.is_some() && matches!(self.state, State::Receiving(_)) {
                    self.outbox.push_back(Message::Want(want));
                }
            }
            ReplayReport::RestoreFailed { text } => {
                self.discard();
                self.protocol_error(&text, now_ns);
            }
            ReplayReport::Progress { progress, outputs } => {
                self.note_progress(progress);
                self.hold_outputs(outputs, now_ns);
            }
            // Nobody asks for it so far.
            ReplayReport::Standing { sequence } | ReplayReport::Applied { sequence } => {
                self.forget_log_to(sequence);
            }
            ReplayReport::Diverged(divergence) => self.diverged(divergence, now_ns),
            ReplayReport::Finished { moment, counted, halted } => {
                self.replay_finished(moment, counted, halted);
            }
        }
        self.settle();
    }

    pub(super) fn receive(&mut self, message: Message, now_ns: u64) {
        if let Some(detector) = &mut self.detector
            && self.welcome_due_ns.is_none()
        {
            match message {
                Message::Heartbeat(_) => detector.heartbeat(now_ns),
                _ => detector.alive(now_ns),
            }
        }
        match (message, &self.state) {
            (Message::Welcome(welcome), State::Handshake | State::Suspecting)
                if self.welcome_due_ns.is_some() =>
            {
                self.welcomed(welcome, now_ns);
            }
            (Message::Refuse(refuse), _) => self.refused(refuse, now_ns),
            (Message::Goodbye(goodbye), _) => self.primary_left(goodbye.reason, goodbye.text, now_ns),
            (Message::CheckpointHead(start), State::Receiving(Receiving { head_came: false, .. })) => {
                self.checkpoint_begins(start, now_ns);
            }
            (
                Message::CheckpointPart(part),
                State::Receiving(Receiving { head_came: true, end_came: false, .. }),
            ) => {
                if let State::Receiving(receiving) = &mut self.state {
                    receiving.parts += 1;
                }
                self.commands.push_back(ToReplayer::RestorePart(part));
            }
            (Message::Offer(offer), State::Receiving(Receiving { head_came: true, end_came: false, .. })) => {
                self.commands.push_back(ToReplayer::Offer(offer))
            }
            (Message::CheckpointEnd(end), State::Receiving(_)) => self.checkpoint_ends(end, now_ns),
            (Message::Batch(batch), State::Receiving(Receiving { head_came: false, .. })) => {
                if let State::Receiving(receiving) = &mut self.state {
                    receiving.early.push(batch);
                }
            }
            (Message::Batch(batch), State::Receiving(_) | State::Following) => {
                self.take_batch(batch, now_ns);
            }
            (Message::Heartbeat(heartbeat), State::Receiving(_) | State::Following) => {
                self.take_heartbeat(&heartbeat, now_ns);
            }
            (Message::Mode(change), State::Receiving(Receiving { head_came: false, .. })) => {
                if let State::Receiving(receiving) = &mut self.state {
                    receiving.early_mode = Some(change);
                }
            }
            (Message::Mode(change), State::Receiving(_) | State::Following) => {
                self.take_mode(change, now_ns);
            }
            (Message::IncrementHead(start), State::Receiving(_) | State::Following) => {
                self.increment_begins(start, now_ns);
            }
            (Message::IncrementPart(part), State::Receiving(_) | State::Following) => {
                self.take_increment_part(part);
            }
            (Message::IncrementEnd(end), State::Receiving(_) | State::Following) => {
                self.increment_ends(end, now_ns);
            }
            (Message::DiskCheck(check), State::Receiving(_) | State::Following) => self.check_disks(check),
            (other, _) => {
                let text = format!("a {:?} has no place here", other.kind());
                self.protocol_error(&text, now_ns);
            }
        }
    }

    /// Goes on to what has become due.
    pub(super) fn settle(&mut self) {
        self.apply_pending_mark();
        if self.ready_is_due() {
            self.say_ready();
            self.ready_said = true;
            self.in_step = true;
            self.events.push_back(BackupEvent::Ready);
        }
    }

    /// Gives up the machine and all that it was fed.
    pub(super) fn discard(&mut self) {
        self.held = None;
        self.following = false;
        self.in_step = false;
        self.ready_said = false;
        self.registered = false;
        self.progress = None;
        self.pending_mark = None;
        self.marked = None;
        self.disk_check = None;
        self.shipped = None;
        self.mode = ProtectionMode::Replay;
        self.stood = 0;
        self.increment = None;
        self.stored = 0;
        self.outputs_from = 0;
        self.unreplayed.clear();
        self.unreplayed_bytes = 0;
        self.buffer = netbuf::OutputBuffer::new(netbuf::BufferLimits::default());
        self.generation += 1;
        self.commands.push_back(ToReplayer::Discard);
    }

    /// Ends a connection that says what it must not. That is no sign of death: a backup in
    /// step connects again at once, another one after a while.
    pub(super) fn protocol_error(&mut self, text: &str, now_ns: u64) {
        self.events.push_back(BackupEvent::ProtocolError { text: text.to_owned() });
        self.say_goodbye(GoodbyeReason::ProtocolError, text);
        if matches!(self.state, State::Receiving(_)) {
            self.discard();
        }
        self.rejoin_later(now_ns);
    }

    /// Connects anew after a while; the primary is not suspected.
    pub(super) fn rejoin_later(&mut self, now_ns: u64) {
        self.welcome_due_ns = None;
        self.state = State::Connecting;
        let wait_ns = match self.in_step {
            true => self.config.redial_interval_ns,
            false => self.config.retry_interval_ns,
        };
        self.dial_at_ns = now_ns.saturating_add(wait_ns);
    }

    fn welcomed(&mut self, welcome: Welcome, now_ns: u64) {
        let facts = self.facts();
        let has_boot_images = self.config.has_boot_images;
        if let Err(refuse) = check_welcome(&welcome, self.certified_node.as_deref(), &facts, has_boot_images)
        {
            let (reason, text) = (refuse.reason, refuse.text.clone());
            self.outbox.push_back(Message::Refuse(refuse));
            self.close_after_outbox = true;
            return self.refused(Refuse { term: self.term, reason, text }, now_ns);
        }
        self.welcome_due_ns = None;
        let same_term = welcome.term == self.term;
        if welcome.plan == JoinPlan::Resume && !self.resumes(&welcome, same_term) {
            // What it was promised in the old term need not hold in the new one.
            self.discard();
            return self.protocol_error("it resumes what is not held here", now_ns);
        }
        self.term = welcome.term;
        self.primary.clone_from(&welcome.node);
        self.ready_said = false;
        self.shipped = None;
        self.pending_mark = None;
        self.disk_check = None;
        let event =
            BackupEvent::Joining { primary: welcome.node.clone(), term: welcome.term, plan: welcome.plan };
        self.events.push_back(event);
        if let Some(listen) = self.config.listen.filter(|_| welcome.version >= MODES_VERSION) {
            self.outbox.push_back(Message::Address(Address { listen }));
        }
        match welcome.plan {
            JoinPlan::Resume => self.state = State::Following,
            JoinPlan::LogFromBoot => self.boot(&welcome, now_ns),
            JoinPlan::Checkpoint => {
                self.discard();
                if welcome.version >= MODES_VERSION {
                    self.commands.push_back(ToReplayer::Donate { generation: self.generation });
                }
                self.state = State::Receiving(Receiving::default());
            }
        }
        let interval_ns = u64::from(welcome.heartbeat_interval_ms) * super::MILLISECOND_NS;
        self.listen(interval_ns, now_ns);
    }

    /// Begins to listen, or goes on.
    fn listen(&mut self, heartbeat_interval_ns: u64, now_ns: u64) {
        if let Some(detector) = &mut self.detector {
            return detector.alive(now_ns);
        }
        let mut config = self.config.detector;
        let heartbeat_interval_ns = heartbeat_interval_ns.min(LONGEST_INTERVAL_NS);
        config.heartbeat_interval_ns = heartbeat_interval_ns;
        config.min_timeout_ns = config.min_timeout_ns.max(heartbeat_interval_ns.saturating_mul(2));
        config.max_timeout_ns = config.max_timeout_ns.max(config.min_timeout_ns);
        self.detector = Some(Detector::new(config, now_ns));
    }

    fn resumes(&self, welcome: &Welcome, same_term: bool) -> bool {
        let held = self.held.filter(|_| self.following && same_term);
        held.is_some_and(|held| {
            held.position.sequence == welcome.from.sequence && held.chain == welcome.chain
        })
    }

    fn boot(&mut self, welcome: &Welcome, now_ns: u64) {
        self.discard();
        let genesis = ChainHash::genesis(&self.config.identity);
        if welcome.from.sequence != 0 || welcome.chain != genesis {
            return self.protocol_error("its log does not begin at the boot of this machine", now_ns);
        }
        self.commands.push_back(ToReplayer::Boot { generation: self.generation });
        self.held = Some(Held { position: welcome.from, chain: genesis, outputs: 0 });
        self.following = true;
        self.state = State::Following;
    }

    fn refused(&mut self, refuse: Refuse, now_ns: u64) {
        self.events.push_back(BackupEvent::JoinRefused { text: refuse.text.clone() });
        match refuse.reason {
            RefuseReason::WrongVm
            | RefuseReason::WrongIdentity
            | RefuseReason::Version
            | RefuseReason::Durability => {
                self.finish(Finish::Refused { text: refuse.text });
            }
            _ => {
                self.closing.extend(self.connection.take());
                self.rejoin_later(now_ns);
                if let Some(detector) = &mut self.detector {
                    detector.alive(now_ns);
                }
            }
        }
    }

    fn checkpoint_begins(&mut self, start: CheckpointStart, now_ns: u64) {
        if start.position.term != self.term || start.head.identity != self.config.identity {
            return self.protocol_error("its checkpoint is of another term or machine", now_ns);
        }
        let State::Receiving(receiving) = &mut self.state else { return };
        receiving.head_came = true;
        let early = std::mem::take(&mut receiving.early);
        let early_mode = receiving.early_mode.take();
        self.held =
            Some(Held { position: start.position, chain: start.chain, outputs: start.head.outputs_before });
        self.stood = start.position.sequence;
        if !self.replace_outputs(&start.held, &start.head, start.released_outputs, now_ns) {
            return self.protocol_error("its checkpoint's outputs are out of order", now_ns);
        }
        let generation = self.generation;
        self.commands.push_back(ToReplayer::RestoreBegin { generation, start: Box::new(start) });
        self.ack_due = true;
        // In `checkpoint` mode no batch comes, so that the mode's place is the checkpoint's.
        let (before, after): (Vec<SealedBatch>, Vec<SealedBatch>) = early
            .into_iter()
            .partition(|batch| early_mode.is_none_or(|change| batch.sequence <= change.sequence));
        before.into_iter().for_each(|batch| self.take_batch(batch, now_ns));
        early_mode.into_iter().for_each(|change| self.take_mode(change, now_ns));
        after.into_iter().for_each(|batch| self.take_batch(batch, now_ns));
    }

    fn checkpoint_ends(&mut self, end: CheckpointEnd, now_ns: u64) {
        let State::Receiving(receiving) = &mut self.state else { return };
        let (came, sent) = (receiving.parts, end.parts);
        let ended_before = std::mem::replace(&mut receiving.end_came, true);
        if !receiving.head_came || ended_before || came != sent {
            let text = format!("its checkpoint had {sent} parts, {came} came");
            return self.protocol_error(&text, now_ns);
        }
        self.commands.push_back(ToReplayer::RestoreEnd);
    }

    fn take_batch(&mut self, batch: SealedBatch, now_ns: u64) {
        if self.close_after_outbox {
            return;
        }
        let Some(held) = self.held else { return };
        let place = held.position;
        let in_order = batch.follows(place.sequence, held.chain)
            && batch.term == self.term
            && batch.end.icount >= place.moment.icount
            && batch.end.time_ns >= place.moment.time_ns
            && batch.first_output == held.outputs;
        if !in_order {
            let text = format!(
                "batch {} of term {} does not follow batch {} of term {}",
                batch.sequence, batch.term, place.sequence, self.term
            );
            return self.protocol_error(&text, now_ns);
        }
        let bytes = batch.bytes().len() as u64;
        self.unreplayed.push_back((batch.sequence, bytes));
        self.unreplayed_bytes += bytes;
        self.held = Some(Held {
            position: batch.end_position(),
            chain: batch.chain(),
            outputs: batch.outputs_after(),
        });
        self.buffer.drop_released_before(batch.released_outputs);
        self.clock.learn(batch.end.time_ns, now_ns);
        self.ack_due = true;
        if self.config.store {
            self.store.push_back(batch.clone().into());
        }
        self.commands.push_back(ToReplayer::Batch(batch));
    }

    fn take_heartbeat(&mut self, heartbeat: &Heartbeat, now_ns: u64) {
        if heartbeat.term != self.term {
            let text = format!("a heartbeat of term {}, expected {}", heartbeat.term, self.term);
            return self.protocol_error(&text, now_ns);
        }
        self.shipped = Some(heartbeat.after_sequence);
        if let Some(mark) = heartbeat.mark {
            self.clock.learn(mark.time_ns, now_ns);
            self.pending_mark = Some((heartbeat.after_sequence, mark));
        }
        if self.held.is_some() {
            self.buffer.drop_released_before(heartbeat.released_outputs);
        }
        if heartbeat.required && !std::mem::replace(&mut self.registered, heartbeat.required) {
            let record = Record::pair(self.term, &self.primary, &self.config.node);
            self.events.push_back(BackupEvent::Registered { record });
        }
        self.registered = heartbeat.required;
        self.outbox.push_back(Message::HeartbeatReply(HeartbeatReply {
            term: self.term,
            echo_ns: heartbeat.sent_ns,
            replayed: self.progress.map_or(Moment::BOOT, |progress| progress.moment),
            held: self.acknowledged().unwrap_or(0),
        }));
    }

    /// A mark holds for who has every batch before it, and says nothing about who has more.
    fn apply_pending_mark(&mut self) {
        let Some((after_sequence, mark)) = self.pending_mark else { return };
        let Some(held) = self.held.filter(|_| self.following) else { return };
        if held.position.sequence >= after_sequence {
            self.pending_mark = None;
            let end = held.position.moment;
            // Where the batches end, the machine goes by itself.
            let later = mark != end && mark.icount >= end.icount && mark.time_ns >= end.time_ns;
            if held.position.sequence == after_sequence && later && self.marked.replace(mark) != Some(mark) {
                self.commands.push_back(ToReplayer::Mark(mark));
            }
        }
    }

    fn note_progress(&mut self, progress: Progress) {
        self.progress = Some(progress);
        self.forget_log_to(progress.sequence);
    }

    /// Everything that the primary had shipped is here, and all but a little is replayed.
    fn ready_is_due(&self) -> bool {
        let (Some(held), Some(progress), Some(shipped)) = (self.held, self.progress, self.shipped) else {
            return false;
        };
        let sequence = held.position.sequence;
        self.state == State::Following
            && !self.ready_said
            && !self.close_after_outbox
            && self.following
            && sequence >= shipped
            && (self.mode.stands()
                || sequence.saturating_sub(progress.sequence) <= self.config.ready_lag_batches)
    }

    fn diverged(&mut self, divergence: Divergence, now_ns: u64) {
        let text = divergence.to_string();
        let (expected, found) = match &divergence.kind {
            DivergenceKind::Digest { expected, found } => (*expected, *found),
            _ => Default::default(),
        };
        let at = divergence.found_at;
        self.events.push_back(BackupEvent::Diverged(divergence));
        match &self.state {
            State::TakingOver { .. } => return self.finish(Finish::Unusable { text }),
            State::Ending { .. } => return self.finish(Finish::GuestEnded { text }),
            _ => {}
        }
        if self.connection.is_some() && !self.close_after_outbox {
            let term = self.term;
            let report = DivergenceMessage { term, at, expected, found, what: text };
            self.outbox.push_back(Message::Divergence(report));
            self.close_after_outbox = true;
        }
        self.discard();
        self.no_log_from_boot = true;
        self.detector = None;
        self.rejoin_later(now_ns);
    }
}
