//! What programs are made of, by class of instruction.

mod atomic;
mod bits;
mod compressed;
mod control;
mod decode;
mod float;
mod integer;
mod interrupt;
mod memory;
mod modification;
mod paging;
mod protection;
mod trap;

use super::program::Block;
use crate::sim::random::Random;

macro_rules! classes {
    ($($(#[$doc:meta])* $name:ident = $text:literal: $body:expr, $memory:expr;)*) => {
        /// A class of instructions.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Class { $($(#[$doc])* $name,)* }

        impl Class {
            /// All of them.
            pub const ALL: &[Class] = &[$(Class::$name,)*];

            /// The name, as in test names and on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Class::$name => $text,)* }
            }

            /// Puts the body of a block.
            pub(super) fn put_body(self, block: &mut Block<'_>) {
                match self { $(Class::$name => $body(block),)* }
            }

            /// Memory beside the frame's.
            pub(super) fn initial_memory(self, random: &mut Random) -> Vec<(u64, Vec<u8>)> {
                match self { $(Class::$name => $memory(random),)* }
            }
        }
    };
}

fn nothing(_random: &mut Random) -> Vec<(u64, Vec<u8>)> {
    Vec::new()
}

classes! {
    /// RV64I without memory, with branches and jumps.
    Integer = "integer": integer::put_body, nothing;
    /// M.
    Multiplication = "multiplication": bits::put_multiplications, nothing;
    /// Zba, Zbb, Zbs, Zicond.
    Bits = "bits": bits::put_body, nothing;
    /// C.
    Compressed = "compressed": compressed::put_body, nothing;
    /// Loads, stores and `cbo.zero`, aligned and not.
    Memory = "memory": memory::put_body, nothing;
    /// A.
    Atomic = "atomic": atomic::put_body, nothing;
    /// F.
    Single = "single": float::put_singles, nothing;
    /// D, with conversions between formats.
    Double = "double": float::put_doubles, nothing;
    /// Words that are instructions or not: the decoder.
    Decode = "decode": decode::put_body, nothing;
    /// CSRs, in all modes.
    Control = "control": control::put_body, nothing;
    /// Exceptions in all modes, delegated or not, and returns from them.
    Trap = "trap": trap::put_body, nothing;
    /// Interrupts that software raises.
    Interrupt = "interrupt": interrupt::put_body, nothing;
    /// Sv39 and Sv48.
    Paging = "paging": paging::put_body, paging::initial_memory;
    /// Physical memory protection.
    Protection = "protection": protection::put_body, nothing;
    /// Code that writes code.
    Modification = "modification": modification::put_body, nothing;
    /// All that needs no preparation, mixed.
    Mixed = "mixed": put_mixed, nothing;
}

fn put_mixed(block: &mut Block<'_>) {
    block.items(|block| match block.random.between(0, 9) {
        0..=2 => integer::put_item(block),
        3 => bits::put_item(block),
        4 => bits::put_multiplication(block),
        5 => compressed::put_item(block),
        6 => memory::put_item(block),
        7 => atomic::put_item(block),
        8 => float::put_single(block),
        _ => float::put_double(block),
    });
}
