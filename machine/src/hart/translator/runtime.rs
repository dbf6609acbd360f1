//! Between Rust and translated code: how it is entered, how it calls an op's handler, and how it
//! is left.
//!
//! ```text
//!  enter ----> block -> block -> ... -----> leave_by_jump, leave_to_pc ----> Leave
//!                |  ^
//!                v  |  slow: guest registers go to the hart and come back
//!             execute_one ---- left the chain ----> Leave::Done
//! ```
//!
//! # Safety
//!
//! Translated code holds the hart by address in `rbp`. While it executes, the `&mut Hart` of
//! [`run`] is not used; `execute_one` makes one of its own for as long as the handler executes. A
//! panic of a handler is carried over the frames of translated code, which no unwinder knows.

use std::any::Any;
use std::mem::offset_of;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use dynasmrt::{DynasmApi, dynasm};

use super::View;
use super::emitter::{BIAS, Buffer, Cond, from_rbp};
use super::float::State;
use crate::bus::Bus;
use crate::hart::Hart;

/// From `rbp` to where the TLBs of the present regime are.
const TLB: i32 = from_rbp(offset_of!(Hart, tlb) + crate::hart::tlb::native::READ);

/// From `rbp` to the host's control register for translated code, and for all else.
const MXCSR: i32 = from_rbp(offset_of!(Hart, view) + offset_of!(View, float) + offset_of!(State, mxcsr));
const MXCSR_DEFAULT: i32 =
    from_rbp(offset_of!(Hart, view) + offset_of!(View, float) + offset_of!(State, mxcsr_default));

/// Why translated code was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// By a handler, which said where it goes on and with how much fuel.
    Done,
    /// By the jump of the op at `index` in the arena, which is at `site` in the code.
    Jump { index: u32, site: u32, slack: i64 },
    /// To the guest's `pc`.
    Pc { slack: i64 },
}

const DONE: u64 = 0;
const JUMP: u64 = 1;
const PC: u64 = 2;

/// What translated code gets with it.
#[repr(C)]
struct Frame<'a> {
    /// The hart's address and [`BIAS`].
    rbp: usize,
    index: u32,
    site: u32,
    slack: i64,
    hart: *mut Hart,
    bus: &'a mut dyn Bus,
    panic: Option<Box<dyn Any + Send>>,
}

type Enter = extern "sysv64" fn(frame: *mut Frame, native: usize, slack: i64) -> u64;

/// Offsets of the thunks in the code memory.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Thunks {
    enter: u32,
    /// `eax`: the op. Called.
    pub slow: u32,
    /// `eax`: the op, `ecx`: the site. Jumped to.
    pub leave_by_jump: u32,
    /// Jumped to.
    pub leave_to_pc: u32,
    /// By binary logarithm of the size, for loads and for stores; `rax`: the address. Called.
    misaligned: [[u32; 2]; 4],
}

/// Executes translated code from `native` on, an address that the code cache gave.
pub(super) fn run(hart: &mut Hart, enter: usize, native: usize, slack: i64, bus: &mut dyn Bus) -> Leave {
    let hart: *mut Hart = hart;
    let rbp = (hart as usize).wrapping_add(BIAS);
    let mut frame = Frame { rbp, index: 0, site: 0, slack: 0, hart, bus, panic: None };
    // SAFETY: `assemble` put a function of this type there, and the code memory lives as long as the
    // hart that owns it.
    let enter: Enter = unsafe { std::mem::transmute(enter) };
    let reason = enter(&raw mut frame, native, slack);
    if let Some(panic) = frame.panic.take() {
        resume_unwind(panic);
    }
    match reason {
        DONE => Leave::Done,
        JUMP => Leave::Jump { index: frame.index, site: frame.site, slack: frame.slack },
        _ => Leave::Pc { slack: frame.slack },
    }
}

/// Executes one op by its handler. Returns whether translated code goes on behind it.
extern "sysv64" fn execute_one(frame: *mut Frame, index: u32, slack: i64) -> bool {
    // SAFETY: translated code passes on the frame that it got from `run`, which is borrowed by
    // nobody else meanwhile.
    let frame = unsafe { &mut *frame };
    // SAFETY: `run` has the hart borrowed, and does not use it meanwhile.
    let hart = unsafe { &mut *frame.hart };
    let bus = &mut *frame.bus;
    match catch_unwind(AssertUnwindSafe(|| hart.execute_one(index as usize, slack, bus))) {
        Ok(goes_on) => goes_on,
        Err(panic) => {
            frame.panic = Some(panic);
            false
        }
    }
}

/// Assembles the thunks, which come first in the code memory.
pub(super) fn assemble(code: &mut Buffer) -> Thunks {
    let mut thunks = Thunks::default();
    // Offset 0 stands for "not translated".
    code.align(16, 0xcc);
    dynasm!(code; int3);
    code.align(16, 0xcc);
    thunks.enter = code.len() as u32;
    dynasm!(code
        ; push rbp
        ; push rbx
        ; push r12
        ; push r13
        ; push r14
        ; push r15
        ; sub rsp, 24
        ; mov [rsp], rdi
        ; mov rbp, [BYTE rdi + offset_of!(Frame, rbp) as i8]
        ; mov rax, rsi
        ; mov r14, rdx
        ; mov r15, [rbp + TLB]
    );
    set_rounding(code, MXCSR);
    super::float::fill(code);
    code.fill();
    dynasm!(code; jmp rax);

    let mut leaving = Vec::new();
    for (place, reason) in [(&mut thunks.leave_by_jump, JUMP), (&mut thunks.leave_to_pc, PC)] {
        code.align(16, 0xcc);
        *place = code.len() as u32;
        code.spill();
        dynasm!(code
            ; mov rdi, [rsp]
            ; mov [BYTE rdi + offset_of!(Frame, index) as i8], eax
            ; mov [BYTE rdi + offset_of!(Frame, site) as i8], ecx
            ; mov [BYTE rdi + offset_of!(Frame, slack) as i8], r14
            ; mov eax, reason as i32
        );
        leaving.push(code.jump());
    }

    code.align(16, 0xcc);
    thunks.slow = code.len() as u32;
    code.spill();
    set_rounding(code, MXCSR_DEFAULT);
    dynasm!(code
        ; mov rdi, [rsp + 8]
        ; mov esi, eax
        ; mov rdx, r14
        ; sub rsp, 8
        ; mov rax, QWORD execute_one as *const () as i64
        ; call rax
        ; add rsp, 8
        ; test al, al
    );
    let left = code.jump_if(Cond::Equal);
    set_rounding(code, MXCSR);
    super::float::fill(code);
    code.fill();
    dynasm!(code; mov r15, [rbp + TLB]; ret);
    code.bind(left);
    dynasm!(code; add rsp, 8; mov eax, DONE as i32);

    leaving.into_iter().for_each(|jump| code.bind(jump));
    set_rounding(code, MXCSR_DEFAULT);
    dynasm!(code
        ; add rsp, 24
        ; pop r15
        ; pop r14
        ; pop r13
        ; pop r12
        ; pop rbx
        ; pop rbp
        ; ret
    );
    for size_shift in 1..4 {
        for writes in [false, true] {
            code.align(16, 0xcc);
            thunks.misaligned[size_shift][usize::from(writes)] = code.len() as u32;
            super::access::assemble_misaligned(code, 1 << size_shift, writes);
        }
    }
    code.align(16, 0xcc);
    thunks
}

/// Sets the host's control register from where it is, if the guest rounds in its own way.
fn set_rounding(code: &mut Buffer, from: i32) {
    dynasm!(code; cmp DWORD [rbp + MXCSR], DWORD super::float::MXCSR_DEFAULT as i32);
    let usual = code.jump_if(Cond::Equal);
    dynasm!(code; ldmxcsr [rbp + from]);
    code.bind(usual);
}

impl Thunks {
    /// What looks again at an access that may be misaligned; a byte cannot be.
    pub fn misaligned(&self, size: u32, writes: bool) -> Option<u32> {
        Some(self.misaligned[size.trailing_zeros() as usize][usize::from(writes)]).filter(|&thunk| thunk != 0)
    }

    pub fn enter(&self) -> usize {
        self.enter as usize
    }
}
