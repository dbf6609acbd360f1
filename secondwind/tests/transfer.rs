//! Planned moves of a machine between agents that are real processes.

#![allow(clippy::unwrap_used)] // Helpers are tests too.

mod common;

use std::process::{Child, Command, Stdio};

use common::{Cluster, PROGRAM, secondwind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Runs a command on the agent of `node`: its exit status, what it printed as JSON, and its errors.
fn ask(cluster: &Cluster, node: &str, words: &[&str]) -> (Option<i32>, Value, String) {
    let socket = cluster.socket(node);
    let words = [&words[..1], &[socket.to_str().unwrap(), "--json"], &words[1..]].concat();
    let output = secondwind(&words);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default(), errors)
}

/// A migration that waits for its target.
fn begin_migration(cluster: &Cluster, from: &str, to: &str) -> Child {
    let socket = cluster.socket(from);
    let start = || {
        Command::new(PROGRAM)
            .args(["migrate", socket.to_str().unwrap(), "--json", "--to", to, "--join-within", "1000"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut migration = start();
    while !is_migrating(cluster, from) {
        // The question is a migration itself, and may have been there first.
        if migration.try_wait().unwrap().is_some() {
            migration = start();
        }
    }
    migration
}

/// Whether a migration is under way: another one is refused then.
fn is_migrating(cluster: &Cluster, node: &str) -> bool {
    ask(cluster, node, &["migrate", "--to", "z", "--join-within", "0"]).2.contains("already")
}

#[test]
fn a_machine_is_switched_over_there_and_back() {
    let mut cluster = Cluster::new();
    let nodes = ["a", "b"];
    cluster.start("primary", "a", &nodes, &["--append", "burn=20"]);
    cluster.start("backup", "b", &nodes, &["--append", "burn=20"]);
    let mut before = cluster.wait_protected("a")["icount"].as_u64().unwrap();
    for (from, to, named, term) in [("a", "b", true, 2), ("b", "a", false, 3)] {
        let words: &[&str] = if named { &["switchover", "--to", to] } else { &["switchover"] };
        let (code, result, errors) = ask(&cluster, from, words);
        assert_eq!(code, Some(0), "{errors}");
        assert_eq!((result["vm"].as_str(), result["to"].as_str()), (Some("vm"), Some(to)));
        assert!(result["downtime_ms"].as_f64() > Some(0.0), "{result}");
        assert!(result["total_ms"].as_f64() >= result["downtime_ms"].as_f64(), "{result}");
        // The old primary is the backup of the new one, with no command.
        let status = cluster.wait_protected(to);
        assert_eq!(status["term"], term);
        cluster.wait_role(from, "backup");
        let after = status["icount"].as_u64().unwrap();
        assert!(after > before, "the machine went on from {before}, to {after}");
        before = after;
    }
}

#[test]
fn a_switchover_that_cannot_be_leaves_all_as_it_is() {
    let mut cluster = Cluster::new();
    let nodes = ["a", "b"];
    cluster.start("primary", "a", &nodes, &[]);
    cluster.wait_role("a", "primary");
    for (words, said) in [
        (&["switchover"][..], "no backup"),
        (&["switchover", "--to", "b"], "b is no backup"),
        (&["switchover", "--to", "a"], "this very node"),
        (&["migrate", "--to", "b", "--join-within", "0.3"], "does not ask to join"),
    ] {
        let (code, _, errors) = ask(&cluster, "a", words);
        assert_eq!(code, Some(1), "{words:?}: {errors}");
        assert!(errors.contains(said), "{words:?}: {errors}");
        assert_eq!(errors.trim_end().lines().count(), 1, "{words:?}: one line, not {errors:?}");
    }
    cluster.start("backup", "b", &nodes, &[]);
    cluster.wait_protected("a");
    let (code, _, errors) = ask(&cluster, "b", &["switchover"]);
    assert_eq!(code, Some(1));
    assert!(errors.contains("this is a backup"), "{errors}");
    assert_eq!(cluster.wait_protected("a")["term"], 1);
}

#[test]
fn a_machine_is_migrated_and_the_source_ends() {
    let mut cluster = Cluster::new();
    let load = ["--append", "burn=30 dirty=2:4"];
    cluster.start("primary", "a", &[], &load);
    // Old enough to be joined by a checkpoint.
    let old = |status: &Value| status["icount"].as_u64() > Some(60_000_000);
    let before = cluster.wait("a", "old", old)["icount"].as_u64();
    // It waits for its target, so that all that goes over is counted.
    let migration = begin_migration(&cluster, "a", "b");
    cluster.start("backup", "b", &["a"], &load);
    let output = migration.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    // Two MiB, of which much is the same: a log alone would be a few kilobytes.
    assert!(result["sent_bytes"].as_u64() > Some(200_000), "its memory went over: {result}");
    assert_eq!(result["source_is_backup"], false);
    // Though this side was told no other node's address.
    assert!(result["downtime_ms"].as_f64() > Some(0.0), "{result}");
    assert_eq!(cluster.wait_end("a").code(), Some(0), "{}", cluster.errors("a"));
    let status = cluster.wait_role("b", "primary");
    assert!(status["icount"].as_u64() > before);

    // And back, to a node that comes up meanwhile, which the source then backs up.
    cluster.start("backup", "a", &["b"], &load);
    let (code, _, errors) = ask(&cluster, "b", &["migrate", "--to", "a", "--keep-source"]);
    assert_eq!(code, Some(0), "{errors}");
    cluster.wait_protected("a");
    cluster.wait_role("b", "backup");
}

#[test]
fn a_migration_makes_room_beside_the_backup_that_is_there() {
    let mut cluster = Cluster::new();
    let nodes = ["a", "b", "c"];
    cluster.start("primary", "a", &nodes, &[]);
    cluster.start("backup", "b", &nodes, &[]);
    cluster.wait_protected("a");
    cluster.start("backup", "c", &nodes, &[]);
    let (code, result, errors) = ask(&cluster, "a", &["migrate", "--to", "c"]);
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(result["to"], "c");
    assert_eq!(cluster.wait_end("a").code(), Some(0), "{}", cluster.errors("a"));
    // The one that was there is the backup of the new primary.
    cluster.wait_protected("c");
    cluster.wait("b", "registered", |status| status["registered"] == true);
}

#[test]
fn an_interrupted_migration_leaves_the_machine_where_it_was() {
    let mut cluster = Cluster::new();
    cluster.start("primary", "a", &[], &[]);
    cluster.wait_role("a", "primary");
    let mut waiting = begin_migration(&cluster, "a", "b");
    // As Ctrl-C does, which the children of a shell's background job ignore.
    kill(Pid::from_raw(waiting.id() as i32), Signal::SIGTERM).unwrap();
    assert!(!waiting.wait().unwrap().success());
    while is_migrating(&cluster, "a") {
        std::thread::yield_now();
    }
    cluster.start("backup", "b", &["a"], &[]);
    let status = cluster.wait_protected("a");
    assert_eq!((&status["role"], &status["term"]), (&"primary".into(), &1.into()));
}

#[test]
fn a_migration_whose_target_dies_leaves_the_machine_where_it_was() {
    let mut cluster = Cluster::new();
    let load = ["--append", "burn=30"];
    cluster.start("primary", "a", &[], &load);
    cluster.wait("a", "old", |status| status["icount"].as_u64() > Some(60_000_000));
    cluster.start("backup", "b", &["a"], &load);
    cluster.wait("a", "joined", |status| !status["backup"].is_null());
    // It joins, and neither acknowledges nor answers any more.
    cluster.signal("b", Signal::SIGSTOP);
    let socket = cluster.socket("a");
    let migration = Command::new(PROGRAM)
        .args(["migrate", socket.to_str().unwrap(), "--to", "b"])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    cluster.kill("b");
    let output = migration.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let status = cluster.wait("a", "alone", |status| status["state"] == "alone");
    assert_eq!(status["term"], 1);
}
