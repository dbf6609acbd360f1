//! Drills as a user runs them: the built program, real processes, SIGKILL.

#![allow(clippy::unwrap_used)] // Helpers are tests too.

use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

/// Drills measure; two at a time on a small host would measure each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A place for one drill: its temporary files and its report.
struct Stage {
    folder: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Stage {
    fn new() -> Stage {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("tmp")).unwrap();
        Stage { folder, _turn: turn }
    }

    fn temporary(&self) -> std::path::PathBuf {
        self.folder.path().join("tmp")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_secondwind"));
        command.arg("drill").args(arguments).env("TMPDIR", self.temporary()).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a drill that must pass and leave nothing behind; gives its report.
    fn pass(&self, arguments: &[&str]) -> Value {
        let json = self.folder.path().join("report.json");
        let output = self.command(arguments).arg("--json").arg(&json).output().unwrap();
        let shown =
            format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{arguments:?}:\n{shown}");
        assert!(shown.contains("verdict: PASSED"), "{shown}");
        self.assert_nothing_is_left();
        let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
        assert_eq!(report["passed"], true);
        report
    }

    fn assert_nothing_is_left(&self) {
        let left: Vec<_> =
            std::fs::read_dir(self.temporary()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "files are left: {left:?}");
        assert_eq!(self.processes(), Vec::<String>::new(), "processes are left");
    }

    /// Command lines of the processes that work in this stage's folder.
    fn processes(&self) -> Vec<String> {
        let folder = self.folder.path().to_str().unwrap().to_owned();
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains(&folder))
            .collect()
    }
}

fn rounds(report: &Value) -> &[Value] {
    report["rounds"].as_array().unwrap()
}

#[test]
fn the_guest_outlives_its_primary() {
    let stage = Stage::new();
    let page = stage.folder.path().join("drill.html");
    let kept = stage.folder.path().join("kept");
    let report =
        stage.pass(&["--seed", "7", "--html", page.to_str().unwrap(), "--keep", kept.to_str().unwrap()]);
    assert_eq!(report["seed"], 7);
    assert_eq!(rounds(&report)[0]["survivor"], "b");
    assert_eq!(rounds(&report)[0]["term"], 2);
    let measures = &report["measures"];
    for figure in
        ["blackout_ms", "detection_ms", "protected_p99_us", "checkpoint_pause_ms", "memory_overhead_mib"]
    {
        assert!(measures[figure].as_f64().is_some(), "{figure}: {measures}");
    }
    assert!(measures["log_bytes"].as_u64() > Some(0) && measures["digests_compared"].as_u64() > Some(0));
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg") && page.contains("SIGKILL to the primary a"));
    for file in ["a.log", "b.timeline.jsonl", "history.json", "report.json", "report.html"] {
        assert!(kept.join(file).exists(), "{file}");
    }
    assert!(!kept.join("keys").exists(), "keys are never kept");
}

#[test]
fn the_guest_does_not_mind_the_loss_of_its_backup() {
    let report = Stage::new().pass(&["--kill", "backup"]);
    assert_eq!(rounds(&report)[0]["survivor"], "a");
    assert_eq!(rounds(&report)[0]["term"], 1);
}

#[test]
fn after_a_partition_exactly_one_side_goes_on() {
    let report = Stage::new().pass(&["--cut", "link"]);
    let survivor = rounds(&report)[0]["survivor"].as_str().unwrap();
    assert!(["a", "b"].contains(&survivor), "{survivor}");
}

#[test]
fn kill_after_kill_on_the_same_connections() {
    let report = Stage::new().pass(&["--repeat", "4"]);
    let survivors: Vec<&str> =
        rounds(&report).iter().map(|round| round["survivor"].as_str().unwrap()).collect();
    assert_eq!(survivors, ["b", "c", "d", "e"]);
}

#[test]
fn debian_and_redis_outlive_their_primary() {
    if !debian_is_there() {
        return;
    }
    let report = Stage::new().pass(&["--guest", "debian", "--repeat", "2"]);
    assert_eq!(report["guest"], "debian");
}

#[test]
fn debian_and_redis_on_a_disk_outlive_their_primary() {
    if !debian_is_there() {
        return;
    }
    let report = Stage::new().pass(&["--guest", "debian", "--disk", "64M", "--kills", "2"]);
    assert_eq!(rounds(&report).len(), 2);
}

/// Whether guest/debian/build has been run; tests/run does so before this.
fn debian_is_there() -> bool {
    let output = Command::new(env!("CARGO_BIN_EXE_secondwind"))
        .args(["run", "--guest", "debian", "--net", "none", "--for", "0.001"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let missing = errors.contains("guest/debian/build");
    if missing {
        eprintln!(
            "debian drill NOT RUN: the Debian guest is not there; run tests/run, or guest/debian/build"
        );
    }
    !missing
}

#[test]
fn misuse_is_told_in_one_line_before_anything_starts() {
    let stage = Stage::new();
    let cases: [(&[&str], i32, &str); 5] = [
        (&["--kill", "backup", "--cut", "link"], 2, "cannot be used with"),
        (&["--kill", "everything"], 2, "possible values"),
        (&["--repeat", "0"], 2, "--repeat"),
        (&["--memory", "lots"], 1, "256M"),
        (&["--json", "/nonexistent/report.json"], 1, "/nonexistent"),
    ];
    for (arguments, status, expected) in cases {
        let output = stage.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {errors}");
        assert!(errors.contains(expected), "{arguments:?}: {errors}");
        if status == 1 {
            assert_eq!(errors.lines().count(), 1, "{errors}");
        }
    }
    stage.assert_nothing_is_left();
}

#[test]
fn a_guest_that_cannot_boot_ends_the_drill_with_the_reason() {
    let stage = Stage::new();
    let empty = stage.folder.path().join("none");
    let output = stage.command(&["--guest", "debian"]).env("SECONDWIND_DEBIAN", &empty).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("guest/debian/build"), "{errors}");
    stage.assert_nothing_is_left();
}

#[test]
fn an_interrupted_drill_leaves_nothing_behind() {
    let stage = Stage::new();
    let mut child = start_with_agents(&stage);
    signal(&child, "INT");
    let status = end_of(&mut child);
    assert_eq!(status.code(), Some(1));
    stage.assert_nothing_is_left();
}

#[test]
fn the_agents_of_a_killed_drill_die_with_it() {
    let stage = Stage::new();
    let mut child = start_with_agents(&stage);
    signal(&child, "KILL");
    end_of(&mut child);
    // The kernel kills them at the moment the drill ends; they are gone when it has done so.
    while !stage.processes().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Starts a drill and waits until it has two agents.
fn start_with_agents(stage: &Stage) -> Child {
    let mut child = stage.command(&["--quiet"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while stage.processes().len() < 2 {
        assert!(child.try_wait().unwrap().is_none(), "the drill ended too early");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status().unwrap();
    assert!(status.success());
}

fn end_of(child: &mut Child) -> ExitStatus {
    child.wait().unwrap()
}
