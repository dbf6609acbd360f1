//! What lies where in guest memory when the harts start.
//!
//! ```text
//!   0x8000_0000                                                     end of RAM
//!   | firmware | kernel ...            | initial ramdisk | device tree (64 KiB) |
//! ```
//!
//! A [`BootPlan`] is made once, with every error of the images, so that a reset can load it again at
//! any time. That fails only where a driver keeps the images and cannot read them back.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use elf::ElfBytes;
use elf::abi::{EM_RISCV, PT_LOAD};
use elf::endian::LittleEndian;

use crate::config::{BootImages, BootKind};
use crate::ram::{PAGE_BYTES, RAM_BASE, Ram};

/// Room for the device tree and what a firmware is handed beside it.
pub const FDT_ROOM_BYTES: u64 = 64 << 10;
/// Where a firmware finds its next stage, relative to RAM.
const NEXT_STAGE_OFFSET: u64 = 0x20_0000;
/// Offset of OpenSBI's `fw_dynamic_info` in the device tree's room.
const DYNAMIC_INFO_OFFSET: u64 = FDT_ROOM_BYTES - 0x1000;

const IMAGE_HEADER_BYTES: usize = 64;
const IMAGE_MAGIC: &[u8; 4] = b"RSC\x05";

/// Why an image cannot be booted. Each message is one line that says the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootError {
    /// Neither a Linux image nor an ELF file.
    #[error(
        "the kernel is neither a RISC-V Linux Image nor an ELF file (it begins with {found:02x?}); give an uncompressed `Image` or an ELF file for riscv64"
    )]
    NotAKernel {
        /// Its first bytes.
        found: Vec<u8>,
    },
    /// Compressed.
    #[error("the kernel is compressed ({0}); unpack it first, for instance with `gunzip` or `unzstd`")]
    Compressed(&'static str),
    /// An ELF file of another kind.
    #[error("{what} is an ELF file that cannot be booted: {reason}; give one for riscv64, statically linked")]
    Elf {
        /// "the kernel" or "the firmware".
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// No room.
    #[error(
        "{what} needs {start:#x} to {end:#x}, guest memory free for it is {RAM_BASE:#x} to {limit:#x}; give the machine more memory"
    )]
    DoesNotFit {
        /// What does not fit.
        what: &'static str,
        /// First address.
        start: u64,
        /// Address after the last.
        end: u64,
        /// First address that is not free.
        limit: u64,
    },
    /// Firmware and kernel overlap, or segments of an ELF file do.
    #[error("{what} overlaps what is loaded below {0:#x}", start)]
    Overlap {
        /// What overlaps.
        what: &'static str,
        /// Where.
        start: u64,
    },
    /// Firmware boot without firmware, or the other way round.
    #[error("a firmware image is needed for a boot through firmware, and for no other boot")]
    Firmware,
}

/// Where everything lies, and where the harts start.
#[derive(Debug, Clone)]
pub struct BootPlan {
    kind: BootKind,
    pieces: Vec<Piece>,
    /// First instruction of each hart that starts.
    pub entry: u64,
    /// The kernel that a firmware starts.
    next_entry: u64,
    /// Where the device tree lies.
    pub fdt_address: u64,
    /// First address of the initial ramdisk, and the address after its last.
    pub initrd: Option<(u64, u64)>,
    /// Where a bare-metal program writes to end.
    pub tohost: Option<ToHost>,
}

/// The host-target interface of a bare-metal program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToHost {
    /// Address of `tohost`.
    pub tohost: u64,
    /// Address of `fromhost`, if the program has one.
    pub fromhost: Option<u64>,
}

/// Bytes at an address, with zeros after them.
#[derive(Debug, Clone)]
struct Piece {
    address: u64,
    len: u64,
    zeros: u64,
    /// Shared with an [`ImageKeeper`], which changes where they are and nothing else.
    bytes: Arc<Mutex<PieceBytes>>,
}

/// A boot image where a driver keeps it: not in memory, of which it would take its size from the
/// host for good, for a reset that may never come.
pub trait KeptImage: fmt::Debug + Send + Sync {
    /// Fills `into` with the bytes from `at` on, as they were when they were handed over.
    ///
    /// # Errors
    /// When the host cannot read them. The machine stops then, as it does for a disk.
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()>;
}

/// Hands the images of a plan to the driver, at any time and on any thread. What is loaded stays the
/// same.
#[derive(Debug)]
pub struct ImageKeeper(Vec<Arc<Mutex<PieceBytes>>>);

impl ImageKeeper {
    /// Has each large image kept by `keep`, and gives its memory back.
    ///
    /// # Errors
    /// The first of `keep`. The images that it did not take stay in memory.
    pub fn keep<K: KeptImage + 'static>(
        self,
        mut keep: impl FnMut(&[u8]) -> io::Result<K>,
    ) -> io::Result<()> {
        for bytes in self.0 {
            let held = match &*locked(&bytes) {
                PieceBytes::Held(held) if held.len() >= KEEP_FROM_BYTES => held.clone(),
                PieceBytes::Held(_) | PieceBytes::Kept(_) => continue,
            };
            let kept = keep(&held)?;
            *locked(&bytes) = PieceBytes::Kept(Box::new(kept));
        }
        Ok(())
    }
}

fn locked(bytes: &Mutex<PieceBytes>) -> MutexGuard<'_, PieceBytes> {
    // Both forms are whole at any moment.
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a reset must be able to load again.
#[derive(Debug)]
enum PieceBytes {
    /// In memory.
    Held(Bytes),
    /// By the driver.
    Kept(Box<dyn KeptImage>),
}

/// Images smaller than this stay in memory.
const KEEP_FROM_BYTES: usize = 1 << 20;
/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;

impl Piece {
    fn new(address: u64, bytes: Bytes, zeros: u64) -> Piece {
        let len = bytes.len() as u64;
        Piece { address, len, zeros, bytes: Arc::new(Mutex::new(PieceBytes::Held(bytes))) }
    }

    fn end(&self) -> Option<u64> {
        self.address.checked_add(self.len)?.checked_add(self.zeros)
    }

    fn load(&self, ram: &mut Ram) -> io::Result<()> {
        match &*locked(&self.bytes) {
            PieceBytes::Held(bytes) => ram.write(self.address, bytes).expect("the plan lies in RAM"),
            PieceBytes::Kept(kept) => {
                let mut buffer = vec![0; READ_BYTES];
                let mut done = 0;
                while done < self.len {
                    let chunk = &mut buffer[..READ_BYTES.min((self.len - done) as usize)];
                    kept.read(done, chunk)?;
                    ram.write(self.address + done, chunk).expect("the plan lies in RAM");
                    done += chunk.len() as u64;
                }
            }
        }
        zero(ram, self.address + self.len, self.zeros);
        Ok(())
    }
}

impl BootPlan {
    /// Finds a place for everything.
    ///
    /// # Errors
    /// When an image is not one, or does not fit.
    pub fn new(images: &BootImages, memory_bytes: u64) -> Result<BootPlan, BootError> {
        if images.firmware.is_some() != (images.kind == BootKind::Firmware) {
            return Err(BootError::Firmware);
        }
        let fdt_address = RAM_BASE + memory_bytes - FDT_ROOM_BYTES;
        let kernel = Program::parse("the kernel", &images.kernel, images.kind)?;
        let mut plan = BootPlan {
            kind: images.kind,
            pieces: Vec::new(),
            entry: kernel.entry,
            next_entry: kernel.entry,
            fdt_address,
            initrd: None,
            tohost: kernel.tohost.filter(|_| images.kind == BootKind::Bare),
        };
        if let Some(firmware) = &images.firmware {
            let firmware = Program::parse_firmware(firmware)?;
            plan.entry = firmware.entry;
            plan.place("the firmware", firmware.pieces)?;
        }
        plan.place("the kernel", kernel.pieces)?;
        if let Some(initrd) = &images.initrd {
            plan.place_initrd(initrd)?;
        }
        Ok(plan)
    }

    /// Has the images that a reset loads again kept elsewhere.
    pub fn keeper(&self) -> ImageKeeper {
        ImageKeeper(self.pieces.iter().map(|piece| Arc::clone(&piece.bytes)).collect())
    }

    /// Puts everything into memory.
    ///
    /// # Errors
    /// When images that are kept elsewhere cannot be read.
    pub fn load(&self, ram: &mut Ram, fdt: &[u8]) -> io::Result<()> {
        self.pieces.iter().try_for_each(|piece| piece.load(ram))?;
        assert!(fdt.len() as u64 <= DYNAMIC_INFO_OFFSET, "the device tree has its room");
        ram.write(self.fdt_address, fdt).expect("the plan lies in RAM");
        if self.kind == BootKind::Firmware {
            // Magic, version, next stage, its mode (S), options, boot hart.
            let info = [0x4942_534f, 2, self.next_entry, 1, 0, 0].map(u64::to_le_bytes).concat();
            ram.write(self.dynamic_info_address(), &info).expect("the plan lies in RAM");
        }
        Ok(())
    }

    /// Address of the `fw_dynamic_info` that a firmware gets in `a2`.
    pub fn dynamic_info_address(&self) -> u64 {
        self.fdt_address + DYNAMIC_INFO_OFFSET
    }

    fn place(&mut self, what: &'static str, pieces: Vec<Piece>) -> Result<(), BootError> {
        for piece in pieces {
            let (start, end) = (piece.address, piece.end().unwrap_or(u64::MAX));
            if start < RAM_BASE || end > self.fdt_address {
                return Err(BootError::DoesNotFit { what, start, end, limit: self.fdt_address });
            }
            if self.pieces.iter().any(|other| start < other.end().unwrap_or(u64::MAX) && other.address < end)
            {
                return Err(BootError::Overlap { what, start });
            }
            self.pieces.push(piece);
        }
        Ok(())
    }

    fn place_initrd(&mut self, initrd: &Bytes) -> Result<(), BootError> {
        let what = "the initial ramdisk";
        let len = initrd.len() as u64;
        let page = PAGE_BYTES as u64;
        let address = self.fdt_address.saturating_sub(len) / page * page;
        let lowest = self.pieces.iter().filter_map(Piece::end).max().unwrap_or(RAM_BASE);
        if address < lowest {
            return Err(BootError::DoesNotFit { what, start: address, end: address + len, limit: lowest });
        }
        self.initrd = Some((address, address + len));
        self.place(what, vec![Piece::new(address, initrd.clone(), 0)])
    }
}

/// Makes `len` bytes zero, without touching pages that are zero already.
fn zero(ram: &mut Ram, address: u64, len: u64) {
    let (mut at, end) = (address, address + len);
    while at < end {
        let next = ((at / PAGE_BYTES as u64 + 1) * PAGE_BYTES as u64).min(end);
        let len = (next - at) as usize;
        let bytes = ram.slice(at, len).expect("the plan lies in RAM");
        if bytes.iter().any(|byte| *byte != 0) {
            ram.write(at, &[0; PAGE_BYTES][..len]).expect("the plan lies in RAM");
        }
        at = next;
    }
}

/// An image with its place in memory.
struct Program {
    pieces: Vec<Piece>,
    entry: u64,
    tohost: Option<ToHost>,
}

impl Program {
    fn parse(what: &'static str, image: &Bytes, kind: BootKind) -> Result<Program, BootError> {
        if image.starts_with(b"\x7fELF") {
            return Program::parse_elf(what, image);
        }
        if kind != BootKind::Bare && image.get(56..60) == Some(IMAGE_MAGIC) {
            return Ok(Program::parse_linux(image));
        }
        for (magic, name) in [
            (&b"\x1f\x8b"[..], "gzip"),
            (b"\x28\xb5\x2f\xfd", "zstd"),
            (b"BZh", "bzip2"),
            (b"\xfd7zXZ", "xz"),
            (b"\x02\x21\x4c\x18", "lz4"),
        ] {
            if image.starts_with(magic) {
                return Err(BootError::Compressed(name));
            }
        }
        if image.get(4..8) == Some(b"zimg") {
            return Err(BootError::Compressed("EFI zboot"));
        }
        Err(BootError::NotAKernel { found: image[..image.len().min(8)].to_vec() })
    }

    /// `Documentation/arch/riscv/boot-image-header.rst`. The magic has been seen.
    fn parse_linux(image: &Bytes) -> Program {
        let word = |offset: usize| {
            let bytes = image[offset..].first_chunk().copied().unwrap_or_default();
            u64::from_le_bytes(bytes)
        };
        assert!(image.len() >= IMAGE_HEADER_BYTES - 4, "the magic lies at its end");
        let (text_offset, image_bytes) = (word(8), word(16));
        let address = RAM_BASE.saturating_add(text_offset);
        let zeros = image_bytes.saturating_sub(image.len() as u64);
        let piece = Piece::new(address, image.clone(), zeros);
        Program { pieces: vec![piece], entry: address, tohost: None }
    }

    fn parse_firmware(image: &Bytes) -> Result<Program, BootError> {
        if image.starts_with(b"\x7fELF") {
            return Program::parse_elf("the firmware", image);
        }
        // A raw image may use what lies after it, up to its next stage.
        let zeros = NEXT_STAGE_OFFSET.saturating_sub(image.len() as u64);
        let piece = Piece::new(RAM_BASE, image.clone(), zeros);
        Ok(Program { pieces: vec![piece], entry: RAM_BASE, tohost: None })
    }

    fn parse_elf(what: &'static str, image: &Bytes) -> Result<Program, BootError> {
        let error = |reason: String| BootError::Elf { what, reason };
        let file = ElfBytes::<LittleEndian>::minimal_parse(image)
            .map_err(|cause| error(format!("its header does not parse ({cause})")))?;
        if file.ehdr.class != elf::file::Class::ELF64 || file.ehdr.e_machine != EM_RISCV {
            return Err(error(format!(
                "it is for machine {} ({:?}), not for riscv64",
                file.ehdr.e_machine, file.ehdr.class
            )));
        }
        let segments = file.segments().ok_or_else(|| error("it has no program headers".into()))?;
        let mut program = Program { pieces: Vec::new(), entry: file.ehdr.e_entry, tohost: None };
        let mut entry_found = false;
        for segment in segments.iter().filter(|segment| segment.p_type == PT_LOAD && segment.p_memsz > 0) {
            let start = usize::try_from(segment.p_offset).ok();
            let end =
                segment.p_offset.checked_add(segment.p_filesz).and_then(|end| usize::try_from(end).ok());
            let bytes = match (start, end) {
                (Some(start), Some(end)) if end <= image.len() => image.slice(start..end),
                _ => return Err(error("a segment lies beyond its end; it is cut off".into())),
            };
            let zeros = segment.p_memsz.saturating_sub(segment.p_filesz);
            if let Some(within) = file.ehdr.e_entry.checked_sub(segment.p_vaddr)
                && within < segment.p_memsz
                && !entry_found
            {
                program.entry = segment.p_paddr.wrapping_add(within);
                entry_found = true;
            }
            program.pieces.push(Piece::new(segment.p_paddr, bytes, zeros));
        }
        if !entry_found {
            return Err(error(format!("its entry {:#x} lies in no segment", file.ehdr.e_entry)));
        }
        program.tohost = find_tohost(&file);
        Ok(program)
    }
}

/// Whether these bytes are a bare-metal program: an ELF file with a `tohost` symbol.
pub fn is_bare(kernel: &[u8]) -> bool {
    let [tohost] = symbol_addresses(kernel, ["tohost"]);
    tohost.is_some()
}

/// The addresses of an ELF file's symbols, of those that it defines.
pub(crate) fn symbol_addresses<const N: usize>(elf: &[u8], wanted: [&str; N]) -> [Option<u64>; N] {
    let file = ElfBytes::<LittleEndian>::minimal_parse(elf).ok();
    file.map_or([None; N], |file| addresses_in(&file, wanted))
}

fn addresses_in<const N: usize>(file: &ElfBytes<'_, LittleEndian>, wanted: [&str; N]) -> [Option<u64>; N] {
    let Ok(Some((symbols, names))) = file.symbol_table() else { return [None; N] };
    wanted.map(|wanted| {
        let is_it = |symbol: &elf::symbol::Symbol| {
            !symbol.is_undefined() && names.get(symbol.st_name as usize).ok() == Some(wanted)
        };
        symbols.iter().find(is_it).map(|symbol| symbol.st_value)
    })
}

fn find_tohost(file: &ElfBytes<'_, LittleEndian>) -> Option<ToHost> {
    let [tohost, fromhost] = addresses_in(file, ["tohost", "fromhost"]);
    Some(ToHost { tohost: tohost?, fromhost })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use log_format::{Control, Event};

    use super::*;
    use crate::{Exit, HostPart, Machine, MachineConfig, RiscvMachine};

    const MEMORY: u64 = 16 << 20;

    pub(super) fn linux_image(len: usize, image_bytes: u64) -> Bytes {
        let mut image = vec![0x13; len];
        image[8..16].copy_from_slice(&0x20_0000u64.to_le_bytes());
        image[16..24].copy_from_slice(&image_bytes.to_le_bytes());
        image[56..60].copy_from_slice(IMAGE_MAGIC);
        image.into()
    }

    fn plan(images: &BootImages) -> Result<BootPlan, BootError> {
        BootPlan::new(images, MEMORY)
    }

    #[test]
    fn a_linux_image_and_its_ramdisk_find_their_places() {
        let initrd = Bytes::from(vec![7; 5000]);
        let images = BootImages::supervisor(linux_image(0x1234, 0x3000), Some(initrd));
        let plan = plan(&images).unwrap();
        assert_eq!(plan.entry, 0x8020_0000);
        let (start, end) = plan.initrd.unwrap();
        assert_eq!((start % 4096, end - start), (0, 5000));
        assert!(end <= plan.fdt_address);
        let mut ram = Ram::new(MEMORY / 4096);
        ram.write(0x8020_2000, &[9]).unwrap();
        plan.load(&mut ram, b"tree").unwrap();
        assert_eq!(ram.slice(0x8020_1233, 2).unwrap(), [0x13, 0]);
        assert_eq!(ram.slice(0x8020_2000, 1).unwrap(), [0]);
        assert_eq!(ram.slice(end - 1, 2).unwrap(), [7, 0]);
        assert_eq!(ram.slice(plan.fdt_address, 4).unwrap(), b"tree");
    }

    /// Bytes that a driver keeps, and may lose.
    #[derive(Debug)]
    struct Kept(Vec<u8>, Arc<AtomicBool>);

    impl KeptImage for Kept {
        fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
            if self.1.load(Ordering::Relaxed) {
                return Err(io::Error::other("medium error"));
            }
            into.copy_from_slice(&self.0[at as usize..][..into.len()]);
            Ok(())
        }
    }

    #[test]
    fn a_reset_loads_kept_images_and_stops_where_they_are_lost() {
        let kernel = linux_image(KEEP_FROM_BYTES + 12_345, 0);
        let images = BootImages::supervisor(kernel.clone(), Some(Bytes::from_static(b"small")));
        let machine = || RiscvMachine::new(MachineConfig::default(), &images, Vec::new()).unwrap();
        let (mut held, mut kept) = (machine(), machine());
        let lost = Arc::new(AtomicBool::new(false));
        let mut sizes = Vec::new();
        let keep = |bytes: &[u8]| {
            sizes.push(bytes.len());
            Ok(Kept(bytes.to_vec(), Arc::clone(&lost)))
        };
        kept.image_keeper().keep(keep).unwrap();
        assert_eq!(sizes, [kernel.len()], "what is small stays");
        for boot in 1..3 {
            for machine in [&mut held, &mut kept] {
                assert_eq!(machine.run(boot * 1000), Exit::Limit);
            }
            assert_eq!(held.digest(), kept.digest());
            held.inject(&Event::Control(Control::Reset));
            kept.inject(&Event::Control(Control::Reset));
        }
        lost.store(true, Ordering::Relaxed);
        let at = kept.moment();
        assert_eq!(kept.run(9000), Exit::HostFault { part: HostPart::BootImages });
        assert_eq!((kept.moment(), kept.host_fault()), (at, Some("medium error")));
        assert_eq!(held.run(9000), Exit::Limit);
    }

    #[test]
    fn images_that_are_not_taken_stay() {
        let kernel = linux_image(KEEP_FROM_BYTES, 0);
        let plan = plan(&BootImages::supervisor(kernel.clone(), None)).unwrap();
        let refused = plan.keeper().keep(|_| Err::<Kept, _>(io::Error::other("disk full")));
        assert_eq!(refused.unwrap_err().to_string(), "disk full");
        let mut ram = Ram::new(MEMORY / 4096);
        plan.load(&mut ram, b"tree").unwrap();
        assert_eq!(ram.slice(0x8020_0000, kernel.len()).unwrap(), &kernel[..]);
    }

    #[test]
    fn each_wrong_image_has_its_own_error() {
        let refused = |images: &BootImages| plan(images).unwrap_err();
        let kernel = |bytes: &'static [u8]| BootImages::supervisor(Bytes::from_static(bytes), None);
        assert!(matches!(refused(&kernel(b"hello")), BootError::NotAKernel { .. }));
        assert!(matches!(refused(&kernel(b"")), BootError::NotAKernel { .. }));
        assert_eq!(refused(&kernel(b"\x1f\x8b\x08")), BootError::Compressed("gzip"));
        assert_eq!(refused(&kernel(b"MZ\0\0zimg")), BootError::Compressed("EFI zboot"));
        assert!(matches!(refused(&kernel(b"\x7fELF")), BootError::Elf { .. }));
        let big = BootImages::supervisor(linux_image(100, 1 << 40), None);
        assert!(matches!(refused(&big), BootError::DoesNotFit { what: "the kernel", .. }));
        let initrd = Some(Bytes::from(vec![0; MEMORY as usize - 0x20_0000]));
        let full = BootImages::supervisor(linux_image(100, 4096), initrd);
        assert!(matches!(refused(&full), BootError::DoesNotFit { what: "the initial ramdisk", .. }));
        let none = BootImages { kind: BootKind::Firmware, ..kernel(b"") };
        assert_eq!(refused(&none), BootError::Firmware);
        let large = Bytes::from(vec![0; 0x20_0001]);
        let overlapping = BootImages::firmware(large, linux_image(100, 4096), None);
        assert!(matches!(refused(&overlapping), BootError::Overlap { what: "the kernel", .. }));
    }

    #[test]
    fn a_firmware_is_told_its_next_stage() {
        let images = BootImages::firmware(Bytes::from_static(b"\x6f\0\0\0"), linux_image(100, 4096), None);
        let plan = plan(&images).unwrap();
        assert_eq!(plan.entry, RAM_BASE);
        let mut ram = Ram::new(MEMORY / 4096);
        plan.load(&mut ram, b"tree").unwrap();
        let info = ram.slice(plan.dynamic_info_address(), 24).unwrap();
        assert_eq!(info[..8], 0x4942_534fu64.to_le_bytes());
        assert_eq!(info[16..24], 0x8020_0000u64.to_le_bytes());
    }

    #[test]
    fn damaged_elf_files_are_refused_without_panic() {
        // A header, one segment of 4 bytes at 0x8000_0000, in 124 bytes.
        let mut file = Vec::new();
        file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        file.extend([2, 0, 243, 0, 1, 0, 0, 0]);
        file.extend(0x8000_0000u64.to_le_bytes());
        file.extend(64u64.to_le_bytes());
        file.extend([0; 12]);
        file.extend([64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
        file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
        for word in [120u64, 0x8000_0000, 0x8000_0000, 4, 8, 4] {
            file.extend(word.to_le_bytes());
        }
        file.extend([0x6f, 0, 0, 0]);
        let whole = plan(&BootImages::bare(Bytes::from(file.clone()))).unwrap();
        assert_eq!((whole.entry, whole.pieces.len(), whole.pieces[0].zeros), (0x8000_0000, 1, 4));
        for len in 0..file.len() {
            assert!(plan(&BootImages::bare(Bytes::copy_from_slice(&file[..len]))).is_err(), "{len} bytes");
        }
        for position in 0..file.len() * 8 {
            let mut flipped = file.clone();
            flipped[position / 8] ^= 1 << (position % 8);
            let _ = plan(&BootImages::bare(flipped.into()));
        }
    }
}
