//! Standing at a checkpoint instead of following: mode changes and increments.
//!
//! An increment is kept aside until all of it is here. From then on it is held, and
//! acknowledged: a takeover puts it in place, whether the replay thread has done so by then or not.

use log_format::{
    CheckpointHead, Digest, EncodedPart, IncrementEnd, IncrementStart, LoggedOutput, Message, ModeChange,
    Ready, WholeIncrement,
};

use super::{Backup, BackupEvent, Held};
use crate::worker::ToReplayer;

impl Backup {
    /// The primary protects in another way from here on.
    pub(super) fn take_mode(&mut self, change: ModeChange, now_ns: u64) {
        let held = self.held.map_or(0, |held| held.position.sequence);
        if change.term != self.term || change.sequence > held {
            let text = format!(
                "a mode after batch {} of term {}, but batch {held} of term {} is the last here",
                change.sequence, change.term, self.term
            );
            return self.protocol_error(&text, now_ns);
        }
        let before = std::mem::replace(&mut self.mode, change.mode);
        self.increment = None;
        self.give_up_disk_check();
        match (before.stands(), change.mode.stands()) {
            (false, true) => {
                self.stood = change.sequence;
                self.pending_mark = None;
                // What is put into place there forgets it.
                self.marked = None;
                self.commands.push_back(ToReplayer::Stand { sequence: change.sequence });
            }
            (true, false) => self.commands.push_back(ToReplayer::Follow),
            _ => {}
        }
        if before != change.mode {
            self.events.push_back(BackupEvent::ModeChanged { mode: change.mode });
        }
        if self.ready_said {
            self.say_ready();
        }
    }

    /// Says what is whole here: that the primary may count on this node, or build on its state.
    pub(super) fn say_ready(&mut self) {
        let held = self.held.map_or(0, |held| held.position.sequence);
        let sequence = if self.mode.stands() { self.stood } else { held };
        self.outbox.push_back(Message::Ready(Ready { term: self.term, sequence }));
    }

    pub(super) fn increment_begins(&mut self, start: IncrementStart, now_ns: u64) {
        let fits = start.position.term == self.term
            && start.head.identity == self.config.identity
            && self.mode.stands()
            && start.base <= self.stood
            && start.position.sequence > self.stood;
        if !fits {
            let text = format!(
                "an increment from batch {} to {} of term {}, but this side stands at batch {} of term {}",
                start.base, start.position.sequence, start.position.term, self.stood, self.term
            );
            return self.protocol_error(&text, now_ns);
        }
        let end = IncrementEnd { parts: 0, digest: Digest::default() };
        self.increment = Some(WholeIncrement { start, parts: Vec::new(), end });
    }

    pub(super) fn take_increment_part(&mut self, part: EncodedPart) {
        // What was given up by a change of the mode may still come.
        if let Some(increment) = &mut self.increment {
            increment.parts.push(part);
        }
    }

    /// The increment is whole: from here on it is held.
    pub(super) fn increment_ends(&mut self, end: IncrementEnd, now_ns: u64) {
        let Some(mut increment) = self.increment.take() else { return };
        let came = increment.parts.len() as u64;
        if came != end.parts {
            let text = format!("its increment had {} parts, {came} came", end.parts);
            return self.protocol_error(&text, now_ns);
        }
        increment.end = end;
        let start = &increment.start;
        let (position, chain) = (start.position, start.chain);
        let outputs = start.head.outputs_before;
        self.clock.learn(start.head.moment.time_ns, now_ns);
        if !self.replace_outputs(&start.held, &start.head, start.released_outputs, now_ns) {
            return self.protocol_error("its increment's outputs are out of order", now_ns);
        }
        self.stood = position.sequence;
        if self.held.is_none_or(|held| held.position.sequence <= position.sequence) {
            self.held = Some(Held { position, chain, outputs });
        }
        self.forget_log_to(position.sequence);
        if self.config.store {
            self.store.push_back(increment.clone().into());
        }
        self.commands.push_back(ToReplayer::Increment(Box::new(increment)));
        self.check_disks_at_increment();
        self.ack_due = true;
        if self.ready_said {
            self.say_ready();
        }
    }

    /// Holds these outputs in the place of all others: those made before a checkpoint that
    /// nobody could make again. Whether they are in order.
    pub(super) fn replace_outputs(
        &mut self,
        held: &[LoggedOutput],
        head: &CheckpointHead,
        released_outputs: u64,
        now_ns: u64,
    ) -> bool {
        let in_order =
            held.windows(2).all(|pair| pair[0].ordinal < pair[1].ordinal && pair[0].at <= pair[1].at)
                && held.iter().all(|output| output.at <= head.moment && output.ordinal < head.outputs_before);
        if !in_order {
            return false;
        }
        self.buffer = netbuf::OutputBuffer::new(netbuf::BufferLimits::default());
        held.iter().for_each(|output| self.buffer.hold(output.clone(), now_ns));
        self.buffer.drop_released_before(released_outputs);
        self.outputs_from = head.outputs_before;
        true
    }

    /// Holds what the machine made, but for what a checkpoint has brought already.
    pub(super) fn hold_outputs(&mut self, outputs: Vec<LoggedOutput>, now_ns: u64) {
        let from = self.outputs_from;
        outputs
            .into_iter()
            .filter(|output| output.ordinal >= from)
            .for_each(|output| self.buffer.hold(output, now_ns));
    }

    /// Log up to this batch is not needed any more.
    pub(super) fn forget_log_to(&mut self, sequence: u64) {
        while let Some((_, bytes)) = self.unreplayed.pop_front_if(|(number, _)| *number <= sequence) {
            self.unreplayed_bytes -= bytes;
        }
    }
}
