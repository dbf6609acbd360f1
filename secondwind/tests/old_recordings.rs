//! Recordings of earlier versions replay on this one, with every digest and output equal.

use std::path::Path;
use std::process::Command;

#[test]
fn recordings_of_each_semantics_replay() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut replayed = 0;
    let folders = std::fs::read_dir(&golden).expect("there are recordings").map(Result::unwrap);
    for semantics in folders.filter(|folder| folder.file_name().to_string_lossy().starts_with("semantics-")) {
        for recording in std::fs::read_dir(semantics.path()).unwrap() {
            let recording = recording.unwrap().path();
            let output = Command::new(env!("CARGO_BIN_EXE_secondwind"))
                .args(["replay", "--json"])
                .arg(&recording)
                .output()
                .expect("the program starts");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {errors}", recording.display());
            let result: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
            assert!(result["digests_verified"].as_u64() >= Some(1), "{result}");
            assert!(result["outputs_verified"].as_u64() >= Some(10), "{result}");
            replayed += 1;
        }
    }
    assert!(replayed >= 1);
}
