//! Roles of agents that are real processes: who leads, who follows, and who takes whose place.

mod common;

use common::{Cluster, secondwind};
use nix::sys::signal::Signal;

#[test]
fn a_primary_that_was_paused_goes_on_as_a_backup_and_back() {
    let mut cluster = Cluster::new();
    let nodes = ["a", "b"];
    cluster.start("primary", "a", &nodes, &[]);
    cluster.start("backup", "b", &nodes, &[]);
    cluster.wait_protected("a");

    // In both directions, without a command to anybody.
    for (leader, heir, term) in [("a", "b", 2), ("b", "a", 3), ("a", "b", 4)] {
        cluster.signal(leader, Signal::SIGSTOP);
        let status = cluster.wait_role(heir, "primary");
        assert_eq!(status["term"], term);
        cluster.signal(leader, Signal::SIGCONT);
        cluster.wait_role(leader, "backup");
        let status = cluster.wait_protected(heir);
        assert_eq!(status["term"], term);
        let events = cluster.events(heir);
        let shipped = events.iter().rev().find(|event| event["event"] == "checkpoint-shipped").unwrap();
        let (saved, sent) = (shipped["saved_bytes"].as_u64(), shipped["shipped_bytes"].as_u64());
        assert!(saved > sent, "what it has is not shipped: {shipped}");
    }
    assert!(cluster.errors("a").contains("goes on as a backup"), "{}", cluster.errors("a"));
}

#[test]
fn a_backup_without_the_disk_image_gets_it_from_the_primary() {
    let mut cluster = Cluster::new();
    let nodes = ["a", "b"];
    let image: Vec<u8> = (0..3_000_000u32 / 512 * 512).map(|at| (at / 4096 + at % 13) as u8).collect();
    std::fs::write(cluster.path("a.img"), &image).unwrap();
    let disk = |cluster: &Cluster, node: &str| {
        format!("{},snapshot", cluster.path(&format!("{node}.img")).display())
    };
    let (ours, theirs) = (disk(&cluster, "a"), disk(&cluster, "b"));
    cluster.start("primary", "a", &nodes, &["--disk", &ours]);
    cluster.wait_role("a", "primary");
    cluster.start("backup", "b", &nodes, &["--disk", &theirs, "--sync-rate", "4M"]);
    cluster.wait_protected("a");
    assert!(std::fs::read(cluster.path("b.img")).unwrap() == image);
    cluster.kill("b");
    cluster.wait("a", "alone", |status| status["state"] == "alone");
    // One that differs, too; what was there is kept.
    let mut other = image.clone();
    other[70_000] ^= 1;
    std::fs::write(cluster.path("b.img"), &other).unwrap();
    cluster.start("backup", "b", &nodes, &["--disk", &theirs]);
    cluster.wait_protected("a");
    assert!(std::fs::read(cluster.path("b.img")).unwrap() == image);
    assert!(std::fs::read(cluster.path("b.img.old")).unwrap() == other);
    assert!(cluster.errors("b").contains("65536 of"), "{}", cluster.errors("b"));
    cluster.kill("b");
    cluster.wait("a", "alone", |status| status["state"] == "alone");
    // An agent, too, and one that keeps the image in another format.
    for option in ["", ",format=qcow2"] {
        let path = cluster.path(&format!("c{}.img", option.len()));
        let disk = format!("{},snapshot{option}", path.display());
        cluster.start("agent", "b", &nodes, &["--disk", &disk]);
        cluster.wait_protected("a");
        let (ours, theirs) = (cluster.path("a.img"), format!("{}{option}", path.display()));
        let compared = secondwind(&["verify-disk", ours.to_str().unwrap(), &theirs]);
        assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stdout));
        cluster.kill("b");
        cluster.wait("a", "alone", |status| status["state"] == "alone");
    }
    assert_eq!(&std::fs::read(cluster.path("c13.img")).unwrap()[..4], b"QFI\xfb");
}

/// An overlay in which blocks 0 to 19 hold what tells them apart.
#[allow(clippy::unwrap_used)] // It is a part of tests.
fn written_overlay(cluster: &Cluster) {
    let block = |number: u32| {
        let mut block = vec![number as u8 + 1; 4096];
        block[..12].copy_from_slice(format!("BLOCK-{number:06}").as_bytes());
        block
    };
    let mut changed: Vec<u8> = (0..20).flat_map(block).collect();
    changed.resize(1 << 20, 0);
    let [base, changed_path] = ["base.img", "changed.img"].map(|name| cluster.path(name));
    std::fs::write(&base, vec![0; 1 << 20]).unwrap();
    std::fs::write(&changed_path, changed).unwrap();
    let mut convert = std::process::Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2", "-F", "raw", "-B"]);
    let made = convert.arg(&base).arg(&changed_path).arg(cluster.path("a.qcow2")).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn what_verify_disk_says_is_true_in_every_mode_and_needs_qemu() {
    for mode in ["replay", "hybrid", "checkpoint"] {
        let mut cluster = Cluster::new();
        written_overlay(&cluster);
        let nodes = ["a", "b"];
        for (command, node) in [("primary", "a"), ("backup", "b")] {
            let (base, overlay) = (cluster.path("base.img"), cluster.path(&format!("{node}.qcow2")));
            let disk = format!("{},overlay={}", base.display(), overlay.display());
            cluster.start(command, node, &nodes, &["--mode", mode, "--disk", &disk]);
        }
        let status = cluster.wait_protected("a");
        assert!(status["backups"][0]["resync"]["shipped_bytes"].as_u64() >= Some(20 * 4096), "{status}");
        let socket = cluster.socket("a").display().to_string();
        let verify = || {
            let output = secondwind(&["verify-disk", &socket, "--json"]);
            let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            (output.status.code(), found)
        };
        let (code, found) = verify();
        assert_eq!((code, found["equal"].as_bool()), (Some(0), Some(true)), "{mode}: {found}");
        assert!(found["written_blocks"].as_u64() >= Some(20), "{mode}: {found}");
        assert_eq!(found["backups"][0]["node"], "b");

        // A bit of block 7 flips on the disk of a.
        let path = cluster.path("a.qcow2");
        let overlay = std::fs::read(&path).unwrap();
        let at = overlay.windows(12).position(|bytes| bytes == b"BLOCK-000007").unwrap() + 100;
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[overlay[at] ^ 1], at as u64).unwrap();
        let (code, found) = verify();
        assert_eq!((code, found["equal"].as_bool()), (Some(3), Some(false)), "{mode}: {found}");
        assert_eq!(found["backups"][0]["first_blocks"], serde_json::json!([[0, 7]]), "{mode}: {found}");
    }
}

#[test]
fn without_other_nodes_a_primary_that_was_replaced_ends() {
    let mut cluster = Cluster::new();
    cluster.start("primary", "a", &[], &[]);
    cluster.start("backup", "b", &["a"], &[]);
    cluster.wait_protected("a");
    cluster.signal("a", Signal::SIGSTOP);
    cluster.wait_role("b", "primary");
    cluster.signal("a", Signal::SIGCONT);
    assert_eq!(cluster.wait_end("a").code(), Some(4), "{}", cluster.errors("a"));
}

#[test]
fn a_standby_takes_the_place_of_a_backup_that_is_lost() {
    let mut cluster = Cluster::new();
    let nodes = ["a", "b", "c"];
    cluster.start("primary", "a", &nodes, &[]);
    cluster.start("backup", "b", &nodes, &[]);
    cluster.wait_protected("a");
    cluster.start("backup", "c", &nodes, &[]);
    cluster.wait_role("c", "backup");
    cluster.kill("b");
    cluster.wait("c", "registered", |status| status["registered"] == true);
    cluster.wait_protected("a");

    // And it takes over, with nobody else left; the first one comes back by the same command.
    cluster.kill("a");
    cluster.wait_role("c", "primary");
    cluster.start("agent", "b", &nodes, &[]);
    cluster.wait_protected("c");
    cluster.kill("c");
    cluster.wait_role("b", "primary");
}

#[test]
fn an_agent_has_the_role_that_the_record_gives_it() {
    let mut cluster = Cluster::new();
    let nodes = ["a", "b"];
    cluster.start("agent", "b", &nodes, &[]);
    cluster.wait_role("b", "backup");
    cluster.start("agent", "a", &nodes, &["--first"]);
    cluster.wait_protected("a");
    // Both would be first: the record names the other one.
    cluster.kill("b");
    cluster.start("agent", "b", &nodes, &["--first"]);
    cluster.wait_role("b", "backup");
    cluster.wait_protected("a");
    // Alone in the record, it starts the machine again.
    cluster.kill("b");
    cluster.wait("a", "alone", |status| status["state"] == "alone");
    cluster.kill("a");
    cluster.start("agent", "a", &nodes, &[]);
    let status = cluster.wait_role("a", "primary");
    assert_eq!(status["term"], 2);
}

#[test]
fn every_node_keeps_a_log_that_replays_across_takeovers() {
    let mut cluster = Cluster::new();
    let nodes = ["a", "b"];
    let folder = |cluster: &Cluster, node: &str| cluster.path(&format!("{node}.log")).display().to_string();
    let burn = ["--append", "burn=20"];
    for (command, node) in [("primary", "a"), ("backup", "b")] {
        let log = folder(&cluster, node);
        cluster.start(command, node, &nodes, &[&burn[..], &["--log-dir", &log]].concat());
    }
    cluster.wait_protected("a");
    cluster.kill("a");
    cluster.wait_role("b", "primary");
    // It joins a machine that runs: its log begins with a checkpoint.
    std::fs::rename(folder(&cluster, "a"), cluster.path("a.first")).unwrap();
    let log = folder(&cluster, "a");
    cluster.start("backup", "a", &nodes, &[&burn[..], &["--log-dir", &log]].concat());
    let before = cluster.wait_protected("b")["sequence"].as_u64().unwrap();
    cluster.wait("b", "further", |status| status["sequence"].as_u64() > Some(before + 20));
    cluster.signal("b", Signal::SIGTERM);
    assert_eq!(cluster.wait_end("b").code(), Some(0), "{}", cluster.errors("b"));
    let took_over = cluster.wait_role("a", "primary")["sequence"].as_u64().unwrap();
    cluster.wait("a", "further", |status| status["sequence"].as_u64() > Some(took_over + 20));
    cluster.signal("a", Signal::SIGTERM);
    assert_eq!(cluster.wait_end("a").code(), Some(0), "{}", cluster.errors("a"));

    assert!(!cluster.path("b.log/start.checkpoint").exists(), "from the boot");
    assert!(cluster.path("a.log/start.checkpoint").exists());
    for (node, terms) in [("b", 2), ("a", 3)] {
        let log = folder(&cluster, node);
        for command in [&["log", "verify", &log][..], &["replay", &log]] {
            let output = secondwind(command);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{node}, term {terms}: {command:?}: {errors}");
        }
    }
    let output = secondwind(&["replay", &folder(&cluster, "a"), "--json"]);
    let replayed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(replayed.to_string().contains("digest"), "{replayed}");
}
