//! Where translated code finds the target of a computed jump.

/// Entries of the cache.
const ENTRIES: usize = 16384;

/// The translation of the code at a guest-virtual address.
#[derive(Clone, Copy)]
#[repr(C)]
struct Jump {
    target: u64,
    /// The fetch context in which that is so; 0 is no hart's.
    context: u32,
    /// Where the translation begins in the code memory.
    native: u32,
}

const NO_JUMP: Jump = Jump { target: 0, context: 0, native: 0 };

/// What translated code must know of the layout.
pub(super) mod native {
    use super::*;
    use std::mem::offset_of;

    /// From a target times 8 to its entry.
    pub const INDEX_MASK: i32 = ((ENTRIES - 1) * size_of::<Jump>()) as i32;
    /// Places in an entry; the target is at 0.
    pub const CONTEXT: i8 = offset_of!(Jump, context) as i8;
    pub const NATIVE: i8 = offset_of!(Jump, native) as i8;
    const _: () = assert!(offset_of!(Jump, target) == 0 && size_of::<Jump>() == 16);
}

pub(super) struct Jumps(Box<[Jump; ENTRIES]>);

impl Jumps {
    pub fn new() -> Jumps {
        Jumps(Box::new([NO_JUMP; ENTRIES]))
    }

    pub fn clear(&mut self) {
        self.0.fill(NO_JUMP);
    }

    pub fn remember(&mut self, target: u64, context: u32, native: u32) {
        self.0[(target >> 1) as usize % ENTRIES] = Jump { target, context, native };
    }

    pub fn address(&self) -> usize {
        self.0.as_ptr().expose_provenance()
    }
}
