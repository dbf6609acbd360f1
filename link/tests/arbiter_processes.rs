//! The lock file among processes: exactly one wins each step, and a killed one blocks nobody.

#![allow(clippy::unwrap_used)]

use link::arbiter::{Arbiter, CasOutcome, LockFileArbiter};
use link::arbitration::Record;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Tells [`contend`] the record's path, its name and the last term it may reach.
const TASK: &str = "LINK_TEST_CONTENDER";

fn start(path: &Path, name: &str, last_term: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "contend", "--ignored", "--nocapture"])
        .env(TASK, format!("{last_term} {name} {}", path.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn wins(child: Child) -> Vec<u64> {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let lines = output.stdout.lines().map(Result::unwrap);
    lines.filter_map(|line| line.strip_prefix("won ")?.parse().ok()).collect()
}

#[test]
#[ignore = "a process of the other tests, not a test"]
fn contend() {
    let task = std::env::var(TASK).unwrap();
    let mut words = task.splitn(3, ' ');
    let last_term: u64 = words.next().unwrap().parse().unwrap();
    let holder = words.next().unwrap().to_owned();
    let arbiter = LockFileArbiter::open(words.next().unwrap(), "web").unwrap();
    let mut current = arbiter.read().unwrap();
    loop {
        let term = current.as_ref().map_or(0, |record| record.term) + 1;
        if term > last_term {
            return;
        }
        let new = Record::alone(term, &holder);
        current = match arbiter.compare_and_set(current.as_ref(), &new).unwrap() {
            CasOutcome::Won => {
                println!("\nwon {term}");
                Some(new)
            }
            CasOutcome::Lost(found) => found,
        };
    }
}

#[test]
fn of_many_processes_exactly_one_wins_each_step() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.record");
    let names = ["a", "b", "c", "d"];
    let children: Vec<Child> = names.map(|name| start(&path, name, 60)).into();
    let mut terms: Vec<u64> = children.into_iter().flat_map(wins).collect();
    terms.sort_unstable();
    assert_eq!(terms, (1..=60).collect::<Vec<_>>());
}

#[test]
fn a_process_killed_at_any_moment_leaves_a_record_and_no_lock() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.record");
    let mut lowest = 0;
    for round in 0..10 {
        let mut child = start(&path, "a", u64::MAX);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Killed while it contends: after a few wins, wherever it is by then.
        for _ in 0..=2 * round {
            while !lines.next().unwrap().unwrap().starts_with("won ") {}
        }
        child.kill().unwrap();
        child.wait().unwrap();

        let arbiter = LockFileArbiter::open(&path, "web").unwrap();
        let current = arbiter.read().unwrap().unwrap();
        assert!(current.term > lowest, "{current} after term {lowest}");
        let new = Record::alone(current.term + 1, "b");
        let outcome = arbiter.compare_and_set(Some(&current), &new).unwrap();
        assert_eq!(outcome, CasOutcome::Won);
        lowest = new.term;
    }
}
