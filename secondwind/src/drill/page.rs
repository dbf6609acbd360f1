//! A drill's report as an HTML page with a drawn timeline.

use std::fmt::Write as _;

use super::drawing::Drawing;
use super::history::Operation;
use super::report::Report;

impl Report {
    /// The report as one HTML page that needs nothing else.
    pub fn html(&self, operations: &[Operation]) -> String {
        let verdict = if self.passed() { "passed" } else { "failed" };
        let mut page = format!(
            "<!doctype html><html lang=en><meta charset=utf-8><title>secondwind drill: {verdict}</title>\
             <style>{STYLE}</style><h1>secondwind drill <span class={verdict}>{verdict}</span></h1>\
             <p>guest <b>{}</b>, fault <b>{}</b>, seed <b>{}</b>. Each dot is an answered request: \
             across, when it was made; upwards, how long its answer took.</p>",
            escape(&self.guest),
            escape(&self.fault),
            self.seed,
        );
        page.push_str(&self.details(operations));
        page.push_str("</html>\n");
        page
    }

    /// The body of the page: drawings, checks, figures and timeline.
    pub fn details(&self, operations: &[Operation]) -> String {
        let mut page = String::new();
        for drawing in self.drawings() {
            page.push_str(&drawing.svg(&self.timeline, operations));
        }
        page.push_str("<h3>Checked</h3><table>");
        for check in &self.checks {
            let (class, word) = if check.held { ("passed", "held") } else { ("failed", "FAILED") };
            let (what, found) = (escape(&check.what), escape(&check.found));
            let _ = write!(page, "<tr><td>{what}<td class={class}>{word}<td>{found}");
        }
        page.push_str("</table><h3>Measured</h3><table>");
        for (name, value) in self.rows() {
            let _ = write!(page, "<tr><td>{name}<td>{}", escape(&value));
        }
        page.push_str("</table><details><summary>Timeline</summary><table>");
        for entry in &self.timeline {
            let (who, what) = (escape(&entry.who), escape(&entry.what));
            let _ = write!(page, "<tr><td class=number>{:.1} ms<td>{who}<td>{what}", entry.at_ms);
        }
        page.push_str("</table></details>");
        page
    }

    /// The whole of what is left of the timeline and, larger, the time around the last fault.
    fn drawings(&self) -> Vec<Drawing> {
        let times = || self.timeline.iter().map(|entry| entry.at_ms);
        let (first_ms, last_ms) = (times().fold(f64::MAX, f64::min), times().fold(0.0, f64::max));
        let mut drawings = vec![Drawing::new("the whole drill", first_ms.min(last_ms), last_ms, false)];
        if let Some(round) = self.rounds.last() {
            let after_ms = (round.blackout_ms.unwrap_or(0.0) * 3.0).max(LEAST_AFTER_MS);
            let from_ms = round.at_ms - after_ms / 3.0;
            drawings.push(Drawing::new("around the last fault", from_ms, round.at_ms + after_ms, true));
        }
        drawings
    }
}

/// How much time after a fault is drawn at least.
const LEAST_AFTER_MS: f64 = 150.0;
/// How pages of drills look.
pub const STYLE: &str = "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:1100px;color:#222}\
    table{border-collapse:collapse}th{text-align:left;padding-right:.9em}td{padding:.2em .9em .2em 0;border-bottom:1px solid #ddd}\
    .number{text-align:right}.passed{color:#0a7d33}.failed{color:#c01c28}.skipped{color:#986a00}\
    svg{width:100%;background:#fafafa;border:1px solid #ddd;margin-bottom:1em}svg text{font-size:11px;fill:#555}\
    .grid{stroke:#e2e2e2}circle{fill:#1c5fc0;fill-opacity:.45}\
    line.fault{stroke:#c01c28}line.agent{stroke:#0a7d33;stroke-dasharray:3 3}\
    text.fault{fill:#c01c28}text.agent{fill:#0a7d33}";

/// Text as it may stand in HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('\'', "&#39;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;

    #[test]
    fn the_page_escapes_what_it_shows() {
        let page = report().html(&[]);
        assert!(page.contains("kill &lt;primary&gt;") && !page.contains("<primary>"));
    }
}
