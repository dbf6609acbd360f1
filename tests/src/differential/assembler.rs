//! Puts instruction words one after another, with labels.

use super::encode;

/// A place in the code that may be used before it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(usize);

#[derive(Debug, Clone, Copy)]
enum Fixup {
    Branch,
    Jump,
    /// `auipc` and the instruction with an I-type immediate after it.
    Address,
}

/// Code under construction.
#[derive(Debug, Clone)]
pub struct Assembler {
    base: u64,
    code: Vec<u8>,
    labels: Vec<Option<usize>>,
    fixups: Vec<(usize, Label, Fixup)>,
    instructions: u64,
}

impl Assembler {
    /// Code that begins at `base`.
    pub fn new(base: u64) -> Assembler {
        Assembler { base, code: Vec::new(), labels: Vec::new(), fixups: Vec::new(), instructions: 0 }
    }

    /// Address of the next instruction.
    pub fn here(&self) -> u64 {
        self.base + self.code.len() as u64
    }

    /// Instructions put so far.
    pub fn instructions(&self) -> u64 {
        self.instructions
    }

    /// Puts a 32-bit instruction.
    pub fn word(&mut self, word: u32) {
        self.code.extend_from_slice(&word.to_le_bytes());
        self.instructions += 1;
    }

    /// Puts several.
    pub fn words(&mut self, words: &[u32]) {
        words.iter().for_each(|word| self.word(*word));
    }

    /// Puts a 16-bit instruction.
    pub fn half(&mut self, half: u16) {
        self.code.extend_from_slice(&half.to_le_bytes());
        self.instructions += 1;
    }

    /// Fills up with `c.nop` to a multiple of `bytes`.
    pub fn align(&mut self, bytes: u64) {
        while !self.here().is_multiple_of(bytes) {
            self.half(encode::C_NOP);
        }
    }

    /// A label for later.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Says that `label` is here.
    pub fn bind(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    /// A label that is here.
    pub fn label_here(&mut self) -> Label {
        let label = self.label();
        self.bind(label);
        label
    }

    /// A conditional branch with this funct3.
    pub fn branch(&mut self, funct3: u32, rs1: u32, rs2: u32, to: Label) {
        self.fixups.push((self.code.len(), to, Fixup::Branch));
        self.word(encode::b(0x63 | funct3 << 12, rs1, rs2, 0));
    }

    /// `jal`.
    pub fn jump(&mut self, rd: u32, to: Label) {
        self.fixups.push((self.code.len(), to, Fixup::Jump));
        self.word(encode::j(0x6f, rd, 0));
    }

    /// The address of a label.
    pub fn address_of(&mut self, rd: u32, label: Label) {
        self.relative(rd, label, encode::addi(rd, rd, 0));
    }

    /// `auipc` to `scratch`, then an I-type instruction whose immediate is the rest of the
    /// way to `label`.
    pub fn relative(&mut self, scratch: u32, label: Label, then: u32) {
        self.fixups.push((self.code.len(), label, Fixup::Address));
        self.word(encode::auipc(scratch, 0));
        self.word(then);
    }

    /// Any constant, in one to eight instructions.
    pub fn constant(&mut self, rd: u32, value: u64) {
        let signed = value as i64;
        if i64::from(signed as i32) == signed {
            let low = (signed << 52 >> 52) as i32;
            let high = (value as u32).wrapping_sub(low as u32);
            if high == 0 {
                return self.word(encode::addi(rd, 0, low));
            }
            self.word(encode::lui(rd, high));
            // `addiw`, not `addi`: 0x7ffff800 and above.
            return self.word(encode::addiw(rd, rd, low));
        }
        let low = signed << 52 >> 52;
        let rest = signed.wrapping_sub(low);
        let shift = rest.trailing_zeros();
        self.constant(rd, (rest >> shift) as u64);
        self.word(encode::slli(rd, rd, shift));
        if low != 0 {
            self.word(encode::addi(rd, rd, low as i32));
        }
    }

    /// The code, with all labels resolved.
    ///
    /// # Panics
    /// When a label was never bound or lies out of reach: generated code is to be corrected.
    pub fn finish(mut self) -> Vec<u8> {
        for (at, label, fixup) in std::mem::take(&mut self.fixups) {
            let target = self.labels[label.0].expect("a label that is used is bound");
            let offset = i32::try_from(target as i64 - at as i64).expect("code is small");
            match fixup {
                Fixup::Branch => {
                    assert!((-4096..4096).contains(&offset), "a branch of {offset} bytes");
                    self.patch(at, encode::b(0, 0, 0, offset));
                }
                Fixup::Jump => {
                    assert!((-(1 << 20)..1 << 20).contains(&offset), "a jump of {offset} bytes");
                    self.patch(at, encode::j(0, 0, offset));
                }
                Fixup::Address => {
                    let low = offset << 20 >> 20;
                    self.patch(at, encode::u(0, 0, (offset - low) as u32));
                    self.patch(at + 4, encode::i(0, 0, 0, low));
                }
            }
        }
        self.code
    }

    /// Where a label is, once bound.
    pub fn address(&self, label: Label) -> Option<u64> {
        self.labels[label.0].map(|offset| self.base + offset as u64)
    }

    fn patch(&mut self, at: usize, bits: u32) {
        let bytes: [u8; 4] = self.code[at..at + 4].try_into().expect("4 bytes");
        let word = u32::from_le_bytes(bytes) | bits;
        self.code[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
}
