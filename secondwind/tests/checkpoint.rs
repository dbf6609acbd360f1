//! Checkpoint files from the command line: a machine goes on from its file, a recording of it
//! replays, and what is not what was signed is refused in one line before anything runs.

// Helpers of tests unwrap as tests do.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use log_format::Event;
use serde_json::Value;

/// A folder of its own for everything that a user has.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Desk {
        Desk(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_secondwind"));
        command.args(words).current_dir(self.0.path()).stdin(Stdio::null());
        command.env("XDG_RUNTIME_DIR", self.0.path()).env("XDG_CONFIG_HOME", self.path("config"));
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("the program runs")
    }

    /// Runs it to its success.
    #[track_caller]
    fn good(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.good(words)).expect("it prints JSON")
    }

    /// Runs it, and checks that it fails with one line that holds all of `parts`.
    #[track_caller]
    fn refused(&self, words: &[&str], parts: &[&str]) {
        let output = self.run(words);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {errors}");
        assert_eq!(errors.trim_end().lines().count(), 1, "{words:?}: one line, not {errors:?}");
        for part in parts {
            assert!(errors.contains(part), "{words:?}: {part:?} is not in {errors:?}");
        }
        assert!(output.stdout.is_empty(), "nothing ran");
    }

    /// The built-in guest, running.
    fn ledger(&self, name: &str) -> Running {
        let words = ["run", "--guest", "ledger", "--net", "none", "--name", name, "--append", "dirty=8:4"];
        self.start(name, &words)
    }

    fn start(&self, name: &str, words: &[&str]) -> Running {
        let child = self.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let running = Running(child);
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.run(&["status", "--json"]).stdout.windows(name.len()).any(|part| part == name.as_bytes())
        {
            assert!(Instant::now() < deadline, "{name} does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        running
    }
}

/// A machine that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The entropy that was injected first into a recorded machine.
fn entropy_of(dir: &Path) -> Vec<u8> {
    let reader = store::LogReader::open(dir).unwrap();
    for batch in reader {
        for logged in &batch.unwrap().batch().events {
            if let Event::Entropy(seed) = &logged.event {
                return seed.to_vec();
            }
        }
    }
    panic!("no entropy was logged")
}

#[test]
fn a_machine_goes_on_from_its_file_and_its_recording_replays() {
    let desk = Desk::new();
    let mut running = desk.ledger("guest");
    let full = desk.json(&["checkpoint", "guest", "full.swc", "--json"]);
    assert!(full["pause_ns"].as_u64() > Some(0) && full["seconds"].as_f64() > Some(0.0), "{full}");
    assert_eq!(full["bytes"].as_u64(), Some(std::fs::metadata(desk.path("full.swc")).unwrap().len()));
    desk.good(&["checkpoint", "guest", "one.swc", "--base", "full.swc"]);
    let last = desk.json(&["checkpoint", "guest", "two.swc", "--base", "one.swc", "--stop", "--json"]);
    assert!(last["base_units"].as_u64() > Some(0), "{last}");
    assert!(running.0.wait().unwrap().success(), "--stop ends the machine");

    let found = desk.json(&["restore", "two.swc", "--verify", "--json"]);
    assert_eq!((&found["digest"], &found["icount"]), (&last["digest"], &last["icount"]));
    assert_eq!(found["files"].as_array().map(Vec::len), Some(3));

    let mut seeds = Vec::new();
    for dir in ["rec-a", "rec-b"] {
        let report = format!("{dir}.json");
        let words =
            ["restore", "two.swc", "--record", dir, "--for", "0.5", "--away", "3600", "--report", &report];
        desk.good(&words);
        let report: Value = serde_json::from_slice(&std::fs::read(desk.path(&report)).unwrap()).unwrap();
        assert!(report["first_instruction_s"].as_f64() > Some(0.0), "{report}");
        assert!(report["guest_ns"].as_u64() > last["guest_ns"].as_u64().map(|ns| ns + 3_600_000_000_000));
        seeds.push(entropy_of(&desk.path(dir)));
    }
    assert_ne!(seeds[0], seeds[1], "two machines from one file have different entropy");
    // The recording needs nothing but its own folder.
    for file in ["one.swc", "two.swc"] {
        std::fs::remove_file(desk.path(file)).unwrap();
    }
    desk.good(&["log", "verify", "rec-a"]);
    let replayed = desk.json(&["replay", "rec-a", "--json"]);
    assert!(replayed["digests_verified"].as_u64() >= Some(1), "{replayed}");
    desk.refused(&["replay", "rec-a", "--to", "1"], &["begins at icount"]);
    std::fs::rename(desk.path("full.swc"), desk.path("rec-a/start.swc")).unwrap();
    desk.refused(&["replay", "rec-a"], &["not the checkpoint at which this log starts"]);
}

#[test]
fn a_state_comes_out_of_a_recording() {
    let desk = Desk::new();
    let append = "dirty=8:4 poweroff-after=1";
    desk.good(&["record", "rec", "--guest", "ledger", "--net", "none", "--append", append]);
    let whole = desk.json(&["replay", "rec", "--json"]);
    let middle = (whole["instructions"].as_u64().unwrap() / 2).to_string();
    let made = desk.json(&["checkpoint", "--recording", "rec", "--to", &middle, "at.swc", "--json"]);
    let there = desk.json(&["replay", "rec", "--to", &middle, "--json"]);
    assert_eq!(made["digest"], there["digest"]);
    assert_eq!(desk.run(&["restore", "at.swc"]).status.code(), Some(0), "the guest powers off by itself");
    desk.refused(
        &["checkpoint", "--recording", "rec", "--to", "999999999999", "late.swc"],
        &["not 999999999999"],
    );
    assert!(!desk.path("late.swc").exists() && !desk.path("late.swc.partial").exists());
}

#[test]
fn files_that_are_not_what_was_signed_are_refused() {
    let desk = Desk::new();
    let _running = desk.ledger("guest");
    desk.good(&["keygen", "--sign", "other.key"]);
    desk.good(&["keygen", "--encrypt", "secret.key"]);
    desk.good(&["keygen", "--encrypt", "wrong.key"]);
    desk.good(&["checkpoint", "guest", "own.swc"]);
    desk.good(&["checkpoint", "guest", "more.swc", "--base", "own.swc"]);
    desk.good(&["checkpoint", "guest", "other.swc", "--sign-key", "other.key", "--encrypt", "secret.key"]);

    desk.refused(&["restore", "other.swc", "--decrypt", "secret.key"], &["not trusted", "--trust"]);
    let trusted = ["restore", "other.swc", "--trust", "other.key.pub", "--verify"];
    desk.refused(&trusted, &["encrypted", "--decrypt"]);
    desk.refused(&[&trusted[..], &["--decrypt", "wrong.key"]].concat(), &["another secret key"]);
    desk.good(&[&trusted[..], &["--decrypt", "secret.key"]].concat());

    let whole = std::fs::read(desk.path("own.swc")).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 40) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        std::fs::write(desk.path("flipped.swc"), &flipped).unwrap();
        desk.refused(&["restore", "flipped.swc", "--for", "1"], &["flipped.swc"]);
    }
    for len in [0, 10, 63, 64, 100, 231, 232, whole.len() / 2, whole.len() - 1] {
        std::fs::write(desk.path("cut.swc"), &whole[..len]).unwrap();
        desk.refused(&["restore", "cut.swc", "--for", "1"], &["cut.swc"]);
    }
    std::fs::rename(desk.path("own.swc"), desk.path("moved.swc")).unwrap();
    desk.refused(&["restore", "more.swc"], &["own.swc", "--base"]);
    desk.refused(
        &["restore", "more.swc", "--base", "other.swc", "--decrypt", "secret.key"],
        &["another checkpoint"],
    );
    desk.good(&["restore", "more.swc", "--base", "moved.swc", "--verify"]);
}

#[test]
fn wrong_words_are_one_line() {
    let desk = Desk::new();
    desk.refused(&["checkpoint", "vm.swc"], &["no machine"]);
    desk.refused(&["restore", "absent.swc"], &["absent.swc"]);
    std::fs::write(desk.path("text"), "hello").unwrap();
    desk.refused(&["restore", "text"], &["not a checkpoint file"]);
    let _running = desk.ledger("guest");
    desk.refused(&["checkpoint", "nobody", "vm.swc"], &["nobody"]);
    desk.refused(&["checkpoint", "guest", "gone/vm.swc"], &["gone/vm.swc"]);
    desk.refused(&["checkpoint", "guest", "vm.swc", "--base", "absent.swc"], &["absent.swc"]);
    desk.refused(&["checkpoint", "guest", "vm.swc", "--sign-key", "text"], &["text", "keygen"]);
    desk.refused(&["checkpoint", "guest", "vm.swc", "--encrypt", "text"], &["text", "keygen"]);
    desk.refused(&["stop", "nobody"], &["nobody"]);
    desk.good(&["checkpoint", "guest", "vm.swc"]);
    desk.refused(&["restore", "vm.swc", "--away=-1"], &["--away"]);
    desk.refused(&["restore", "vm.swc", "--forward", "7000:7000"], &["--net user"]);
    desk.refused(&["restore", "vm.swc", "--disk", "text"], &["0 disks"]);
    desk.refused(&["restore", "vm.swc", "--trust", "text"], &["text"]);
    desk.refused(&["keygen", "--sign", "text"], &["text", "not overwritten"]);
    std::fs::write(desk.path("disk"), vec![1; 1 << 20]).unwrap();
    let words = ["run", "--guest", "ledger", "--net", "none", "--name", "direct", "--disk", "disk"];
    let _direct = desk.start("direct", &words);
    desk.refused(&["checkpoint", "direct", "direct.swc"], &["disk", "snapshot"]);
}

/// Files of the first version of the format: a full one and one that builds on it, both encrypted,
/// and one in the clear with the same state as the second.
#[test]
fn checkpoints_of_earlier_versions_restore() {
    let desk = Desk::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/checkpoint-v1");
    let path = |name: &str| golden.join(name).display().to_string();
    let (trust, secret) = (path("signer.pub"), path("secret.key"));
    for (name, digest, files) in [
        ("full.swc", "ee5fda74617f0e9a2b4f5a32ec737d6e", 1),
        ("incremental.swc", "a59ab7148607f4effc9f945c8b47cf64", 2),
        ("plain.swc", "a59ab7148607f4effc9f945c8b47cf64", 1),
    ] {
        let file = path(name);
        let words = ["restore", &file, "--trust", &trust, "--decrypt", &secret];
        let found = desk.json(&[&words[..], &["--verify", "--json"]].concat());
        assert_eq!((&found["digest"], found["semantics"].as_u64()), (&digest.into(), Some(1)), "{name}");
        assert_eq!(found["files"].as_array().map(Vec::len), Some(files), "{name}");
        let dir = format!("rec-{name}");
        let live = ["--net", "none", "--for", "0.2", "--record", &dir];
        desk.good(&[&words[..], &live].concat());
        desk.good(&["replay", &dir, "--decrypt", &secret]);
    }
}

/// SIGKILL at any moment of writing leaves the file that was there before.
#[test]
fn a_killed_writer_leaves_the_old_file() {
    let desk = Desk::new();
    let before = {
        let _running = desk.ledger("first");
        desk.good(&["checkpoint", "first", "vm.swc"]);
        std::fs::read(desk.path("vm.swc")).unwrap()
    };
    for delay_ms in [0, 2, 5, 10, 20] {
        let mut running = desk.ledger("second");
        let mut asking =
            desk.command(&["checkpoint", "second", "vm.swc"]).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        running.0.kill().unwrap();
        running.0.wait().unwrap();
        asking.wait().unwrap();
        desk.good(&["restore", "vm.swc", "--verify"]);
    }
    let _running = desk.ledger("third");
    desk.good(&["checkpoint", "third", "vm.swc"]);
    assert_ne!(std::fs::read(desk.path("vm.swc")).unwrap(), before);
    assert!(!desk.path("vm.swc.partial").exists(), "what a killed writer left is gone");
}
