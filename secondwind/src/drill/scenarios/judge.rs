//! From what was seen of a scenario to its verdict.

use std::os::unix::process::ExitStatusExt;

use super::file::{Exit, Scenario};
use super::play::{Fault, Played};
use super::step::Host;
use crate::drill::clock::ms;
use crate::drill::evidence::Evidence;
use crate::drill::report::{Check, Report, RoundFigures};
use crate::drill::verdict::{
    DETECTIONS, digests, first_event_ns, laws, longest_silence_ns, longest_wait_ns, measure, one_live,
    timeline,
};

/// Judges what was seen.
pub fn judge(scenario: &Scenario, played: &Played) -> Report {
    let machine = &played.machine;
    let ends = played.faults.iter().skip(1).map(|fault| fault.at_ns).chain([played.end_ns]);
    let rounds: Vec<RoundFigures> =
        played.faults.iter().zip(ends).map(|(fault, end_ns)| figures_of(machine, fault, end_ns)).collect();
    let mut measures = measure(machine, &rounds);
    if rounds.is_empty() {
        measures.blackout_ms = None;
    }
    let mut checks = vec![whole(played)];
    checks.extend(laws(machine));
    checks.extend([digests(machine, scenario.expect.digests), one_live(machine), one_in_a_term(played)]);
    checks.push(silent(played));
    checks.extend(takeovers(scenario, played));
    checks.extend(live(scenario, machine));
    checks.extend(scenario.expect.fenced.iter().map(|host| fenced(*host, played)));
    checks.extend(scenario.expect.exit.iter().map(|(host, exit)| exited(*host, *exit, machine)));
    checks.extend(protected(scenario, played));
    checks.extend(scenario.expect.blackout_ms.map(|limit_ms| blackout(limit_ms, measures.blackout_ms)));
    checks.extend(played.held.iter().map(|(condition, held)| {
        Check::new(format!("at the end: {condition}"), *held, if *held { "it is so" } else { "it is not so" })
    }));
    Report {
        guest: scenario.guest.name().to_owned(),
        fault: scenario.name.clone(),
        seed: machine.seed,
        timeline: timeline(machine),
        measures,
        rounds,
        checks,
    }
}

/// What came of a fault until `end_ns`, when the next one was made or the load ended.
fn figures_of(machine: &Evidence, fault: &Fault, end_ns: u64) -> RoundFigures {
    let window = fault.at_ns..end_ns;
    let since = |at_ns: u64| ms(at_ns.saturating_sub(fault.at_ns));
    let event = |names: &[&str]| first_event_ns(machine, names, window.clone());
    let lost_ns = event(&["took-over", "backup-lost"]);
    RoundFigures {
        at_ms: ms(fault.at_ns),
        survivor: fault.survivor.clone().unwrap_or_else(|| "nobody".to_owned()),
        term: fault.term,
        blackout_ms: longest_silence_ns(&machine.history, window.clone()).map(ms),
        longest_wait_ms: longest_wait_ns(&machine.history, window.clone()).map(ms),
        detection_ms: event(&DETECTIONS).map(since),
        takeover_ms: event(&["took-over"]).map(since),
        reprotected_ms: lost_ns
            .and_then(|lost_ns| first_event_ns(machine, &["protected"], lost_ns..u64::MAX))
            .map(since),
    }
}

fn whole(played: &Played) -> Check {
    let (done, planned) = played.done;
    let found = match &played.machine.halted {
        Some(reason) => reason.clone(),
        None => format!("{done} of {planned}"),
    };
    Check::new("every step was done", played.machine.halted.is_none() && done == planned, found)
}

fn one_in_a_term(played: &Played) -> Check {
    let found = match played.doubled.first() {
        Some(term) => format!("two nodes said that they are live in term {term}"),
        None => "at every look".to_owned(),
    };
    Check::new("never two live machines in a term", played.doubled.is_empty(), found)
}

fn silent(played: &Played) -> Check {
    let found = format!("{} datagrams", played.stale_at_end);
    Check::new("a stale side is silent at the end", played.stale_at_end == 0, found)
}

fn takeovers(scenario: &Scenario, played: &Played) -> Option<Check> {
    let expected = scenario.expect.takeovers?;
    let term = played.machine.record.as_ref().map_or(0, |record| record.term);
    let found = term.saturating_sub(played.first_term);
    Some(Check::new(format!("takeovers: {expected}"), found == expected, found.to_string()))
}

fn live(scenario: &Scenario, machine: &Evidence) -> Option<Check> {
    let host = scenario.expect.live?;
    let held = machine.live_nodes == [host.to_string()];
    let found =
        if machine.live_nodes.is_empty() { "nobody".to_owned() } else { machine.live_nodes.join(", ") };
    Some(Check::new(format!("{host} is live at the end"), held, found))
}

fn fenced(host: Host, played: &Played) -> Check {
    let held = played.fenced.contains(&host);
    let found = if held { "it does" } else { "it says nothing of it" };
    Check::new(format!("{host} knows that another one took over"), held, found)
}

fn exited(host: Host, expected: Exit, machine: &Evidence) -> Check {
    let node = host.to_string();
    let last = machine.agents.iter().rfind(|agent| agent.node == node);
    let exit = last.and_then(|agent| agent.seen.exit);
    let (held, found) = match exit {
        None => (false, "it runs, or was never started".to_owned()),
        Some(status) => {
            let held = match expected {
                Exit::Killed => status.signal().is_some(),
                Exit::Status(code) => status.code() == Some(code),
            };
            (held, status.to_string())
        }
    };
    let expected = match expected {
        Exit::Killed => "is killed".to_owned(),
        Exit::Status(code) => format!("ends with exit status {code}"),
    };
    Check::new(format!("{host} {expected}"), held, found)
}

fn protected(scenario: &Scenario, played: &Played) -> Option<Check> {
    let found = format!("by {} backups", played.protected_by);
    scenario.expect.protected.then(|| Check::new("protected at the end", played.protected_by > 0, found))
}

fn blackout(limit_ms: f64, found_ms: Option<f64>) -> Check {
    let found = found_ms.map_or("not measured".to_owned(), |found_ms| format!("{found_ms:.0} ms"));
    Check::new(
        format!("blackout at most {limit_ms} ms"),
        found_ms.is_some_and(|found| found <= limit_ms),
        found,
    )
}
