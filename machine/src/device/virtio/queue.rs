//! The device's side of a split virtqueue (virtio 1.2, section 2.7).

use std::ops::Deref;

use serde::{Deserialize, Serialize};

use crate::ram::{OutsideRam, Ram};

/// Most entries of a queue.
pub const MAX_SIZE: u16 = 256;

const DESCRIPTOR_BYTES: u64 = 16;
const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
const FLAG_INDIRECT: u16 = 4;
const AVAILABLE_NO_INTERRUPT: u16 = 1;

/// The driver broke the rules of the ring: the device needs a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken;

impl From<OutsideRam> for Broken {
    fn from(_: OutsideRam) -> Broken {
        Broken
    }
}

/// A virtqueue: where its rings lie, and how far the device has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// Number of entries: a power of two up to [`MAX_SIZE`].
    size: u16,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    /// Entries of the available ring that were taken.
    taken: u16,
    /// Entries of the used ring that were given.
    given: u16,
    /// `given` when the driver was last considered for an interrupt.
    considered: u16,
}

impl Default for Queue {
    fn default() -> Queue {
        Queue {
            size: MAX_SIZE,
            ready: false,
            descriptors: 0,
            available: 0,
            used: 0,
            taken: 0,
            given: 0,
            considered: 0,
        }
    }
}

/// A part of a buffer: `len` bytes at guest-physical `address`, all inside RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// Where it begins.
    pub address: u64,
    /// How long it is.
    pub len: u32,
}

/// A buffer that the driver made available.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its first descriptor, which names it when it is given back.
    pub head: u16,
    /// What the device may read.
    pub readable: Segments,
    /// What the device may write.
    pub writable: Segments,
}

/// Segments in order. A frame's few need no memory of their own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Segments {
    /// How many of `few` there are.
    len: usize,
    few: [Segment; FEW_SEGMENTS],
    /// All of them, where they are more.
    many: Vec<Segment>,
}

const FEW_SEGMENTS: usize = 4;

impl Segments {
    fn push(&mut self, segment: Segment) {
        if let Some(place) = self.few.get_mut(self.len).filter(|_| self.many.is_empty()) {
            *place = segment;
            self.len += 1;
            return;
        }
        if self.many.is_empty() {
            self.many.extend_from_slice(&self.few);
        }
        self.many.push(segment);
    }
}

impl Deref for Segments {
    type Target = [Segment];

    fn deref(&self) -> &[Segment] {
        if self.many.is_empty() { &self.few[..self.len] } else { &self.many }
    }
}

/// Which of a queue's three addresses a register names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// The descriptor table.
    Descriptors,
    /// The available ring.
    Available,
    /// The used ring.
    Used,
}

impl Queue {
    /// Whether a queue can be in this state.
    pub fn is_sound(&self) -> bool {
        // Sums of an address and what lies within a ring do not overflow.
        let addressable = |address: u64| address < 1 << 63;
        self.size.is_power_of_two()
            && self.size <= MAX_SIZE
            && (!self.ready || [self.descriptors, self.available, self.used].into_iter().all(addressable))
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Whether the driver set it up.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Sets the number of entries; values the ring cannot have are ignored.
    pub fn set_size(&mut self, size: u32) {
        if !self.ready && size.is_power_of_two() && size <= u32::from(MAX_SIZE) {
            self.size = size as u16;
        }
    }

    /// Sets half of an address: the high one or the low one.
    pub fn set_address(&mut self, area: Area, high: bool, half: u32) {
        if self.ready {
            return;
        }
        let address = match area {
            Area::Descriptors => &mut self.descriptors,
            Area::Available => &mut self.available,
            Area::Used => &mut self.used,
        };
        let [low, top] = [*address & 0xffff_ffff, *address & !0xffff_ffff];
        *address = if high { low | u64::from(half) << 32 } else { top | u64::from(half) };
    }

    /// The driver says that the queue is set up.
    ///
    /// # Errors
    /// When a ring is misaligned or does not lie in RAM.
    pub fn make_ready(&mut self, ram: &Ram) -> Result<(), Broken> {
        let size = usize::from(self.size);
        for (address, align, len) in [
            (self.descriptors, 16, size * DESCRIPTOR_BYTES as usize),
            (self.available, 2, 6 + 2 * size),
            (self.used, 4, 6 + 8 * size),
        ] {
            if !address.is_multiple_of(align) {
                return Err(Broken);
            }
            ram.slice(address, len)?;
        }
        self.ready = true;
        Ok(())
    }

    /// The driver takes the queue back.
    pub fn reset(&mut self) {
        *self = Queue::default();
    }

    /// How many buffers are available: never more than the queue's size.
    ///
    /// A device asks once per notification, so that rings laid over each other cannot
    /// keep it busy for ever.
    pub fn available(&self, ram: &Ram) -> Result<u16, Broken> {
        if !self.ready {
            return Ok(0);
        }
        let waiting = read_u16(ram, self.available + 2)?.wrapping_sub(self.taken);
        if waiting > self.size { Err(Broken) } else { Ok(waiting) }
    }

    /// Takes the next of the [`Queue::available`] buffers.
    ///
    /// # Errors
    /// When its descriptors break a rule.
    pub fn pop(&mut self, ram: &Ram) -> Result<Chain, Broken> {
        let head = self.peek(ram, 0)?;
        self.taken = self.taken.wrapping_add(1);
        self.chain(ram, head)
    }

    /// Gives the last buffer taken back to the available ring, as if it were not taken.
    pub fn unpop(&mut self) {
        self.taken = self.taken.wrapping_sub(1);
    }

    /// The first descriptor of the available buffer after `ahead` others.
    fn peek(&self, ram: &Ram, ahead: u16) -> Result<u16, Broken> {
        let slot = self.taken.wrapping_add(ahead) % self.size;
        read_u16(ram, self.available + 4 + 2 * u64::from(slot))
    }

    /// The buffer that begins at descriptor `head`.
    ///
    /// # Errors
    /// When its descriptors break a rule.
    pub fn chain(&self, ram: &Ram, head: u16) -> Result<Chain, Broken> {
        let mut chain = Chain { head, readable: Segments::default(), writable: Segments::default() };
        let mut table = Table { address: self.descriptors, len: self.size.into(), indirect: false };
        let mut index = u32::from(head);
        for _ in 0..self.size {
            let mut descriptor = table.descriptor(ram, index)?;
            while descriptor.flags & FLAG_INDIRECT != 0 {
                // Not counted: the table it leads to may have as many entries as the queue.
                table = descriptor.indirect_table(&table)?;
                descriptor = table.descriptor(ram, 0)?;
            }
            chain.push(ram, &descriptor)?;
            if descriptor.flags & FLAG_NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.next.into();
        }
        // Longer than the queue: a loop.
        Err(Broken)
    }

    /// Gives a buffer back to the driver, with `written` bytes in it.
    ///
    /// # Errors
    /// When the ring moved out of RAM, which it cannot.
    pub fn push_used(&mut self, ram: &mut Ram, head: u16, written: u32) -> Result<(), Broken> {
        let slot = u64::from(self.given % self.size);
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        element[4..].copy_from_slice(&written.to_le_bytes());
        ram.write(self.used + 4 + 8 * slot, &element)?;
        self.given = self.given.wrapping_add(1);
        ram.write(self.used + 2, &self.given.to_le_bytes())?;
        Ok(())
    }

    /// Asks the driver to notify at its next buffer, where notifications are by index.
    ///
    /// # Errors
    /// When the ring moved out of RAM, which it cannot.
    pub fn ask_notification(&self, ram: &mut Ram, event_index: bool) -> Result<(), Broken> {
        if event_index && self.ready {
            let address = self.used + 4 + 8 * u64::from(self.size);
            ram.write(address, &self.taken.to_le_bytes())?;
        }
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was given back since the last call.
    ///
    /// # Errors
    /// When the ring moved out of RAM, which it cannot.
    pub fn wants_interrupt(&mut self, ram: &Ram, event_index: bool) -> Result<bool, Broken> {
        let before = std::mem::replace(&mut self.considered, self.given);
        if !self.ready || before == self.given {
            return Ok(false);
        }
        if event_index {
            let event = read_u16(ram, self.available + 4 + 2 * u64::from(self.size))?;
            let since_event = self.given.wrapping_sub(event).wrapping_sub(1);
            return Ok(since_event < self.given.wrapping_sub(before));
        }
        Ok(read_u16(ram, self.available)? & AVAILABLE_NO_INTERRUPT == 0)
    }
}

impl Chain {
    /// Bytes the device may read.
    pub fn readable_bytes(&self) -> u64 {
        self.readable.iter().map(|segment| u64::from(segment.len)).sum()
    }

    /// Bytes the device may write.
    pub fn writable_bytes(&self) -> u64 {
        self.writable.iter().map(|segment| u64::from(segment.len)).sum()
    }

    fn push(&mut self, ram: &Ram, descriptor: &Descriptor) -> Result<(), Broken> {
        let segment = Segment { address: descriptor.address, len: descriptor.len };
        if segment.len != 0 {
            ram.slice(segment.address, segment.len as usize)?;
        }
        if descriptor.flags & FLAG_WRITE != 0 {
            self.writable.push(segment);
        } else if self.writable.is_empty() {
            self.readable.push(segment);
        } else {
            // What is read must come before what is written.
            return Err(Broken);
        }
        Ok(())
    }
}

/// Copies the bytes at `skip` of the buffer made of `segments` to `into`, as far as they
/// go. Returns how many were copied.
///
/// # Errors
/// Never for the segments of a [`Chain`].
pub fn gather(ram: &Ram, segments: &[Segment], skip: u64, into: &mut [u8]) -> Result<usize, Broken> {
    let mut copied = 0;
    for (address, len) in windows(segments, skip, into.len()) {
        ram.read(address, &mut into[copied..copied + len])?;
        copied += len;
    }
    Ok(copied)
}

/// Copies `from` to the bytes at `skip` of the buffer made of `segments`, as far as they
/// go. Returns how many were copied.
///
/// # Errors
/// Never for the segments of a [`Chain`].
pub fn scatter(ram: &mut Ram, segments: &[Segment], skip: u64, from: &[u8]) -> Result<usize, Broken> {
    let mut copied = 0;
    for (address, len) in windows(segments, skip, from.len()) {
        ram.write(address, &from[copied..copied + len])?;
        copied += len;
    }
    Ok(copied)
}

/// The pieces of guest memory that hold up to `len` bytes from `skip` on.
fn windows(segments: &[Segment], skip: u64, len: usize) -> impl Iterator<Item = (u64, usize)> + '_ {
    let (mut skip, mut left) = (skip, len);
    segments.iter().filter_map(move |segment| {
        let skipped = skip.min(segment.len.into());
        skip -= skipped;
        let piece = left.min(segment.len as usize - skipped as usize);
        left -= piece;
        (piece > 0).then_some((segment.address + skipped, piece))
    })
}

struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// A descriptor table: the queue's own, or an indirect one.
struct Table {
    address: u64,
    len: u32,
    indirect: bool,
}

impl Table {
    fn descriptor(&self, ram: &Ram, index: u32) -> Result<Descriptor, Broken> {
        if index >= self.len {
            return Err(Broken);
        }
        let address = self.address.checked_add(u64::from(index) * DESCRIPTOR_BYTES).ok_or(Broken)?;
        let bytes = ram.slice(address, DESCRIPTOR_BYTES as usize)?;
        let (address, rest) = bytes.split_first_chunk::<8>().ok_or(Broken)?;
        let (len, rest) = rest.split_first_chunk::<4>().ok_or(Broken)?;
        let (flags, next) = rest.split_first_chunk::<2>().ok_or(Broken)?;
        Ok(Descriptor {
            address: u64::from_le_bytes(*address),
            len: u32::from_le_bytes(*len),
            flags: u16::from_le_bytes(*flags),
            next: u16::from_le_bytes([next[0], next[1]]),
        })
    }
}

impl Descriptor {
    fn indirect_table(&self, within: &Table) -> Result<Table, Broken> {
        let entries = self.len / DESCRIPTOR_BYTES as u32;
        let whole = u64::from(self.len).is_multiple_of(DESCRIPTOR_BYTES) && entries > 0;
        if within.indirect || self.flags & FLAG_NEXT != 0 || !whole {
            return Err(Broken);
        }
        Ok(Table { address: self.address, len: entries, indirect: true })
    }
}

fn read_u16(ram: &Ram, address: u64) -> Result<u16, Broken> {
    let mut bytes = [0; 2];
    ram.read(address, &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ram::RAM_BASE;

    /// A driver's side of one queue, its rings at fixed places.
    pub(crate) struct Driver {
        base: u64,
        size: u16,
        next: u16,
        posted: u16,
        pub seen: u16,
    }

    impl Driver {
        /// Rings in the 16 KiB at `base`.
        pub(crate) fn new(base: u64, size: u16) -> Driver {
            Driver { base, size, next: 0, posted: 0, seen: 0 }
        }

        pub(crate) fn addresses(&self) -> [u64; 3] {
            [self.base, self.base + 0x2000, self.base + 0x3000]
        }

        pub(crate) fn set_up(&self, queue: &mut Queue) {
            queue.set_size(self.size.into());
            for (area, address) in
                [Area::Descriptors, Area::Available, Area::Used].into_iter().zip(self.addresses())
            {
                queue.set_address(area, false, address as u32);
                queue.set_address(area, true, (address >> 32) as u32);
            }
        }

        pub(crate) fn descriptor(
            &self,
            ram: &mut Ram,
            index: u16,
            segment: (u64, u32),
            flags: u16,
            next: u16,
        ) {
            self.descriptor_at(ram, self.base + 16 * u64::from(index), segment, flags, next);
        }

        pub(crate) fn descriptor_at(
            &self,
            ram: &mut Ram,
            at: u64,
            segment: (u64, u32),
            flags: u16,
            next: u16,
        ) {
            ram.write(at, &segment.0.to_le_bytes()).unwrap();
            ram.write(at + 8, &segment.1.to_le_bytes()).unwrap();
            ram.write(at + 12, &flags.to_le_bytes()).unwrap();
            ram.write(at + 14, &next.to_le_bytes()).unwrap();
        }

        /// Makes the chain at `head` available.
        pub(crate) fn post_head(&mut self, ram: &mut Ram, head: u16) {
            let slot = u64::from(self.posted % self.size);
            ram.write(self.base + 0x2004 + 2 * slot, &head.to_le_bytes()).unwrap();
            self.posted = self.posted.wrapping_add(1);
            ram.write(self.base + 0x2002, &self.posted.to_le_bytes()).unwrap();
        }

        /// Makes a buffer of these segments available; `true` marks what the device writes.
        pub(crate) fn post(&mut self, ram: &mut Ram, segments: &[(u64, u32, bool)]) -> u16 {
            let head = self.next % self.size;
            for (number, (address, len, writable)) in segments.iter().enumerate() {
                let index = self.next % self.size;
                self.next = self.next.wrapping_add(1);
                let more = number + 1 < segments.len();
                let flags = if *writable { FLAG_WRITE } else { 0 } | if more { FLAG_NEXT } else { 0 };
                self.descriptor(ram, index, (*address, *len), flags, self.next % self.size);
            }
            self.post_head(ram, head);
            head
        }

        /// What the device gave back since the last call.
        pub(crate) fn collect(&mut self, ram: &Ram) -> Vec<(u32, u32)> {
            let given = read_u16(ram, self.base + 0x3002).unwrap();
            let mut collected = Vec::new();
            while self.seen != given {
                let at = self.base + 0x3004 + 8 * u64::from(self.seen % self.size);
                let bytes: [u8; 8] = ram.slice(at, 8).unwrap().try_into().unwrap();
                let element = u64::from_le_bytes(bytes);
                collected.push((element as u32, (element >> 32) as u32));
                self.seen = self.seen.wrapping_add(1);
            }
            collected
        }
    }

    fn ready(size: u16) -> (Ram, Queue, Driver) {
        let ram = Ram::new(64);
        let driver = Driver::new(RAM_BASE, size);
        let mut queue = Queue::default();
        driver.set_up(&mut queue);
        queue.make_ready(&ram).unwrap();
        (ram, queue, driver)
    }

    #[test]
    fn a_chain_goes_round() {
        let (mut ram, mut queue, mut driver) = ready(8);
        let data = RAM_BASE + 0x8000;
        ram.write(data, b"hello world").unwrap();
        let head = driver.post(&mut ram, &[(data, 5, false), (data + 5, 6, false), (data + 100, 4, true)]);
        assert_eq!(queue.available(&ram), Ok(1));
        let chain = queue.pop(&ram).unwrap();
        assert_eq!((chain.head, chain.readable_bytes(), chain.writable_bytes()), (head, 11, 4));
        let mut text = [0; 20];
        assert_eq!(gather(&ram, &chain.readable, 3, &mut text), Ok(8));
        assert_eq!(&text[..8], b"lo world");
        assert_eq!(scatter(&mut ram, &chain.writable, 1, b"abcdef"), Ok(3));
        queue.push_used(&mut ram, chain.head, 3).unwrap();
        assert_eq!(queue.wants_interrupt(&ram, false), Ok(true));
        assert_eq!(queue.wants_interrupt(&ram, false), Ok(false));
        assert_eq!(driver.collect(&ram), [(0, 3)]);
    }

    #[test]
    fn the_index_decides_on_interrupts() {
        let (mut ram, mut queue, driver) = ready(4);
        let event_at = driver.base + 0x2004 + 2 * 4;
        ram.write(event_at, &2u16.to_le_bytes()).unwrap();
        let mut wanted = Vec::new();
        for _ in 0..4 {
            queue.push_used(&mut ram, 0, 0).unwrap();
            wanted.push(queue.wants_interrupt(&ram, true).unwrap());
        }
        assert_eq!(wanted, [false, false, true, false]);
    }

    #[test]
    fn bad_rings_are_refused() {
        let ram = Ram::new(4);
        for (descriptors, available, used) in [
            (RAM_BASE + 8, RAM_BASE, RAM_BASE),
            (RAM_BASE, RAM_BASE + 1, RAM_BASE),
            (RAM_BASE, RAM_BASE, RAM_BASE + 2),
            (0, RAM_BASE, RAM_BASE),
            (RAM_BASE + 0x3ff0, RAM_BASE, RAM_BASE),
            (!15, RAM_BASE, RAM_BASE),
        ] {
            let mut queue = Queue { descriptors, available, used, ..Queue::default() };
            assert_eq!(queue.make_ready(&ram), Err(Broken));
        }
        let mut queue = Queue::default();
        [0, 3, 257, 512, 1 << 31].into_iter().for_each(|size| queue.set_size(size));
        assert_eq!(queue.size(), MAX_SIZE);
    }

    #[test]
    fn bad_chains_are_refused() {
        let data = RAM_BASE + 0x8000;
        let table = RAM_BASE + 0x9000;
        // What to write into descriptors 0 and 1, and into the indirect table.
        type Case = (&'static str, fn(&Driver, &mut Ram, u64, u64));
        let cases: [Case; 7] = [
            ("loop", |d, ram, data, _| d.descriptor(ram, 0, (data, 1), FLAG_NEXT, 0)),
            ("index", |d, ram, data, _| d.descriptor(ram, 0, (data, 1), FLAG_NEXT, 8)),
            ("outside", |d, ram, _, _| d.descriptor(ram, 0, (0x1000, 1), 0, 0)),
            ("length", |d, ram, data, _| d.descriptor(ram, 0, (data, u32::MAX), 0, 0)),
            ("order", |d, ram, data, _| {
                d.descriptor(ram, 0, (data, 1), FLAG_NEXT | FLAG_WRITE, 1);
                d.descriptor(ram, 1, (data, 1), 0, 0);
            }),
            ("indirect in indirect", |d, ram, _, table| {
                d.descriptor(ram, 0, (table, 32), FLAG_INDIRECT, 0);
                d.descriptor_at(ram, table, (table, 32), FLAG_INDIRECT, 0);
            }),
            ("odd table", |d, ram, _, table| d.descriptor(ram, 0, (table, 24), FLAG_INDIRECT, 0)),
        ];
        for (name, prepare) in cases {
            let (mut ram, mut queue, mut driver) = ready(8);
            prepare(&driver, &mut ram, data, table);
            driver.post_head(&mut ram, 0);
            assert_eq!(queue.pop(&ram), Err(Broken), "{name}");
        }
        let (mut ram, queue, _) = ready(8);
        ram.write(RAM_BASE + 0x2002, &9u16.to_le_bytes()).unwrap();
        assert_eq!(queue.available(&ram), Err(Broken));
    }

    #[test]
    fn indirect_chains_are_followed() {
        let (mut ram, mut queue, mut driver) = ready(8);
        let table = RAM_BASE + 0x9000;
        driver.descriptor(&mut ram, 0, (table, 32), FLAG_INDIRECT, 0);
        driver.descriptor_at(&mut ram, table, (table, 3), FLAG_NEXT, 1);
        driver.descriptor_at(&mut ram, table + 16, (table, 5), FLAG_WRITE, 0);
        driver.post_head(&mut ram, 0);
        let chain = queue.pop(&ram).unwrap();
        assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (3, 5));
    }

    #[test]
    fn an_indirect_chain_may_be_as_long_as_the_queue() {
        for (entries, is_whole) in [(8, true), (9, false)] {
            let (mut ram, mut queue, mut driver) = ready(8);
            let table = RAM_BASE + 0x9000;
            driver.descriptor(&mut ram, 0, (table, 16 * entries), FLAG_INDIRECT, 0);
            for entry in 0..entries {
                let flags = if entry + 1 < entries { FLAG_NEXT } else { 0 };
                let at = table + 16 * u64::from(entry);
                driver.descriptor_at(&mut ram, at, (table, 1), flags, entry as u16 + 1);
            }
            driver.post_head(&mut ram, 0);
            let found = queue.pop(&ram).map(|chain| chain.readable_bytes());
            assert_eq!(found, if is_whole { Ok(8) } else { Err(Broken) }, "{entries} entries");
        }
    }
}
