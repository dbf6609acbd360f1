//! Physical memory protection: which bytes an entry covers, what it permits to whom, locks, and
//! instructions and accesses that lie across its bounds.

use secondwind_tests::differential::Mode;
use secondwind_tests::differential::directed::{Directed, Ended};
use secondwind_tests::differential::encode::{csr::*, *};
use secondwind_tests::differential::layout::{DATA, TABLES};

const R: u8 = 1 << 0;
const W: u8 = 1 << 1;
const X: u8 = 1 << 2;
const OFF: u8 = 0 << 3;
const TOR: u8 = 1 << 3;
const NA4: u8 = 2 << 3;
const NAPOT: u8 = 3 << 3;
const LOCK: u8 = 1 << 7;
const MPRV: u64 = 1 << 17;
/// What lies at [`DATA`]: as an instruction, an illegal one.
const VALUE: u64 = 0x1111_1111_1111_0000;
/// All of memory.
const EVERYWHERE: u64 = u64::MAX >> 10;

/// An entry: configuration and `pmpaddr`.
type Entry = (u8, u64);

fn napot(start: u64, len: u64) -> u64 {
    start >> 2 | ((len >> 3) - 1)
}

/// A program in a mode under these entries, from entry 1 on (entry 0 is off), with all else open
/// behind them.
fn run(entries: &[Entry], mode: Mode, status: u64, words: &[u32]) -> Ended {
    let mut directed = Directed::new();
    directed.memory_u64(DATA, VALUE).memory_u64(DATA + 8, 0x2222_2222_2222_2222);
    directed.load(A0, DATA).load(A1, 9).set(MEDELEG, 0);
    let last = entries.len() + 1;
    assert!(last < 8, "one configuration register is enough");
    // The last entry first: nothing is locked out on the way.
    directed.set(PMPADDR0 + last as u32, EVERYWHERE);
    let mut config = u64::from(NAPOT | R | W | X) << (8 * last);
    for (at, (bits, address)) in entries.iter().enumerate() {
        directed.set(PMPADDR0 + 1 + at as u32, *address);
        config |= u64::from(*bits) << (8 * (at + 1));
    }
    directed.set(PMPCFG0, config);
    directed.enter(mode, status).words(words).run()
}

/// The cause and value of the fault, if there was one.
fn fault(ended: &Ended) -> Option<(u64, u64)> {
    ended.trap.map(|taken| (taken.cause, taken.tval))
}

fn loads(entries: &[Entry], mode: Mode, word: u32) -> bool {
    let ended = run(entries, mode, 0, &[word]);
    if let Some((cause, _)) = fault(&ended) {
        assert_eq!(cause, 5, "a load's access fault");
    }
    ended.trap.is_none()
}

const fn load_at(offset: i32) -> u32 {
    i(0x0003, A2, A0, offset)
}

#[test]
fn each_mode_of_matching_covers_its_bytes() {
    let at = |offset: u64| (DATA + offset) >> 2;
    // Entries that deny, and the bytes from DATA on that they cover.
    let cases: [(&str, Vec<Entry>, std::ops::Range<i32>); 8] = [
        ("off", vec![(OFF, at(0))], 0..0),
        ("NA4", vec![(NA4, at(16))], 16..20),
        ("NAPOT of 8", vec![(NAPOT, napot(DATA + 16, 8))], 16..24),
        ("NAPOT of 32", vec![(NAPOT, napot(DATA + 32, 32))], 32..64),
        ("TOR", vec![(OFF, at(12)), (TOR, at(24))], 12..24),
        ("TOR without room", vec![(OFF, at(24)), (TOR, at(24))], 0..0),
        ("TOR upside down", vec![(OFF, at(24)), (TOR, at(12))], 0..0),
        ("TOR above a NAPOT", vec![(NAPOT | R, napot(DATA + 64, 8)), (TOR, at(88))], 72..88),
    ];
    for (name, entries, covered) in cases {
        // The register of a NAPOT entry, read as an address, ends in ones: here 64 + 4 * 0.
        let covered = if name == "TOR above a NAPOT" { 72..88 } else { covered };
        for offset in (0..100).filter(|offset| matches!(offset % 4, 0 | 3)) {
            for mode in [Mode::Supervisor, Mode::User] {
                let expected = !covered.contains(&offset);
                assert_eq!(loads(&entries, mode, load_at(offset)), expected, "{name}: {offset} in {mode:?}");
            }
            assert!(loads(&entries, Mode::Machine, load_at(offset)), "{name}: not locked, not for M-mode");
        }
    }
}

#[test]
fn each_permission_is_its_own() {
    let address = napot(DATA, 4096);
    for bits in [0, R, R | W, X, R | X, R | W | X] {
        for (word, needed, cause) in [
            (ld(A2, A0, 0), R, 5),
            (sd(A1, A0, 0), W, 7),
            (jalr(RA, A0, 0), X, 1),
            (r(0x302f, A2, A0, A1), W, 7),
        ] {
            for (mode, lock) in
                [(Mode::User, 0), (Mode::Supervisor, 0), (Mode::Machine, LOCK), (Mode::Machine, 0)]
            {
                let ended = run(&[(NAPOT | bits | lock, address)], mode, 0, &[word]);
                let permitted = bits & needed != 0 || mode == Mode::Machine && lock == 0;
                // What lies there is no instruction.
                let expected = match (permitted, cause) {
                    (true, 1) => Some((2, 0)),
                    (true, _) => None,
                    (false, _) => Some((cause, DATA)),
                };
                assert_eq!(fault(&ended), expected, "{mode:?} with {bits:#x}, {word:08x}");
            }
        }
    }
}

#[test]
fn the_lowest_entry_that_matches_decides() {
    let open = (NAPOT | R | W, napot(DATA, 8));
    let closed = (NAPOT, napot(DATA, 4096));
    assert!(loads(&[open, closed], Mode::User, load_at(0)));
    assert!(!loads(&[open, closed], Mode::User, load_at(8)));
    assert!(!loads(&[closed, open], Mode::User, load_at(0)));
}

#[test]
fn an_access_must_lie_in_the_entry_as_a_whole() {
    // The entry permits all; its bounds make the difference, for M-mode only under a lock.
    let entries = |lock| [(NA4 | R | W | X | lock, DATA >> 2), (NAPOT | R | W | X, napot(DATA, 4096))];
    for (mode, lock, refused) in [
        (Mode::User, 0, true),
        (Mode::Supervisor, 0, true),
        (Mode::Machine, 0, true),
        (Mode::Machine, LOCK, true),
    ] {
        for (word, cause) in [(ld(A2, A0, 0), 5), (sd(A1, A0, 0), 7), (lw(A2, A0, 2), 5), (sw(A1, A0, 2), 7)]
        {
            let ended = run(&entries(lock), mode, 0, &[word]);
            assert_eq!(ended.trap.map(|taken| taken.cause), refused.then_some(cause), "{mode:?} {word:08x}");
            assert_eq!(ended.memory_u64(DATA), VALUE, "nothing was stored");
        }
        assert_eq!(fault(&run(&entries(lock), mode, 0, &[lw(A2, A0, 0), lw(A2, A0, 4)])), None);
    }
}

#[test]
fn no_entry_means_no_access_below_machine_mode() {
    for mode in [Mode::Machine, Mode::Supervisor] {
        let mut directed = Directed::new();
        directed.set(PMPCFG0, 0).load(A0, DATA).enter(mode, 0);
        let at = directed.asm.here();
        let ended = directed.word(ld(A2, A0, 0)).run();
        let expected = (mode != Mode::Machine).then_some((1, at));
        assert_eq!(fault(&ended), expected, "{mode:?}: not even a fetch");
    }
}

#[test]
fn mprv_lends_the_protection_too() {
    let closed = [(NAPOT, napot(DATA, 4096))];
    for (mpp, refused) in [(Mode::User, true), (Mode::Supervisor, true), (Mode::Machine, false)] {
        let status = MPRV | (mpp as u64) << 11;
        let lend = [addi(T0, ZERO, (status >> 11) as i32), slli(T0, T0, 11), csrrw(ZERO, MSTATUS, T0)];
        let ended = run(&closed, Mode::Machine, 0, &[&lend[..], &[ld(A2, A0, 0)]].concat());
        assert_eq!(fault(&ended), refused.then_some((5, DATA)), "{mpp:?}");
    }
}

#[test]
fn accessed_and_dirty_bits_are_set_where_tables_may_be_written_to() {
    // Sv39: the first gigabyte leads to memory. The code is in M-mode, and borrows S-mode's rights.
    const LEAF: u64 = 0x8000_0000 >> 12 << 10 | 0x7;
    const ACCESSED: u64 = 1 << 6;
    const DIRTY: u64 = 1 << 7;
    const ADUE: u64 = 1 << 61;
    let offset = DATA - 0x8000_0000;
    for (rights, word, updated) in [
        (R | W, ld(A2, A0, 0), Ok(ACCESSED)),
        (R | W, sd(A1, A0, 0), Ok(ACCESSED | DIRTY)),
        (R, ld(A2, A0, 0), Err(5)),
        (R, sd(A1, A0, 0), Err(7)),
        (0, ld(A2, A0, 0), Err(5)),
    ] {
        let mut directed = Directed::new();
        directed.memory_u64(TABLES, LEAF).memory_u64(DATA, VALUE);
        directed.set(MENVCFG, ADUE).set(SATP, 8 << 60 | TABLES >> 12);
        directed.set(PMPADDR0 + 1, EVERYWHERE).set(PMPADDR0, napot(TABLES, 4096));
        directed.set(PMPCFG0, u64::from(NAPOT | R | W | X) << 8 | u64::from(NAPOT | rights));
        directed.load(A0, offset).load(A1, 9);
        directed
            .set(MSTATUS, MPRV | (Mode::Supervisor as u64) << 11)
            .words(&[word, csrrw(ZERO, MSTATUS, ZERO)]);
        let ended = directed.run();
        assert_eq!(fault(&ended), updated.err().map(|cause| (cause, offset)), "{rights}, {word:08x}");
        assert_eq!(ended.memory_u64(TABLES), LEAF | updated.unwrap_or(0), "{rights}, {word:08x}");
    }
}

#[test]
fn locked_entries_stay_as_they_are() {
    let mut directed = Directed::new();
    // Entry 2 locked as TOR, which locks the address below it too.
    directed.set(PMPADDR0 + 1, 0x1000).set(PMPADDR0 + 2, 0x2000).set(PMPADDR0 + 3, 0x3000);
    let locked = u64::from(LOCK | TOR | R) << 16 | 0x1f;
    directed.set(PMPCFG0, locked);
    for entry in 1..4 {
        directed.set(PMPADDR0 + entry, 0x9999);
    }
    directed.set(PMPCFG0, 0x1f1f_1f1f);
    let ended = directed.words(&[
        csrrs(A0, PMPADDR0 + 1, ZERO),
        csrrs(A1, PMPADDR0 + 2, ZERO),
        csrrs(A2, PMPADDR0 + 3, ZERO),
        csrrs(13, PMPCFG0, ZERO),
    ]);
    let ended = ended.run();
    assert_eq!((ended.x(A0), ended.x(A1), ended.x(A2)), (0x1000, 0x2000, 0x9999));
    assert_eq!(ended.x(13), 0x1f1f_1f1f & !(0xff << 16) | locked & 0xff << 16);
}

#[test]
fn registers_hold_what_they_can() {
    let mut directed = Directed::new();
    // W without R is not taken: the entry keeps what it had. Bits 5 and 6 are zero.
    directed.set(PMPCFG0, 0x1f | 0x19 << 8).set(PMPCFG0, 0x1f | 0x1a << 8 | 0x7f << 16);
    directed.set(PMPADDR0 + 5, u64::MAX);
    let ended = directed.words(&[csrrs(A0, PMPCFG0, ZERO), csrrs(A1, PMPADDR0 + 5, ZERO)]).run();
    assert_eq!((ended.x(A0), ended.x(A1)), (0x1f | 0x19 << 8 | 0x1f << 16, EVERYWHERE));
    // 16 entries; of the other 48 the specification has, all is zero; odd registers are not there.
    let ended = Directed::new()
        .set(PMPADDR0 + 16, u64::MAX)
        .set(PMPCFG0 + 4, u64::MAX)
        .words(&[csrrs(A0, PMPADDR0 + 16, ZERO), csrrs(A1, PMPCFG0 + 4, ZERO), csrrs(A2, PMPCFG0 + 1, ZERO)])
        .run();
    assert_eq!((ended.x(A0), ended.x(A1)), (0, 0));
    assert_eq!(ended.trap().cause, 2);
}

#[test]
fn each_instruction_of_a_page_that_is_divided_is_fetched_under_its_entry() {
    // Ones that count, then one that the entries do not permit, in one run of instructions.
    let count = addi(A2, A2, 1);
    for executable in [4, 8, 12, 64] {
        let mut directed = Directed::new();
        let code: Vec<u8> = [count; 32].iter().flat_map(|word| word.to_le_bytes()).collect();
        directed.memory(DATA, &code).load(A0, DATA);
        directed.set(PMPADDR0 + 1, DATA >> 2).set(PMPADDR0 + 2, (DATA + executable) >> 2);
        directed.set(PMPADDR0 + 3, (DATA + 4096) >> 2).set(PMPADDR0 + 4, EVERYWHERE);
        // Executed once where all is open, so that the run is known; then under the entries.
        directed.word(FENCE_I);
        let config = [0, OFF, TOR | X, TOR, NAPOT | R | W | X];
        let config = config.iter().rev().fold(0, |config, bits| config << 8 | u64::from(*bits));
        directed.set(PMPCFG0, config).enter(Mode::User, 0);
        let ended = directed.word(jalr(ZERO, A0, 0)).run();
        assert_eq!(fault(&ended), Some((1, DATA + executable)), "{executable} bytes");
        assert_eq!(ended.x(A2), executable / 4);
    }
}

#[test]
fn an_instruction_must_lie_in_the_entry_as_a_whole() {
    let mut directed = Directed::new();
    let mut code = C_NOP.to_le_bytes().to_vec();
    code.extend(addi(A2, A2, 1).to_le_bytes());
    directed.memory(DATA, &code).load(A0, DATA);
    directed.set(PMPADDR0 + 1, DATA >> 2).set(PMPADDR0 + 2, napot(DATA, 4096)).set(PMPADDR0 + 3, EVERYWHERE);
    let config = [0, NA4 | X, NAPOT, NAPOT | R | W | X];
    directed.set(PMPCFG0, config.iter().rev().fold(0, |config, bits| config << 8 | u64::from(*bits)));
    let ended = directed.enter(Mode::User, 0).word(jalr(ZERO, A0, 0)).run();
    let taken = ended.trap();
    assert_eq!((taken.cause, taken.epc, taken.tval, ended.x(A2)), (1, DATA + 2, DATA + 4, 0));
}

#[test]
fn page_tables_are_read_as_the_supervisor() {
    for (bits, expected) in [(0, Some((5, DATA))), (R, None)] {
        let mut directed = Directed::new();
        directed.memory_u64(DATA, 7).load(A0, DATA).set(SATP, 8 << 60 | TABLES >> 12);
        directed.memory_u64(TABLES + 16, 0x8000_0000 >> 12 << 10 | 0xcf);
        directed.set(PMPADDR0 + 1, napot(TABLES, 4096)).set(PMPADDR0 + 2, EVERYWHERE);
        let config = [0, NAPOT | bits, NAPOT | R | W | X];
        directed.set(PMPCFG0, config.iter().rev().fold(0, |config, bits| config << 8 | u64::from(*bits)));
        // Data only, by MPRV: the code is fetched without translation.
        directed.set(MSTATUS, MPRV | 1 << 11).word(ld(A2, A0, 0)).set(MSTATUS, 0);
        assert_eq!(fault(&directed.run()), expected, "{bits:#x}");
    }
}
