//! From what a drill saw to what it means: the figures and the checks.

use std::collections::BTreeMap;

use super::args::Fault;
use super::clock::ms;
use super::evidence::{ChainEvidence, Evidence, Round, Window};
use super::history::{Operation, Request, violations};
use super::report::{Check, Measures, Report, RoundFigures, TimelineEntry, percentile};

/// The stated limits, which `--strict` checks.
const BLACKOUT_BEYOND_DETECTION_MS: f64 = 100.0;
const ADDED_P50_US: f64 = 400.0;
const ADDED_P99_US: f64 = 2000.0;
const CHECKPOINT_PAUSE_MS: f64 = 5.0;
const MEMORY_OVERHEAD_MIB: f64 = 64.0;

/// Judges what was seen of a chain of faults.
pub fn judge(chain: &ChainEvidence, strict: bool) -> Report {
    let evidence = &chain.machine;
    let rounds: Vec<RoundFigures> = chain.rounds.iter().map(|round| figures_of(evidence, round)).collect();
    let measures = measure(evidence, &rounds);
    let mut checks = vec![whole(chain)];
    checks.extend(laws(evidence));
    checks.extend([digests(evidence, true), right_side(chain), one_live(evidence), protected_again(chain)]);
    if chain.fault == Fault::CutLink {
        checks.extend([loser_stopped(chain), nothing_stale(chain)]);
    }
    if strict {
        checks.extend(limits(&measures, &rounds));
    }
    Report {
        guest: evidence.guest.name().to_owned(),
        fault: chain.fault.name().to_owned(),
        seed: evidence.seed,
        timeline: timeline(evidence),
        measures,
        rounds,
        checks,
    }
}

/// What must hold for the clients whatever is broken.
pub fn laws(evidence: &Evidence) -> [Check; 3] {
    [nothing_lost(evidence), nothing_broken(evidence), linearizable(evidence)]
}

/// The drill's steps and the agents' events in the order of time.
pub fn timeline(evidence: &Evidence) -> Vec<TimelineEntry> {
    let mut entries = evidence.steps.clone();
    for agent in &evidence.agents {
        entries.extend(agent.events.iter().map(|event| TimelineEntry {
            at_ms: ms(event.at_ns),
            who: agent.node.clone(),
            what: event.text(),
            is_fault: false,
        }));
    }
    entries.sort_by(|one, other| one.at_ms.total_cmp(&other.at_ms));
    entries
}

/// Events by which an agent says that it holds the other side for lost, the last of them
/// being the arbiter's word; see `timeline` in docs/operations.md.
pub const DETECTIONS: [&str; 2] = ["suspected", "backup-lost"];

fn figures_of(evidence: &Evidence, round: &Round) -> RoundFigures {
    let until_ns = round.answered_ns.unwrap_or(u64::MAX);
    let detected_ns = evidence
        .agents
        .iter()
        .filter(|agent| round.survivor() == Some(agent.node.as_str()))
        .flat_map(|agent| &agent.events)
        .filter(|event| DETECTIONS.contains(&event.event.as_str()))
        .map(|event| event.at_ns)
        .find(|at_ns| (round.fault_ns..until_ns).contains(at_ns));
    let taken_over_ns = first_event_ns(evidence, &["took-over"], round.fault_ns..until_ns);
    let since_fault = |at_ns: u64| ms(at_ns.saturating_sub(round.fault_ns));
    RoundFigures {
        at_ms: ms(round.fault_ns),
        survivor: round.survivor().unwrap_or("nobody").to_owned(),
        term: round.record.as_ref().map_or(round.term, |record| record.term),
        blackout_ms: longest_silence_ns(&evidence.history, round.fault_ns..until_ns).map(ms),
        longest_wait_ms: longest_wait_ns(&evidence.history, round.fault_ns..until_ns).map(ms),
        detection_ms: detected_ns.map(since_fault),
        takeover_ms: taken_over_ns.map(since_fault),
        reprotected_ms: round.reprotected_ns.map(since_fault),
    }
}

/// When an agent first wrote down one of these events in this time.
pub fn first_event_ns(evidence: &Evidence, names: &[&str], window: Window) -> Option<u64> {
    let events = evidence.agents.iter().flat_map(|agent| &agent.events);
    let fitting =
        events.filter(|event| names.contains(&event.event.as_str()) && window.contains(&event.at_ns));
    fitting.map(|event| event.at_ns).min()
}

/// The longest time between two answers, whichever clients got them, that overlaps `window`.
pub fn longest_silence_ns(history: &[Operation], window: Window) -> Option<u64> {
    let mut answers_ns: Vec<u64> = history.iter().filter_map(returned_ns).collect();
    answers_ns.sort_unstable();
    answers_ns
        .windows(2)
        .filter(|pair| pair[1] > window.start && pair[0] < window.end)
        .map(|pair| pair[1] - pair[0])
        .max()
}

/// The longest wait for an answer among the requests under way at some time in `window`.
pub fn longest_wait_ns(history: &[Operation], window: Window) -> Option<u64> {
    let is_under_way = |operation: &&Operation| {
        operation.called_ns < window.end
            && returned_ns(operation).is_some_and(|returned_ns| returned_ns > window.start)
    };
    history.iter().filter(is_under_way).filter_map(Operation::latency_ns).max()
}

fn returned_ns(operation: &Operation) -> Option<u64> {
    operation.answer.as_ref().map(|(returned_ns, _)| *returned_ns)
}

/// The figures of a machine's life, with the worst of its faults.
pub fn measure(evidence: &Evidence, rounds: &[RoundFigures]) -> Measures {
    let mut unprotected = latencies_us(&evidence.history, std::slice::from_ref(&evidence.unprotected));
    let mut protected = latencies_us(&evidence.history, &evidence.protected);
    let protected_ns: u64 = evidence.protected.iter().map(|window| window.end - window.start).sum();
    let statuses = || evidence.agents.iter().map(|agent| &agent.seen.status);
    let worst = |figure: fn(&RoundFigures) -> Option<f64>| rounds.iter().filter_map(figure).reduce(f64::max);
    let overhead = evidence.agents.iter().filter_map(|agent| agent.seen.overhead_bytes).max();
    Measures {
        blackout_ms: worst(|round| round.blackout_ms),
        detection_ms: worst(|round| round.detection_ms),
        takeover_ms: worst(|round| round.takeover_ms),
        longest_wait_ms: worst(|round| round.longest_wait_ms),
        acknowledged: evidence.history.iter().filter(|operation| operation.answer.is_some()).count() as u64,
        requests_per_s: protected.len() as f64 / (protected_ns as f64 / 1e9).max(1e-9),
        unprotected_p50_us: percentile(&mut unprotected, 50.0),
        unprotected_p99_us: percentile(&mut unprotected, 99.0),
        protected_p50_us: percentile(&mut protected, 50.0),
        protected_p99_us: percentile(&mut protected, 99.0),
        false_alarms: u64::from(evidence.false_alarms),
        digests_compared: statuses().map(|status| status.digests_compared).sum(),
        outputs_compared: statuses().map(|status| status.outputs_compared).sum(),
        log_bytes: statuses().map(|status| status.log_bytes).sum(),
        checkpoint_pause_ms: statuses()
            .filter_map(|status| status.checkpoint_pause_us)
            .max()
            .map(|us| us as f64 / 1e3),
        memory_overhead_mib: overhead.map(|bytes| bytes as f64 / f64::from(1 << 20)),
    }
}

/// Response delays of the requests that were made and answered within one of the windows.
fn latencies_us(history: &[Operation], windows: &[Window]) -> Vec<f64> {
    let within = |operation: &&Operation| {
        windows.iter().any(|window| {
            operation.called_ns >= window.start
                && returned_ns(operation).is_some_and(|at_ns| at_ns < window.end)
        })
    };
    history
        .iter()
        .filter(within)
        .filter_map(|operation| operation.latency_ns().map(|latency_ns| latency_ns as f64 / 1e3))
        .collect()
}

fn whole(chain: &ChainEvidence) -> Check {
    let done = chain.rounds.iter().filter(|round| round.reprotected_ns.is_some()).count();
    let found = match &chain.machine.halted {
        Some(reason) => reason.clone(),
        None => format!("{done} of {}", chain.rounds_planned),
    };
    let held = chain.machine.halted.is_none() && done == chain.rounds_planned as usize;
    Check::new("every fault was made and got over", held, found)
}

/// Acknowledged puts that the read-back contradicts: a value that was overwritten before, by
/// a put that began after the value's own was answered, or none at all.
pub fn lost_puts(history: &[Operation], read_back: &[Operation]) -> usize {
    let mut puts: BTreeMap<&str, Vec<(&str, &Operation)>> = BTreeMap::new();
    for operation in history {
        if let Request::Put(value) = &operation.request {
            puts.entry(&operation.key).or_default().push((value, operation));
        }
    }
    let found: BTreeMap<&str, Option<&str>> = read_back
        .iter()
        .filter_map(|get| Some((get.key.as_str(), get.answer.as_ref()?.1.value.as_deref())))
        .collect();
    let mut lost = 0;
    for (key, puts) in puts {
        let Some(found) = found.get(key) else { continue };
        // When the value that is there was written at the latest; before everything if there
        // is none, or one that nobody wrote.
        let written_ns = puts
            .iter()
            .find(|(value, _)| Some(*value) == *found)
            .map_or(0, |(_, put)| returned_ns(put).unwrap_or(u64::MAX));
        let is_lost = |(value, put): &&(&str, &Operation)| {
            put.answer.is_some() && Some(*value) != *found && put.called_ns > written_ns
        };
        lost += puts.iter().filter(is_lost).count();
    }
    lost
}

fn nothing_lost(evidence: &Evidence) -> Check {
    let (held, found) = match &evidence.read_back {
        Ok(read_back) => {
            let lost = lost_puts(&evidence.history, read_back);
            (lost == 0, format!("{lost} lost, {} keys read back", read_back.len()))
        }
        Err(error) => (false, format!("the read-back failed: {error}")),
    };
    Check::new("acknowledged operations lost: 0", held, found)
}

fn nothing_broken(evidence: &Evidence) -> Check {
    let found = match evidence.broken.first() {
        Some(first) => format!("{}; first: {first}", evidence.broken.len()),
        None => "0".to_owned(),
    };
    Check::new("connections broken: 0", evidence.broken.is_empty(), found)
}

fn linearizable(evidence: &Evidence) -> Check {
    let mut all = evidence.history.clone();
    all.extend(evidence.read_back.iter().flatten().cloned());
    let violations = violations(&all);
    let found = match violations.first() {
        Some(first) => format!("{} violations; first: {first}", violations.len()),
        None => format!("{} operations", all.len()),
    };
    Check::new("the clients' history is linearizable", violations.is_empty() && !all.is_empty(), found)
}

/// No digest differed, and, where `some` must be, some were compared.
pub fn digests(evidence: &Evidence, some: bool) -> Check {
    let statuses = || evidence.agents.iter().map(|agent| &agent.seen.status);
    let compared: u64 = statuses().map(|status| status.digests_compared).sum();
    let told: u64 = statuses().map(|status| status.digests_diverged).sum();
    let written = evidence.agents.iter().flat_map(|agent| &agent.events);
    let diverged = told.max(written.filter(|event| event.event == "diverged").count() as u64);
    let found = format!("{compared} compared, {diverged} diverged");
    Check::new("both sides were the same machine", (compared > 0 || !some) && diverged == 0, found)
}

fn right_side(chain: &ChainEvidence) -> Check {
    let is_right = |round: &&Round| match chain.fault {
        Fault::KillPrimary => round.was_taken_over(),
        Fault::KillBackup => round.went_alone(),
        Fault::CutLink => round.was_taken_over() != round.went_alone(),
    };
    let right = chain.rounds.iter().filter(is_right).count();
    let what = match chain.fault {
        Fault::KillPrimary => "the backup took over, in the next term",
        Fault::KillBackup => "the primary went on, in its term",
        Fault::CutLink => "exactly one side went on",
    };
    let found = format!("{right} of {}", chain.rounds.len());
    Check::new(what, right == chain.rounds.len() && right > 0, found)
}

/// One machine says that it is live, and the arbiter says so too.
pub fn one_live(evidence: &Evidence) -> Check {
    let holder = evidence.record.as_ref().map(|record| record.holder.clone());
    let held = evidence.live_nodes.len() == 1 && evidence.live_nodes.first() == holder.as_ref();
    let found = match evidence.live_nodes.as_slice() {
        [] => "none".to_owned(),
        nodes => nodes.join(", "),
    };
    Check::new("one live machine at the end, the arbiter's", held, found)
}

fn protected_again(chain: &ChainEvidence) -> Check {
    let again = chain.rounds.iter().filter(|round| round.reprotected_ns.is_some()).count();
    let held = again == chain.rounds.len() && again > 0;
    let found = format!("{again} of {}", chain.rounds.len());
    Check::new("protected again without a command", held, found)
}

fn loser_stopped(chain: &ChainEvidence) -> Check {
    let stopped = chain.rounds.iter().filter(|round| round.loser_stopped == Some(true)).count();
    let found = format!("{stopped} of {}", chain.rounds.len());
    Check::new("the side that lost stopped", stopped == chain.rounds.len() && stopped > 0, found)
}

fn nothing_stale(chain: &ChainEvidence) -> Check {
    let found = format!("{} datagrams", chain.stale_at_end);
    Check::new("the stale side is silent at the end", chain.stale_at_end == 0, found)
}

/// The stated limits, for a quiet machine.
fn limits(measures: &Measures, rounds: &[RoundFigures]) -> Vec<Check> {
    let beyond = rounds.iter().map(|round| Some(round.blackout_ms? - round.detection_ms?));
    let beyond: Option<Vec<f64>> = beyond.collect();
    let worst_ms = beyond.and_then(|all| all.into_iter().reduce(f64::max));
    vec![
        at_most("blackout beyond detection", worst_ms, BLACKOUT_BEYOND_DETECTION_MS, " ms"),
        at_most("added response delay, p50", measures.added_p50_us(), ADDED_P50_US, " us"),
        at_most("added response delay, p99", measures.added_p99_us(), ADDED_P99_US, " us"),
        at_most("checkpoint pause at the join", measures.checkpoint_pause_ms, CHECKPOINT_PAUSE_MS, " ms"),
        at_most("false alarms", Some(measures.false_alarms as f64), 0.0, ""),
        at_most("memory beyond the guest's", measures.memory_overhead_mib, MEMORY_OVERHEAD_MIB, " MiB"),
    ]
}

fn at_most(what: &str, found: Option<f64>, limit: f64, unit: &str) -> Check {
    let shown = found.map_or("not measured".to_owned(), |value| format!("{value:.1}{unit}"));
    Check::new(format!("{what}: at most {limit}{unit}"), found.is_some_and(|value| value <= limit), shown)
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
