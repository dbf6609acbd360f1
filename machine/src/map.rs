//! The physical memory map and interrupt numbers: QEMU's `virt` board, as far as a guest
//! that boots on both can see it.

/// `sifive,test1`: power off and reset.
pub const SYSCON: u64 = 0x10_0000;
/// The goldfish real-time clock.
pub const RTC: u64 = 0x10_1000;
/// The ACLINT.
pub const ACLINT: u64 = 0x200_0000;
/// The interrupt controller.
pub const PLIC: u64 = 0xc00_0000;
/// The serial port.
pub const UART: u64 = 0x1000_0000;
/// The first virtio slot; the others follow.
pub const VIRTIO: u64 = 0x1000_1000;

/// The GPIO block with the power button; QEMU's board has nothing there.
pub const GPIO: u64 = 0x1006_0000;

/// The generation of the machine; QEMU's board has nothing there either.
pub const VMGENID: u64 = 0x1006_1000;

/// Interrupt of the first virtio slot; the others follow.
pub const VIRTIO_INTERRUPT: u32 = 1;
/// Interrupt of the serial port.
pub const UART_INTERRUPT: u32 = 10;
/// Interrupt of the real-time clock.
pub const RTC_INTERRUPT: u32 = 11;
/// Interrupt of the power button.
pub const GPIO_INTERRUPT: u32 = 12;
/// Interrupt of a new generation.
pub const VMGENID_INTERRUPT: u32 = 13;
