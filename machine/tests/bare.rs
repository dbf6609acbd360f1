//! Bare-metal programs in M-mode, and what they can do to the board.

use bytes::Bytes;
use log_format::Output;
use machine::boot::{BootPlan, is_bare};
use machine::ram::Ram;
use machine::{BootImages, Exit, Machine, MachineConfig, RiscvMachine, Signature};

const TOHOST: u64 = 0x8000_1000;

/// An ELF file with this code at 0x8000_0000 and a symbol `tohost`.
fn elf(code: &[u32]) -> Bytes {
    let code: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    let names = b"\0tohost\0";
    let (code_at, symbols_at) = (64 + 56, 64 + 56 + code.len());
    let (names_at, sections_at) = (symbols_at + 48, symbols_at + 48 + names.len());
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |file: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    let word = |file: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    let long = |file: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    half(&mut file, &[2, 243]);
    word(&mut file, &[1]);
    long(&mut file, &[0x8000_0000, 64, sections_at as u64]);
    word(&mut file, &[0]);
    half(&mut file, &[64, 56, 1, 64, 3, 2]);
    word(&mut file, &[1, 7]);
    long(&mut file, &[code_at as u64, 0x8000_0000, 0x8000_0000, code.len() as u64, 0x2000, 4]);
    file.extend(&code);
    // The null symbol, then `tohost`: global, absolute.
    file.extend([0; 24]);
    word(&mut file, &[1, 0xfff1_0010]);
    long(&mut file, &[TOHOST, 8]);
    file.extend(names);
    let mut section = |kind: u32, at: usize, len: usize, link: u32, entry: u64| {
        word(&mut file, &[0, kind]);
        long(&mut file, &[0, 0, at as u64, len as u64]);
        word(&mut file, &[link, 1]);
        long(&mut file, &[1, entry]);
    };
    section(0, 0, 0, 0, 0);
    section(2, symbols_at, 48, 2, 24);
    section(3, names_at, names.len(), 0, 0);
    file.into()
}

fn boot(code: &[u32], harts: usize) -> RiscvMachine {
    let config = MachineConfig { harts, memory_bytes: 4 << 20, ..MachineConfig::default() };
    RiscvMachine::new(config, &BootImages::bare(elf(code)), Vec::new()).expect("it boots")
}

const LOOP: u32 = 0x0000_006f;
/// `auipc t0, 1`: the address of `tohost`, as the first instruction.
const T0_TOHOST: u32 = 0x0000_1297;
/// `sd t2, 0(t0)`
const STORE: u32 = 0x0072_b023;

/// `addi t2, x0, value`
fn t2(value: u32) -> u32 {
    value << 20 | 7 << 7 | 0x13
}

/// `ori t2, t1, value`
fn t2_from_t1(value: u32) -> u32 {
    value << 20 | 6 << 15 | 6 << 12 | 7 << 7 | 0x13
}

#[test]
fn a_program_ends_through_tohost_exactly_where_it_says_so() {
    for harts in [1, 3] {
        let mut machine = boot(&[T0_TOHOST, t2(7 << 1 | 1), STORE, LOOP], harts);
        assert_eq!(machine.run(2), Exit::Limit);
        assert_eq!(machine.run(1_000_000), Exit::Halted { code: 7 });
        assert_eq!(machine.moment().icount, 3);
        assert_eq!(machine.run(1_000_000), Exit::Halted { code: 7 });
        assert_eq!(machine.run(3), Exit::Limit, "where it stands already");
    }
}

#[test]
fn a_program_writes_characters_through_tohost() {
    // addi t1, x0, 0x101; slli t1, t1, 48
    let mut code = vec![T0_TOHOST, 0x1010_0313, 0x0303_1313];
    for character in b"hi\n" {
        code.extend([t2_from_t1((*character).into()), STORE]);
    }
    code.extend([t2(1), STORE, LOOP]);
    let mut machine = boot(&code, 1);
    assert_eq!(machine.run(1_000_000), Exit::Output);
    let outputs = machine.take_outputs();
    assert_eq!(outputs.len(), 1);
    assert_eq!(outputs[0].output, Output::Console(Bytes::from_static(b"hi\n")));
    assert_eq!(outputs[0].at, machine.moment());
    assert_eq!(machine.run(1_000_000), Exit::Halted { code: 0 });
}

#[test]
fn an_endless_loop_of_exceptions_comes_to_its_limit() {
    let mut machine = boot(&[0, 0], 2);
    assert_eq!(machine.run(100_000), Exit::Limit);
    assert_eq!(machine.moment().icount, 100_000);
}

#[test]
fn a_damaged_program_is_refused_or_loaded() {
    const MEMORY_BYTES: u64 = 1 << 20;
    let whole = elf(&[0x0000_006f]);
    assert!(is_bare(&whole), "its symbols are read");
    let take = |image: Vec<u8>| {
        let _ = (is_bare(&image), Signature::find(&image));
        if let Ok(plan) = BootPlan::new(&BootImages::bare(image.into()), MEMORY_BYTES) {
            plan.load(&mut Ram::new(MEMORY_BYTES / 4096), b"device tree").expect("the images are in memory");
        }
    };
    (0..whole.len()).for_each(|len| take(whole[..len].to_vec()));
    for position in 0..whole.len() * 8 {
        let mut flipped = whole.to_vec();
        flipped[position / 8] ^= 1 << (position % 8);
        take(flipped);
    }
    // Offsets, sizes and counts that fit nowhere.
    for position in 0..whole.len() - 8 {
        let mut wide = whole.to_vec();
        wide[position..position + 8].fill(0xff);
        take(wide);
    }
}

#[test]
fn wrong_configurations_and_images_are_refused() {
    let images = BootImages::bare(Bytes::from_static(b"no program"));
    let config = MachineConfig::default();
    let error = RiscvMachine::new(config.clone(), &images, Vec::new()).err().expect("no program");
    assert!(error.to_string().contains("neither a RISC-V Linux Image nor an ELF"), "{error}");
    let error = RiscvMachine::new(MachineConfig { harts: 0, ..config }, &images, Vec::new()).err();
    assert_eq!(error.expect("no harts").to_string(), "a machine has 1 to 8 harts, not 0");
}

/// `op rd, rs1, rs2` and the like: the fields of an instruction in their places.
fn instruction(opcode: u32, rd: u32, function: u32, rs1: u32, rest: u32) -> u32 {
    opcode | rd << 7 | function << 12 | rs1 << 15 | rest << 20
}

#[test]
fn harts_that_race_do_the_same_however_execution_is_cut() {
    let (t1, t2, a0, a1, a2, a3, a4) = (6, 7, 10, 11, 12, 13, 14);
    let code = [
        // t1: a counter; t2: the ACLINT.
        instruction(0x17, t1, 0, 0, 0) | 2 << 12,
        instruction(0x37, t2, 0, 0, 0) | 0x2000 << 12,
        // Loop: a0 = mhartid, a1 = a0 + 1, a2 = the counter, which grows by a1.
        instruction(0x73, a0, 2, 0, 0xf14),
        instruction(0x13, a1, 0, a0, 1),
        instruction(0x2f, a2, 2, t1, a1),
        instruction(0x33, a3, 0, a3, a2),
        // Sends hart 1 an interrupt, or takes it back: that ends slices.
        instruction(0x23, 4, 2, t2, a1),
        // a3 += time.
        instruction(0x73, a4, 2, 0, 0xc01),
        instruction(0x33, a3, 0, a3, a4),
        // Back by 7 instructions.
        0xfe5f_f06f,
    ];
    let state_after = |cut: u64| {
        let mut machine = boot(&code, 3);
        for stop in (cut..=210_000).step_by(cut as usize) {
            assert_eq!(machine.run(stop), Exit::Limit);
        }
        assert_eq!(machine.run(210_000), Exit::Limit);
        machine.digest()
    };
    let whole = state_after(210_000);
    for cut in [1, 7, 999, 10_000] {
        assert_eq!(state_after(cut), whole, "cut every {cut} instructions");
    }
    let mut machine = boot(&code, 3);
    machine.run(210_000);
    let count = machine.ram().slice(0x8000_2000, 4).expect("it lies in memory");
    let count = u32::from_le_bytes([count[0], count[1], count[2], count[3]]);
    assert!((30_000..80_000).contains(&count), "three harts count to {count}");
}
