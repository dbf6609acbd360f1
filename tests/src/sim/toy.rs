//! A small deterministic machine behind the production trait: a ledger server of a few
//! dozen pages that answers requests, ticks, idles and checkpoints.
//!
//! It is made to be as unforgiving as the real one. Its answers and its state depend on icount,
//! on guest time, on entropy and on the order of everything; work takes instructions; its memory
//! is the real machine's ([`machine::ram::Ram`]).

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use log_format::{
    CheckpointHead, CheckpointPart, Control, Digest, Event, LoggedOutput, MachineIdentity, Moment, Output,
    Page, SEMANTICS_VERSION,
};
use machine::ram::{PAGE_BYTES, RAM_BASE, Ram};
use machine::{BegunCheckpoint, CheckpointExtent, Exit, Kept, Machine, RestoreError, content_hash};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::ledger::{Operation, Reply, Request};
use super::toy_disk::ToyDisk;

/// Instructions that one unit of work takes; outputs come between units.
const UNIT_INSTRUCTIONS: u64 = 8;
/// Work that a network frame can queue up before more frames are dropped.
const QUEUE_FRAMES: usize = 64;

/// What makes two toy machines of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToyConfig {
    /// Pages of memory.
    pub pages: u64,
    /// Guest nanoseconds per instruction.
    pub instruction_ns: u64,
    /// Guest nanoseconds between two ticks; 0 for none.
    pub tick_ns: u64,
    /// Units of work per tick.
    pub tick_units: u64,
    /// Every so many ticks, a frame is sent unasked; 0 for never.
    pub chatter_ticks: u64,
}

impl Default for ToyConfig {
    fn default() -> Self {
        ToyConfig { pages: 48, instruction_ns: 500, tick_ns: 4_000_000, tick_units: 6, chatter_ticks: 5 }
    }
}

/// A defect to give to one of two machines, for tests of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// A bit of memory flips when this icount is passed.
    FlipBit {
        /// When.
        icount: u64,
    },
}

/// The machine. See the module's head.
pub struct ToyMachine {
    config: ToyConfig,
    ram: Ram,
    disk: ToyDisk,
    state: State,
    outputs: Vec<LoggedOutput>,
    /// The state beside memory as the increment begun last froze it, hashed.
    frozen_state: Option<u128>,
    defect: Option<Defect>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    icount: u64,
    /// Guest time at icount 0, were there no idling and no advances.
    base_ns: u64,
    noise: u64,
    wall_clock_ns: u64,
    outputs_made: u64,
    next_tick_ns: u64,
    ticks: u64,
    /// Instructions left of the work in progress.
    work_left: u64,
    work: Option<Work>,
    queue: VecDeque<Work>,
    ledger_length: u64,
    ledger_hash: u64,
    /// Per client: its last request's number, and the answer to it.
    answered: BTreeMap<u8, (u64, Reply)>,
    halted: Option<u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Work {
    Tick,
    Request(Request),
    Console(Vec<u8>),
    Announce,
}

impl ToyMachine {
    /// A machine at power-on.
    pub fn new(config: ToyConfig) -> Self {
        let next_tick_ns = if config.tick_ns == 0 { u64::MAX } else { config.tick_ns };
        ToyMachine {
            config,
            ram: Ram::new(config.pages),
            disk: ToyDisk::default(),
            state: State {
                icount: 0,
                base_ns: 0,
                noise: 0x5eed,
                wall_clock_ns: 0,
                outputs_made: 0,
                next_tick_ns,
                ticks: 0,
                work_left: 0,
                work: None,
                queue: VecDeque::new(),
                ledger_length: 0,
                ledger_hash: 0,
                answered: BTreeMap::new(),
                halted: None,
            },
            outputs: Vec::new(),
            frozen_state: None,
            defect: None,
        }
    }

    /// Gives this machine a defect that its peer does not have.
    pub fn with_defect(mut self, defect: Option<Defect>) -> Self {
        self.defect = defect;
        self
    }

    /// Entries in the ledger, and their running hash.
    pub fn ledger(&self) -> (u64, u64) {
        (self.state.ledger_length, self.state.ledger_hash)
    }

    /// The machine of another process on the same host: its memory is gone, its disk is not.
    pub fn after_a_crash(self) -> ToyMachine {
        ToyMachine { disk: self.disk, ..ToyMachine::new(self.config) }
    }

    /// Its disk.
    pub fn disk_mut(&mut self) -> &mut ToyDisk {
        &mut self.disk
    }

    /// Outputs made since boot.
    pub fn outputs_made(&self) -> u64 {
        self.state.outputs_made
    }

    fn time_ns(&self) -> u64 {
        self.state.base_ns + self.state.icount * self.config.instruction_ns
    }

    fn is_idle(&self) -> bool {
        self.state.work.is_none() && self.state.queue.is_empty() && self.time_ns() < self.state.next_tick_ns
    }

    fn wake_ns(&self) -> Option<u64> {
        (self.state.next_tick_ns != u64::MAX).then_some(self.state.next_tick_ns)
    }

    /// Takes up the next work, interrupts first.
    fn fetch_work(&mut self) {
        if self.state.work.is_some() {
            return;
        }
        if self.time_ns() >= self.state.next_tick_ns {
            // As a guest's timer handler does: the next tick counts from now.
            self.state.next_tick_ns = self.time_ns() + self.config.tick_ns;
            self.start(Work::Tick);
        } else if let Some(work) = self.state.queue.pop_front() {
            self.start(work);
        }
    }

    fn start(&mut self, work: Work) {
        let units = match &work {
            Work::Tick => self.config.tick_units,
            Work::Request(request) => 4 + request.client as u64 % 3 + self.state.noise % 5,
            Work::Console(bytes) => 1 + bytes.len() as u64,
            Work::Announce => 2,
        };
        self.state.work_left = units.max(1) * UNIT_INSTRUCTIONS;
        self.state.work = Some(work);
    }

    /// Executes one instruction of the work in progress.
    fn execute(&mut self) {
        let state = &mut self.state;
        state.icount += 1;
        state.work_left -= 1;
        state.noise = state.noise.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(state.icount | 1);
        if let Some(Defect::FlipBit { icount }) = self.defect
            && self.state.icount == icount
        {
            self.store(3, 17, 0xdead);
        }
        if self.state.work_left.is_multiple_of(UNIT_INSTRUCTIONS) {
            let (noise, pages) = (self.state.noise, self.config.pages);
            self.store((noise >> 20) % pages, (noise >> 40) % 512, noise);
        }
        if self.state.work_left == 0
            && let Some(work) = self.state.work.take()
        {
            self.finish(work);
        }
    }

    /// Writes an entry of the ledger to the disk.
    fn journal(&mut self, slot: u64, value: u64) {
        let entry = [slot, value, self.state.ledger_hash, self.state.noise];
        let mut block = vec![0; PAGE_BYTES];
        for (bytes, figure) in block.chunks_exact_mut(8).zip(entry) {
            bytes.copy_from_slice(&figure.to_le_bytes());
        }
        self.disk.write(slot, Bytes::from(block));
    }

    fn store(&mut self, page: u64, word: u64, value: u64) {
        let address = RAM_BASE + page * PAGE_BYTES as u64 + word * 8;
        // The address is inside by construction.
        self.ram.write(address, &value.to_le_bytes()).expect("inside memory");
    }

    fn finish(&mut self, work: Work) {
        match work {
            Work::Tick => {
                self.state.ticks += 1;
                let every = self.config.chatter_ticks;
                if every != 0 && self.state.ticks.is_multiple_of(every) {
                    self.send_frame(Bytes::from(format!("chatter {}", self.state.noise)));
                }
                if self.state.ticks.is_multiple_of(16) {
                    let line = format!("tick {} at {} ns\n", self.state.ticks, self.time_ns());
                    self.send(Output::Console(Bytes::from(line)));
                }
            }
            Work::Request(request) => self.answer(request),
            Work::Console(bytes) => self.send(Output::Console(Bytes::from(bytes))),
            Work::Announce => self.send_frame(Bytes::from_static(b"here I am")),
        }
    }

    /// Carries out a request, once: a client that asks again gets the same answer again.
    fn answer(&mut self, request: Request) {
        let known = self.state.answered.get(&request.client).cloned();
        let reply = match known {
            Some((number, reply)) if number == request.number => reply,
            Some((number, _)) if number > request.number => return,
            _ => {
                if request.operation == Operation::PowerOff {
                    self.state.halted = Some(0);
                }
                if let Operation::Append(value) = request.operation {
                    self.state.ledger_length += 1;
                    self.state.ledger_hash = Reply::next_hash(self.state.ledger_hash, value);
                    let slot = self.state.ledger_length;
                    self.store(slot / 512 % self.config.pages, slot % 512, value);
                    self.journal(slot, value);
                }
                let reply = Reply {
                    client: request.client,
                    number: request.number,
                    length: self.state.ledger_length,
                    hash: self.state.ledger_hash,
                    guest_time_ns: self.time_ns(),
                    noise: self.state.noise,
                };
                self.state.answered.insert(request.client, (request.number, reply.clone()));
                reply
            }
        };
        self.send_frame(reply.to_frame());
    }

    fn send_frame(&mut self, frame: Bytes) {
        self.send(Output::Frame { port: 0, frame });
    }

    fn send(&mut self, output: Output) {
        let (ordinal, at) = (self.state.outputs_made, self.moment());
        self.state.outputs_made += 1;
        self.outputs.push(LoggedOutput { ordinal, at, output });
    }

    /// The state beside memory that a checkpoint's head holds, if it is this machine's.
    fn decode_state(&self, head: &CheckpointHead) -> Result<State, RestoreError> {
        if head.identity != self.identity() {
            return Err(RestoreError::Foreign {
                what: "configuration",
                found: format!("{:02x?}", head.identity.config),
                expected: format!("{:02x?}", self.identity().config),
            });
        }
        rmp_serde::from_slice(&head.state).map_err(|error| RestoreError::Malformed(error.to_string()))
    }

    fn state_bytes(&self) -> Vec<u8> {
        rmp_serde::to_vec(&self.state).expect("plain data serializes")
    }
}

/// The digest of memory and of the state beside it.
fn joined(ram: u128, state: u128) -> Digest {
    Digest((ram ^ state.rotate_left(1)).to_le_bytes())
}

/// Hash of everything but memory.
fn beside_memory(state: &[u8], disk: &ToyDisk) -> u128 {
    xxh3_128(state).wrapping_add(disk.hash().rotate_left(7))
}

impl Machine for ToyMachine {
    fn identity(&self) -> MachineIdentity {
        let mut config = [0; 32];
        let figures = [
            self.config.pages,
            self.config.instruction_ns,
            self.config.tick_ns,
            self.config.tick_units * 1000 + self.config.chatter_ticks,
        ];
        for (bytes, figure) in config.chunks_exact_mut(8).zip(figures) {
            bytes.copy_from_slice(&figure.to_le_bytes());
        }
        MachineIdentity { semantics: SEMANTICS_VERSION, config, boot_images: [7; 32], disks: Vec::new() }
    }

    fn moment(&self) -> Moment {
        Moment { icount: self.state.icount, time_ns: self.time_ns() }
    }

    fn run(&mut self, icount: u64) -> Exit {
        if self.state.icount >= icount {
            return Exit::Limit;
        }
        loop {
            if let Some(code) = self.state.halted {
                return Exit::Halted { code };
            }
            self.fetch_work();
            if self.state.work.is_none() {
                return Exit::Idle { wake_ns: self.wake_ns() };
            }
            let outputs_before = self.outputs.len();
            while self.state.icount < icount && self.state.work.is_some() {
                self.execute();
            }
            if let Some(code) = self.state.halted {
                return Exit::Halted { code };
            }
            if self.outputs.len() > outputs_before {
                return Exit::Output;
            }
            if self.state.icount >= icount {
                return Exit::Limit;
            }
        }
    }

    fn advance_idle(&mut self, time_ns: u64) -> u64 {
        let here_ns = self.time_ns();
        if !self.is_idle() || self.state.halted.is_some() || time_ns <= here_ns {
            return here_ns;
        }
        let reached_ns = time_ns.min(self.state.next_tick_ns);
        self.state.base_ns += reached_ns - here_ns;
        reached_ns
    }

    fn inject(&mut self, event: &Event) {
        match event {
            Event::NetworkIn { frame, .. } => {
                if self.state.queue.len() < QUEUE_FRAMES
                    && let Some(request) = Request::from_frame(frame)
                {
                    self.state.queue.push_back(Work::Request(request));
                }
            }
            Event::ConsoleIn(bytes) => self.state.queue.push_back(Work::Console(bytes.to_vec())),
            Event::ClockAdvance { delta_ns } => self.state.base_ns += delta_ns,
            Event::Entropy(bytes) => {
                for byte in bytes {
                    self.state.noise = self.state.noise.rotate_left(9) ^ u64::from(*byte);
                }
            }
            Event::WallClock { unix_ns } => self.state.wall_clock_ns = *unix_ns,
            Event::Control(Control::PowerButton) => self.state.halted = Some(0),
            Event::Control(Control::Reset) => self.state.queue.clear(),
            Event::Control(Control::Announce) => self.state.queue.push_back(Work::Announce),
        }
    }

    fn take_outputs(&mut self) -> Vec<LoggedOutput> {
        std::mem::take(&mut self.outputs)
    }

    fn digest(&mut self) -> Digest {
        let ram = self.ram.digest();
        joined(ram, beside_memory(&self.state_bytes(), &self.disk))
    }

    fn begin_checkpoint(&mut self, extent: CheckpointExtent) -> BegunCheckpoint {
        let state = self.state_bytes();
        let digest = match extent {
            CheckpointExtent::Full => self.digest(),
            CheckpointExtent::Epoch | CheckpointExtent::Increment | CheckpointExtent::Disks => {
                Digest::default()
            }
        };
        match extent {
            CheckpointExtent::Full | CheckpointExtent::Disks => {}
            CheckpointExtent::Epoch => self.frozen_state = None,
            CheckpointExtent::Increment => self.frozen_state = Some(beside_memory(&state, &self.disk)),
        }
        let dirty_units = self.ram.begin_checkpoint(extent) + self.disk.begin_checkpoint(extent);
        let head = CheckpointHead {
            identity: self.identity(),
            moment: self.moment(),
            outputs_before: self.state.outputs_made,
            ram_bytes: self.ram.len_bytes(),
            digest,
            state: state.into(),
        };
        BegunCheckpoint { head, dirty_units }
    }

    fn take_checkpoint_pages(&mut self, extent: CheckpointExtent, limit: usize) -> CheckpointPart {
        let pages = self.ram.take_pages(extent, limit);
        let blocks = if pages.is_empty() { self.disk.take(extent, limit) } else { Vec::new() };
        let part = CheckpointPart { pages, blocks };
        if extent == CheckpointExtent::Increment && part.is_empty() {
            self.ram.end_increment();
            self.disk.end_increment();
        }
        part
    }

    fn checkpoint_digest(&self) -> Option<Digest> {
        Some(joined(self.ram.increment_digest()?, self.frozen_state?))
    }

    fn checkpoint_held_bytes(&self) -> u64 {
        self.ram.held_bytes()
    }

    fn cancel_checkpoint(&mut self, extent: CheckpointExtent) {
        if extent == CheckpointExtent::Increment {
            self.frozen_state = None;
        }
        self.ram.cancel_checkpoint(extent);
        self.disk.cancel_checkpoint(extent);
    }

    fn restore_begin(&mut self, head: &CheckpointHead) -> Result<(), RestoreError> {
        self.state = self.decode_state(head)?;
        self.outputs.clear();
        self.frozen_state = None;
        self.ram = Ram::new(self.config.pages);
        self.disk = ToyDisk::default();
        Ok(())
    }

    fn kept(&self) -> Kept {
        let memory = self.moment().icount > 0;
        Kept { memory, disks: !self.disk.is_base() }
    }

    fn revert_disks(&mut self) {
        self.disk = ToyDisk::default();
    }

    fn hash_block(&mut self, _: u8, index: u64) -> Option<Digest> {
        self.disk.block(index).map(|data| content_hash(data))
    }

    fn keep_only(&mut self, pages: &dyn Fn(u64) -> bool, blocks: &dyn Fn(u8, u64) -> bool) {
        self.ram.keep_only(pages);
        self.disk.keep_only(|index| blocks(0, index));
    }

    fn page(&self, index: u64) -> Option<&[u8]> {
        let address = index.checked_mul(PAGE_BYTES as u64)?.checked_add(RAM_BASE)?;
        self.ram.slice(address, PAGE_BYTES).ok()
    }

    fn check_part(&self, part: &CheckpointPart) -> Result<(), RestoreError> {
        let limit = self.config.pages;
        let is_wrong = |page: &&Page| {
            page.index >= limit || page.data.as_ref().is_some_and(|data| data.len() != PAGE_BYTES)
        };
        match part.pages.iter().find(is_wrong) {
            Some(page) => Err(RestoreError::OutOfRange { what: "page", index: page.index, limit }),
            None => Ok(()),
        }
    }

    fn restore_update(&mut self, head: &CheckpointHead) -> Result<(), RestoreError> {
        self.state = self.decode_state(head)?;
        self.outputs.clear();
        Ok(())
    }

    fn restore_part(&mut self, part: &CheckpointPart) -> Result<(), RestoreError> {
        self.check_part(part)?;
        part.blocks.iter().for_each(|block| self.disk.put(block));
        for page in &part.pages {
            self.ram.put_page(page).map_err(|_| RestoreError::OutOfRange {
                what: "page",
                index: page.index,
                limit: self.config.pages,
            })?;
        }
        Ok(())
    }
}
