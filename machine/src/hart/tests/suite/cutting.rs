//! Law 1: neither how execution is cut nor empty caches can be told.

use super::encode::*;
use super::*;
use crate::CheckpointExtent;

const EXTENTS: [CheckpointExtent; 3] =
    [CheckpointExtent::Full, CheckpointExtent::Epoch, CheckpointExtent::Increment];
const TABLES: u64 = RAM_BASE + 0x10_0000;
const DATA: u64 = RAM_BASE + 0x20_0000;

/// A program that does everything at once: loops, misaligned and page-crossing accesses, devices,
/// exceptions, code that changes itself, page tables that change, reservations, counters.
fn busy_program() -> Vec<u32> {
    let mut code = Vec::new();
    code.extend(load_constant(S0, DATA));
    code.extend(load_constant(T0, RAM_BASE + 0x3000));
    code.push(csrrw(ZERO, 0x305, T0));
    code.extend(load_constant(A3, LOG_DEVICE));
    let top = code.len();
    code.extend([
        addi(A0, A0, 1),
        mul(A1, A1, A0),
        xor(A1, A1, A0),
        sd(A1, S0, 0),
        sd(A1, S0, 0x7f),
        ld(A2, S0, 0x7d),
        add(A1, A1, A2),
        // Crosses from one page to the next.
        lui(T1, 1),
        add(T1, T1, S0),
        sd(A1, T1, -3),
        lw(T2, T1, -2),
        add(A1, A1, T2),
        // A reservation, and a counter that is exact.
        lr_d(T2, S0),
        sc_d(T2, A1, S0),
        amoadd_d(T2, A0, S0),
        csrrs(T2, 0xb00, ZERO),
        add(A1, A1, T2),
        ld(T2, A3, 8),
        add(A1, A1, T2),
        sd(A1, A3, 0),
        // The handler skips it and adds the causes up.
        ECALL,
        ld(T2, ZERO, 16),
        0xffff_ffff,
    ]);
    // `addi a1, a1, n`, with another n each time, two instructions on.
    let site = code.len();
    code.extend([
        auipc(T0, 0),
        lw(T1, T0, 20),
        lui(T2, 0x100),
        add(T1, T1, T2),
        sw(T1, T0, 20),
        addi(A1, A1, 1),
    ]);
    assert_eq!(site + 5, code.len() - 1);
    let back = (top as i32 - code.len() as i32) * 4;
    code.push(jal(ZERO, back));
    code
}

/// Adds the cause and value to a1 and returns behind the instruction.
fn handler() -> Vec<u32> {
    vec![
        csrrs(T0, 0x342, ZERO),
        add(A1, A1, T0),
        csrrs(T0, 0x343, ZERO),
        xor(A1, A1, T0),
        csrrs(T0, 0x341, ZERO),
        addi(T0, T0, 4),
        csrrw(ZERO, 0x341, T0),
        MRET,
    ]
}

fn busy() -> (Hart, TestBus) {
    let (hart, mut bus) = machine_with(&busy_program());
    bus.put_code(RAM_BASE + 0x3000, &handler());
    (hart, bus)
}

/// S-mode under Sv39, where a page is mapped elsewhere again and again, without a fence.
fn paged() -> (Hart, TestBus) {
    let mut bus = TestBus::new();
    let leaf = |address: u64| (address >> 12) << 10 | 0xcf;
    let table = |address: u64| (address >> 12) << 10 | 1;
    // One gigapage for RAM, one for devices; at 0 a table of tables.
    bus.put(TABLES, table(TABLES + 0x1000));
    bus.put(TABLES + 16, leaf(RAM_BASE));
    bus.put(TABLES + 0x1000, table(TABLES + 0x2000));
    bus.put(TABLES + 0x2000 + 8, leaf(DATA));
    let mut code = Vec::new();
    code.extend(load_constant(S0, TABLES + 0x2000 + 8));
    code.extend(load_constant(A3, 4 << 10));
    code.extend(load_constant(A2, 0x1000));
    let top = code.len();
    code.extend([
        addi(A0, A0, 1),
        sd(A0, A2, 8),
        ld(A1, A2, 8),
        ld(T0, S0, 0),
        xor(T0, T0, A3),
        sd(T0, S0, 0),
        ld(T1, A2, 8),
        add(T2, T2, T1),
        // Writable no more, and back: the exception is counted by the handler.
        ld(T0, S0, 0),
        addi(T1, T0, -4),
        sd(T1, S0, 0),
        sd(A0, A2, 16),
        sd(T0, S0, 0),
    ]);
    let back = (top as i32 - code.len() as i32) * 4;
    code.push(jal(ZERO, back));
    bus.put_code(RAM_BASE, &code);
    bus.put_code(
        RAM_BASE + 0x3000,
        &[
            csrrs(T1, 0x143, ZERO),
            add(T2, T2, T1),
            csrrs(T1, 0x141, ZERO),
            addi(T1, T1, 4),
            csrrw(ZERO, 0x141, T1),
            SRET,
        ],
    );
    let mut hart = Hart::new(0, HartOptions { sbi_builtin: true, ..options() });
    hart.start_supervisor(RAM_BASE, 0, 0);
    let mut state = hart.state();
    state.csrs.satp = 8 << 60 | TABLES >> 12;
    state.csrs.stvec = RAM_BASE + 0x3000;
    hart.set_state(state);
    (hart, bus)
}

#[derive(Debug, PartialEq)]
struct Outcome {
    state: HartState,
    memory: u128,
    log: Vec<(u64, u64)>,
}

fn outcome(hart: &Hart, bus: &mut TestBus) -> Outcome {
    Outcome { state: hart.state(), memory: bus.ram.digest(), log: bus.log.clone() }
}

/// Numbers without pattern, the same every time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}

fn check_cuts(make: fn() -> (Hart, TestBus)) {
    const COUNT: u64 = 20_000;
    let (mut hart, mut bus) = make();
    run(&mut hart, &mut bus, COUNT);
    let whole = outcome(&hart, &mut bus);
    for seed in 0..6 {
        let mut random = Random(seed);
        let longest = [1, 3, 40, 200, 5000, 9][seed as usize];
        let (mut hart, mut bus) = make();
        let mut done = 0;
        while done < COUNT {
            let count = (1 + random.below(longest)).min(COUNT - done);
            run_from(&mut hart, &mut bus, done, count);
            done += count;
            match random.below(20) {
                0 => {
                    bus.ram.digest();
                }
                1 => {
                    bus.ram.begin_checkpoint(EXTENTS[random.below(3) as usize]);
                }
                2 => EXTENTS.into_iter().for_each(|extent| drop(bus.ram.take_pages(extent, 3))),
                _ => {}
            }
        }
        assert_eq!(outcome(&hart, &mut bus), whole, "pieces of up to {longest}");
    }
}

fn check_restores(make: fn() -> (Hart, TestBus)) {
    const COUNT: u64 = 3_000;
    let (mut hart, mut bus) = make();
    run(&mut hart, &mut bus, COUNT);
    let whole = outcome(&hart, &mut bus);
    let (mut hart, mut bus) = make();
    let mut random = Random(7);
    let mut done = 0;
    while done < COUNT {
        let count = (1 + random.below(100)).min(COUNT - done);
        run_from(&mut hart, &mut bus, done, count);
        done += count;
        let mut restored = Hart::new(0, HartOptions { sbi_builtin: true, ..options() });
        restored.set_state(hart.state());
        hart = restored;
    }
    assert_eq!(outcome(&hart, &mut bus), whole);
}

#[test]
fn cuts_do_not_show_in_a_busy_program() {
    check_cuts(busy);
}

#[test]
fn cuts_do_not_show_while_page_tables_change() {
    check_cuts(paged);
}

#[test]
fn restores_do_not_show_in_a_busy_program() {
    check_restores(busy);
}

#[test]
fn restores_do_not_show_while_page_tables_change() {
    check_restores(paged);
}

#[test]
fn a_small_code_cache_does_not_show() {
    let (mut hart, mut bus) = busy();
    run(&mut hart, &mut bus, 20_000);
    let whole = outcome(&hart, &mut bus);
    let (_, mut bus) = busy();
    let options = HartOptions { code_cache_bytes: 0, ..options() };
    let mut hart = Hart::new(0, options);
    hart.start_machine(RAM_BASE, 0, 0);
    run(&mut hart, &mut bus, 20_000);
    assert_eq!(outcome(&hart, &mut bus), whole);
}

#[test]
fn the_program_runs_as_it_should() {
    let (mut hart, mut bus) = busy();
    run(&mut hart, &mut bus, 20_000);
    assert!(hart.register(A0 as usize) > 300, "rounds of the loop");
    assert!(bus.log.len() > 300, "stores to the device");
    let (mut hart, mut bus) = paged();
    run(&mut hart, &mut bus, 1_000);
    let rounds = hart.register(A0 as usize);
    assert!(rounds > 40);
    // The page was written through in every round, at one place and at the other.
    assert!(bus.at(DATA + 8) >= rounds - 1 && bus.at(DATA + 0x4000 + 8) >= rounds - 2);
}
