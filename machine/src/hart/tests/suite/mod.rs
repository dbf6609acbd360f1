//! Small programs, run in whole and in pieces, by one engine.

mod caches;
mod cutting;
mod semantics;
mod traps;

use super::super::encode;
use super::ENGINE;
use crate::bus::{AccessFault, Bus};
use crate::hart::{Hart, HartExit, HartOptions, HartRun, HartState};
use crate::ram::{RAM_BASE, Ram};

/// Where the test bus logs stores.
const LOG_DEVICE: u64 = 0x1000_0000;
/// Reads as the icount.
const COUNT_DEVICE: u64 = 0x1000_0008;
/// A store here drives the interrupt lines.
const LINES_DEVICE: u64 = 0x1000_0010;
/// A store here asks for an exit.
const EXIT_DEVICE: u64 = 0x1000_0018;
const RAM_PAGES: u64 = 1024;

/// Memory, and devices that say when they were accessed.
struct TestBus {
    ram: Ram,
    log: Vec<(u64, u64)>,
    lines: u64,
    exit: bool,
}

impl TestBus {
    fn new() -> TestBus {
        TestBus { ram: Ram::new(RAM_PAGES), log: Vec::new(), lines: 0, exit: false }
    }

    fn put_code(&mut self, address: u64, code: &[u32]) {
        let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.ram.write(address, &bytes).unwrap();
    }

    fn put(&mut self, address: u64, value: u64) {
        self.ram.write(address, &value.to_le_bytes()).unwrap();
    }

    fn at(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.ram.slice(address, 8).unwrap().try_into().unwrap())
    }
}

impl Bus for TestBus {
    fn ram(&mut self) -> &mut Ram {
        &mut self.ram
    }

    fn mmio_read(&mut self, _hart: usize, icount: u64, address: u64, _size: u8) -> Result<u64, AccessFault> {
        if address == COUNT_DEVICE { Ok(icount) } else { Err(AccessFault) }
    }

    fn mmio_write(
        &mut self,
        _hart: usize,
        icount: u64,
        address: u64,
        size: u8,
        value: u64,
    ) -> Result<(), AccessFault> {
        match address {
            LOG_DEVICE => self.log.push((icount, value)),
            LINES_DEVICE => self.lines = value,
            EXIT_DEVICE => self.exit = true,
            _ if address >= RAM_BASE => {
                self.log.push((icount, value));
                self.ram.write(address, &value.to_le_bytes()[..size as usize]).unwrap();
            }
            _ => return Err(AccessFault),
        }
        Ok(())
    }

    fn time(&self, icount: u64) -> u64 {
        icount / 100
    }

    fn interrupt_lines(&self, _hart: usize) -> u64 {
        self.lines
    }

    fn wants_exit(&self) -> bool {
        self.exit
    }
}

/// Of a hart whose blocks are translated at once, if at all.
fn options() -> HartOptions {
    HartOptions { engine: ENGINE, translate_after: 0, ..HartOptions::default() }
}

/// A hart in M-mode at the start of RAM, where `code` is.
fn machine_with(code: &[u32]) -> (Hart, TestBus) {
    let mut bus = TestBus::new();
    bus.put_code(RAM_BASE, code);
    let mut hart = Hart::new(0, options());
    hart.start_machine(RAM_BASE, 0, 0);
    (hart, bus)
}

/// Runs `count` instructions from icount 0, through whatever exits come.
fn run(hart: &mut Hart, bus: &mut TestBus, count: u64) -> HartRun {
    run_from(hart, bus, 0, count)
}

fn run_from(hart: &mut Hart, bus: &mut TestBus, icount: u64, count: u64) -> HartRun {
    let mut done = 0;
    loop {
        let HartRun { retired, exit } = hart.run(bus, icount + done, count - done);
        done += retired;
        if done == count || exit == HartExit::Wait {
            return HartRun { retired: done, exit };
        }
    }
}
