//! A checkpoint with all that it builds on, and how its units come out of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use bytes::Bytes;
use log_format::checkpoint_file::{
    CHUNK_UNITS, Chunk, ChunkKind, Root, Source, Table, UNIT_BYTES, UnitHash, UnitPlace, unit_hash,
};
use log_format::{CheckpointPart, DiskBlock, Page};

use super::error::CheckpointError;
use super::keys::{SecretKey, Trust};
use super::reader::CheckpointFile;
use super::units::{image_page, xor};

/// Most checkpoints in a chain.
const MAX_CHAIN: usize = 256;
/// Threads that unpack.
const MAX_THREADS: usize = 4;
/// Unpacked chunks that wait to be put in place.
const WAITING_CHUNKS: usize = 4;

/// A checkpoint with all that it builds on.
pub struct Chain {
    /// The checkpoint first, its base next, the full one last.
    files: Vec<CheckpointFile>,
}

/// What to do with the units of a chunk.
struct Work<'a> {
    file: usize,
    number: u32,
    offset: u64,
    chunk: &'a Chunk,
    units: Vec<Wanted>,
}

/// A unit of a chunk, and where it goes.
struct Wanted {
    slot: usize,
    place: UnitPlace,
    /// The page of a boot image that it is the difference to.
    patches: Option<Bytes>,
    /// What it must be, where it comes from a base or is a difference.
    expected: Option<UnitHash>,
}

impl Chain {
    /// Opens a file and all that it builds on: the base is looked for at `bases`, then beside
    /// the file, under the name it had.
    ///
    /// # Errors
    /// As [`CheckpointFile::open`] for each, and [`CheckpointError::NoBase`].
    pub fn open(
        path: &Path,
        bases: &[PathBuf],
        trust: &Trust,
        secret: Option<&SecretKey>,
    ) -> Result<Chain, CheckpointError> {
        let mut files = vec![CheckpointFile::open(path, trust, secret)?];
        let mut given = bases.iter();
        while let Some(last) = files.last()
            && let Some(base) = &last.description().base
        {
            if files.len() == MAX_CHAIN {
                return Err(CheckpointError::LongChain { path: path.to_owned(), limit: MAX_CHAIN });
            }
            let wanted = Root(base.root);
            let beside = || last.path().with_file_name(&base.file_name);
            let found = given.next().cloned().unwrap_or_else(beside);
            if !found.exists() {
                let (file_name, root) = (base.file_name.clone(), wanted.to_string());
                return Err(CheckpointError::NoBase { path: last.path().to_owned(), file_name, root });
            }
            // The root says which one it must be, whoever signed it.
            let opened = CheckpointFile::open(&found, &Trust::AnySigner, secret)?;
            if opened.root() != wanted {
                let (found_root, expected) = (opened.root().to_string(), wanted.to_string());
                return Err(CheckpointError::OtherRoot { path: found, found: found_root, expected });
            }
            let (own, other) = (&last.description().head, &opened.description().head);
            if own.identity != other.identity || own.ram_bytes != other.ram_bytes {
                return Err(CheckpointError::ForeignBase { path: found });
            }
            files.push(opened);
        }
        Ok(Chain { files })
    }

    /// The checkpoint itself.
    pub fn last(&self) -> &CheckpointFile {
        &self.files[0]
    }

    /// The checkpoint itself, alone: to be the base of another.
    pub fn into_last(mut self) -> CheckpointFile {
        self.files.swap_remove(0)
    }

    /// All files, the checkpoint first.
    pub fn files(&self) -> &[CheckpointFile] {
        &self.files
    }

    /// Reads every page and block, and gives them to `take`, in no particular order. `images`
    /// are the boot images in the description's order, which the caller has compared with the
    /// machine's identity.
    ///
    /// # Errors
    /// Of the first chunk that is damaged, or of `take`; what was given out before must then
    /// not be used.
    pub fn load<E: From<CheckpointError>>(
        &self,
        images: &[Bytes],
        mut take: impl FnMut(CheckpointPart) -> Result<(), E>,
    ) -> Result<(), E> {
        let (work, from_images) = self.plan(images)?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let (parts, received) = sync_channel(WAITING_CHUNKS);
            for _ in 0..threads.min(work.len()) {
                let parts: SyncSender<Result<CheckpointPart, CheckpointError>> = parts.clone();
                let (work, next, failed) = (&work, &next, &failed);
                scope.spawn(move || {
                    while let Some(work) = work.get(next.fetch_add(1, Ordering::Relaxed))
                        && !failed.load(Ordering::Relaxed)
                    {
                        if parts.send(self.do_work(work)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(parts);
            let mut result = take(from_images);
            while result.is_ok()
                && let Ok(part) = received.recv()
            {
                result = part.map_err(E::from).and_then(&mut take);
            }
            failed.store(result.is_err(), Ordering::Relaxed);
            drop(received);
            result
        })
    }

    /// Which chunks are needed for which units, and the units that are in images.
    fn plan(&self, images: &[Bytes]) -> Result<(Vec<Work<'_>>, CheckpointPart), CheckpointError> {
        let mut needed = BTreeMap::<(usize, u64), Vec<Wanted>>::new();
        let mut from_images = CheckpointPart::default();
        let starts: Vec<Vec<u64>> = self.files.iter().map(|file| own_starts(file.table())).collect();
        for run in &self.files[0].table().runs {
            for within in 0..run.count {
                let place = run.first.after(u64::from(within));
                let expected = match &run.source {
                    Source::Base(hashes) | Source::Patched { hashes, .. } => {
                        hashes.get(within as usize).copied()
                    }
                    Source::Own(_) | Source::Image { .. } => None,
                };
                match self.resolve(place, &starts)? {
                    Found::Unit { file, unit, patches } => {
                        let (chunk, slot) = (unit / CHUNK_UNITS as u64, (unit % CHUNK_UNITS as u64) as usize);
                        let image_page = |(image, page)| self.image_page(file, images, image, page);
                        let patches = patches.map(image_page).transpose()?;
                        let wanted = Wanted { slot, place, patches, expected };
                        needed.entry((file, chunk)).or_default().push(wanted);
                    }
                    Found::Image { file, image, page } => {
                        let data = self.image_page(file, images, image, page)?;
                        from_images.push(place, data);
                    }
                }
            }
        }
        let mut work = Vec::new();
        for (number, file) in self.files.iter().enumerate() {
            for (ordinal, (chunk_number, offset, chunk)) in (0..).zip(file.chunks().of_kind(ChunkKind::Units))
            {
                if let Some(units) = needed.remove(&(number, ordinal)) {
                    work.push(Work { file: number, number: chunk_number, offset, chunk, units });
                } else if number == 0 {
                    return Err(file
                        .chunks()
                        .damaged("table", format!("unit chunk {ordinal} belongs to no page")));
                }
            }
        }
        match needed.keys().next() {
            Some((file, _)) => {
                Err(self.files[*file].chunks().damaged("table", "it has more units than there are".into()))
            }
            None => Ok((work, from_images)),
        }
    }

    fn image_page(
        &self,
        file: usize,
        images: &[Bytes],
        image: u8,
        page: u64,
    ) -> Result<Bytes, CheckpointError> {
        let found = images.get(usize::from(image)).and_then(|image| image_page(image, page));
        found.ok_or_else(|| {
            let references = &self.files[file].description().images;
            let name = references.get(usize::from(image)).map(|image| image.name.clone());
            CheckpointError::OtherImage { name: name.unwrap_or_default() }
        })
    }

    /// Goes down the chain to the file that holds a unit.
    fn resolve(&self, place: UnitPlace, starts: &[Vec<u64>]) -> Result<Found, CheckpointError> {
        for (number, file) in self.files.iter().enumerate() {
            let Some((run, within)) = file.table().find(place) else {
                return Err(file
                    .chunks()
                    .damaged("table", format!("{place:?}, which another builds on, is not in it")));
            };
            let unit = starts[number][run] + u64::from(within);
            match &file.table().runs[run].source {
                Source::Own(_) => return Ok(Found::Unit { file: number, unit, patches: None }),
                Source::Patched { image, first_page, .. } => {
                    let page = first_page.saturating_add(u64::from(within));
                    return Ok(Found::Unit { file: number, unit, patches: Some((*image, page)) });
                }
                Source::Image { image, first_page } => {
                    let page = first_page.saturating_add(u64::from(within));
                    return Ok(Found::Image { file: number, image: *image, page });
                }
                Source::Base(_) => {}
            }
        }
        Err(self.files[0].chunks().damaged("table", format!("{place:?} is in no file")))
    }

    fn do_work(&self, work: &Work<'_>) -> Result<CheckpointPart, CheckpointError> {
        let file = &self.files[work.file];
        let bytes = Bytes::from(file.chunks().read(work.number, work.offset, work.chunk)?);
        let mut part = CheckpointPart::default();
        for Wanted { slot, place, patches, expected } in &work.units {
            let start = slot * UNIT_BYTES;
            if start + UNIT_BYTES > bytes.len() {
                return Err(file.chunks().damaged("table", format!("{place:?} lies outside its chunk")));
            }
            let mut data = bytes.slice(start..start + UNIT_BYTES);
            if let Some(patched) = patches {
                data = xor(&data, patched).into();
            }
            if expected.is_some_and(|expected| unit_hash(&data) != expected) {
                return Err(file
                    .chunks()
                    .damaged("table", format!("{place:?} is not what another builds on")));
            }
            part.push(*place, data);
        }
        Ok(part)
    }
}

/// Where a unit is.
enum Found {
    /// Image and page of an image that it is the difference to.
    Unit {
        file: usize,
        unit: u64,
        patches: Option<(u8, u64)>,
    },
    Image {
        file: usize,
        image: u8,
        page: u64,
    },
}

/// For each run, how many of the file's own units lie before it.
fn own_starts(table: &Table) -> Vec<u64> {
    let mut own = 0;
    let start = |run: &log_format::checkpoint_file::Run| {
        let before = own;
        if run.source.is_own() {
            own += u64::from(run.count);
        }
        before
    };
    table.runs.iter().map(start).collect()
}

trait PushUnit {
    fn push(&mut self, place: UnitPlace, data: Bytes);
}

impl PushUnit for CheckpointPart {
    fn push(&mut self, place: UnitPlace, data: Bytes) {
        match place {
            UnitPlace::Page(index) => self.pages.push(Page { index, data: Some(data) }),
            UnitPlace::Block { disk, index } => self.blocks.push(DiskBlock { disk, index, data }),
        }
    }
}
