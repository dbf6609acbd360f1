//! A page as what differs from another one. See the [module](super) for the form.

use super::{PAGE_BYTES, PageError};

/// Unchanged bytes inside a changing run that are shipped rather than spared: sparing them costs
/// the lengths of two runs.
const SPARED_MIN_BYTES: usize = 4;
/// Bytes compared at once.
const WORD_BYTES: usize = 8;

/// The delta that makes `new` of `old`, unless it takes more than `limit` bytes.
pub(super) fn pack(old: &[u8], new: &[u8], limit: usize) -> Option<Vec<u8>> {
    debug_assert!(old.len() == PAGE_BYTES && new.len() == PAGE_BYTES);
    let mut packed = Vec::with_capacity(64);
    let (mut at, mut next) = (0, first_difference(old, new, 0));
    while let Some(start) = next {
        let mut end = start + 1;
        // The run goes on over short stretches that stay.
        next = loop {
            match first_difference(old, new, end) {
                Some(more) if more - end < SPARED_MIN_BYTES => end = more + 1,
                more => break more,
            }
        };
        push_length(&mut packed, start - at);
        push_length(&mut packed, end - start);
        packed.extend(old[start..end].iter().zip(&new[start..end]).map(|(old, new)| old ^ new));
        if packed.len() > limit {
            return None;
        }
        at = end;
    }
    (packed.len() <= limit).then_some(packed)
}

/// The first place from `from` on at which the pages differ.
fn first_difference(old: &[u8], new: &[u8], from: usize) -> Option<usize> {
    let (old, new) = (&old[from..], &new[from..]);
    let words = old.chunks_exact(WORD_BYTES).zip(new.chunks_exact(WORD_BYTES));
    let same = words.take_while(|(old, new)| old == new).count() * WORD_BYTES;
    let rest = old[same..].iter().zip(&new[same..]);
    rest.take(PAGE_BYTES).position(|(old, new)| old != new).map(|offset| from + same + offset)
}

fn push_length(packed: &mut Vec<u8>, length: usize) {
    if length < 0x80 {
        packed.push(length as u8);
    } else {
        packed.extend([length as u8 & 0x7f | 0x80, (length >> 7) as u8]);
    }
}

/// The page that a delta makes of `old`.
///
/// # Errors
/// When its runs do not fit a page, or are not whole.
pub(super) fn apply(old: &[u8], packed: &[u8]) -> Result<Vec<u8>, PageError> {
    let mut page = old.to_vec();
    let (mut at, mut offset) = (0, 0);
    while offset < packed.len() {
        let wrong = PageError::Delta { offset };
        let step = || -> Option<(usize, usize, usize)> {
            let (stays, offset) = length(packed, offset)?;
            let (changes, offset) = length(packed, offset)?;
            let start = at + stays;
            // A run that changes nothing would be another form of the same delta.
            let fits = changes > 0 && start + changes <= page.len() && offset + changes <= packed.len();
            fits.then_some((start, start + changes, offset))
        };
        let (start, end, data) = step().ok_or(wrong)?;
        offset = data + (end - start);
        page[start..end].iter_mut().zip(&packed[data..offset]).for_each(|(byte, change)| *byte ^= change);
        at = end;
    }
    Ok(page)
}

/// A length of at most two bytes at `offset`, and the offset after it.
fn length(packed: &[u8], offset: usize) -> Option<(usize, usize)> {
    let low = *packed.get(offset)?;
    if low < 0x80 {
        return Some((usize::from(low), offset + 1));
    }
    let high = *packed.get(offset + 1).filter(|high| **high < 0x80)?;
    Some((usize::from(low & 0x7f) | usize::from(high) << 7, offset + 2))
}
