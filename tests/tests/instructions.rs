//! The host's instructions of fixed work, against those kept.

use std::process::Command;

#[test]
fn callgrind_counts_what_it_did_before() {
    // More than the program's own margin: libraries choose their code by the processor at hand.
    let output = Command::new(env!("CARGO_BIN_EXE_instructions"))
        .args(["--margin", "10"])
        .output()
        .expect("the program starts");
    let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(output.status.success(), "{said}{why}");
}
