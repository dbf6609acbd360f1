//! The table: for each page that is not zero, and each disk block that was written to, where
//! its bytes are.
//!
//! It is complete in incremental checkpoints too, so that the last one of a chain says all, and
//! the next one can be made from it without looking at those before. Runs are MessagePack
//! arrays `[place, first, count, source, image, image_first, hashes]`.

use serde::{Deserialize, Serialize};

use super::{ChunkKind, FormatError, UNIT_BYTES, chunk_limit_bytes};

/// First 16 bytes of BLAKE3 of a unit.
pub type UnitHash = [u8; 16];
/// Bytes of a [`UnitHash`].
const HASH_BYTES: usize = 16;
/// Most units of a run: a run fits a chunk of the table.
const MAX_RUN_UNITS: u32 = 1 << 17;

/// Which unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnitPlace {
    /// A page of memory.
    Page(u64),
    /// A block of a disk.
    Block {
        /// Index of the disk.
        disk: u8,
        /// Number of the block.
        index: u64,
    },
}

impl UnitPlace {
    /// The place `count` units later, in the same memory or disk.
    pub fn after(self, count: u64) -> UnitPlace {
        match self {
            UnitPlace::Page(index) => UnitPlace::Page(index.saturating_add(count)),
            UnitPlace::Block { disk, index } => UnitPlace::Block { disk, index: index.saturating_add(count) },
        }
    }

    fn index(self) -> u64 {
        match self {
            UnitPlace::Page(index) | UnitPlace::Block { index, .. } => index,
        }
    }

    /// Units from here to a later place of the same memory or disk.
    fn distance(self, later: UnitPlace) -> Option<u64> {
        let same = match (self, later) {
            (UnitPlace::Page(_), UnitPlace::Page(_)) => true,
            (UnitPlace::Block { disk, .. }, UnitPlace::Block { disk: other, .. }) => disk == other,
            _ => false,
        };
        later.index().checked_sub(self.index()).filter(|_| same)
    }
}

/// Where the bytes of units are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Among this file's units: they lie there in the order of the table.
    Own(Vec<UnitHash>),
    /// In the base, at the same place.
    Base(Vec<UnitHash>),
    /// In a boot image.
    Image {
        /// Index of the image in the description.
        image: u8,
        /// Page of it that the first unit is. An image's last page is filled up with zeros.
        first_page: u64,
    },
    /// Almost as in a boot image: among this file's units lies what they differ by, each byte
    /// XORed with the image's.
    Patched {
        /// Index of the image in the description.
        image: u8,
        /// Page of it that the first unit differs from.
        first_page: u64,
        /// Of the units themselves.
        hashes: Vec<UnitHash>,
    },
}

impl Source {
    fn hashes(&self) -> &[UnitHash] {
        match self {
            Source::Own(hashes) | Source::Base(hashes) | Source::Patched { hashes, .. } => hashes,
            Source::Image { .. } => &[],
        }
    }

    /// Whether the file's own units have something for these.
    pub fn is_own(&self) -> bool {
        matches!(self, Source::Own(_) | Source::Patched { .. })
    }
}

/// Units next to each other that come from the same source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The first one.
    pub first: UnitPlace,
    /// How many.
    pub count: u32,
    /// Where their bytes are.
    pub source: Source,
}

/// Where all units are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Ordered by place.
    pub runs: Vec<Run>,
}

/// What a table must agree with.
#[derive(Debug, Clone)]
pub struct TableShape {
    /// Pages of memory.
    pub pages: u64,
    /// Blocks of each disk.
    pub disk_blocks: Vec<u64>,
    /// Bytes of each boot image.
    pub image_bytes: Vec<u64>,
    /// Whether there is a base.
    pub has_base: bool,
    /// Units in the file.
    pub own_units: u64,
}

/// The hash by which units are told apart.
pub fn unit_hash(unit: &[u8]) -> UnitHash {
    let mut short = [0; HASH_BYTES];
    short.copy_from_slice(&blake3::hash(unit).as_bytes()[..HASH_BYTES]);
    short
}

#[derive(Serialize, Deserialize)]
struct RawRun(u16, u64, u32, u8, u8, u64, #[serde(with = "serde_bytes")] Vec<u8>);

const OWN: u8 = 1;
const BASE: u8 = 2;
const IMAGE: u8 = 3;
const PATCHED: u8 = 4;

impl Table {
    /// Adds a unit that lies after all others. `image` is where it is in a boot image, or it
    /// has this hash, here or in the base.
    pub fn push(&mut self, place: UnitPlace, unit: &Source) {
        if let Some(last) = self.runs.last_mut()
            && last.count < MAX_RUN_UNITS
            && last.first.after(u64::from(last.count)) == place
            && same_memory(last.first, place)
        {
            let follows = match (&mut last.source, unit) {
                (Source::Own(hashes), Source::Own(more)) | (Source::Base(hashes), Source::Base(more)) => {
                    hashes.extend(more);
                    true
                }
                (Source::Image { image, first_page }, Source::Image { image: other, first_page: page }) => {
                    image == other && first_page.checked_add(u64::from(last.count)) == Some(*page)
                }
                (
                    Source::Patched { image, first_page, hashes },
                    Source::Patched { image: other, first_page: page, hashes: more },
                ) if image == other && first_page.checked_add(u64::from(last.count)) == Some(*page) => {
                    hashes.extend(more);
                    true
                }
                _ => false,
            };
            if follows {
                last.count += 1;
                return;
            }
        }
        self.runs.push(Run { first: place, count: 1, source: unit.clone() });
    }

    /// Its bytes, in pieces of a chunk each.
    pub fn encode(&self) -> Vec<Vec<u8>> {
        let limit = chunk_limit_bytes(ChunkKind::Table) as usize;
        let mut pieces = vec![Vec::new()];
        for run in &self.runs {
            let mut bytes = Vec::new();
            // Numbers and byte strings written to memory do not fail.
            rmp_serde::encode::write(&mut bytes, &RawRun::from(run)).expect("a run encodes");
            match pieces.last_mut() {
                Some(piece) if piece.len() + bytes.len() <= limit => piece.extend(bytes),
                _ => pieces.push(bytes),
            }
        }
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }

    /// Adds the runs that the next piece holds.
    ///
    /// # Errors
    /// When it does not decode, or its runs are not in order.
    pub fn decode_piece(&mut self, piece: &[u8]) -> Result<(), FormatError> {
        let mut rest = piece;
        while !rest.is_empty() {
            let raw: RawRun = rmp_serde::decode::from_read(&mut rest)
                .map_err(|error| FormatError::damaged("table", error.to_string()))?;
            let run = Run::try_from(raw)?;
            if self.runs.last().is_some_and(|last| last.last() >= run.first) {
                return Err(FormatError::damaged("table", "its runs are not in order"));
            }
            self.runs.push(run);
        }
        Ok(())
    }

    /// Checks that every run lies where this machine, its images and the file have something.
    ///
    /// # Errors
    /// Says which run does not.
    pub fn check(&self, shape: &TableShape) -> Result<(), FormatError> {
        let mut own = 0;
        for run in &self.runs {
            let outside = |what: &str| {
                FormatError::damaged(
                    "table",
                    format!("{:?} and {} more lie outside {what}", run.first, run.count - 1),
                )
            };
            let limit = match run.first {
                UnitPlace::Page(_) => shape.pages,
                UnitPlace::Block { disk, .. } => {
                    shape.disk_blocks.get(usize::from(disk)).copied().unwrap_or_default()
                }
            };
            if run.last().index() >= limit {
                return Err(outside("the machine"));
            }
            if run.source.is_own() {
                own += u64::from(run.count);
            }
            match &run.source {
                Source::Base(_) if !shape.has_base => return Err(outside("a file without a base")),
                Source::Own(_) | Source::Base(_) => {}
                Source::Image { image, first_page } | Source::Patched { image, first_page, .. } => {
                    let bytes = shape.image_bytes.get(usize::from(*image)).copied().unwrap_or_default();
                    let end = first_page.checked_add(u64::from(run.count));
                    if end.is_none_or(|end| end > bytes.div_ceil(UNIT_BYTES as u64)) {
                        return Err(outside("their boot image"));
                    }
                }
            }
        }
        if own != shape.own_units {
            let cause = format!("it has {own} units of this file, the file holds {}", shape.own_units);
            return Err(FormatError::damaged("table", cause));
        }
        Ok(())
    }

    /// The run that has this unit, and which unit of the run it is.
    pub fn find(&self, place: UnitPlace) -> Option<(usize, u32)> {
        let number = self.runs.partition_point(|run| run.first <= place).checked_sub(1)?;
        let run = self.runs.get(number)?;
        let within = u32::try_from(run.first.distance(place)?).ok()?;
        (within < run.count).then_some((number, within))
    }

    /// The hash of a unit, where the table has one.
    pub fn hash_of(&self, place: UnitPlace) -> Option<UnitHash> {
        let (run, within) = self.find(place)?;
        self.runs[run].source.hashes().get(within as usize).copied()
    }

    /// How many units there are in all.
    pub fn units(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count)).sum()
    }
}

fn same_memory(one: UnitPlace, other: UnitPlace) -> bool {
    one.distance(other).is_some()
}

impl Run {
    fn last(&self) -> UnitPlace {
        self.first.after(u64::from(self.count) - 1)
    }
}

impl From<&Run> for RawRun {
    fn from(run: &Run) -> RawRun {
        // Memory first: it is place 0, disk n place n + 1.
        let place = match run.first {
            UnitPlace::Page(_) => 0,
            UnitPlace::Block { disk, .. } => u16::from(disk) + 1,
        };
        let hashes = run.source.hashes().concat();
        let (source, image, first_page) = match run.source {
            Source::Own(_) => (OWN, 0, 0),
            Source::Base(_) => (BASE, 0, 0),
            Source::Image { image, first_page } => (IMAGE, image, first_page),
            Source::Patched { image, first_page, .. } => (PATCHED, image, first_page),
        };
        RawRun(place, run.first.index(), run.count, source, image, first_page, hashes)
    }
}

impl TryFrom<RawRun> for Run {
    type Error = FormatError;

    fn try_from(raw: RawRun) -> Result<Run, FormatError> {
        let RawRun(place, index, count, source, image, first_page, hashes) = raw;
        let damaged = |cause: String| FormatError::damaged("table", cause);
        let first = match place.checked_sub(1) {
            None => UnitPlace::Page(index),
            Some(disk) => {
                let disk = u8::try_from(disk).map_err(|_| damaged(format!("found disk {disk}")))?;
                UnitPlace::Block { disk, index }
            }
        };
        if !(1..=MAX_RUN_UNITS).contains(&count) || index.checked_add(u64::from(count)).is_none() {
            return Err(damaged(format!("found a run of {count} units at {index}")));
        }
        let expected = if source == IMAGE { 0 } else { count as usize * HASH_BYTES };
        if hashes.len() != expected {
            return Err(damaged(format!("found {} bytes of hashes, expected {expected}", hashes.len())));
        }
        let split = || {
            let (hashes, _) = hashes.as_chunks::<HASH_BYTES>();
            hashes.to_vec()
        };
        let source = match (source, image, first_page) {
            (OWN, 0, 0) => Source::Own(split()),
            (BASE, 0, 0) => Source::Base(split()),
            (IMAGE, image, first_page) if matches!(first, UnitPlace::Page(_)) => {
                Source::Image { image, first_page }
            }
            (PATCHED, image, first_page) if matches!(first, UnitPlace::Page(_)) => {
                Source::Patched { image, first_page, hashes: split() }
            }
            (source, ..) => return Err(damaged(format!("found source {source} where none such can be"))),
        };
        Ok(Run { first, count, source })
    }
}
