//! Qcow2 images and their backing chains, through `imago`, built without async: its calls
//! block the thread that makes them, which is the machine's own.
//!
//! Every file of a chain is opened, locked and looked at here (see [`Header`]); `imago` is
//! handed open files and opens none by itself, so an image leads nowhere but down a chain
//! that was checked.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{
    DenyImplicitOpenGate, DynStorage, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, Mapping,
    ShallowMapping, Storage, StorageOpenOptions,
};

use super::header::Header;
use super::image::{Extent, Image, OpenedFile, write_zeros};
use super::lock::Access;
use super::spec::Format;

/// Most images in a chain.
const MAX_LAYERS: usize = 64;

/// What the bytes of an image are in: a file, or one that is written to by way of a journal.
type AnyStorage = Box<dyn DynStorage>;

/// A qcow2 image over its backing chain.
pub struct Qcow2Image {
    access: FormatAccess<AnyStorage>,
    path: PathBuf,
    is_writable: bool,
    cluster_bytes: u64,
}

impl Qcow2Image {
    /// Opens the image in `top`, and the images below it for reading.
    ///
    /// # Errors
    /// When one of them is not there, is in use, damaged, or has what cannot be served.
    pub fn new(top: OpenedFile) -> Result<Qcow2Image> {
        let (path, is_writable) = (top.path.clone(), top.access == Access::Write);
        let cluster_bytes = header_of(&top)?.cluster_bytes;
        let access = open_layer(top, Format::Qcow2, None, &mut Vec::new())?;
        Ok(Qcow2Image { access, path, is_writable, cluster_bytes })
    }

    /// Opens the image in `top` for writing, by way of `storage`, which has the same bytes.
    ///
    /// # Errors
    /// As [`Qcow2Image::new`].
    pub fn with_storage(top: OpenedFile, storage: AnyStorage) -> Result<Qcow2Image> {
        let path = top.path.clone();
        let cluster_bytes = header_of(&top)?.cluster_bytes;
        let access = open_layer(top, Format::Qcow2, Some(storage), &mut Vec::new())?;
        Ok(Qcow2Image { access, path, is_writable: true, cluster_bytes })
    }

    /// Forgets all that this image holds over those below it.
    ///
    /// # Errors
    /// When the host fails.
    pub fn discard_all(&mut self) -> io::Result<()> {
        self.access.discard_to_backing(0, self.access.size())
    }

    /// Whether the stretch at `at` is this image's own, not one's below it; and how far it goes,
    /// at most `limit_bytes`.
    ///
    /// # Errors
    /// When the host fails.
    pub fn own_extent(&self, at: u64, limit_bytes: u64) -> io::Result<(bool, u64)> {
        let (mapping, len_bytes) = self.access.get_shallow_mapping(at, limit_bytes)?;
        let is_own = match mapping {
            ShallowMapping::Indirect { .. } => false,
            ShallowMapping::Zero { explicit, .. } => explicit,
            _ => true,
        };
        Ok((is_own, len_bytes.clamp(1, limit_bytes)))
    }

    fn zero_clusters(&mut self, at: u64, len_bytes: u64, release: bool) -> io::Result<()> {
        let zeroed = if release {
            self.access.discard_to_zero(at, len_bytes)
        } else {
            self.access.write_zeroes(at, len_bytes)
        };
        match zeroed {
            // Version 2 has no clusters of zeros.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => write_zeros(self, at, len_bytes),
            zeroed => zeroed,
        }
    }

    /// Zeroes a part of a cluster.
    fn zero_part(&mut self, part: Range<u64>) -> io::Result<()> {
        let len_bytes = part.end - part.start;
        if len_bytes == 0 {
            return Ok(());
        }
        let known = self.extent(part.start, len_bytes)?;
        if known.is_zero && known.len_bytes == len_bytes {
            return Ok(());
        }
        write_zeros(self, part.start, len_bytes)
    }
}

/// What an image says of itself.
///
/// # Errors
/// When it is damaged, or has what cannot be served.
pub fn header_of(opened: &OpenedFile) -> Result<Header> {
    let shown = opened.path.display();
    let file_bytes = opened.len_bytes()?;
    let mut bytes = vec![0; file_bytes.min(Header::MAX_BYTES) as usize];
    let refused = || format!("the disk image {shown} cannot be used");
    opened.file.read_exact_at(&mut bytes, 0).with_context(refused)?;
    let header = Header::parse(&bytes, file_bytes).with_context(refused)?;
    let table = |(offset, len): (u64, u64)| {
        let mut table = vec![0; len as usize];
        opened.file.read_exact_at(&mut table, offset).map(|()| table)
    };
    let l1_table = table(header.l1_range()).with_context(refused)?;
    header.check_l1(&l1_table, file_bytes).with_context(refused)?;
    if opened.access == Access::Write {
        let refcount_table = table(header.refcount_range()).with_context(refused)?;
        header.check_refcounts(&refcount_table, file_bytes).with_context(refused)?;
    }
    Ok(header)
}

/// Opens an image and those below it; its bytes are read from `storage` where that is given.
/// `above` has the files on the way down to it.
fn open_layer(
    opened: OpenedFile,
    format: Format,
    storage: Option<AnyStorage>,
    above: &mut Vec<(u64, u64)>,
) -> Result<FormatAccess<AnyStorage>> {
    let path = opened.path.clone();
    let refused = || format!("the disk image {} cannot be used", path.display());
    let metadata = opened.file.metadata()?;
    let identity = (metadata.dev(), metadata.ino());
    if above.contains(&identity) || above.len() == MAX_LAYERS {
        bail!(
            "the backing files of the disk image {} go round in a circle, or are more than {MAX_LAYERS}; \
             see qemu-img info --backing-chain",
            path.display()
        );
    }
    above.push(identity);
    let backing = match format {
        Format::Raw => None,
        Format::Qcow2 => {
            backing_of(&opened)?.map(|(file, format)| open_layer(file, format, None, above)).transpose()?
        }
    };
    let is_writable = opened.access == Access::Write;
    let storage = match storage {
        Some(storage) => storage,
        None => {
            let options = StorageOpenOptions::new().filename(&path).write(is_writable);
            Box::new(ImagoFile::from_open_file(opened.file, options).with_context(refused)?)
        }
    };
    let gate = DenyImplicitOpenGate::default();
    Ok(match format {
        Format::Raw => {
            FormatAccess::new(Raw::builder(storage).write(is_writable).open(gate).with_context(refused)?)
        }
        Format::Qcow2 => {
            let builder = Qcow2::<AnyStorage>::builder(storage).backing(backing).data_file(None);
            FormatAccess::new(builder.write(is_writable).open(gate).with_context(refused)?)
        }
    })
}

/// The image below this one, opened for reading, and its format.
fn backing_of(opened: &OpenedFile) -> Result<Option<(OpenedFile, Format)>> {
    let image = opened.path.display();
    let Some(backing) = header_of(opened)?.backing else { return Ok(None) };
    let path =
        backing.resolve(&opened.path).with_context(|| format!("the disk image {image} cannot be used"))?;
    let shown = path.display();
    if !path.exists() {
        bail!(
            "the disk image {image} stands on {shown}, which is not there; put it back, or say where it is \
             now: qemu-img rebase -u -b FILE -F FORMAT {image}"
        );
    }
    let below = OpenedFile::open(&path, Access::Read)?;
    let format = match backing.format.as_deref() {
        Some("qcow2") => Format::Qcow2,
        Some("raw" | "file" | "host_device") => Format::Raw,
        Some(other) => bail!(
            "the disk image {image} stands on {shown}, of format {other:?}; convert that to raw or qcow2 \
             with qemu-img convert"
        ),
        // Taking it for raw is safe; following a header that a guest may have written into a
        // raw image is not.
        None if below.guess_format()? == Format::Raw => Format::Raw,
        None => bail!(
            "the disk image {image} does not say of which format its backing file {shown} is; say it: \
             qemu-img rebase -u -b {} -F qcow2 {image}",
            backing.name
        ),
    };
    Ok(Some((below, format)))
}

/// Makes a qcow2 image over `image` that holds nothing yet. Whoever looks finds all of it,
/// or nothing.
///
/// # Errors
/// When the host cannot, or the image's name cannot stand in a qcow2 header.
pub fn create_overlay(overlay: &Path, image: &Path, format: Format, len_bytes: u64) -> Result<()> {
    let shown = overlay.display();
    let refused = || format!("cannot make the overlay {shown}; free some space, or choose another place");
    let folder = overlay.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder.canonicalize().with_context(refused)?;
    let image = image.canonicalize().with_context(refused)?;
    // Beside each other they can be moved together.
    let named = if image.parent() == Some(&folder) { image.file_name().map(Path::new) } else { None };
    let named = named.unwrap_or(&image).to_str().filter(|name| name.len() <= 1023);
    let Some(named) = named else {
        bail!("the path of {} cannot be kept in an overlay: at most 1023 bytes of UTF-8", image.display())
    };
    let file = tempfile::NamedTempFile::new_in(&folder).with_context(refused)?;
    let options = StorageOpenOptions::new().filename(file.path()).write(true);
    let storage = ImagoFile::from_open_file(file.reopen()?, options).with_context(refused)?;
    let builder = Qcow2::<ImagoFile>::create_builder(storage);
    builder
        .size(len_bytes)
        .backing(named.to_owned(), format.name().to_owned())
        .create()
        .and_then(|()| file.as_file().sync_all())
        .with_context(refused)?;
    file.persist_noclobber(overlay).with_context(refused)?;
    // A name that a power cut takes would take every flush of the guest with it.
    File::open(&folder).and_then(|folder| folder.sync_all()).with_context(refused)
}

/// Makes a qcow2 image of zeros that stands on no other, in the place of what is at `path`.
///
/// # Errors
/// When the host cannot.
pub fn create_image(path: &Path, len_bytes: u64) -> io::Result<()> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    let options = StorageOpenOptions::new().filename(path).write(true);
    let storage = ImagoFile::from_open_file(file, options)?;
    Qcow2::<ImagoFile>::create_builder(storage).size(len_bytes).create()
}

/// Looks whether an overlay stands on `image`.
///
/// # Errors
/// When it stands on something else.
pub fn check_overlay(overlay: &OpenedFile, image: &Path) -> Result<()> {
    let shown = overlay.path.display();
    let Some(backing) = header_of(overlay)?.backing else {
        bail!("{shown} is a disk image of its own, not an overlay; give it without overlay=")
    };
    let found = backing.resolve(&overlay.path)?;
    if found.canonicalize().ok() != image.canonicalize().ok() {
        bail!(
            "the overlay {shown} stands on {}, not on {}; give that image with it, or another overlay",
            found.display(),
            image.display()
        );
    }
    Ok(())
}

impl Image for Qcow2Image {
    fn len_bytes(&self) -> u64 {
        self.access.size()
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.access.read(into, at)
    }

    fn write_at(&mut self, at: u64, from: &[u8]) -> io::Result<()> {
        self.access.write(from, at)
    }

    fn zero(&mut self, at: u64, len_bytes: u64, release: bool) -> io::Result<()> {
        // imago 0.2.6 computes wrongly with ranges that have only parts of clusters: it gets
        // whole ones. What is left after the last whole cluster of the disk is one, too.
        let end = at + len_bytes;
        let whole_end =
            if end == self.len_bytes() { end } else { end / self.cluster_bytes * self.cluster_bytes };
        let whole_start = at.next_multiple_of(self.cluster_bytes);
        if whole_start >= whole_end {
            return self.zero_part(at..end);
        }
        self.zero_part(at..whole_start)?;
        self.zero_clusters(whole_start, whole_end - whole_start, release)?;
        self.zero_part(whole_end..end)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.access.flush()?;
        self.access.sync()
    }

    fn extent(&self, at: u64, limit_bytes: u64) -> io::Result<Extent> {
        let limit_bytes = limit_bytes.min(self.access.size() - at);
        let (mapping, len_bytes) = self.access.get_mapping(at, limit_bytes)?;
        if let Mapping::Raw { storage, offset, .. } = mapping
            && offset >= storage.size()?
        {
            let what = format!("the image is cut off: data would lie at byte {offset}; fetch it again");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let is_zero = matches!(mapping, Mapping::Zero { .. });
        Ok(Extent { len_bytes: len_bytes.clamp(1, limit_bytes), is_zero })
    }
}

impl Drop for Qcow2Image {
    fn drop(&mut self) {
        // What was written but not flushed is in the file; the tables that lead there are not.
        if self.is_writable
            && let Err(error) = self.flush()
        {
            tracing::error!("the disk image {} could not be closed cleanly: {error}", self.path.display());
        }
    }
}
