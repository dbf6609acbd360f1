//! What became of all scenarios: a table, JSON, and JUnit's XML.

use std::fmt::Write as _;

use serde::Serialize;

use super::escape;
use crate::drill::history::Operation;
use crate::drill::report::Report;

/// One play of a scenario.
pub struct ScenarioResult {
    /// The scenario.
    pub name: String,
    /// What it is about.
    pub description: String,
    /// How long it took, in seconds.
    pub took_s: f64,
    /// How often it was begun again because of a false alarm.
    pub false_starts: u32,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a scenario.
pub enum Outcome {
    /// It was played to its end, or as far as it went.
    Played(Box<Report>, Vec<Operation>),
    /// It could not begin: why.
    Failed(String),
    /// This host lacks something for it: what.
    Skipped(String),
}

impl ScenarioResult {
    /// In a word.
    pub fn verdict(&self) -> &'static str {
        match &self.outcome {
            Outcome::Played(report, _) if report.passed() => "passed",
            Outcome::Skipped(_) => "skipped",
            Outcome::Played(..) | Outcome::Failed(_) => "FAILED",
        }
    }

    /// Whether it is as expected, as far as it could be played here.
    pub fn is_well(&self) -> bool {
        self.verdict() != "FAILED"
    }

    /// What is wrong, or why it was not played.
    pub fn reasons(&self) -> Vec<String> {
        match &self.outcome {
            Outcome::Failed(reason) | Outcome::Skipped(reason) => vec![reason.clone()],
            Outcome::Played(report, _) => report
                .checks
                .iter()
                .filter(|check| !check.held)
                .map(|check| format!("{}: {}", check.what, check.found))
                .collect(),
        }
    }

    /// Its row of the table, after the name and the verdict.
    fn figures(&self) -> [String; 5] {
        let Outcome::Played(report, _) = &self.outcome else { return Default::default() };
        let measures = &report.measures;
        let ms = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.0} ms"));
        let found = |what: &str| report.checks.iter().find(|check| check.what.starts_with(what));
        let lost = found("acknowledged operations lost").and_then(|check| check.found.split(' ').next());
        let digests = found("both sides were").map(|check| check.found.replace(" compared, 0 diverged", ""));
        [
            ms(measures.blackout_ms),
            ms(measures.detection_ms),
            ms(measures.takeover_ms),
            lost.filter(|lost| lost.parse::<u64>().is_ok()).unwrap_or("?").to_owned(),
            digests.unwrap_or_default(),
        ]
    }
}

const HEADS: [&str; 7] = ["scenario", "verdict", "blackout", "detection", "takeover", "lost", "digests"];

/// All rows, the heads first.
pub fn rows(results: &[ScenarioResult]) -> Vec<[String; 7]> {
    let heads = HEADS.map(str::to_owned);
    let row = |result: &ScenarioResult| {
        let [blackout, detection, takeover, lost, digests] = result.figures();
        [result.name.clone(), result.verdict().to_owned(), blackout, detection, takeover, lost, digests]
    };
    [heads].into_iter().chain(results.iter().map(row)).collect()
}

/// The table for a terminal, with the reasons of what failed, and the sum.
pub fn table(results: &[ScenarioResult]) -> String {
    let rows = rows(results);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEADS.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Words stand at the left, figures at the right.
            let _ =
                if column < 2 { write!(text, "{cell:<width$}  ") } else { write!(text, "{cell:>width$}  ") };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    for result in results.iter().filter(|result| result.verdict() != "passed") {
        for reason in result.reasons() {
            let _ = writeln!(text, "{} {}: {reason}", result.verdict(), result.name);
        }
    }
    let count = |verdict: &str| results.iter().filter(|result| result.verdict() == verdict).count();
    let (passed, failed, skipped) = (count("passed"), count("FAILED"), count("skipped"));
    let _ = write!(text, "{passed} passed, {failed} failed, {skipped} skipped");
    text
}

#[derive(Serialize)]
struct JsonResult<'a> {
    name: &'a str,
    description: &'a str,
    verdict: String,
    took_s: f64,
    false_starts: u32,
    reasons: Vec<String>,
    report: Option<&'a Report>,
}

/// Everything but the requests, as JSON.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn json(results: &[ScenarioResult]) -> serde_json::Result<String> {
    let scenarios: Vec<JsonResult<'_>> = results
        .iter()
        .map(|result| JsonResult {
            name: &result.name,
            description: &result.description,
            verdict: result.verdict().to_lowercase(),
            took_s: result.took_s,
            false_starts: result.false_starts,
            reasons: result.reasons(),
            report: match &result.outcome {
                Outcome::Played(report, _) => Some(report),
                Outcome::Failed(_) | Outcome::Skipped(_) => None,
            },
        })
        .collect();
    let passed = results.iter().all(ScenarioResult::is_well);
    Ok(format!("{:#}\n", serde_json::json!({ "passed": passed, "scenarios": scenarios })))
}

/// The results as CI servers read them: the XML of JUnit's ant task, one test case for each
/// scenario.
pub fn junit(results: &[ScenarioResult]) -> String {
    let count = |verdict: &str| results.iter().filter(|result| result.verdict() == verdict).count();
    let took_s: f64 = results.iter().map(|result| result.took_s).sum();
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        xml,
        "<testsuites><testsuite name=\"secondwind drill\" tests=\"{}\" failures=\"{}\" errors=\"0\" skipped=\"{}\" time=\"{took_s:.3}\">",
        results.len(),
        count("FAILED"),
        count("skipped"),
    );
    for result in results {
        let name = escape(&result.name);
        let _ = write!(xml, "<testcase classname=\"drill\" name=\"{name}\" time=\"{:.3}\">", result.took_s);
        let reasons = xml_text(&result.reasons().join("\n"));
        let first = xml_text(result.reasons().first().map_or("", String::as_str));
        let _ = match result.verdict() {
            "FAILED" => write!(xml, "<failure message=\"{first}\">{reasons}</failure>"),
            "skipped" => write!(xml, "<skipped message=\"{first}\"/>"),
            _ => Ok(()),
        };
        if let Outcome::Played(report, _) = &result.outcome {
            let _ = write!(xml, "<system-out>{}</system-out>", xml_text(&report.text()));
        }
        xml.push_str("</testcase>\n");
    }
    xml.push_str("</testsuite></testsuites>\n");
    xml
}

/// Text as it may stand in XML, which has no place for most control characters.
fn xml_text(text: &str) -> String {
    escape(text).replace(|letter: char| letter.is_control() && !matches!(letter, '\n' | '\t'), " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::report::tests::report;

    fn result(name: &str, outcome: Outcome) -> ScenarioResult {
        let description = "what <happens>".to_owned();
        ScenarioResult { name: name.to_owned(), description, took_s: 1.5, false_starts: 0, outcome }
    }

    fn results() -> Vec<ScenarioResult> {
        let mut passed = report();
        passed.checks[1].held = true;
        vec![
            result("good", Outcome::Played(Box::new(passed), vec![])),
            result("bad", Outcome::Played(Box::new(report()), vec![])),
            result("never", Outcome::Failed("no \"port\" &\u{1b} no luck".into())),
            result("elsewhere", Outcome::Skipped("no Debian".into())),
        ]
    }

    #[test]
    fn the_table_says_what_failed_and_why() {
        let text = table(&results());
        assert!(text.contains("FAILED bad: no divergence: 1"), "{text}");
        assert!(text.ends_with("1 passed, 2 failed, 1 skipped"), "{text}");
    }

    #[test]
    fn junit_counts_and_escapes() {
        let xml = junit(&results());
        assert!(xml.contains("tests=\"4\" failures=\"2\" errors=\"0\" skipped=\"1\""), "{xml}");
        assert!(xml.contains("no &quot;port&quot; &amp;  no luck"), "{xml}");
        assert_eq!(xml.matches("<testcase").count(), 4);
        assert_eq!(xml.matches("</testcase>").count(), 4);
    }

    #[test]
    fn one_failure_is_a_failure_of_all() {
        let json: serde_json::Value = serde_json::from_str(&json(&results()).unwrap()).unwrap();
        assert_eq!(json["passed"], false);
        assert_eq!(json["scenarios"][0]["verdict"], "passed");
        assert_eq!(json["scenarios"][3]["verdict"], "skipped");
    }
}
