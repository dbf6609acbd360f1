//! A debugger's stops: each is where stepping through finds it, and none changes what executes.

mod common;

use common::Dice;
use log_format::Moment;
use machine::hart::Watchpoint;
use machine::{Exit, Machine, RiscvMachine, Stop, StopReason};

/// What executed: hart, icount, pc.
type Step = (usize, u64, u64);

/// Goes on to the next stop, or to `until`, through whatever comes between.
fn next_stop(machine: &mut RiscvMachine, until: u64) -> Option<Stop> {
    loop {
        match machine.run(until) {
            Exit::Stopped => return machine.stop(),
            Exit::Limit => return None,
            Exit::Output => _ = machine.take_outputs(),
            Exit::Idle { wake_ns } => _ = machine.advance_idle(wake_ns.expect("somebody wakes")),
            other => panic!("{other:?}"),
        }
    }
}

/// What executes from `from` to `to`, instruction by instruction.
fn steps(machine: &mut RiscvMachine, from: u64, to: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    for icount in from..to {
        machine.stop_before(Some(icount));
        let stop = next_stop(machine, icount + 1).expect("it stops before each");
        assert_eq!((stop.reason, machine.moment().icount), (StopReason::BeforeIcount, icount));
        let pc = machine.hart(stop.hart).expect("it is there").pc();
        assert_eq!(stop.hart, machine.hart_in_turn());
        machine.stop_before(None);
        assert_eq!(next_stop(machine, icount + 1), None);
        assert_eq!(machine.last_executed_icount(stop.hart), Some(icount));
        steps.push((stop.hart, icount, pc));
    }
    steps
}

/// The ledger guest a while after its boot; deterministic.
fn ledger_at(icount: u64) -> RiscvMachine {
    let mut machine = common::ledger();
    next_stop(&mut machine, icount);
    machine
}

#[test]
fn breakpoints_stop_before_every_visit_and_nowhere_else() {
    let (from, to) = (300_000, 340_000);
    let walked = steps(&mut ledger_at(from), from, to);
    let mut dice = Dice(7);
    for _ in 0..12 {
        let mut breakpoints: Vec<u64> =
            (0..3).map(|_| walked[dice.roll(walked.len() as u64) as usize].2).collect();
        // The same offset in another page: guarded, and no breakpoint.
        breakpoints[2] = breakpoints[2].wrapping_add(0x7000_0000);
        let expected: Vec<&Step> = walked.iter().filter(|step| breakpoints.contains(&step.2)).collect();
        let mut machine = ledger_at(from);
        machine.set_breakpoints(&breakpoints);
        let mut found = Vec::new();
        while let Some(stop) = next_stop(&mut machine, to) {
            assert_eq!(stop.reason, StopReason::Breakpoint);
            let icount = machine.moment().icount;
            found.push((stop.hart, icount, machine.hart(stop.hart).unwrap().pc()));
            machine.pass_breakpoint(Some(icount));
        }
        assert_eq!(found.iter().collect::<Vec<_>>(), expected);
        assert_eq!(machine.digest(), ledger_at(to).digest(), "the stops changed what executed");
    }
}

#[test]
fn stepping_a_hart_stops_after_each_of_its_instructions() {
    let (from, to) = (200_000, 202_000);
    let walked = steps(&mut ledger_at(from), from, to);
    let mut machine = ledger_at(from);
    machine.stop_after_hart(Some(0));
    for (hart, icount, _) in walked {
        let stop = next_stop(&mut machine, to + 1).unwrap();
        assert_eq!((stop.hart, stop.reason), (hart, StopReason::HartStepped));
        assert_eq!(machine.moment().icount, icount + 1);
    }
    machine.stop_after_hart(Some(1));
    assert_eq!(next_stop(&mut machine, to + 1000), None, "there is no hart 1");
}

#[test]
fn watchpoints_stop_before_every_access() {
    let (from, to) = (100_000, 130_000);
    // Where the guest stores, found by its uncompressed instructions.
    let mut machine = ledger_at(from);
    let mut stores: Vec<(u64, u64)> = Vec::new();
    for icount in from..to {
        machine.stop_before(Some(icount));
        let stop = next_stop(&mut machine, icount + 1).unwrap();
        let hart = machine.hart(stop.hart).unwrap();
        let mut word = [0; 4];
        assert!(machine.read_virtual(stop.hart, hart.pc(), &mut word) >= 2);
        let word = u32::from_le_bytes(word);
        // sb, sh, sw or sd rs2, imm(rs1)
        if word & 0x7f == 0x23 {
            let imm = ((word as i32 >> 25) << 5) as i64 | i64::from(word >> 7 & 31);
            stores.push((icount, hart.register((word >> 15 & 31) as usize).wrapping_add(imm as u64)));
        }
        machine.stop_before(None);
        next_stop(&mut machine, icount + 1);
    }
    let (_, address) = stores[stores.len() / 2];
    let expected: Vec<u64> = stores.iter().filter(|store| store.1 == address).map(|store| store.0).collect();
    let mut machine = ledger_at(from);
    machine.set_watchpoints(&[Watchpoint { address, len: 1, reads: false, writes: true }]);
    let mut found = Vec::new();
    while let Some(stop) = next_stop(&mut machine, to) {
        assert!(matches!(stop.reason, StopReason::Watchpoint(point) if point.address == address));
        found.push(machine.moment().icount);
        machine.pass_watchpoint(Some(machine.moment().icount));
    }
    // Compressed stores and wider ones count, too.
    assert!(expected.iter().all(|icount| found.contains(icount)), "{expected:?} in {found:?}");
    machine.set_watchpoints(&[]);
    assert_eq!(machine.digest(), ledger_at(to).digest());
}

#[test]
fn a_replay_full_of_stops_has_every_digest_and_output_of_its_recording() {
    let recording = common::record(&mut common::ledger(), 5, 60_000_000);
    let walked = steps(&mut ledger_at(1_000_000), 1_000_000, 1_002_000);
    let mut machine = common::ledger();
    let mut dice = Dice(11);
    let mut stops = 0;
    machine.set_breakpoints(&[walked[0].2, walked[700].2]);
    machine.set_watchpoints(&[Watchpoint {
        address: machine::ram::RAM_BASE + 0x20_3000,
        len: 4096,
        reads: true,
        writes: true,
    }]);
    let mut cut = || {
        stops += 1;
        1 + dice.roll(50_000)
    };
    common::replay(&mut machine, &recording, 0, &mut cut);
    assert!(stops > 100);
}

#[test]
fn a_flipped_bit_is_one_register_of_one_hart() {
    let mut machine = ledger_at(100_000);
    let before = machine.digest();
    let moment = Moment { ..machine.moment() };
    for refused in [(0, 0, 1), (0, 32, 1), (0, 5, 64), (1, 5, 1)] {
        assert!(!machine.flip_register_bit(refused.0, refused.1, refused.2));
    }
    assert_eq!(machine.digest(), before);
    assert!(machine.flip_register_bit(0, 5, 63));
    assert_ne!(machine.digest(), before);
    assert!(machine.flip_register_bit(0, 5, 63));
    assert_eq!((machine.digest(), machine.moment()), (before, moment));
}
