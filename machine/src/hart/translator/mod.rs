//! The translator: hot blocks as code of an x86-64 host. See docs/translator.md.
//!
//! It translates what the interpreter decoded, block by block, and says with every exit what
//! the interpreter would have said: the same `pc`, the same fuel. An instruction that it does not
//! know, and every access that the TLB does not hold, is executed by its handler
//! ([`Hart::execute_one`]), so that there is one implementation of all that is not simple.

#![allow(clippy::useless_conversion, reason = "dynasm! converts every register's number")]

mod access;
mod atomic;
mod code;
mod emitter;
mod float;
mod flow;
mod integer;
mod jumps;
mod runtime;
mod system;

use std::num::NonZeroUsize;

use dynasmrt::{DynasmApi, dynasm};

use super::Hart;
use super::blocks::{Block, Blocks, Row};
use super::csr::ENVCFG_CBZE;
use super::kind::Kind;
use super::op::MAX_BLOCK;
use crate::bus::Bus;
use crate::engine::Translation;
use access::Misaligned;
use code::CodeMemory;
use emitter::{Buffer, Pending};
use flow::Exit;
use jumps::Jumps;
use runtime::{Leave, Thunks};

/// Room that the translation of any block fits into.
const BLOCK_ROOM: usize = 64 << 10;
const CODE_ALIGNMENT: usize = 16;
/// From where a jump to another page has the fetch context to where it has its distance.
const FAR_DISTANCE: usize = 22;
/// Of a site: the jump goes to another page.
const FAR: u32 = 1 << 31;

/// What translated code reads of the translator, by way of the hart.
#[derive(Default)]
#[repr(C)]
pub(super) struct View {
    /// Where code is executed.
    code_base: usize,
    /// Where [`Jumps`] is.
    jumps: usize,
    /// What holds of the floating-point state.
    float: float::State,
    /// `cbo.zero` is permitted.
    zeroes_blocks: bool,
}

/// What the host can do beyond every x86-64.
#[derive(Debug, Clone, Copy)]
struct Features {
    /// `lzcnt`, `tzcnt` and `popcnt`.
    counts_bits: bool,
    /// FMA.
    fuses: bool,
}

/// The translations of a hart's blocks.
pub(super) struct Translator {
    memory: CodeMemory,
    thunks: Thunks,
    /// Where the first translation begins.
    first: usize,
    /// Where the next one does.
    next: usize,
    jumps: Jumps,
    /// That of the blocks that were translated.
    epoch: u64,
    features: Features,
    /// The assembled block, kept for its room.
    buffer: Vec<u8>,
    /// What was translated so far.
    done: Translation,
    /// By which that is timed, if it is.
    clock: Option<fn() -> u64>,
}

impl Translator {
    /// A translator with a code cache of about `bytes` bytes; `None` where the host lets no code be
    /// made.
    pub fn new(bytes: usize) -> Option<Box<Translator>> {
        let bytes = NonZeroUsize::new(bytes.clamp(4 * BLOCK_ROOM, 1 << 30))?;
        let mut memory = CodeMemory::new(bytes).ok()?;
        let mut code = Buffer::default();
        let thunks = runtime::assemble(&mut code);
        memory.write(0, &code.bytes);
        let first = code.len();
        let features = Features {
            counts_bits: is_x86_feature_detected!("lzcnt")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("popcnt"),
            fuses: is_x86_feature_detected!("fma"),
        };
        let jumps = Jumps::new();
        Some(Box::new(Translator {
            memory,
            thunks,
            first,
            next: first,
            jumps,
            epoch: 0,
            features,
            buffer: Vec::new(),
            done: Translation::default(),
            clock: None,
        }))
    }

    pub fn view(&self) -> View {
        View {
            code_base: self.memory.address(0),
            jumps: self.jumps.address(),
            float: float::State::default(),
            zeroes_blocks: false,
        }
    }

    /// Whether there may be no room for one more block.
    pub fn is_full(&self) -> bool {
        self.memory.len() - self.next < BLOCK_ROOM
    }

    /// Drops everything if the blocks were dropped.
    fn follow(&mut self, epoch: u64) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.next = self.first;
            self.jumps.clear();
        }
    }

    /// Translates a block that has an entry. `None` if it is to be interpreted.
    fn translate(&mut self, blocks: &Blocks, block: Block) -> Option<u32> {
        let started_ns = self.clock.map(|clock| clock());
        let native = self.assemble(blocks, block);
        if let (Some(clock), Some(started_ns)) = (self.clock, started_ns) {
            self.done.ns += clock().saturating_sub(started_ns);
        }
        native
    }

    fn assemble(&mut self, blocks: &Blocks, block: Block) -> Option<u32> {
        let base = self.next.next_multiple_of(CODE_ALIGNMENT);
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.clear();
        let code = Buffer { bytes };
        let mut emitter = Emitter {
            code,
            blocks,
            thunks: self.thunks,
            features: self.features,
            base: base as u32,
            start: 0,
            offset: 0,
            top: 0,
            slow: Vec::new(),
            taken: Vec::new(),
            exits: Vec::new(),
        };
        let done = emitter.block(block);
        let bytes = emitter.code.bytes;
        if done {
            assert!(bytes.len() <= BLOCK_ROOM - CODE_ALIGNMENT, "{} bytes for a block", bytes.len());
            self.memory.write(base, &bytes);
            self.next = base + bytes.len();
            self.done.blocks += 1;
            self.done.bytes += bytes.len() as u64;
        }
        self.buffer = bytes;
        done.then_some(base as u32)
    }

    /// Lets the jump at a site go to a translation: in the fetch context, if it leaves its page.
    fn patch(&mut self, site: u32, native: u32, context: u32) {
        let place = (site & !FAR) as usize;
        let distance = native.wrapping_sub(place as u32 + 4);
        self.memory.write(place, &distance.to_le_bytes());
        if site & FAR != 0 {
            self.memory.write(place - FAR_DISTANCE, &context.to_le_bytes());
        }
    }
}

/// A jump out of the straight line to an op's handler, and back.
struct SlowPath {
    missed: Vec<Pending>,
    index: u32,
    back: usize,
    /// Looked at before the handler is called.
    misaligned: Option<Misaligned>,
}

/// The way of a branch that is taken.
struct Taken {
    taken: Pending,
    index: u32,
    target: i32,
    count: u8,
}

/// Assembles one block.
struct Emitter<'a> {
    code: Buffer,
    blocks: &'a Blocks,
    thunks: Thunks,
    features: Features,
    /// Where the code will be in the code memory.
    base: u32,
    /// Where the block begins in its page.
    start: u16,
    /// Where the present instruction is in its page.
    offset: i32,
    /// Where the block begins in `code`.
    top: usize,
    slow: Vec<SlowPath>,
    taken: Vec<Taken>,
    exits: Vec<Exit>,
}

impl Emitter<'_> {
    /// Returns whether the block can be translated.
    fn block(&mut self, block: Block) -> bool {
        let mut index = self.blocks.place_of(block);
        self.start = self.blocks.row(index).offset;
        // Behind the op that enters the block and its entry.
        index += 2;
        loop {
            let row = self.blocks.row(index);
            if row.kind == Kind::Guard {
                return false;
            }
            self.offset = i32::from(row.offset);
            self.instruction(&row);
            if row.kind.ends_block() {
                break;
            }
            index += if row.kind.has_link() { 2 } else { 1 };
        }
        self.finish();
        true
    }

    fn instruction(&mut self, row: &Row<'_>) {
        use Kind::*;
        let Row { op, kind, index, .. } = *row;
        match kind {
            Beq | Bne | Blt | Bge | Bltu | Bgeu => self.branch(kind, op, index),
            Jal => self.jump(op, index),
            Jalr => self.jump_indirect(op, index),
            _ if self.integer(kind, op) || self.access(kind, op, index) || self.float(kind, op, index) => {}
            _ if self.atomic(kind, op, index) || self.system(kind, op, index) => {}
            _ => self.handler(index),
        }
    }

    /// Executes an op by its handler.
    fn handler(&mut self, index: u32) {
        dynasm!(self.code; mov eax, DWORD index as i32; call DWORD 0);
        let call = Pending(self.code.len() - 4);
        self.jump_to_thunk(call, self.thunks.slow);
    }

    /// What lies out of the straight line.
    fn finish(&mut self) {
        // A handler that ends its block does not come back.
        dynasm!(self.code; ud2);
        for Taken { taken, index, target, count } in std::mem::take(&mut self.taken) {
            self.code.bind(taken);
            self.jump_counted(count, index, target);
        }
        for SlowPath { missed, index, back, misaligned } in std::mem::take(&mut self.slow) {
            missed.into_iter().for_each(|jump| self.code.bind(jump));
            if let Some(misaligned) = misaligned {
                self.look_again(misaligned);
            }
            self.handler(index);
            let jump = self.code.jump();
            self.code.bind_to(jump, back);
        }
        for Exit { from, index, site } in std::mem::take(&mut self.exits) {
            from.into_iter().flatten().for_each(|jump| self.code.bind(jump));
            dynasm!(self.code; mov eax, DWORD index as i32; mov ecx, DWORD site as i32);
            let jump = self.code.jump();
            self.jump_to_thunk(jump, self.thunks.leave_by_jump);
        }
    }
}

impl Hart {
    /// Has translation timed from now on, by a clock in nanoseconds.
    pub fn time_translation(&mut self, clock: fn() -> u64) {
        if let Some(translator) = &mut self.translator {
            translator.clock = Some(clock);
        }
    }

    /// What was translated; `None` if the interpreter executes.
    pub fn translation(&self) -> Option<Translation> {
        self.translator.as_ref().map(|translator| translator.done)
    }

    /// Makes room for translations: drops everything when there is none left.
    pub(super) fn make_room_to_translate(&mut self) {
        if self.translator.as_ref().is_some_and(|translator| translator.is_full()) {
            self.blocks.clear();
            self.renew_contexts();
            self.link_request = None;
            self.patch_request = None;
        }
        if let Some(translator) = &mut self.translator {
            translator.follow(self.blocks.epoch);
        }
    }

    /// Executes the translation of the block that begins at `pc`, and what comes after it; `false` if
    /// the block has none.
    pub(super) fn run_translated(&mut self, block: Block, slack: i64, bus: &mut dyn Bus) -> bool {
        let request = self.patch_request.take();
        let Some(translator) = &mut self.translator else { return false };
        let Some(entry) = self.blocks.entry_of(block) else { return false };
        translator.follow(self.blocks.epoch);
        let native = match entry.native() {
            Some(native) => native,
            None if !entry.is_hot() || translator.is_full() => return false,
            None => match translator.translate(&self.blocks, block) {
                Some(native) => {
                    entry.set_native(native);
                    native
                }
                None => {
                    entry.keep_interpreted();
                    return false;
                }
            },
        };
        match request {
            Some(PatchRequest { site, epoch }) if epoch == translator.epoch => {
                translator.patch(site, native, self.context);
            }
            _ => translator.jumps.remember(self.pc, self.context, native),
        }
        self.refresh_view();
        let Some(translator) = &self.translator else { return false };
        let enter = translator.memory.address(translator.thunks.enter());
        let native = translator.memory.address(native as usize);
        let leave = runtime::run(self, enter, native, slack, bus);
        self.follow_leave(leave);
        true
    }

    fn follow_leave(&mut self, leave: Leave) {
        match leave {
            Leave::Done => {}
            Leave::Jump { index, site, slack } => {
                let offset = self.blocks.link_at(index as usize).offset;
                self.pc = self.page_virtual.wrapping_add(offset as u64);
                self.fuel_left = slack + MAX_BLOCK;
                if slack >= 0 && site != 0 {
                    self.patch_request = Some(PatchRequest { site, epoch: self.blocks.epoch });
                }
            }
            Leave::Pc { slack } => self.fuel_left = slack + MAX_BLOCK,
        }
    }

    /// Executes one op of a translated block by its handler. Returns whether the block goes on
    /// behind it; otherwise the chain was left.
    fn execute_one(&mut self, index: usize, slack: i64, bus: &mut dyn Bus) -> bool {
        let op = self.blocks.isolate(index);
        self.ended_alone = false;
        (op.handler)(self, op, slack, bus);
        self.refresh_view();
        self.ended_alone
    }

    /// Sums up for translated code what only handlers change.
    fn refresh_view(&mut self) {
        self.view.float = float::State::of(self);
        self.view.zeroes_blocks = self.may_use(ENVCFG_CBZE);
    }
}

/// A jump whose target is now in `pc`.
#[derive(Debug, Clone, Copy)]
pub(super) struct PatchRequest {
    site: u32,
    epoch: u64,
}
