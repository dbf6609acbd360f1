//! A RISC-V hart: RV64IMAFDC with Zicsr, Zifencei, Zicntr, Zicond, Zba, Zbb, Zbs, Zicbom, Zicboz, Sstc and
//! Svadu; M-, S- and U-mode; Sv39 and Sv48.
//!
//! # Determinism (law 1)
//!
//! What a program sees is what it would see on a machine without any cache. Decoded blocks
//! and TLB entries are dropped before the next instruction whenever the memory they were
//! made from changes ([`crate::ram`]), so that neither the cutting of execution into
//! [`Hart::run`] calls nor a restored hart that starts with empty caches can be told apart:
//! - a store to code is seen by the very next fetch, with or without `fence.i`;
//! - a store to a page table is seen by the very next access, with or without `sfence.vma`.
//!
//! # Counting
//!
//! An instruction that retires counts as one. An instruction that raises an exception does
//! not retire, but the entry to the handler counts as one: an endless loop of exceptions
//! uses up its budget. The entry to an interrupt's handler counts as nothing. `wfi` and an
//! `ecall` to the built-in SBI retire.
//!
//! `cycle` and `instret` count the machine's icount, so that they agree among harts.
//!
//! # Engines
//!
//! The interpreter executes decoded blocks ([`op`]), the translator code of the host that was made
//! of them ([`translator`]). Nothing that a program or the board sees depends on which.

mod atomic;
mod blocks;
mod branch;
mod compressed;
mod csr;
mod decode;
mod entry;
mod float;
mod integer;
mod kind;
mod memory;
mod mmu;
mod op;
mod pmp;
mod spaces;
mod state;
mod stops;
mod system;
#[cfg(test)]
mod tests;
mod tlb;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod translator;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
#[path = "no_translator.rs"]
mod translator;
mod trap;

pub use atomic::Reservation;
pub use csr::{Csrs, MIP_SEIP, MIP_SSIP, MIP_STIP, Privilege};
pub use pmp::Pmp;
pub use state::HartState;
pub use stops::{HartStop, Watchpoint};

use crate::bus::Bus;
use crate::engine::Engine;
use crate::ram::{PAGE_BYTES, PAGE_SHIFT, RAM_BASE, Ram};
use crate::semantics::Semantics;
use blocks::{Block, Blocks, Source};
use mmu::Access;
use op::{BURST, MAX_BLOCK, OpRef};
use spaces::{Rights, Spaces};
use stops::Stops;
use tlb::Tlb;
use translator::{PatchRequest, Translator, View};
use trap::Trap;

const PAGE_MASK: u64 = !(PAGE_BYTES as u64 - 1);
/// Entries of the fetch TLB.
const FETCH_ENTRIES: usize = 256;

/// How a hart is built.
#[derive(Debug, Clone, Copy)]
pub struct HartOptions {
    /// What the hart can do.
    pub semantics: Semantics,
    /// `ecall` from S-mode leaves [`Hart::run`] with [`HartExit::SbiCall`].
    pub sbi_builtin: bool,
    /// RAM whose stores go to [`Bus::mmio_write`].
    pub watched: Option<Watched>,
    /// Upper limit of the cache of decoded blocks. That of translated ones has three quarters of it: when
    /// either is full both are emptied, and in a boot of Debian the translated blocks take 5/8 of what
    /// all decoded ones do.
    pub code_cache_bytes: usize,
    /// What executes.
    pub engine: Engine,
    /// How often a block is interpreted before it is translated.
    pub translate_after: u32,
}

/// Guest-physical addresses in RAM, within a page, whose stores go to [`Bus::mmio_write`], which then
/// does the writing: for `tohost`. Misaligned stores and atomics that modify memory give an
/// access fault there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
}

impl Default for HartOptions {
    fn default() -> Self {
        HartOptions {
            semantics: Semantics::NEWEST,
            sbi_builtin: false,
            watched: None,
            code_cache_bytes: 8 << 20,
            engine: Engine::Auto,
            translate_after: 32,
        }
    }
}

/// Why [`Hart::run`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HartExit {
    /// The budget is used up.
    Budget,
    /// `wfi`, and nothing that `mie` enables is pending.
    Wait,
    /// `ecall` from S-mode, which has retired: arguments are in a0 to a7, and results go to
    /// a0 and a1. Only with [`HartOptions::sbi_builtin`].
    SbiCall,
    /// [`Hart::timer_deadline`] may have changed.
    TimerChanged,
    /// [`Bus::wants_exit`].
    Board,
    /// A debugger's wish: [`Hart::take_stop`] says which. Nothing may have retired.
    Stop,
}

/// How far [`Hart::run`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HartRun {
    /// How much of the budget was used.
    pub retired: u64,
    /// Why it ended.
    pub exit: HartExit,
}

/// What of a [`Ram`] the caches were made from.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Seen {
    ram: u64,
    rights: Rights,
    code_generation: u64,
    table_generation: u64,
}

/// A guest-virtual page that code was fetched from.
#[derive(Clone, Copy, Default)]
struct FetchEntry {
    context: u32,
    page: u64,
    physical: u64,
}

/// A hart. See the module's documentation.
pub struct Hart {
    /// Registers; 32 is where results for `x0` go, the rest only spares a bounds check.
    x: [u64; 256],
    f: [u64; 32],
    /// The program counter, outside of a chain of ops.
    pc: u64,
    /// Guest-virtual page of the ops that execute.
    page_virtual: u64,
    /// The fetch context of the present privilege.
    context: u32,
    privilege: Privilege,
    csrs: Csrs,
    reservation: Option<Reservation>,
    /// In `wfi`.
    waiting: bool,

    id: usize,
    options: HartOptions,
    tlb: Tlb,
    blocks: Blocks,
    fetched: Box<[FetchEntry; FETCH_ENTRIES]>,
    spaces: Spaces,
    seen: Seen,

    /// The icount at which the fuel of the present burst is used up.
    burst_end_icount: u64,
    /// What is left of it when the chain was left.
    fuel_left: i64,
    /// The chain must be left after this instruction.
    attention: bool,
    /// Interrupts must be looked at before the next instruction.
    check_interrupts: bool,
    /// The exception that the chain was left with.
    trap: Option<Trap>,
    /// The chain was left by an SBI call.
    sbi_called: bool,
    timer_written: bool,
    /// The jump that the chain was left by, whose target is now in `pc`.
    link_request: Option<OpRef>,
    /// The same of translated code.
    patch_request: Option<PatchRequest>,
    translator: Option<Box<Translator>>,
    /// What translated code reads of it.
    view: View,
    /// The op that was to be executed alone was, and did not leave the chain.
    ended_alone: bool,
    /// What a debugger wants; no part of the state.
    stops: Stops,
}

// SAFETY: `link_request` points into the arena of `blocks`, which moves with the hart, and is
// dropped when a run begins.
unsafe impl Send for Hart {}

impl Hart {
    /// A hart after reset: M-mode, everything zero.
    pub fn new(id: usize, options: HartOptions) -> Hart {
        let translator = new_translator(&options);
        let hot_after = translator.as_ref().map(|_| options.translate_after);
        let spaces = Spaces::new();
        Hart {
            x: [0; 256],
            f: [0; 32],
            pc: 0,
            page_virtual: 0,
            context: spaces.context(Privilege::Machine),
            privilege: Privilege::Machine,
            csrs: Csrs::reset(),
            reservation: None,
            waiting: false,
            id,
            options,
            tlb: Tlb::new(),
            blocks: Blocks::new(options.code_cache_bytes, options.semantics, hot_after),
            fetched: Box::new([FetchEntry::default(); FETCH_ENTRIES]),
            spaces,
            seen: Seen::default(),
            burst_end_icount: 0,
            fuel_left: 0,
            attention: false,
            check_interrupts: true,
            trap: None,
            sbi_called: false,
            timer_written: false,
            link_request: None,
            patch_request: None,
            view: translator.as_ref().map(|translator| translator.view()).unwrap_or_default(),
            translator,
            ended_alone: false,
            stops: Stops::default(),
        }
    }

    /// Goes on with another engine.
    pub fn set_engine(&mut self, engine: Engine) {
        self.options.engine = engine;
        self.translator = new_translator(&self.options);
        self.view = self.translator.as_ref().map(|translator| translator.view()).unwrap_or_default();
        self.blocks.set_hot_after(self.translator.as_ref().map(|_| self.options.translate_after));
        self.renew_contexts();
    }

    /// Whether the translator executes.
    pub fn translates(&self) -> bool {
        self.translator.is_some()
    }

    /// Executes until `budget` is used up exactly, or until an exit that comes first.
    /// `icount` is the machine's before the first instruction.
    ///
    /// The caller sees to it that a run does not go past the icount at which
    /// [`Hart::timer_deadline`] or a device changes an interrupt by itself.
    pub fn run<B: Bus>(&mut self, bus: &mut B, icount: u64, budget: u64) -> HartRun {
        self.link_request = None;
        self.patch_request = None;
        self.check_interrupts = true;
        self.timer_written = false;
        let mut left = budget;
        let exit = self.run_until_exit(bus, icount.wrapping_add(budget), &mut left);
        HartRun { retired: budget - left, exit }
    }

    fn run_until_exit(&mut self, bus: &mut dyn Bus, end_icount: u64, left: &mut u64) -> HartExit {
        self.sync(bus);
        loop {
            if *left == 0 && !self.waiting {
                return HartExit::Budget;
            }
            if self.check_interrupts && !self.look_at_interrupts(bus, end_icount.wrapping_sub(*left), *left) {
                return match self.waiting {
                    _ if self.has_stopped() => HartExit::Stop,
                    true => HartExit::Wait,
                    false => HartExit::Budget,
                };
            }
            self.make_room_to_translate();
            let block = match self.find_block(bus, *left) {
                Ok(block) => block,
                Err(trap) => {
                    self.take_exception(trap);
                    *left -= 1;
                    continue;
                }
            };
            *left = self.execute(bus, block, end_icount, *left);
            if let Some(trap) = self.trap.take() {
                self.take_exception(trap);
                *left -= 1;
            }
            if let Some(exit) = self.settle(bus) {
                return exit;
            }
        }
    }

    /// Executes from a block on. Returns what is left of the budget.
    #[inline]
    fn execute(&mut self, bus: &mut dyn Bus, block: Block, end_icount: u64, left: u64) -> u64 {
        let fuel = left.min(i64::MAX as u64);
        self.burst_end_icount = end_icount.wrapping_sub(left - fuel);
        if self.run_translated(block, fuel as i64 - MAX_BLOCK, bus) {
            return left - (fuel - self.fuel_left as u64);
        }
        let burst = left.min(BURST);
        self.burst_end_icount = end_icount.wrapping_sub(left - burst);
        // SAFETY: `find_block` returns a whole block in the arena.
        unsafe { op::enter(self, block.first, burst as i64 - MAX_BLOCK, bus) };
        left - (burst - self.fuel_left as u64)
    }

    /// Deals with what made the chain end, if it was more than a missing block.
    #[inline]
    fn settle(&mut self, bus: &mut dyn Bus) -> Option<HartExit> {
        if !(self.attention || self.sbi_called) {
            return None;
        }
        self.attention = false;
        self.link_request = None;
        self.patch_request = None;
        self.sync(bus);
        if std::mem::take(&mut self.sbi_called) {
            return Some(HartExit::SbiCall);
        }
        if self.has_stopped() {
            return Some(HartExit::Stop);
        }
        if std::mem::take(&mut self.timer_written) {
            return Some(HartExit::TimerChanged);
        }
        bus.wants_exit().then_some(HartExit::Board)
    }

    /// Wakes from `wfi` and enters an interrupt's handler where one is due. Returns whether
    /// there is an instruction to execute.
    fn look_at_interrupts(&mut self, bus: &mut dyn Bus, icount: u64, left: u64) -> bool {
        let pending = self.pending(bus, icount);
        self.waiting &= pending & self.csrs.mie == 0;
        if self.waiting || left == 0 {
            return false;
        }
        self.check_interrupts = false;
        self.take_interrupt(pending);
        !self.stops_before_next()
    }

    /// The block at `pc`, of at most `left` instructions.
    fn find_block(&mut self, bus: &mut dyn Bus, left: u64) -> Result<Block, Trap> {
        let request = self.link_request.take();
        let epoch = self.blocks.epoch;
        let block = match self.blocks.find_virtual(self.pc, self.context) {
            Some(block) => block,
            None => self.find_or_decode(bus)?,
        };
        self.page_virtual = self.pc & PAGE_MASK;
        if let Some(op) = request
            && epoch == self.blocks.epoch
            && self.blocks.keeps(block)
        {
            let link = op.link();
            link.target.set(block.first);
            link.context.set(self.context);
        }
        if block.count > left {
            return self.decode_part(bus, left);
        }
        Ok(block)
    }

    #[cold]
    fn find_or_decode(&mut self, bus: &mut dyn Bus) -> Result<Block, Trap> {
        let physical = self.fetch_address(bus, self.pc)?;
        let address = self.code_offset(bus.ram(), physical, self.pc)?;
        if !self.csrs.pmp.is_uniform(physical & PAGE_MASK) && self.options.semantics.protects_each_fetch() {
            return self.decode_protected(bus, address);
        }
        let block = match self.blocks.find_physical(address) {
            Some(block) => block,
            None => self.decode_block(bus, address)?,
        };
        self.blocks.remember(self.pc, self.context, block);
        Ok(block)
    }

    /// Decodes the block at `address`, an offset into RAM.
    fn decode_block(&mut self, bus: &mut dyn Bus, address: u64) -> Result<Block, Trap> {
        let second = self.second_half(bus, address)?;
        if let Some(Half { address: second, .. }) = second
            && let Some(block) = self.blocks.find_straddling(address, second)
        {
            return Ok(block);
        }
        if self.blocks.is_full() {
            self.blocks.clear();
            self.renew_contexts();
        }
        let ram = bus.ram();
        let page = address >> PAGE_SHIFT;
        let offset = (address & !PAGE_MASK) as usize;
        let bytes = page_bytes(ram, page);
        let source = Source { page: bytes, offset, second_half: second.as_ref().map(|half| half.value) };
        let (block, len) = match &second {
            Some(half) => (self.blocks.add_straddling(address, half.address, source), 2),
            None => self.blocks.add(address, source),
        };
        ram.mark_code(page, offset, len);
        if let Some(half) = second {
            ram.mark_code(half.address >> PAGE_SHIFT, 0, 2);
        }
        self.drop_stale_rights(bus.ram());
        Ok(block)
    }

    /// Decodes the instruction at `pc`, an offset into RAM, to be executed once: in its page the next
    /// one may be out of bounds, and so may the second half of this one.
    fn decode_protected(&mut self, bus: &mut dyn Bus, address: u64) -> Result<Block, Trap> {
        let offset = (address & !PAGE_MASK) as usize;
        let is_wide = page_bytes(bus.ram(), address >> PAGE_SHIFT)[offset] & 3 == 3;
        if is_wide && offset != PAGE_BYTES - 2 {
            self.fetch_address(bus, self.pc.wrapping_add(2))?;
        }
        self.decode_part(bus, 1)
    }

    /// Decodes at most `left` instructions at `pc`, to be executed once.
    #[cold]
    fn decode_part(&mut self, bus: &mut dyn Bus, left: u64) -> Result<Block, Trap> {
        let physical = self.fetch_address(bus, self.pc)?;
        let address = self.code_offset(bus.ram(), physical, self.pc)?;
        let second = self.second_half(bus, address)?;
        let source = Source {
            page: page_bytes(bus.ram(), address >> PAGE_SHIFT),
            offset: (address & !PAGE_MASK) as usize,
            second_half: second.map(|half| half.value),
        };
        Ok(self.blocks.decode_once(source, left as usize))
    }

    /// The second half of the instruction at an offset into RAM, if it straddles.
    fn second_half(&mut self, bus: &mut dyn Bus, address: u64) -> Result<Option<Half>, Trap> {
        let offset = (address & !PAGE_MASK) as usize;
        if offset != PAGE_BYTES - 2 || page_bytes(bus.ram(), address >> PAGE_SHIFT)[offset] & 3 != 3 {
            return Ok(None);
        }
        let next = self.pc.wrapping_add(2);
        let physical = self.fetch_address(bus, next)?;
        let address = self.code_offset(bus.ram(), physical, next)?;
        let bytes = page_bytes(bus.ram(), address >> PAGE_SHIFT);
        Ok(Some(Half { address, value: u16::from_le_bytes([bytes[0], bytes[1]]) }))
    }

    /// Guest-physical address of code.
    fn fetch_address(&mut self, bus: &mut dyn Bus, address: u64) -> Result<u64, Trap> {
        let page = address & PAGE_MASK;
        let place = (address >> PAGE_SHIFT) as usize % FETCH_ENTRIES;
        let entry = self.fetched[place];
        if entry.page == page && entry.context == self.context {
            return Ok(entry.physical | address & !PAGE_MASK);
        }
        // Two bytes are what must be there to know more.
        let physical = self.translate(bus, address, 2, Access::Fetch)?;
        if std::mem::take(&mut self.attention) {
            self.sync(bus);
        }
        self.spaces.note_fetched(address, self.privilege);
        if self.csrs.pmp.is_uniform(physical & PAGE_MASK) {
            self.fetched[place] = FetchEntry { context: self.context, page, physical: physical & PAGE_MASK };
        }
        Ok(physical)
    }

    /// Where code is in RAM: it is executed from nowhere else.
    fn code_offset(&self, ram: &Ram, physical: u64, address: u64) -> Result<u64, Trap> {
        let fault = Trap::new(trap::Cause::FetchAccessFault, address);
        physical.checked_sub(RAM_BASE).filter(|&offset| offset < ram.len_bytes()).ok_or(fault)
    }

    /// Makes the caches agree with memory.
    fn sync(&mut self, bus: &mut dyn Bus) {
        let ram = bus.ram();
        if self.seen.ram != ram.id() {
            self.seen = Seen { ram: ram.id(), ..Seen::default() };
            self.drop_everything(ram);
        }
        if self.seen.code_generation != ram.code_generation() {
            match ram.written_code_since(self.seen.code_generation) {
                Some(pages) => pages.for_each(|page| self.blocks.drop_page(page)),
                None => self.blocks.clear(),
            }
            self.seen.code_generation = ram.code_generation();
            self.renew_contexts();
        }
        if self.seen.table_generation != ram.table_generation() {
            self.follow_table_changes(ram);
        }
        self.drop_stale_rights(ram);
        self.change_space(ram);
        self.attention = false;
    }

    fn drop_everything(&mut self, ram: &Ram) {
        self.seen = Seen {
            ram: ram.id(),
            rights: Rights::of(ram),
            code_generation: ram.code_generation(),
            table_generation: ram.table_generation(),
        };
        self.blocks.clear();
        self.drop_translations();
    }

    /// Follows a change of privilege, and of `mstatus` with it.
    fn privilege_changed(&mut self) {
        self.select_context();
        self.select_regime();
        self.check_interrupts = true;
        self.link_request = None;
        self.patch_request = None;
    }
}

fn new_translator(options: &HartOptions) -> Option<Box<Translator>> {
    match options.engine {
        Engine::Interpreter => None,
        Engine::Translator | Engine::Auto => Translator::new(options.code_cache_bytes / 4 * 3),
    }
}

/// The second half of an instruction that straddles, and where it is in RAM.
struct Half {
    address: u64,
    value: u16,
}

/// The bytes of a page of RAM that is there.
fn page_bytes(ram: &Ram, page: u64) -> &[u8] {
    ram.slice(RAM_BASE + (page << PAGE_SHIFT), PAGE_BYTES).expect("checked to be in RAM")
}
