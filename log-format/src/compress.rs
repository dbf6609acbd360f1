//! zstd where it pays.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};

use crate::frame::{FrameError, FrameKind, MAX_BODY_BYTES};

/// Shorter bodies are stored as they are: the header outweighs what could be won.
const THRESHOLD_BYTES: usize = 256;

/// zstd's fastest regular level: batches are shipped while an output waits.
const LEVEL: i32 = 1;

// zstd's working memory costs more to set up than a small body to pack, so each thread keeps
// its own.
thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// The body as a zstd frame, if that is shorter.
pub(crate) fn pack(plain: &[u8]) -> Option<Vec<u8>> {
    if plain.len() < THRESHOLD_BYTES {
        return None;
    }
    COMPRESSOR.with_borrow_mut(|cached| {
        if cached.is_none() {
            *cached = Compressor::new(LEVEL).ok();
        }
        let packed = cached.as_mut()?.compress(plain).ok()?;
        (packed.len() < plain.len()).then_some(packed)
    })
}

/// The body that a zstd frame holds.
pub(crate) fn unpack(kind: FrameKind, packed: &[u8]) -> Result<Vec<u8>, FrameError> {
    let failed = |cause: String| FrameError::Compression { kind, cause };
    let plain_bytes = zstd::zstd_safe::get_frame_content_size(packed)
        .map_err(|error| failed(error.to_string()))?
        .ok_or_else(|| failed("it does not state its size".to_owned()))?;
    let plain_bytes = usize::try_from(plain_bytes).unwrap_or(usize::MAX);
    if plain_bytes > MAX_BODY_BYTES {
        return Err(FrameError::TooLong { kind, found: plain_bytes, limit: MAX_BODY_BYTES });
    }
    let plain = decompress(packed, plain_bytes).map_err(failed)?;
    if plain.len() == plain_bytes {
        Ok(plain)
    } else {
        Err(failed(format!("found {} bytes, expected {plain_bytes}", plain.len())))
    }
}

/// What a zstd frame of exactly this many bytes holds.
///
/// # Errors
/// Says what is wrong with it.
pub(crate) fn unpack_exactly(packed: &[u8], plain_bytes: usize) -> Result<Vec<u8>, String> {
    let plain = decompress(packed, plain_bytes)?;
    match plain.len() {
        found if found == plain_bytes => Ok(plain),
        found => Err(format!("found {found} bytes, expected {plain_bytes}")),
    }
}

/// What a zstd frame of at most this many bytes holds.
fn decompress(packed: &[u8], limit_bytes: usize) -> Result<Vec<u8>, String> {
    DECOMPRESSOR.with_borrow_mut(|cached| {
        if cached.is_none() {
            *cached = Some(Decompressor::new().map_err(|error| error.to_string())?);
        }
        match cached {
            Some(decompressor) => {
                decompressor.decompress(packed, limit_bytes).map_err(|error| error.to_string())
            }
            None => Err("no memory".to_owned()),
        }
    })
}
