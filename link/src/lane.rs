//! Asks the arbiter one step at a time, and again while it cannot be reached.

use crate::arbitration::Step;

/// Wait before the first repetition; doubles with each failure, up to 32 times.
const SHORTEST_RETRY_NS: u64 = 20_000_000;

/// The questions of one node to its arbiter, without I/O.
///
/// # Order of calls
///
/// ```text
///   ask -> poll: Some(step) -> (the driver asks) -> answered -> reached
///           ^                                          |
///           +------------- retry_at_ns --- postpone <--+
/// ```
#[derive(Debug, Default)]
pub struct Lane {
    wanted: Option<Step>,
    in_flight: Option<Step>,
    retry_at_ns: Option<u64>,
    failures: u32,
}

impl Lane {
    /// Wants this step next, in the place of any other that was not handed out.
    pub fn ask(&mut self, step: Step) {
        self.wanted = Some(step);
        self.retry_at_ns = None;
    }

    /// Wants nothing any more. Whether the arbiter certainly never saw the step: it was
    /// neither handed out nor left without an answer.
    pub fn withdraw(&mut self) -> bool {
        self.wanted = None;
        self.retry_at_ns = None;
        self.in_flight.is_none() && self.failures == 0
    }

    /// The step to ask now, if there is one.
    pub fn poll(&mut self, now_ns: u64) -> Option<Step> {
        if self.in_flight.is_some() || self.retry_at_ns.is_some_and(|at_ns| at_ns > now_ns) {
            return None;
        }
        self.retry_at_ns = None;
        self.in_flight = self.wanted.take();
        self.in_flight.clone()
    }

    /// When [`Lane::poll`] has something again, where it waits.
    pub fn retry_at_ns(&self) -> Option<u64> {
        self.retry_at_ns.filter(|_| self.in_flight.is_none())
    }

    /// An answer came: to this step.
    pub fn answered(&mut self) -> Option<Step> {
        self.in_flight.take()
    }

    /// The answer was the arbiter's own.
    pub fn reached(&mut self) {
        self.failures = 0;
    }

    /// The answer was that the arbiter cannot be reached: the step is asked again, unless
    /// another has taken its place.
    pub fn postpone(&mut self, step: Step, now_ns: u64) {
        self.wanted.get_or_insert(step);
        self.retry_at_ns = Some(now_ns.saturating_add(SHORTEST_RETRY_NS << self.failures.min(5)));
        self.failures = self.failures.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(term: u64) -> Step {
        Step::SetBackups {
            node: "a".into(),
            term,
            backups: Default::default(),
            lives: Default::default(),
            required: 0,
        }
    }

    #[test]
    fn one_step_is_in_flight_and_is_repeated_until_it_is_answered() {
        let mut lane = Lane::default();
        assert_eq!(lane.poll(0), None);
        lane.ask(step(1));
        assert_eq!(lane.poll(0), Some(step(1)));
        assert_eq!(lane.poll(0), None);
        let asked = lane.answered().expect("in flight");
        lane.postpone(asked, 100);
        let retry_at_ns = lane.retry_at_ns().expect("waits");
        assert_eq!(lane.poll(retry_at_ns - 1), None);
        assert_eq!(lane.poll(retry_at_ns), Some(step(1)));
        lane.answered();
        lane.reached();
        assert_eq!(lane.poll(u64::MAX), None);
    }

    #[test]
    fn a_new_step_takes_the_place_of_one_that_waits() {
        let mut lane = Lane::default();
        lane.ask(step(1));
        lane.poll(0);
        lane.ask(step(2));
        let asked = lane.answered().expect("in flight");
        lane.postpone(asked, 0);
        assert_eq!(lane.poll(u64::MAX), Some(step(2)));
    }

    #[test]
    fn only_a_step_that_was_never_handed_out_is_certainly_withdrawn() {
        let mut lane = Lane::default();
        lane.ask(step(1));
        assert!(lane.withdraw());
        lane.ask(step(1));
        lane.poll(0);
        assert!(!lane.withdraw());
        let asked = lane.answered().expect("in flight");
        lane.postpone(asked, 0);
        assert!(!lane.withdraw());
    }
}
