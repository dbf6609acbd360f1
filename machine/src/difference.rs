//! What differs between two machines: for people, where a digest only says that something does.

use crate::board::{Board, Devices};
use crate::hart::HartState;
use crate::machine::RiscvMachine;
use crate::ram::{PAGE_BYTES, RAM_BASE};
use crate::registers::{CSRS, FLOAT_CSRS, FLOAT_NAMES, INTEGER_NAMES};

/// Something that two machines have both, and not alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// A register, a page, a device.
    pub what: String,
    /// What it is in the one machine.
    pub one: String,
    /// What it is in the other.
    pub other: String,
}

impl Difference {
    fn new(what: impl Into<String>, one: impl ToString, other: impl ToString) -> Difference {
        Difference { what: what.into(), one: one.to_string(), other: other.to_string() }
    }
}

/// Bytes shown of a page that differs.
const SHOWN_BYTES: usize = 16;

impl RiscvMachine {
    /// What differs between this machine and `other`, which is made of the same: registers first,
    /// then devices, memory and disks.
    ///
    /// # Errors
    /// When the host cannot read a disk.
    pub fn differences(&mut self, other: &mut RiscvMachine) -> std::io::Result<Vec<Difference>> {
        let mut found = Vec::new();
        for hart in 0..self.harts.len().min(other.harts.len()) {
            self.compare_hart(other, hart, &mut found);
        }
        let (one, another) = (&self.core, &other.core);
        if one.turn != another.turn {
            found.push(Difference::new("turn", format!("{:?}", one.turn), format!("{:?}", another.turn)));
        }
        if (one.power, one.icount) != (another.power, another.icount) {
            let show = |core: &crate::state::CoreState| format!("{:?} at icount {}", core.power, core.icount);
            found.push(Difference::new("power", show(one), show(another)));
        }
        compare_boards(&self.board, &other.board, &mut found);
        compare_memory(&self.board, &other.board, &mut found);
        for (index, (one, another)) in self.board.disks.iter_mut().zip(&mut other.board.disks).enumerate() {
            let (one, another) = (one.digest()?, another.digest()?);
            if one != another {
                let show = |digest: u128| format!("contents {digest:032x}");
                found.push(Difference::new(format!("disk {index}"), show(one), show(another)));
            }
        }
        Ok(found)
    }

    fn compare_hart(&self, other: &RiscvMachine, hart: usize, found: &mut Vec<Difference>) {
        let known = found.len();
        let (one, another) = (self.harts[hart].state(), other.harts[hart].state());
        let (f, g) = (&one.f, &another.f);
        let pcs = [("pc", one.pc, another.pc)];
        let integers = (1..32).map(|number| (INTEGER_NAMES[number], one.x[number], another.x[number]));
        let floats = (0..32).map(|number| (FLOAT_NAMES[number], f[number], g[number]));
        let csrs = FLOAT_CSRS
            .iter()
            .chain(&CSRS)
            .filter_map(|(name, number)| Some((*name, self.csr(hart, *number)?, other.csr(hart, *number)?)));
        let all = pcs.into_iter().chain(integers).chain(floats).chain(csrs);
        for (name, one, another) in all.filter(|(_, one, another)| one != another) {
            let show = |value: u64| format!("{value:#x}");
            found.push(Difference::new(format!("hart {hart} {name}"), show(one), show(another)));
        }
        if one.privilege != another.privilege {
            found.push(Difference::new(format!("hart {hart} mode"), one.privilege, another.privilege));
        }
        let status = |machine: &RiscvMachine, state: &HartState| {
            let waits = if state.waiting { ", waits" } else { "" };
            format!("{:?}{waits}, reservation {:x?}", machine.core.statuses[hart], state.reservation)
        };
        let statuses = (status(self, &one), status(other, &another));
        if statuses.0 != statuses.1 {
            found.push(Difference::new(format!("hart {hart} state"), statuses.0, statuses.1));
        }
        if found.len() == known && one != another {
            found.push(Difference::new(format!("hart {hart} other CSRs"), "one value", "another"));
        }
    }
}

fn compare_boards(one: &Board, another: &Board, found: &mut Vec<Difference>) {
    let times = (one.now().time_ns, another.now().time_ns);
    if times.0 != times.1 {
        let show = |time_ns: u64| format!("{time_ns} ns");
        found.push(Difference::new("guest time", show(times.0), show(times.1)));
    }
    if one.outputs.state() != another.outputs.state() {
        let show = |board: &Board| format!("{:?}", board.outputs.state());
        found.push(Difference::new("outputs", show(one), show(another)));
    }
    let names = ["aclint", "plic", "uart", "rtc", "gpio", "entropy pool", "generation"];
    let shown = |devices: &Devices| {
        let Devices { aclint, plic, uart, rtc, gpio, pool, vmgenid, .. } = devices;
        [
            format!("{aclint:?}"),
            format!("{plic:?}"),
            format!("{uart:?}"),
            format!("{rtc:?}"),
            format!("{gpio:?}"),
            format!("{pool:?}"),
            format!("{vmgenid:?}"),
        ]
    };
    let slots = |devices: &Devices| devices.slots.iter().map(|slot| format!("{slot:?}")).collect::<Vec<_>>();
    let named = names.iter().map(|name| (*name).to_owned());
    let numbered = (0..).map(|slot| format!("virtio slot {slot}"));
    let all = |devices: &Devices| shown(devices).into_iter().chain(slots(devices)).collect::<Vec<_>>();
    let pairs = all(&one.devices).into_iter().zip(all(&another.devices));
    for (name, (one, another)) in named.chain(numbered).zip(pairs) {
        if one != another {
            let (one, another) = around_first_difference(&one, &another);
            found.push(Difference::new(name, one, another));
        }
    }
}

/// The parts of two texts around their first difference.
fn around_first_difference(one: &str, another: &str) -> (String, String) {
    const BEFORE: usize = 24;
    const AFTER: usize = 40;
    let same = one.chars().zip(another.chars()).take_while(|(one, another)| one == another).count();
    let cut = |text: &str| {
        let part: String = text.chars().skip(same.saturating_sub(BEFORE)).take(BEFORE + AFTER).collect();
        format!("...{part}...")
    };
    (cut(one), cut(another))
}

fn compare_memory(one: &Board, another: &Board, found: &mut Vec<Difference>) {
    for page in 0..one.ram.pages().min(another.ram.pages()) {
        let address = RAM_BASE + page * PAGE_BYTES as u64;
        let (Ok(left), Ok(right)) =
            (one.ram.slice(address, PAGE_BYTES), another.ram.slice(address, PAGE_BYTES))
        else {
            continue;
        };
        if left == right {
            continue;
        }
        let differing = left.iter().zip(right).filter(|(left, right)| left != right).count();
        let first = left.iter().zip(right).position(|(left, right)| left != right).unwrap_or(0);
        let shown = first..(first + SHOWN_BYTES).min(PAGE_BYTES);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
        let at = address + first as u64;
        let what = format!("memory {at:#x} (page {address:#x}, {differing} bytes)");
        found.push(Difference::new(what, hex(&left[shown.clone()]), hex(&right[shown])));
    }
}
