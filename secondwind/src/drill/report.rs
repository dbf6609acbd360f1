//! What a drill found, as text, as JSON and as an HTML page with a drawn timeline.

use std::fmt::Write as _;

use serde::Serialize;

use super::history::Operation;

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
    /// What was checked.
    pub checks: Vec<Check>,
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
}

/// What a drill measures. `None` where the scenario has no such figure.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Measures {
    /// Longest time during which no client was answered, around the fault.
    pub blackout_ms: Option<f64>,
    /// From the fault to the decision that the primary is lost.
    pub detection_ms: Option<f64>,
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
    /// State digests that the backup compared.
    pub digests_compared: u64,
    /// Bytes of log shipped to the backup.
    pub log_bytes: u64,
    /// Guest pause at the checkpoint for the join.
    pub checkpoint_pause_ms: Option<f64>,
    /// Resident memory of the agents beyond guest memory, in MiB, the larger of the two.
    pub memory_overhead_mib: Option<f64>,
}

impl Measures {
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
        for entry in &self.timeline {
            let _ = writeln!(text, "  {:>10.1} ms  {:<8} {}", entry.at_ms, entry.who, entry.what);
        }
        text.push_str("\nmeasured\n");
        for (name, value) in self.rows() {
            let _ = writeln!(text, "  {name:<38} {value}");
        }
        text.push_str("\nchecked\n");
        for check in &self.checks {
            let word = if check.held { "ok  " } else { "FAIL" };
            let _ = writeln!(text, "  {word} {:<44} {}", check.what, check.found);
        }
        let verdict = if self.passed() { "PASSED" } else { "FAILED" };
        let _ =
            write!(text, "\nverdict: {verdict} ({}, {} lost, seed {})", self.guest, self.fault, self.seed);
        text
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let m = &self.measures;
        let ms = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.1} ms"));
        let us = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.0} us"));
        vec![
            ("blackout seen by the clients", ms(m.blackout_ms)),
            ("detection of the failure", ms(m.detection_ms)),
            ("requests acknowledged", m.acknowledged.to_string()),
            ("requests per second while protected", format!("{:.0}", m.requests_per_s)),
            (
                "response delay unprotected, p50 / p99",
                pair(us(m.unprotected_p50_us), us(m.unprotected_p99_us)),
            ),
            ("response delay protected, p50 / p99", pair(us(m.protected_p50_us), us(m.protected_p99_us))),
            ("added response delay, p50 / p99", pair(us(m.added_p50_us()), us(m.added_p99_us()))),
            ("digests compared", m.digests_compared.to_string()),
            ("log shipped", format!("{} bytes", m.log_bytes)),
            ("checkpoint pause at the join", ms(m.checkpoint_pause_ms)),
            (
                "memory beyond the guest's",
                m.memory_overhead_mib.map_or("-".into(), |mib| format!("{mib:.1} MiB")),
            ),
        ]
    }

    /// The report as one HTML page that needs nothing else.
    pub fn html(&self, operations: &[Operation]) -> String {
        let verdict = if self.passed() { "passed" } else { "failed" };
        let mut page = format!(
            "<!doctype html><html lang=en><meta charset=utf-8><title>secondwind drill: {verdict}</title>\
             <style>{STYLE}</style><h1>secondwind drill <span class={verdict}>{verdict}</span></h1>\
             <p>guest <b>{}</b>, fault <b>{}</b>, seed <b>{}</b></p>{}",
            escape(&self.guest),
            escape(&self.fault),
            self.seed,
            self.drawing(operations),
        );
        page.push_str("<h2>Checked</h2><table>");
        for check in &self.checks {
            let (class, word) = if check.held { ("passed", "held") } else { ("failed", "FAILED") };
            let (what, found) = (escape(&check.what), escape(&check.found));
            let _ = write!(page, "<tr><td>{what}<td class={class}>{word}<td>{found}");
        }
        page.push_str("</table><h2>Measured</h2><table>");
        for (name, value) in self.rows() {
            let _ = write!(page, "<tr><td>{name}<td>{}", escape(&value));
        }
        page.push_str("</table><h2>Timeline</h2><table>");
        for entry in &self.timeline {
            let (who, what) = (escape(&entry.who), escape(&entry.what));
            let _ = write!(page, "<tr><td class=number>{:.1} ms<td>{who}<td>{what}", entry.at_ms);
        }
        page.push_str("</table></html>\n");
        page
    }

    /// Each answered request as a dot (time across, delay upwards, logarithmic), with the
    /// events of the timeline as lines.
    fn drawing(&self, operations: &[Operation]) -> String {
        let last_operation_ms =
            operations.iter().map(|operation| ms_of(operation.called_ns)).fold(0.0, f64::max);
        let end_ms = self.timeline.iter().map(|entry| entry.at_ms).fold(last_operation_ms, f64::max).max(1.0);
        let x = |at_ms: f64| LEFT + at_ms / end_ms * (WIDTH - LEFT - 10.0);
        let y = |latency_us: f64| {
            let decades = (latency_us.clamp(LEAST_US, MOST_US) / LEAST_US).log10();
            HEIGHT - 30.0 - decades / (MOST_US / LEAST_US).log10() * (HEIGHT - 150.0)
        };
        let mut svg = format!("<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='timeline'>");
        for (latency_us, label) in
            [(100.0, "0.1 ms"), (1e3, "1 ms"), (1e4, "10 ms"), (1e5, "100 ms"), (1e6, "1 s")]
        {
            let at = y(latency_us);
            let _ = write!(
                svg,
                "<line class=grid x1={LEFT} x2={} y1={at:.1} y2={at:.1} /><text x=4 y={:.1}>{label}</text>",
                WIDTH - 10.0,
                at + 4.0
            );
        }
        let step_ms = [100.0, 500.0, 1e3, 2e3, 5e3, 1e4, 6e4].into_iter().find(|step| end_ms / step <= 12.0);
        let step_ms = step_ms.unwrap_or(end_ms / 10.0);
        for tick in 0..=(end_ms / step_ms) as u32 {
            let at_ms = f64::from(tick) * step_ms;
            let _ = write!(
                svg,
                "<text x={:.1} y={:.1}>{:.1} s</text>",
                x(at_ms) - 8.0,
                HEIGHT - 8.0,
                at_ms / 1e3
            );
        }
        for operation in thinned(operations) {
            if let Some(latency_ns) = operation.latency_ns() {
                let (at, up) = (x(ms_of(operation.called_ns)), y(latency_ns as f64 / 1e3));
                let _ = write!(svg, "<circle cx={at:.1} cy={up:.1} r=1.5 />");
            }
        }
        for (row, entry) in self.timeline.iter().enumerate() {
            let (at, text) = (x(entry.at_ms), 14.0 + 13.0 * (row % 8) as f64);
            let class = if entry.who == "drill" { "fault" } else { "agent" };
            let anchor = if at > WIDTH * 0.7 { "end" } else { "start" };
            let _ = write!(
                svg,
                "<line class={class} x1={at:.1} x2={at:.1} y1={text} y2={} />\
                 <text class={class} text-anchor={anchor} x={at:.1} y={text}>{} {}</text>",
                HEIGHT - 30.0,
                escape(&entry.who),
                escape(&entry.what)
            );
        }
        svg.push_str("</svg>");
        svg
    }
}

const WIDTH: f64 = 1100.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 56.0;
/// Range of the drawing's delay axis.
const LEAST_US: f64 = 50.0;
const MOST_US: f64 = 5e6;
/// More dots than this are thinned out, slow requests kept.
const DOTS: usize = 6000;
const STYLE: &str = "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:1100px;color:#222}\
    table{border-collapse:collapse}td{padding:.2em .9em .2em 0;border-bottom:1px solid #ddd}\
    .number{text-align:right}.passed{color:#0a7d33}.failed{color:#c01c28}\
    svg{width:100%;background:#fafafa;border:1px solid #ddd}svg text{font-size:11px;fill:#555}\
    .grid{stroke:#e2e2e2}circle{fill:#1c5fc0;fill-opacity:.45}\
    line.fault{stroke:#c01c28}line.agent{stroke:#0a7d33;stroke-dasharray:3 3}\
    text.fault{fill:#c01c28}text.agent{fill:#0a7d33}";

fn thinned(operations: &[Operation]) -> impl Iterator<Item = &Operation> {
    let every = operations.len().div_ceil(DOTS).max(1);
    let is_slow =
        |operation: &Operation| operation.latency_ns().is_some_and(|latency_ns| latency_ns > 20_000_000);
    operations
        .iter()
        .enumerate()
        .filter(move |(index, operation)| index % every == 0 || is_slow(operation))
        .map(|(_, operation)| operation)
}

fn pair(first: String, second: String) -> String {
    format!("{first} / {second}")
}

fn ms_of(ns: u64) -> f64 {
    ns as f64 / 1e6
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;")
}

/// The value below which `percent` of the samples lie; `None` without samples.
pub fn percentile(samples: &mut [f64], percent: f64) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    let rank = (samples.len() as f64 * percent / 100.0).ceil() as usize;
    samples.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            guest: "ledger".into(),
            fault: "primary".into(),
            seed: 7,
            timeline: vec![TimelineEntry { at_ms: 12.0, who: "drill".into(), what: "kill <primary>".into() }],
            measures: Measures::default(),
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
    fn the_page_escapes_what_it_shows() {
        let page = report().html(&[]);
        assert!(page.contains("kill &lt;primary&gt;") && !page.contains("<primary>"));
    }

    #[test]
    fn percentiles_are_of_the_samples() {
        let mut samples: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&mut samples, 50.0), Some(50.0));
        assert_eq!(percentile(&mut samples, 99.0), Some(99.0));
        assert_eq!(percentile(&mut [], 50.0), None);
    }
}
