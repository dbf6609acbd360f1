//! What each version of the semantics has.

use super::encode::*;
use super::*;
use crate::semantics::Semantics;

const HANDLER: u64 = RAM_BASE + 0x800;
const TABLES: u64 = RAM_BASE + 0x10_0000;
const DATA: u64 = RAM_BASE + 0x1000;
const SATP: u32 = 0x180;
const SV48: u64 = 9 << 60;
/// Valid, readable, writable, executable.
const LEAF: u64 = 0xf;
const TABLE: u64 = 1;

const CZERO_EQZ: u32 = 0x0e00_5033 | A0 << 7 | A1 << 15 | A2 << 20;
const CZERO_NEZ: u32 = CZERO_EQZ | 0x2000;

/// A hart in S-mode at the start of RAM, where `code` is.
fn supervisor_with(semantics: Semantics, code: &[u32]) -> (Hart, TestBus) {
    let mut bus = TestBus::new();
    bus.put_code(RAM_BASE, code);
    bus.put_code(HANDLER, &[jal(ZERO, 0)]);
    let mut hart = Hart::new(0, HartOptions { semantics, ..options() });
    hart.start_supervisor(RAM_BASE, 0, 0);
    let mut state = hart.state();
    state.csrs.stvec = HANDLER;
    hart.set_state(state);
    (hart, bus)
}

#[test]
fn the_second_version_brings_zicond() {
    for (word, condition, expected) in
        [(CZERO_EQZ, 0, 0), (CZERO_EQZ, 1 << 63, 7), (CZERO_NEZ, 0, 7), (CZERO_NEZ, 1 << 63, 0)]
    {
        for (semantics, has) in [(Semantics::FIRST, false), (Semantics::NEWEST, true)] {
            let (mut hart, mut bus) = supervisor_with(semantics, &[word]);
            (10..13).for_each(|register| hart.set_register(register, [1, 7, condition][register - 10]));
            run(&mut hart, &mut bus, 1);
            let csrs = hart.state().csrs;
            let (result, trap) = if has { (expected, 0) } else { (1, u64::from(word)) };
            assert_eq!((hart.register(10), csrs.stval), (result, trap), "{word:08x} with {condition:#x}");
        }
    }
}

#[test]
fn the_second_version_brings_sv48() {
    let satp = SV48 | TABLES >> 12;
    for (semantics, kept) in [(Semantics::FIRST, 0), (Semantics::NEWEST, satp)] {
        let (mut hart, mut bus) = supervisor_with(semantics, &[csrrw(ZERO, SATP, T0), csrrs(A0, SATP, ZERO)]);
        hart.set_register(T0 as usize, satp);
        put_tables(&mut bus, RAM_BASE);
        run(&mut hart, &mut bus, 2);
        assert_eq!(hart.register(A0 as usize), kept);
    }
}

/// Maps the gigabyte at RAM's place to itself, and the page at `address` to [`DATA`].
fn put_tables(bus: &mut TestBus, address: u64) {
    let next = |level: u64| (TABLES + level * 0x1000) >> 12 << 10 | TABLE;
    let index = |shift: u32| (address >> shift & 0x1ff) * 8;
    bus.put(TABLES, next(4));
    bus.put(TABLES + 0x4000 + 16, RAM_BASE >> 12 << 10 | LEAF);
    if address != RAM_BASE {
        bus.put(TABLES + index(39), next(1));
        bus.put(TABLES + 0x1000 + index(30), next(2));
        bus.put(TABLES + 0x2000 + index(21), next(3));
        bus.put(TABLES + 0x3000 + index(12), DATA >> 12 << 10 | LEAF);
    }
}

#[test]
fn sv48_walks_four_levels() {
    let high = 0xffff_8765_4321_1000;
    let code = [ld(A0, A1, 8), addi(A0, A0, 1), sd(A0, A1, 16), ld(A2, A3, 0)];
    let (mut hart, mut bus) = supervisor_with(Semantics::NEWEST, &code);
    put_tables(&mut bus, high);
    bus.put(DATA + 8, 41);
    let mut state = hart.state();
    state.csrs.satp = SV48 | TABLES >> 12;
    // Bit 47 is not copied to the bits above it.
    (state.x[A1 as usize], state.x[A3 as usize]) = (high, high ^ 1 << 48);
    hart.set_state(state);
    run(&mut hart, &mut bus, 4);
    let csrs = hart.state().csrs;
    assert_eq!((hart.register(A0 as usize), bus.at(DATA + 16)), (42, 42));
    assert_eq!((csrs.scause, csrs.stval, csrs.sepc), (13, high ^ 1 << 48, RAM_BASE + 12));
}

#[test]
fn a_state_with_an_impossible_satp_is_taken() {
    for mode in 0..16u64 {
        let (mut hart, mut bus) = supervisor_with(Semantics::FIRST, &[NOP, NOP]);
        let mut state = hart.state();
        state.csrs.satp = mode << 60 | TABLES >> 12;
        hart.set_state(state);
        run(&mut hart, &mut bus, 2);
        assert!(matches!(hart.state().csrs.satp >> 60, 0 | 8), "mode {mode}");
    }
}
