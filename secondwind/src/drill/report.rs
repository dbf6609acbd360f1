//! What a drill found, as text and as JSON; [`super::page`] draws it.

use std::fmt::Write as _;

use serde::Serialize;

/// One drill: what was done, what was seen, and whether every check held.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// `ledger` or `debian`.
    pub guest: String,
    /// What was broken: `primary`, `backup` or `link`.
    pub fault: String,
    /// Seed of everything the drill chose at random.
    pub seed: u64,
    /// What happened when, in milliseconds since the drill began.
    pub timeline: Vec<TimelineEntry>,
    /// What was measured.
    pub measures: Measures,
    /// The faults, one by one.
    pub rounds: Vec<RoundFigures>,
    /// What was checked.
    pub checks: Vec<Check>,
}

/// One fault in figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoundFigures {
    /// When it was made, in milliseconds since the drill began.
    pub at_ms: f64,
    /// The node that went on.
    pub survivor: String,
    /// The term in which it did.
    pub term: u64,
    /// Longest time during which no client was answered.
    pub blackout_ms: Option<f64>,
    /// Longest time that one client waited for an answer across the fault.
    pub longest_wait_ms: Option<f64>,
    /// From the fault to the decision that the other side is lost.
    pub detection_ms: Option<f64>,
    /// From the fault until a backup was live in the primary's place.
    pub takeover_ms: Option<f64>,
    /// From the fault until a new backup was counted on.
    pub reprotected_ms: Option<f64>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TimelineEntry {
    /// Milliseconds since the drill began.
    pub at_ms: f64,
    /// `drill`, or the name of an agent.
    pub who: String,
    /// What, in a few words.
    pub what: String,
    /// Whether the drill broke something.
    pub is_fault: bool,
}

/// What a drill measures. `None` where the scenario has no such figure.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Measures {
    /// Longest time during which no client was answered, around the fault.
    pub blackout_ms: Option<f64>,
    /// From the fault to the decision that the other side is lost.
    pub detection_ms: Option<f64>,
    /// From the fault until a backup was live in the primary's place.
    pub takeover_ms: Option<f64>,
    /// Longest time that one client waited for an answer across the fault.
    pub longest_wait_ms: Option<f64>,
    /// Requests that were answered.
    pub acknowledged: u64,
    /// Requests per second while protected.
    pub requests_per_s: f64,
    /// Response delay without protection, median.
    pub unprotected_p50_us: Option<f64>,
    /// Response delay without protection, 99th percentile.
    pub unprotected_p99_us: Option<f64>,
    /// Response delay while protected, median.
    pub protected_p50_us: Option<f64>,
    /// Response delay while protected, 99th percentile.
    pub protected_p99_us: Option<f64>,
    /// How often one side took the other for dead though nothing was broken.
    pub false_alarms: u64,
    /// State digests that the backup compared.
    pub digests_compared: u64,
    /// Output frames whose hashes the backup compared.
    pub outputs_compared: u64,
    /// Bytes of log shipped to the backup.
    pub log_bytes: u64,
    /// Guest pause at the checkpoint for the join.
    pub checkpoint_pause_ms: Option<f64>,
    /// Resident memory of the agents beyond guest memory, in MiB, the larger of the two.
    pub memory_overhead_mib: Option<f64>,
}

impl Measures {
    fn followed_by(self, next: Measures) -> Measures {
        let worse = |first: Option<f64>, second: Option<f64>| match (first, second) {
            (Some(first), Some(second)) => Some(first.max(second)),
            (first, second) => first.or(second),
        };
        Measures {
            blackout_ms: worse(self.blackout_ms, next.blackout_ms),
            detection_ms: worse(self.detection_ms, next.detection_ms),
            takeover_ms: worse(self.takeover_ms, next.takeover_ms),
            longest_wait_ms: worse(self.longest_wait_ms, next.longest_wait_ms),
            acknowledged: self.acknowledged + next.acknowledged,
            requests_per_s: self.requests_per_s.min(next.requests_per_s),
            unprotected_p50_us: worse(self.unprotected_p50_us, next.unprotected_p50_us),
            unprotected_p99_us: worse(self.unprotected_p99_us, next.unprotected_p99_us),
            protected_p50_us: worse(self.protected_p50_us, next.protected_p50_us),
            protected_p99_us: worse(self.protected_p99_us, next.protected_p99_us),
            false_alarms: self.false_alarms + next.false_alarms,
            digests_compared: self.digests_compared + next.digests_compared,
            outputs_compared: self.outputs_compared + next.outputs_compared,
            log_bytes: self.log_bytes + next.log_bytes,
            checkpoint_pause_ms: worse(self.checkpoint_pause_ms, next.checkpoint_pause_ms),
            memory_overhead_mib: worse(self.memory_overhead_mib, next.memory_overhead_mib),
        }
    }

    /// What protection adds to the median response delay.
    pub fn added_p50_us(&self) -> Option<f64> {
        Some(self.protected_p50_us? - self.unprotected_p50_us?)
    }

    /// What protection adds to the 99th percentile of the response delay.
    pub fn added_p99_us(&self) -> Option<f64> {
        Some(self.protected_p99_us? - self.unprotected_p99_us?)
    }
}

/// One thing that must hold.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What.
    pub what: String,
    /// Whether it did.
    pub held: bool,
    /// What was found.
    pub found: String,
}

impl Check {
    /// A check of `what`, with what was found.
    pub fn new(what: impl Into<String>, held: bool, found: impl Into<String>) -> Check {
        Check { what: what.into(), held, found: found.into() }
    }
}

impl Report {
    /// Whether every check held.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.held)
    }

    /// The report as lines for a terminal.
    pub fn text(&self) -> String {
        let mut text = String::from("\ntimeline\n");
        let hidden = self.timeline.len().saturating_sub(SHOWN_ENTRIES);
        if hidden > 0 {
            let _ = writeln!(text, "  ... {hidden} earlier entries; all are in --html and --json");
        }
        for entry in &self.timeline[hidden..] {
            let _ = writeln!(text, "  {:>10.1} ms  {:<8} {}", entry.at_ms, entry.who, entry.what);
        }
        text.push_str("\nmeasured\n");
        for (name, value) in self.rows() {
            let _ = writeln!(text, "  {name:<38} {value}");
        }
        if self.rounds.len() > 1 {
            let _ =
                writeln!(text, "\n{:<38} {:>10} {:>10} {:>10}", self.summary_title(), "min", "median", "max");
            for (name, figures) in self.summary() {
                let [min, median, max] = figures.map(|value| format!("{value:.1} ms"));
                let _ = writeln!(text, "  {name:<36} {min:>10} {median:>10} {max:>10}");
            }
        }
        text.push_str("\nchecked\n");
        for check in &self.checks {
            let word = if check.held { "ok  " } else { "FAIL" };
            let _ = writeln!(text, "  {word} {:<44} {}", check.what, check.found);
        }
        let _ = write!(text, "\n{}", self.verdict());
        text
    }

    /// The verdict in one line.
    pub fn verdict(&self) -> String {
        let verdict = if self.passed() { "PASSED" } else { "FAILED" };
        let times =
            if self.rounds.len() > 1 { format!(" {} times", self.rounds.len()) } else { String::new() };
        format!("verdict: {verdict} ({}, {} lost{times}, seed {})", self.guest, self.fault, self.seed)
    }

    fn summary_title(&self) -> String {
        format!("{} faults", self.rounds.len())
    }

    /// Least, median and greatest of the faults' figures.
    fn summary(&self) -> Vec<(&'static str, [f64; 3])> {
        let columns: [(&'static str, Figure); 5] = [
            ("blackout", |round| round.blackout_ms),
            ("detection", |round| round.detection_ms),
            ("longest wait of one client", |round| round.longest_wait_ms),
            ("blackout beyond detection", |round| Some(round.blackout_ms? - round.detection_ms?)),
            ("protected again after", |round| round.reprotected_ms),
        ];
        let summarize = |(name, figure): (&'static str, Figure)| {
            let mut values: Vec<f64> = self.rounds.iter().filter_map(figure).collect();
            let of = |percent, values: &mut Vec<f64>| percentile(values, percent);
            Some((name, [of(0.0, &mut values)?, of(50.0, &mut values)?, of(100.0, &mut values)?]))
        };
        columns.into_iter().filter_map(summarize).collect()
    }

    /// This report and that of the machine that came after it, as one: counts added, delays
    /// the worse of the two, the timeline of the later.
    pub fn followed_by(self, next: Report) -> Report {
        let mut rounds = self.rounds;
        rounds.extend(next.rounds);
        let checks = self.checks.into_iter().zip(next.checks).map(|(first, second)| match first.held {
            true => Check { held: second.held, ..second },
            false => first,
        });
        Report {
            measures: self.measures.followed_by(next.measures),
            rounds,
            checks: checks.collect(),
            seed: self.seed,
            ..next
        }
    }

    /// The figures with their names, for people.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let m = &self.measures;
        let ms = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.1} ms"));
        let us = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.0} us"));
        vec![
            ("blackout seen by the clients", ms(m.blackout_ms)),
            ("detection of the failure", ms(m.detection_ms)),
            ("takeover by the backup", ms(m.takeover_ms)),
            ("longest wait of one client", ms(m.longest_wait_ms)),
            ("requests acknowledged", m.acknowledged.to_string()),
            ("requests per second while protected", format!("{:.0}", m.requests_per_s)),
            (
                "response delay unprotected, p50 / p99",
                pair(us(m.unprotected_p50_us), us(m.unprotected_p99_us)),
            ),
            ("response delay protected, p50 / p99", pair(us(m.protected_p50_us), us(m.protected_p99_us))),
            ("added response delay, p50 / p99", pair(us(m.added_p50_us()), us(m.added_p99_us()))),
            ("false alarms", m.false_alarms.to_string()),
            ("digests compared", m.digests_compared.to_string()),
            ("output frames compared", m.outputs_compared.to_string()),
            ("log shipped", format!("{} bytes", m.log_bytes)),
            ("checkpoint pause at the join", ms(m.checkpoint_pause_ms)),
            (
                "memory beyond the guest's",
                m.memory_overhead_mib.map_or("-".into(), |mib| format!("{mib:.1} MiB")),
            ),
        ]
    }
}

/// One of a fault's figures.
type Figure = fn(&RoundFigures) -> Option<f64>;

/// Entries of the timeline that are shown on a terminal.
const SHOWN_ENTRIES: usize = 80;

fn pair(first: String, second: String) -> String {
    format!("{first} / {second}")
}

/// The value below which `percent` of the samples lie; `None` without samples.
pub fn percentile(samples: &mut [f64], percent: f64) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    let rank = (samples.len() as f64 * percent / 100.0).ceil() as usize;
    samples.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A report with one check that failed.
    pub fn report() -> Report {
        Report {
            guest: "ledger".into(),
            fault: "primary".into(),
            seed: 7,
            timeline: vec![TimelineEntry {
                at_ms: 12.0,
                who: "drill".into(),
                what: "kill <primary>".into(),
                is_fault: true,
            }],
            measures: Measures::default(),
            rounds: vec![],
            checks: vec![Check::new("nothing lost", true, "0"), Check::new("no divergence", false, "1")],
        }
    }

    #[test]
    fn one_failed_check_fails_the_drill() {
        let mut report = report();
        assert!(!report.passed() && report.text().contains("verdict: FAILED"));
        report.checks.pop();
        assert!(report.passed() && report.text().contains("verdict: PASSED"));
    }

    #[test]
    fn a_failure_of_one_machine_is_not_lost_in_the_sum() {
        let failed = report();
        let mut passed = report();
        passed.checks[1].held = true;
        assert!(!failed.clone().followed_by(passed.clone()).passed());
        assert!(!passed.clone().followed_by(failed).passed());
        assert!(passed.clone().followed_by(passed).passed());
    }

    #[test]
    fn many_faults_are_summed_up() {
        let mut report = report();
        let round = |blackout_ms: f64| RoundFigures {
            at_ms: 0.0,
            survivor: "b".into(),
            term: 2,
            blackout_ms: Some(blackout_ms),
            longest_wait_ms: None,
            detection_ms: Some(100.0),
            takeover_ms: None,
            reprotected_ms: None,
        };
        report.rounds = vec![round(120.0), round(150.0), round(130.0)];
        let summary = report.summary();
        assert_eq!(summary[0], ("blackout", [120.0, 130.0, 150.0]));
        assert_eq!(summary[2].1, [20.0, 30.0, 50.0]);
        assert_eq!(summary.len(), 3, "nothing was protected again");
        assert!(report.text().contains("3 faults"));
    }

    #[test]
    fn percentiles_are_of_the_samples() {
        let mut samples: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&mut samples, 50.0), Some(50.0));
        assert_eq!(percentile(&mut samples, 99.0), Some(99.0));
        assert_eq!(percentile(&mut [], 50.0), None);
    }
}
