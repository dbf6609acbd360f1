//! Sv39 and Sv48: which accesses a page table permits, what faults tell, accessed and dirty bits.

use secondwind_tests::differential::Mode;
use secondwind_tests::differential::directed::{Directed, Ended};
use secondwind_tests::differential::encode::{csr::*, *};
use secondwind_tests::differential::layout::{DATA, RAM, TABLES};

/// Where it leads.
const FRAME: u64 = DATA;
/// The code of U-mode lies this far above that of S-mode.
const ALIAS: u64 = 1 << 30;

const V: u64 = 1 << 0;
const R: u64 = 1 << 1;
const W: u64 = 1 << 2;
const X: u64 = 1 << 3;
const U: u64 = 1 << 4;
const G: u64 = 1 << 5;
const A: u64 = 1 << 6;
const D: u64 = 1 << 7;
const ALL: u64 = V | R | W | X | A | D;

const SUM: u64 = 1 << 18;
const MXR: u64 = 1 << 19;
const MPRV: u64 = 1 << 17;
/// Accessed and dirty bits are set by the hart.
const ADUE: u64 = 1 << 61;

const FETCH_FAULT: u64 = 12;
const LOAD_FAULT: u64 = 13;
const STORE_FAULT: u64 = 15;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Sv39,
    Sv48,
}
use Scheme::{Sv39, Sv48};

impl Scheme {
    fn levels(self) -> u32 {
        if self == Sv39 { 3 } else { 4 }
    }

    /// The page under test, which shares no table with the code.
    fn page(self) -> u64 {
        if self == Sv39 { 0x12_3456_7000 } else { 0x5512_3456_7000 }
    }

    fn satp(self) -> u64 {
        (self.levels() as u64 + 5) << 60 | TABLES >> 12
    }
}

fn leaf(frame: u64, bits: u64) -> u64 {
    frame >> 12 << 10 | bits
}

/// Where the entry of `level` for an address is, with one table for each level: the root is
/// [`TABLES`], and a table lies a page after the one above it.
fn entry_address(scheme: Scheme, address: u64, level: u32) -> u64 {
    let table = TABLES + u64::from(scheme.levels() - 1 - level) * 0x1000;
    table + (address >> (12 + 9 * level) & 0x1ff) * 8
}

/// A program in a mode, whose table has `entry` at `level` on the way to `address`. Its own code
/// is mapped as it lies, and for U-mode [`ALIAS`] above.
struct Mapped {
    scheme: Scheme,
    address: u64,
    level: u32,
    entry: u64,
    menvcfg: u64,
    mode: Mode,
    status: u64,
}

impl Mapped {
    fn page(scheme: Scheme, entry: u64) -> Mapped {
        let (menvcfg, mode) = (0, Mode::Supervisor);
        Mapped { scheme, address: scheme.page(), level: 0, entry, menvcfg, mode, status: 0 }
    }

    fn run(&self, words: &[u32]) -> Ended {
        let Mapped { scheme, address, level, .. } = *self;
        let mut directed = Directed::new();
        directed.memory_u64(FRAME, 0x0010_0073).memory_u64(FRAME + 8, 7);
        for above in level + 1..scheme.levels() {
            let next = entry_address(scheme, 0, above - 1) & !0xfff;
            directed.memory_u64(entry_address(scheme, address, above), leaf(next, V));
        }
        directed.memory_u64(entry_address(scheme, address, level), self.entry);
        if scheme == Sv48 {
            // The code's gigabytes hang on a table of their own.
            let gigabytes = TABLES + 0x8000;
            directed.memory_u64(TABLES, leaf(gigabytes, V));
            directed
                .memory_u64(gigabytes + 16, leaf(RAM, ALL))
                .memory_u64(gigabytes + 24, leaf(RAM, ALL | U));
        } else {
            directed.memory_u64(TABLES + 16, leaf(RAM, ALL)).memory_u64(TABLES + 24, leaf(RAM, ALL | U));
        }
        directed.set(SATP, scheme.satp()).set(MENVCFG, self.menvcfg);
        directed.load(A0, address).load(A1, 9);
        let alias = if self.mode == Mode::User { ALIAS } else { 0 };
        directed.enter_at(self.mode, self.status, alias).words(words).word(ECALL).run()
    }

    /// Runs one access and gives its fault: cause and value.
    fn fault(&self, word: u32) -> Option<(u64, u64)> {
        let trap = self.run(&[word]).trap();
        // `ecall` behind an access, `ebreak` on the page for a fetch.
        (!matches!(trap.cause, 3 | 8 | 9 | 11)).then_some((trap.cause, trap.tval))
    }
}

const FETCH: u32 = jalr(RA, A0, 0);
const LOAD: u32 = ld(A2, A0, 8);
const STORE: u32 = sd(A1, A0, 8);
const AMO: u32 = r(0x302f, A2, A3, A1);
const A3: u32 = 13;

/// Each access with its fault, and where it goes.
const ACCESSES: [(u32, u64, u64); 3] =
    [(FETCH, FETCH_FAULT, 0), (LOAD, LOAD_FAULT, 8), (STORE, STORE_FAULT, 8)];

/// What the privileged specification, section "Virtual address translation process", says of a leaf
/// entry with these bits.
fn may(bits: u64, mode: Mode, status: u64, cause: u64) -> bool {
    let has = |bit: u64| bits & bit != 0;
    let valid = has(V) && (has(R) || has(X)) && (has(R) || !has(W));
    let of_user =
        if mode == Mode::User { has(U) } else { !has(U) || status & SUM != 0 && cause != FETCH_FAULT };
    let right = match cause {
        FETCH_FAULT => has(X),
        LOAD_FAULT => has(R) || has(X) && status & MXR != 0,
        _ => has(W),
    };
    valid && of_user && right && has(A) && (has(D) || cause != STORE_FAULT)
}

#[test]
fn each_combination_of_bits_permits_what_it_should() {
    for scheme in [Sv39, Sv48] {
        for bits in 0..=0xffu64 {
            if bits & V != 0 && bits & (R | W | X) == 0 {
                continue; // A pointer to a next table, below.
            }
            for (mode, status) in [
                (Mode::User, MXR),
                (Mode::Supervisor, 0),
                (Mode::Supervisor, SUM),
                (Mode::Supervisor, MXR | SUM),
            ] {
                for (word, cause, offset) in ACCESSES {
                    let mapped = Mapped { mode, status, ..Mapped::page(scheme, leaf(FRAME, bits)) };
                    let expected =
                        (!may(bits, mode, status, cause)).then_some((cause, scheme.page() + offset));
                    let what = format!("{scheme:?} {bits:#x} in {mode:?} with {status:#x}, cause {cause}");
                    assert_eq!(mapped.fault(word), expected, "{what}");
                }
            }
        }
    }
}

#[test]
fn superpages_of_each_size_are_aligned() {
    for scheme in [Sv39, Sv48] {
        for level in 1..scheme.levels() {
            let bytes = 1u64 << (12 + 9 * level);
            let start = FRAME & !(bytes - 1);
            let address = (scheme.page() & !(bytes - 1)) + (FRAME - start);
            let mapped = |entry| Mapped { address, level, ..Mapped::page(scheme, entry) };
            for (word, cause, offset) in ACCESSES {
                assert_eq!(mapped(leaf(start, ALL)).fault(word), None, "{scheme:?} level {level}");
                for bit in 10..10 + 9 * level {
                    let crooked = leaf(start, ALL) ^ 1 << bit;
                    let fault = Some((cause, address + offset));
                    assert_eq!(mapped(crooked).fault(word), fault, "{scheme:?} level {level} bit {bit}");
                }
            }
        }
    }
}

#[test]
fn reserved_bits_and_bad_pointers_fault() {
    for scheme in [Sv39, Sv48] {
        for (word, cause, offset) in ACCESSES {
            let fault = Some((cause, scheme.page() + offset));
            for bit in 54..64 {
                let mapped = Mapped::page(scheme, leaf(FRAME, ALL) | 1 << bit);
                assert_eq!(mapped.fault(word), fault, "{scheme:?} bit {bit}");
            }
            // A pointer on the last level, and pointers with bits that only leaves have.
            assert_eq!(Mapped::page(scheme, leaf(FRAME, V)).fault(word), fault);
            for bit in [U, A, D] {
                let mapped = Mapped { level: 1, ..Mapped::page(scheme, leaf(TABLES, V | bit)) };
                assert_eq!(mapped.fault(word), fault, "{scheme:?} pointer with {bit:#x}");
            }
            // G and the bits for software mean nothing here.
            assert_eq!(Mapped::page(scheme, leaf(FRAME, ALL | G | 3 << 8)).fault(word), None);
        }
    }
}

#[test]
fn a_table_or_page_where_nothing_is_gives_an_access_fault() {
    let nowhere = 0xff_0000_0000;
    for scheme in [Sv39, Sv48] {
        for (word, cause, offset) in ACCESSES {
            // Access faults are 1, 5 and 7 where page faults are 12, 13 and 15.
            let fault = Some((if cause == FETCH_FAULT { 1 } else { cause - 8 }, scheme.page() + offset));
            assert_eq!(Mapped::page(scheme, leaf(nowhere, ALL)).fault(word), fault, "{scheme:?} page");
            let table = Mapped { level: 1, ..Mapped::page(scheme, leaf(nowhere, V)) };
            assert_eq!(table.fault(word), fault, "{scheme:?} table");
        }
    }
}

#[test]
fn addresses_are_copies_of_their_highest_bit_above_it() {
    for (scheme, bits) in [(Sv39, 39), (Sv48, 48)] {
        let high = u64::MAX << (bits - 1) | scheme.page();
        let mapped = |address| Mapped { address, ..Mapped::page(scheme, leaf(FRAME, ALL)) };
        for (word, cause, offset) in ACCESSES {
            assert_eq!(mapped(high).fault(word), None, "{scheme:?}");
            for bit in bits..64 {
                for address in [high ^ 1 << bit, scheme.page() | 1 << bit] {
                    // Only the walk's indices choose the entry, so the table is the same.
                    let fault = Some((cause, address + offset));
                    assert_eq!(mapped(address).fault(word), fault, "{scheme:?} {address:#x}");
                }
            }
        }
    }
}

#[test]
fn accessed_and_dirty_bits_are_set_or_fault() {
    for scheme in [Sv39, Sv48] {
        let at = entry_address(scheme, scheme.page(), 0);
        for (word, cause, offset) in ACCESSES {
            for before in [0, A, D, A | D] {
                let wanted = A | if cause == STORE_FAULT { D } else { 0 };
                let entry = leaf(FRAME, V | R | W | X | before);
                let hardware = Mapped { menvcfg: ADUE, ..Mapped::page(scheme, entry) };
                let ended = hardware.run(&[word]);
                assert!(matches!(ended.trap().cause, 3 | 9), "{scheme:?} {before:#x}, cause {cause}");
                assert_eq!(ended.memory_u64(at), entry | wanted, "{scheme:?}, cause {cause}");
                let software = Mapped::page(scheme, entry);
                let faults = before & wanted != wanted;
                assert_eq!(
                    software.fault(word),
                    faults.then_some((cause, scheme.page() + offset)),
                    "{before:#x}"
                );
                assert_eq!(software.run(&[word]).memory_u64(at), entry, "left to software");
            }
        }
        // An access that is not permitted sets nothing.
        let entry = leaf(FRAME, V | R);
        let ended = Mapped { menvcfg: ADUE, ..Mapped::page(scheme, entry) }.run(&[STORE]);
        assert_eq!((ended.trap().cause, ended.memory_u64(at)), (STORE_FAULT, entry));
    }
}

#[test]
fn atomics_fault_as_stores() {
    let to_page = [addi(A3, A0, 8), AMO];
    for (bits, cause) in
        [(ALL, 9), (ALL & !W, STORE_FAULT), (ALL & !R & !W, STORE_FAULT), (ALL & !D, STORE_FAULT)]
    {
        let ended = Mapped::page(Sv39, leaf(FRAME, bits)).run(&to_page);
        assert_eq!(ended.trap().cause, cause, "{bits:#x}");
        assert_eq!(ended.memory_u64(FRAME + 8), if cause == 9 { 16 } else { 7 });
    }
    let reserve = [addi(A3, A0, 8), r(0x1000_302f, A2, A3, 0)];
    let ended = Mapped::page(Sv39, leaf(FRAME, V | X | A)).run(&reserve);
    assert_eq!((ended.trap().cause, ended.trap().tval), (LOAD_FAULT, Sv39.page() + 8), "lr loads");
}

#[test]
fn an_access_across_pages_faults_at_the_page_that_is_missing() {
    // The page after the one under test is not there.
    for scheme in [Sv39, Sv48] {
        for (word, cause) in [(ld(A2, A0, 0), LOAD_FAULT), (sd(A1, A0, 0), STORE_FAULT)] {
            let mapped = Mapped::page(scheme, leaf(FRAME, ALL));
            let to_end = [lui(T0, 0x1000), add(A0, A0, T0), addi(A0, A0, -3)];
            let ended = mapped.run(&[to_end[0], to_end[1], to_end[2], word]);
            assert_eq!(
                (ended.trap().cause, ended.trap().tval),
                (cause, scheme.page() + 0x1000),
                "{scheme:?}"
            );
            assert_eq!(ended.memory_u64(FRAME + 0xff8), 0, "nothing was stored");
        }
    }
}

#[test]
fn mprv_lends_the_translation_of_mpp_to_data() {
    for (mpp, bits, fault) in [
        (Mode::Supervisor, ALL, false),
        (Mode::Supervisor, ALL | U, true),
        (Mode::User, ALL | U, false),
        (Mode::User, ALL, true),
    ] {
        let mapped = Mapped { mode: Mode::Machine, ..Mapped::page(Sv39, leaf(FRAME, bits)) };
        let lend = |on: bool| {
            let lent = if on { MPRV } else { 0 };
            let status = lent | (mpp as u64) << 11;
            [addi(T0, ZERO, (status >> 11) as i32), slli(T0, T0, 11), csrrw(ZERO, MSTATUS, T0)]
        };
        let [on, off] = [lend(true), lend(false)];
        let ended = mapped.run(&[on[0], on[1], on[2], LOAD, off[0], off[1], off[2]]);
        let found = (ended.trap().cause, ended.trap().tval);
        assert_eq!(found, if fault { (LOAD_FAULT, Sv39.page() + 8) } else { (11, 0) }, "{mpp:?} {bits:#x}");
        assert_eq!(ended.x(A2), if fault { 0 } else { 7 });
    }
}

#[test]
fn satp_takes_the_schemes_that_there_are() {
    for mode in 0..16u64 {
        let value = mode << 60 | 0xabcd << 44 | 0x123;
        let mut directed = Directed::new();
        let ended = directed.set(SATP, Sv39.satp()).set(SATP, value).word(csrrs(A0, SATP, ZERO)).run();
        let taken = matches!(mode, 0 | 8 | 9);
        assert_eq!(ended.x(A0), if taken { value } else { Sv39.satp() }, "mode {mode}");
    }
}
