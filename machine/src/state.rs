//! The machine's state beside memory and disks, as MessagePack.
//!
//! An envelope with a version holds one payload per part, each with its kind and its own
//! version, so that a part can change its form without the others. Encoding is a function
//! of the state (no maps with random order): the digest stands on these bytes.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::board::Devices;
use crate::clock::Clock;
use crate::config::VIRTIO_SLOTS;
use crate::hart::HartState;
use crate::output::OutputState;
use crate::sbi::HartStatus;
use crate::semantics::Semantics;

/// Version of the envelope.
const ENVELOPE_VERSION: u32 = 1;

/// All state beside memory and disks.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineState {
    pub core: CoreState,
    pub harts: Vec<HartState>,
    pub clock: Clock,
    pub output: OutputState,
    pub devices: Devices,
}

/// What belongs to no device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreState {
    pub icount: u64,
    pub power: Power,
    pub turn: Turn,
    pub statuses: Vec<HartStatus>,
}

/// Whether the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Power {
    /// Boots when it next executes: at power-on, and after a reset.
    Booting,
    /// It runs.
    On,
    /// It ended, with this status.
    Halted(u32),
}

/// Which hart executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    pub hart: usize,
    /// Instructions left of its slice; at 0 the next hart is chosen.
    pub left: u64,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u32,
    semantics: u32,
    payloads: Vec<Payload>,
}

#[derive(Serialize, Deserialize)]
struct Payload {
    kind: String,
    version: u32,
    #[serde(with = "serde_bytes")]
    data: Vec<u8>,
}

/// A part of the state: its name and the version of its form.
trait Part: Serialize + DeserializeOwned {
    const KIND: &'static str;
    const VERSION: u32;
}

macro_rules! parts {
    ($($type:ty => $kind:literal, $version:literal;)*) => {
        $(impl Part for $type {
            const KIND: &'static str = $kind;
            const VERSION: u32 = $version;
        })*
    };
}

parts! {
    CoreState => "core", 1;
    Vec<HartState> => "riscv-hart", 1;
    Clock => "clock", 1;
    OutputState => "output", 1;
    crate::device::aclint::Aclint => "aclint", 1;
    crate::device::plic::Plic => "plic", 1;
    crate::device::uart::Uart => "uart-16550a", 1;
    crate::device::rtc::Rtc => "goldfish-rtc", 1;
    crate::device::gpio::Gpio => "sifive-gpio", 1;
    crate::device::vmgenid::VmGenId => "vmgenid", 1;
    crate::device::virtio::entropy::EntropyPool => "entropy-pool", 1;
    Vec<crate::device::virtio::mmio::Slot> => "virtio-mmio", 1;
}

/// The encoded state.
pub fn encode(
    semantics: Semantics,
    core: &CoreState,
    harts: &Vec<HartState>,
    clock: &Clock,
    output: &OutputState,
    devices: &Devices,
) -> Vec<u8> {
    let mut payloads = vec![
        payload(core),
        payload(harts),
        payload(clock),
        payload(output),
        payload(&devices.aclint),
        payload(&devices.plic),
        payload(&devices.uart),
        payload(&devices.rtc),
        payload(&devices.gpio),
        payload(&devices.pool),
        payload(&devices.slots),
    ];
    payloads.extend(devices.vmgenid.as_ref().map(payload));
    let envelope = Envelope { version: ENVELOPE_VERSION, semantics: semantics.version(), payloads };
    rmp_serde::to_vec_named(&envelope).expect("a state always encodes")
}

fn payload<T: Part>(part: &T) -> Payload {
    let data = rmp_serde::to_vec(part).expect("a state always encodes");
    Payload { kind: T::KIND.to_owned(), version: T::VERSION, data }
}

impl MachineState {
    /// The state that `bytes` encode, for a machine like the one `expected` describes.
    ///
    /// # Errors
    /// Says what does not decode, or which part does not fit this machine.
    pub fn decode(bytes: &[u8], expected: &Shape<'_>) -> Result<MachineState, String> {
        let envelope: Envelope = rmp_serde::from_slice(bytes).map_err(|error| error.to_string())?;
        if envelope.version != ENVELOPE_VERSION {
            let found = envelope.version;
            return Err(format!(
                "its form has version {found}, this program reads version {ENVELOPE_VERSION}"
            ));
        }
        let (found, own) = (envelope.semantics, expected.semantics.version());
        if found != own {
            return Err(format!("its semantics are version {found}, this machine's {own}"));
        }
        let payloads = &envelope.payloads;
        let state = MachineState {
            core: part(payloads)?,
            harts: part(payloads)?,
            clock: part(payloads)?,
            output: part(payloads)?,
            devices: Devices {
                aclint: part(payloads)?,
                plic: part(payloads)?,
                uart: part(payloads)?,
                rtc: part(payloads)?,
                gpio: part(payloads)?,
                pool: part(payloads)?,
                slots: part(payloads)?,
                vmgenid: expected.devices.vmgenid.is_some().then(|| part(payloads)).transpose()?,
            },
        };
        expected.check(&state)?;
        Ok(state)
    }
}

fn part<T: Part>(payloads: &[Payload]) -> Result<T, String> {
    let kind = T::KIND;
    let Some(payload) = payloads.iter().find(|payload| payload.kind == kind) else {
        return Err(format!("it has no {kind}"));
    };
    if payload.version != T::VERSION {
        return Err(format!(
            "its {kind} has version {}, this program reads version {}",
            payload.version,
            T::VERSION
        ));
    }
    rmp_serde::from_slice(&payload.data).map_err(|error| format!("its {kind}: {error}"))
}

/// What a state must agree with before a machine takes it.
pub struct Shape<'a> {
    pub semantics: Semantics,
    pub harts: usize,
    pub slice_instructions: u64,
    pub clock: &'a Clock,
    /// The devices as at power-on.
    pub devices: &'a Devices,
}

impl Shape<'_> {
    fn check(&self, state: &MachineState) -> Result<(), String> {
        let MachineState { core, harts, clock, output, devices } = state;
        let holds = [
            (harts.len() == self.harts, "number of harts"),
            (core.statuses.len() == self.harts, "number of hart states"),
            (core.turn.hart < self.harts, "hart in turn"),
            (core.turn.left <= self.slice_instructions, "slice"),
            (clock.same_rate(self.clock), "clock rate"),
            (output.is_sound(), "console output"),
            (devices.plic.fits(self.harts), "interrupt controller"),
            (devices.uart.is_sound(), "serial port"),
            (devices.slots.len() <= VIRTIO_SLOTS, "number of slots"),
            (devices.slots.len() == self.devices.slots.len(), "number of slots"),
            (
                devices.slots.iter().zip(&self.devices.slots).all(|(slot, fresh)| slot.fits(fresh)),
                "virtio devices",
            ),
        ];
        match holds.iter().find(|(holds, _)| !holds) {
            Some((_, what)) => Err(format!("its {what} cannot be this machine's")),
            None => Ok(()),
        }
    }
}
