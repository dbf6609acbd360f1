//! Where everything lies in guest memory, and what a dump holds.
//!
//! ```text
//! 0x8000_0000  code         handlers, the turn between iterations, blocks
//! 0x8080_0000  values       what integer registers are loaded from
//! 0x8081_0000  floats       what float registers are loaded from
//! 0x8082_0000  variables    of handlers and the turn
//! 0x8090_0000  data         what loads and stores of the blocks reach
//! 0x80a0_0000  tables       page tables; frames for data and for code follow
//! 0x80c0_0000  trap log     32 bytes per trap
//! 0x8100_0000  dumps        of registers, one per iteration of a block
//! ```

/// First byte of RAM.
pub const RAM: u64 = 0x8000_0000;
/// Bytes of RAM: more than is used, since QEMU puts its device tree at the end.
pub const RAM_BYTES: u64 = 128 << 20;

/// Code.
pub const CODE: u64 = RAM;
/// Room for code.
pub const CODE_ROOM_BYTES: u64 = 8 << 20;
/// [`POOL_ENTRIES`] values for integer registers, and 64 more so that a reload need not wrap.
pub const VALUES: u64 = 0x8080_0000;
/// The same for float registers.
pub const FLOATS: u64 = 0x8081_0000;
/// Values in a pool.
pub const POOL_ENTRIES: u64 = 4096;
/// Variables.
pub const VARIABLES: u64 = 0x8082_0000;
/// Scratch data.
pub const DATA: u64 = 0x8090_0000;
/// Bytes of scratch data.
pub const DATA_BYTES: u64 = 64 << 10;
/// `sp` in a block.
pub const STACK: u64 = DATA + 0x8000;
/// `s0` in a block; its window crosses a page.
pub const FRAME: u64 = DATA + 0x3fc0;
/// Page tables.
pub const TABLES: u64 = 0x80a0_0000;
/// Frames that test pages map as data.
pub const DATA_FRAMES: u64 = 0x80a4_0000;
/// Frames that test pages map as code: full of returns.
pub const CODE_FRAMES: u64 = 0x80a8_0000;
/// Frames of each kind.
pub const FRAMES: u64 = 16;
/// Trap log.
pub const LOG: u64 = 0x80c0_0000;
/// Bytes of the trap log, a power of two; it wraps.
pub const LOG_BYTES: u64 = 4 << 20;
/// Register dumps.
pub const DUMPS: u64 = 0x8100_0000;
/// Room for dumps.
pub const DUMPS_ROOM_BYTES: u64 = 64 << 20;

/// Power-off register of `sifive,test`.
pub const SYSCON: u64 = 0x10_0000;
/// `msip` of the first hart.
pub const SOFTWARE_INTERRUPT: u64 = 0x200_0000;
/// `mtimecmp` of the first hart.
pub const MACHINE_TIMER: u64 = 0x200_4000;
/// Powers off with success.
pub const SYSCON_PASS: u64 = 0x5555;

/// Offsets of the variables.
pub mod variable {
    /// Save area of the M-mode handler: x28 to x31.
    pub const MACHINE_SAVE: i32 = 0;
    /// Save area of the S-mode handler.
    pub const SUPERVISOR_SAVE: i32 = 32;
    /// Offset of the next entry in the trap log.
    pub const LOG_OFFSET: i32 = 64;
    /// Offset into the pools.
    pub const POOL_OFFSET: i32 = 72;
    /// Iterations of this block that are left.
    pub const ITERATIONS: i32 = 80;
}

/// Fields of a dump, in units of 8 bytes: mstatus, x1 to x31, f0 to f31, fcsr, offset in the
/// trap log.
pub const DUMP_FIELDS: u64 = 66;
/// Bytes of a dump.
pub const DUMP_BYTES: u64 = DUMP_FIELDS * 8;
/// Field of `fcsr`.
pub const DUMP_FCSR: u64 = 64;
/// Field of the trap log's offset.
pub const DUMP_LOG: u64 = 65;
/// Bytes of an entry in the trap log: cause, epc, tval, status.
pub const LOG_ENTRY_BYTES: u64 = 32;

/// The name of a dump's field.
pub fn dump_field_name(field: u64) -> String {
    match field {
        0 => "mstatus".into(),
        1..=31 => format!("x{field}"),
        32..=63 => format!("f{}", field - 32),
        DUMP_FCSR => "fcsr".into(),
        _ => "number of traps".into(),
    }
}
