//! What a user gets who uses it wrongly: one line that says the way out, a status that is not
//! zero, and nothing half-done left behind.

use std::path::Path;
use std::process::{Command, Output};

fn secondwind(folder: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_secondwind"))
        .args(words)
        .current_dir(folder)
        .env("XDG_RUNTIME_DIR", folder)
        .stdin(std::process::Stdio::null())
        .output()
        .expect("the program runs")
}

/// Runs it, and checks that it fails with one line that holds all of `parts`.
#[track_caller]
fn refused(folder: &Path, words: &[&str], parts: &[&str]) {
    let output = secondwind(folder, words);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words:?}: {errors}");
    assert_eq!(errors.trim_end().lines().count(), 1, "{words:?}: one line, not {errors:?}");
    for part in parts {
        assert!(errors.contains(part), "{words:?}: {part:?} is not in {errors:?}");
    }
}

#[test]
fn a_file_that_is_no_kernel_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("kernel"), "this is no kernel").unwrap();
    refused(folder.path(), &["run", "--net", "none", "--kernel", "kernel"], &["the kernel"]);
    refused(folder.path(), &["run", "--net", "none", "--kernel", "absent"], &["cannot read absent"]);
    refused(folder.path(), &["run", "--guest", "windows"], &["windows", "ledger, debian or debian-disk"]);
    let recording = folder.path().join("rec");
    refused(folder.path(), &["record", "rec", "--net", "none", "--kernel", "kernel"], &["the kernel"]);
    assert!(!recording.exists(), "nothing half-done is left");
}

#[test]
fn sizes_that_fit_nothing_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("disk"), vec![0; 5000]).unwrap();
    refused(folder.path(), &["run", "--net", "none", "--disk", "disk"], &["5000 bytes", "truncate"]);
    let disk = |spec| ["run", "--net", "none", "--disk", spec];
    for (spec, said) in [("disk,if=virtio", "if=virtio"), ("disk,ro,snapshot", "ro and snapshot")] {
        let output = secondwind(folder.path(), &disk(spec));
        assert_eq!(output.status.code(), Some(2), "wrong usage");
        assert!(String::from_utf8_lossy(&output.stderr).contains(said), "{output:?}");
    }
    refused(folder.path(), &disk("absent.img"), &["cannot open the disk image absent.img"]);
    refused(folder.path(), &["run", "--net", "none", "--memory", "much"], &["\"much\"", "256M"]);
    refused(folder.path(), &["run", "--net", "none", "--harts", "99"], &["99"]);
}

#[test]
fn networks_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    refused(folder.path(), &["run", "--net", "carrier-pigeon"], &["carrier-pigeon", "tunnel:HOST:PORT"]);
    refused(folder.path(), &["run", "--net", "none", "--forward", "1:2"], &["--net user"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    refused(folder.path(), &["run", "--forward", &format!("{port}:7000")], &[&port.to_string()]);
}

#[test]
fn an_agent_says_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path();
    refused(run, &["primary", "--arbiter", "lock:arb"], &["no keys", "keygen"]);
    refused(run, &["primary", "--insecure", "--node", "a"], &["no arbiter", "lock:FILE"]);
    refused(run, &["primary", "--insecure", "--node", "a", "--arbiter", "coin"], &["coin", "manual"]);
    refused(
        run,
        &["primary", "--insecure", "--node", "a", "--arbiter", "lock:gone/arb"],
        &["does not exist"],
    );
    refused(run, &["backup", "--insecure", "--node", "b", "--arbiter", "manual"], &["--primary"]);
    refused(run, &["status"], &["no agent"]);
    std::fs::write(run.join("vm.toml"), "[pair]\nlissten = \"x\"\n").unwrap();
    refused(run, &["primary", "--config", "vm.toml"], &["vm.toml:2", "lissten"]);
}

#[test]
fn a_port_in_use_is_named_before_the_arbiter_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let words =
        ["primary", "--insecure", "--node", "a", "--net", "none", "--arbiter", "lock:arb", "--listen"];
    refused(folder.path(), &[&words[..], &[&address]].concat(), &[&address, "choose another"]);
    assert!(!folder.path().join("arb").exists(), "no term was claimed");
}

#[test]
fn keys_of_another_pair_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for pair in ["one", "two"] {
        assert!(secondwind(folder.path(), &["keygen", pair, "a"]).status.success());
    }
    refused(folder.path(), &["keygen", "one", "a"], &["exists"]);
    std::fs::copy(folder.path().join("two/a.key"), folder.path().join("one/a.key")).unwrap();
    let words = ["primary", "--keys", "one", "--net", "none", "--arbiter", "lock:arb"];
    refused(folder.path(), &words, &["a.key"]);
}

#[test]
fn a_recording_is_not_overwritten_and_its_damage_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let record = ["record", "rec", "--net", "none", "--guest", "ledger", "--append", "poweroff-after=1"];
    let output = secondwind(folder.path(), &record);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    refused(folder.path(), &record, &["rec"]);
    assert!(secondwind(folder.path(), &["log", "verify", "rec"]).status.success());
    let replayed = secondwind(folder.path(), &["replay", "rec", "--json"]);
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));

    let log = folder.path().join("rec/00000000000000000001.log");
    let mut bytes = std::fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    assert_eq!(secondwind(folder.path(), &["log", "verify", "rec"]).status.code(), Some(1));
    refused(folder.path(), &["replay", "nothing"], &["nothing"]);
}

#[test]
fn a_full_disk_leaves_nothing_half_done() {
    let folder = tempfile::tempdir().unwrap();
    // The limit of 16 KiB stands for a full disk: writes beyond it fail. The log's own test
    // (store) has the disk fill up at each of its writes.
    let script = "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\"";
    let output = Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_secondwind"), "record", "rec", "--net", "none"])
        .current_dir(folder.path())
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert_eq!(errors.trim_end().lines().count(), 1, "{errors}");
    assert!(errors.contains("free some space"), "{errors}");
    assert!(!folder.path().join("rec").exists(), "nothing half-done is left");
}
