//! Sv39 and Sv48: every bit of an entry, every mode of access, pages and superpages of each
//! size, accesses that cross pages, fetches, faults that are delegated or not, MPRV.
//!
//! ```text
//! Sv48 root [0]   the table below; [511] the same, seen from the other end
//! [1]             a superpage of 512 GiB, of data and code
//! [2]             level 2 [0]  level 1, as below
//!                         [1]  a superpage of 1 GiB
//! Sv39 root [2]   identity of all RAM, for S-mode
//! [3]             alias of all RAM, for U-mode
//! [4]             test pages: level 1; [511] the same, seen from the other end
//! [5]             a superpage of 1 GiB
//! level 1 [0..2]  level 0: pages of data, never fetched from
//! [2..4]          level 0: pages of code, which hold returns only
//! [4..8]          superpages of 2 MiB
//! ```

use super::{atomic, integer};
use crate::differential::encode::{csr::*, *};
use crate::differential::frame::{STATUS_FS, STATUS_MPRV, STATUS_MXR, STATUS_SUM};
use crate::differential::layout::{self, CODE_FRAMES, DATA_FRAMES, FRAMES, TABLES};
use crate::differential::program::{Block, Entry, Mode};
use crate::sim::random::Random;

const PAGE_BYTES: u64 = 4096;
/// The root of Sv39, a table of level 2 for Sv48.
const ROOT_39: u64 = TABLES;
const LEVEL_1: u64 = TABLES + PAGE_BYTES;
const LEVEL_0: u64 = TABLES + 2 * PAGE_BYTES;
const ROOT_48: u64 = LEVEL_0 + LEVEL_0_TABLES * PAGE_BYTES;
const LEVEL_2: u64 = ROOT_48 + PAGE_BYTES;
/// All tables.
const TABLE_PAGES: u64 = 4 + LEVEL_0_TABLES;
/// Level-0 tables: the first half for data, the second for code.
const LEVEL_0_TABLES: u64 = 4;
/// Entries in use of each.
const PAGES: u64 = 12;
const SUPERPAGES: std::ops::Range<u64> = 4..8;
/// Beyond RAM.
const NOWHERE: u64 = 0x9000_0000;
const SATP_39: u64 = (8 << 60) | (ROOT_39 / PAGE_BYTES);
const SATP_48: u64 = (9 << 60) | (ROOT_48 / PAGE_BYTES);
const ASID: u64 = 0xffff << 44;
/// Below `LEVEL_2`.
const LEVEL_2_ADDRESS: u64 = 2 << 39;
const TERAPAGE_ADDRESS: u64 = 1 << 39;
const GIGAPAGE_ADDRESSES: [u64; 2] = [5 << 30, LEVEL_2_ADDRESS + (1 << 30)];
/// V, A and D.
const USUAL: u64 = 0xc1;
const SEGMENTS: usize = 5;
const ITEMS_PER_SEGMENT: usize = 12;
const CHANGES_PER_SEGMENT: u64 = 6;
/// `c.jr ra` four times: what may be written to code.
const RETURNS: u64 = 0x8082_8082_8082_8082;
/// Lower half of `addi x0, ...`, at the end of a page of code.
const NOP_HALF: u16 = 0x0013;
/// `pmpcfg`: a naturally aligned power of two; with all rights.
const NAPOT: u64 = 3 << 3;
const OPEN: u64 = NAPOT | 7;
/// `menvcfg.ADUE`.
const ADUE: u64 = 1 << 61;

pub(super) fn initial_memory(random: &mut Random) -> Vec<(u64, Vec<u8>)> {
    let mut tables = vec![0u64; TABLE_PAGES as usize * 512];
    let mut put = |address: u64, entry| tables[((address - TABLES) / 8) as usize] = entry;
    put(ROOT_39 + 8 * 2, leaf(layout::RAM, USUAL | 0xe));
    put(ROOT_39 + 8 * 3, leaf(layout::RAM, USUAL | 0x1a));
    put(ROOT_39 + 8 * 4, leaf(LEVEL_1, 1));
    put(ROOT_39 + 8 * 511, leaf(LEVEL_1, 1));
    put(ROOT_48, leaf(ROOT_39, 1));
    put(ROOT_48 + 8 * 511, leaf(ROOT_39, 1));
    put(ROOT_48 + 8 * 2, leaf(LEVEL_2, 1));
    put(LEVEL_2, leaf(LEVEL_1, 1));
    for table in 0..LEVEL_0_TABLES {
        put(LEVEL_1 + 8 * table, leaf(LEVEL_0 + table * PAGE_BYTES, 1));
        (0..PAGES).for_each(|index| {
            let entry = page_entry(random, table, index);
            put(LEVEL_0 + table * PAGE_BYTES + 8 * index, entry);
        });
    }
    superpages().for_each(|(address, level)| put(address, superpage_entry(random, level)));
    let page: Vec<u8> = [C_RET; 2047].iter().chain(&[NOP_HALF]).flat_map(|half| half.to_le_bytes()).collect();
    let data: Vec<u8> = (0..FRAMES * PAGE_BYTES).map(|_| random.next_u64() as u8).collect();
    vec![
        (TABLES, tables.iter().flat_map(|entry| entry.to_le_bytes()).collect()),
        (DATA_FRAMES, data),
        (CODE_FRAMES, page.repeat(FRAMES as usize)),
    ]
}

fn leaf(physical: u64, flags: u64) -> u64 {
    ((physical / PAGE_BYTES) << 10) | flags
}

/// Flags: valid as a rule; now and then with a reserved bit.
fn flags(random: &mut Random) -> u64 {
    let mut flags = random.next_u64() & 0x3ff;
    for likely in [0x01, 0x40, 0x80, 0x02] {
        flags |= if random.chance(600) { likely } else { 0 };
    }
    if random.chance(900) { flags | 1 } else { flags }
}

fn reserved(random: &mut Random) -> u64 {
    if random.chance(30) { 1 << random.between(54, 63) } else { 0 }
}

fn page_entry(random: &mut Random, table: u64, index: u64) -> u64 {
    let frames = if table < LEVEL_0_TABLES / 2 { DATA_FRAMES } else { CODE_FRAMES };
    let frame = frames + random.between(0, FRAMES - 1) * PAGE_BYTES;
    // Only the first page: a store that crosses into such a page may have been done in part.
    if index == 0 && random.chance(200) {
        // R, W, A, D: an AMO on QEMU gives the access fault of its load before the page fault of
        // its store.
        return leaf(NOWHERE, flags(random) | 0xc6);
    }
    let flags = flags(random);
    let flags = if frames == DATA_FRAMES { accessed_if_read_only(flags) } else { flags };
    leaf(frame, flags) | reserved(random)
}

/// An AMO on QEMU loads first: where it may not store, it has set A before it faults.
fn accessed_if_read_only(flags: u64) -> u64 {
    if flags & 4 == 0 { flags | 0x40 } else { flags }
}

/// Where the entries of superpages lie, and their level.
fn superpages() -> impl Iterator<Item = (u64, u32)> {
    let others = [(ROOT_39 + 8 * 5, 2), (LEVEL_2 + 8, 2), (ROOT_48 + 8, 3)];
    SUPERPAGES.map(|index| (LEVEL_1 + 8 * index, 1)).chain(others)
}

fn superpage_entry(random: &mut Random, level: u32) -> u64 {
    let size = PAGE_BYTES << (9 * level);
    // Misaligned now and then, in one of the fields that must be zero. Never a pointer to a table.
    let excess =
        if random.chance(50) { PAGE_BYTES << (9 * random.between(0, u64::from(level) - 1)) } else { 0 };
    let physical = (TABLES & !(size - 1)) + excess;
    leaf(physical, accessed_if_read_only(flags(random) | 2)) | reserved(random)
}

/// `satp` with either scheme, and any address space: entries are changed for all of them.
fn any_satp(random: &mut Random) -> u64 {
    random.pick(&[SATP_39, SATP_48]) | random.next_u64() & ASID
}

pub(super) fn put_body(block: &mut Block<'_>) {
    put_environment(block);
    let is_protected = block.random.chance(300);
    if is_protected {
        put_protection(block);
    }
    for _ in 0..SEGMENTS {
        put_changes(block);
        let status = block.random.next_u64() & (STATUS_SUM | STATUS_MXR) | STATUS_FS;
        // Page faults and access faults.
        let medeleg = block.random.next_u64() & 0xb0a2;
        let mode = *block.random.pick(&[Mode::Machine, Mode::Supervisor, Mode::User]);
        if mode == Mode::Machine {
            put_borrowed_segment(block, status);
            continue;
        }
        let satp = any_satp(&mut block.random);
        block.enter(Entry { mode, status, medeleg, mideleg: 0, satp });
        block.some_items(ITEMS_PER_SEGMENT, |block| put_item(block, mode));
        block.leave();
    }
    if is_protected {
        put_value(block, PMPCFG0, OPEN);
        put_value(block, PMPADDR0, u64::MAX >> 10);
    }
}

/// Takes rights to a page of tables away. Not of data: what crosses into such a page is one
/// access for QEMU's protection, and two for ours.
fn put_protection(block: &mut Block<'_>) {
    let random = &mut block.random;
    // Not the roots, by which the code itself is reached.
    let level_0 = LEVEL_0 + random.between(0, LEVEL_0_TABLES - 1) * PAGE_BYTES;
    let page = *random.pick(&[LEVEL_1, LEVEL_2, level_0, level_0]);
    // W without R is reserved.
    let rights = *random.pick(&[0, 1, 3, 4, 5]);
    put_value(block, PMPADDR0 + 1, u64::MAX >> 10);
    put_value(block, PMPADDR0, page >> 2 | (PAGE_BYTES / 8 - 1));
    put_value(block, PMPCFG0, OPEN << 8 | NAPOT | rights);
    block.asm.word(SFENCE_VMA);
}

fn put_value(block: &mut Block<'_>, number: u32, value: u64) {
    let register = block.scratch(ZERO);
    block.asm.constant(register, value);
    block.asm.word(csrrw(ZERO, number, register));
}

/// Loads and stores from M-mode in the name of another.
fn put_borrowed_segment(block: &mut Block<'_>, status: u64) {
    let register = block.scratch(ZERO);
    let satp = any_satp(&mut block.random);
    block.asm.constant(register, satp);
    block.asm.word(csrrw(ZERO, SATP, register));
    for _ in 0..ITEMS_PER_SEGMENT / 2 {
        // A trap's return leaves U-mode in MPP.
        let register = block.scratch(ZERO);
        let mode = block.random.between(0, 1) << 11;
        block.asm.constant(register, status | STATUS_MPRV | mode);
        block.asm.word(csrrw(ZERO, MSTATUS, register));
        put_data_access(block);
    }
    let register = block.scratch(ZERO);
    block.asm.constant(register, STATUS_FS);
    block.asm.word(csrrw(ZERO, MSTATUS, register));
}

fn put_environment(block: &mut Block<'_>) {
    let register = block.scratch(ZERO);
    // The cache-block instructions are open to all; the hart sets A and D, or does not.
    let value = if block.random.chance(700) { ADUE | 0xf0 } else { 0xf0 };
    block.asm.constant(register, value);
    block.asm.words(&[csrrw(ZERO, MENVCFG, register), csrrw(ZERO, SENVCFG, register)]);
}

/// Changes some entries, from M-mode.
fn put_changes(block: &mut Block<'_>) {
    for _ in 0..block.random.between(1, CHANGES_PER_SEGMENT) {
        let random = &mut block.random;
        let (address, entry) = match random.between(0, 9) {
            0 | 1 => {
                let all: Vec<_> = superpages().collect();
                let &(address, level) = random.pick(&all);
                (address, superpage_entry(random, level))
            }
            2 => changed_pointer(random),
            _ => changed_page(random),
        };
        put_entry(block, address, entry);
    }
    block.asm.word(SFENCE_VMA);
}

fn changed_page(random: &mut Random) -> (u64, u64) {
    let table = random.between(0, LEVEL_0_TABLES - 1);
    let index = random.between(0, PAGES - 1);
    (LEVEL_0 + table * PAGE_BYTES + 8 * index, page_entry(random, table, index))
}

/// A pointer to a table, at any level: whole, reserved, invalid, or to nowhere.
fn changed_pointer(random: &mut Random) -> (u64, u64) {
    let table = random.between(0, LEVEL_0_TABLES - 1);
    let level_1 = (LEVEL_1 + 8 * table, LEVEL_0 + table * PAGE_BYTES);
    let (address, target) = *random.pick(&[level_1, level_1, (LEVEL_2, LEVEL_1), (ROOT_48 + 8 * 2, LEVEL_2)]);
    let whole = leaf(target, 1);
    let broken =
        [whole, whole, whole | 0x40, whole | 0x80, whole | 0x10, 0, leaf(NOWHERE, 1), whole | 1 << 61];
    (address, *random.pick(&broken))
}

fn put_entry(block: &mut Block<'_>, address: u64, entry: u64) {
    let pointer = block.scratch(ZERO);
    let value = block.scratch(pointer);
    block.asm.constant(pointer, address);
    block.asm.constant(value, entry);
    block.asm.word(sd(value, pointer, 0));
}

/// An address in the test pages of a level-1 entry: mostly one that is an address at all.
fn address(random: &mut Random, level_1_index: u64, offset: u64) -> u64 {
    let top = match random.between(0, 19) {
        0..=9 => 4 << 30,
        10..=14 => (511 | u64::MAX << 9) << 30,
        // No address for Sv39.
        15..=17 => LEVEL_2_ADDRESS,
        18 => 511 << 30,
        // No address for either.
        _ => *random.pick(&[0xffff_c000_0000, 4 << 30 | 1 << 47, 4 << 30 | 1 << 50, 4 << 30 | 1 << 63]),
    };
    top + (level_1_index << 21) + offset
}

/// Where frames are seen in a superpage.
fn superpage_address(random: &mut Random, frames: u64) -> u64 {
    match random.between(0, 3) {
        0 => *random.pick(&GIGAPAGE_ADDRESSES) + (frames - layout::RAM),
        1 => TERAPAGE_ADDRESS + frames,
        _ => {
            let index = random.between(SUPERPAGES.start, SUPERPAGES.end - 1);
            address(random, index, frames & 0x1f_ffff)
        }
    }
}

/// Near the end of a page as often as not.
fn page_offset(random: &mut Random) -> u64 {
    let page = random.between(0, PAGES - 1) * PAGE_BYTES;
    let within =
        if random.chance(500) { random.between(0, PAGE_BYTES - 1) } else { 4096 - random.between(1, 9) };
    page + within
}

fn put_item(block: &mut Block<'_>, mode: Mode) {
    match block.random.between(0, 15) {
        0 => integer::put_item(block),
        1..=9 => put_data_access(block),
        10 => put_code_access(block),
        11..=13 => put_fetch(block),
        14 => put_fence(block, mode),
        _ if mode == Mode::User => {
            let number = *block.random.pick(&[SSTATUS, SATP]);
            block.asm.word(csrrs(ZERO, number, ZERO));
        }
        _ => {
            let register = block.scratch(ZERO);
            let bits = block.random.next_u64() & (STATUS_SUM | STATUS_MXR);
            block.asm.constant(register, bits);
            let change =
                *block.random.pick(&[csrrs(ZERO, SSTATUS, register), csrrc(ZERO, SSTATUS, register)]);
            block.asm.word(change);
        }
    }
}

/// A fence that fences nothing, an entry that S-mode changes, or another scheme.
fn put_fence(block: &mut Block<'_>, mode: Mode) {
    match block.random.between(0, 2) {
        1 if mode == Mode::Supervisor => {
            let (address, entry) = changed_page(&mut block.random);
            put_entry(block, address, entry);
            block.asm.word(SFENCE_VMA);
        }
        2 => {
            // Both map the code alike. The last mode does not exist: nothing changes.
            let satp = any_satp(&mut block.random);
            let satp = if block.random.chance(200) { satp | 2 << 60 } else { satp };
            let register = block.scratch(ZERO);
            block.asm.constant(register, satp);
            block.asm.words(&[csrrw(ZERO, SATP, register), SFENCE_VMA]);
        }
        _ => {
            let (rs1, rs2) = (block.register(), block.register());
            block.asm.word(r(SFENCE_VMA, ZERO, rs1, rs2));
        }
    }
}

/// Any load, store or atomic, in the pages of data.
fn put_data_access(block: &mut Block<'_>) {
    let pointer = block.scratch(ZERO);
    let random = &mut block.random;
    let va = if random.chance(300) {
        superpage_address(random, DATA_FRAMES) + random.between(PAGE_BYTES, (FRAMES - 1) * PAGE_BYTES)
    } else {
        let (table, offset) = (random.between(0, LEVEL_0_TABLES / 2 - 1), page_offset(random));
        address(random, table, offset)
    };
    let aligned = if block.random.chance(400) { va & !7 } else { va };
    block.asm.constant(pointer, aligned);
    match block.random.between(0, 9) {
        0 | 1 => atomic::put_access(block, pointer),
        _ => put_plain_access(block, pointer),
    }
}

/// An access without displacement: what lies around is under control.
fn put_plain_access(block: &mut Block<'_>, pointer: u32) {
    let word = match block.random.between(0, 11) {
        0..=4 => {
            let funct3 = block.random.between(0, 6) as u32;
            i(0x03 | funct3 << 12, block.target(), pointer, 0)
        }
        5..=8 => {
            let funct3 = block.random.between(0, 3) as u32;
            s(0x23 | funct3 << 12, pointer, block.register(), 0)
        }
        9 => fld(block.register(), pointer, 0),
        10 => fsd(block.register(), pointer, 0),
        _ => {
            // A fault names the address in the register; QEMU names the block's.
            block.asm.word(andi(pointer, pointer, -64));
            i(0x200f, ZERO, pointer, *block.random.pick(&[0, 1, 2, 4]))
        }
    };
    block.asm.word(word);
}

/// A load from the pages of code, or a store of returns.
fn put_code_access(block: &mut Block<'_>) {
    let pointer = block.scratch(ZERO);
    let value = block.scratch(pointer);
    let random = &mut block.random;
    let (table, offset) = (random.between(LEVEL_0_TABLES / 2, LEVEL_0_TABLES - 1), page_offset(random) & !1);
    let va = address(random, table, offset);
    block.asm.constant(pointer, va);
    if block.random.chance(500) {
        let rd = block.target();
        block.asm.word(ld(rd, pointer, 0));
        return;
    }
    block.asm.constant(value, RETURNS);
    let funct3 = block.random.between(1, 3) as u32;
    block.asm.word(s(0x23 | funct3 << 12, pointer, value, 0));
    // Fetches see it.
    block.asm.word(FENCE_I);
}

/// A call to the pages of code.
fn put_fetch(block: &mut Block<'_>) {
    let pointer = block.scratch(RA);
    let random = &mut block.random;
    let va = if random.chance(200) {
        // Not the last frame: what comes after it is no code.
        superpage_address(random, CODE_FRAMES) + (random.between(0, (FRAMES - 1) * PAGE_BYTES - 2) & !1)
    } else {
        let table = random.between(LEVEL_0_TABLES / 2, LEVEL_0_TABLES - 1);
        let offset = page_offset(random) & !1;
        address(random, table, offset)
    };
    block.asm.constant(pointer, va);
    let behind = block.asm.label();
    block.asm.address_of(RA, behind);
    block.asm.word(jalr(ZERO, pointer, 0));
    block.asm.bind(behind);
}
