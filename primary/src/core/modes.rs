//! Which protection mode holds, and how one becomes another while the guest runs.
//!
//! ```text
//!            epoch begun at batch S0: Mode{S0}          Mode{S}, then the log after S
//!   replay ----------------------------------> standing ------------------------------> replay
//!                                         hybrid <-> checkpoint
//! ```
//!
//! No memory is shipped for a change: who follows stands still at the end of a batch, and the next
//! increment holds what was written since; who stands gets the log since its last increment.

use log_format::{MODES_VERSION, Message, ModeChange, ProtectionMode};

use super::auto::{Auto, Measures};
use super::config::ModeChoice;
use super::epoch::Purpose;
use super::peer::Phase;
use super::{Primary, PrimaryEvent};

/// The mode that holds and the one that is wanted.
#[derive(Debug)]
pub(super) struct Modes {
    choice: ModeChoice,
    /// The mode that holds.
    pub(super) present: ProtectionMode,
    wanted: ProtectionMode,
    pub(super) why: String,
    pub(super) auto: Auto,
}

impl Modes {
    pub(super) fn new(choice: ModeChoice) -> Self {
        let present = match choice {
            ModeChoice::Fixed(mode) => mode,
            ModeChoice::Auto => ProtectionMode::Replay,
        };
        let why = why_of(choice);
        Modes { choice, present, wanted: present, why, auto: Auto::default() }
    }

    /// Whether the operator chose this mode.
    pub(super) fn is_always(&self, mode: ProtectionMode) -> bool {
        self.choice == ModeChoice::Fixed(mode)
    }

    /// Whether no change is under way.
    pub(super) fn is_settled(&self) -> bool {
        self.present == self.wanted
    }
}

fn why_of(choice: ModeChoice) -> String {
    match choice {
        ModeChoice::Fixed(_) => "the operator's choice".to_owned(),
        ModeChoice::Auto => "automatic: replay comes first".to_owned(),
    }
}

impl Primary {
    /// The operator chose another mode.
    pub(super) fn choose_mode(&mut self, choice: ModeChoice, now_ns: u64) {
        self.modes.choice = choice;
        self.modes.why = why_of(choice);
        if let ModeChoice::Fixed(mode) = choice {
            self.modes.wanted = mode;
        }
        self.settle(now_ns);
    }

    /// Goes to the mode that is wanted, as soon as nothing is in its way.
    pub(super) fn drive_mode(&mut self, now_ns: u64) {
        if self.ending.is_some() || self.is_over() || self.commit.fenced {
            return;
        }
        if self.modes.choice == ModeChoice::Auto {
            let measures = self.measures();
            if let Some((mode, why)) = self.modes.auto.judge(self.modes.present, &measures, now_ns) {
                self.modes.wanted = mode;
                self.modes.why = why;
            }
        }
        let wanted = match self.peers.values().all(|peer| peer.version >= MODES_VERSION) {
            true => self.modes.wanted,
            // It knows nothing else.
            false => ProtectionMode::Replay,
        };
        if wanted == self.modes.present || self.epochs.is_under_way() || self.checkpoints.is_freezing() {
            return;
        }
        match self.modes.present.stands() {
            false if self.peers.is_empty() => self.switch_to(wanted, now_ns),
            false => self.request(Purpose::Epoch),
            true if self.all_stood() => self.switch_to(wanted, now_ns),
            true => {}
        }
    }

    /// Whether every backup has all the increments that were sent to it.
    fn all_stood(&self) -> bool {
        self.peers.values().all(|peer| peer.stands.is_none_or(|sequence| peer.stood >= sequence))
    }

    /// The machine's thread began an epoch, as [`Purpose::Epoch`] asked.
    pub(super) fn handle_epoch(&mut self, now_ns: u64) {
        self.epoch_begun(now_ns);
        let wanted = self.modes.wanted;
        if !self.modes.present.stands() && wanted.stands() {
            self.switch_to(wanted, now_ns);
        }
    }

    fn switch_to(&mut self, mode: ProtectionMode, now_ns: u64) {
        let before = std::mem::replace(&mut self.modes.present, mode);
        let nodes: Vec<String> = self.peers.keys().cloned().collect();
        for node in nodes {
            self.tell_mode(&node, before, now_ns);
        }
        if mode == ProtectionMode::Replay {
            self.epochs.base = None;
        }
        let why = self.modes.why.clone();
        self.events.push_back(PrimaryEvent::ModeChanged { mode, why });
        // Outputs may wait for what is shipped in another way now.
        self.heartbeat_due_ns = now_ns;
    }

    /// Tells a backup the mode that holds, from the last batch that it was sent.
    pub(super) fn tell_mode(&mut self, node: &str, before: ProtectionMode, now_ns: u64) {
        let (mode, term) = (self.modes.present, self.term());
        let Some(peer) = self.peers.get_mut(node) else { return };
        if peer.phase == Phase::CheckpointAwaited || peer.version < MODES_VERSION {
            // It is told when its checkpoint begins.
            return;
        }
        match (before.stands(), mode.stands()) {
            (false, true) => peer.stands = self.epochs.base,
            (_, false) => peer.stands = None,
            (true, true) => {}
        }
        let change = ModeChange { term, sequence: peer.sent, mode };
        let Some(connection) = peer.connection.and_then(|id| self.connections.get_mut(&id)) else { return };
        connection.push(Message::Mode(change));
        if !before.ships_log() && mode.ships_log() {
            for batch in self.tail.after(peer.sent) {
                peer.note_sent(batch.sequence, batch.bytes().len() as u64, now_ns);
                connection.push(Message::Batch(batch.clone()));
            }
        }
    }

    /// What [`Auto`] goes by.
    fn measures(&self) -> Measures {
        let here_ns = self.batcher.position().moment.time_ns;
        let lags = self.peers.values().filter(|peer| peer.ready);
        Measures {
            protected: !self.commit.counted.is_empty(),
            replay_lag_ns: lags.map(|peer| here_ns.saturating_sub(peer.replayed.time_ns)).max().unwrap_or(0),
            commit_ns: self.epochs.pacer.commit_ns,
            increment_bytes: match self.epochs.counters.increments {
                0 => 0,
                increments => self.epochs.counters.packed_bytes / increments,
            },
            longest_epoch_ns: self.config.epoch.longest_ns,
        }
    }
}
