//! The verdict on made-up evidence: one thing wrong at a time.

use link::arbitration::Record;

use super::super::agent_status::AgentStatus;
use super::super::agents::Seen;
use super::super::args::Guest;
use super::super::evidence::AgentEvidence;
use super::super::history::Answer;
use super::super::timeline::AgentEvent;
use super::*;

const MS: u64 = 1_000_000;

fn operation(connection: usize, at_ms: u64, request: Request, value: Option<&str>, length: u64) -> Operation {
    let answer = Answer { value: value.map(Into::into), length: Some(length) };
    Operation {
        connection,
        key: "k".into(),
        request,
        called_ns: at_ms * MS,
        answer: Some((at_ms * MS + MS / 2, answer)),
    }
}

fn put(at_ms: u64, value: &str, length: u64) -> Operation {
    operation(0, at_ms, Request::Put(value.into()), None, length)
}

fn get(at_ms: u64, value: Option<&str>, length: u64) -> Operation {
    operation(1, at_ms, Request::Get, value, length)
}

fn record(term: u64, holder: &str, backup: Option<&str>) -> Record {
    match backup {
        Some(backup) => Record::pair(term, holder, backup),
        None => Record::alone(term, holder),
    }
}

fn agent(node: &str, status: AgentStatus, events: Vec<AgentEvent>) -> AgentEvidence {
    let seen = Seen { status, overhead_bytes: Some(32 << 20), ..Seen::default() };
    AgentEvidence { node: node.into(), seen, events }
}

/// A primary killed at 100 ms, suspected at 150 ms, answers again at 180 ms.
fn evidence() -> ChainEvidence {
    let suspected = AgentEvent { at_ns: 150 * MS, event: "suspected".into(), details: serde_json::json!({}) };
    let backup = AgentStatus {
        is_known: true,
        role: "primary".into(),
        term: 2,
        digests_compared: 5,
        checkpoint_pause_us: Some(1000),
        ..AgentStatus::default()
    };
    let machine = Evidence {
        guest: Guest::Ledger,
        seed: 7,
        steps: vec![],
        unprotected: 0..50 * MS,
        protected: std::iter::once(50 * MS..100 * MS).collect(),
        halted: None,
        history: vec![put(10, "v1", 1), get(60, Some("v1"), 1), put(90, "v2", 2), get(180, Some("v2"), 2)],
        broken: vec![],
        read_back: Ok(vec![get(400, Some("v2"), 2)]),
        agents: vec![agent("a", AgentStatus::default(), vec![]), agent("b", backup, vec![suspected])],
        live_nodes: vec!["b".into()],
        record: Some(record(2, "b", Some("c"))),
        false_alarms: 0,
    };
    let round = Round {
        primary: "a".into(),
        backup: "b".into(),
        term: 1,
        fault_ns: 100 * MS,
        resolved_ns: Some(170 * MS),
        answered_ns: Some(185 * MS),
        reprotected_ns: Some(300 * MS),
        record: Some(record(2, "b", None)),
        loser_stopped: None,
    };
    let fault = Fault::KillPrimary;
    ChainEvidence { machine, fault, rounds_planned: 1, rounds: vec![round], stale_at_end: 0 }
}

/// The checks that failed, by their names' first words.
fn failed(evidence: &ChainEvidence) -> Vec<String> {
    let report = judge(evidence, false);
    report.checks.iter().filter(|check| !check.held).map(|check| check.what.clone()).collect()
}

#[test]
fn a_good_drill_passes_even_strictly() {
    let report = judge(&evidence(), true);
    let failed: Vec<_> = report.checks.iter().filter(|check| !check.held).collect();
    assert!(failed.is_empty(), "{failed:?}");
    let round = &report.rounds[0];
    assert_eq!(round.detection_ms, Some(50.0));
    assert_eq!(round.blackout_ms, Some(90.0), "from the answer at 90.5 ms to that at 180.5 ms");
    assert_eq!(round.reprotected_ms, Some(200.0));
}

#[test]
fn a_lost_put_is_counted() {
    let mut evidence = evidence();
    evidence.machine.read_back = Ok(vec![get(400, Some("v1"), 1)]);
    let report = judge(&evidence, false);
    let check = report.checks.iter().find(|check| check.what.starts_with("acknowledged operations lost"));
    assert!(check.is_some_and(|check| !check.held && check.found.starts_with("1 lost")), "{check:?}");
    assert!(failed(&evidence).iter().any(|what| what.contains("linearizable")));
}

#[test]
fn puts_at_the_same_time_may_be_in_either_order() {
    let history = [put(10, "v1", 1), put(10, "v2", 2)];
    assert_eq!(lost_puts(&history, &[get(400, Some("v1"), 2)]), 0);
    assert_eq!(lost_puts(&history, &[get(400, None, 2)]), 2);
}

#[test]
fn each_thing_that_goes_wrong_fails_its_check() {
    type Spoil = fn(&mut ChainEvidence);
    let cases: [(&str, Spoil); 8] = [
        ("every fault", |evidence| evidence.machine.halted = Some("no takeover".into())),
        ("connections broken", |evidence| evidence.machine.broken = vec!["connection 1: reset".into()]),
        ("acknowledged operations lost", |evidence| evidence.machine.read_back = Err("no answer".into())),
        ("both sides", |evidence| evidence.machine.agents[1].seen.status.digests_diverged = 1),
        ("both sides", |evidence| evidence.machine.agents[1].seen.status.digests_compared = 0),
        ("the backup took over", |evidence| evidence.rounds[0].record = Some(record(1, "a", None))),
        ("one live machine", |evidence| evidence.machine.live_nodes.push("a".into())),
        ("protected again", |evidence| evidence.rounds[0].reprotected_ns = None),
    ];
    for (what, spoil) in cases {
        let mut evidence = evidence();
        spoil(&mut evidence);
        assert!(failed(&evidence).iter().any(|failed| failed.starts_with(what)), "{what}");
    }
}

#[test]
fn after_a_cut_either_side_may_go_on_but_the_other_must_stop() {
    let mut evidence = evidence();
    evidence.fault = Fault::CutLink;
    evidence.rounds[0].loser_stopped = Some(true);
    assert_eq!(failed(&evidence), Vec::<String>::new());
    evidence.rounds[0].record = Some(record(1, "a", None));
    assert_eq!(failed(&evidence), Vec::<String>::new());
    evidence.stale_at_end = 1;
    evidence.rounds[0].loser_stopped = Some(false);
    assert_eq!(failed(&evidence).len(), 2);
}

#[test]
fn slowness_fails_only_a_strict_drill() {
    let spoils: [fn(&mut ChainEvidence); 2] = [
        |evidence| evidence.machine.agents[1].seen.overhead_bytes = Some(65 << 20),
        |evidence| evidence.machine.false_alarms = 1,
    ];
    for spoil in spoils {
        let mut evidence = evidence();
        spoil(&mut evidence);
        assert!(judge(&evidence, false).passed());
        assert!(!judge(&evidence, true).passed());
    }
}
