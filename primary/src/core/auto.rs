//! Chooses a protection mode by what is measured, without I/O.
//!
//! ```text
//!             a digest differed, or the replay is behind for long
//!   replay --------------------------------------------------------> checkpoint
//!     ^  ^                                                              |    |
//!     |  +------------------------ after a while -----------------------+    | the link is too thin
//!     |                                                                      | for increments, and
//!     +---------------------------- after a while ------- hybrid <-----------+ digests were equal
//! ```
//!
//! "A while" doubles with each relapse, so that a backup that cannot replay is not tried all the
//! time.

use log_format::ProtectionMode;

use super::MILLISECOND_NS;

/// A replay that is behind by more than this...
const LAG_MAX_NS: u64 = 1_000 * MILLISECOND_NS;
/// ... for this long cannot keep up.
const LAG_FOR_NS: u64 = 2_000 * MILLISECOND_NS;
/// How long a mode other than replay is kept, at first.
const SHORTEST_STAY_NS: u64 = 10_000 * MILLISECOND_NS;
/// The stay doubles up to this many times.
const DOUBLINGS_MAX: u32 = 6;
/// A replay that holds for this many stays makes the next relapse a first one again.
const FORGIVEN_AFTER_STAYS: u64 = 4;

/// What is measured.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Measures {
    /// Whether a backup is counted on.
    pub(super) protected: bool,
    /// Guest time by which the slowest replay is behind.
    pub(super) replay_lag_ns: u64,
    /// From the beginning of an increment to its acknowledgement.
    pub(super) commit_ns: u64,
    /// Bytes of an increment, on average.
    pub(super) increment_bytes: u64,
    /// The longest epoch that is asked for.
    pub(super) longest_epoch_ns: u64,
}

/// Remembers what went wrong, and since when.
#[derive(Debug, Default)]
pub(super) struct Auto {
    diverged: Option<String>,
    /// The last reason to leave replay was a difference: what is replayed is not trusted.
    distrusts_replay: bool,
    behind_since_ns: Option<u64>,
    changed_ns: u64,
    relapses: u32,
}

impl Auto {
    /// A backup's digest differed from the log's.
    pub(super) fn note_divergence(&mut self, node: &str) {
        self.diverged = Some(node.to_owned());
    }

    /// The mode to go to, and why; `None` to stay.
    pub(super) fn judge(
        &mut self,
        present: ProtectionMode,
        measures: &Measures,
        now_ns: u64,
    ) -> Option<(ProtectionMode, String)> {
        let stayed_ns = now_ns.saturating_sub(self.changed_ns);
        let stay_ns = SHORTEST_STAY_NS << self.relapses.min(DOUBLINGS_MAX);
        match present {
            ProtectionMode::Replay => {
                if stayed_ns > FORGIVEN_AFTER_STAYS * stay_ns {
                    self.relapses = 0;
                }
                let why = self.replay_fails(measures, now_ns)?;
                self.relapses += 1;
                self.go(ProtectionMode::Checkpoint, why, now_ns)
            }
            ProtectionMode::Hybrid | ProtectionMode::Checkpoint if stayed_ns >= stay_ns => {
                self.distrusts_replay = false;
                let why = format!("replay is tried again after {} s", stayed_ns / 1_000_000_000);
                self.go(ProtectionMode::Replay, why, now_ns)
            }
            ProtectionMode::Checkpoint => {
                let too_thin = measures.commit_ns > 10 * measures.longest_epoch_ns;
                if !too_thin || self.distrusts_replay {
                    return None;
                }
                let why = format!(
                    "the link takes {} ms for an increment of {} KiB",
                    measures.commit_ns / MILLISECOND_NS,
                    measures.increment_bytes >> 10
                );
                self.go(ProtectionMode::Hybrid, why, now_ns)
            }
            ProtectionMode::Hybrid => None,
        }
    }

    fn go(&mut self, mode: ProtectionMode, why: String, now_ns: u64) -> Option<(ProtectionMode, String)> {
        self.changed_ns = now_ns;
        self.behind_since_ns = None;
        Some((mode, why))
    }

    /// Why replay does not serve now.
    fn replay_fails(&mut self, measures: &Measures, now_ns: u64) -> Option<String> {
        if let Some(node) = self.diverged.take() {
            self.distrusts_replay = true;
            return Some(format!("the state of {node} differed from the log's digest"));
        }
        if !measures.protected || measures.replay_lag_ns <= LAG_MAX_NS {
            self.behind_since_ns = None;
            return None;
        }
        let since_ns = *self.behind_since_ns.get_or_insert(now_ns);
        (now_ns.saturating_sub(since_ns) >= LAG_FOR_NS)
            .then(|| format!("the replay is {} ms behind", measures.replay_lag_ns / MILLISECOND_NS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000 * MILLISECOND_NS;

    fn lagging(lag_ns: u64) -> Measures {
        Measures {
            protected: true,
            replay_lag_ns: lag_ns,
            longest_epoch_ns: 100_000_000,
            ..Measures::default()
        }
    }

    /// The mode after judging once a second until `until_s`.
    fn play(
        auto: &mut Auto,
        mut mode: ProtectionMode,
        measures: Measures,
        seconds: std::ops::Range<u64>,
    ) -> ProtectionMode {
        for second in seconds {
            if let Some((next, _)) = auto.judge(mode, &measures, second * SECOND_NS) {
                mode = next;
            }
        }
        mode
    }

    #[test]
    fn a_replay_that_is_behind_for_a_moment_is_left_alone() {
        let mut auto = Auto::default();
        let replay = ProtectionMode::Replay;
        assert_eq!(auto.judge(replay, &lagging(5 * SECOND_NS), SECOND_NS), None);
        assert_eq!(auto.judge(replay, &lagging(0), 2 * SECOND_NS), None);
        assert_eq!(auto.judge(replay, &lagging(5 * SECOND_NS), 4 * SECOND_NS), None);
    }

    #[test]
    fn a_replay_that_cannot_keep_up_falls_back_and_returns_later_each_time() {
        let mut auto = Auto::default();
        let behind = lagging(5 * SECOND_NS);
        assert_eq!(play(&mut auto, ProtectionMode::Replay, behind, 0..3), ProtectionMode::Checkpoint);
        assert_eq!(play(&mut auto, ProtectionMode::Checkpoint, behind, 3..22), ProtectionMode::Checkpoint);
        assert_eq!(play(&mut auto, ProtectionMode::Checkpoint, behind, 22..23), ProtectionMode::Replay);
        assert_eq!(play(&mut auto, ProtectionMode::Replay, behind, 23..26), ProtectionMode::Checkpoint);
        assert_eq!(play(&mut auto, ProtectionMode::Checkpoint, behind, 26..60), ProtectionMode::Checkpoint);
        assert_eq!(play(&mut auto, ProtectionMode::Checkpoint, lagging(0), 60..66), ProtectionMode::Replay);
        assert_eq!(play(&mut auto, ProtectionMode::Replay, lagging(0), 66..400), ProtectionMode::Replay);
        assert_eq!(auto.relapses, 0, "forgiven");
    }

    #[test]
    fn a_thin_link_takes_the_log_unless_replay_is_not_trusted() {
        let thin = Measures { commit_ns: 3 * SECOND_NS, ..lagging(5 * SECOND_NS) };
        let mut auto = Auto::default();
        assert_eq!(play(&mut auto, ProtectionMode::Replay, thin, 0..5), ProtectionMode::Hybrid);
        let mut auto = Auto::default();
        auto.note_divergence("b");
        let (mode, why) = auto.judge(ProtectionMode::Replay, &thin, 0).expect("falls back");
        assert_eq!(mode, ProtectionMode::Checkpoint);
        assert_eq!(why, "the state of b differed from the log's digest");
        assert_eq!(play(&mut auto, mode, thin, 1..10), ProtectionMode::Checkpoint);
    }
}
