//! All scenarios on one HTML page that needs nothing else.

use std::fmt::Write as _;

use super::escape;
use super::results::{Outcome, ScenarioResult, rows};
use crate::drill::page::STYLE;

/// The page: the table, and for each scenario its drawn timeline, checks and figures.
pub fn page(results: &[ScenarioResult]) -> String {
    let well = results.iter().all(ScenarioResult::is_well);
    let verdict = if well { "passed" } else { "failed" };
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>secondwind drill: {verdict}</title>\
         <style>{STYLE}</style><h1>secondwind drill <span class={verdict}>{verdict}</span></h1><table>"
    );
    for (number, row) in rows(results).into_iter().enumerate() {
        page.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let cell = escape(cell);
            let _ = match (number, column) {
                (0, _) => write!(page, "<th>{cell}"),
                (_, 0) => write!(page, "<td><a href='#{cell}'>{cell}</a>"),
                (_, 1) => write!(page, "<td class={}>{cell}", cell.to_lowercase()),
                _ => write!(page, "<td class=number>{cell}"),
            };
        }
    }
    page.push_str(
        "</table><p>In the drawings each dot is an answered request: across, when it was made; \
         upwards, how long its answer took.</p>",
    );
    for result in results {
        section(&mut page, result);
    }
    page.push_str("</html>\n");
    page
}

fn section(page: &mut String, result: &ScenarioResult) {
    let (name, verdict) = (escape(&result.name), result.verdict());
    let class = verdict.to_lowercase();
    let description = escape(&result.description);
    let _ =
        write!(page, "<h2 id='{name}'>{name} <span class={class}>{verdict}</span></h2><p>{description}</p>");
    match &result.outcome {
        Outcome::Played(report, operations) => page.push_str(&report.details(operations)),
        Outcome::Failed(reason) | Outcome::Skipped(reason) => {
            let _ = write!(page, "<p class={class}>{}</p>", escape(reason));
        }
    }
}
