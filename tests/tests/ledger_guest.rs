//! The built-in guest: its bytes against its source, and its service in QEMU.

use std::path::{Path, PathBuf};
use std::process::Command;

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs a script of the project; its words are part of the failure.
fn run(script: &str, arguments: &[&str]) {
    let output = Command::new(project().join(script)).args(arguments).output().expect("the script starts");
    assert!(
        output.status.success(),
        "{script} {arguments:?} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_ledger_elf_is_small() {
    let bytes = std::fs::metadata(project().join("guest/ledger/ledger.elf")).expect("it is committed").len();
    assert!(bytes < 128 * 1024, "{bytes} bytes");
}

#[test]
fn a_rebuild_gives_the_committed_bytes() {
    run("guest/ledger/build", &["--check"]);
}

#[test]
fn the_ledger_serves_in_qemu_and_over_a_harmful_network_namespace() {
    run("guest/ledger/test", &[]);
    run("guest/ledger/test", &["--lossy", "3"]);
}
