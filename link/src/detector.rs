//! Failure detector: when is a silent peer a dead peer?
//!
//! Phi-accrual (Hayashibara, Défago, Yared, Katayama: *The φ Accrual Failure Detector*, SRDS
//! 2004). The detector learns how regularly heartbeats arrive and turns a silence into a
//! number, φ = -log10(probability that a heartbeat would still come). A driver does not poll
//! φ: it arms one timer at [`Detector::suspect_at_ns`] and asks [`Detector::poll_suspicion`]
//! when that fires.
//!
//! ```text
//!                heartbeat, alive                       heartbeat, alive
//!                  +------+                        (reconnected; interval not sampled)
//!                  v      |                      +-----------------------------+
//!   new ------> listening-+--- closed ------> broken                           |
//!                  |                             | reconnect_grace_ns passed   |
//!                  | silence >= timeout_ns       v                             |
//!                  +-----------------------> suspected ------------------------+--> listening
//! ```
//!
//! A suspicion is an opinion, not a decision: a takeover needs the arbiter's word.

use std::collections::VecDeque;

/// Nanoseconds in a millisecond.
const MILLISECOND_NS: u64 = 1_000_000;

/// Upper limit of every configured time; keeps sums of squares far from overflow.
const LONGEST_TIMEOUT_NS: u64 = 3_600_000 * MILLISECOND_NS;

/// How a [`Detector`] judges. Every default is for two hosts on one LAN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DetectorConfig {
    /// φ at which a silence becomes a suspicion. Default 8: one wrong suspicion in 10^8
    /// heartbeats, if intervals were normally distributed; the floor takes care of the rest.
    pub threshold_phi: f64,
    /// Interval at which the peer promised heartbeats, the estimate before any was measured.
    /// Default 40 ms: each wakes an idle processor on both sides, twice.
    pub heartbeat_interval_ns: u64,
    /// How many measured intervals are remembered. Default 200, 8 s of heartbeats: old noise
    /// is forgotten soon after it ends.
    pub window_samples: usize,
    /// Lower bound of the intervals' standard deviation: a run of perfectly regular
    /// heartbeats must not make a small hiccup look like a failure. Default 10 ms.
    pub min_standard_deviation_ns: u64,
    /// No silence shorter than this is a suspicion, whatever φ says. Default 120 ms, 80 beyond a heartbeat:
    /// a busy machine with two cores leaves a runnable thread waiting for tens of milliseconds.
    pub min_timeout_ns: u64,
    /// Every silence as long as this is a suspicion, whatever φ says. Default 1 s.
    pub max_timeout_ns: u64,
    /// How long a peer whose connection broke (end of stream or reset) has to come back
    /// before it is suspected. Default 10 ms; the floor does not apply, since the kernel of
    /// the peer's host closed the connection: its process is most likely gone.
    pub reconnect_grace_ns: u64,
    /// When the question comes later than the timer by more than this, this process itself
    /// stood still: what the peer sent meanwhile may lie unread, so that the verdict waits
    /// for this long, once in a silence. Default 20 ms.
    pub stall_grace_ns: u64,
}

impl Default for DetectorConfig {
    fn default() -> Self {
        DetectorConfig {
            threshold_phi: 8.0,
            heartbeat_interval_ns: 40 * MILLISECOND_NS,
            window_samples: 200,
            min_standard_deviation_ns: 10 * MILLISECOND_NS,
            min_timeout_ns: 120 * MILLISECOND_NS,
            max_timeout_ns: 1000 * MILLISECOND_NS,
            reconnect_grace_ns: 10 * MILLISECOND_NS,
            stall_grace_ns: 20 * MILLISECOND_NS,
        }
    }
}

impl DetectorConfig {
    /// Checks that the figures make a detector.
    ///
    /// # Errors
    /// One line that names the figure, what was found and what is expected.
    pub fn check(&self) -> Result<(), DetectorConfigError> {
        let refuse = |field, found: String, expected| Err(DetectorConfigError { field, found, expected });
        if !(self.threshold_phi.is_finite() && self.threshold_phi > 0.5) {
            let found = self.threshold_phi.to_string();
            return refuse("threshold_phi", found, "a number above 0.5");
        }
        if self.heartbeat_interval_ns == 0 {
            return refuse("heartbeat_interval_ns", "0".into(), "more than 0");
        }
        if self.window_samples == 0 {
            return refuse("window_samples", "0".into(), "at least 1");
        }
        if self.min_timeout_ns <= self.heartbeat_interval_ns {
            let found = self.min_timeout_ns.to_string();
            return refuse("min_timeout_ns", found, "more than heartbeat_interval_ns");
        }
        if self.max_timeout_ns < self.min_timeout_ns {
            let found = self.max_timeout_ns.to_string();
            return refuse("max_timeout_ns", found, "at least min_timeout_ns");
        }
        if self.max_timeout_ns > LONGEST_TIMEOUT_NS {
            let found = self.max_timeout_ns.to_string();
            return refuse("max_timeout_ns", found, "at most an hour");
        }
        Ok(())
    }
}

/// A figure of a [`DetectorConfig`] that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failure detector: {field} is {found}, expected {expected}")]
pub struct DetectorConfigError {
    /// Name of the field.
    pub field: &'static str,
    /// Its value.
    pub found: String,
    /// What would do.
    pub expected: &'static str,
}

/// Why a peer is suspected to be dead.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Suspicion {
    /// Nothing was heard from it.
    Silence {
        /// For how long.
        silence_ns: u64,
        /// φ of that silence.
        phi: f64,
    },
    /// Its connection broke and it did not come back.
    Closed {
        /// How long ago the connection broke.
        closed_for_ns: u64,
    },
}

impl std::fmt::Display for Suspicion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Suspicion::Silence { silence_ns, phi } => {
                write!(f, "silent for {} ms (phi {phi:.1})", silence_ns / MILLISECOND_NS)
            }
            Suspicion::Closed { closed_for_ns } => write!(
                f,
                "its connection broke {} ms ago and it did not come back",
                closed_for_ns / MILLISECOND_NS
            ),
        }
    }
}

/// Judges from the arrival of heartbeats whether one peer is alive.
///
/// Time is any monotonic nanosecond count; a `now_ns` that lies before an earlier one counts
/// as that earlier one.
#[derive(Debug, Clone)]
pub struct Detector {
    config: DetectorConfig,
    intervals: IntervalWindow,
    /// See [`Detector::timeout_ns`]: asked for with every event, and changed by a heartbeat alone.
    timeout_ns: u64,
    /// When the last heartbeat came on this connection, the start of the next interval.
    heartbeat_ns: Option<u64>,
    /// When anything came last.
    heard_ns: u64,
    /// When the connection broke, while it is broken.
    closed_ns: Option<u64>,
    /// Verdict postponed to here because this process stood still.
    postponed_ns: Option<u64>,
}

impl Detector {
    /// Starts to listen at `now_ns`, as if a heartbeat had just come.
    ///
    /// # Panics
    /// When [`DetectorConfig::check`] refuses the configuration: the owner checks it where
    /// it is read.
    pub fn new(config: DetectorConfig, now_ns: u64) -> Self {
        if let Err(error) = config.check() {
            panic!("{error}");
        }
        let intervals = IntervalWindow::new(config.window_samples, config.heartbeat_interval_ns);
        Detector {
            timeout_ns: timeout_ns(&config, &intervals),
            intervals,
            config,
            heartbeat_ns: Some(now_ns),
            heard_ns: now_ns,
            closed_ns: None,
            postponed_ns: None,
        }
    }

    /// A heartbeat came: the peer is alive, and the time since the last one is measured.
    pub fn heartbeat(&mut self, now_ns: u64) {
        let now_ns = now_ns.max(self.heard_ns);
        self.alive(now_ns);
        if let Some(previous_ns) = self.heartbeat_ns.replace(now_ns) {
            // A silence beyond the ceiling says nothing about the rhythm of heartbeats.
            let interval_ns = (now_ns - previous_ns).min(self.config.max_timeout_ns);
            self.intervals.push(interval_ns);
            self.timeout_ns = timeout_ns(&self.config, &self.intervals);
        }
    }

    /// Something else came: the peer is alive. Not measured, because data comes in bursts
    /// that say nothing about the rhythm of heartbeats.
    pub fn alive(&mut self, now_ns: u64) {
        self.heard_ns = self.heard_ns.max(now_ns);
        self.postponed_ns = None;
        if self.closed_ns.take().is_some() {
            // The interval spans the time without a connection.
            self.heartbeat_ns = None;
        }
    }

    /// The connection broke: end of stream or reset.
    pub fn closed(&mut self, now_ns: u64) {
        if self.closed_ns.is_none() {
            self.closed_ns = Some(now_ns.max(self.heard_ns));
            self.postponed_ns = None;
        }
    }

    /// φ of the silence so far: grows with time, 0 while everything is as expected.
    pub fn phi(&self, now_ns: u64) -> f64 {
        let silence_ns = now_ns.saturating_sub(self.heard_ns);
        let deviation_ns = standard_deviation_ns(&self.config, &self.intervals);
        let deviations = (silence_ns as f64 - self.intervals.mean_ns()) / deviation_ns;
        phi_of_deviations(deviations)
    }

    /// The silence that would be a suspicion now.
    pub fn timeout_ns(&self) -> u64 {
        self.timeout_ns
    }

    /// When the peer becomes suspected if nothing comes until then: arm a timer here. Moves
    /// with every call that takes a time.
    pub fn suspect_at_ns(&self) -> u64 {
        if let Some(postponed_ns) = self.postponed_ns {
            return postponed_ns;
        }
        let silence_at_ns = self.heard_ns.saturating_add(self.timeout_ns());
        match self.closed_ns {
            Some(closed_ns) => silence_at_ns.min(closed_ns.saturating_add(self.config.reconnect_grace_ns)),
            None => silence_at_ns,
        }
    }

    /// The verdict at `now_ns`: `None` before [`Detector::suspect_at_ns`].
    ///
    /// Also `None`, with a later `suspect_at_ns`, when the question comes so late that this
    /// process must have stood still: read what the peer sent, then ask again.
    pub fn poll_suspicion(&mut self, now_ns: u64) -> Option<Suspicion> {
        let suspect_at_ns = self.suspect_at_ns();
        if now_ns < suspect_at_ns {
            return None;
        }
        if let Some(closed_ns) = self.closed_ns {
            return Some(Suspicion::Closed { closed_for_ns: now_ns.saturating_sub(closed_ns) });
        }
        let late_ns = now_ns - suspect_at_ns;
        if self.postponed_ns.is_none() && late_ns > self.config.stall_grace_ns {
            self.postponed_ns = Some(now_ns.saturating_add(self.config.stall_grace_ns));
            return None;
        }
        Some(Suspicion::Silence { silence_ns: now_ns.saturating_sub(self.heard_ns), phi: self.phi(now_ns) })
    }

    /// When anything was heard last.
    pub fn heard_ns(&self) -> u64 {
        self.heard_ns
    }
}

/// The silence that is a suspicion after these intervals.
fn timeout_ns(config: &DetectorConfig, intervals: &IntervalWindow) -> u64 {
    let deviations = deviations_of_phi(config.threshold_phi);
    let silence_ns = intervals.mean_ns() + deviations * standard_deviation_ns(config, intervals);
    // A cast from float saturates.
    (silence_ns.ceil() as u64).clamp(config.min_timeout_ns, config.max_timeout_ns)
}

fn standard_deviation_ns(config: &DetectorConfig, intervals: &IntervalWindow) -> f64 {
    intervals
        .standard_deviation_ns()
        .max(config.min_standard_deviation_ns as f64)
        // A configured minimum of zero and a perfect rhythm must not divide by zero.
        .max(1.0)
}

/// The last intervals between heartbeats, with exact sums, so that nothing drifts however
/// long the detector runs.
#[derive(Debug, Clone)]
struct IntervalWindow {
    samples_ns: VecDeque<u64>,
    capacity: usize,
    sum_ns: u128,
    sum_of_squares_ns2: u128,
}

impl IntervalWindow {
    /// Starts with the promised interval, one quarter above and below, so that the first
    /// deviations are estimated too.
    fn new(capacity: usize, promised_ns: u64) -> Self {
        let mut window = IntervalWindow {
            samples_ns: VecDeque::with_capacity(capacity),
            capacity,
            sum_ns: 0,
            sum_of_squares_ns2: 0,
        };
        window.push(promised_ns - promised_ns / 4);
        window.push(promised_ns.saturating_add(promised_ns / 4));
        window
    }

    fn push(&mut self, interval_ns: u64) {
        while self.samples_ns.len() >= self.capacity {
            let Some(oldest_ns) = self.samples_ns.pop_front() else {
                break;
            };
            self.sum_ns -= u128::from(oldest_ns);
            self.sum_of_squares_ns2 -= square(oldest_ns);
        }
        self.samples_ns.push_back(interval_ns);
        self.sum_ns += u128::from(interval_ns);
        self.sum_of_squares_ns2 += square(interval_ns);
    }

    fn mean_ns(&self) -> f64 {
        self.sum_ns as f64 / self.samples_ns.len() as f64
    }

    fn standard_deviation_ns(&self) -> f64 {
        let mean_ns = self.mean_ns();
        let mean_of_squares_ns2 = self.sum_of_squares_ns2 as f64 / self.samples_ns.len() as f64;
        // Rounding may leave a variance just below zero.
        (mean_of_squares_ns2 - mean_ns * mean_ns).max(0.0).sqrt()
    }
}

fn square(interval_ns: u64) -> u128 {
    u128::from(interval_ns) * u128::from(interval_ns)
}

// The normal distribution's upper tail by its logistic approximation (Bowling, Khasawneh,
// Kaewkuekool, Cho: *A logistic approximation to the cumulative normal distribution*, JIEM
// 2009): P(X > y) = 1 / (1 + exp(a y + b y^3)), within 0.00014 and, unlike erfc, inverted in
// closed form.
const LOGISTIC_A: f64 = 1.5976;
const LOGISTIC_B: f64 = 0.070566;

/// φ of a value that lies `deviations` standard deviations above the mean.
fn phi_of_deviations(deviations: f64) -> f64 {
    let exponent = deviations * (LOGISTIC_A + LOGISTIC_B * deviations * deviations);
    // log10(1 + exp(exponent)), in the form that does not overflow.
    (exponent.max(0.0) + (-exponent.abs()).exp().ln_1p()) / std::f64::consts::LN_10
}

/// The inverse of [`phi_of_deviations`].
fn deviations_of_phi(phi: f64) -> f64 {
    let natural = phi * std::f64::consts::LN_10;
    // ln(exp(natural) - 1), in the form that does not overflow.
    let exponent = natural + (-(-natural).exp()).ln_1p();
    // Cardano, for b y^3 + a y = exponent: one real root, since both coefficients are positive.
    let third = LOGISTIC_A / LOGISTIC_B / 3.0;
    let half = exponent / LOGISTIC_B / 2.0;
    let root = (half * half + third * third * third).sqrt();
    (half + root).cbrt() + (half - root).cbrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = MILLISECOND_NS;

    /// Twice as many heartbeats as by default, and less patience.
    fn config() -> DetectorConfig {
        DetectorConfig {
            heartbeat_interval_ns: 20 * MS,
            min_timeout_ns: 100 * MS,
            ..DetectorConfig::default()
        }
    }

    /// A detector that heard heartbeats at the given intervals, and the time of the last.
    fn after(intervals_ns: impl IntoIterator<Item = u64>) -> (Detector, u64) {
        let mut now_ns = 5_000 * MS;
        let mut detector = Detector::new(config(), now_ns);
        for interval_ns in intervals_ns {
            now_ns += interval_ns;
            detector.heartbeat(now_ns);
        }
        (detector, now_ns)
    }

    #[test]
    fn a_regular_peer_that_falls_silent_is_suspected_at_the_floor() {
        let (mut detector, last_ns) = after([20 * MS; 500]);
        assert_eq!(detector.suspect_at_ns(), last_ns + 100 * MS);
        assert_eq!(detector.poll_suspicion(last_ns + 100 * MS - 1), None);
        let suspicion = detector.poll_suspicion(last_ns + 100 * MS).unwrap();
        assert!(matches!(
            suspicion,
            Suspicion::Silence { silence_ns, phi } if silence_ns == 100 * MS && phi > 8.0
        ));
    }

    #[test]
    fn by_default_a_regular_peer_may_be_late_by_two_heartbeats() {
        let config = DetectorConfig::default();
        let mut detector = Detector::new(config, 0);
        (1..500).for_each(|number| detector.heartbeat(number * config.heartbeat_interval_ns));
        assert_eq!(detector.timeout_ns(), 3 * config.heartbeat_interval_ns);
    }

    #[test]
    fn noise_raises_the_timeout_and_quiet_lowers_it_again() {
        let noisy = (0..400).map(|i| if i % 10 == 0 { 120 * MS } else { 10 * MS });
        let (mut detector, mut now_ns) = after(noisy);
        let noisy_timeout_ns = detector.timeout_ns();
        assert!(noisy_timeout_ns > 180 * MS, "{noisy_timeout_ns}");
        for _ in 0..200 {
            now_ns += 20 * MS;
            detector.heartbeat(now_ns);
        }
        assert_eq!(detector.timeout_ns(), 100 * MS);
    }

    #[test]
    fn a_broken_connection_is_suspected_after_the_grace_unless_the_peer_comes_back() {
        let (mut detector, last_ns) = after([20 * MS; 50]);
        let closed_ns = last_ns + 3 * MS;
        detector.closed(closed_ns);
        detector.closed(closed_ns + MS);
        assert_eq!(detector.suspect_at_ns(), closed_ns + 10 * MS);
        assert_eq!(detector.poll_suspicion(closed_ns + 10 * MS - 1), None);
        let mut returned = detector.clone();
        assert_eq!(
            detector.poll_suspicion(closed_ns + 10 * MS),
            Some(Suspicion::Closed { closed_for_ns: 10 * MS })
        );
        returned.alive(closed_ns + 9 * MS);
        assert_eq!(returned.suspect_at_ns(), closed_ns + 109 * MS);
    }

    #[test]
    fn the_time_without_a_connection_is_not_taken_for_an_interval() {
        let (mut detector, last_ns) = after([20 * MS; 50]);
        detector.closed(last_ns);
        detector.heartbeat(last_ns + 900 * MS);
        detector.heartbeat(last_ns + 920 * MS);
        assert_eq!(detector.timeout_ns(), 100 * MS);
    }

    #[test]
    fn data_counts_as_life_but_not_as_rhythm() {
        let (mut detector, last_ns) = after([20 * MS; 50]);
        let mean_ns = detector.intervals.mean_ns();
        for microseconds in 1..1000 {
            detector.alive(last_ns + microseconds * 1000);
        }
        assert_eq!(detector.intervals.mean_ns(), mean_ns);
        assert_eq!(detector.suspect_at_ns(), last_ns + 999_000 + 100 * MS);
    }

    #[test]
    fn a_process_that_stood_still_reads_before_it_judges() {
        let (mut detector, last_ns) = after([20 * MS; 50]);
        let woke_ns = last_ns + 700 * MS;
        assert_eq!(detector.poll_suspicion(woke_ns), None);
        assert_eq!(detector.suspect_at_ns(), woke_ns + 20 * MS);
        let mut read_something = detector.clone();
        read_something.alive(woke_ns + MS);
        assert_eq!(read_something.suspect_at_ns(), woke_ns + 101 * MS);
        // Postponed once, not for ever, even when the second question is late too.
        assert!(detector.poll_suspicion(woke_ns + 600 * MS).is_some());
    }

    #[test]
    fn phi_and_its_inverse_agree_with_the_normal_distribution() {
        // Upper tail of the standard normal distribution: P(X > 1) and P(X > 2).
        assert!((10f64.powf(-phi_of_deviations(1.0)) - 0.158_655).abs() < 2e-4);
        assert!((10f64.powf(-phi_of_deviations(2.0)) - 0.022_750).abs() < 2e-4);
        for phi in [0.6, 1.0, 3.0, 8.0, 12.0, 40.0] {
            assert!((phi_of_deviations(deviations_of_phi(phi)) - phi).abs() < 1e-9);
        }
    }

    #[test]
    fn senseless_figures_are_refused_by_name() {
        let config = DetectorConfig { min_timeout_ns: 20 * MS, ..config() };
        let message = config.check().unwrap_err().to_string();
        assert_eq!(
            message,
            "failure detector: min_timeout_ns is 20000000, expected more than heartbeat_interval_ns"
        );
    }

    proptest! {
        #[test]
        fn phi_never_falls_while_the_silence_lasts(
            intervals in prop::collection::vec(0..2_000 * MS, 0..300),
            mut offsets in prop::collection::vec(0..5_000 * MS, 2..50),
        ) {
            let (detector, last_ns) = after(intervals);
            offsets.sort_unstable();
            let phis: Vec<f64> = offsets.iter().map(|o| detector.phi(last_ns + o)).collect();
            prop_assert!(phis.iter().all(|phi| phi.is_finite() && *phi >= 0.0));
            prop_assert!(phis.is_sorted());
        }

        #[test]
        fn no_suspicion_before_the_floor_and_none_after_the_ceiling_is_missed(
            intervals in prop::collection::vec(0..2_000 * MS, 0..300),
        ) {
            let (mut detector, last_ns) = after(intervals);
            let timeout_ns = detector.suspect_at_ns() - last_ns;
            prop_assert!((100 * MS..=1000 * MS).contains(&timeout_ns));
            prop_assert!(detector.poll_suspicion(last_ns + 100 * MS - 1).is_none());
            let at_ns = detector.suspect_at_ns();
            prop_assert!(detector.poll_suspicion(at_ns - 1).is_none());
            prop_assert!(detector.poll_suspicion(at_ns).is_some());
        }

        #[test]
        fn the_timer_fires_where_phi_passes_the_threshold_between_floor_and_ceiling(
            jitter in prop::collection::vec(0..60 * MS, 200..300),
        ) {
            let (detector, last_ns) = after(jitter);
            let at_ns = detector.suspect_at_ns();
            let timeout_ns = at_ns - last_ns;
            if timeout_ns > 100 * MS && timeout_ns < 1000 * MS {
                prop_assert!(detector.phi(at_ns) >= 8.0);
                prop_assert!(detector.phi(at_ns - 1000) < 8.0);
            }
        }

        #[test]
        fn the_sums_stay_exact_whatever_passes_through_the_window(
            intervals in prop::collection::vec(0..=LONGEST_TIMEOUT_NS, 0..600),
        ) {
            let mut window = IntervalWindow::new(7, 20 * MS);
            for interval_ns in &intervals {
                window.push(*interval_ns);
            }
            let samples = window.samples_ns.iter();
            prop_assert_eq!(window.sum_ns, samples.map(|&ns| u128::from(ns)).sum::<u128>());
            let exact: u128 = window.samples_ns.iter().map(|&ns| square(ns)).sum();
            prop_assert_eq!(window.sum_of_squares_ns2, exact);
        }
    }
}
