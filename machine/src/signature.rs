//! The signature of a bare-metal test: memory between two symbols, as the text that RISC-V
//! test suites compare (`begin_signature` and `end_signature`, as Spike and Sail dump it).

use std::fmt::Write;

use crate::boot::symbol_addresses;
use crate::ram::{RAM_BASE, Ram};

const BEGIN: &str = "begin_signature";
const END: &str = "end_signature";

/// Where a program leaves its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    start: u64,
    end: u64,
}

/// Why a program has no signature. Each message is one line that says the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// A symbol is missing.
    #[error(
        "the program has no symbol {missing}, so it has no signature; link it with {BEGIN} and {END} around its results, and do not strip it"
    )]
    NoSymbol {
        /// The first that is not there.
        missing: &'static str,
    },
    /// The end comes before the beginning.
    #[error("{BEGIN} ({start:#x}) comes after {END} ({end:#x}); exchange them in the program")]
    Reversed {
        /// The one.
        start: u64,
        /// The other.
        end: u64,
    },
    /// It lies elsewhere.
    #[error(
        "the signature lies from {start:#x} to {end:#x}, RAM from {RAM_BASE:#x} to {ram_end:#x}; link the program into it, or give the machine more memory"
    )]
    OutsideRam {
        /// First address.
        start: u64,
        /// Address after the last.
        end: u64,
        /// Address after the last of RAM.
        ram_end: u64,
    },
}

impl Signature {
    /// The signature that an ELF file's symbols name.
    ///
    /// # Errors
    /// When a symbol is missing, or they are in the wrong order.
    pub fn find(elf: &[u8]) -> Result<Signature, SignatureError> {
        let [start, end] = symbol_addresses(elf, [BEGIN, END]);
        let start = start.ok_or(SignatureError::NoSymbol { missing: BEGIN })?;
        let end = end.ok_or(SignatureError::NoSymbol { missing: END })?;
        if start > end {
            return Err(SignatureError::Reversed { start, end });
        }
        Ok(Signature { start, end })
    }

    /// Its text: a line of hexadecimal digits for each little-endian word of
    /// `granularity_bytes`, the last one filled up with zeros.
    ///
    /// # Errors
    /// When it does not lie in memory.
    ///
    /// # Panics
    /// When `granularity_bytes` is 0.
    pub fn text(&self, ram: &Ram, granularity_bytes: usize) -> Result<String, SignatureError> {
        let Signature { start, end } = *self;
        let ram_end = RAM_BASE + ram.len_bytes();
        let outside = SignatureError::OutsideRam { start, end, ram_end };
        let bytes = usize::try_from(end - start).ok().and_then(|len| ram.slice(start, len).ok());
        let mut text = String::new();
        for word in bytes.ok_or(outside)?.chunks(granularity_bytes) {
            text.extend(std::iter::repeat_n("00", granularity_bytes - word.len()));
            for byte in word.iter().rev() {
                write!(text, "{byte:02x}").expect("a string takes everything");
            }
            text.push('\n');
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(len: u64) -> Signature {
        Signature { start: RAM_BASE, end: RAM_BASE + len }
    }

    #[test]
    fn words_are_little_endian_and_filled_up() {
        let mut ram = Ram::new(1);
        ram.write(RAM_BASE, &[0x01, 0x23, 0x45, 0x67, 0x89, 0xab]).unwrap();
        assert_eq!(signature(6).text(&ram, 4).unwrap(), "67452301\n0000ab89\n");
        assert_eq!(signature(8).text(&ram, 8).unwrap(), "0000ab8967452301\n");
        assert_eq!(signature(1).text(&ram, 16).unwrap(), "00000000000000000000000000000001\n");
        assert_eq!(signature(0).text(&ram, 4).unwrap(), "");
    }

    #[test]
    fn what_lies_elsewhere_is_refused() {
        let ram = Ram::new(1);
        assert!(matches!(signature(4097).text(&ram, 4), Err(SignatureError::OutsideRam { .. })));
        let below = Signature { start: 0, end: u64::MAX };
        assert!(matches!(below.text(&ram, 4), Err(SignatureError::OutsideRam { .. })));
        assert_eq!(Signature::find(b"\x7fELF"), Err(SignatureError::NoSymbol { missing: BEGIN }));
    }
}
