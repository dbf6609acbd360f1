//! The cache of decoded blocks.
//!
//! A block is a run of instructions of one page that is entered at its first. It ends at an
//! unconditional jump, at the end of the page, or after [`MAX_BLOCK`] instructions;
//! conditional branches leave it on the way. Blocks are found by guest-physical address, so they
//! hold for every process that maps their page; an instruction that straddles two pages is
//! a block of its own, found by both addresses. All of it is bounded: when the arena is full,
//! everything is dropped.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::mem::MaybeUninit;
use std::ptr;

use super::branch;
use super::compressed::expand;
use super::decode::{Decoded, Flow, SINK, decode};
use super::op::{Handler, Link, MAX_BLOCK, Op, OpRef};
use super::stops;
use super::system;
use crate::ram::{PAGE_BYTES, PAGE_SHIFT};
use crate::semantics::Semantics;

/// Most slots that one block takes: each instruction may have a guard and a link, and one jump ends it.
const BLOCK_SLOTS: usize = 3 * MAX_BLOCK as usize + 2;
/// Slots at the start of the arena for blocks that are used once.
const SCRATCH_SLOTS: usize = BLOCK_SLOTS;
/// Entries of the jump cache.
const JUMPS: usize = 4096;
/// Last offset at which an instruction may begin; one of four bytes there straddles.
const LAST_OFFSET: usize = PAGE_BYTES - 2;

type Slot = MaybeUninit<Op>;

/// What is known of an op and not needed to execute it.
#[derive(Clone, Copy, Default)]
struct Side {
    /// The instruction, as it is in memory.
    instruction: u32,
    /// Where it is in its page.
    offset: u16,
    /// At the first op of a block: instructions in the block.
    block_count: u8,
}

/// Where to go for a guest-virtual address.
#[derive(Clone, Copy)]
struct Jump {
    target: u64,
    context: u32,
    op: u32,
}

const NO_JUMP: Jump = Jump { target: 0, context: 0, op: 0 };

/// A decoded block.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub first: *const Op,
    /// Instructions it may retire.
    pub count: u64,
}

/// Where the bytes of a block come from.
pub(super) struct Source<'a> {
    /// The page.
    pub page: &'a [u8],
    /// Where the block begins in it.
    pub offset: usize,
    /// For an instruction that straddles: its second half.
    pub second_half: Option<u16>,
}

/// Blocks of one page by offset, sorted.
type PageBlocks = Vec<(u16, u32)>;

pub(super) struct Blocks {
    arena: Box<[Slot]>,
    side: Vec<Side>,
    pages: HashMap<u64, PageBlocks, BuildHasherDefault<NumberHasher>>,
    straddling: HashMap<(u64, u64), u32, BuildHasherDefault<NumberHasher>>,
    jumps: Box<[Jump; JUMPS]>,
    /// Offsets in pages at which instructions get a guard, sorted.
    guarded: Vec<u16>,
    /// Changes when everything is dropped.
    pub epoch: u64,
    /// What there is to decode.
    semantics: Semantics,
}

// SAFETY: links in the arena point into the arena, which moves with the struct as a box does.
unsafe impl Send for Blocks {}

impl Blocks {
    /// A cache of at most about `bytes` bytes.
    pub fn new(bytes: usize, semantics: Semantics) -> Blocks {
        let slots = (bytes / (size_of::<Op>() + size_of::<Side>())).max(16 * BLOCK_SLOTS);
        let mut side = Vec::with_capacity(slots);
        side.resize(SCRATCH_SLOTS, Side::default());
        Blocks {
            arena: Box::new_uninit_slice(slots),
            side,
            pages: HashMap::default(),
            straddling: HashMap::default(),
            jumps: Box::new([NO_JUMP; JUMPS]),
            guarded: Vec::new(),
            epoch: 0,
            semantics,
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.side.truncate(SCRATCH_SLOTS);
        self.pages.clear();
        self.straddling.clear();
        self.jumps.fill(NO_JUMP);
        self.epoch += 1;
    }

    /// Has guards put before the instructions at these offsets in their pages, and before no
    /// others. Drops everything; the caller must give up every fetch context.
    pub fn set_guarded(&mut self, offsets: impl Iterator<Item = u16>) {
        self.guarded = offsets.collect();
        self.guarded.sort_unstable();
        self.guarded.dedup();
        self.clear();
    }

    /// Drops the blocks of a page. The caller must give up every fetch context.
    pub fn drop_page(&mut self, page: u64) {
        self.pages.remove(&page);
        self.straddling
            .retain(|&(first, second), _| first >> PAGE_SHIFT != page && second >> PAGE_SHIFT != page);
    }

    /// First op of the block at a guest-virtual address, if the jump cache has it.
    #[inline(always)]
    pub fn jump_target(&self, target: u64, context: u32) -> Option<*const Op> {
        let jump = &self.jumps[(target >> 1) as usize % JUMPS];
        (jump.target == target && jump.context == context)
            .then(|| self.arena.as_ptr().wrapping_add(jump.op as usize).cast())
    }

    /// The block at a guest-virtual address, if the jump cache has it.
    pub fn find_virtual(&self, target: u64, context: u32) -> Option<Block> {
        self.jump_target(target, context).map(|first| self.block_at(self.index_of(first)))
    }

    /// Adds a block to the jump cache.
    pub fn remember(&mut self, target: u64, context: u32, block: Block) {
        let op = self.index_of(block.first) as u32;
        self.jumps[(target >> 1) as usize % JUMPS] = Jump { target, context, op };
    }

    /// The block at an offset into RAM.
    pub fn find_physical(&self, address: u64) -> Option<Block> {
        let blocks = self.pages.get(&(address >> PAGE_SHIFT))?;
        let offset = address as u16 & (PAGE_BYTES as u16 - 1);
        let place = blocks.binary_search_by_key(&offset, |&(offset, _)| offset).ok()?;
        Some(self.block_at(blocks[place].1 as usize))
    }

    /// The block that is the instruction which straddles from one offset into RAM to another.
    pub fn find_straddling(&self, first: u64, second: u64) -> Option<Block> {
        self.straddling.get(&(first, second)).map(|&op| self.block_at(op as usize))
    }

    /// Decodes the block at an offset into RAM and keeps it. Returns it with the number of
    /// bytes it was decoded from.
    pub fn add(&mut self, address: u64, source: Source<'_>) -> (Block, usize) {
        let (block, len) = self.append(source);
        let blocks = self.pages.entry(address >> PAGE_SHIFT).or_default();
        let offset = address as u16 & (PAGE_BYTES as u16 - 1);
        let op = ((block.first as usize - self.arena.as_ptr() as usize) / size_of::<Op>()) as u32;
        match blocks.binary_search_by_key(&offset, |&(offset, _)| offset) {
            Ok(place) => blocks[place].1 = op,
            Err(place) => blocks.insert(place, (offset, op)),
        }
        (block, len)
    }

    /// As [`Blocks::add`], for an instruction that straddles.
    pub fn add_straddling(&mut self, first: u64, second: u64, source: Source<'_>) -> Block {
        let (block, _) = self.append(source);
        self.straddling.insert((first, second), self.index_of(block.first) as u32);
        block
    }

    /// Decodes at most `limit` instructions, to be executed once, now.
    pub fn decode_once(&mut self, source: Source<'_>, limit: usize) -> Block {
        let mut builder = Builder { blocks: self, slot: 0, count: 0 };
        builder.build(&source, limit);
        self.block_at(0)
    }

    /// Whether a block stays: it was not decoded to be executed once.
    pub fn keeps(&self, block: Block) -> bool {
        self.index_of(block.first) >= SCRATCH_SLOTS
    }

    /// Whether the next block may make room by dropping everything.
    pub fn is_full(&self) -> bool {
        self.side.len() + BLOCK_SLOTS > self.arena.len()
    }

    fn append(&mut self, source: Source<'_>) -> (Block, usize) {
        assert!(!self.is_full(), "room is made before a block is added");
        let start = self.side.len();
        let mut builder = Builder { blocks: self, slot: start, count: 0 };
        let len = builder.build(&source, MAX_BLOCK as usize);
        (self.block_at(start), len)
    }

    /// Where an op is in its page.
    pub fn offset_of(&self, op: OpRef) -> u16 {
        self.side[self.index_of(op.as_ptr())].offset
    }

    /// The instruction that an op was decoded from.
    pub fn instruction_of(&self, op: OpRef) -> u32 {
        self.side[self.index_of(op.as_ptr())].instruction
    }

    fn index_of(&self, op: *const Op) -> usize {
        (op as usize - self.arena.as_ptr() as usize) / size_of::<Op>()
    }

    fn block_at(&self, index: usize) -> Block {
        let first = self.arena[index..].as_ptr().cast();
        Block { first, count: u64::from(self.side[index].block_count) }
    }
}

/// Writes one block into the arena.
struct Builder<'a> {
    blocks: &'a mut Blocks,
    slot: usize,
    count: u8,
}

impl Builder<'_> {
    /// Decodes at most `limit` instructions. Returns the number of bytes they take.
    fn build(&mut self, source: &Source<'_>, limit: usize) -> usize {
        let first = self.slot;
        let mut offset = source.offset;
        loop {
            let straddles = offset >= LAST_OFFSET && self.count > 0;
            if usize::from(self.count) == limit
                || offset > LAST_OFFSET
                || straddles && is_wide(source, offset)
            {
                self.go_to(offset);
                break;
            }
            let (instruction, len) = fetch(source, offset);
            let decoded = decode_at(instruction, offset, len, self.blocks.semantics);
            self.count += 1;
            if self.blocks.guarded.binary_search(&(offset as u16)).is_ok() {
                self.push_guard(offset);
            }
            let ends = self.push_decoded(decoded, instruction, offset, len);
            offset += len;
            if ends {
                break;
            }
        }
        self.blocks.side[first].block_count = self.count;
        offset - source.offset
    }

    /// Returns whether the block ends here.
    fn push_decoded(&mut self, decoded: Decoded, instruction: u32, offset: usize, len: usize) -> bool {
        let side = Side { instruction, offset: offset as u16, block_count: 0 };
        match decoded.flow {
            Flow::Next => {
                self.push(decoded, decoded.handler, side);
                false
            }
            Flow::Branch { to, far } => {
                self.push_jump(decoded, far, offset as i32 + to, side);
                false
            }
            Flow::Jump { to, far } => {
                self.push_jump(decoded, far, offset as i32 + to, side);
                true
            }
            Flow::Indirect => {
                self.push(decoded, decoded.handler, side);
                self.push_link((offset + len) as i32);
                true
            }
            Flow::Leave => {
                self.push(decoded, decoded.handler, side);
                true
            }
        }
    }

    /// Puts a guard before the instruction at `offset`, which is counted already.
    fn push_guard(&mut self, offset: usize) {
        let decoded = Decoded { handler: stops::guard, rd: SINK, rs1: 0, rs2: 0, imm: 0, flow: Flow::Next };
        self.push(decoded, decoded.handler, Side { instruction: 0, offset: offset as u16, block_count: 0 });
    }

    /// Ends the block by going on at `offset`.
    fn go_to(&mut self, offset: usize) {
        let decoded = Decoded {
            handler: branch::jal,
            rd: SINK,
            rs1: 0,
            rs2: 0,
            imm: 0,
            flow: Flow::Jump { to: 0, far: branch::jal_far },
        };
        let side = Side { instruction: 0, offset: offset as u16, block_count: 0 };
        self.push_jump(decoded, branch::jal_far, offset as i32, side);
    }

    /// A jump to `target`, relative to the page.
    fn push_jump(&mut self, decoded: Decoded, far: Handler, target: i32, side: Side) {
        let is_near = (0..LAST_OFFSET as i32).contains(&target);
        self.push(decoded, if is_near { decoded.handler } else { far }, side);
        self.push_link(target);
    }

    fn push(&mut self, decoded: Decoded, handler: Handler, side: Side) {
        let Decoded { rd, rs1, rs2, imm, .. } = decoded;
        let op = Op { handler, imm, rd, rs1, rs2, count: self.count };
        self.blocks.arena[self.slot].write(op);
        self.set_side(side);
    }

    fn push_link(&mut self, offset: i32) {
        let link = Link { target: Cell::new(ptr::null()), context: Cell::new(0), offset };
        let slot = self.blocks.arena[self.slot].as_mut_ptr().cast::<Link>();
        // SAFETY: a slot has room for a link, which is as large and as aligned as an op.
        unsafe { slot.write(link) };
        self.set_side(Side::default());
    }

    fn set_side(&mut self, side: Side) {
        match self.blocks.side.get_mut(self.slot) {
            Some(place) => *place = side,
            None => self.blocks.side.push(side),
        }
        self.slot += 1;
    }
}

fn half(source: &Source<'_>, offset: usize) -> u16 {
    u16::from_le_bytes([source.page[offset], source.page[offset + 1]])
}

/// Whether the instruction has four bytes.
fn is_wide(source: &Source<'_>, offset: usize) -> bool {
    half(source, offset) & 3 == 3
}

/// The instruction and its length in bytes.
fn fetch(source: &Source<'_>, offset: usize) -> (u32, usize) {
    let low = half(source, offset);
    if low & 3 != 3 {
        return (u32::from(low), 2);
    }
    let high = match source.second_half {
        Some(high) if offset == LAST_OFFSET => high,
        _ => half(source, offset + 2),
    };
    (u32::from(high) << 16 | u32::from(low), 4)
}

fn decode_at(instruction: u32, offset: usize, len: usize, semantics: Semantics) -> Decoded {
    let expanded = if len == 2 { expand(instruction as u16) } else { Some(instruction) };
    match expanded {
        Some(code) => decode(code, offset as u32, len as u32, semantics),
        None => Decoded { handler: system::illegal, rd: SINK, rs1: 0, rs2: 0, imm: 0, flow: Flow::Leave },
    }
}

/// Hashes page numbers and addresses: a multiplication spreads them well enough.
#[derive(Default)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}
