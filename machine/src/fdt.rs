//! The flattened device tree that describes the board to its guest.

use vm_fdt::{FdtWriter, FdtWriterResult};

use crate::config::MachineConfig;
use crate::device::{aclint, gpio, plic, rtc, syscon, uart, virtio, vmgenid};
use crate::map;
use crate::ram::RAM_BASE;

/// Extensions of the harts, in the order in which `riscv,isa` names them.
const EXTENSIONS: [&str; 16] = [
    "i", "m", "a", "f", "d", "c", "zicbom", "zicboz", ZICOND, "zicntr", "zicsr", "zifencei", "zba", "zbb",
    "zbs", "sstc",
];
const ZICOND: &str = "zicond";
/// Bytes that a cache-block instruction works on.
const CACHE_BLOCK_BYTES: u32 = 64;
/// Ticks of the `time` counter per second.
const TIMEBASE_HZ: u32 = 10_000_000;
/// Clock of the serial port.
const UART_HZ: u32 = 3_686_400;

const PHANDLE_PLIC: u32 = 1;
const PHANDLE_TEST: u32 = 2;
const PHANDLE_GPIO: u32 = 3;
const PHANDLE_FIRST_HART: u32 = 16;

const SUPERVISOR_EXTERNAL: u32 = 9;
const MACHINE_EXTERNAL: u32 = 11;
const MACHINE_SOFTWARE: u32 = 3;
const MACHINE_TIMER: u32 = 7;

/// Bytes of `rng-seed`.
pub const SEED_BYTES: usize = 64;

/// The device tree of a machine whose slots 0 to `slots - 1` hold a device.
///
/// # Panics
/// Never for a validated configuration: names and properties are ours.
pub fn build(
    config: &MachineConfig,
    slots: usize,
    initrd: Option<(u64, u64)>,
    seed: &[u8; SEED_BYTES],
) -> Vec<u8> {
    write(config, slots, initrd, seed).expect("the device tree is well formed")
}

fn write(
    config: &MachineConfig,
    slots: usize,
    initrd: Option<(u64, u64)>,
    seed: &[u8; SEED_BYTES],
) -> FdtWriterResult<Vec<u8>> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_string("compatible", "riscv-virtio")?;
    fdt.property_string("model", "secondwind,virt")?;
    chosen(&mut fdt, config, initrd, seed)?;
    let memory = fdt.begin_node("memory@80000000")?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[RAM_BASE, config.memory_bytes])?;
    fdt.end_node(memory)?;
    cpus(&mut fdt, config)?;
    soc(&mut fdt, config, slots)?;
    power(&mut fdt, "poweroff", "syscon-poweroff", syscon::POWER_OFF)?;
    power(&mut fdt, "reboot", "syscon-reboot", syscon::RESET)?;
    power_button(&mut fdt)?;
    fdt.end_node(root)?;
    fdt.finish()
}

fn chosen(
    fdt: &mut FdtWriter,
    config: &MachineConfig,
    initrd: Option<(u64, u64)>,
    seed: &[u8; SEED_BYTES],
) -> FdtWriterResult<()> {
    let chosen = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", &config.bootargs)?;
    fdt.property_string("stdout-path", &format!("/soc/serial@{:x}", map::UART))?;
    fdt.property("rng-seed", seed)?;
    if let Some((start, end)) = initrd {
        fdt.property_u64("linux,initrd-start", start)?;
        fdt.property_u64("linux,initrd-end", end)?;
    }
    fdt.end_node(chosen)
}

fn cpus(fdt: &mut FdtWriter, config: &MachineConfig) -> FdtWriterResult<()> {
    let extensions: Vec<&str> =
        EXTENSIONS.into_iter().filter(|name| *name != ZICOND || config.semantics.has_zicond()).collect();
    let mmu_type = if config.semantics.has_sv48() { "riscv,sv48" } else { "riscv,sv39" };
    let single: String = extensions.iter().filter(|name| name.len() == 1).copied().collect();
    let long = extensions.iter().filter(|name| name.len() > 1);
    let isa = long.fold(format!("rv64{single}"), |isa, name| isa + "_" + name);
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    fdt.property_u32("timebase-frequency", TIMEBASE_HZ)?;
    for hart in 0..config.harts as u32 {
        let cpu = fdt.begin_node(&format!("cpu@{hart:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_u32("reg", hart)?;
        fdt.property_string("status", "okay")?;
        fdt.property_string("compatible", "riscv")?;
        fdt.property_string("riscv,isa", &isa)?;
        fdt.property_string("riscv,isa-base", "rv64i")?;
        fdt.property_string_list(
            "riscv,isa-extensions",
            extensions.iter().copied().map(String::from).collect(),
        )?;
        fdt.property_u32("riscv,cbom-block-size", CACHE_BLOCK_BYTES)?;
        fdt.property_u32("riscv,cboz-block-size", CACHE_BLOCK_BYTES)?;
        fdt.property_string("mmu-type", mmu_type)?;
        let controller = fdt.begin_node("interrupt-controller")?;
        fdt.property_u32("#interrupt-cells", 1)?;
        fdt.property_null("interrupt-controller")?;
        fdt.property_string("compatible", "riscv,cpu-intc")?;
        fdt.property_phandle(PHANDLE_FIRST_HART + hart)?;
        fdt.end_node(controller)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(cpus)
}

fn soc(fdt: &mut FdtWriter, config: &MachineConfig, slots: usize) -> FdtWriterResult<()> {
    let harts = config.harts;
    let soc = fdt.begin_node("soc")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_string("compatible", "simple-bus")?;
    fdt.property_null("ranges")?;

    let compatible = ["sifive,test1", "sifive,test0", "syscon"];
    let test = device(fdt, "test", &compatible, map::SYSCON, syscon::LEN_BYTES, None)?;
    fdt.property_phandle(PHANDLE_TEST)?;
    fdt.end_node(test)?;

    let rtc =
        device(fdt, "rtc", &["google,goldfish-rtc"], map::RTC, rtc::LEN_BYTES, Some(map::RTC_INTERRUPT))?;
    fdt.end_node(rtc)?;

    let compatible = ["sifive,clint0", "riscv,clint0"];
    let clint = device(fdt, "clint", &compatible, map::ACLINT, aclint::LEN_BYTES, None)?;
    fdt.property_array_u32("interrupts-extended", &wires(harts, [MACHINE_SOFTWARE, MACHINE_TIMER]))?;
    fdt.end_node(clint)?;

    let compatible = ["sifive,plic-1.0.0", "riscv,plic0"];
    let plic = device(fdt, "plic", &compatible, map::PLIC, plic::LEN_BYTES, None)?;
    fdt.property_phandle(PHANDLE_PLIC)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 1)?;
    fdt.property_u32("#address-cells", 0)?;
    fdt.property_u32("riscv,ndev", plic::MAX_SOURCE)?;
    fdt.property_array_u32("interrupts-extended", &wires(harts, [MACHINE_EXTERNAL, SUPERVISOR_EXTERNAL]))?;
    fdt.end_node(plic)?;

    let interrupt = Some(map::UART_INTERRUPT);
    let serial = device(fdt, "serial", &["ns16550a"], map::UART, uart::LEN_BYTES, interrupt)?;
    fdt.property_u32("clock-frequency", UART_HZ)?;
    fdt.end_node(serial)?;

    let gpio = device(fdt, "gpio", &["sifive,gpio0"], map::GPIO, gpio::LEN_BYTES, Some(map::GPIO_INTERRUPT))?;
    fdt.property_phandle(PHANDLE_GPIO)?;
    fdt.property_null("gpio-controller")?;
    fdt.property_u32("#gpio-cells", 2)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 2)?;
    fdt.property_u32("ngpios", 1)?;
    fdt.end_node(gpio)?;

    if config.semantics.has_vmgenid() {
        let interrupt = Some(map::VMGENID_INTERRUPT);
        let compatible = ["microsoft,vmgenid"];
        let vmgenid = device(fdt, "vmgenid", &compatible, map::VMGENID, vmgenid::LEN_BYTES, interrupt)?;
        fdt.end_node(vmgenid)?;
    }

    for slot in 0..slots as u64 {
        let address = map::VIRTIO + slot * virtio::mmio::LEN_BYTES;
        let interrupt = Some(map::VIRTIO_INTERRUPT + slot as u32);
        let len_bytes = virtio::mmio::LEN_BYTES;
        let virtio = device(fdt, "virtio_mmio", &["virtio,mmio"], address, len_bytes, interrupt)?;
        fdt.end_node(virtio)?;
    }
    fdt.end_node(soc)
}

/// Begins the node of a device on the bus; the caller ends it.
fn device(
    fdt: &mut FdtWriter,
    name: &str,
    compatible: &[&str],
    address: u64,
    len_bytes: u64,
    interrupt: Option<u32>,
) -> FdtWriterResult<vm_fdt::FdtWriterNode> {
    let node = fdt.begin_node(&format!("{name}@{address:x}"))?;
    fdt.property_string_list("compatible", compatible.iter().map(|name| (*name).to_owned()).collect())?;
    fdt.property_array_u64("reg", &[address, len_bytes])?;
    if let Some(interrupt) = interrupt {
        fdt.property_u32("interrupt-parent", PHANDLE_PLIC)?;
        fdt.property_u32("interrupts", interrupt)?;
    }
    Ok(node)
}

/// Pairs of (hart's interrupt controller, cause), for each hart both causes.
fn wires(harts: usize, causes: [u32; 2]) -> Vec<u32> {
    let of_hart = |hart| causes.into_iter().flat_map(move |cause| [PHANDLE_FIRST_HART + hart, cause]);
    (0..harts as u32).flat_map(of_hart).collect()
}

fn power(fdt: &mut FdtWriter, name: &str, compatible: &str, value: u32) -> FdtWriterResult<()> {
    let node = fdt.begin_node(name)?;
    fdt.property_string("compatible", compatible)?;
    fdt.property_u32("regmap", PHANDLE_TEST)?;
    fdt.property_u32("offset", 0)?;
    fdt.property_u32("value", value)?;
    fdt.end_node(node)
}

fn power_button(fdt: &mut FdtWriter) -> FdtWriterResult<()> {
    const KEY_POWER: u32 = 116;
    let keys = fdt.begin_node("gpio-keys")?;
    fdt.property_string("compatible", "gpio-keys")?;
    let key = fdt.begin_node("power")?;
    fdt.property_string("label", "power")?;
    fdt.property_u32("linux,code", KEY_POWER)?;
    // The block, its pin, active high.
    fdt.property_array_u32("gpios", &[PHANDLE_GPIO, 0, 0])?;
    fdt.end_node(key)?;
    fdt.end_node(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::FDT_ROOM_BYTES;
    use crate::config::MAX_HARTS;
    use crate::semantics::Semantics;

    #[test]
    fn the_largest_tree_has_room() {
        let config =
            MachineConfig { harts: MAX_HARTS, bootargs: "x".repeat(2047), ..MachineConfig::default() };
        let tree = build(&config, 8, Some((1, 2)), &[7; SEED_BYTES]);
        assert!(tree.len() < FDT_ROOM_BYTES as usize / 2, "{} bytes", tree.len());
        assert_eq!(tree[..4], [0xd0, 0x0d, 0xfe, 0xed]);
    }

    #[test]
    fn it_names_what_linux_looks_for() {
        let config = MachineConfig { bootargs: "console=ttyS0".into(), ..MachineConfig::default() };
        let tree = build(&config, 2, None, &[7; SEED_BYTES]);
        let text = String::from_utf8_lossy(&tree);
        for needle in ["console=ttyS0", "/soc/serial@10000000", "virtio_mmio@10002000", "riscv,sv48"] {
            assert!(text.contains(needle), "{needle}");
        }
        assert!(text.contains("rv64imafdc_zicbom_zicboz_zicond_zicntr_zicsr_zifencei_zba_zbb_zbs_sstc"));
        assert!(!text.contains("virtio_mmio@10003000") && !text.contains("initrd"));
    }

    #[test]
    fn the_first_semantics_keep_their_tree() {
        let config = MachineConfig { semantics: Semantics::FIRST, ..MachineConfig::default() };
        let tree = build(&config, 0, None, &[7; SEED_BYTES]);
        let text = String::from_utf8_lossy(&tree);
        assert!(text.contains("rv64imafdc_zicbom_zicboz_zicntr_zicsr_zifencei_zba_zbb_zbs_sstc"));
        assert!(text.contains("riscv,sv39") && !text.contains("zicond"));
    }
}
