//! Debian with its root on ext4 on a virtio disk, and SQLite at work on it: recorded and
//! replayed bit for bit; and after a power cut, what was flushed is there.
//!
//! Needs the guest of guest/debian/build, qemu-img and e2fsck: `tests/run` sees to them.

mod common;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::Cluster;

fn secondwind() -> Command {
    Command::new(env!("CARGO_BIN_EXE_secondwind"))
}

/// The disk of the guest that comes along.
fn root_image() -> PathBuf {
    let cache = || {
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
        let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
        cache.join("secondwind/debian")
    };
    let path =
        std::env::var_os("SECONDWIND_DEBIAN").map_or_else(cache, PathBuf::from).join("debian-root.img");
    assert!(path.exists(), "{} is not there; run guest/debian/build first", path.display());
    path
}

/// Runs a program. What it printed; its status must be one of `statuses`.
fn run(command: &mut Command, statuses: &[i32]) -> String {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&stdout).into_owned();
    let code = status.code().unwrap_or(-1);
    assert!(
        statuses.contains(&code),
        "{command:?} gives {code}: {}{}",
        said.lines().rev().take(20).collect::<Vec<_>>().join("\n"),
        String::from_utf8_lossy(&stderr)
    );
    said
}

fn qemu_img<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> String {
    run(Command::new("qemu-img").args(arguments), &[0])
}

/// The rest of the last line that begins with `landmark`.
fn line<'a>(console: &'a str, landmark: &str) -> &'a str {
    let found = console.lines().rev().find_map(|line| line.strip_prefix(landmark));
    found.unwrap_or_else(|| panic!("no {landmark:?} in: {console}")).trim()
}

#[test]
fn debian_on_a_qcow2_disk_replays_its_sqlite_workload() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("root.qcow2");
    let raw = root_image();
    let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2"].map(OsStr::new);
    qemu_img(convert.into_iter().chain([raw.as_os_str(), image.as_os_str()]));
    let before = std::fs::read(&image).unwrap();
    let recording = folder.path().join("rec");

    let mut record = secondwind();
    record.arg("record").arg(&recording).args(["--guest", "debian-disk", "--net", "none"]);
    record.args(["--append", "secondwind.run=sqlite:2", "--disk"]);
    let recorded = run(record.arg(format!("{},serial=root", image.display())), &[0]);
    let verdict = line(&recorded, "SQLITE ");
    assert!(verdict.contains("integrity=ok"), "{verdict}");
    let trimmed = verdict.rsplit_once("trimmed=").and_then(|(_, bytes)| bytes.parse::<u64>().ok());
    assert!(trimmed.is_some_and(|bytes| bytes > 4 << 20), "the guest discards: {verdict}");
    assert!(before == std::fs::read(&image).unwrap(), "recording leaves the image alone");

    let replayed = run(secondwind().arg("replay").arg(&recording).arg("--json"), &[0]);
    let replayed: serde_json::Value = serde_json::from_str(&replayed).unwrap();
    let digests = replayed["digests_verified"].as_u64().unwrap();
    assert!(digests > 5, "{replayed}");
    assert!(replayed["outputs_verified"].as_u64() > Some(50), "{replayed}");

    // Another disk is another machine, and its replay is refused before it begins.
    let open = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
    open.set_len(before.len() as u64 / 2).unwrap();
    run(secondwind().arg("replay").arg(&recording), &[1]);
}

#[test]
fn debian_finds_what_sqlite_flushed_after_a_power_cut() {
    let folder = tempfile::tempdir().unwrap();
    let overlay = folder.path().join("mine.qcow2");
    let disk = format!("{},overlay={}", root_image().display(), overlay.display());
    let guest = |job: &str| {
        let mut command = secondwind();
        command.args(["run", "--guest", "debian-disk", "--net", "none", "--disk", &disk, "--append"]);
        command.arg(format!("secondwind.run={job}")).stdin(Stdio::null());
        command
    };
    let mut running = guest("sqlite:1000").stdout(Stdio::piped()).spawn().unwrap();
    let console = BufReader::new(running.stdout.take().unwrap());
    // Both journals have a round behind them; the kill falls into the next.
    let committed = console.lines().any(|line| line.is_ok_and(|line| line.contains("mode=delete round=2")));
    running.kill().unwrap();
    running.wait().unwrap();
    assert!(committed, "the guest ended before it worked");

    check_image(&overlay, folder.path());
    let after = run(&mut guest("sqlite-check"), &[0]);
    for (mode, least) in [("delete", 2), ("wal", 1)] {
        let found = line(&after, &format!("SQLITE-CHECK mode={mode} "));
        let rounds =
            found.strip_prefix("rounds=").and_then(|rest| rest.split(' ').next()?.parse::<u32>().ok());
        assert!(rounds >= Some(least) && found.contains("integrity=ok"), "mode {mode}: {found}");
    }
    let checked = qemu_img([OsStr::new("check"), overlay.as_os_str()]);
    assert!(checked.contains("No errors"), "a machine that ends closes its images: {checked}");
}

#[test]
fn debian_finds_what_it_flushed_before_its_primary_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let disk = |overlay: &str| format!("{},overlay={}", root_image().display(), path(overlay).display());
    let primary = |job: &str| {
        let mut command = secondwind();
        command.args(["primary", "--insecure", "--node", "a", "--listen", "127.0.0.1:0", "--arbiter"]);
        command.arg(format!("lock:{}", path("lock").display())).arg("--control").arg(path("socket"));
        command.args(["--guest", "debian-disk", "--net", "none", "--disk", &disk("mine.qcow2"), "--append"]);
        command.arg(format!("secondwind.run={job}")).stdin(Stdio::null());
        command
    };
    let mut running = primary("sqlite:1000").stdout(Stdio::piped()).spawn().unwrap();
    let console = BufReader::new(running.stdout.take().unwrap());
    let committed = console.lines().any(|line| line.is_ok_and(|line| line.contains("mode=delete round=2")));
    running.kill().unwrap();
    running.wait().unwrap();
    assert!(committed, "the guest ended before it worked");

    // What the kill left, once its journal is put into it.
    for name in ["qcow2", "qcow2.journal"] {
        std::fs::copy(path(&format!("mine.{name}")), path(&format!("killed.{name}"))).unwrap();
    }
    let verify = |other: &str, status: i32| {
        let mut verify = secondwind();
        verify.args(["verify-disk", &disk("killed.qcow2"), other, "--json"]);
        serde_json::from_str::<serde_json::Value>(&run(&mut verify, &[status])).unwrap()
    };
    let image = root_image();
    assert!(verify(&image.display().to_string(), 3)["differing_blocks"].as_u64() > Some(10));
    assert_eq!(verify(&disk("killed.qcow2"), 0)["equal"], true);
    assert!(!path("killed.qcow2.journal").exists());
    check_image(&path("killed.qcow2"), folder.path());

    let after = run(&mut primary("sqlite-check"), &[0]);
    for (mode, least) in [("delete", 2), ("wal", 1)] {
        let found = line(&after, &format!("SQLITE-CHECK mode={mode} "));
        let rounds =
            found.strip_prefix("rounds=").and_then(|rest| rest.split(' ').next()?.parse::<u32>().ok());
        assert!(rounds >= Some(least) && found.contains("integrity=ok"), "mode {mode}: {found}");
    }
    assert!(!path("mine.qcow2.journal").exists(), "a machine that ends closes its disks");
    check_image(&path("mine.qcow2"), folder.path());
}

#[test]
fn the_disks_of_a_pair_are_equal_also_after_one_side_was_away() {
    let mut cluster = Cluster::new();
    let nodes = ["a", "b"];
    let image = root_image().display().to_string();
    let start = |cluster: &mut Cluster, command: &str, node: &str| {
        let disk = format!("{image},overlay={}", cluster.path(&format!("{node}.qcow2")).display());
        let guest = ["--guest", "debian-disk", "--append", "secondwind.run=sqlite:1000", "--disk", &disk];
        cluster.start(command, node, &nodes, &guest);
    };
    let verify = |cluster: &Cluster, node: &str| -> serde_json::Value {
        let socket = cluster.socket(node).display().to_string();
        let output = common::secondwind(&["verify-disk", &socket, "--json"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors} {}", String::from_utf8_lossy(&output.stdout));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    start(&mut cluster, "primary", "a");
    start(&mut cluster, "backup", "b");
    cluster.wait_protected("a");
    let written = |found: &serde_json::Value| found["written_blocks"].as_u64().unwrap();
    let mut found = verify(&cluster, "a");
    while written(&found) < 100 {
        found = verify(&cluster, "a");
    }
    assert_eq!(found["backups"][0]["node"], "b");

    // It comes back as another process, with what its disk kept.
    cluster.kill("a");
    cluster.wait_role("b", "primary");
    start(&mut cluster, "backup", "a");
    cluster.wait_protected("b");
    let events = cluster.events("b");
    let shipped = events.iter().rev().find(|event| event["event"] == "checkpoint-shipped").unwrap();
    assert!(shipped["saved_bytes"].as_u64() > Some(100 * 4096), "{shipped}");
    assert!(written(&verify(&cluster, "b")) >= 100);
}

/// The image is whole but for space that a power cut may leave unused, and so is the file
/// system in it, once its journal is replayed.
fn check_image(overlay: &Path, folder: &Path) {
    run(Command::new("qemu-img").arg("check").arg(overlay), &[0, 3]);
    let raw = folder.join("cut.img");
    qemu_img([
        OsStr::new("convert"),
        OsStr::new("-O"),
        OsStr::new("raw"),
        overlay.as_os_str(),
        raw.as_os_str(),
    ]);
    run(Command::new("/usr/sbin/e2fsck").arg("-fp").arg(&raw), &[0, 1]);
    run(Command::new("/usr/sbin/e2fsck").arg("-fn").arg(&raw), &[0]);
}
