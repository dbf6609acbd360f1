//! A drill's report as an HTML page with a drawn timeline.

use std::fmt::Write as _;

use super::clock::ms;
use super::history::Operation;
use super::report::Report;

impl Report {
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
            operations.iter().map(|operation| ms(operation.called_ns)).fold(0.0, f64::max);
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
                let (at, up) = (x(ms(operation.called_ns)), y(latency_ns as f64 / 1e3));
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

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;")
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
