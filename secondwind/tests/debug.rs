//! `secondwind debug` under the real gdb (Debian package gdb-multiarch), and `secondwind diff` from
//! the command line, on a recording of two harts made here.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const SECONDWIND: &str = env!("CARGO_BIN_EXE_secondwind");

/// The program and its recording.
struct Recorded {
    _folder: tempfile::TempDir,
    elf: PathBuf,
    recording: PathBuf,
}

/// Built and recorded once for all tests of this file.
fn recorded() -> &'static Recorded {
    static RECORDED: OnceLock<Recorded> = OnceLock::new();
    RECORDED.get_or_init(|| {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/debug");
        let folder = tempfile::tempdir().expect("room for a folder");
        let (elf, recording) = (folder.path().join("program.elf"), folder.path().join("rec"));
        let compiled = Command::new("riscv64-unknown-elf-gcc")
            .args([
                "-g",
                "-O1",
                "-march=rv64imac_zicsr",
                "-mabi=lp64",
                "-mcmodel=medany",
                "-nostdlib",
                "-static",
            ])
            .args(["-Wl,--build-id=none", "-T"])
            .arg(sources.join("program.ld"))
            .arg("-o")
            .arg(&elf)
            .arg(sources.join("program.c"))
            .output()
            .expect("riscv64-unknown-elf-gcc is there: Debian package gcc-riscv64-unknown-elf");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let output = secondwind(&[
            "record".as_ref(),
            recording.as_os_str(),
            "--harts".as_ref(),
            "2".as_ref(),
            "--kernel".as_ref(),
            elf.as_os_str(),
        ]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        Recorded { _folder: folder, elf, recording }
    })
}

fn secondwind(arguments: &[&std::ffi::OsStr]) -> Output {
    Command::new(SECONDWIND).args(arguments).output().expect("it starts")
}

/// What gdb prints in batch mode, started by `debug --gdb` through a script that adds these commands.
fn gdb(commands: &[&str]) -> String {
    use std::os::unix::fs::PermissionsExt;
    let Recorded { elf, recording, .. } = recorded();
    let folder = tempfile::tempdir().expect("room for a folder");
    let script = folder.path().join("gdb");
    // Only once connected: the commands come behind those that `debug` gives.
    let quoted: Vec<String> = commands.iter().map(|command| format!("-ex '{command}'")).collect();
    let text = format!("#!/bin/sh\nexec gdb-multiarch -nx -batch \"$@\" {} 2>&1\n", quoted.join(" "));
    std::fs::write(&script, text).expect("room for a script");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("its owner may");
    let output = Command::new(SECONDWIND)
        .arg("debug")
        .arg(recording)
        .arg(format!("--gdb={}", script.display()))
        .arg("--symbols")
        .arg(elf)
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    format!("{text}{errors}")
}

/// Asserts that the parts come in this order.
fn assert_in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let Some(place) = rest.find(part) else { panic!("no {part:?} (in order) in:\n{text}") };
        rest = &rest[place + part.len()..];
    }
}

#[test]
fn gdb_on_a_compiled_program_goes_forth_and_back_between_breakpoints() {
    let text = gdb(&[
        "info threads",
        "break add",
        "continue",
        "continue",
        "continue",
        "info registers pc priv",
        "print/x $mhartid",
        "print total",
        "reverse-continue",
        "print total",
        "reverse-stepi",
        "stepi",
        "bt 1",
        "delete",
        "continue",
        "monitor where",
        "monitor console 2",
        "reverse-continue",
        "monitor where",
    ]);
    assert_in_order(
        &text,
        &[
            "* 1    Thread 1.1 (machine mode, pc 0x80000000)",
            "  2    Thread 1.2 (machine mode, pc 0x80000000)",
            "hit Breakpoint 1, add (number=number@entry=1)",
            "hit Breakpoint 1, add (number=number@entry=2)",
            "hit Breakpoint 1, add (number=number@entry=3)",
            "<add>",
            "prv:3 [Machine]",
            "$1 = 0x0",
            "$2 = 3",
            "hit Breakpoint 1, add (number=number@entry=2)",
            "$3 = 1",
            "program (hart=",
            "add (number=number@entry=2)",
            "#0  add (number=number@entry=2)",
            "No more reverse-execution history.",
            "21 console outputs before",
            "] round\n",
            "] done\n",
            "No more reverse-execution history.",
            "before instruction icount 0 at",
        ],
    );
}

#[test]
fn gdb_on_a_compiled_program_finds_who_wrote_a_value() {
    let text = gdb(&[
        "goto end",
        "print victim",
        "watch victim",
        "reverse-continue",
        "info symbol $pc",
        "print victim",
        "stepi",
        "print victim",
        "reverse-continue",
        "delete",
        "rwatch victim",
        "awatch turns[0]",
        "continue",
        "info symbol $pc",
    ]);
    assert_in_order(
        &text,
        &[
            "this is the end of the recording",
            "$1 = 99",
            "hit Hardware watchpoint 1: victim",
            "Old value = 99",
            "New value = 7",
            "culprit",
            "$2 = 7",
            "$3 = 99",
            "Hardware access (read/write) watchpoint 3: turns[0]",
            "hit Hardware access (read/write) watchpoint 3: turns[0]",
            "program + ",
        ],
    );
}

#[test]
fn gdb_on_a_compiled_program_steps_each_hart_and_refuses_to_write() {
    let text = gdb(&[
        "break culprit",
        "continue",
        "thread 2",
        "info registers pc",
        "stepi 3",
        "thread",
        "print $mhartid",
        "reverse-stepi 3",
        "info registers pc",
        "set var victim = 3",
        "set $a0 = 3",
        "monitor event prev",
        "monitor event next",
        "monitor goto nowhere",
        "monitor nonsense",
        "monitor xp 0x80000000 16",
        "monitor xp 0x1000",
        "monitor help",
    ]);
    let pc = |part: &str| {
        part.lines()
            .find(|line| line.starts_with("pc "))
            .map(|line| line.split_whitespace().nth(1).unwrap_or("").to_owned())
    };
    let (before, after) = text.split_once("[Current thread is 2").expect("hart 1 is stepped");
    assert!(pc(before).is_some(), "{text}");
    assert_eq!(pc(before), pc(after), "three steps of hart 1 forth and back:\n{text}");
    assert_in_order(
        &text,
        &[
            "hit Breakpoint 1, culprit (value=value@entry=99)",
            "[Current thread is 2",
            "$1 = 1",
            "Cannot access memory at address",
            "Could not write register \"a0\"",
            "behind ",
            "\"nowhere\" is no icount",
            "there is no command \"nonsense\"",
            "0x80000000: 73 25 40 f1",
            "are not all memory",
            "event next|prev",
        ],
    );
}

#[test]
fn gdb_on_a_compiled_program_leaves_the_recording_as_it_was() {
    let Recorded { recording, .. } = recorded();
    let replay = || secondwind(&["replay".as_ref(), recording.as_os_str(), "--json".as_ref()]);
    let digest = |output: Output| -> serde_json::Value {
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        result["digest"].clone()
    };
    let before = digest(replay());
    gdb(&["break add", "watch turns[0]", "continue", "continue", "reverse-continue"]);
    assert_eq!(digest(replay()), before);
}

#[test]
fn a_flipped_bit_in_a_compiled_program_is_narrowed_down_by_diff() {
    let Recorded { recording, .. } = recorded();
    // Register s2 of hart 0 counts the rounds; t6 of hart 1 is used by nobody.
    let flip = "1500000:1:x31:7";
    let replay =
        secondwind(&["replay".as_ref(), recording.as_os_str(), "--flip-bit".as_ref(), flip.as_ref()]);
    let error = String::from_utf8_lossy(&replay.stderr).into_owned();
    assert_eq!(replay.status.code(), Some(3), "{error}");
    let command = format!("secondwind diff {0} {0} --flip-bit {flip}", recording.display());
    assert!(error.contains(&command), "{error}");
    let diff = secondwind(&[
        "diff".as_ref(),
        recording.as_os_str(),
        recording.as_os_str(),
        "--flip-bit".as_ref(),
        flip.as_ref(),
        "--json".as_ref(),
    ]);
    assert_eq!(diff.status.code(), Some(3));
    let found: serde_json::Value = serde_json::from_slice(&diff.stdout).expect("JSON");
    assert_eq!(found["parting"]["icount"], 1_500_000, "{found}");
    assert_eq!(found["parting"]["differences"][0]["what"], "hart 1 t6", "{found}");
    assert_eq!(found["equal"], false);
    let equal = secondwind(&["diff".as_ref(), recording.as_os_str(), recording.as_os_str()]);
    assert_eq!(equal.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&equal.stdout), "equal: the logs, and both replays\n");
}

#[test]
fn wrong_usage_is_told_in_one_line() {
    let folder = tempfile::tempdir().expect("room for a folder");
    let empty = folder.path().as_os_str();
    let cases: [(&[&std::ffi::OsStr], i32); 6] = [
        (&["debug".as_ref(), empty], 1),
        (&["debug".as_ref(), empty, "--symbols".as_ref(), "/nonexistent".as_ref()], 1),
        (&["debug".as_ref(), empty, "--listen".as_ref(), "nowhere".as_ref()], 2),
        (&["diff".as_ref(), empty, empty], 1),
        (&["diff".as_ref(), empty], 2),
        (&["replay".as_ref(), empty, "--flip-bit".as_ref(), "1:2:3".as_ref()], 2),
    ];
    for (arguments, status) in cases {
        let output = secondwind(arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
        if status == 1 {
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(error.trim_end().lines().count(), 1, "{error}");
            assert!(error.starts_with("secondwind: "), "{error}");
        }
    }
}
