//! Units that are in a boot image: found by their contents.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use log_format::checkpoint_file::{ImageReference, UNIT_BYTES};
use xxhash_rust::xxh3::xxh3_64;

/// A boot image of the machine.
#[derive(Debug, Clone)]
pub struct Image {
    /// What it is: `kernel`, `initrd` or `firmware`.
    pub name: String,
    /// Its bytes.
    pub bytes: Bytes,
    /// Whether it comes along in the file.
    pub bundled: bool,
}

/// The page of an image, the last one filled up with zeros.
pub fn image_page(image: &Bytes, page: u64) -> Option<Bytes> {
    let start = usize::try_from(page.checked_mul(UNIT_BYTES as u64)?).ok()?;
    let rest = image.len().checked_sub(start).filter(|rest| *rest > 0)?;
    if rest >= UNIT_BYTES {
        return Some(image.slice(start..start + UNIT_BYTES));
    }
    let mut filled = image[start..].to_vec();
    filled.resize(UNIT_BYTES, 0);
    Some(filled.into())
}

/// The boot images of a machine, ready for a writer: hashed, and their pages found by what they
/// hold. Making it takes some 30 ms for a Linux kernel, and needs no machine that stands still.
pub struct Images {
    images: Vec<Image>,
    references: Vec<ImageReference>,
    /// Image and page by hash. Of several with one hash the first stands.
    pages: HashMap<u64, (u8, u64)>,
}

impl Images {
    /// Of these images, in the order in which the machine's identity has them.
    pub fn new(images: Vec<Image>) -> Images {
        let mut pages = HashMap::new();
        for (number, image) in (0u8..).zip(&images) {
            for page in 0..(image.bytes.len() as u64).div_ceil(UNIT_BYTES as u64) {
                let Some(bytes) = image_page(&image.bytes, page) else { break };
                pages.entry(xxh3_64(&bytes)).or_insert((number, page));
            }
        }
        let references = images.iter().map(reference).collect();
        Images { images, references, pages }
    }

    /// The images.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    pub(crate) fn references(&self) -> &[ImageReference] {
        &self.references
    }

    /// Image and page that hold exactly this.
    pub(crate) fn find(&self, unit: &[u8]) -> Option<(u8, u64)> {
        if self.pages.is_empty() {
            return None;
        }
        let (image, page) = *self.pages.get(&xxh3_64(unit))?;
        let is_same = image_page(&self.images[usize::from(image)].bytes, page)? == unit;
        is_same.then_some((image, page))
    }
}

/// A unit that differs in no more bytes than this from a page of an image is stored as the
/// difference: a kernel's text, in which it changes some instructions of each function.
const MAX_DIFFERENT_BYTES: usize = 1024;

/// Where the pages of images lie in memory, as far as was seen: a page that is none of them
/// may be almost the one that would lie there.
#[derive(Default)]
pub struct Placement(BTreeMap<u8, u64>);

impl Placement {
    /// Notes that this page of memory holds this page of an image.
    pub fn note(&mut self, index: u64, image: u8, page: u64) {
        if let Some(start) = index.checked_sub(page) {
            self.0.insert(image, start);
        }
    }

    /// Image and page that this page of memory is almost, and what it differs by.
    pub fn difference(&self, images: &Images, index: u64, unit: &[u8]) -> Option<(u8, u64, Vec<u8>)> {
        self.0.iter().find_map(|(image, start)| {
            let page = index.checked_sub(*start)?;
            let held = image_page(&images.images.get(usize::from(*image))?.bytes, page)?;
            differs_little(unit, &held).then(|| (*image, page, xor(unit, &held)))
        })
    }
}

/// Whether no more than [`MAX_DIFFERENT_BYTES`] differ. Most pages that are another's show it soon.
fn differs_little(one: &[u8], other: &[u8]) -> bool {
    const LOOK_BYTES: usize = 512;
    let mut different = 0;
    one.chunks(LOOK_BYTES).zip(other.chunks(LOOK_BYTES)).all(|(one, other)| {
        different += one.iter().zip(other).filter(|(one, other)| one != other).count();
        different <= MAX_DIFFERENT_BYTES
    })
}

/// Each byte of one XORed with that of the other.
pub fn xor(one: &[u8], other: &[u8]) -> Vec<u8> {
    one.iter().zip(other).map(|(one, other)| one ^ other).collect()
}

fn reference(image: &Image) -> ImageReference {
    ImageReference {
        name: image.name.clone(),
        bytes: image.bytes.len() as u64,
        hash: *blake3::hash(&image.bytes).as_bytes(),
        bundled: image.bundled,
    }
}
