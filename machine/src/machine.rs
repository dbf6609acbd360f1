//! The whole machine, behind the contract.

use log_format::{
    CheckpointHead, CheckpointPart, Control, Digest, DiskBlock, Event, LoggedOutput, MachineIdentity, Moment,
    Page,
};
use xxhash_rust::xxh3::Xxh3;

use crate::board::{Board, Devices};
use crate::boot::{BootPlan, ImageKeeper};
use crate::clock::Clock;
use crate::config::{BootImages, BootKind, ConfigError, MachineConfig};
use crate::contract::{BegunCheckpoint, CheckpointExtent, Exit, HostPart, Kept, Machine, RestoreError};
use crate::device::virtio::HostFault;
use crate::disk::{BLOCK_BYTES, BlockStore, Disk};
use crate::engine::{Engine, Translation};
use crate::hart::{Hart, HartOptions, HartState, Watched};
use crate::output::Outputs;
use crate::ram::{PAGE_BYTES, RAM_BASE, Ram};
use crate::sbi::HartStatus;
use crate::semantics::Semantics;
use crate::state::{self, CoreState, MachineState, Power, Shape, Turn};
use crate::stops::Stops;

/// A RISC-V machine, compatible with QEMU's `virt` board where a guest can see it.
///
/// ```text
///            run                    power off, tohost
///  booting -------> on <-> idle ------------------------> halted
///     ^              |
///     +--------------+  reset
/// ```
///
/// The images are loaded when the machine first executes, so events injected before that
/// (seeds, wall-clock time) take part in the boot: `rng-seed` of the device tree is taken
/// from the seeds injected by then.
pub struct RiscvMachine {
    pub(crate) config: MachineConfig,
    pub(crate) identity: MachineIdentity,
    pub(crate) kind: BootKind,
    pub(crate) plan: BootPlan,
    pub(crate) board: Board,
    pub(crate) harts: Vec<Hart>,
    pub(crate) core: CoreState,
    /// What a debugger wants; no part of the state.
    pub(crate) stops: Stops,
    /// The increment begun last.
    increment: Option<Increment>,
}

/// What the digest of an increment needs beside pages and blocks.
struct Increment {
    /// Has taken the state beside memory and disks.
    hasher: Box<Xxh3>,
    has_ended: bool,
}

impl RiscvMachine {
    /// A machine at power-on.
    ///
    /// # Errors
    /// When there can be no such machine, or the images do not fit it.
    pub fn new(
        config: MachineConfig,
        images: &BootImages,
        disks: Vec<Box<dyn BlockStore>>,
    ) -> Result<RiscvMachine, ConfigError> {
        config.validate()?;
        if config.disks.len() != disks.len() {
            return Err(ConfigError::DiskCount { configured: config.disks.len(), given: disks.len() });
        }
        let plan = BootPlan::new(images, config.memory_bytes)?;
        let disks = disks.into_iter().enumerate().map(open_disk).collect::<Result<Vec<_>, _>>()?;
        let identity = MachineIdentity {
            semantics: config.semantics.version(),
            config: config.hash(),
            boot_images: images.hash(),
            disks: disks.iter().map(Disk::identity).collect(),
        };
        let kind = images.kind;
        let harts = (0..config.harts).map(|hart| new_hart(hart, kind, &plan, config.semantics)).collect();
        let core = CoreState {
            icount: 0,
            power: Power::Booting,
            turn: Turn { hart: 0, left: 0 },
            statuses: vec![HartStatus::Stopped; config.harts],
        };
        let bytes = config.memory_bytes;
        let ram = Ram::try_new(bytes / PAGE_BYTES as u64)
            .map_err(|error| ConfigError::HostMemory { bytes, message: error.to_string() })?;
        let mut board = Board::new(&config, ram, disks);
        board.tohost = plan.tohost;
        let stops = Stops::default();
        Ok(RiscvMachine { config, identity, kind, plan, board, harts, core, stops, increment: None })
    }

    /// Whether the machine has what it would have at a first boot: nothing in its disks' overlays.
    pub fn has_base_disks(&self) -> bool {
        self.board.disks.iter().all(Disk::is_base)
    }

    /// What the host failed at, after [`Exit::HostFault`].
    pub fn host_fault(&self) -> Option<&str> {
        self.board.host_fault.as_ref().map(|fault| fault.message.as_str())
    }

    /// Has the driver keep the boot images that a reset loads again: their memory is given back. On
    /// any thread, at any time; the machine stays the same.
    pub fn image_keeper(&self) -> ImageKeeper {
        self.plan.keeper()
    }

    /// Has instructions executed by `engine` from now on: the machine stays the same.
    pub fn set_engine(&mut self, engine: Engine) {
        self.harts.iter_mut().for_each(|hart| hart.set_engine(engine));
    }

    /// Whether the translator executes.
    pub fn translates(&self) -> bool {
        self.harts.iter().all(Hart::translates)
    }

    /// Has translation timed from now on, by a clock of the driver's in nanoseconds. It is no part of
    /// the machine: nothing that executes sees it. With [`RiscvMachine::set_engine`] it ends.
    pub fn time_translation(&mut self, clock: fn() -> u64) {
        self.harts.iter_mut().for_each(|hart| hart.time_translation(clock));
    }

    /// What was translated; `None` if the interpreter executes.
    pub fn translation(&self) -> Option<Translation> {
        self.harts.iter().map(Hart::translation).try_fold(Translation::default(), |all, hart| {
            let hart = hart?;
            Some(Translation {
                blocks: all.blocks + hart.blocks,
                bytes: all.bytes + hart.bytes,
                ns: all.ns + hart.ns,
            })
        })
    }

    /// The configuration.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Guest memory, to look at.
    pub fn ram(&self) -> &Ram {
        &self.board.ram
    }

    fn encoded_state(&self) -> Vec<u8> {
        let harts: Vec<HartState> = self.harts.iter().map(Hart::state).collect();
        let Board { clock, outputs, devices, .. } = &self.board;
        state::encode(self.config.semantics, &self.core, &harts, clock, outputs.state(), devices)
    }

    fn digest_with(&mut self, state: &[u8]) -> Digest {
        let mut hasher = Xxh3::new();
        hasher.update(state);
        hasher.update(&self.board.ram.digest().to_le_bytes());
        for index in 0..self.board.disks.len() {
            let digest = self.board.disks[index].digest();
            let digest = self.or_fault(index, digest).unwrap_or(0);
            hasher.update(&digest.to_le_bytes());
        }
        Digest(hasher.digest128().to_le_bytes())
    }

    /// The value, or a fault of the host, at which the machine stops.
    fn or_fault<T>(&mut self, disk: usize, result: std::io::Result<T>) -> Option<T> {
        result
            .inspect_err(|error| {
                let fault = HostFault { part: HostPart::Disk(disk as u8), message: error.to_string() };
                self.board.host_fault.get_or_insert(fault);
            })
            .ok()
    }

    fn apply(&mut self, state: MachineState) {
        self.core = state.core;
        self.stops.executed.clear();
        let restored = self.harts.iter_mut().zip(state.harts);
        restored.for_each(|(hart, state)| hart.set_state(state));
        self.board.restore(state.clock, state.output, state.devices, self.core.icount);
    }
}

fn new_hart(hart: usize, kind: BootKind, plan: &BootPlan, semantics: Semantics) -> Hart {
    let options = HartOptions {
        semantics,
        sbi_builtin: kind == BootKind::Supervisor,
        watched: plan.tohost.map(|places| watched(places.tohost, semantics)),
        ..HartOptions::default()
    };
    Hart::new(hart, options)
}

/// What harts watch for the stores to `tohost`: its eight bytes, or in the first semantics all
/// of its page.
fn watched(tohost: u64, semantics: Semantics) -> Watched {
    let len = if semantics.watches_only_tohost() { 8 } else { PAGE_BYTES as u64 };
    let start = tohost / len * len;
    Watched { start, end: start.saturating_add(len) }
}

fn open_disk((disk, store): (usize, Box<dyn BlockStore>)) -> Result<Disk, ConfigError> {
    let sectors = store.len_sectors();
    if sectors == 0 {
        return Err(ConfigError::EmptyDisk { disk });
    }
    Disk::new(store).map_err(|error| ConfigError::DiskOpen { disk, message: error.to_string() })
}

impl Machine for RiscvMachine {
    fn identity(&self) -> MachineIdentity {
        self.identity.clone()
    }

    fn moment(&self) -> Moment {
        Moment { icount: self.core.icount, time_ns: self.board.clock.now_ns(self.core.icount) }
    }

    fn run(&mut self, icount: u64) -> Exit {
        self.execute(icount)
    }

    fn advance_idle(&mut self, time_ns: u64) -> u64 {
        let now_ns = self.moment().time_ns;
        if time_ns <= now_ns || !self.is_idle() {
            return now_ns;
        }
        let reached_ns = self.wake_ns().map_or(time_ns, |wake_ns| wake_ns.min(time_ns)).max(now_ns);
        self.board.clock.advance(reached_ns - now_ns);
        self.board.settle(self.core.icount);
        reached_ns
    }

    fn inject(&mut self, event: &Event) {
        let now_ns = self.moment().time_ns;
        let board = &mut self.board;
        match event {
            Event::NetworkIn { port, frame } => board.receive_frame(*port, frame),
            Event::ConsoleIn(bytes) => board.receive_console(bytes),
            Event::ClockAdvance { delta_ns } => board.clock.advance(*delta_ns),
            Event::Entropy(seed) => board.seed(seed, self.core.power == Power::On),
            Event::WallClock { unix_ns } => board.devices.rtc.set_wall_clock(*unix_ns, now_ns),
            Event::Control(Control::Announce) => board.announce(),
            Event::Control(Control::PowerButton) => board.press_power_button(),
            Event::Control(Control::Reset) => self.reset(),
        }
        self.board.settle(self.core.icount);
    }

    fn take_outputs(&mut self) -> Vec<LoggedOutput> {
        self.board.outputs.take()
    }

    fn append_outputs(&mut self, list: &mut Vec<LoggedOutput>) {
        self.board.outputs.append_to(list);
    }

    fn digest(&mut self) -> Digest {
        let state = self.encoded_state();
        self.digest_with(&state)
    }

    fn begin_checkpoint(&mut self, extent: CheckpointExtent) -> BegunCheckpoint {
        let state = self.encoded_state();
        let digest = match extent {
            CheckpointExtent::Full => self.digest_with(&state),
            CheckpointExtent::Epoch | CheckpointExtent::Increment | CheckpointExtent::Disks => {
                Digest::default()
            }
        };
        match extent {
            CheckpointExtent::Full | CheckpointExtent::Disks => {}
            CheckpointExtent::Epoch => self.increment = None,
            CheckpointExtent::Increment => {
                let mut hasher = Box::new(Xxh3::new());
                hasher.update(&state);
                self.increment = Some(Increment { hasher, has_ended: false });
            }
        }
        let Board { ram, disks, .. } = &mut self.board;
        let blocks: u64 = disks.iter_mut().map(|disk| disk.begin_checkpoint(extent)).sum();
        let dirty_units = ram.begin_checkpoint(extent) + blocks;
        let head = CheckpointHead {
            identity: self.identity.clone(),
            moment: self.moment(),
            outputs_before: self.board.outputs.made(),
            ram_bytes: self.board.ram.len_bytes(),
            digest,
            state: state.into(),
        };
        BegunCheckpoint { head, dirty_units }
    }

    fn take_checkpoint_pages(&mut self, extent: CheckpointExtent, limit: usize) -> CheckpointPart {
        let pages = self.board.ram.take_pages(extent, limit);
        let mut blocks = Vec::new();
        for index in 0..self.board.disks.len() {
            let wanted = limit.saturating_sub(pages.len() + blocks.len());
            let taken = self.board.disks[index].take_blocks(extent, index as u8, wanted);
            match self.or_fault(index, taken) {
                Some(taken) => blocks.extend(taken),
                // The machine stands still for good, and so does what it has frozen.
                None => return CheckpointPart::default(),
            }
        }
        let part = CheckpointPart { pages, blocks };
        if extent == CheckpointExtent::Increment && part.is_empty() {
            self.end_increment();
        }
        part
    }

    fn checkpoint_digest(&self) -> Option<Digest> {
        let increment = self.increment.as_ref().filter(|increment| increment.has_ended)?;
        let mut hasher = increment.hasher.clone();
        hasher.update(&self.board.ram.increment_digest()?.to_le_bytes());
        for disk in &self.board.disks {
            hasher.update(&disk.increment_digest()?.to_le_bytes());
        }
        Some(Digest(hasher.digest128().to_le_bytes()))
    }

    fn checkpoint_held_bytes(&self) -> u64 {
        let disks: u64 = self.board.disks.iter().map(Disk::held_bytes).sum();
        self.board.ram.held_bytes() + disks
    }

    fn cancel_checkpoint(&mut self, extent: CheckpointExtent) {
        if extent == CheckpointExtent::Increment {
            self.increment = None;
        }
        self.board.ram.cancel_checkpoint(extent);
        self.board.disks.iter_mut().for_each(|disk| disk.cancel_checkpoint(extent));
    }

    fn restore_begin(&mut self, head: &CheckpointHead) -> Result<(), RestoreError> {
        let state = self.decode_state(head)?;
        let ram = Ram::try_new(self.config.memory_bytes / PAGE_BYTES as u64)
            .map_err(|error| RestoreError::HostMemory(error.to_string()))?;
        self.increment = None;
        self.board.host_fault = None;
        for index in 0..self.board.disks.len() {
            let disk = &mut self.board.disks[index];
            let reverted = disk.begin_change().and_then(|()| disk.revert());
            self.or_fault(index, reverted);
        }
        self.board.ram = ram;
        self.apply(state);
        Ok(())
    }

    fn restore_update(&mut self, head: &CheckpointHead) -> Result<(), RestoreError> {
        let state = self.decode_state(head)?;
        // What an increment changes is found on the disks whole, or not at all.
        for index in 0..self.board.disks.len() {
            let begun = self.board.disks[index].begin_change();
            self.or_fault(index, begun);
        }
        self.apply(state);
        Ok(())
    }

    fn page(&self, index: u64) -> Option<&[u8]> {
        let address = index.checked_mul(PAGE_BYTES as u64)?.checked_add(RAM_BASE)?;
        self.board.ram.slice(address, PAGE_BYTES).ok()
    }

    fn check_part(&self, part: &CheckpointPart) -> Result<(), RestoreError> {
        let limit = self.board.ram.pages();
        for Page { index, data } in &part.pages {
            let is_whole = data.as_ref().is_none_or(|data| data.len() == PAGE_BYTES);
            if *index >= limit || !is_whole {
                return Err(RestoreError::OutOfRange { what: "page", index: *index, limit });
            }
        }
        part.blocks.iter().try_for_each(|block| self.check_block(block))
    }

    fn restore_part(&mut self, part: &CheckpointPart) -> Result<(), RestoreError> {
        self.check_part(part)?;
        let limit = self.board.ram.pages();
        for page in &part.pages {
            let wrong = |_| RestoreError::OutOfRange { what: "page", index: page.index, limit };
            self.board.ram.put_page(page).map_err(wrong)?;
        }
        part.blocks.iter().try_for_each(|block| self.restore_block(block))
    }

    fn kept(&self) -> Kept {
        Kept { memory: self.core.icount > 0, disks: !self.has_base_disks() }
    }

    fn restore_over(&mut self, head: &CheckpointHead) -> Result<(), RestoreError> {
        self.board.host_fault = None;
        self.restore_update(head)?;
        self.cancel_checkpoint(CheckpointExtent::Full);
        self.cancel_checkpoint(CheckpointExtent::Increment);
        self.cancel_checkpoint(CheckpointExtent::Disks);
        Ok(())
    }

    fn hash_page(&mut self, index: u64) -> Option<Digest> {
        self.board.ram.content_hash(index)
    }

    fn hash_block(&mut self, disk: u8, index: u64) -> Option<Digest> {
        let hash = self.board.disks.get_mut(usize::from(disk))?.content_hash(index);
        self.or_fault(usize::from(disk), hash)?
    }

    fn keep_only(&mut self, pages: &dyn Fn(u64) -> bool, blocks: &dyn Fn(u8, u64) -> bool) {
        self.board.ram.keep_only(pages);
        for index in 0..self.board.disks.len() {
            let kept = self.board.disks[index].keep_only(|block| blocks(index as u8, block));
            self.or_fault(index, kept);
        }
    }

    fn restore_end(&mut self) {
        for index in 0..self.board.disks.len() {
            let ended = self.board.disks[index].end_change();
            self.or_fault(index, ended);
        }
    }

    fn revert_disks(&mut self) {
        for index in 0..self.board.disks.len() {
            let reverted = self.board.disks[index].revert();
            self.or_fault(index, reverted);
        }
    }
}

impl RiscvMachine {
    /// Notes that an increment was taken to its end, unless the host failed at a disk meanwhile.
    fn end_increment(&mut self) {
        let Some(increment) = self.increment.as_mut().filter(|_| self.board.host_fault.is_none()) else {
            return;
        };
        increment.has_ended = true;
        self.board.ram.end_increment();
        self.board.disks.iter_mut().for_each(Disk::end_increment);
    }

    /// The state beside memory and disks that a checkpoint's head holds, if it is this machine's.
    fn decode_state(&self, head: &CheckpointHead) -> Result<MachineState, RestoreError> {
        check_identity(&head.identity, &self.identity)?;
        if head.ram_bytes != self.config.memory_bytes {
            let (found, expected) = (head.ram_bytes.to_string(), self.config.memory_bytes.to_string());
            return Err(RestoreError::Foreign { what: "memory size", found, expected });
        }
        let shape = Shape {
            semantics: self.config.semantics,
            harts: self.config.harts,
            slice_instructions: self.config.slice_instructions,
            clock: &Clock::new(self.config.instruction_ps),
            devices: &Devices::new(&self.config, &self.board.disks),
        };
        MachineState::decode(&head.state, &shape).map_err(RestoreError::Malformed)
    }

    fn check_block(&self, block: &DiskBlock) -> Result<(), RestoreError> {
        let index = u64::from(block.disk);
        let Some(disk) = self.board.disks.get(usize::from(block.disk)) else {
            let limit = self.board.disks.len() as u64;
            return Err(RestoreError::OutOfRange { what: "blocks of disk", index, limit });
        };
        let limit = disk.len_blocks();
        if block.index >= limit || block.data.len() != BLOCK_BYTES {
            return Err(RestoreError::OutOfRange { what: "disk block", index: block.index, limit });
        }
        Ok(())
    }

    fn restore_block(&mut self, block: &DiskBlock) -> Result<(), RestoreError> {
        self.check_block(block)?;
        let disk = usize::from(block.disk);
        if let Ok(data) = <&[u8; BLOCK_BYTES]>::try_from(&block.data[..]) {
            let written = self.board.disks[disk].put_block(block.index, data);
            self.or_fault(disk, written);
        }
        Ok(())
    }
}

/// Compares field by field, so that the error says what differs.
fn check_identity(found: &MachineIdentity, expected: &MachineIdentity) -> Result<(), RestoreError> {
    let hex = |hash: &[u8; 32]| hash[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let disks = |identity: &MachineIdentity| {
        let disk = |(bytes, hash): &(u64, [u8; 32])| format!("{bytes} bytes {}", hex(hash));
        identity.disks.iter().map(disk).collect::<Vec<_>>().join(", ")
    };
    let parts = [
        ("semantics version", found.semantics.to_string(), expected.semantics.to_string()),
        ("configuration", hex(&found.config), hex(&expected.config)),
        ("set of boot images", hex(&found.boot_images), hex(&expected.boot_images)),
        ("set of disks", disks(found), disks(expected)),
    ];
    match parts.into_iter().find(|(_, found, expected)| found != expected) {
        Some((what, found, expected)) => Err(RestoreError::Foreign { what, found, expected }),
        None => Ok(()),
    }
}

impl Board {
    /// Takes over a restored state; memory and disks follow.
    fn restore(&mut self, clock: Clock, output: crate::output::OutputState, devices: Devices, icount: u64) {
        self.clock = clock;
        self.outputs = Outputs::from_state(output);
        self.devices = devices;
        self.request = None;
        self.yielded = false;
        self.settle(icount);
    }
}
