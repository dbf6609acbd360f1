//! A drill's timeline, drawn: requests as dots, events as lines with labels.

use std::fmt::Write as _;

use super::clock::ms;
use super::history::Operation;
use super::page::escape;
use super::progress::DRILL;
use super::report::TimelineEntry;

/// A stretch of a drill's time as a drawing.
pub struct Drawing {
    title: &'static str,
    from_ms: f64,
    to_ms: f64,
    /// Whether every event is drawn, or only those that matter most.
    is_detailed: bool,
}

const WIDTH: f64 = 1100.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 10.0;
const BOTTOM: f64 = 30.0;
/// Rows of labels above the dots.
const LABEL_ROWS: usize = 9;
const ROW_HEIGHT: f64 = 14.0;
/// Mean width of a letter in a label.
const LETTER_WIDTH: f64 = 5.6;
/// Range of the axis of delays.
const LEAST_US: f64 = 50.0;
const MOST_US: f64 = 2e6;
/// More dots than this are thinned out, slow requests kept.
const DOTS: usize = 6000;
const SLOW_NS: u64 = 20_000_000;
/// What agents say that matters most.
const NOTABLE: [&str; 8] =
    ["suspected", "took over", "protected", "backup lost", "alone", "fenced", "diverged", "guest ended"];
/// More events than this are not labelled, but for faults.
const LABELS: usize = 40;

impl Drawing {
    /// A drawing of what happened from one time to another.
    pub fn new(title: &'static str, from_ms: f64, to_ms: f64, is_detailed: bool) -> Drawing {
        Drawing { title, from_ms, to_ms: to_ms.max(from_ms + 1.0), is_detailed }
    }

    /// The drawing as an SVG element.
    pub fn svg(&self, timeline: &[TimelineEntry], operations: &[Operation]) -> String {
        let title = self.title;
        let mut svg = format!("<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='{title}'>");
        self.draw_axes(&mut svg);
        self.draw_requests(&mut svg, operations);
        self.draw_events(&mut svg, timeline);
        let _ = write!(svg, "<text x={LEFT} y={:.1}>{title}</text></svg>", HEIGHT - BOTTOM - 6.0);
        svg
    }

    fn x(&self, at_ms: f64) -> f64 {
        LEFT + (at_ms - self.from_ms) / (self.to_ms - self.from_ms) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, latency_us: f64) -> f64 {
        let top = LABEL_ROWS as f64 * ROW_HEIGHT + 12.0;
        let part = (latency_us.clamp(LEAST_US, MOST_US) / LEAST_US).log10() / (MOST_US / LEAST_US).log10();
        HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - top)
    }

    fn shows(&self, at_ms: f64) -> bool {
        (self.from_ms..=self.to_ms).contains(&at_ms)
    }

    fn draw_axes(&self, svg: &mut String) {
        let delays = [(100.0, "0.1 ms"), (1e3, "1 ms"), (1e4, "10 ms"), (1e5, "100 ms"), (1e6, "1 s")];
        for (latency_us, label) in delays {
            let (at, right) = (self.y(latency_us), WIDTH - RIGHT);
            let _ = write!(svg, "<line class=grid x1={LEFT} x2={right} y1={at:.1} y2={at:.1} />");
            let _ = write!(svg, "<text x=4 y={:.1}>{label}</text>", at + 4.0);
        }
        let span_ms = self.to_ms - self.from_ms;
        let steps_ms = [10.0, 20.0, 50.0, 100.0, 500.0, 1e3, 2e3, 5e3, 1e4, 6e4];
        let step_ms = steps_ms.into_iter().find(|step| span_ms / step <= 12.0).unwrap_or(span_ms / 10.0);
        let decimals = if step_ms < 100.0 { 2 } else { 1 };
        let first = (self.from_ms / step_ms).ceil() as u64;
        for tick in first..=(self.to_ms / step_ms) as u64 {
            let at_ms = tick as f64 * step_ms;
            let (x, y) = (self.x(at_ms) - 8.0, HEIGHT - 8.0);
            let _ = write!(svg, "<text x={x:.1} y={y:.1}>{:.decimals$} s</text>", at_ms / 1e3);
        }
    }

    fn draw_requests(&self, svg: &mut String, operations: &[Operation]) {
        let shown: Vec<(f64, u64)> = operations
            .iter()
            .filter_map(|operation| Some((ms(operation.called_ns), operation.latency_ns()?)))
            .filter(|(called_ms, _)| self.shows(*called_ms))
            .collect();
        let every = shown.len().div_ceil(DOTS).max(1);
        for (index, (called_ms, latency_ns)) in shown.into_iter().enumerate() {
            if index % every == 0 || latency_ns > SLOW_NS {
                let (x, y) = (self.x(called_ms), self.y(latency_ns as f64 / 1e3));
                let _ = write!(svg, "<circle cx={x:.1} cy={y:.1} r=1.5 />");
            }
        }
    }

    /// Events as lines, each with a label in the first row that has room for it.
    fn draw_events(&self, svg: &mut String, timeline: &[TimelineEntry]) {
        let is_notable = |entry: &&TimelineEntry| {
            let of_agent = || NOTABLE.iter().any(|start| entry.what.starts_with(start));
            self.shows(entry.at_ms) && (entry.who == DRILL || self.is_detailed || of_agent())
        };
        let events: Vec<&TimelineEntry> = timeline.iter().filter(is_notable).collect();
        let mut row_ends = [0.0f64; LABEL_ROWS];
        let is_crowded = events.len() > LABELS;
        for entry in events {
            let (x, class) = (self.x(entry.at_ms), if entry.who == DRILL { "fault" } else { "agent" });
            let text = label(entry);
            let width = text.chars().count() as f64 * LETTER_WIDTH;
            let is_right = x + width > WIDTH - RIGHT;
            let left = if is_right { x - width } else { x };
            let row = row_ends.iter().position(|end| *end <= left);
            let labelled = row.filter(|_| !is_crowded || entry.is_fault);
            let y = (labelled.unwrap_or(LABEL_ROWS - 1) + 1) as f64 * ROW_HEIGHT;
            let bottom = HEIGHT - BOTTOM;
            let _ = write!(svg, "<line class={class} x1={x:.1} x2={x:.1} y1={y} y2={bottom} />");
            if let Some(row) = labelled {
                row_ends[row] = left + width + 8.0;
                let anchor = if is_right { "end" } else { "start" };
                let text = escape(&text);
                let _ = write!(svg, "<text class={class} text-anchor={anchor} x={x:.1} y={y}>{text}</text>");
            }
        }
    }
}

/// Who did what, without the details.
fn label(entry: &TimelineEntry) -> String {
    if entry.who == DRILL {
        return entry.what.clone();
    }
    let what = entry.what.split(',').next().unwrap_or_default();
    format!("{}: {what}", entry.who)
}

#[cfg(test)]
mod tests {
    use super::super::history::{Answer, Request};
    use super::*;

    fn entry(at_ms: f64, who: &str, what: &str) -> TimelineEntry {
        TimelineEntry { at_ms, who: who.into(), what: what.into(), is_fault: false }
    }

    fn operation(called_ms: u64) -> Operation {
        let called_ns = called_ms * 1_000_000;
        let answer = Answer { value: None, length: None };
        Operation {
            connection: 0,
            key: "k".into(),
            request: Request::Get,
            called_ns,
            answer: Some((called_ns + 300_000, answer)),
        }
    }

    #[test]
    fn only_what_lies_in_its_time_is_drawn() {
        let timeline = [entry(5.0, DRILL, "too early"), entry(50.0, DRILL, "in time")];
        let svg = Drawing::new("a part", 10.0, 100.0, true).svg(&timeline, &[operation(5), operation(60)]);
        assert!(svg.contains("in time") && !svg.contains("too early"));
        assert_eq!(svg.matches("<circle").count(), 1);
    }

    #[test]
    fn labels_of_one_moment_stand_below_each_other() {
        let timeline: Vec<_> =
            (0..4).map(|index| entry(50.0, "a", &format!("protected, backup {index}"))).collect();
        let svg = Drawing::new("all", 0.0, 100.0, false).svg(&timeline, &[]);
        for row in 1..=4 {
            assert!(
                svg.contains(&format!("y={}>a: protected<", f64::from(row) * ROW_HEIGHT)),
                "row {row}: {svg}"
            );
        }
    }

    #[test]
    fn thousands_of_requests_are_thinned_out_but_slow_ones_stay() {
        let mut operations: Vec<Operation> = (0..20_000).map(|_| operation(50)).collect();
        if let Some((returned_ns, _)) = &mut operations[4001].answer {
            *returned_ns += SLOW_NS;
        }
        let svg = Drawing::new("all", 0.0, 100.0, false).svg(&[], &operations);
        let dots = svg.matches("<circle").count();
        assert!((DOTS / 2..=DOTS + 1).contains(&dots), "{dots}");
    }
}
