//! The machine against QEMU, on generated programs.
//!
//! A [`Program`] is made from a class of instructions and a seed. It runs bare, in M-mode, on
//! QEMU's `virt` board and on our hart, and leaves all it did in memory: a dump of the
//! registers after every few hundred instructions, a log of all traps, and what it stored.
//! QEMU's memory is a file, so comparing is comparing bytes. On a difference both machines
//! are stepped side by side to the first instruction that differs.
//!
//! Each program also runs on our hart cut into pieces: that must not matter (law 1).
//!
//! The hart that QEMU emulates is given the very extensions of ours, so that what is illegal
//! is compared as well.

pub mod assembler;
mod campaign;
mod classes;
mod compare;
mod coverage;
pub mod directed;
pub mod encode;
pub mod frame;
mod gdb;
mod instruction;
pub mod layout;
mod lockstep;
mod oracle;
mod program;
mod subject;
mod values;
mod whole;

pub use campaign::{Campaign, ClassResult, Results};
pub use classes::Class;
pub use compare::{Difference, Verdict, What, compare, first_difference};
pub use coverage::{Coverage, Executions, TrapKind};
pub use lockstep::command;
pub use oracle::{Oracle, OracleError, QEMU_VARIABLE};
pub use program::{Mode, Program, Recipe};
pub use subject::{Cut, End, Subject};
