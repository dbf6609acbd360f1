//! A recording's history as gdbstub's target.

use std::net::TcpStream;

use anyhow::Error;
use gdbstub::common::{Signal, Tid};
use gdbstub::conn::ConnectionExt;
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::reverse_exec::{
    ReplayLogPosition, ReverseCont, ReverseContOps, ReverseStep, ReverseStepOps,
};
use gdbstub::target::ext::base::single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps, outputln};
use gdbstub::target::ext::target_description_xml_override::{
    TargetDescriptionXmlOverride, TargetDescriptionXmlOverrideOps,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::riscv::Riscv64;
use gdbstub_arch::riscv::reg::RiscvCoreRegs;
use gdbstub_arch::riscv::reg::id::RiscvRegId;
use machine::StopReason;
use machine::hart::Watchpoint;

use super::{monitor, registers};
use crate::history::{Arrival, History, Interrupt, Until};

/// Why execution last stopped, for gdb.
type GdbStop = MultiThreadStopReason<u64>;

/// A recording, as gdb sees it.
pub struct DebugTarget {
    /// The recording.
    pub history: History,
    /// Whether gdb's addresses are physical.
    pub reads_physical: bool,
    description: String,
    breakpoints: Vec<u64>,
    watchpoints: Vec<Watchpoint>,
    direction: Direction,
    until: Until,
    /// The thread that gdb has selected, as far as it says so: to step back it asks for any, and
    /// means this one.
    selected: Tid,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forth,
    Back,
}

impl DebugTarget {
    /// Stands before the first instruction.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn new(mut history: History) -> anyhow::Result<DebugTarget> {
        history.seek(history.start_icount(), &mut || false)?;
        let selected = thread_of(history.machine().hart_in_turn());
        Ok(DebugTarget {
            history,
            reads_physical: false,
            description: registers::target_description(),
            breakpoints: Vec::new(),
            watchpoints: Vec::new(),
            direction: Direction::Forth,
            until: Until::Stop,
            selected,
        })
    }

    /// Goes where gdb wants to.
    fn run(&mut self, interrupt: Interrupt<'_>) -> anyhow::Result<Arrival> {
        self.history.set_breakpoints(self.breakpoints.clone());
        self.history.set_watchpoints(self.watchpoints.clone());
        match self.direction {
            Direction::Forth => self.history.resume(self.until, interrupt),
            Direction::Back => self.history.resume_back(self.until, interrupt),
        }
    }

    /// What to tell gdb; `None` when it was gdb who interrupted.
    fn stop_reason(&mut self, arrival: Arrival) -> Option<GdbStop> {
        self.selected = match arrival {
            Arrival::Stopped(stop) => thread_of(stop.hart),
            _ => self.thread_in_turn(),
        };
        let replay_log = |pos| Some(GdbStop::ReplayLog { tid: Some(self.thread_in_turn()), pos });
        match arrival {
            Arrival::Stopped(stop) => {
                let tid = thread_of(stop.hart);
                Some(match stop.reason {
                    StopReason::Breakpoint => GdbStop::SwBreak(tid),
                    StopReason::Watchpoint(watchpoint) => {
                        GdbStop::Watch { tid, kind: kind_of(watchpoint), addr: watchpoint.address }
                    }
                    StopReason::HartStepped | StopReason::BeforeIcount => {
                        GdbStop::SignalWithThread { tid, signal: Signal::SIGTRAP }
                    }
                })
            }
            Arrival::There => {
                Some(GdbStop::SignalWithThread { tid: self.thread_in_turn(), signal: Signal::SIGTRAP })
            }
            Arrival::Start => replay_log(ReplayLogPosition::Begin),
            Arrival::End => replay_log(ReplayLogPosition::End),
            Arrival::Interrupted => None,
        }
    }

    fn thread_in_turn(&self) -> Tid {
        thread_of(self.history.machine().hart_in_turn())
    }
}

/// gdb's threads are numbered from 1.
fn thread_of(hart: usize) -> Tid {
    Tid::new(hart + 1).expect("not zero")
}

/// The hart that is a thread.
pub fn hart_of(tid: Tid) -> usize {
    tid.get() - 1
}

fn kind_of(watchpoint: Watchpoint) -> WatchKind {
    match (watchpoint.reads, watchpoint.writes) {
        (true, true) => WatchKind::ReadWrite,
        (true, false) => WatchKind::Read,
        _ => WatchKind::Write,
    }
}

impl Target for DebugTarget {
    type Arch = Riscv64;
    type Error = Error;

    fn base_ops(&mut self) -> BaseOps<'_, Riscv64, Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }

    fn support_target_description_xml_override(
        &mut self,
    ) -> Option<TargetDescriptionXmlOverrideOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for DebugTarget {
    fn read_registers(&mut self, into: &mut RiscvCoreRegs<u64>, tid: Tid) -> TargetResult<(), Self> {
        let hart = self.history.machine().hart(hart_of(tid)).ok_or(TargetError::NonFatal)?;
        into.x = std::array::from_fn(|number| hart.register(number));
        into.pc = hart.pc();
        Ok(())
    }

    fn write_registers(&mut self, _registers: &RiscvCoreRegs<u64>, _tid: Tid) -> TargetResult<(), Self> {
        // What is recorded does not change.
        Err(TargetError::NonFatal)
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, address: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let machine = self.history.machine();
        let len = match self.reads_physical {
            true if machine.read_physical(address, data) => data.len(),
            true => 0,
            false => machine.read_virtual(hart_of(tid), address, data),
        };
        if len == 0 && !data.is_empty() { Err(TargetError::NonFatal) } else { Ok(len) }
    }

    fn write_addrs(&mut self, _address: u64, _data: &[u8], _tid: Tid) -> TargetResult<(), Self> {
        Err(TargetError::NonFatal)
    }

    fn list_active_threads(&mut self, found: &mut dyn FnMut(Tid)) -> Result<(), Error> {
        // The first one stands for any.
        found(self.selected);
        let others = (0..self.history.machine().config().harts).map(thread_of);
        others.filter(|thread| *thread != self.selected).for_each(found);
        Ok(())
    }

    fn is_thread_alive(&mut self, tid: Tid) -> Result<bool, Error> {
        // gdb asks this of a thread that its user selects.
        let is_alive = hart_of(tid) < self.history.machine().config().harts;
        if is_alive {
            self.selected = tid;
        }
        Ok(is_alive)
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for DebugTarget {
    fn read_register(
        &mut self,
        tid: Tid,
        register: RiscvRegId<u64>,
        into: &mut [u8],
    ) -> TargetResult<usize, Self> {
        let value = registers::read(self.history.machine(), hart_of(tid), register);
        let bytes = value.ok_or(TargetError::NonFatal)?.to_le_bytes();
        let len = bytes.len().min(into.len());
        into[..len].copy_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn write_register(
        &mut self,
        _tid: Tid,
        _register: RiscvRegId<u64>,
        _value: &[u8],
    ) -> TargetResult<(), Self> {
        Err(TargetError::NonFatal)
    }
}

impl MultiThreadResume for DebugTarget {
    fn resume(&mut self) -> Result<(), Error> {
        self.direction = Direction::Forth;
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Error> {
        self.until = Until::Stop;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, _tid: Tid, _signal: Option<Signal>) -> Result<(), Error> {
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_reverse_step(&mut self) -> Option<ReverseStepOps<'_, Tid, Self>> {
        Some(self)
    }

    fn support_reverse_cont(&mut self) -> Option<ReverseContOps<'_, Tid, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for DebugTarget {
    fn set_resume_action_step(&mut self, tid: Tid, _signal: Option<Signal>) -> Result<(), Error> {
        self.until = Until::Step { hart: hart_of(tid) };
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for DebugTarget {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Error> {
        // The other harts execute what they executed: in a recording nobody can be held.
        Ok(())
    }
}

impl ReverseCont<Tid> for DebugTarget {
    fn reverse_cont(&mut self) -> Result<(), Error> {
        (self.direction, self.until) = (Direction::Back, Until::Stop);
        Ok(())
    }
}

impl ReverseStep<Tid> for DebugTarget {
    fn reverse_step(&mut self, tid: Tid) -> Result<(), Error> {
        (self.direction, self.until) = (Direction::Back, Until::Step { hart: hart_of(tid) });
        Ok(())
    }
}

impl Breakpoints for DebugTarget {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl DebugTarget {
    fn add_breakpoint(&mut self, address: u64) -> bool {
        self.breakpoints.push(address);
        true
    }

    fn remove_breakpoint(&mut self, address: u64) -> bool {
        let place = self.breakpoints.iter().position(|found| *found == address);
        place.map(|place| self.breakpoints.swap_remove(place)).is_some()
    }
}

// Both kinds of breakpoints are the same: neither writes to the guest's memory.

impl SwBreakpoint for DebugTarget {
    fn add_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.add_breakpoint(address))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.remove_breakpoint(address))
    }
}

impl HwBreakpoint for DebugTarget {
    fn add_hw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.add_breakpoint(address))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.remove_breakpoint(address))
    }
}

fn watchpoint(address: u64, len: u64, kind: WatchKind) -> Watchpoint {
    let (reads, writes) = (kind != WatchKind::Write, kind != WatchKind::Read);
    Watchpoint { address, len, reads, writes }
}

impl HwWatchpoint for DebugTarget {
    fn add_hw_watchpoint(&mut self, address: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        self.watchpoints.push(watchpoint(address, len, kind));
        Ok(true)
    }

    fn remove_hw_watchpoint(&mut self, address: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let wanted = watchpoint(address, len, kind);
        let place = self.watchpoints.iter().position(|found| *found == wanted);
        Ok(place.map(|place| self.watchpoints.swap_remove(place)).is_some())
    }
}

impl TargetDescriptionXmlOverride for DebugTarget {
    fn target_description_xml(
        &self,
        annex: &[u8],
        offset: u64,
        length: usize,
        into: &mut [u8],
    ) -> TargetResult<usize, Self> {
        if annex != b"target.xml" {
            return Err(TargetError::NonFatal);
        }
        let text = self.description.as_bytes();
        let rest = &text[(offset.min(text.len() as u64)) as usize..];
        let len = rest.len().min(length).min(into.len());
        into[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

impl ThreadExtraInfo for DebugTarget {
    fn thread_extra_info(&self, tid: Tid, into: &mut [u8]) -> Result<usize, Error> {
        let text = monitor::describe_hart(&self.history, hart_of(tid));
        let len = text.len().min(into.len());
        into[..len].copy_from_slice(&text.as_bytes()[..len]);
        Ok(len)
    }
}

impl MonitorCmd for DebugTarget {
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), Error> {
        let answer = match std::str::from_utf8(command) {
            Ok(command) => monitor::execute(self, command)?,
            Err(_) => "a command is UTF-8; try: monitor help".to_owned(),
        };
        for line in answer.lines() {
            outputln!(out, "{line}");
        }
        Ok(())
    }
}

/// Runs the target as long as gdb says nothing.
pub enum EventLoop {}

impl BlockingEventLoop for EventLoop {
    type Target = DebugTarget;
    type Connection = TcpStream;
    type StopReason = GdbStop;

    fn wait_for_stop_reason(
        target: &mut DebugTarget,
        connection: &mut TcpStream,
    ) -> Result<Event<GdbStop>, WaitForStopReasonError<Error, std::io::Error>> {
        // A connection that fails ends the way, too: the read below then says why.
        let mut spoke = || !matches!(ConnectionExt::peek(connection), Ok(None));
        let arrival = target.run(&mut spoke).map_err(WaitForStopReasonError::Target)?;
        if let Some(divergence) = target.history.divergence() {
            eprintln!("secondwind: {divergence}");
        }
        match target.stop_reason(arrival) {
            Some(reason) => Ok(Event::TargetStopped(reason)),
            None => {
                let byte = ConnectionExt::read(connection).map_err(WaitForStopReasonError::Connection)?;
                Ok(Event::IncomingData(byte))
            }
        }
    }

    fn on_interrupt(target: &mut DebugTarget) -> Result<Option<GdbStop>, Error> {
        Ok(Some(GdbStop::SignalWithThread { tid: target.thread_in_turn(), signal: Signal::SIGINT }))
    }
}
