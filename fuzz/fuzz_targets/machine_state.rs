#![no_main]

use std::sync::{LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use machine::{BootImages, Exit, Machine, MachineConfig, NetConfig, RiscvMachine};
use secondwind_fuzz::scripts;

const LEDGER: &[u8] = include_bytes!("../../guest/ledger/ledger.elf");

fn ledger() -> RiscvMachine {
    let config = MachineConfig {
        memory_bytes: 32 << 20,
        nets: vec![NetConfig { mac: [2, 0, 0, 0, 0, 1] }],
        ..MachineConfig::default()
    };
    RiscvMachine::new(config, &BootImages::supervisor(LEDGER.into(), None), Vec::new()).expect("it boots")
}

/// Booted once, then asked for the same checkpoint again and again.
static BOOTED: LazyLock<Mutex<RiscvMachine>> = LazyLock::new(|| {
    let mut machine = ledger();
    while machine.run(2_000_000) == Exit::Output {
        machine.take_outputs();
    }
    Mutex::new(machine)
});

fuzz_target!(|data: &[u8]| {
    let mut machine = BOOTED.lock().expect("one thread");
    scripts::checkpoint_state(&mut machine, ledger(), data);
});
