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

use super::compressed::expand;
use super::decode::{Decoded, Flow, SINK, decode};
use super::entry::{self, Entry};
use super::kind::Kind;
use super::op::{Handler, Link, MAX_BLOCK, Op, OpRef};
use crate::ram::{PAGE_BYTES, PAGE_SHIFT};
use crate::semantics::Semantics;

/// Most slots that one block takes: an entry begins it, each instruction may have a guard and a link,
/// and one jump ends it.
const BLOCK_SLOTS: usize = 3 * MAX_BLOCK as usize + 4;
/// Slots at the start of the arena for blocks that are used once.
const SCRATCH_SLOTS: usize = BLOCK_SLOTS;
/// Entries of the jump cache.
const JUMPS: usize = 16384;
/// Last offset at which an instruction may begin; one of four bytes there straddles.
const LAST_OFFSET: usize = PAGE_BYTES - 2;

type Slot = MaybeUninit<Op>;

/// What is known of an op and not needed to execute it.
#[derive(Clone, Copy)]
struct Side {
    /// The instruction, as it is in memory.
    instruction: u32,
    /// Where it is in its page.
    offset: u16,
    /// At the first op of a block: instructions in the block.
    block_count: u8,
    /// What the op is.
    kind: Kind,
}

const NO_SIDE: Side = Side { instruction: 0, offset: 0, block_count: 0, kind: Kind::Nothing };

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

/// An op in the arena.
pub(super) struct Row<'a> {
    pub op: &'a Op,
    pub kind: Kind,
    /// Where the instruction is in its page.
    pub offset: u16,
    /// Where the op is in the arena.
    pub index: u32,
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
    /// Entries of a block after which it is translated; `None` where blocks are interpreted only and
    /// have no entry.
    hot_after: Option<u32>,
    /// What there is to decode.
    semantics: Semantics,
}

// SAFETY: links in the arena point into the arena, which moves with the struct as a box does.
unsafe impl Send for Blocks {}

impl Blocks {
    /// A cache of at most about `bytes` bytes, of blocks that are translated after `hot_after`
    /// entries.
    pub fn new(bytes: usize, semantics: Semantics, hot_after: Option<u32>) -> Blocks {
        let slots = (bytes / (size_of::<Op>() + size_of::<Side>())).max(16 * BLOCK_SLOTS);
        let mut side = Vec::with_capacity(slots);
        side.resize(SCRATCH_SLOTS, NO_SIDE);
        Blocks {
            arena: Box::new_uninit_slice(slots),
            side,
            pages: HashMap::default(),
            straddling: HashMap::default(),
            jumps: Box::new([NO_JUMP; JUMPS]),
            guarded: Vec::new(),
            epoch: 0,
            hot_after,
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

    /// Changes after how many entries a block is translated, if ever. Drops everything; the caller must
    /// give up every fetch context.
    pub fn set_hot_after(&mut self, hot_after: Option<u32>) {
        self.hot_after = hot_after;
        self.clear();
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

    /// The entry of a block, if it has one: a block that is executed once, and one that is
    /// interpreted only, has none.
    pub fn entry_of(&self, block: Block) -> Option<&Entry> {
        let index = self.index_of(block.first);
        // SAFETY: behind the op that enters a block is its entry (`push_entry`).
        (self.side[index].kind == Kind::Enter).then(|| unsafe { OpRef::new(block.first).entry() })
    }

    /// The op at a place in the arena, with what is known of it.
    pub fn row(&self, index: usize) -> Row<'_> {
        assert!(index < self.side.len(), "a place in the arena that holds an op");
        // SAFETY: places below the length of `side` hold an op, a link or an entry, which are as large
        // and made of integers and addresses; a row's link is looked at only behind a jump.
        let op = unsafe { &*self.arena[index].as_ptr() };
        let Side { offset, kind, .. } = self.side[index];
        Row { op, kind, offset, index: index as u32 }
    }

    /// The link behind the jump at a place in the arena.
    pub fn link_at(&self, index: usize) -> &Link {
        assert!(self.side[index].kind.has_link(), "a jump");
        // SAFETY: behind an op of such a kind is its link.
        unsafe { OpRef::new(self.arena[index].as_ptr()).link() }
    }

    /// Copies the op at a place in the arena, which is no jump, to where one op is executed and those
    /// behind it are not.
    #[inline]
    pub fn isolate(&mut self, index: usize) -> OpRef {
        debug_assert!(!self.side[index].kind.has_link());
        self.arena[0] = self.arena[index];
        self.side[0] = self.side[index];
        let op = Op { handler: entry::end, imm: 0, rd: SINK, rs1: 0, rs2: 0, count: 0 };
        self.arena[1].write(op);
        // What ends a block has no successor, and never asks where it is.
        self.side[1] = self.side.get(index + 1).copied().unwrap_or(NO_SIDE);
        // SAFETY: the two are a block in the sense of `OpRef`.
        unsafe { OpRef::new(self.arena[0].as_ptr()) }
    }

    /// Where in the arena a block begins.
    pub fn place_of(&self, block: Block) -> usize {
        self.index_of(block.first)
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
        if first >= SCRATCH_SLOTS
            && let Some(countdown) = self.blocks.hot_after
        {
            self.push_entry(offset, countdown);
        }
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
        let side = Side { instruction, offset: offset as u16, ..NO_SIDE };
        match decoded.flow {
            Flow::Next => {
                self.push(decoded, decoded.kind.handler(), side);
                false
            }
            Flow::Branch { to } => {
                self.push_jump(decoded, offset as i32 + to, side);
                false
            }
            Flow::Jump { to } => {
                self.push_jump(decoded, offset as i32 + to, side);
                true
            }
            Flow::Indirect => {
                self.push(decoded, decoded.kind.handler(), side);
                self.push_link((offset + len) as i32);
                true
            }
            Flow::Leave => {
                self.push(decoded, decoded.kind.handler(), side);
                true
            }
        }
    }

    /// Begins a block that is to be translated.
    fn push_entry(&mut self, offset: usize, countdown: u32) {
        let op = Op { handler: Kind::Enter.handler(), imm: 0, rd: SINK, rs1: 0, rs2: 0, count: 1 };
        self.blocks.arena[self.slot].write(op);
        self.set_side(Side { offset: offset as u16, kind: Kind::Enter, ..NO_SIDE });
        let slot = self.blocks.arena[self.slot].as_mut_ptr().cast::<Entry>();
        // SAFETY: a slot has room for an entry, which is as large as an op and no more aligned.
        unsafe { slot.write(Entry::new(countdown)) };
        self.set_side(NO_SIDE);
    }

    /// Puts a guard before the instruction at `offset`, which is counted already.
    fn push_guard(&mut self, offset: usize) {
        let decoded = Decoded { kind: Kind::Guard, rd: SINK, rs1: 0, rs2: 0, imm: 0, flow: Flow::Next };
        self.push(decoded, Kind::Guard.handler(), Side { offset: offset as u16, ..NO_SIDE });
    }

    /// Ends the block by going on at `offset`.
    fn go_to(&mut self, offset: usize) {
        let decoded =
            Decoded { kind: Kind::Jal, rd: SINK, rs1: 0, rs2: 0, imm: 0, flow: Flow::Jump { to: 0 } };
        let side = Side { offset: offset as u16, ..NO_SIDE };
        self.push_jump(decoded, offset as i32, side);
    }

    /// A jump to `target`, relative to the page.
    fn push_jump(&mut self, decoded: Decoded, target: i32, side: Side) {
        let handler = if is_near(target) { decoded.kind.handler() } else { decoded.kind.far_handler() };
        self.push(decoded, handler, side);
        self.push_link(target);
    }

    fn push(&mut self, decoded: Decoded, handler: Handler, side: Side) {
        let Decoded { kind, rd, rs1, rs2, imm, .. } = decoded;
        let op = Op { handler, imm, rd, rs1, rs2, count: self.count };
        self.blocks.arena[self.slot].write(op);
        self.set_side(Side { kind, ..side });
    }

    fn push_link(&mut self, offset: i32) {
        let link = Link { target: Cell::new(ptr::null()), context: Cell::new(0), offset };
        let slot = self.blocks.arena[self.slot].as_mut_ptr().cast::<Link>();
        // SAFETY: a slot has room for a link, which is as large and as aligned as an op.
        unsafe { slot.write(link) };
        self.set_side(NO_SIDE);
    }

    fn set_side(&mut self, side: Side) {
        match self.blocks.side.get_mut(self.slot) {
            Some(place) => *place = side,
            None => self.blocks.side.push(side),
        }
        self.slot += 1;
    }
}

/// Whether a jump from anywhere in a page to `target`, relative to the page, stays in it. The last
/// instruction may straddle, and then depends on more than its page.
pub(super) fn is_near(target: i32) -> bool {
    (0..LAST_OFFSET as i32).contains(&target)
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
        None => Decoded { kind: Kind::Illegal, rd: SINK, rs1: 0, rs2: 0, imm: 0, flow: Flow::Leave },
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
