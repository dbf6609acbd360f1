//! The header of a qcow2 image (QEMU: docs/interop/qcow2), looked at before `imago` opens
//! the image: what it cannot serve is refused here, with a line that says the way out, and
//! so is what would have it trust sizes and places that no good image has.

use std::path::Path;

use super::image::{QCOW2_MAGIC, SECTOR_BYTES};

/// Largest disk: hashing it takes hours.
const MAX_DISK_BYTES: u64 = 64 << 40;
/// Largest L1 table, as QEMU has it.
const MAX_L1_ENTRIES: u64 = (32 << 20) / 8;
/// Largest refcount table, as QEMU has it.
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
const V2_BYTES: usize = 72;
const V3_BYTES: usize = 104;
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// Where an L1 entry has the place of its L2 table.
const L1_OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// What is to be known of an image before it is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Size of the disk in bytes.
    pub len_bytes: u64,
    /// The image below, where there is one.
    pub backing: Option<Backing>,
    /// Where the L1 table lies, and how many entries it has.
    l1_table: (u64, u64),
    /// Where the refcount table lies, and its bytes.
    refcount_table: (u64, u64),
    /// Size of a cluster, the unit that an image allocates.
    pub cluster_bytes: u64,
}

/// The image below another, as the header names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// Its name: a path, relative to the image that names it.
    pub name: String,
    /// Its format, where that is said.
    pub format: Option<String>,
}

/// Why an image is refused. `0` and the like are shown as found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Cut off, or not qcow2 at all.
    #[error("it does not begin as a qcow2 image does; say format=raw if it is one")]
    Magic,
    /// Too short for what its header says.
    #[error("it is cut off: {what} would end at byte {end}, the file has {len}; fetch it again")]
    CutOff {
        /// What lies outside.
        what: &'static str,
        /// Its end.
        end: u64,
        /// The file's size.
        len: u64,
    },
    /// A version that there is not.
    #[error("it is of qcow2 version {0}; versions 2 and 3 can be read")]
    Version(u32),
    /// Encrypted contents.
    #[error("it is encrypted; decrypt it with qemu-img convert")]
    Encrypted,
    /// A feature without which it cannot be read right.
    #[error("it {what}; {way_out}")]
    Feature {
        /// What it has.
        what: &'static str,
        /// What helps.
        way_out: &'static str,
    },
    /// A number that no good image has.
    #[error("its header has {what} {found}, which no good image has; check it with qemu-img check")]
    Value {
        /// Which.
        what: &'static str,
        /// As found.
        found: u64,
    },
    /// A disk of no whole sectors, or of too many.
    #[error("its disk has {0} bytes; it must be a multiple of 512, not 0 and at most 64 TiB")]
    DiskSize(u64),
}

/// Features without which an image cannot be read right: bit, what it means, what helps.
const FEATURES: [(u32, &str, &str); 5] = [
    (0, "was not closed cleanly", "repair it with qemu-img check -r all"),
    (1, "is marked as corrupt", "repair it with qemu-img check -r all"),
    (2, "keeps its data in another file", "join them with qemu-img convert -O qcow2"),
    (3, "is compressed otherwise than with zlib", "unpack it with qemu-img convert -O qcow2"),
    (4, "has extended L2 entries", "do without them: qemu-img convert -O qcow2 -o extended_l2=off"),
];

impl Header {
    /// How much of a file [`Header::parse`] may need.
    pub const MAX_BYTES: u64 = 1 << *CLUSTER_BITS.end();

    /// Reads the header from the first bytes of a file with `file_bytes` bytes.
    ///
    /// # Errors
    /// When the image is damaged, or has what cannot be served.
    pub fn parse(bytes: &[u8], file_bytes: u64) -> Result<Header, HeaderError> {
        if bytes.get(..4) != Some(&QCOW2_MAGIC) {
            return Err(HeaderError::Magic);
        }
        let fields = Fields { bytes, file_bytes };
        let version = fields.u32(4)?;
        if !(2..=3).contains(&version) {
            return Err(HeaderError::Version(version));
        }
        let header_bytes = if version == 2 { V2_BYTES } else { fields.u32(100)? as usize };
        if version == 3 {
            refuse_features(fields.u64(72)?)?;
        }
        let cluster_bits = fields.u32(20)?;
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(HeaderError::Value { what: "cluster_bits", found: cluster_bits.into() });
        }
        let cluster_bytes = 1 << cluster_bits;
        if version == 3 && !(V3_BYTES..=cluster_bytes as usize).contains(&header_bytes) {
            return Err(HeaderError::Value { what: "header_length", found: header_bytes as u64 });
        }
        if fields.u32(32)? != 0 {
            return Err(HeaderError::Encrypted);
        }
        let len_bytes = fields.u64(24)?;
        if len_bytes == 0 || !len_bytes.is_multiple_of(SECTOR_BYTES) || len_bytes > MAX_DISK_BYTES {
            return Err(HeaderError::DiskSize(len_bytes));
        }
        let l1_table = fields.l1_table(len_bytes, cluster_bytes)?;
        let refcount_table = fields.refcount_table(cluster_bytes)?;
        let format = fields.backing_format(header_bytes, cluster_bytes)?;
        let backing = fields.backing_name(cluster_bytes)?.map(|name| Backing { name, format });
        Ok(Header { len_bytes, backing, l1_table, refcount_table, cluster_bytes })
    }

    /// Where the L1 table lies: offset and length in bytes, inside the file.
    pub fn l1_range(&self) -> (u64, u64) {
        (self.l1_table.0, self.l1_table.1 * 8)
    }

    /// Where the refcount table lies: offset and length in bytes, inside the file.
    pub fn refcount_range(&self) -> (u64, u64) {
        self.refcount_table
    }

    /// Looks whether the refcounts lie inside the file, and whether the header itself has
    /// one: writing to an image in which it counts as free space would destroy it.
    ///
    /// # Errors
    /// When it is not so.
    pub fn check_refcounts(&self, refcount_table: &[u8], file_bytes: u64) -> Result<(), HeaderError> {
        for (index, entry) in refcount_table.as_chunks().0.iter().enumerate() {
            let offset = u64::from_be_bytes(*entry);
            if !offset.is_multiple_of(self.cluster_bytes) || (index == 0 && offset == 0) {
                return Err(HeaderError::Value { what: "a refcount block at", found: offset });
            }
            if offset != 0 {
                inside("a refcount block", offset.saturating_add(self.cluster_bytes), file_bytes)?;
            }
        }
        Ok(())
    }

    /// Looks whether all second-level tables lie inside the file.
    ///
    /// # Errors
    /// When one does not.
    pub fn check_l1(&self, l1_table: &[u8], file_bytes: u64) -> Result<(), HeaderError> {
        for entry in l1_table.as_chunks().0 {
            let offset = u64::from_be_bytes(*entry) & L1_OFFSET_MASK;
            if offset != 0 {
                let end = offset.saturating_add(self.cluster_bytes);
                inside("an L2 table", end, file_bytes)?;
                if !offset.is_multiple_of(self.cluster_bytes) {
                    return Err(HeaderError::Value { what: "an L2 table at", found: offset });
                }
            }
        }
        Ok(())
    }
}

fn refuse_features(features: u64) -> Result<(), HeaderError> {
    for (bit, what, way_out) in FEATURES {
        if features >> bit & 1 == 1 {
            return Err(HeaderError::Feature { what, way_out });
        }
    }
    if features != 0 {
        return Err(HeaderError::Value { what: "incompatible_features", found: features });
    }
    Ok(())
}

fn inside(what: &'static str, end: u64, len: u64) -> Result<(), HeaderError> {
    if end > len { Err(HeaderError::CutOff { what, end, len }) } else { Ok(()) }
}

/// The big-endian fields at the front of a file.
struct Fields<'a> {
    bytes: &'a [u8],
    file_bytes: u64,
}

impl Fields<'_> {
    fn slice(&self, offset: u64, len: u64) -> Result<&[u8], HeaderError> {
        let end = offset.saturating_add(len);
        let range = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
        range.and_then(|(start, end)| self.bytes.get(start..end)).ok_or(HeaderError::CutOff {
            what: "the header",
            end,
            len: self.file_bytes,
        })
    }

    fn u32(&self, offset: u64) -> Result<u32, HeaderError> {
        let bytes = self.slice(offset, 4)?;
        Ok(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    fn u64(&self, offset: u64) -> Result<u64, HeaderError> {
        Ok(u64::from(self.u32(offset)?) << 32 | u64::from(self.u32(offset + 4)?))
    }

    fn l1_table(&self, len_bytes: u64, cluster_bytes: u64) -> Result<(u64, u64), HeaderError> {
        let (entries, offset) = (u64::from(self.u32(36)?), self.u64(40)?);
        // An entry stands for an L2 table of one cluster, whose entries of 8 bytes stand for
        // a cluster each.
        let needed = len_bytes.div_ceil(cluster_bytes * (cluster_bytes / 8));
        if entries < needed || entries > MAX_L1_ENTRIES {
            return Err(HeaderError::Value { what: "l1_size", found: entries });
        }
        if offset == 0 || !offset.is_multiple_of(cluster_bytes) {
            return Err(HeaderError::Value { what: "l1_table_offset", found: offset });
        }
        inside("the L1 table", offset.saturating_add(entries * 8), self.file_bytes)?;
        Ok((offset, entries))
    }

    fn refcount_table(&self, cluster_bytes: u64) -> Result<(u64, u64), HeaderError> {
        let (offset, clusters) = (self.u64(48)?, u64::from(self.u32(56)?));
        let len = clusters * cluster_bytes;
        if clusters == 0 || len > MAX_REFCOUNT_TABLE_BYTES {
            return Err(HeaderError::Value { what: "refcount_table_clusters", found: clusters });
        }
        if offset == 0 || !offset.is_multiple_of(cluster_bytes) {
            return Err(HeaderError::Value { what: "refcount_table_offset", found: offset });
        }
        inside("the refcount table", offset.saturating_add(len), self.file_bytes)?;
        Ok((offset, len))
    }

    fn backing_name(&self, cluster_bytes: u64) -> Result<Option<String>, HeaderError> {
        let (offset, len) = (self.u64(8)?, u64::from(self.u32(16)?));
        if offset == 0 {
            return Ok(None);
        }
        if len == 0 || len > 1023 || offset.saturating_add(len) > cluster_bytes {
            return Err(HeaderError::Value { what: "backing_file_size", found: len });
        }
        let name = self.slice(offset, len)?.to_vec();
        // Its own error, rather than a name that is not the file's.
        String::from_utf8(name).map(Some).map_err(|_| HeaderError::Feature {
            what: "names a backing file that is not UTF-8",
            way_out: "rename that and set it with qemu-img rebase -u",
        })
    }

    /// The extension that says the format of the backing file. Unlike `imago`, QEMU writes
    /// it into images of version 2, too.
    fn backing_format(&self, header_bytes: usize, cluster_bytes: u64) -> Result<Option<String>, HeaderError> {
        let mut at = header_bytes as u64;
        let mut format = None;
        while at + 8 <= cluster_bytes {
            let (kind, len) = (self.u32(at)?, u64::from(self.u32(at + 4)?));
            at += 8;
            if kind == EXTENSION_END {
                break;
            }
            if at + len > cluster_bytes {
                return Err(HeaderError::Value { what: "an extension of length", found: len });
            }
            if kind == EXTENSION_BACKING_FORMAT {
                format = Some(String::from_utf8_lossy(self.slice(at, len)?).into_owned());
            }
            at += len.next_multiple_of(8);
        }
        Ok(format)
    }
}

impl Backing {
    /// The local path that it names, from the folder of the image that names it.
    ///
    /// # Errors
    /// When it names no local file.
    pub fn resolve(&self, image: &Path) -> Result<std::path::PathBuf, HeaderError> {
        let name = self.name.strip_prefix("file:").unwrap_or(&self.name);
        let protocol = name.split('/').next().is_some_and(|head| head.contains(':'));
        if protocol {
            return Err(HeaderError::Feature {
                what: "has a backing file that is not a local one",
                way_out: "copy that here and set it with qemu-img rebase -u",
            });
        }
        Ok(image.parent().unwrap_or(Path::new("")).join(name))
    }
}
