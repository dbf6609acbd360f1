//! Exceptions, interrupts and counting.

use super::encode::*;
use super::*;
use crate::hart::Privilege;

const HANDLER: u64 = RAM_BASE + 0x3000;

/// Runs `code` up to the first exception and tells mcause, mtval, and mepc from the start of RAM.
fn trap_of(code: &[u32]) -> (u64, u64, u64) {
    let (mut hart, mut bus) = machine_with(code);
    let mut state = hart.state();
    state.csrs.mtvec = HANDLER;
    hart.set_state(state);
    bus.put_code(HANDLER, &[jal(ZERO, 0)]);
    run(&mut hart, &mut bus, code.len() as u64 + 10);
    let csrs = hart.state().csrs;
    assert_eq!(hart.pc(), HANDLER, "an exception was taken");
    (csrs.mcause, csrs.mtval, csrs.mepc.wrapping_sub(RAM_BASE))
}

#[test]
fn exceptions_tell_cause_and_value() {
    assert_eq!(trap_of(&[NOP, ECALL]), (11, 0, 4));
    assert_eq!(trap_of(&[NOP, EBREAK]), (3, RAM_BASE + 4, 4));
    assert_eq!(trap_of(&[0xffff_ffff]), (2, 0xffff_ffff, 0));
    assert_eq!(trap_of(&[0]), (2, 0, 0), "a compressed instruction of zeros");
    assert_eq!(trap_of(&[ld(A0, ZERO, 8)]), (5, 8, 0));
    assert_eq!(trap_of(&[sd(A0, ZERO, 16)]), (7, 16, 0));
    assert_eq!(trap_of(&[addi(T0, ZERO, 4), lr_d(A0, T0)]), (4, 4, 4));
    assert_eq!(trap_of(&[addi(T0, ZERO, 4), amoadd_d(A0, A0, T0)]), (6, 4, 4));
    assert_eq!(
        trap_of(&[addi(T0, ZERO, 0x40), jalr(ZERO, T0, 0)]),
        (1, 0x40, 0x40u64.wrapping_sub(RAM_BASE))
    );
    let unknown_csr = csrrs(A0, 0x7a8, ZERO);
    assert_eq!(trap_of(&[unknown_csr]), (2, u64::from(unknown_csr), 0));
    let write_to_read_only = csrrw(ZERO, 0xf14, A0);
    assert_eq!(trap_of(&[write_to_read_only]), (2, u64::from(write_to_read_only), 0));
    let float_while_off = 0x0000_0053;
    assert_eq!(trap_of(&[float_while_off]), (2, u64::from(float_while_off), 0));
}

#[test]
fn an_endless_loop_of_exceptions_uses_up_its_budget() {
    let (mut hart, mut bus) = machine_with(&[ECALL]);
    let ran = hart.run(&mut bus, 0, 1000);
    assert_eq!(ran, HartRun { retired: 1000, exit: HartExit::Budget });
    assert_eq!(hart.pc(), 0, "mtvec is 0, where nothing is");
}

#[test]
fn counters_are_exact() {
    let code = [NOP, csrrs(A0, 0xb02, ZERO), NOP, csrrs(A1, 0xb00, ZERO), csrrs(A2, 0xc01, ZERO)];
    let (mut hart, mut bus) = machine_with(&code);
    hart.run(&mut bus, 5000, 5);
    let read: Vec<u64> = [A0, A1, A2].iter().map(|&register| hart.register(register as usize)).collect();
    assert_eq!(read, [5001, 5003, 50]);
}

#[test]
fn a_counter_written_goes_on_from_there() {
    let code = [addi(T0, ZERO, 100), csrrw(ZERO, 0xb02, T0), csrrs(A0, 0xb02, ZERO), csrrs(A1, 0xb02, ZERO)];
    let (mut hart, mut bus) = machine_with(&code);
    hart.run(&mut bus, 77, 4);
    assert_eq!((hart.register(A0 as usize), hart.register(A1 as usize)), (100, 101));
}

#[test]
fn wfi_waits_for_what_is_enabled_and_the_handler_runs() {
    let (mut hart, mut bus) = machine_with(&[WFI, addi(A0, A0, 1), jal(ZERO, 0)]);
    let mut state = hart.state();
    state.csrs.mtvec = HANDLER;
    state.csrs.mie = 1 << 7;
    hart.set_state(state);
    bus.put_code(HANDLER, &[addi(A1, A1, 1), jal(ZERO, 0)]);
    assert_eq!(hart.run(&mut bus, 0, 100), HartRun { retired: 1, exit: HartExit::Wait });
    assert_eq!(hart.run(&mut bus, 1, 100), HartRun { retired: 0, exit: HartExit::Wait });
    assert!(hart.is_waiting() && !hart.has_pending_interrupt(&bus, 1));
    bus.lines = 1 << 3;
    assert_eq!(hart.run(&mut bus, 1, 100).exit, HartExit::Wait, "not enabled in mie");
    bus.lines = 1 << 7;
    assert!(hart.has_pending_interrupt(&bus, 1));
    hart.run(&mut bus, 1, 1);
    assert_eq!(hart.register(A0 as usize), 1, "globally disabled: goes on");
    let mut state = hart.state();
    state.csrs.mstatus |= 1 << 3;
    hart.set_state(state);
    hart.run(&mut bus, 2, 1);
    let state = hart.state();
    assert_eq!((state.csrs.mcause, state.csrs.mepc), (1 << 63 | 7, RAM_BASE + 8));
    assert_eq!(hart.register(A1 as usize), 1);
}

#[test]
fn an_interrupt_raised_by_a_store_is_taken_at_the_next_instruction() {
    let mut code = load_constant(T0, LINES_DEVICE);
    code.extend([addi(T1, ZERO, 8), sd(T1, T0, 0), addi(A0, A0, 1), addi(A0, A0, 1)]);
    let store = code.len() as u64 - 3;
    let (mut hart, mut bus) = machine_with(&code);
    let mut state = hart.state();
    state.csrs.mtvec = HANDLER | 1;
    state.csrs.mie = 1 << 3;
    state.csrs.mstatus = 1 << 3;
    hart.set_state(state);
    bus.put_code(HANDLER + 12, &[jal(ZERO, 0)]);
    run(&mut hart, &mut bus, 100);
    assert_eq!(hart.pc(), HANDLER + 12, "vectored");
    assert_eq!(hart.state().csrs.mepc, RAM_BASE + 4 * store + 4);
    assert_eq!(hart.register(A0 as usize), 0);
}

#[test]
fn the_timer_is_told_and_rises() {
    let code = [csrrw(ZERO, 0x14d, T0), NOP, jal(ZERO, 0)];
    let mut bus = TestBus::new();
    bus.put_code(RAM_BASE, &code);
    bus.put_code(HANDLER, &[jal(ZERO, 0)]);
    let mut hart = Hart::new(0, HartOptions { sbi_builtin: true, ..options() });
    hart.start_supervisor(RAM_BASE, 0, 0);
    let mut state = hart.state();
    state.csrs.stvec = HANDLER;
    state.csrs.mie = 1 << 5;
    state.csrs.mstatus = 1 << 1;
    state.x[T0 as usize] = 10;
    hart.set_state(state);
    assert_eq!(hart.timer_deadline(), None);
    assert_eq!(hart.run(&mut bus, 0, 500), HartRun { retired: 1, exit: HartExit::TimerChanged });
    assert_eq!(hart.timer_deadline(), Some(10));
    assert_eq!(hart.run(&mut bus, 1, 999).exit, HartExit::Budget);
    assert_eq!(hart.privilege(), Privilege::Supervisor);
    assert_ne!(hart.pc(), HANDLER);
    hart.run(&mut bus, 1000, 1);
    assert_eq!((hart.pc(), hart.state().csrs.scause), (HANDLER, 1 << 63 | 5));
}

#[test]
fn an_sbi_call_retires_and_leaves() {
    let mut bus = TestBus::new();
    bus.put_code(RAM_BASE, &[addi(A0, A0, 1), ECALL, addi(A0, A0, 1)]);
    let mut hart = Hart::new(0, HartOptions { sbi_builtin: true, ..options() });
    hart.start_supervisor(RAM_BASE, 3, 0);
    assert_eq!(hart.run(&mut bus, 0, 100), HartRun { retired: 2, exit: HartExit::SbiCall });
    assert_eq!((hart.register(10), hart.pc()), (4, RAM_BASE + 8));
    hart.set_register(10, 50);
    hart.run(&mut bus, 2, 1);
    assert_eq!(hart.register(10), 51);
}

#[test]
fn the_board_gets_control_after_an_access_it_asks_for() {
    let mut code = load_constant(T0, EXIT_DEVICE);
    code.extend([sd(ZERO, T0, 0), NOP]);
    let (mut hart, mut bus) = machine_with(&code);
    let ran = hart.run(&mut bus, 0, 100);
    assert_eq!(ran, HartRun { retired: code.len() as u64 - 1, exit: HartExit::Board });
}

#[test]
fn page_faults_tell_the_address() {
    let mut bus = TestBus::new();
    let root = RAM_BASE + 0x10_0000;
    bus.put(root + 16, (RAM_BASE >> 12) << 10 | 0x0f);
    let mut hart = Hart::new(0, options());
    hart.start_supervisor(RAM_BASE, 0, 0);
    let mut state = hart.state();
    state.csrs.satp = 8 << 60 | root >> 12;
    state.csrs.stvec = HANDLER;
    hart.set_state(state);
    bus.put_code(HANDLER, &[jal(ZERO, 0)]);
    bus.put_code(
        RAM_BASE,
        &[auipc(T0, 0), sd(A0, T0, 512), beq(ZERO, ZERO, 4), SFENCE_VMA, ld(A1, ZERO, 64)],
    );
    run(&mut hart, &mut bus, 10);
    let csrs = hart.state().csrs;
    assert_eq!((csrs.scause, csrs.stval, csrs.sepc), (13, 64, RAM_BASE + 16));
    assert_eq!(bus.at(root + 16) & 0xff, 0xcf, "accessed and dirty were set");
}

#[test]
fn a_state_with_impossible_protection_registers_is_taken() {
    let (mut hart, mut bus) = machine_with(&[NOP, NOP]);
    // NA4 at the highest address there is no room for, in every entry.
    let wide = rmp_serde::to_vec(&([0x17u8; 16], [u64::MAX; 16])).expect("it encodes");
    let mut impossible = hart.state();
    impossible.csrs.pmp = rmp_serde::from_slice(&wide).expect("the shape of the registers");
    hart.set_state(impossible);
    run(&mut hart, &mut bus, 2);
    assert!(hart.state().csrs.pmp.address(0) < 1 << 54);
}
