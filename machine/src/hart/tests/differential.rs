//! The translator against the interpreter: random programs, run side by side in different pieces and
//! compared whole.

use super::encode::{addi, csrrs, csrrw, jal};
use super::random::Random;
use crate::Engine;
use crate::bus::{AccessFault, Bus};
use crate::hart::{Hart, HartExit, HartOptions, HartState};
use crate::ram::{RAM_BASE, Ram};

const RAM_PAGES: u64 = 64;
const CODE: u64 = RAM_BASE;
const HANDLER: u64 = RAM_BASE + 0x3000;
const DATA: u64 = RAM_BASE + 0x8000;
const TABLES: u64 = RAM_BASE + 0x2_0000;
const DEVICE: u64 = 0x1000_0000;

/// Registers that keep pointing somewhere: to data, to where two pages meet, to the code, to a device.
const POINTERS: [(usize, u64); 4] = [(8, DATA), (9, DATA + 0xffc), (27, CODE + 0x100), (26, DEVICE)];

/// Memory, and a device that notes every access with its icount.
struct NotingBus {
    ram: Ram,
    notes: Vec<(u64, u64, u64)>,
}

impl Bus for NotingBus {
    fn ram(&mut self) -> &mut Ram {
        &mut self.ram
    }

    fn mmio_read(&mut self, _: usize, icount: u64, address: u64, _: u8) -> Result<u64, AccessFault> {
        if address & !0xfff != DEVICE {
            return Err(AccessFault);
        }
        self.notes.push((icount, address, 0));
        Ok(icount.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn mmio_write(&mut self, _: usize, icount: u64, address: u64, _: u8, v: u64) -> Result<(), AccessFault> {
        if address & !0xfff != DEVICE {
            return Err(AccessFault);
        }
        self.notes.push((icount, address, v));
        Ok(())
    }

    fn time(&self, icount: u64) -> u64 {
        icount / 100
    }

    fn interrupt_lines(&self, _: usize) -> u64 {
        0
    }

    fn wants_exit(&self) -> bool {
        self.notes.len() % 7 == 3
    }
}

impl Random {
    /// A register value: of any size, or one that something changes at.
    fn value(&mut self) -> u64 {
        const EDGES: [u64; 9] =
            [0, 1, 2, u64::MAX, 1 << 63, (1 << 63) - 1, 1 << 31, (1 << 31) - 1, 0xffff_ffff_8000_0000];
        match self.below(4) {
            0 => self.pick(&EDGES),
            1 => self.next() as i32 as u64,
            2 => self.next() >> self.below(64),
            _ => self.next(),
        }
    }

    /// The bits of a number, biased to those at which floating point changes its ways.
    fn float(&mut self) -> u64 {
        const DOUBLES: [u64; 10] = [
            0,
            1 << 63,
            0x3ff0_0000_0000_0000,
            0x7ff0_0000_0000_0000,
            0xfff0_0000_0000_0000,
            0x7ff8_0000_0000_0000,
            0x7ff0_0000_0000_0001,
            1,
            0x0010_0000_0000_0000,
            0x7fef_ffff_ffff_ffff,
        ];
        const SINGLES: [u32; 8] =
            [0, 1 << 31, 0x3f80_0000, 0x7f80_0000, 0x7fc0_0000, 0x7f80_0001, 1, 0x7f7f_ffff];
        match self.below(6) {
            0 => self.pick(&DOUBLES),
            1 => u64::from(self.pick(&SINGLES)) | 0xffff_ffff_0000_0000,
            2 => self.next(),
            3 => self.next() | 0xffff_ffff_0000_0000,
            4 => u64::from(((self.below(20_000) as f32) / 16.0).to_bits()) | 0xffff_ffff_0000_0000,
            _ => (self.next() as i32 as f64 / 64.0).to_bits(),
        }
    }
}

/// What a program is mostly made of.
#[derive(Debug, Clone, Copy)]
enum Flavour {
    Integer,
    Memory,
    Float,
    Anything,
}

/// A 32-bit instruction, or two compressed ones.
fn instruction(random: &mut Random, flavour: Flavour) -> u32 {
    let word = random.next() as u32;
    let rd = loop {
        let rd = (random.next() as u32) & 31;
        if POINTERS.iter().all(|(pointer, _)| *pointer as u32 != rd) {
            break rd << 7;
        }
    };
    let any = word & !0xfff | rd;
    let opcode = match (flavour, random.below(10)) {
        (_, 0) => random.pick(&[0x63, 0x63, 0x63, 0x6f, 0x17, 0x67, 0x73]),
        (_, 1) => return compressed(random) | compressed(random) << 16,
        (Flavour::Integer, _) => random.pick(&[0x13, 0x33, 0x1b, 0x3b, 0x33, 0x3b, 0x37]),
        (Flavour::Memory, _) => random.pick(&[0x03, 0x23, 0x03, 0x23, 0x2f, 0x07, 0x27, 0x13]),
        (Flavour::Float, _) => {
            random.pick(&[0x53, 0x53, 0x53, 0x53, 0x43, 0x47, 0x4b, 0x4f, 0x07, 0x27, 0x73])
        }
        (Flavour::Anything, _) => {
            random.pick(&[0x03, 0x23, 0x13, 0x33, 0x1b, 0x3b, 0x53, 0x2f, 0x07, 0x27, 0x0f])
        }
    };
    match opcode {
        0x33 | 0x3b => {
            let funct7 = random.pick(&[0, 0, 0x20, 1, 1, 0x10, 0x05, 0x07, 0x30, 0x24, 0x34, 0x14, 0x04]);
            any & 0x01ff_ffff | funct7 << 25 | opcode
        }
        0x13 | 0x1b if word >> 12 & 3 == 1 => {
            let shifts = [0x000, 0x400, 0x280, 0x480, 0x680, 0x600, 0x687, 0x6b8, 0x287];
            let imm =
                random.pick(&shifts) | if random.below(2) == 0 { word >> 20 & 0x3f } else { word >> 20 & 7 };
            any & 0xf_ffff | imm << 20 | opcode
        }
        0x03 | 0x07 | 0x2f | 0x67 => pointed(random, any, opcode),
        0x23 | 0x27 => pointed(random, word & !0x7f, opcode),
        0x63 => branch(random, word),
        // Over one to sixteen instructions.
        0x6f => rd | (word & 0x3c | 4) << 20 | opcode,
        0x53 | 0x43 | 0x47 | 0x4b | 0x4f => {
            // Single or double, mostly rounded as is usual.
            let rounding = random.pick(&[0, 7, 7, 1, word >> 12 & 7]);
            let functs = [0x00, 0x04, 0x08, 0x0c, 0x2c, 0x10, 0x14, 0x20, 0x50, 0x60, 0x68, 0x70, 0x78];
            let any = any & !(0x7 << 12 | 3 << 25) | rounding << 12 | (word & 1) << 25;
            match opcode {
                0x53 if random.below(4) != 0 => {
                    let funct7 = random.pick(&functs) | word & 1;
                    let small = if funct7 >= 0x20 && funct7 != 0x50 && funct7 != 0x51 {
                        word >> 20 & 3
                    } else {
                        word >> 20 & 31
                    };
                    let funct3 = if matches!(funct7, 0x10 | 0x11 | 0x14 | 0x15 | 0x50 | 0x51) {
                        word >> 12 & 1
                    } else {
                        rounding
                    };
                    any & !(0xfff << 20 | 7 << 12) | funct7 << 25 | small << 20 | funct3 << 12 | opcode
                }
                _ => any | opcode,
            }
        }
        0x73 => {
            let csr = random.pick(&[
                1, 2, 3, 1, 3, 0x340, 0xb00, 0xb02, 0xc01, 0x300, 0x344, 0xf14, 0x100, 0x140, 0x141, 0x142,
                0x143,
            ]);
            // Of `mstatus`, FS is switched off and on.
            let csr_set = random.pick(&[1, 2, 3, 5, 6, 7]);
            match csr {
                0x300 => csrrs(0, 0x300, 28) & !0x7000 | random.pick(&[2, 3]) << 12,
                _ => csr << 20 | word & 0x1f << 15 | csr_set << 12 | rd | opcode,
            }
        }
        _ => any | opcode,
    }
}

/// An access by one of the pointers, now and then by any register.
fn pointed(random: &mut Random, word: u32, opcode: u32) -> u32 {
    let pointer = match random.below(12) {
        0 => word >> 15 & 31,
        1 => 26,
        2 => 27,
        _ => random.pick(&[8, 9]),
    };
    let word = word & !(0x1f << 15) | pointer << 15 | opcode;
    match opcode {
        // Mostly aligned.
        0x03 | 0x07 if random.below(3) != 0 => word & !(7 << 20),
        0x23 | 0x27 if random.below(3) != 0 => word & !(7 << 7),
        0x67 => word & !(0xfff << 20 | 7 << 12) | ((random.next() as u32) & 0x7c) << 20,
        _ => word,
    }
}

/// A branch over up to sixteen instructions, back or on.
fn branch(random: &mut Random, word: u32) -> u32 {
    let distance = (random.below(32) as i32 - 4) * 4;
    let imm = distance as u32;
    let bits = (imm >> 12 & 1) << 31 | (imm >> 5 & 63) << 25 | (imm >> 1 & 15) << 8 | (imm >> 11 & 1) << 7;
    word & 0x01ff_f000 | bits | 0x63
}

fn compressed(random: &mut Random) -> u32 {
    loop {
        let half = (random.next() as u32) & 0xffff;
        let (quadrant, funct3) = (half & 3, half >> 13);
        let rd = half >> 7 & 31;
        let points = POINTERS
            .iter()
            .any(|(pointer, _)| *pointer as u32 == rd || *pointer as u32 == 8 + (half >> 2 & 7));
        // No jumps: those go too far. No reserved ones either.
        let jumps = quadrant == 1 && funct3 >= 5 || quadrant == 2 && funct3 == 4 && half >> 2 & 31 == 0;
        if quadrant != 3 && !jumps && !points && half != 0 {
            return half;
        }
    }
}

/// Skips what raised an exception: four bytes, or two.
fn handler() -> Vec<u32> {
    vec![
        csrrw(0, 0x340, 5),
        csrrs(5, 0x341, 0),
        addi(5, 5, 4),
        csrrw(0, 0x341, 5),
        csrrs(5, 0x340, 0),
        0x3020_0073,
    ]
}

/// The same program and state for each engine.
struct Subject {
    hart: Hart,
    bus: NotingBus,
}

impl Subject {
    fn new(seed: u64, engine: Engine, code_cache_bytes: usize, is_paged: bool) -> Subject {
        let mut random = Random(seed);
        let flavour = random.pick(&[Flavour::Integer, Flavour::Memory, Flavour::Float, Flavour::Anything]);
        let mut ram = Ram::new(RAM_PAGES);
        let mut put = |address: u64, words: &[u32]| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            ram.write(address, &bytes).expect("it is in memory");
        };
        // More than a page, so that jumps leave it.
        let mut program: Vec<u32> = (0..1500).map(|_| instruction(&mut random, flavour)).collect();
        program.push(jal(0, program.len() as i32 * -4));
        put(CODE + random.below(2) * 2, &program);
        put(HANDLER, &handler());
        let data: Vec<u32> = (0..4096).map(|_| random.float() as u32).collect();
        put(DATA, &data);
        if is_paged {
            page_tables(&mut ram);
        }
        let options = HartOptions {
            engine,
            code_cache_bytes,
            translate_after: random.below(3) as u32,
            ..HartOptions::default()
        };
        let mut hart = Hart::new(0, options);
        hart.start_machine(CODE, 0, 0);
        hart.set_state(start(&mut random, hart.state(), is_paged));
        Subject { hart, bus: NotingBus { ram, notes: Vec::new() } }
    }

    /// Runs to an icount, in pieces of at most `longest`.
    fn run_to(&mut self, from: u64, to: u64, random: &mut Random, longest: u64) {
        let mut done = from;
        while done < to {
            let piece = (1 + random.below(longest)).min(to - done);
            let run = self.hart.run(&mut self.bus, done, piece);
            done += run.retired;
            if run.exit == HartExit::Wait {
                self.hart.set_state(HartState { waiting: false, ..self.hart.state() });
            }
            if random.below(50) == 0 {
                self.bus.ram.digest();
            }
        }
    }
}

/// Random registers, floating point on, now and then user mode under a page table.
fn start(random: &mut Random, state: HartState, is_paged: bool) -> HartState {
    let mut state = state;
    // Anywhere, and often right before the end of a page.
    let (somewhere, near_the_end) = (random.below(1500) * 4, 0xf80 + random.below(32) * 4);
    state.pc = CODE + random.pick(&[somewhere, near_the_end]);
    state.x = std::array::from_fn(|_| random.value());
    state.x[0] = 0;
    POINTERS.iter().for_each(|(register, value)| state.x[*register] = *value);
    state.x[28] = 3 << 13;
    state.f = std::array::from_fn(|_| random.float());
    state.csrs.mtvec = HANDLER;
    state.csrs.mstatus |= random.pick(&[0, 1, 3, 3, 3, 3]) << 13;
    state.csrs.fflags = random.pick(&[0, 1, 1, 31]);
    state.csrs.frm = random.pick(&[0, 0, 0, 1, 2, 3, 4, 7]);
    if is_paged {
        state.csrs.satp = 8 << 60 | TABLES >> 12;
        state.csrs.mcounteren = 7;
        state.csrs.scounteren = 7;
        state.csrs.pmp = crate::hart::Pmp::open();
        state.privilege = crate::hart::Privilege::User;
    }
    state
}

/// Everything where it is, but for one page of data in another's place, and a page of tables that the
/// program can write to.
fn page_tables(ram: &mut Ram) {
    let table = |address: u64| ((address >> 12) << 10 | 1).to_le_bytes();
    let leaf = |address: u64| ((address >> 12) << 10 | 0xdf).to_le_bytes();
    let mut put = |address: u64, entry: [u8; 8]| ram.write(address, &entry).expect("it is in memory");
    put(TABLES + 2 * 8, table(TABLES + 0x1000));
    put(TABLES + 0x1000, table(TABLES + 0x2000));
    for page in 0..RAM_PAGES {
        put(TABLES + 0x2000 + page * 8, leaf(RAM_BASE + (page << 12)));
    }
    put(TABLES + 0x2000 + 9 * 8, leaf(DATA + 0x4000));
}

fn check(seeds: std::ops::Range<u64>, code_cache_bytes: usize, is_paged: bool) {
    const STEPS: u64 = 12;
    for seed in seeds {
        let mut interpreted = Subject::new(seed, Engine::Interpreter, 1 << 20, is_paged);
        let mut translated = Subject::new(seed, Engine::Translator, code_cache_bytes, is_paged);
        assert!(translated.hart.translates());
        let mut random = Random(!seed);
        let longest = random.pick(&[2, 10, 70, 300, 5000]);
        let mut done = 0;
        for step in 0..STEPS {
            let to = done + 1 + random.below(2500);
            interpreted.run_to(done, to, &mut Random(seed), 100_000);
            translated.run_to(done, to, &mut random, longest);
            done = to;
            let what = format!("seed {seed}, step {step}, icount {done}");
            assert_eq!(translated.hart.state(), interpreted.hart.state(), "{what}");
            assert_eq!(translated.bus.ram.digest(), interpreted.bus.ram.digest(), "memory, {what}");
            assert_eq!(translated.bus.notes, interpreted.bus.notes, "{what}");
        }
    }
}

#[test]
fn random_programs_do_the_same() {
    check(0..400, 1 << 20, false);
}

#[test]
fn random_programs_in_user_mode_do_the_same() {
    check(1000..1300, 1 << 20, true);
}

#[test]
fn a_code_cache_that_overflows_does_not_show() {
    check(2000..2060, 0, false);
}
