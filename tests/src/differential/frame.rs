//! The hand-written part of every program: prologue, trap handlers, and the turn between two
//! iterations of a block.
//!
//! ```text
//! prologue -> block 0 -> turn -> block 0 -> turn -> block 1 -> ... -> power off
//!               |  ^
//!               v  |  exceptions, interrupts
//!             handler: logs, steps over the instruction
//! ```
//!
//! The S-mode handler calls M-mode's now and then, so that traps nest. A block that leaves U-mode
//! while `ecall` is delegated comes to M-mode through both.
//!
//! A block may use every register but `sp`, `gp`, `tp` and `s0`: data pointers, the dump
//! pointer and the turn's return address.

use super::assembler::{Assembler, Label};
use super::encode::{csr::*, *};
use super::layout::{self, variable};

/// After an `ecall`, tells the handler to return in M-mode: `addi x0, x0, 0x5ad`.
pub const LEAVE_MARKER: u32 = addi(ZERO, ZERO, 0x5ad);

/// `mstatus.FS`, and its bits when dirty.
pub const STATUS_FS: u64 = 3 << 13;
/// `mstatus.MPP`.
pub const STATUS_MPP: u64 = 3 << 11;
/// `mstatus.MPRV`.
pub const STATUS_MPRV: u64 = 1 << 17;
/// `mstatus.SUM`.
pub const STATUS_SUM: u64 = 1 << 18;
/// `mstatus.MXR`.
pub const STATUS_MXR: u64 = 1 << 19;

/// How far above the physical address user code of tests with page tables is mapped.
pub const USER_ALIAS: u64 = 1 << 30;

/// Places in the frame that blocks jump to.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// Dumps and reloads registers; called with `tp`, returns to the word at `tp` for another
    /// iteration, else to the one after.
    pub turn: Label,
    /// Powers off.
    pub finish: Label,
    /// Where the M-mode and the S-mode handler are entered; what follows, up to the turn, are
    /// handlers.
    pub vectors: [Label; 2],
}

/// Puts the frame. What follows is executed next.
pub fn put(asm: &mut Assembler, iterations: u64) -> Frame {
    let start = asm.label();
    asm.jump(ZERO, start);
    let machine_vectors = put_vectors(asm, put_machine_handler);
    let supervisor_vectors = put_vectors(asm, put_supervisor_handler);
    let turn = asm.label_here();
    put_turn(asm, iterations);
    let finish = asm.label_here();
    put_finish(asm);
    asm.bind(start);
    put_prologue(asm, machine_vectors, supervisor_vectors);
    asm.jump(TP, turn);
    asm.word(NOP);
    Frame { turn, finish, vectors: [machine_vectors, supervisor_vectors] }
}

/// A handler behind a table of vectors, so that it serves both modes of `mtvec`.
fn put_vectors(asm: &mut Assembler, put_handler: fn(&mut Assembler)) -> Label {
    asm.align(256);
    let (vectors, handler) = (asm.label_here(), asm.label());
    (0..16).for_each(|_| asm.jump(ZERO, handler));
    asm.bind(handler);
    put_handler(asm);
    vectors
}

fn put_prologue(asm: &mut Assembler, machine_vectors: Label, supervisor_vectors: Label) {
    asm.address_of(T0, machine_vectors);
    asm.word(csrrw(ZERO, MTVEC, T0));
    asm.address_of(T0, supervisor_vectors);
    asm.word(csrrw(ZERO, STVEC, T0));
    asm.constant(T0, layout::VARIABLES);
    asm.word(csrrw(ZERO, MSCRATCH, T0));
    asm.word(csrrw(ZERO, SSCRATCH, T0));
    // One iteration before the first block: it loads the registers.
    asm.word(addi(T2, ZERO, 1));
    asm.word(sd(T2, T0, variable::ITERATIONS));
    asm.constant(T1, u64::MAX >> 10);
    asm.word(csrrw(ZERO, PMPADDR0, T1));
    asm.word(addi(T1, ZERO, 0x1f));
    asm.word(csrrw(ZERO, PMPCFG0, T1));
    asm.word(addi(T1, ZERO, -1));
    asm.word(csrrw(ZERO, STIMECMP, T1));
    asm.constant(T0, layout::MACHINE_TIMER);
    asm.word(sd(T1, T0, 0));
    for zeroed in [MIE, MIP, MEDELEG, MIDELEG, SATP, MCOUNTEREN, SCOUNTEREN, SENVCFG, MCAUSE, MEPC, MTVAL] {
        asm.word(csrrw(ZERO, zeroed, ZERO));
    }
    asm.constant(T1, STATUS_FS);
    asm.word(csrrw(ZERO, MSTATUS, T1));
    asm.word(csrrw(ZERO, FCSR, ZERO));
    (0..32).for_each(|register| asm.word(r(0xf200_0053, register, ZERO, 0)));
    // Boards differ in what they hand over.
    (1..32).for_each(|register| asm.word(addi(register, ZERO, 0)));
    asm.constant(GP, layout::DUMPS);
}

/// Logs a trap to the entry at `T5`: `T4` holds the cause afterwards.
fn put_log_entry(asm: &mut Assembler, save: u32, [cause, epc, tval, status]: [u32; 4]) {
    asm.word(ld(T4, save, variable::LOG_OFFSET));
    asm.constant(T5, layout::LOG);
    asm.word(add(T5, T5, T4));
    asm.word(addi(T4, T4, layout::LOG_ENTRY_BYTES as i32));
    let unused_bits = 64 - layout::LOG_BYTES.trailing_zeros();
    asm.words(&[slli(T4, T4, unused_bits), srli(T4, T4, unused_bits)]);
    asm.word(sd(T4, save, variable::LOG_OFFSET));
    for (field, number) in [status, tval, epc, cause].into_iter().enumerate() {
        asm.word(csrrs(T4, number, ZERO));
        asm.word(sd(T4, T5, 24 - 8 * field as i32));
    }
}

/// `T3` becomes the physical address of the instruction that trapped, `T5` its length.
fn put_instruction_length(asm: &mut Assembler, epc: u32) {
    asm.word(csrrs(T3, epc, ZERO));
    asm.words(&[slli(T3, T3, 34), srli(T3, T3, 34)]);
    asm.constant(T5, layout::RAM);
    asm.word(add(T3, T3, T5));
    asm.word(lhu(T5, T3, 0));
    asm.words(&[andi(T5, T5, 3), addi(T5, T5, -3)]);
    // -3..=0 becomes 2 or 4.
    asm.words(&[i(0x3013, T5, T5, 1), slli(T5, T5, 1), addi(T5, T5, 2)]);
}

/// Sets `epc` for an exception whose cause is in `T4`: after a failed fetch `ra`, else the
/// next instruction. Leaves the physical address of the instruction in `T3`.
fn put_step_over(asm: &mut Assembler, epc: u32) {
    let (at_return_address, done) = (asm.label(), asm.label());
    asm.word(addi(T3, ZERO, 1));
    asm.branch(0, T4, T3, at_return_address);
    asm.word(addi(T3, ZERO, 12));
    asm.branch(0, T4, T3, at_return_address);
    put_instruction_length(asm, epc);
    asm.words(&[csrrs(T4, epc, ZERO), add(T4, T4, T5), csrrw(ZERO, epc, T4)]);
    asm.jump(ZERO, done);
    asm.bind(at_return_address);
    asm.word(csrrw(ZERO, epc, RA));
    asm.word(addi(T3, ZERO, 0));
    asm.bind(done);
}

fn put_machine_handler(asm: &mut Assembler) {
    let (interrupt, restore, not_leaving) = (asm.label(), asm.label(), asm.label());
    put_save(asm, MSCRATCH, variable::MACHINE_SAVE);
    put_log_entry(asm, T6, [MCAUSE, MEPC, MTVAL, MSTATUS]);
    asm.branch(4, T4, ZERO, interrupt);
    put_step_over(asm, MEPC);
    asm.branch(0, T3, ZERO, not_leaving);
    asm.constant(T4, u64::from(LEAVE_MARKER >> 16));
    asm.word(lhu(T5, T3, 6));
    asm.branch(1, T4, T5, not_leaving);
    asm.words(&[addi(T3, T3, 4), csrrw(ZERO, MEPC, T3)]);
    asm.constant(T4, STATUS_MPP);
    asm.word(csrrs(ZERO, MSTATUS, T4));
    asm.bind(not_leaving);
    asm.jump(ZERO, restore);
    asm.bind(interrupt);
    asm.words(&[csrrw(ZERO, MIP, ZERO), csrrw(ZERO, MIE, ZERO)]);
    asm.bind(restore);
    put_restore(asm, MSCRATCH, variable::MACHINE_SAVE);
    asm.word(MRET);
}

fn put_supervisor_handler(asm: &mut Assembler) {
    let (interrupt, restore, not_leaving) = (asm.label(), asm.label(), asm.label());
    put_save(asm, SSCRATCH, variable::SUPERVISOR_SAVE);
    put_log_entry(asm, T6, [SCAUSE, SEPC, STVAL, SSTATUS]);
    asm.branch(4, T4, ZERO, interrupt);
    put_step_over(asm, SEPC);
    asm.branch(0, T3, ZERO, not_leaving);
    asm.constant(T4, u64::from(LEAVE_MARKER >> 16));
    asm.word(lhu(T5, T3, 6));
    asm.branch(1, T4, T5, not_leaving);
    put_leave_from_supervisor(asm);
    asm.bind(not_leaving);
    // A trap within, that must leave S-mode's registers alone: for every second place.
    asm.words(&[csrrs(T4, SEPC, ZERO), andi(T4, T4, 4)]);
    asm.branch(0, T4, ZERO, restore);
    asm.word(ECALL);
    asm.jump(ZERO, restore);
    asm.bind(interrupt);
    asm.words(&[csrrw(ZERO, SIP, ZERO), csrrw(ZERO, SIE, ZERO)]);
    asm.bind(restore);
    put_restore(asm, SSCRATCH, variable::SUPERVISOR_SAVE);
    asm.word(SRET);
}

/// From the S-mode handler on in M-mode, behind the marker that `T3` is 4 bytes before.
fn put_leave_from_supervisor(asm: &mut Assembler) {
    asm.words(&[addi(T3, T3, 8), ECALL, LEAVE_MARKER]);
    asm.word(csrrw(ZERO, MEPC, T3));
    asm.constant(T4, STATUS_MPP);
    asm.word(csrrs(ZERO, MSTATUS, T4));
    put_restore(asm, SSCRATCH, variable::SUPERVISOR_SAVE);
    asm.word(MRET);
}

/// Saves `T3` to `T6`; `T6` becomes the address of the variables.
fn put_save(asm: &mut Assembler, scratch: u32, save: i32) {
    asm.words(&[csrrw(T6, scratch, T6), sd(T3, T6, save), sd(T4, T6, save + 8), sd(T5, T6, save + 16)]);
}

fn put_restore(asm: &mut Assembler, scratch: u32, save: i32) {
    asm.words(&[ld(T3, T6, save), ld(T4, T6, save + 8), ld(T5, T6, save + 16), csrrw(T6, scratch, T6)]);
}

fn put_turn(asm: &mut Assembler, iterations: u64) {
    // No interrupts in here: `csrrci mstatus, MIE`.
    asm.word(i(0x7073, ZERO, 8, MSTATUS as i32));
    // With MPRV, what the block left in `satp` would hold here: `csrrwi satp, 0`.
    asm.word(i(0x5073, ZERO, ZERO, SATP as i32));
    (1..32).for_each(|register| asm.word(sd(register, GP, 8 * register as i32)));
    asm.constant(T6, STATUS_FS);
    asm.words(&[csrrs(T5, MSTATUS, T6), sd(T5, GP, 0)]);
    (0..32).for_each(|register| asm.word(fsd(register, GP, 256 + 8 * register as i32)));
    asm.words(&[csrrs(T5, FCSR, ZERO), sd(T5, GP, 8 * layout::DUMP_FCSR as i32)]);
    asm.constant(T6, layout::VARIABLES);
    asm.words(&[ld(T5, T6, variable::LOG_OFFSET), sd(T5, GP, 8 * layout::DUMP_LOG as i32)]);
    asm.word(addi(GP, GP, layout::DUMP_BYTES as i32));

    // Another iteration, or on to the next block.
    let again = asm.label();
    asm.words(&[ld(T5, T6, variable::ITERATIONS), addi(T5, T5, -1)]);
    asm.branch(1, T5, ZERO, again);
    asm.word(addi(TP, TP, 4));
    asm.constant(T5, iterations);
    asm.bind(again);
    asm.word(sd(T5, T6, variable::ITERATIONS));

    // The next part of the pools: 37 and the number of entries have no common factor.
    asm.words(&[ld(T5, T6, variable::POOL_OFFSET), addi(T5, T5, 37 * 8)]);
    let unused_bits = 64 - (layout::POOL_ENTRIES * 8).trailing_zeros();
    asm.words(&[slli(T5, T5, unused_bits), srli(T5, T5, unused_bits)]);
    asm.word(sd(T5, T6, variable::POOL_OFFSET));
    asm.constant(T6, layout::FLOATS);
    asm.word(add(T6, T6, T5));
    (0..32).for_each(|register| asm.word(fld(register, T6, 8 * register as i32)));
    asm.constant(T6, layout::VALUES);
    asm.word(add(T6, T6, T5));
    // Random flags, and a rounding mode of 0 to 3.
    asm.words(&[ld(T5, T6, 256), andi(T5, T5, 0x7f), csrrw(ZERO, FCSR, T5)]);
    let reloaded = (1..31).filter(|register| ![SP, GP, TP, S0].contains(register));
    reloaded.for_each(|register| asm.word(ld(register, T6, 8 * register as i32)));
    asm.word(ld(T6, T6, 248));
    asm.constant(SP, layout::STACK);
    asm.constant(S0, layout::FRAME);
    asm.word(jalr(ZERO, TP, 0));
}

fn put_finish(asm: &mut Assembler) {
    asm.constant(T0, layout::SYSCON);
    asm.constant(T1, layout::SYSCON_PASS);
    asm.word(sw(T1, T0, 0));
    let forever = asm.label_here();
    asm.jump(ZERO, forever);
}
