//! Base images from one host to another, chunk by chunk: only those chunks travel that the other
//! side has nowhere.
//!
//! ```text
//!   FILE.sync of an earlier attempt, and FILE as it was ──┐ same hash: taken from here
//!   the primary's image: identity, hashes, contents ──────┴─> FILE.sync ──whole hash right──> FILE
//! ```
//!
//! Images are compared and copied as the guest reads them, so the two sides may keep them in different
//! formats. `FILE.sync` is raw, so that a sync that is killed goes on where it was; where FILE is to be
//! qcow2, it is written from there at the end.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use log_format::resync::IMAGE_CHUNK_BYTES;
use log_format::{ImagePart, ImageReply, ImageRequest};

use crate::disk::{self, DiskSpec, Format, Image};

/// Most chunks whose hashes are asked for at once.
const HASHES_AT_ONCE: u64 = 512;
/// Most chunks whose contents are asked for at once.
const CHUNKS_AT_ONCE: usize = 16;
const HASH_BYTES: usize = 32;

/// The base images of a machine, for those that ask for them.
pub struct ServedImages {
    vm: String,
    disks: Vec<ServedDisk>,
}

struct ServedDisk {
    spec: DiskSpec,
    len_bytes: u64,
    hash: [u8; 32],
    /// Opened when it is first asked for.
    image: Mutex<Option<Box<dyn Image>>>,
}

impl ServedImages {
    /// The images below these disks, whose sizes and hashes are `identities`.
    pub fn new(vm: &str, specs: &[DiskSpec], identities: &[(u64, [u8; 32])]) -> ServedImages {
        let disk = |(spec, (len_bytes, hash)): (&DiskSpec, &(u64, [u8; 32]))| ServedDisk {
            spec: spec.clone(),
            len_bytes: *len_bytes,
            hash: *hash,
            image: Mutex::new(None),
        };
        ServedImages { vm: vm.to_owned(), disks: specs.iter().zip(identities).map(disk).collect() }
    }
}

impl primary::driver::ImageServer for ServedImages {
    fn answer(&self, request: &ImageRequest) -> Result<ImageReply, String> {
        if request.vm != self.vm {
            return Err(format!("this is the machine {}, not {}; give the same --name", self.vm, request.vm));
        }
        let disk = self.disks.get(usize::from(request.disk)).ok_or_else(|| {
            format!("the machine has {} disks; give the same --disk options", self.disks.len())
        })?;
        let data = disk.part(request).map_err(|error| crate::one_line(&error))?;
        let ImageRequest { disk: number, part, at, .. } = *request;
        let (image_bytes, image_hash) = (disk.len_bytes, disk.hash);
        Ok(ImageReply { disk: number, part, at, image_bytes, image_hash, data: data.into() })
    }
}

impl ServedDisk {
    fn part(&self, request: &ImageRequest) -> Result<Vec<u8>> {
        let limit_chunks = match request.part {
            ImagePart::Identity => return Ok(Vec::new()),
            ImagePart::Hashes => HASHES_AT_ONCE,
            ImagePart::Contents => CHUNKS_AT_ONCE as u64,
        };
        let end = request.at.saturating_add(request.len_bytes);
        if request.len_bytes > limit_chunks * IMAGE_CHUNK_BYTES || end > self.len_bytes {
            bail!("it asks for bytes {} to {end} of a disk of {}", request.at, self.len_bytes);
        }
        let mut image = self.image.lock().unwrap_or_else(PoisonError::into_inner);
        let image = match &mut *image {
            Some(image) => image,
            none => none.insert(disk::open_to_read(&below(&self.spec))?),
        };
        let mut data = vec![0; request.len_bytes as usize];
        image.read_at(request.at, &mut data).context("the image cannot be read")?;
        if request.part == ImagePart::Contents {
            return Ok(data);
        }
        Ok(data
            .chunks(IMAGE_CHUNK_BYTES as usize)
            .flat_map(|chunk| *blake3::hash(chunk).as_bytes())
            .collect())
    }
}

/// How far a sync is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SyncProgress {
    /// Size of the image.
    pub total_bytes: u64,
    /// How far it was looked at.
    pub done_bytes: u64,
    /// What of that came from the other host.
    pub fetched_bytes: u64,
}

/// Makes the image of a disk the other side's, where it is missing or differs. What was there
/// before is kept as `FILE.old`.
///
/// `ask` gets answers; `progress` is told how far it is, and comes back when more may be fetched.
/// Whatever an interrupted call had fetched, the next one finds in `FILE.sync`.
///
/// Returns `None` when the image was right already.
///
/// # Errors
/// When the other side does not answer, the image cannot be written, or it is not right at the end.
pub async fn sync_image(
    spec: &DiskSpec,
    vm: &str,
    disk: u8,
    mut ask: impl AsyncFnMut(ImageRequest) -> Result<ImageReply>,
    mut progress: impl AsyncFnMut(SyncProgress),
) -> Result<Option<SyncProgress>> {
    let request = |part, at, len_bytes| ImageRequest { vm: vm.to_owned(), disk, part, at, len_bytes };
    let identity = ask(request(ImagePart::Identity, 0, 0)).await?;
    let shown = spec.path.display();
    let old = spec.path.exists().then(|| disk::open_to_read(&below(spec))).transpose()?;
    if let Some(old) = &old
        && old.len_bytes() == identity.image_bytes
        && disk::hash_of(&**old, &spec.path)? == identity.image_hash
    {
        return Ok(None);
    }
    let is_file = std::fs::metadata(&spec.path).map_or(true, |metadata| metadata.is_file());
    if !is_file {
        bail!("{shown} is not the primary's image, and only files are made here; copy it by hand");
    }
    let format = match (spec.format, &old) {
        (None, Some(_)) => below(spec).recorded()?.1,
        (format, _) => format.unwrap_or(Format::Raw),
    };
    let mut sink = Sink::open(&spec.path, format, identity.image_bytes, old)?;
    let mut so_far = SyncProgress { total_bytes: identity.image_bytes, ..SyncProgress::default() };
    while so_far.done_bytes < so_far.total_bytes {
        let at = so_far.done_bytes;
        let len_bytes = (HASHES_AT_ONCE * IMAGE_CHUNK_BYTES).min(so_far.total_bytes - at);
        let hashes = ask(request(ImagePart::Hashes, at, len_bytes)).await?.data;
        let chunks = len_bytes.div_ceil(IMAGE_CHUNK_BYTES) as usize;
        if hashes.len() != chunks * HASH_BYTES {
            bail!(
                "the primary sent {} bytes of hashes for {chunks} chunks; is it of another version?",
                hashes.len()
            );
        }
        let missing = sink.missing(at, &hashes)?;
        for run in missing.chunk_by(|one, next| one + 1 == *next).flat_map(|run| run.chunks(CHUNKS_AT_ONCE)) {
            let from = at + run[0] * IMAGE_CHUNK_BYTES;
            let bytes = (run.len() as u64 * IMAGE_CHUNK_BYTES).min(so_far.total_bytes - from);
            let data = ask(request(ImagePart::Contents, from, bytes)).await?.data;
            sink.put(from, &data, bytes, &hashes[run[0] as usize * HASH_BYTES..])?;
            so_far.fetched_bytes += bytes;
            progress(so_far).await;
        }
        so_far.done_bytes += len_bytes;
        progress(so_far).await;
    }
    sink.finish(identity.image_hash)?;
    Ok(Some(so_far))
}

/// The image below a disk's overlay.
fn below(spec: &DiskSpec) -> DiskSpec {
    DiskSpec { overlay: None, kept: None, ..spec.clone() }
}

/// The file that becomes the image.
struct Sink {
    path: PathBuf,
    /// Of the image that it becomes.
    format: Format,
    sync_path: PathBuf,
    file: File,
    len_bytes: u64,
    old: Option<Box<dyn Image>>,
}

impl Sink {
    fn open(path: &Path, format: Format, len_bytes: u64, old: Option<Box<dyn Image>>) -> Result<Sink> {
        let sync_path = with_suffix(path, ".sync");
        let refused = || format!("cannot write {}; free some space", sync_path.display());
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).open(&sync_path);
        let file = file.with_context(refused)?;
        file.set_len(len_bytes).with_context(refused)?;
        Ok(Sink { path: path.to_owned(), format, sync_path, file, len_bytes, old })
    }

    /// Which of the chunks from `at` on are nowhere here; those that are in the image as it was are
    /// copied.
    fn missing(&mut self, at: u64, hashes: &[u8]) -> Result<Vec<u64>> {
        let mut missing = Vec::new();
        let mut chunk = vec![0; IMAGE_CHUNK_BYTES as usize];
        for (number, hash) in (0..).zip(hashes.chunks_exact(HASH_BYTES)) {
            let from = at + number * IMAGE_CHUNK_BYTES;
            let chunk = &mut chunk[..IMAGE_CHUNK_BYTES.min(self.len_bytes - from) as usize];
            self.file.read_exact_at(chunk, from)?;
            if blake3::hash(chunk) == *<&[u8; HASH_BYTES]>::try_from(hash)? {
                continue;
            }
            let end = from + chunk.len() as u64;
            let old = self.old.as_ref().filter(|old| old.len_bytes() >= end);
            if let Some(old) = old {
                old.read_at(from, chunk)?;
                if blake3::hash(chunk) == *<&[u8; HASH_BYTES]>::try_from(hash)? {
                    self.file.write_all_at(chunk, from)?;
                    continue;
                }
            }
            missing.push(number);
        }
        Ok(missing)
    }

    /// Writes chunks that came, whose hashes begin `hashes`.
    fn put(&mut self, at: u64, data: &[u8], len_bytes: u64, hashes: &[u8]) -> Result<()> {
        let is_right = data.len() as u64 == len_bytes
            && data
                .chunks(IMAGE_CHUNK_BYTES as usize)
                .zip(hashes.chunks_exact(HASH_BYTES))
                .all(|(chunk, hash)| blake3::hash(chunk).as_bytes()[..] == *hash);
        if !is_right {
            bail!(
                "what the primary sent of its image at byte {at} is not what it announced; see to its disk"
            );
        }
        let refused = || format!("cannot write {}; free some space", self.sync_path.display());
        self.file.write_all_at(data, at).with_context(refused)
    }

    /// Looks at all of it once more, and gives it its name.
    fn finish(self, expected: [u8; 32]) -> Result<()> {
        let shown = self.sync_path.display();
        self.file.sync_all().with_context(|| format!("cannot write {shown}; free some space"))?;
        let raw = DiskSpec { format: Some(Format::Raw), ..DiskSpec::new(self.sync_path.clone()) };
        let image = disk::open_to_read(&raw)?;
        if disk::hash_of(&*image, &self.sync_path)? != expected {
            bail!("{shown} is not the primary's image after all; remove it and try again");
        }
        let made = match self.format {
            Format::Raw => self.sync_path.clone(),
            Format::Qcow2 => {
                let made = with_suffix(&self.path, ".qcow2.sync");
                disk::write_qcow2(&made, &*image)?;
                let qcow2 = DiskSpec { format: Some(Format::Qcow2), ..DiskSpec::new(made.clone()) };
                if disk::hash_of(&*disk::open_to_read(&qcow2)?, &made)? != expected {
                    bail!(
                        "{} was not written as it should be; see to the disk, and try again",
                        made.display()
                    );
                }
                made
            }
        };
        drop(image);
        if self.path.exists() {
            std::fs::rename(&self.path, with_suffix(&self.path, ".old"))?;
        }
        std::fs::rename(&made, &self.path)?;
        disk::sync_folder(&self.path)?;
        if made != self.sync_path {
            std::fs::remove_file(&self.sync_path)?;
        }
        Ok(())
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use primary::driver::ImageServer;

    use super::*;

    const CHUNK: usize = IMAGE_CHUNK_BYTES as usize;

    fn served(path: &Path) -> ServedImages {
        let bytes = std::fs::read(path).unwrap();
        let identity = (bytes.len() as u64, *blake3::hash(&bytes).as_bytes());
        ServedImages::new("db", &[DiskSpec::new(path.to_owned())], &[identity])
    }

    /// Syncs; the connection breaks after `requests`.
    fn sync(served: &ServedImages, path: &Path, requests: usize) -> Result<Option<SyncProgress>> {
        let mut left = requests;
        let ask = async |request: ImageRequest| {
            left = left.checked_sub(1).context("the connection broke")?;
            served.answer(&request).map_err(anyhow::Error::msg)
        };
        let spec = DiskSpec::new(path.to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(sync_image(&spec, "db", 0, ask, async |_| {}))
    }

    fn image(chunks: std::ops::Range<usize>) -> Vec<u8> {
        chunks.flat_map(|chunk| std::iter::repeat_n(chunk as u8, CHUNK)).chain([9; 512]).collect()
    }

    #[test]
    fn only_what_is_nowhere_here_is_fetched() {
        let folder = tempfile::tempdir().unwrap();
        let [theirs, ours] = ["theirs", "ours"].map(|name| folder.path().join(name));
        let mut bytes = image(0..600);
        std::fs::write(&theirs, &bytes).unwrap();
        let served = served(&theirs);
        let done = sync(&served, &ours, usize::MAX).unwrap().unwrap();
        // Chunks of zeros (0, 256 and 512) are there before they are asked for.
        assert_eq!(done.fetched_bytes, bytes.len() as u64 - 3 * IMAGE_CHUNK_BYTES);
        assert!(std::fs::read(&ours).unwrap() == bytes);
        assert_eq!(sync(&served, &ours, usize::MAX).unwrap(), None, "it is right already");

        bytes[7 * CHUNK + 5] ^= 1;
        bytes[590 * CHUNK] ^= 1;
        std::fs::write(&ours, &bytes).unwrap();
        let done = sync(&served, &ours, usize::MAX).unwrap().unwrap();
        assert_eq!(done.fetched_bytes, 2 * IMAGE_CHUNK_BYTES);
        assert!(std::fs::read(&ours).unwrap() == image(0..600));
        assert!(std::fs::read(folder.path().join("ours.old")).unwrap() == bytes, "what was there is kept");
    }

    #[test]
    fn an_interrupted_sync_goes_on_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let [theirs, ours] = ["theirs", "ours"].map(|name| folder.path().join(name));
        std::fs::write(&theirs, image(1..200)).unwrap();
        let served = served(&theirs);
        assert!(sync(&served, &ours, 8).is_err());
        assert!(!ours.exists());
        let done = sync(&served, &ours, usize::MAX).unwrap().unwrap();
        assert!(done.fetched_bytes < 120 * IMAGE_CHUNK_BYTES, "{done:?}");
        assert!(std::fs::read(&ours).unwrap() == image(1..200));
    }

    #[test]
    fn what_is_not_there_is_not_served() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("theirs");
        std::fs::write(&path, image(0..2)).unwrap();
        let served = served(&path);
        let good =
            ImageRequest { vm: "db".into(), disk: 0, part: ImagePart::Contents, at: 0, len_bytes: 512 };
        assert_eq!(served.answer(&good).unwrap().data.len(), 512);
        for wrong in [
            ImageRequest { vm: "other".into(), ..good.clone() },
            ImageRequest { disk: 1, ..good.clone() },
            ImageRequest { at: u64::MAX, ..good.clone() },
            ImageRequest { len_bytes: 1 << 40, ..good.clone() },
        ] {
            assert!(served.answer(&wrong).is_err(), "{wrong:?}");
        }
    }
}
