//! Which interrupt is taken, by whom, and where its handler begins; `wfi` and the timer of Sstc.

use secondwind_tests::differential::Mode;
use secondwind_tests::differential::directed::{Directed, Taken};
use secondwind_tests::differential::encode::{csr::*, *};

const INTERRUPT: u64 = 1 << 63;
const SSI: u64 = 1 << 1;
const MSI: u64 = 1 << 3;
const STI: u64 = 1 << 5;
const MTI: u64 = 1 << 7;
const SEI: u64 = 1 << 9;
const MEI: u64 = 1 << 11;
/// By falling priority.
const PRIORITY: [u64; 6] = [MEI, MSI, MTI, SEI, SSI, STI];
const SUPERVISOR: u64 = SSI | STI | SEI;
const ALL: u64 = SUPERVISOR | MSI | MTI | MEI;

const SIE_BIT: u64 = 1 << 1;
/// `mret` makes MIE of it.
const MPIE: u64 = 1 << 7;
const STCE: u64 = 1 << 63;
const COUNTER_TIME: u64 = 2;

/// `csrrsi zero, csr, bits`.
fn set_bits(number: u32, bits: u32) -> u32 {
    i(0x6073, ZERO, bits, number as i32)
}

struct Setup {
    pending: u64,
    enabled: u64,
    mideleg: u64,
    mode: Mode,
    /// `mstatus` on the way into the mode.
    status: u64,
}

impl Setup {
    /// The interrupt that is taken on the way into the mode or right after, if one is.
    fn taken(&self) -> Option<Taken> {
        let mut directed = Directed::new();
        directed.lines(self.pending).words(&[set_bits(MTVEC, 1), set_bits(STVEC, 1)]);
        directed.set(MIDELEG, self.mideleg).set(MIE, self.enabled).enter(self.mode, self.status);
        let trap = directed.words(&[NOP, ECALL]).run().trap();
        (trap.cause & INTERRUPT != 0).then_some(trap)
    }

    /// What the privileged specification says is taken: by whom, and which.
    fn expected(&self) -> Option<(Mode, u64)> {
        let ready = self.pending & self.enabled;
        let in_machine = self.mode != Mode::Machine || self.status & MPIE != 0;
        let in_supervisor = match self.mode {
            Mode::User => true,
            Mode::Supervisor => self.status & SIE_BIT != 0,
            Mode::Machine => false,
        };
        let first = |set: u64| PRIORITY.into_iter().find(|bit| set & bit != 0);
        let to_machine = first(ready & !self.mideleg).filter(|_| in_machine);
        let to_supervisor = first(ready & self.mideleg).filter(|_| in_supervisor);
        let machine = to_machine.map(|bit| (Mode::Machine, bit));
        machine.or(to_supervisor.map(|bit| (Mode::Supervisor, bit)))
    }

    fn check(&self) {
        let Setup { pending, enabled, mideleg, mode, status } = self;
        let what = format!("{mode:?}: {pending:#x}, {enabled:#x}, {mideleg:#x}, {status:#x}");
        let taken = self.taken();
        let found = taken.map(|taken| (taken.mode, 1 << (taken.cause & 63)));
        assert_eq!(found, self.expected(), "{what}");
        let Some(taken) = taken else { return };
        assert_eq!((taken.vector, taken.tval), (4 * (taken.cause & 63), 0), "{what}: vectored");
    }
}

#[test]
fn each_interrupt_is_taken_where_it_is_enabled() {
    for mode in [Mode::Machine, Mode::Supervisor, Mode::User] {
        for status in [0, SIE_BIT, MPIE, SIE_BIT | MPIE] {
            for pending in PRIORITY {
                for mideleg in [0, SUPERVISOR] {
                    for enabled in [pending, ALL & !pending, ALL] {
                        Setup { pending, enabled, mideleg, mode, status }.check();
                    }
                }
            }
        }
    }
}

#[test]
fn the_most_urgent_of_several_is_taken() {
    for mode in [Mode::Machine, Mode::Supervisor, Mode::User] {
        for pending in 0..64u64 {
            let pending: u64 = PRIORITY.iter().enumerate().map(|(at, bit)| (pending >> at & 1) * bit).sum();
            for mideleg in [0, SUPERVISOR, SSI, SEI | STI] {
                Setup { pending, enabled: ALL, mideleg, mode, status: SIE_BIT | MPIE }.check();
            }
        }
    }
}

#[test]
fn direct_handlers_begin_at_their_base() {
    let mut directed = Directed::new();
    directed.lines(MEI).set(MIE, MEI).enter(Mode::Machine, MPIE);
    let taken = directed.word(NOP).run().trap();
    assert_eq!((taken.cause, taken.vector), (INTERRUPT | 11, 0));
    // Exceptions do so in vectored mode too.
    let taken = Directed::new().words(&[set_bits(MTVEC, 1), EBREAK]).run().trap();
    assert_eq!((taken.cause, taken.vector), (3, 0));
}

#[test]
fn software_raises_what_it_may() {
    // M-mode: the supervisor's three. S-mode: only SSIP, and only where it is delegated.
    let ended = Directed::new().set(MIP, u64::MAX).word(csrrs(A0, MIP, ZERO)).run();
    assert_eq!(ended.x(A0), SUPERVISOR);
    for (mideleg, seen) in [(0, 0), (SUPERVISOR, SSI), (SEI | STI, 0)] {
        let mut directed = Directed::new();
        directed.set(MIDELEG, mideleg).enter(Mode::Supervisor, 0).set(SIP, u64::MAX);
        let ended = directed.word(csrrs(A0, SIP, ZERO)).run();
        assert_eq!(ended.x(A0), seen, "{mideleg:#x}");
    }
    for mideleg in [0, SUPERVISOR] {
        let mut directed = Directed::new();
        directed.set(MIDELEG, mideleg).enter(Mode::Supervisor, 0).set(SIE, u64::MAX);
        assert_eq!(directed.word(csrrs(A0, SIE, ZERO)).run().x(A0), mideleg);
    }
}

#[test]
fn an_interrupt_interrupts_between_two_instructions() {
    let mut directed = Directed::new();
    directed.set(MIE, SSI).set(MIP, SSI);
    directed.word(addi(A0, ZERO, 1)).word(set_bits(MSTATUS, 8));
    let next = directed.asm.here();
    let ended = directed.word(addi(A0, ZERO, 2)).run();
    assert_eq!((ended.trap().epc, ended.trap().cause, ended.x(A0)), (next, INTERRUPT | 1, 1));
}

#[test]
fn waiting_ends_with_an_interrupt_whether_it_is_taken_or_not() {
    for mode in [Mode::Machine, Mode::Supervisor] {
        let mut directed = Directed::new();
        directed.lines(SEI).set(MIE, SEI).set(MIDELEG, SEI).enter(mode, 0);
        let ended = directed.words(&[WFI, addi(A0, ZERO, 1)]).run();
        assert_eq!((ended.trap.is_none(), ended.x(A0)), (true, 1), "{mode:?}: not enabled, goes on");
    }
    let mut directed = Directed::new();
    directed.set(MIE, SSI).set(MIP, SSI).words(&[WFI, set_bits(MSTATUS, 8)]);
    let after = directed.asm.here();
    assert_eq!(directed.word(NOP).run().trap().epc, after);
}

#[test]
fn the_supervisors_timer_needs_its_enables() {
    for (menvcfg, mcounteren) in [(0, 0), (STCE, 0), (0, COUNTER_TIME), (STCE, COUNTER_TIME)] {
        let mut directed = Directed::new();
        directed.set(MENVCFG, menvcfg).set(MCOUNTEREN, mcounteren).enter(Mode::Supervisor, 0);
        let word = csrrs(A0, STIMECMP, ZERO);
        let trap = directed.word(word).run().trap;
        let open = menvcfg != 0 && mcounteren != 0;
        assert_eq!(trap.map(|taken| (taken.cause, taken.tval)), (!open).then_some((2, u64::from(word))));
    }
}

#[test]
fn the_supervisors_timer_rings_while_its_time_is_past() {
    let mut directed = Directed::new();
    directed.set(MENVCFG, STCE).set(STIMECMP, 0).word(csrrs(A0, MIP, ZERO));
    // Software cannot clear it; a time to come does.
    directed.set(MIP, 0).word(csrrs(A1, MIP, ZERO));
    let ended = directed.set(STIMECMP, u64::MAX).word(csrrs(A2, MIP, ZERO)).run();
    assert_eq!((ended.x(A0), ended.x(A1), ended.x(A2)), (STI, STI, 0));
    // In S-mode, delegated.
    let mut directed = Directed::new();
    directed.set(MENVCFG, STCE).set(MIDELEG, STI).set(MIE, STI).set(STIMECMP, 0);
    directed.enter(Mode::Supervisor, SIE_BIT).word(NOP);
    let taken = directed.run().trap();
    assert_eq!((taken.cause, taken.mode), (INTERRUPT | 5, Mode::Supervisor));
}
