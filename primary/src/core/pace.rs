//! Keeps a replaying backup close behind: where it cannot keep up, the guest is slowed down.
//!
//! A takeover replays what the backup lacks, and a backup that joins comes into step only if it
//! replays faster than the guest executes. So the guest rests for a part of each [`PERIOD_NS`], which
//! grows as long as the backup is further behind than [`LAG_MAX_NS`] and shrinks otherwise: what VMware FT
//! does with the primary's share of the processor (Scales et al., "The Design of a Practical System for
//! Fault-Tolerant Virtual Machines", 2010, section 2.3).

use std::collections::VecDeque;

use super::MILLISECOND_NS;

/// Guest time by which a backup may be behind.
const LAG_MAX_NS: u64 = 50 * MILLISECOND_NS;
/// The guest rests at the beginning of each.
const PERIOD_NS: u64 = 20 * MILLISECOND_NS;
/// It rests no more than this of a period, in thousandths.
const REST_MAX: u64 = 900;
/// How fast its rest grows and shrinks, in thousandths of a period per second.
const GROWTH_PER_S: u64 = 1000;
const DECAY_PER_S: u64 = 4000;
/// A silence counts as no longer than this.
const STEP_MAX_NS: u64 = 200 * MILLISECOND_NS;
/// Heartbeats that may be on their way.
const HEARTBEATS_MAX: usize = 64;

/// By how much the guest is slowed down, and what its backups must reach.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Heartbeats on their way: when each was sent, and the guest time that a backup could reach by
    /// what it was sent before.
    heartbeats: VecDeque<(u64, u64)>,
    /// Guest time that the last heartbeat let a backup reach.
    reachable_ns: u64,
    /// Thousandths of each period for which the guest rests.
    rest: u64,
    judged_ns: u64,
    /// When all of this was looked at last.
    now_ns: u64,
}

impl Pace {
    /// A heartbeat is sent, which lets backups reach this guest time.
    pub(super) fn note_heartbeat(&mut self, sent_ns: u64, reaches_ns: u64) {
        if self.heartbeats.len() == HEARTBEATS_MAX {
            self.heartbeats.pop_front();
        }
        self.heartbeats.push_back((sent_ns, self.reachable_ns));
        self.reachable_ns = reaches_ns;
    }

    /// Guest time by which a backup was behind that had come this far when the heartbeat sent then came;
    /// `None` for one that is forgotten.
    pub(super) fn lag_ns(&self, heartbeat_ns: u64, replayed_ns: u64) -> Option<u64> {
        let (_, reachable_ns) = self.heartbeats.iter().find(|(sent_ns, _)| *sent_ns == heartbeat_ns)?;
        Some(reachable_ns.saturating_sub(replayed_ns))
    }

    /// Those that matter are behind by so much; `None` where nobody replays.
    pub(super) fn judge(&mut self, lag_ns: Option<u64>, now_ns: u64) {
        let passed_ns = now_ns.saturating_sub(self.judged_ns).min(STEP_MAX_NS);
        self.judged_ns = now_ns;
        let step = |per_s: u64| (per_s * passed_ns).div_ceil(1_000 * MILLISECOND_NS);
        self.rest = match lag_ns {
            None => 0,
            Some(lag_ns) if lag_ns > LAG_MAX_NS => (self.rest + step(GROWTH_PER_S)).min(REST_MAX),
            Some(_) => self.rest.saturating_sub(step(DECAY_PER_S)),
        };
    }

    /// Time has come to `now_ns`. Where there is no backup, the guest need not rest.
    pub(super) fn advance(&mut self, has_backups: bool, now_ns: u64) {
        self.now_ns = now_ns;
        if !has_backups {
            self.rest = 0;
        }
    }

    /// Whether the guest rests.
    pub(super) fn rests(&self) -> bool {
        self.now_ns % PERIOD_NS < self.rest_ns()
    }

    /// When [`Pace::rests`] changes.
    pub(super) fn changes_at_ns(&self) -> Option<u64> {
        let began_ns = self.now_ns - self.now_ns % PERIOD_NS;
        let at_ns = if self.rests() { self.rest_ns() } else { PERIOD_NS };
        (self.rest > 0).then(|| began_ns.saturating_add(at_ns))
    }

    /// Percent of the time for which the guest rests.
    pub(super) fn rest_percent(&self) -> u8 {
        (self.rest / 10) as u8
    }

    fn rest_ns(&self) -> u64 {
        PERIOD_NS * self.rest / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a guest beside a replay that is slower, for so many heartbeats of 40 ms; gives by how much it
    /// is behind at the end.
    fn behind_after(heartbeats: u64, replay_percent: u64, behind_ns: u64) -> (Pace, u64) {
        let (mut pace, mut guest_ns) = (Pace::default(), behind_ns);
        let (mut replayed_ns, mut now_ns) = (0, 0);
        for _ in 0..heartbeats {
            for _ in 0..40 {
                now_ns += MILLISECOND_NS;
                pace.advance(true, now_ns);
                guest_ns += if pace.rests() { 0 } else { MILLISECOND_NS };
                replayed_ns = guest_ns.min(replayed_ns + MILLISECOND_NS * replay_percent / 100);
            }
            pace.note_heartbeat(now_ns, guest_ns);
            let lag_ns = pace.lag_ns(now_ns, replayed_ns);
            pace.judge(lag_ns, now_ns);
        }
        (pace, guest_ns - replayed_ns)
    }

    #[test]
    fn a_replay_that_is_slower_comes_near_and_stays() {
        for replay_percent in [30, 60, 90, 100] {
            let (_, lag_ns) = behind_after(1_000, replay_percent, 2_000 * MILLISECOND_NS);
            assert!(lag_ns < 3 * LAG_MAX_NS, "{replay_percent} %: behind by {lag_ns} ns");
        }
    }

    #[test]
    fn a_guest_whose_backup_keeps_up_never_rests() {
        let (pace, _) = behind_after(1_000, 110, 0);
        assert_eq!((pace.rest_percent(), pace.changes_at_ns()), (0, None));
        let (pace, _) = behind_after(1_000, 200, 2_000 * MILLISECOND_NS);
        assert_eq!(pace.rest_percent(), 0, "it was behind once");
    }

    #[test]
    fn it_rests_at_the_beginning_of_each_period_and_never_for_all_of_it() {
        let mut pace = Pace::default();
        (1..=100).for_each(|number| pace.judge(Some(u64::MAX), number * 1_000 * MILLISECOND_NS));
        assert_eq!(pace.rest_percent(), 90);
        let until_ns = PERIOD_NS + PERIOD_NS * 9 / 10;
        for (now_ns, rests, changes_at_ns) in [
            (PERIOD_NS, true, until_ns),
            (until_ns - 1, true, until_ns),
            (until_ns, false, 2 * PERIOD_NS),
            (2 * PERIOD_NS - 1, false, 2 * PERIOD_NS),
        ] {
            pace.advance(true, now_ns);
            assert_eq!((pace.rests(), pace.changes_at_ns()), (rests, Some(changes_at_ns)));
        }
        pace.advance(false, 3 * PERIOD_NS);
        assert!(!pace.rests(), "there is no backup");
    }

    #[test]
    fn a_forgotten_heartbeat_says_nothing() {
        let mut pace = Pace::default();
        (0..100).for_each(|sent_ns| pace.note_heartbeat(sent_ns, sent_ns * 10));
        assert_eq!(pace.lag_ns(3, 0), None);
        assert_eq!(pace.lag_ns(99, 100), Some(880), "what the heartbeat before it let it reach");
    }
}
