//! Address spaces: a random kernel that changes `satp`, page tables, code and modes, run by each engine with
//! its caches, and by a hart that loses all caches again and again. All do the same.

use super::encode::{
    SRET, add, addi, amoadd_d, auipc, csrrs, csrrw, jal, jalr, ld, load_constant, lr_d, lui, sc_d, sd, xor,
};
use super::random::Random;
use crate::Engine;
use crate::bus::{AccessFault, Bus};
use crate::hart::{Hart, HartExit, HartOptions};
use crate::ram::{RAM_BASE, Ram};

const RAM_PAGES: u64 = 64;
/// Where the kernel maps all of memory.
const KERNEL: u64 = 0xffff_ffff_8000_0000;
/// The same, by way of another entry of the root tables, which comes and goes.
const ALIAS: u64 = 0xffff_ffff_c000_0000;
const LOW: u64 = 0x1_0000;

/// RAM pages by number.
const CODE: u64 = 0;
const HANDLER: u64 = 3;
const ENTRIES: u64 = 4;
const TABLES: u64 = 5;
const SATPS: u64 = 6;
const FRAMES: u64 = 8;
const USER_CODE: u64 = 16;
/// Two functions that add different numbers, and the virtual page of the kernel that is one of them.
const FUNCTIONS: u64 = 18;
const FUNCTION_WINDOW: u64 = 58;
const ROOTS: u64 = 32;
const KERNEL_TABLES: u64 = 36;
const OTHER_KERNEL_TABLES: u64 = 38;
const USER_MIDDLES: u64 = 40;
const USER_LEAVES: u64 = 44;
/// Virtual pages of the kernel whose mappings change.
const WINDOW: u64 = 50;

const SPACES: u64 = 4;
const FRAME_COUNT: u64 = 8;

const SSTATUS: u32 = 0x100;
const SSCRATCH: u32 = 0x140;
const SEPC: u32 = 0x141;
const SCAUSE: u32 = 0x142;
const SATP: u32 = 0x180;

/// Registers of the program: addresses of [`ENTRIES`], [`TABLES`], [`SATPS`].
const TO_ENTRIES: u32 = 8;
const TO_PLACES: u32 = 9;
const TO_SATPS: u32 = 18;
/// SPP and SUM.
const PREVIOUS: u32 = 3;
const USER_PAGES: u32 = 4;
/// Where U-mode begins, and where its code is in the kernel's memory.
const USER_START: u32 = 29;
const USER_CODE_ALIAS: u32 = 30;
/// Two instructions, to be put into U-mode's code.
const INSTRUCTIONS: u32 = 31;
/// Where the entry for [`FUNCTION_WINDOW`] is, and where the function is.
const FUNCTION_ENTRY: u32 = 2;
const FUNCTION: u32 = 15;
const RETURN: u32 = 1;
/// Behind the other entries: those of the functions.
const FUNCTION_ENTRIES: i32 = 64 * 8;
/// The handler's own.
const HANDLERS: u32 = 28;
/// Pointers to data: the kernel's window, its alias, U-mode's pages and one of S-mode in the lower half.
const POINTERS: [u32; 9] = [19, 20, 21, 22, 23, 24, 25, 26, 27];
const DATA: [u32; 8] = [5, 6, 7, 10, 11, 12, 13, 14];

struct Memory(Ram);

impl Bus for Memory {
    fn ram(&mut self) -> &mut Ram {
        &mut self.0
    }

    fn mmio_read(&mut self, _: usize, _: u64, _: u64, _: u8) -> Result<u64, AccessFault> {
        Err(AccessFault)
    }

    fn mmio_write(&mut self, _: usize, _: u64, _: u64, _: u8, _: u64) -> Result<(), AccessFault> {
        Err(AccessFault)
    }

    fn time(&self, _: u64) -> u64 {
        0
    }

    fn interrupt_lines(&self, _: usize) -> u64 {
        0
    }

    fn wants_exit(&self) -> bool {
        false
    }
}

fn physical(page: u64) -> u64 {
    RAM_BASE + (page << 12)
}

fn table(page: u64) -> u64 {
    physical(page) >> 2 | 1
}

/// Readable, writable, executable, accessed and dirty; for the kernel.
fn leaf(page: u64) -> u64 {
    physical(page) >> 2 | 0xcf
}

const USER: u64 = 1 << 4;

fn satp(space: u64, asid: u64) -> u64 {
    8 << 60 | asid << 44 | physical(ROOTS + space) >> 12
}

/// `csrrc`.
fn csrrc(rd: u32, csr: u32, rs1: u32) -> u32 {
    csrrs(rd, csr, rs1) | 1 << 12
}

fn cbo_zero(rs1: u32) -> u32 {
    4 << 20 | rs1 << 15 | 2 << 12 | 0x0f
}

/// One thing that the kernel does.
fn deed(random: &mut Random) -> Vec<u32> {
    let (pointer, data, other) = (random.pick(&POINTERS), random.pick(&DATA), random.pick(&DATA));
    let offset = random.below(256) as i32 * 8;
    let random_entry = random.below(64) as i32 * 8;
    match random.below(23) {
        0..4 => vec![ld(data, pointer, offset)],
        4..7 => vec![sd(data, pointer, offset)],
        // A page-table entry.
        7 | 8 => {
            vec![ld(5, TO_ENTRIES, random_entry), ld(6, TO_PLACES, random.below(64) as i32 * 8), sd(5, 6, 0)]
        }
        9 | 10 => vec![ld(5, TO_SATPS, random.below(8) as i32 * 8), csrrw(data, SATP, 5)],
        11 => vec![csrrs(data, SSTATUS, USER_PAGES)],
        12 => vec![csrrc(data, SSTATUS, USER_PAGES)],
        // To U-mode, and back behind it.
        13 | 14 => vec![
            auipc(HANDLERS, 0),
            addi(HANDLERS, HANDLERS, 24),
            csrrw(data, SSCRATCH, HANDLERS),
            csrrw(0, SEPC, USER_START),
            csrrc(0, SSTATUS, PREVIOUS),
            SRET,
        ],
        15 => vec![amoadd_d(data, other, pointer), lr_d(5, pointer), addi(5, 5, 1), sc_d(6, 5, pointer)],
        16 => vec![addi(5, pointer, offset), cbo_zero(5)],
        // U-mode's code, at an instruction.
        // A function of the kernel, called in the upper half; replaced.
        18 | 19 => vec![jalr(RETURN, FUNCTION, 0)],
        20 => {
            vec![ld(5, TO_ENTRIES, FUNCTION_ENTRIES + random.below(3) as i32 * 8), sd(5, FUNCTION_ENTRY, 0)]
        }
        // The same by way of the alias, which may not be there.
        21 => vec![lui(5, 0x40000), xor(5, 5, FUNCTION), jalr(RETURN, 5, 0)],
        17 => vec![sd(INSTRUCTIONS, USER_CODE_ALIAS, random.below(30) as i32 * 8)],
        _ => vec![
            csrrs(data, random.pick(&[SSTATUS, 0x142, 0x143, SEPC, SSCRATCH]), 0),
            xor(other, other, data),
        ],
    }
}

fn user_deed(random: &mut Random) -> u32 {
    let pointer = random.pick(&POINTERS);
    let (data, offset) = (random.pick(&DATA), random.below(256) as i32 * 8);
    match random.below(12) {
        0..4 => ld(data, pointer, offset),
        4..7 => sd(data, pointer, offset),
        7 => amoadd_d(data, random.pick(&DATA), pointer),
        8 => super::encode::ECALL,
        9 => sd(random.pick(&[data, INSTRUCTIONS]), USER_START, random.pick(&[0x400, 0x10, 0x80])),
        _ => addi(data, data, 7),
    }
}

fn memory(seed: u64) -> Ram {
    let mut random = Random(seed);
    let mut ram = Ram::new(RAM_PAGES);
    let mut put = |page: u64, at: u64, value: u64| {
        ram.write(physical(page) + at * 8, &value.to_le_bytes()).expect("it is in memory");
    };
    // The kernel maps everything twice over, one address space in its own way.
    for page in 0..RAM_PAGES {
        let frame = if page < WINDOW { page } else { FRAMES + page % FRAME_COUNT };
        let other = if page < WINDOW { page } else { FRAMES + (page + 3) % FRAME_COUNT };
        put(KERNEL_TABLES + 1, page, leaf(frame));
        put(OTHER_KERNEL_TABLES + 1, page, leaf(other));
    }
    for tables in [KERNEL_TABLES, OTHER_KERNEL_TABLES] {
        put(tables, 0, table(tables + 1));
    }
    for space in 0..SPACES {
        let kernel = if space == 3 { OTHER_KERNEL_TABLES } else { KERNEL_TABLES };
        put(ROOTS + space, 510, table(kernel));
        put(ROOTS + space, 511, table(KERNEL_TABLES));
        put(ROOTS + space, 0, table(USER_MIDDLES + space));
        put(USER_MIDDLES + space, 0, table(USER_LEAVES + space));
        // One table of pages in two address spaces, at another place.
        put(USER_MIDDLES + space, 1, table(USER_LEAVES + 1));
        for page in 0..8 {
            let frame = FRAMES + (page + space * 3) % FRAME_COUNT;
            put(USER_LEAVES + space, (LOW >> 12) + page, leaf(frame) | USER);
        }
        put(USER_LEAVES + space, (LOW >> 12) + 10, leaf(FUNCTIONS + space % 2));
        put(USER_LEAVES + space, (LOW >> 12) + 11, leaf(FRAMES + space));
        // In the same place of a TLB.
        put(USER_MIDDLES + space, 4, table(USER_LEAVES + space));
        put(USER_LEAVES + space, (LOW >> 12) + 8, leaf(USER_CODE + space % 2) | USER);
        put(USER_LEAVES + space, (LOW >> 12) + 9, leaf(FRAMES + space));
    }
    // Entries to be put somewhere, and where.
    for at in 0..64 {
        let frame = FRAMES + random.below(FRAME_COUNT);
        let entry = match random.below(8) {
            0 => 0,
            1 => table(USER_LEAVES + random.below(SPACES)),
            2 if random.below(2) == 0 => table(KERNEL_TABLES),
            2 => leaf(frame) & !(1 << 2 | 1 << 7),
            3 => leaf(frame) & !(1 << 6 | 1 << 7),
            4 | 5 => leaf(frame),
            6 => leaf(USER_CODE + random.below(2)) | USER,
            _ => leaf(frame) | USER,
        };
        put(ENTRIES, at, entry);
        let space = random.below(SPACES);
        let (page, index) = match random.below(10) {
            0 | 1 => (ROOTS + space, random.pick(&[0, 1, 511, 511, 511])),
            2 => (USER_MIDDLES + space, random.below(2)),
            3 | 4 => (random.pick(&[KERNEL_TABLES, OTHER_KERNEL_TABLES]) + 1, WINDOW + random.below(8)),
            _ => (USER_LEAVES + space, (LOW >> 12) + random.below(10)),
        };
        put(TABLES, at, KERNEL + (page << 12) + index * 8);
    }
    for at in 0..8 {
        put(SATPS, at, satp(at % SPACES, at / 3));
    }
    for (at, entry) in [leaf(FUNCTIONS), leaf(FUNCTIONS + 1), 0].into_iter().enumerate() {
        put(ENTRIES, 64 + at as u64, entry);
    }
    put(KERNEL_TABLES + 1, FUNCTION_WINDOW, leaf(FUNCTIONS));
    put(OTHER_KERNEL_TABLES + 1, FUNCTION_WINDOW, leaf(FUNCTIONS + 1));
    let mut code: Vec<u32> = Vec::new();
    while code.len() < 1200 {
        code.extend(deed(&mut random));
    }
    code.push(jal(0, code.len() as i32 * -4));
    let handler = [
        // Where there is no function to call, it returns.
        csrrs(HANDLERS, SCAUSE, 0),
        addi(HANDLERS, HANDLERS, -12),
        super::encode::bne(HANDLERS, 0, 20),
        csrrs(HANDLERS, SSTATUS, 0),
        addi(HANDLERS, HANDLERS, 0x100) | 7 << 12,
        super::encode::beq(HANDLERS, 0, 8),
        jalr(0, RETURN, 0),
        csrrs(HANDLERS, SSTATUS, 0),
        // andi
        addi(HANDLERS, HANDLERS, 0x100) | 7 << 12,
        super::encode::beq(HANDLERS, 0, 20),
        csrrs(HANDLERS, SEPC, 0),
        addi(HANDLERS, HANDLERS, 4),
        csrrw(0, SEPC, HANDLERS),
        SRET,
        csrrs(HANDLERS, SSCRATCH, 0),
        jalr(0, HANDLERS, 0),
    ];
    let mut put_code = |page: u64, code: &[u32]| {
        let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
        ram.write(physical(page), &bytes).expect("it is in memory");
    };
    put_code(CODE, &code);
    put_code(HANDLER, &handler);
    put_code(FUNCTIONS, &[addi(10, 10, 5), jalr(0, RETURN, 0)]);
    put_code(FUNCTIONS + 1, &[addi(10, 10, 77), jalr(0, RETURN, 0)]);
    for page in USER_CODE..USER_CODE + 2 {
        let code: Vec<u32> = (0..64).map(|_| user_deed(&mut random)).chain([super::encode::ECALL]).collect();
        put_code(page, &code);
    }
    ram
}

struct Subject {
    hart: Hart,
    memory: Memory,
}

impl Subject {
    fn new(seed: u64, engine: Engine, translate_after: u32) -> Subject {
        let mut random = Random(!seed);
        let options = HartOptions { engine, translate_after, sbi_builtin: true, ..HartOptions::default() };
        let mut hart = Hart::new(0, options);
        hart.start_supervisor(KERNEL, 0, 0);
        let mut state = hart.state();
        state.csrs.satp = satp(0, 0);
        state.csrs.stvec = KERNEL + (HANDLER << 12);
        for register in DATA {
            state.x[register as usize] = random.below(1 << 32);
        }
        let window = KERNEL + (WINDOW << 12);
        let pointers = [window, window + 0x2000, ALIAS + ((WINDOW + 1) << 12), ALIAS + ((WINDOW + 4) << 12)];
        let low = [LOW, LOW + 0x2000, LOW + 0x20_0000, LOW + 0x5000, LOW + 0x9000];
        for (register, address) in POINTERS.into_iter().zip(pointers.into_iter().chain(low)) {
            state.x[register as usize] = address;
        }
        let fixed = [
            (TO_ENTRIES, KERNEL + (ENTRIES << 12)),
            (TO_PLACES, KERNEL + (TABLES << 12)),
            (TO_SATPS, KERNEL + (SATPS << 12)),
            (PREVIOUS, 1 << 8),
            (USER_PAGES, 1 << 18),
            (USER_START, LOW + 0x8000),
            (USER_CODE_ALIAS, KERNEL + (USER_CODE << 12)),
            (FUNCTION_ENTRY, KERNEL + ((KERNEL_TABLES + 1) << 12) + FUNCTION_WINDOW * 8),
            (FUNCTION, KERNEL + (FUNCTION_WINDOW << 12)),
            (INSTRUCTIONS, u64::from(addi(10, 10, 1)) << 32 | u64::from(addi(11, 11, 3))),
        ];
        fixed.into_iter().for_each(|(register, value)| state.x[register as usize] = value);
        hart.set_state(state);
        Subject { hart, memory: Memory(memory(seed)) }
    }

    /// Runs to an icount in pieces; a hart that `forgets` begins each without caches.
    fn run_to(&mut self, from: u64, to: u64, random: &mut Random, longest: u64, forgets: bool) {
        let mut done = from;
        while done < to {
            if forgets {
                self.hart.set_state(self.hart.state());
            }
            let piece = (1 + random.below(longest)).min(to - done);
            let run = self.hart.run(&mut self.memory, done, piece);
            assert_eq!(run.exit, HartExit::Budget, "nothing else ends a run of this program");
            done += run.retired;
            if random.below(200) == 0 {
                self.memory.0.digest();
            }
        }
    }
}

#[test]
fn caches_of_address_spaces_do_not_show() {
    let mut seen = [0; 3];
    for seed in 0..60 {
        let mut forgetful = Subject::new(seed, Engine::Interpreter, 0);
        let mut others = [
            (Subject::new(seed, Engine::Interpreter, 0), 100_000),
            (Subject::new(seed, Engine::Translator, seed as u32 % 3), 3000),
        ];
        let mut random = Random(seed ^ 0x5eed);
        let mut done = 0;
        for step in 0..12 {
            let to = done + 1 + random.below(4000);
            forgetful.run_to(done, to, &mut random, 12, true);
            let digest = forgetful.memory.0.digest();
            for (subject, longest) in &mut others {
                subject.run_to(done, to, &mut random, *longest, false);
                let what = format!("seed {seed}, step {step}, icount {to}");
                assert_eq!(subject.hart.state(), forgetful.hart.state(), "{what}");
                assert_eq!(subject.memory.0.digest(), digest, "memory, {what}");
            }
            done = to;
            let state = forgetful.hart.state();
            seen[0] |= 1 << (state.csrs.satp & 3);
            seen[1] |= 1u64 << (state.csrs.scause & 63);
            seen[2] |= 1 << state.privilege as u64;
        }
    }
    assert_eq!(seen[0], 0b1111, "every address space");
    assert_eq!(seen[2] & 3, 3, "U-mode and S-mode");
    for cause in [8, 12, 13, 15] {
        assert!(seen[1] >> cause & 1 != 0, "exceptions of every kind: {:b}", seen[1]);
    }
}

/// Executes code of the kernel by each engine; checks what it leaves in `a0`, which is 0 at first, and the
/// cause of the last exception.
fn expect(code: &[u32], a0: u64, cause: u64) {
    for engine in [Engine::Interpreter, Engine::Translator] {
        let mut subject = Subject::new(0, engine, 0);
        let words = code.iter().copied().chain([jal(0, 0)]).flat_map(|word| word.to_le_bytes());
        subject.memory.0.write(physical(CODE), &words.collect::<Vec<u8>>()).expect("it is in memory");
        let mut state = subject.hart.state();
        state.x[10] = 0;
        subject.hart.set_state(state);
        subject.hart.run(&mut subject.memory, 0, 500);
        let state = subject.hart.state();
        assert_eq!((state.x[10], state.csrs.scause), (a0, cause), "{engine}");
    }
}

/// Selects another address space, whose number is small.
fn change_to(space: u64) -> [u32; 2] {
    [ld(5, TO_SATPS, space as i32 * 8), csrrw(0, SATP, 5)]
}

#[test]
fn an_entry_of_the_present_root_is_followed_whoever_walked_it() {
    let entry = KERNEL + ((ROOTS + 1) << 12) + 511 * 8;
    let alias = 21;
    // The right to write to the root table is there before it is one.
    let mut code = load_constant(7, entry);
    code.extend([ld(6, alias, 0), sd(0, 7, -800)]);
    code.extend(change_to(1));
    // There is nothing any more at the address that was loaded from.
    code.extend([sd(0, 7, 0), ld(6, alias, 0)]);
    expect(&code, 0, 13);
    // In another root it does not count.
    code.truncate(code.len() - 2);
    code.extend(change_to(2));
    code.extend([sd(0, 7, 0), ld(6, alias, 0)]);
    expect(&code, 0, 0);
}

#[test]
fn code_in_the_lower_half_is_each_space_s_own() {
    let mut code = load_constant(6, LOW + 0xa000);
    code.push(jalr(RETURN, 6, 0));
    code.extend(change_to(1));
    code.push(jalr(RETURN, 6, 0));
    code.extend(change_to(2));
    code.push(jalr(RETURN, 6, 0));
    expect(&code, 5 + 77 + 5, 0);
    // Another function at the same place.
    code.extend(load_constant(7, KERNEL + ((USER_LEAVES + 2) << 12) + ((LOW >> 12) + 10) * 8));
    code.extend([ld(5, TO_ENTRIES, FUNCTION_ENTRIES + 8), sd(5, 7, 0), jalr(RETURN, 6, 0)]);
    expect(&code, 5 + 77 + 5 + 77, 0);
}

#[test]
fn data_in_the_lower_half_is_each_space_s_own_in_either_way_of_the_tlb() {
    let mut code = load_constant(6, LOW + 0xb000);
    code.extend(load_constant(7, LOW + 0xb000 + (8 << 20)));
    // The second one takes the first one's place.
    code.extend([addi(11, 0, 3), sd(11, 6, 0), ld(12, 7, 0), ld(10, 6, 0), ld(12, 7, 0)]);
    code.extend(change_to(1));
    code.extend([addi(11, 0, 4), sd(11, 6, 0)]);
    code.extend(change_to(0));
    code.extend([ld(12, 6, 0), ld(13, 7, 0)]);
    code.extend(change_to(1));
    code.extend([ld(13, 6, 0), add(10, 10, 13), ld(13, 7, 0), add(10, 10, 13), add(10, 10, 12)]);
    expect(&code, 3 + 4 + 4 + 3, 0);
}
