//! What a machine is told when it goes live: at its boot, and when it was away.

use bytes::Bytes;
use log_format::Event;

/// Where a machine that goes live comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It boots.
    Boot,
    /// It goes on from a checkpoint.
    Checkpoint {
        /// The wall clock then: nanoseconds since 1970-01-01 UTC.
        taken_unix_ns: u64,
        /// For how long it is taken to have been away, whatever the wall clock says.
        away_ns: Option<u64>,
    },
}

/// How a machine goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resumption {
    /// What its wall clock says from now on.
    pub unix_ns: u64,
    /// By how much its time advances first.
    pub away_ns: u64,
}

impl Origin {
    /// How the machine goes on when the host's wall clock says this. Where that went back since
    /// the checkpoint, the guest's stands: it never goes back.
    pub fn resume_at(self, now_unix_ns: u64) -> Resumption {
        match self {
            Origin::Boot => Resumption { unix_ns: now_unix_ns, away_ns: 0 },
            Origin::Checkpoint { taken_unix_ns, away_ns } => {
                let away_ns = away_ns.unwrap_or_else(|| now_unix_ns.saturating_sub(taken_unix_ns));
                Resumption { unix_ns: taken_unix_ns.saturating_add(away_ns), away_ns }
            }
        }
    }
}

/// Injected before anything else, once guest time was advanced: the wall clock, and entropy that no
/// other copy of the machine has.
pub fn first_events(unix_ns: u64, seed: Bytes) -> Vec<Event> {
    vec![Event::WallClock { unix_ns }, Event::Entropy(seed)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_time_goes_on_with_the_wall_clock_and_never_back() {
        let hour_ns = 3_600_000_000_000;
        let from = |away_ns| Origin::Checkpoint { taken_unix_ns: 5 * hour_ns, away_ns };
        let after = |unix_ns, away_ns| Resumption { unix_ns, away_ns };
        assert_eq!(from(None).resume_at(6 * hour_ns), after(6 * hour_ns, hour_ns));
        assert_eq!(from(None).resume_at(4 * hour_ns), after(5 * hour_ns, 0), "the host's clock went back");
        assert_eq!(from(Some(0)).resume_at(6 * hour_ns), after(5 * hour_ns, 0));
        assert_eq!(from(Some(7)).resume_at(0), after(5 * hour_ns + 7, 7));
        assert_eq!(from(Some(u64::MAX)).resume_at(0).unix_ns, u64::MAX);
        assert_eq!(Origin::Boot.resume_at(9), after(9, 0));
    }
}
