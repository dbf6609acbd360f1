//! The host's memory under the guest's.
//!
//! It begins at a page of the host, so that no guest page lies in two of them, and the host is asked
//! for huge pages: a guest that goes all over its memory would otherwise spend its time in the host's
//! own page tables.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

/// Bytes, all zero at first. The host gives pages only as they are touched.
pub(super) struct Memory {
    start: NonNull<c_void>,
    bytes: NonZeroUsize,
}

// SAFETY: the mapping belongs to this value alone, and is reached through it as a slice is.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// # Errors
    /// When the host has no room for as many bytes, or they are none.
    pub fn new(bytes: usize) -> Result<Memory, Errno> {
        let bytes = NonZeroUsize::new(bytes).ok_or(Errno::EINVAL)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches nothing
        // that is there.
        let start = unsafe { mmap_anonymous(None, bytes, protection, MapFlags::MAP_PRIVATE) }?;
        // SAFETY: the range is the mapping, and the advice changes nothing of what it holds. A host
        // that has no huge pages says so, and that is no harm.
        _ = unsafe { madvise(start, bytes.get(), MmapAdvise::MADV_HUGEPAGE) };
        Ok(Memory { start, bytes })
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping lives as long as `self`, is initialised (with zeros), and is written to
        // through `&mut self` only, or by harts that follow the rule on `Ram`.
        unsafe { std::slice::from_raw_parts(self.start.cast().as_ptr(), self.bytes.get()) }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed for as long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast().as_ptr(), self.bytes.get()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: nobody can reach the mapping any more.
        _ = unsafe { munmap(self.start, self.bytes.get()) };
    }
}
