//! A program: the frame, blocks of generated instructions, and initial memory.

use std::ops::Range;

use super::assembler::{Assembler, Label};
use super::classes::Class;
use super::encode::{csr::*, *};
use super::frame::{self, Frame, LEAVE_MARKER, STATUS_MPP, USER_ALIAS};
use super::layout;
use super::values;
use crate::sim::random::Random;

/// What a program is made from: equal recipes give equal programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// What its instructions are.
    pub class: Class,
    /// Of the generator.
    pub seed: u64,
}

/// Blocks of a program.
const BLOCKS: usize = 128;
/// Items per block; an item is one instruction, or a few that belong together.
const ITEMS: usize = 96;
/// How often each block is executed, with other registers each time.
const ITERATIONS: u64 = 24;

/// Exceptions that both machines can delegate.
const DELEGABLE: u64 = 0xb3ff;

/// Where a block lies.
#[derive(Debug, Clone, Copy)]
pub struct BlockPlace {
    /// Where each iteration starts.
    pub start: u64,
    /// The call of the turn.
    pub end: u64,
}

/// A program for both machines.
#[derive(Debug, Clone)]
pub struct Program {
    /// What it was made from.
    pub recipe: Recipe,
    /// Initial memory: addresses and bytes. The rest is zero.
    pub memory: Vec<(u64, Vec<u8>)>,
    /// Its blocks, in order.
    pub blocks: Vec<BlockPlace>,
    /// Iterations of each block.
    pub iterations: u64,
    /// Generated instructions that a run executes at most, without those of the frame.
    pub instructions: u64,
    /// Where traps enter.
    pub vectors: [u64; 2],
    /// The handlers, their vectors included.
    pub handlers: Range<u64>,
    /// A word that our machine alone gets at an address: a defect, to test the search for it.
    pub defect: Option<(u64, u32)>,
    finish: u64,
}

impl Program {
    /// Generates the program of a recipe.
    pub fn generate(recipe: Recipe) -> Program {
        let mut random = Random::new(recipe.seed ^ (recipe.class as u64) << 56);
        let mut asm = Assembler::new(layout::CODE);
        let frame = frame::put(&mut asm, ITERATIONS);
        let mut blocks = Vec::new();
        let mut generated = 0;
        for _ in 0..BLOCKS {
            let start = asm.label_here();
            let before = asm.instructions();
            let mut block = Block { asm: &mut asm, random: random.fork(), due: Vec::new(), put: 0 };
            recipe.class.put_body(&mut block);
            generated += asm.instructions() - before;
            blocks.push(put_turn_call(&mut asm, frame, start));
        }
        asm.jump(ZERO, frame.finish);
        let in_frame = |label| asm.address(label).expect("the frame is whole");
        let (finish, vectors) = (in_frame(frame.finish), frame.vectors.map(in_frame));
        let handlers = vectors[0]..in_frame(frame.turn);
        let code = asm.finish();
        assert!(code.len() as u64 <= layout::CODE_ROOM_BYTES, "{} bytes of code", code.len());
        let mut memory = vec![(layout::CODE, code)];
        memory.push((layout::VALUES, to_bytes(&values::integers(&mut random))));
        memory.push((layout::FLOATS, to_bytes(&values::floats(&mut random))));
        let data: Vec<u64> = (0..layout::DATA_BYTES / 8).map(|_| random.next_u64()).collect();
        memory.push((layout::DATA, to_bytes(&data)));
        memory.extend(recipe.class.initial_memory(&mut random));
        Program {
            recipe,
            memory,
            blocks,
            iterations: ITERATIONS,
            instructions: generated * ITERATIONS,
            vectors,
            handlers,
            defect: None,
            finish,
        }
    }

    /// The program that powers off after `blocks` blocks.
    pub fn truncated(&self, blocks: usize) -> Program {
        let mut program = self.clone();
        if let Some(place) = self.blocks.get(blocks) {
            let jump = j(0x6f, ZERO, (self.finish as i64 - place.start as i64) as i32);
            let at = (place.start - layout::CODE) as usize;
            program.memory[0].1[at..at + 4].copy_from_slice(&jump.to_le_bytes());
        }
        program
    }

    /// The block that an address belongs to.
    pub fn block_at(&self, address: u64) -> Option<usize> {
        self.blocks.iter().position(|place| (place.start..place.end).contains(&address))
    }

    /// Instructions, those of the frame and of handlers included, after which a run has gone
    /// astray.
    pub fn limit(&self) -> u64 {
        self.blocks.len() as u64 * self.iterations * 500 + self.instructions * 100
    }

    /// Memory that machines must leave alike: addresses and lengths of dumps, trap log, code and
    /// data.
    pub fn compared_memory(&self) -> [(u64, usize); 4] {
        [
            (layout::DUMPS, self.dumps_bytes() as usize),
            (layout::LOG, layout::LOG_BYTES as usize),
            (layout::CODE, self.memory[0].1.len() & !7),
            (layout::VARIABLES, (layout::LOG - layout::VARIABLES) as usize),
        ]
    }

    /// Bytes of dumps that a whole run leaves.
    pub fn dumps_bytes(&self) -> u64 {
        (self.blocks.len() as u64 * self.iterations + 1) * layout::DUMP_BYTES
    }
}

fn put_turn_call(asm: &mut Assembler, frame: Frame, start: Label) -> BlockPlace {
    let end = asm.here();
    asm.jump(TP, frame.turn);
    asm.jump(ZERO, start);
    BlockPlace { start: asm.address(start).expect("bound before"), end }
}

fn to_bytes(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A privilege mode, numbered as in `mstatus.MPP`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as in the privileged specification")]
pub enum Mode {
    User = 0,
    Supervisor = 1,
    Machine = 3,
}

/// How a block's instructions are executed.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// In this mode.
    pub mode: Mode,
    /// Bits of `mstatus` beside MPP.
    pub status: u64,
    /// `medeleg`.
    pub medeleg: u64,
    /// `mideleg`.
    pub mideleg: u64,
    /// `satp`; user code then runs at its alias.
    pub satp: u64,
}

/// A block under construction.
#[derive(Debug)]
pub struct Block<'a> {
    /// Takes the instructions.
    pub asm: &'a mut Assembler,
    /// Of this block alone.
    pub random: Random,
    /// Labels to be bound before an item.
    due: Vec<(usize, Label)>,
    put: usize,
}

impl Block<'_> {
    /// Puts the usual number of items.
    pub fn items(&mut self, item: impl FnMut(&mut Self)) {
        self.some_items(ITEMS, item);
    }

    /// Puts `count` items, each by a call of `item`, and binds the labels of
    /// [`Block::label_ahead`].
    pub fn some_items(&mut self, count: usize, mut item: impl FnMut(&mut Self)) {
        for _ in 0..count {
            self.bind_due(self.put);
            item(self);
            self.put += 1;
        }
        self.bind_due(usize::MAX);
    }

    fn bind_due(&mut self, until: usize) {
        let asm = &mut *self.asm;
        self.due.retain(|(item, label)| {
            if *item <= until {
                asm.bind(*label);
            }
            *item > until
        });
    }

    /// A label in front of one of the items that follow the present one.
    pub fn label_ahead(&mut self) -> Label {
        let label = self.asm.label();
        let ahead = self.random.between(1, 6) as usize;
        self.due.push((self.put + ahead, label));
        label
    }

    /// A register that may be written to, now and then `x0`.
    pub fn target(&mut self) -> u32 {
        loop {
            let register = self.random.between(0, 31) as u32;
            if ![SP, GP, TP, S0].contains(&register) {
                return register;
            }
        }
    }

    /// The same without `x0`, and never equal to `other`.
    pub fn scratch(&mut self, other: u32) -> u32 {
        loop {
            let register = self.target();
            if register != ZERO && register != other {
                return register;
            }
        }
    }

    /// Any register.
    pub fn register(&mut self) -> u32 {
        self.random.between(0, 31) as u32
    }

    /// One of `x8` to `x15` that may be written to, in its three-bit form.
    pub fn small_target(&mut self) -> u32 {
        self.random.between(1, 7) as u32
    }

    /// One of `x8` to `x15` in its three-bit form.
    pub fn small_register(&mut self) -> u32 {
        self.random.between(0, 7) as u32
    }

    /// A signed number of `bits` bits.
    pub fn immediate(&mut self, bits: u32) -> i32 {
        let value = self.random.next_u64() as i32;
        match self.random.between(0, 7) {
            0 => 0,
            1 => -1,
            2 => value & 7,
            _ => value << (32 - bits) >> (32 - bits),
        }
    }

    /// An address in the data area, or one of little reach outside, into a register; may
    /// use two more instructions than that.
    pub fn data_pointer(&mut self) -> u32 {
        if self.random.chance(500) {
            return *self.random.pick(&[SP, S0]);
        }
        let (pointer, source) = (self.scratch(ZERO), self.register());
        // 15 bits of any register, from the data's beginning on.
        self.asm.words(&[slli(pointer, source, 49), srli(pointer, pointer, 49)]);
        if self.random.chance(700) {
            self.asm.word(andi(pointer, pointer, -8));
        }
        self.asm.word(add(pointer, pointer, SP));
        if self.random.chance(700) {
            let page = self.scratch(pointer);
            self.asm.words(&[lui(page, 0x4000), r(0x4000_0033, pointer, pointer, page)]);
        }
        pointer
    }

    /// Enters a mode: clobbers t5 and t6.
    pub fn enter(&mut self, entry: Entry) {
        let Entry { mode, status, medeleg, mideleg, satp } = entry;
        let asm = &mut *self.asm;
        for (number, value) in [(MEDELEG, medeleg & DELEGABLE), (MIDELEG, mideleg), (SATP, satp)] {
            asm.constant(T6, value);
            asm.word(csrrw(ZERO, number, T6));
        }
        asm.constant(T6, status & !STATUS_MPP | (mode as u64) << 11);
        asm.word(csrrw(ZERO, MSTATUS, T6));
        let body = asm.label();
        asm.address_of(T6, body);
        if satp != 0 && mode == Mode::User {
            asm.constant(T5, USER_ALIAS);
            asm.word(add(T6, T6, T5));
        }
        asm.words(&[csrrw(ZERO, MEPC, T6), MRET]);
        asm.bind(body);
    }

    /// Comes back to M-mode from another one.
    pub fn leave(&mut self) {
        self.asm.words(&[ECALL, LEAVE_MARKER]);
    }
}
