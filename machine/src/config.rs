//! What a machine is made of, as its owner says it.

use bytes::Bytes;
use log_format::SEMANTICS_VERSION;
use serde::{Deserialize, Serialize};

use crate::ram::PAGE_BYTES;
use crate::semantics::Semantics;

/// Most harts a machine has.
pub const MAX_HARTS: usize = 8;
/// Slots for virtio devices, as on QEMU's `virt` board.
pub const VIRTIO_SLOTS: usize = 8;
/// Least guest memory.
pub const MIN_MEMORY_BYTES: u64 = 1 << 20;
/// Most guest memory.
pub const MAX_MEMORY_BYTES: u64 = 1 << 40;
/// Longest kernel command line (Linux on RISC-V takes 2048).
const MAX_BOOTARGS_BYTES: usize = 2047;

/// The shape of a machine. Two machines with equal configurations, boot images and disks
/// have equal identities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MachineConfig {
    /// Which version of the semantics the machine has.
    #[serde(default = "Semantics::first", skip_serializing_if = "Semantics::is_first")]
    pub semantics: Semantics,
    /// Number of harts, 1 to [`MAX_HARTS`].
    pub harts: usize,
    /// Guest memory in bytes, a multiple of 4096.
    pub memory_bytes: u64,
    /// Guest time per instruction in picoseconds. A host that executes faster waits for real time, one
    /// that executes slower logs clock advances: by default, no host is fast enough to wait.
    pub instruction_ps: u64,
    /// Instructions a hart executes before the next one has its turn.
    pub slice_instructions: u64,
    /// Network devices, port 0 first.
    pub nets: Vec<NetConfig>,
    /// Disks, in the order of the block stores given beside.
    pub disks: Vec<DiskConfig>,
    /// Whether there is an entropy device.
    pub entropy: bool,
    /// The kernel command line.
    pub bootargs: String,
    /// What the real-time clock says at power-on, until an `Event::WallClock` says better:
    /// nanoseconds since 1970-01-01 UTC.
    pub rtc_start_unix_ns: u64,
}

impl Default for MachineConfig {
    fn default() -> MachineConfig {
        MachineConfig {
            semantics: Semantics::NEWEST,
            harts: 1,
            memory_bytes: 256 << 20,
            instruction_ps: 250,
            slice_instructions: 100_000,
            nets: Vec::new(),
            disks: Vec::new(),
            entropy: true,
            bootargs: String::new(),
            rtc_start_unix_ns: 1_767_225_600_000_000_000,
        }
    }
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Its Ethernet address.
    pub mac: [u8; 6],
}

/// A disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskConfig {
    /// Serial number that the guest can ask for, at most 20 bytes of printable ASCII.
    pub serial: String,
    /// Whether the guest may only read.
    pub read_only: bool,
}

/// What a machine boots.
#[derive(Debug, Clone)]
pub struct BootImages {
    /// How `kernel` is started.
    pub kind: BootKind,
    /// A Linux `Image` or an ELF file.
    pub kernel: Bytes,
    /// Initial ramdisk.
    pub initrd: Option<Bytes>,
    /// M-mode firmware, a raw image or an ELF file: with [`BootKind::Firmware`] only.
    pub firmware: Option<Bytes>,
}

/// How the harts start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootKind {
    /// The first hart starts the kernel in S-mode over the built-in SBI.
    Supervisor,
    /// All harts start the firmware in M-mode; the kernel lies where the firmware looks for
    /// its next stage.
    Firmware,
    /// All harts start the kernel, a bare-metal ELF file, in M-mode. It may end through its
    /// `tohost` symbol.
    Bare,
}

impl BootImages {
    /// A kernel over the built-in SBI.
    pub fn supervisor(kernel: Bytes, initrd: Option<Bytes>) -> BootImages {
        BootImages { kind: BootKind::Supervisor, kernel, initrd, firmware: None }
    }

    /// A kernel that `firmware` starts.
    pub fn firmware(firmware: Bytes, kernel: Bytes, initrd: Option<Bytes>) -> BootImages {
        BootImages { kind: BootKind::Firmware, kernel, initrd, firmware: Some(firmware) }
    }

    /// A bare-metal M-mode ELF file.
    pub fn bare(elf: Bytes) -> BootImages {
        BootImages { kind: BootKind::Bare, kernel: elf, initrd: None, firmware: None }
    }

    /// Hash of all images and of how they are started.
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(match self.kind {
            BootKind::Supervisor => b"supervisor",
            BootKind::Firmware => b"firmware  ",
            BootKind::Bare => b"bare      ",
        });
        for image in [Some(&self.kernel), self.initrd.as_ref(), self.firmware.as_ref()] {
            let (present, bytes) = image.map_or((0, &[][..]), |image| (1, &image[..]));
            hasher.update(&[present]);
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
        *hasher.finalize().as_bytes()
    }
}

/// Why no machine can be made of a configuration and images. Each message is one line that
/// says the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Semantics of another program version.
    #[error(
        "this program knows machine semantics 1 to {SEMANTICS_VERSION}, not {0}; use the version that has them"
    )]
    Semantics(u32),
    /// Wrong number of harts.
    #[error("a machine has 1 to {MAX_HARTS} harts, not {0}")]
    Harts(usize),
    /// Wrong memory size.
    #[error(
        "guest memory must be a multiple of 4096 between {MIN_MEMORY_BYTES} and {MAX_MEMORY_BYTES} bytes, not {0}"
    )]
    Memory(u64),
    /// The host has no room for the memory.
    #[error(
        "this host has no room for {bytes} bytes of guest memory ({message}); give the machine less with --memory"
    )]
    HostMemory {
        /// How much was asked for.
        bytes: u64,
        /// What the host said.
        message: String,
    },
    /// Guest time would stand still or fly.
    #[error("an instruction takes 1 to 1000000 picoseconds of guest time, not {0}")]
    InstructionTime(u64),
    /// Slices too short or too long.
    #[error("a hart's slice is 100 to 1000000 instructions, not {0}")]
    Slice(u64),
    /// More devices than slots.
    #[error(
        "{found} virtio devices do not fit the board's {VIRTIO_SLOTS} slots; take away a disk or a network"
    )]
    TooManyDevices {
        /// Networks, disks and the entropy device together.
        found: usize,
    },
    /// A multicast or null Ethernet address.
    #[error(
        "network device {port} has no unicast Ethernet address: {mac:02x?}; take one that begins with 02"
    )]
    Mac {
        /// Which device.
        port: usize,
        /// Its address.
        mac: [u8; 6],
    },
    /// A serial number the guest cannot be given.
    #[error("disk {disk}: the serial must be at most 20 characters of printable ASCII, not {serial:?}")]
    Serial {
        /// Which disk.
        disk: usize,
        /// Its serial number.
        serial: String,
    },
    /// Block stores and configured disks differ in number.
    #[error("the configuration names {configured} disks, {given} were opened")]
    DiskCount {
        /// In the configuration.
        configured: usize,
        /// Block stores given.
        given: usize,
    },
    /// A disk without a sector.
    #[error("disk {disk} is empty; give it an image of at least 512 bytes")]
    EmptyDisk {
        /// Which disk.
        disk: usize,
    },
    /// A block store that cannot go back to its base image.
    #[error("disk {disk} cannot be opened as its base image: {message}")]
    DiskOpen {
        /// Which disk.
        disk: usize,
        /// What the host said.
        message: String,
    },
    /// Command line too long, or with a NUL.
    #[error("the kernel command line must be at most {MAX_BOOTARGS_BYTES} bytes without NUL, it has {0}")]
    Bootargs(usize),
    /// An image that cannot be booted.
    #[error(transparent)]
    Boot(#[from] crate::boot::BootError),
}

impl MachineConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that no machine can have.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let version = self.semantics.version();
        if Semantics::new(version).is_none() {
            return Err(ConfigError::Semantics(version));
        }
        if !(1..=MAX_HARTS).contains(&self.harts) {
            return Err(ConfigError::Harts(self.harts));
        }
        if !(MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&self.memory_bytes)
            || !self.memory_bytes.is_multiple_of(PAGE_BYTES as u64)
        {
            return Err(ConfigError::Memory(self.memory_bytes));
        }
        if !(1..=1_000_000).contains(&self.instruction_ps) {
            return Err(ConfigError::InstructionTime(self.instruction_ps));
        }
        if !(100..=1_000_000).contains(&self.slice_instructions) {
            return Err(ConfigError::Slice(self.slice_instructions));
        }
        if self.bootargs.len() > MAX_BOOTARGS_BYTES || self.bootargs.contains('\0') {
            return Err(ConfigError::Bootargs(self.bootargs.len()));
        }
        self.validate_devices()
    }

    fn validate_devices(&self) -> Result<(), ConfigError> {
        let found = self.nets.len() + self.disks.len() + usize::from(self.entropy);
        if found > VIRTIO_SLOTS {
            return Err(ConfigError::TooManyDevices { found });
        }
        for (port, net) in self.nets.iter().enumerate() {
            if net.mac[0] & 1 != 0 || net.mac == [0; 6] {
                return Err(ConfigError::Mac { port, mac: net.mac });
            }
        }
        for (disk, config) in self.disks.iter().enumerate() {
            let serial = &config.serial;
            if serial.len() > 20 || !serial.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
                return Err(ConfigError::Serial { disk, serial: serial.clone() });
            }
        }
        Ok(())
    }

    /// Hash of the configuration.
    pub fn hash(&self) -> [u8; 32] {
        let bytes = rmp_serde::to_vec_named(self).expect("a configuration always encodes");
        *blake3::hash(&bytes).as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wrong_field_has_its_own_error() {
        let good = MachineConfig::default();
        assert_eq!(good.validate(), Ok(()));
        let with = |change: &dyn Fn(&mut MachineConfig)| {
            let mut config = good.clone();
            change(&mut config);
            config.validate().unwrap_err()
        };
        assert_eq!(with(&|c| c.harts = 9), ConfigError::Harts(9));
        assert_eq!(with(&|c| c.memory_bytes += 1), ConfigError::Memory(good.memory_bytes + 1));
        assert_eq!(with(&|c| c.instruction_ps = 0), ConfigError::InstructionTime(0));
        assert_eq!(with(&|c| c.slice_instructions = 1), ConfigError::Slice(1));
        assert_eq!(with(&|c| c.bootargs = "x".repeat(3000)), ConfigError::Bootargs(3000));
        let multicast = NetConfig { mac: [1, 0, 0, 0, 0, 0] };
        assert!(matches!(with(&|c| c.nets = vec![multicast.clone()]), ConfigError::Mac { port: 0, .. }));
        let nine = vec![DiskConfig::default(); 8];
        assert_eq!(with(&|c| c.disks = nine.clone()), ConfigError::TooManyDevices { found: 9 });
        let long = DiskConfig { serial: "x".repeat(21), read_only: false };
        assert!(matches!(with(&|c| c.disks = vec![long.clone()]), ConfigError::Serial { disk: 0, .. }));
    }

    #[test]
    fn a_configuration_without_semantics_has_the_first() {
        let bytes = |config: &MachineConfig| rmp_serde::to_vec_named(config).unwrap();
        let empty_map = [0x80];
        let first: MachineConfig = rmp_serde::from_slice(&empty_map).unwrap();
        assert_eq!(first.semantics, Semantics::FIRST);
        let as_written_then = !bytes(&first).windows(9).any(|name| name == b"semantics");
        assert!(as_written_then, "or its hash, and with it the machine's identity, would be another");
        let newest = MachineConfig::default();
        assert_eq!(rmp_serde::from_slice::<MachineConfig>(&bytes(&newest)).unwrap(), newest);
        let mut unknown = bytes(&newest);
        let at = unknown.windows(9).position(|name| name == b"semantics").unwrap() + 9;
        unknown[at] = 99;
        let unknown: MachineConfig = rmp_serde::from_slice(&unknown).unwrap();
        assert_eq!(unknown.validate(), Err(ConfigError::Semantics(99)));
    }

    #[test]
    fn hashes_tell_configurations_and_images_apart() {
        let config = MachineConfig::default();
        let other = MachineConfig { bootargs: "x".into(), ..config.clone() };
        assert_ne!(config.hash(), other.hash());
        let kernel = Bytes::from_static(b"kernel");
        let plain = BootImages::supervisor(kernel.clone(), None);
        let with_empty_initrd = BootImages::supervisor(kernel.clone(), Some(Bytes::new()));
        assert_ne!(plain.hash(), with_empty_initrd.hash());
        assert_ne!(plain.hash(), BootImages::bare(kernel).hash());
    }
}
