//! `secondwind run --signature`: programs of a suite, from their ELF file to their result.

use std::path::Path;
use std::process::{Command, Output, Stdio};

const RAM: u64 = 0x8000_0000;
/// Where the program has `tohost`; its signature lies in the same page.
const TOHOST: u64 = RAM + 0x1000;
const SIGNATURE: u64 = TOHOST + 0x40;

const JUMP_TO_ITSELF: u32 = 0x0000_006f;
const WFI: u32 = 0x1050_0073;
/// `auipc t0, 1`: the page of `tohost`, for the first instruction.
const TO_PAGE: u32 = 0x0000_1297;

fn addi(rd: u32, rs1: u32, imm: u32) -> u32 {
    imm << 20 | rs1 << 15 | rd << 7 | 0x13
}

/// `sd rs2, imm(t0)`.
fn sd(rs2: u32, imm: u32) -> u32 {
    (imm >> 5) << 25 | rs2 << 20 | 5 << 15 | 3 << 12 | (imm & 31) << 7 | 0x23
}

/// Writes 1 to 6 into the signature, all misaligned, and ends with `code`.
fn well_behaved(code: u32) -> Vec<u32> {
    let bytes = (0..6).flat_map(|at| [addi(6, 0, at + 1), sd(6, 0x40 + at)]);
    let mut program = vec![TO_PAGE];
    program.extend(bytes);
    program.extend([addi(6, 0, code << 1 | 1), sd(6, 0), JUMP_TO_ITSELF]);
    program
}

/// An ELF file: one segment at RAM's start, and these symbols.
fn elf(program: &[u32], symbols: &[(&str, u64)]) -> Vec<u8> {
    let code: Vec<u8> = program.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut names = vec![0];
    let mut table = vec![0; 24];
    for (name, value) in symbols {
        table.extend((names.len() as u32).to_le_bytes());
        // Global, of no type, absolute.
        table.extend([0x10, 0, 0xf1, 0xff]);
        table.extend(value.to_le_bytes());
        table.extend(0u64.to_le_bytes());
        names.extend(name.bytes().chain([0]));
    }
    let (code_at, table_at) = (0x78, 0x78 + code.len() as u64);
    let names_at = table_at + table.len() as u64;
    let sections_at = names_at + names.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xf3\0\x01\0\0\0".to_vec();
    file.extend([RAM, 0x40, sections_at].map(u64::to_le_bytes).concat());
    file.extend([0, 0, 64, 56, 1, 64, 3, 0].map(u16::to_le_bytes).concat());
    file.extend([1, 7u32].map(u32::to_le_bytes).concat());
    let len = code.len() as u64;
    file.extend([code_at, RAM, RAM, len, 0x2000, 0x1000].map(u64::to_le_bytes).concat());
    file.extend(code);
    file.extend(table.iter().chain(&names));
    // No section; the symbols, whose names are in the next; the names.
    let section = |kind: u32, at: u64, len: u64, link: u32, entry: u64| {
        let mut header = [0, kind].map(u32::to_le_bytes).concat();
        header.extend([0, 0, at, len].map(u64::to_le_bytes).concat());
        header.extend([link, 1].map(u32::to_le_bytes).concat());
        header.extend([8, entry].map(u64::to_le_bytes).concat());
        header
    };
    file.extend(section(0, 0, 0, 0, 0));
    file.extend(section(2, table_at, table.len() as u64, 2, 24));
    file.extend(section(3, names_at, names.len() as u64, 0, 0));
    file
}

fn symbols() -> Vec<(&'static str, u64)> {
    vec![("tohost", TOHOST), ("begin_signature", SIGNATURE), ("end_signature", SIGNATURE + 14)]
}

fn run(folder: &Path, elf: &[u8], words: &[&str]) -> Output {
    std::fs::write(folder.join("test.elf"), elf).expect("a folder of this test");
    Command::new(env!("CARGO_BIN_EXE_secondwind"))
        .args(["run", "--kernel", "test.elf", "--memory", "1M"])
        .args(words)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("the program runs")
}

#[track_caller]
fn refused(elf: &[u8], words: &[&str], status: i32, part: &str) {
    let folder = tempfile::tempdir().expect("room for a folder");
    let output = run(folder.path(), elf, words);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{errors}");
    assert!(errors.contains(part) && errors.trim_end().lines().count() == 1, "{errors:?}");
    assert!(!folder.path().join("signature").exists(), "no result, no file");
}

#[test]
fn a_signature_is_written_and_the_status_passed_on() {
    let folder = tempfile::tempdir().unwrap();
    for (granularity, expected) in [
        ("4", "04030201\n00000605\n00000000\n00000000\n"),
        ("8", "0000060504030201\n0000000000000000\n"),
        ("16", "00000000000000000000060504030201\n"),
    ] {
        for code in [0, 7] {
            let words = ["--signature", "signature", "--signature-granularity", granularity];
            let output = run(folder.path(), &elf(&well_behaved(code), &symbols()), &words);
            assert_eq!(output.status.code(), Some(code as i32));
            assert!(output.stdout.is_empty() && output.stderr.is_empty(), "no noise");
            let text = std::fs::read_to_string(folder.path().join("signature")).unwrap();
            assert_eq!(text, expected, "{granularity} bytes");
        }
    }
}

#[test]
fn programs_without_signature_are_refused() {
    let program = well_behaved(0);
    let words = ["--signature", "signature"];
    refused(&elf(&program, &symbols()[..2]), &words, 1, "no symbol end_signature");
    refused(&elf(&program, &symbols()[..1]), &words, 1, "no symbol begin_signature");
    refused(&elf(&program, &[]), &words, 1, "symbol tohost");
    let with =
        |start, end| elf(&program, &[("tohost", TOHOST), ("begin_signature", start), ("end_signature", end)]);
    refused(&with(SIGNATURE + 8, SIGNATURE), &words, 1, "comes after");
    refused(&with(RAM, RAM + (1 << 20) + 1), &words, 1, "more memory");
    refused(&with(0, 16), &words, 1, "RAM from 0x80000000");
    refused(&elf(&program, &symbols()), &["--signature", "no/folder"], 1, "no/folder");
    refused(&elf(&program, &symbols()), &["--signature", "signature", "--net", "user"], 1, "--net");
    let mut of_32_bits = elf(&program, &symbols());
    of_32_bits[4] = 1;
    refused(&of_32_bits, &[], 1, "riscv64");
}

#[test]
fn programs_that_do_not_end_are_ended() {
    let forever = elf(&[JUMP_TO_ITSELF], &symbols());
    let words = ["--signature", "signature", "--max-instructions"];
    refused(&forever, &[&words[..], &["123456"]].concat(), 124, "within 123456 instructions");
    refused(&forever, &["--signature", "signature", "--for", "0"], 124, "--for");
    let asleep = elf(&[WFI, JUMP_TO_ITSELF], &symbols());
    refused(&asleep, &["--signature", "signature"], 124, "none can come");
    // Ends just in time, and one instruction late.
    let program = well_behaved(3);
    let folder = tempfile::tempdir().unwrap();
    let needed = (program.len() - 1).to_string();
    let output = run(folder.path(), &elf(&program, &symbols()), &["--max-instructions", &needed]);
    assert_eq!(output.status.code(), Some(3));
    let fewer = (program.len() - 2).to_string();
    refused(&elf(&program, &symbols()), &["--max-instructions", &fewer], 124, &fewer);
}
