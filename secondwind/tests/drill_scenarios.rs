//! Scenarios as a user plays them. The whole set is for `secondwind drill --all`; these are a
//! few of each kind, played by one drill.

#![allow(clippy::unwrap_used)] // Helpers are tests too.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

/// A few seconds each.
const PLAYED: [&str; 10] = [
    "kill-primary",
    "partition-to-backup",
    "corrupt-link",
    "pause-primary",
    "arbiter-gone-kill-backup",
    "rolling-upgrade",
    "checkpoint-kill-primary",
    "two-backups-kill-both-in-turn",
    "switchover",
    "kill-both",
];

fn drill(folder: &Path, words: &[&str]) -> Output {
    let temporary = folder.join("tmp");
    std::fs::create_dir_all(&temporary).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_secondwind"));
    command.arg("drill").args(words).env("TMPDIR", temporary).stdin(Stdio::null());
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout))
}

/// A scenario file with these steps and expectations.
fn scenario(folder: &TempDir, name: &str, rest: &str) -> String {
    let path = folder.path().join(format!("{name}.toml"));
    std::fs::write(&path, format!("name = \"{name}\"\ndescription = \"A test.\"\n{rest}")).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn scenarios_come_out_as_expected_and_are_reported_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (json, junit, html) = (file("report.json"), file("report.xml"), file("report.html"));
    let words = [&PLAYED[..], &["--seed", "3", "--json", &json, "--junit", &junit, "--html", &html]].concat();
    let output = drill(folder.path(), &words);
    assert!(output.status.success(), "{}", text(&output));

    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let scenarios = report["scenarios"].as_array().unwrap();
    let names: Vec<&str> = scenarios.iter().map(|scenario| scenario["name"].as_str().unwrap()).collect();
    assert_eq!(names, PLAYED);
    assert_eq!(report["passed"], true);
    for scenario in scenarios {
        let measures = &scenario["report"]["measures"];
        assert!(measures["blackout_ms"].as_f64().is_some(), "{scenario}");
        assert!(measures["acknowledged"].as_u64() > Some(100), "{scenario}");
    }
    let junit = std::fs::read_to_string(junit).unwrap();
    assert_eq!(junit.matches("<testcase").count(), PLAYED.len());
    assert!(junit.contains("failures=\"0\""), "{junit}");
    let html = std::fs::read_to_string(html).unwrap();
    assert!(html.matches("<svg").count() >= PLAYED.len());
    assert!(html.contains("SIGSTOP to a") && html.contains("a: fenced"));
    let left: Vec<_> = std::fs::read_dir(folder.path().join("tmp")).unwrap().collect();
    assert!(left.is_empty(), "files are left: {left:?}");
}

#[test]
fn what_does_not_come_out_as_expected_fails_the_drill_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = scenario(
        &folder,
        "wrong",
        "[[step]]\nkill = \"b\"\n[[step]]\nwait-for = \"answered\"\n\
         [expect]\ntakeovers = 1\nlive = \"b\"\nexit = { b = \"killed\" }\nholds = [\"a says role primary\"]\n",
    );
    let stuck = scenario(
        &folder,
        "stuck",
        "[[step]]\nwait-for = \"b live\"\nwithin-ms = 100\n[expect]\ntakeovers = 0\n",
    );
    let output = drill(folder.path(), &[&wrong, &stuck, "--seed", "3"]);
    let shown = text(&output);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    for expected in [
        "FAILED wrong: takeovers: 1: 0",
        "FAILED wrong: b is live at the end: a",
        "FAILED wrong: protected at the end",
        "FAILED stuck: every step was done: step 1: not \"b live\" within 0.1 s",
        "0 passed, 2 failed, 0 skipped",
    ] {
        assert!(shown.contains(expected), "{expected}:\n{shown}");
    }
    for unexpected in ["FAILED wrong: b is killed", "FAILED wrong: at the end", "FAILED wrong: every step"] {
        assert!(!shown.contains(unexpected), "{unexpected}:\n{shown}");
    }
    // Logs are kept for both, where they are looked for.
    assert_eq!(std::fs::read_dir(folder.path().join("tmp")).unwrap().count(), 2);
}

#[test]
fn an_interrupted_scenario_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let endless = scenario(
        &folder,
        "endless",
        "[[step]]\nwait-for = \"b live\"\nwithin-ms = 600000\n[expect]\ntakeovers = 0\n",
    );
    let temporary = folder.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_secondwind"));
    command.args(["drill", "--quiet", &endless]).env("TMPDIR", &temporary).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while agents_in(&temporary) < 2 {
        assert!(child.try_wait().unwrap().is_none(), "the drill ended too early");
        std::thread::sleep(Duration::from_millis(5));
    }
    let interrupt = Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
    assert!(interrupt.success());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(agents_in(&temporary), 0);
    let left: Vec<_> = std::fs::read_dir(temporary).unwrap().collect();
    assert!(left.is_empty(), "files are left: {left:?}");
}

/// How many processes have something of this folder on their command line.
fn agents_in(folder: &Path) -> usize {
    let folder = folder.to_str().unwrap();
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .filter(|line| String::from_utf8_lossy(line).contains(folder))
        .count()
}

#[test]
fn scenarios_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let output = drill(folder.path(), &["--list"]);
    let shown = text(&output);
    assert!(output.status.success(), "{shown}");
    assert!(PLAYED.iter().all(|name| shown.lines().any(|line| line.starts_with(name))), "{shown}");
}

#[test]
fn mistakes_are_told_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let unknown = scenario(&folder, "unknown", "[[step]]\nkil = \"a\"\n[expect]\ntakeovers = 0\n");
    let cases: [(&[&str], i32, &str); 5] = [
        (&[&unknown], 1, "unknown.toml:4: "),
        (&["no-such-scenario"], 1, "--list"),
        (&["--all", "--kill", "backup"], 2, "cannot be used with"),
        (&["--junit", "/tmp/x.xml"], 1, "--all"),
        (&["--all", "--upgrade-to", "/nonexistent/secondwind"], 1, "/nonexistent"),
    ];
    for (words, status, expected) in cases {
        let output = drill(folder.path(), words);
        let shown = text(&output);
        assert_eq!(output.status.code(), Some(status), "{words:?}: {shown}");
        assert!(shown.contains(expected), "{words:?}: {shown}");
    }
}
