//! Every exception with what its handler finds, delegation, returns, and what each mode may do.

use secondwind_tests::differential::Mode;
use secondwind_tests::differential::directed::{Directed, Taken};
use secondwind_tests::differential::encode::{csr::*, *};
use secondwind_tests::differential::layout::DATA;

const MODES: [Mode; 3] = [Mode::Machine, Mode::Supervisor, Mode::User];
/// What `medeleg` can hold.
const DELEGABLE: u64 = 0xb3ff;
const NOWHERE: u64 = 0x9000_0000_0000;

const ILLEGAL: u64 = 2;
const MIE_BIT: u64 = 1 << 3;
const SIE_BIT: u64 = 1 << 1;
const SPIE: u64 = 1 << 5;
const MPIE: u64 = 1 << 7;
const SPP: u64 = 1 << 8;
const MPP: u64 = 3 << 11;
const MPRV: u64 = 1 << 17;
const TVM: u64 = 1 << 20;
const TW: u64 = 1 << 21;
const TSR: u64 = 1 << 22;
const FS: u64 = 3 << 13;
const SD: u64 = 1 << 63;

const LR_D: u32 = r(0x1000_302f, A2, A0, 0);
const SC_D: u32 = r(0x1800_302f, A2, A0, A1);
const AMOADD_D: u32 = r(0x302f, A2, A0, A1);
const AMOADD_W: u32 = r(0x202f, A2, A0, A1);

/// What an instruction raises: its name, the value of `a0`, its bits, cause, and value; none
/// means its own address.
type Case = (&'static str, u64, u32, u64, Option<u64>);

fn cases() -> Vec<Case> {
    let absent_csr = csrrs(A2, 0x5c0, ZERO);
    vec![
        ("an illegal word", 0, 0xffff_ffff, ILLEGAL, Some(0xffff_ffff)),
        ("a half of zeros", 0, 0, ILLEGAL, Some(0)),
        ("a CSR that is not there", 0, absent_csr, ILLEGAL, Some(u64::from(absent_csr))),
        ("ebreak", 0, EBREAK, 3, None),
        ("lr, misaligned", DATA + 4, LR_D, 4, Some(DATA + 4)),
        ("lr from nowhere", NOWHERE, LR_D, 5, Some(NOWHERE)),
        ("a load from nowhere", NOWHERE, lw(A2, A0, 8), 5, Some(NOWHERE + 8)),
        ("a misaligned load from nowhere", NOWHERE, ld(A2, A0, 3), 5, Some(NOWHERE + 3)),
        ("a float load from nowhere", NOWHERE, fld(A2, A0, 0), 5, Some(NOWHERE)),
        ("sc, misaligned", DATA + 1, SC_D, 6, Some(DATA + 1)),
        ("amoadd.d, misaligned", DATA + 4, AMOADD_D, 6, Some(DATA + 4)),
        ("amoadd.w, misaligned", DATA + 2, AMOADD_W, 6, Some(DATA + 2)),
        ("a store to nowhere", NOWHERE, sd(A1, A0, -8), 7, Some(NOWHERE - 8)),
        ("a misaligned store to nowhere", NOWHERE, sw(A1, A0, 1), 7, Some(NOWHERE + 1)),
        ("amoadd.w to nowhere", NOWHERE, AMOADD_W, 7, Some(NOWHERE)),
        ("a load beyond 56 bits", 1 << 56, ld(A2, A0, 0), 5, Some(1 << 56)),
    ]
}

/// The first trap of `word` in a mode, and the address of the word.
fn trap_of(mode: Mode, medeleg: u64, a0: u64, word: u32) -> (Taken, u64) {
    let mut directed = Directed::new();
    directed.set(MEDELEG, medeleg).load(A0, a0).load(A1, 1);
    directed.enter(mode, 0);
    let at = directed.asm.here();
    (directed.word(word).run().trap(), at)
}

fn handler_of(mode: Mode, medeleg: u64, cause: u64) -> Mode {
    if mode != Mode::Machine && medeleg >> cause & 1 != 0 { Mode::Supervisor } else { Mode::Machine }
}

/// The previous mode, as the handler finds it in its status.
fn mode_before(taken: &Taken) -> u64 {
    if taken.mode == Mode::Machine { (taken.status & MPP) >> 11 } else { (taken.status & SPP) >> 8 }
}

#[test]
fn each_exception_tells_its_cause_and_value_in_each_mode() {
    for (name, a0, word, cause, value) in cases() {
        for mode in MODES {
            for medeleg in [0, 1 << cause, DELEGABLE & !(1 << cause), DELEGABLE] {
                let (taken, at) = trap_of(mode, medeleg, a0, word);
                let found = (taken.cause, taken.epc, taken.tval);
                assert_eq!(found, (cause, at, value.unwrap_or(at)), "{name} in {mode:?}");
                assert_eq!(taken.mode, handler_of(mode, medeleg, cause), "{name} in {mode:?}, {medeleg:#x}");
                assert_eq!((mode_before(&taken), taken.vector), (mode as u64, 0), "{name} in {mode:?}");
            }
        }
    }
}

#[test]
fn calls_tell_their_mode() {
    for (mode, cause) in [(Mode::User, 8), (Mode::Supervisor, 9), (Mode::Machine, 11)] {
        for medeleg in [0, DELEGABLE] {
            let (taken, at) = trap_of(mode, medeleg, 0, ECALL);
            assert_eq!((taken.cause, taken.epc, taken.tval), (cause, at, 0));
            assert_eq!(taken.mode, handler_of(mode, medeleg, cause), "{mode:?}");
        }
    }
}

#[test]
fn a_jump_to_nowhere_faults_at_its_target() {
    for mode in MODES {
        for medeleg in [0, DELEGABLE] {
            let (taken, _) = trap_of(mode, medeleg, NOWHERE, jalr(ZERO, A0, 0));
            assert_eq!((taken.cause, taken.epc, taken.tval), (1, NOWHERE, NOWHERE));
            assert_eq!(taken.mode, handler_of(mode, medeleg, 1));
        }
    }
}

#[test]
fn what_cannot_be_delegated_stays() {
    let mut directed = Directed::new();
    directed.set(MEDELEG, u64::MAX).set(MIDELEG, u64::MAX);
    let ended = directed.words(&[csrrs(A0, MEDELEG, ZERO), csrrs(A1, MIDELEG, ZERO)]).run();
    assert_eq!((ended.x(A0), ended.x(A1)), (DELEGABLE, 0x222));
}

#[test]
fn a_trap_stacks_the_interrupt_enable() {
    for (enabled, stacked) in [(0, 0), (MPIE, MPIE)] {
        // `enter` returns with MPIE: it becomes MIE, and the trap stacks that.
        let taken = Directed::new().enter(Mode::Machine, enabled).word(ECALL).run().trap();
        assert_eq!(taken.status & (MIE_BIT | MPIE | MPP), stacked | MPP);
    }
    for (enabled, stacked) in [(0, 0), (SIE_BIT, SPIE)] {
        let mut directed = Directed::new();
        directed.set(MEDELEG, DELEGABLE).enter(Mode::Supervisor, enabled);
        let taken = directed.word(ECALL).run().trap();
        assert_eq!(taken.status & (SIE_BIT | SPIE | SPP), stacked | SPP);
    }
}

#[test]
fn mret_restores_what_was_stacked() {
    for (mode, before, after) in [
        (Mode::Machine, MPIE | MPRV, MIE_BIT | MPIE | MPRV),
        (Mode::Machine, MIE_BIT, MPIE),
        (Mode::Supervisor, MPIE | MPRV, MIE_BIT | MPIE),
        (Mode::User, MIE_BIT | MPRV, MPIE),
    ] {
        let mut directed = Directed::new();
        let taken = directed.enter(mode, before).word(ECALL).run().trap();
        // The trap moved MIE to MPIE, and MPIE is always set after `mret`.
        let enabled = if after & MIE_BIT != 0 { MPIE } else { 0 };
        let expected = enabled | after & MPRV | (mode as u64) << 11;
        assert_eq!(taken.status & (MPIE | MPRV | MPP), expected, "{mode:?} {before:#x}");
    }
    let ended = Directed::new().enter(Mode::Machine, 0).word(csrrs(A0, MSTATUS, ZERO)).run();
    assert_eq!(ended.x(A0) & (MIE_BIT | MPIE | MPP), MPIE, "MPP is the least mode afterwards");
}

#[test]
fn sret_restores_what_was_stacked() {
    for (before, mode, enabled) in
        [(SPP | SPIE, Mode::Supervisor, SPIE), (SPP, Mode::Supervisor, 0), (SPIE, Mode::User, SPIE)]
    {
        let mut directed = Directed::new();
        let body = directed.asm.label();
        directed.asm.address_of(A0, body);
        directed.word(csrrw(ZERO, SEPC, A0)).set(MEDELEG, DELEGABLE);
        directed.enter(Mode::Supervisor, before).word(SRET);
        directed.asm.bind(body);
        let taken = directed.word(EBREAK).run().trap();
        assert_eq!((taken.cause, taken.mode), (3, Mode::Supervisor));
        assert_eq!(mode_before(&taken), mode as u64, "{before:#x}");
        assert_eq!(taken.status & SPIE, enabled, "{before:#x}: SIE came back, and was stacked again");
    }
    // From M-mode too; MPRV ends, since S-mode is less than M-mode.
    let mut directed = Directed::new();
    let body = directed.asm.label();
    directed.asm.address_of(A0, body);
    directed.word(csrrw(ZERO, SEPC, A0)).set(MSTATUS, MPRV | MPP | SPP).word(SRET);
    directed.asm.bind(body);
    let taken = directed.word(ECALL).run().trap();
    assert_eq!((taken.cause, taken.status & MPRV), (9, 0));
}

#[test]
fn returns_ignore_the_lowest_bit_of_their_address() {
    let mut directed = Directed::new();
    directed.load(A0, u64::MAX).words(&[csrrw(ZERO, MEPC, A0), csrrs(A1, MEPC, ZERO)]);
    let ended = directed.words(&[csrrw(ZERO, SEPC, A0), csrrs(A2, SEPC, ZERO)]).run();
    assert_eq!((ended.x(A1), ended.x(A2)), (u64::MAX - 1, u64::MAX - 1));
}

/// Whether an instruction is illegal in a mode under these bits of `mstatus`. It may raise
/// something else.
fn is_illegal(mode: Mode, status: u64, word: u32) -> bool {
    let mut directed = Directed::new();
    // `wfi` goes on at once: an interrupt is pending that no mode takes.
    directed.set(MIDELEG, 2).set(MIE, 2).set(MIP, 2);
    if mode == Mode::User {
        // There it would be taken.
        directed.set(MIE, 0);
    }
    let trap = directed.enter(mode, status).word(word).run().trap;
    trap.is_some_and(|taken| taken.cause == ILLEGAL && taken.tval == u64::from(word))
}

#[test]
fn each_mode_may_execute_what_it_may() {
    let read_satp = csrrs(A2, SATP, ZERO);
    let write_satp = csrrw(ZERO, SATP, ZERO);
    // The instruction, the bit that takes it from S-mode, and whether S-mode has it at all.
    for (name, word, trap_bit, in_supervisor) in [
        ("mret", MRET, 0, false),
        ("sret", SRET, TSR, true),
        ("wfi", WFI, TW, true),
        ("sfence.vma", SFENCE_VMA, TVM, true),
        ("sfence.vma a0, a1", r(SFENCE_VMA, ZERO, A0, A1), TVM, true),
        ("reading satp", read_satp, TVM, true),
        ("writing satp", write_satp, TVM, true),
        ("reading mstatus", csrrs(A2, MSTATUS, ZERO), 0, false),
        ("reading sstatus", csrrs(A2, SSTATUS, ZERO), 0, true),
    ] {
        for status in [0, TVM | TW | TSR] {
            assert!(!is_illegal(Mode::Machine, status, word), "{name} in M-mode, {status:#x}");
            assert!(is_illegal(Mode::User, status, word), "{name} in U-mode, {status:#x}");
            let expected = !in_supervisor || status & trap_bit != 0;
            assert_eq!(is_illegal(Mode::Supervisor, status, word), expected, "{name}, {status:#x}");
        }
    }
}

#[test]
fn a_csr_is_for_the_mode_in_its_number() {
    for number in [SSTATUS, SEPC, STVEC, SCAUSE, SATP, MSTATUS, MEPC, MIP, MHARTID, MISA, PMPCFG0, PMPADDR0] {
        for mode in MODES {
            let word = csrrs(A2, number, ZERO);
            let needed = u64::from(number >> 8 & 3);
            assert_eq!(is_illegal(mode, 0, word), (mode as u64) < needed, "{number:#x} in {mode:?}");
        }
    }
    // Number bits 11 and 10 make it read-only; to set no bit is not to write.
    for number in [MHARTID, 0xf11, CYCLE, TIME, INSTRET] {
        assert!(is_illegal(Mode::Machine, 0, csrrw(A2, number, ZERO)), "{number:#x}");
        assert!(is_illegal(Mode::Machine, 0, csrrs(A2, number, A0)), "{number:#x}");
        assert!(!is_illegal(Mode::Machine, 0, csrrs(A2, number, ZERO)), "{number:#x}");
        assert!(!is_illegal(Mode::Machine, 0, i(0x7073, A2, 0, number as i32)), "csrrci {number:#x}, 0");
    }
}

#[test]
fn counters_are_open_to_whom_the_enables_say() {
    for (bit, number) in [(1, CYCLE), (2, TIME), (4, INSTRET)] {
        for mcounteren in [0, bit, 7 & !bit, 7] {
            for scounteren in [0, bit, 7 & !bit, 7] {
                for mode in MODES {
                    let mut directed = Directed::new();
                    directed.set(MCOUNTEREN, mcounteren).set(SCOUNTEREN, scounteren);
                    let trap = directed.enter(mode, 0).word(csrrs(A2, number, ZERO)).run().trap;
                    let open = match mode {
                        Mode::Machine => true,
                        Mode::Supervisor => mcounteren & bit != 0,
                        Mode::User => mcounteren & scounteren & bit != 0,
                    };
                    assert_eq!(trap.is_none(), open, "{number:#x} in {mode:?}: {mcounteren}, {scounteren}");
                }
            }
        }
    }
}

#[test]
fn counters_count_stop_and_can_be_written() {
    let mut directed = Directed::new();
    directed.load(A0, 1000).words(&[csrrw(ZERO, MINSTRET, A0), NOP, NOP, csrrs(A1, MINSTRET, ZERO)]);
    directed.load(A0, 4).words(&[csrrw(ZERO, MCOUNTINHIBIT, A0), csrrs(A2, MINSTRET, ZERO), NOP]);
    let ended = directed.word(csrrs(13, MINSTRET, ZERO)).run();
    assert_eq!(ended.x(A1), 1002, "the write itself is not counted, nor is the read");
    assert_eq!(ended.x(A2), ended.x(13), "inhibited");
}

#[test]
fn float_instructions_need_and_dirty_their_state() {
    let fadd = r(0x0200_7053, 2, 1, 1);
    for word in [fadd, fld(1, A0, 0), fsd(1, A0, 0), csrrs(A2, FCSR, ZERO), r(0xf200_0053, 1, A0, 0)] {
        let mut directed = Directed::new();
        let trap = directed.load(A0, DATA).set(MSTATUS, 0).word(word).run().trap();
        assert_eq!((trap.cause, trap.tval), (ILLEGAL, u64::from(word)));
        let mut directed = Directed::new();
        directed.load(A0, DATA).set(MSTATUS, 1 << 13).word(word);
        let status = directed.word(csrrs(13, MSTATUS, ZERO)).run().x(13);
        let writes = word != fsd(1, A0, 0) && word != csrrs(A2, FCSR, ZERO);
        assert_eq!(status & (FS | SD) == FS | SD, writes, "{word:08x}: {status:#x}");
    }
}

#[test]
fn environment_calls_of_cache_blocks_are_opened_by_envcfg() {
    let zero = 0x0040_200f | A0 << 15;
    let clean = 0x0010_200f | A0 << 15;
    let invalidate = 0x0000_200f | A0 << 15;
    for (word, bits) in [(zero, 1 << 7), (clean, 1 << 6), (invalidate, 1 << 4), (invalidate, 3 << 4)] {
        for (menvcfg, senvcfg) in [(0, 0), (bits, 0), (0, bits), (bits, bits)] {
            for mode in MODES {
                let mut directed = Directed::new();
                directed.set(MENVCFG, menvcfg).set(SENVCFG, senvcfg).load(A0, DATA + 5);
                let ended = directed.memory_u64(DATA, 7).enter(mode, 0).word(word).run();
                let open = match mode {
                    Mode::Machine => true,
                    Mode::Supervisor => menvcfg != 0,
                    Mode::User => menvcfg != 0 && senvcfg != 0,
                };
                assert_eq!(ended.trap.is_none(), open, "{word:08x} in {mode:?}");
                let kept = if open && word == zero { 0 } else { 7 };
                assert_eq!(ended.memory_u64(DATA), kept, "{word:08x} in {mode:?}");
            }
        }
    }
}
