//! The memory that translated code lies in.
//!
//! It is one anonymous file mapped twice: once writable, once executable. No address is both, and
//! translated code never learns where the writable mapping is.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::ftruncate;

/// Memory for host code. Places in it are offsets from its start.
pub(super) struct CodeMemory {
    writable: NonNull<c_void>,
    executable: NonNull<c_void>,
    bytes: NonZeroUsize,
}

// SAFETY: the two mappings belong to this value alone.
unsafe impl Send for CodeMemory {}

impl CodeMemory {
    /// Memory of `bytes` bytes; the host gives pages only as they are written to.
    ///
    /// # Errors
    /// When the host maps no anonymous file executable.
    pub fn new(bytes: NonZeroUsize) -> Result<CodeMemory, Errno> {
        let file = memfd_create("translated", MFdFlags::MFD_CLOEXEC)?;
        let len = i64::try_from(bytes.get()).map_err(|_| Errno::EOVERFLOW)?;
        ftruncate(&file, len)?;
        let writable = map(&file, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        match map(&file, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_EXEC) {
            Ok(executable) => Ok(CodeMemory { writable, executable, bytes }),
            Err(error) => {
                // SAFETY: it was just mapped, and nothing points into it.
                _ = unsafe { munmap(writable, bytes.get()) };
                Err(error)
            }
        }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes.get()
    }

    /// Writes code. The caller sees to it that none of what it replaces is executing.
    ///
    /// # Panics
    /// When it does not fit.
    pub fn write(&mut self, at: usize, code: &[u8]) {
        assert!(at <= self.len() && code.len() <= self.len() - at, "code lies in its memory");
        let place = self.writable.cast::<u8>();
        // SAFETY: the range was just checked to lie in the mapping, of which there is no reference.
        unsafe { place.add(at).copy_from_nonoverlapping(NonNull::from(code).cast(), code.len()) };
    }

    /// Where the code at an offset is executed.
    pub fn address(&self, at: usize) -> usize {
        assert!(at < self.len(), "code lies in its memory");
        self.executable.as_ptr() as usize + at
    }
}

fn map(file: &OwnedFd, bytes: NonZeroUsize, protection: ProtFlags) -> Result<NonNull<c_void>, Errno> {
    // SAFETY: a new mapping, at a place that the kernel chooses.
    unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, file, 0) }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        for mapping in [self.writable, self.executable] {
            // SAFETY: mapped by `new`, and nothing points into it: code executes only while its
            // hart, which owns this, is borrowed.
            _ = unsafe { munmap(mapping, self.bytes.get()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_mapping_is_writable_and_executable() {
        let memory = CodeMemory::new(NonZeroUsize::new(1 << 16).unwrap()).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let ours: Vec<&str> = maps.lines().filter(|line| line.contains("memfd:translated")).collect();
        assert!(ours.len() >= 2, "{maps}");
        for line in &ours {
            let rights = line.split_whitespace().nth(1).unwrap();
            assert!(!(rights.contains('w') && rights.contains('x')), "{line}");
        }
        let executable = format!("{:x}-", memory.address(0));
        assert!(ours.iter().any(|line| line.starts_with(&executable) && line.contains("r-xs")), "{maps}");
    }

    #[test]
    fn what_is_written_is_what_is_executed() {
        let mut memory = CodeMemory::new(NonZeroUsize::new(4096).unwrap()).unwrap();
        // mov eax, edi; ret
        memory.write(64, &[0x89, 0xf8, 0xc3]);
        // SAFETY: the code is a function of this type.
        let same: extern "sysv64" fn(u32) -> u32 = unsafe { std::mem::transmute(memory.address(64)) };
        assert_eq!(same(42), 42);
    }

    #[test]
    #[should_panic(expected = "code lies in its memory")]
    fn code_does_not_leave_its_memory() {
        let mut memory = CodeMemory::new(NonZeroUsize::new(4096).unwrap()).unwrap();
        memory.write(4095, &[0x90, 0x90]);
    }
}
