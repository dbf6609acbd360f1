//! What is packed unpacks, and nothing else does any harm.

use proptest::prelude::*;

use super::*;

/// A receiver with pages of its own, and what it makes of increments.
struct Receiver {
    pages: Vec<Bytes>,
}

const PAGES: usize = 12;

impl Receiver {
    fn new() -> Receiver {
        Receiver { pages: vec![Bytes::from_static(&[0; PAGE_BYTES]); PAGES] }
    }

    fn source(&self, index: u64) -> Option<&[u8]> {
        self.pages.get(index as usize).map(|page| &page[..])
    }

    fn put(&mut self, part: &CheckpointPart) {
        for page in &part.pages {
            self.pages[page.index as usize] =
                page.data.clone().unwrap_or(Bytes::from_static(&[0; PAGE_BYTES]));
        }
    }
}

/// How a page comes to its contents.
#[derive(Debug, Clone)]
enum Change {
    Zero,
    /// Text of this many different words.
    Text(u8),
    Noise(u64),
    /// Some words of what it was.
    Words(Vec<(usize, u64)>),
    /// What this page was.
    CopyOf(usize),
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        1 => Just(Change::Zero),
        2 => any::<u8>().prop_map(Change::Text),
        2 => any::<u64>().prop_map(Change::Noise),
        4 => prop::collection::vec((0..PAGE_BYTES / 8, any::<u64>()), 1..20).prop_map(Change::Words),
        2 => (0..PAGES).prop_map(Change::CopyOf),
    ]
}

fn changed(change: &Change, old: &[u8], pages: &[Bytes]) -> Vec<u8> {
    match change {
        Change::Zero => vec![0; PAGE_BYTES],
        Change::Text(words) => {
            (0..PAGE_BYTES).map(|at| b'a' + (at / 7 % (*words as usize + 1)) as u8 % 26).collect()
        }
        Change::Noise(seed) => noise(*seed),
        Change::Words(words) => {
            let mut page = old.to_vec();
            for (at, word) in words {
                page[at * 8..][..8].copy_from_slice(&word.to_le_bytes());
            }
            page
        }
        Change::CopyOf(index) => pages[*index].to_vec(),
    }
}

fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as u8
    };
    (0..PAGE_BYTES).map(|_| next()).collect()
}

fn page(index: u64, data: Vec<u8>) -> Page {
    let data = data.iter().any(|byte| *byte != 0).then(|| data.into());
    Page { index, data }
}

fn codes(part: &EncodedPart) -> Vec<u8> {
    part.pages.iter().map(|page| page.encoding).collect()
}

/// Packs a part that is an increment of its own.
fn increment(encoder: &mut Encoder, pages: Vec<Page>) -> EncodedPart {
    encoder.begin();
    let encoded = encoder.encode(CheckpointPart { pages, blocks: Vec::new() });
    encoder.end();
    encoded
}

#[test]
fn each_page_is_packed_in_the_way_that_suits_it() {
    let mut encoder = Encoder::new(None);
    let text = changed(&Change::Text(20), &[], &[]);
    let first = vec![page(0, vec![0; PAGE_BYTES]), page(1, text.clone()), page(2, noise(7))];
    assert_eq!(codes(&increment(&mut encoder, first)), [1, 4, 0]);
    let mut touched = noise(7);
    touched[100..108].fill(0xee);
    let second = vec![page(2, touched), page(3, text.clone()), page(4, noise(7))];
    let encoded = increment(&mut encoder, second);
    assert_eq!(codes(&encoded), [2, 3, 3], "a delta, and copies of pages 1 and 2 as they were");
    assert!(encoded.pages[0].packed.len() < 16, "{} bytes", encoded.pages[0].packed.len());
    encoder.forget();
    assert_eq!(codes(&increment(&mut encoder, vec![page(3, text)])), [4], "nothing is known any more");
}

#[test]
fn an_increment_that_does_not_end_leaves_no_trace() {
    let mut encoder = Encoder::new(None);
    increment(&mut encoder, vec![page(1, noise(1))]);
    encoder.begin();
    encoder.encode(CheckpointPart { pages: vec![page(1, noise(2))], blocks: Vec::new() });
    let mut next = noise(1);
    next[9] ^= 1;
    let encoded = increment(&mut encoder, vec![page(1, next.clone()), page(5, noise(2))]);
    assert_eq!(codes(&encoded), [2, 0]);
    let mut receiver = Receiver::new();
    receiver.pages[1] = noise(1).into();
    let part = decode_part(&encoded, |index| receiver.source(index)).expect("the page before is there");
    assert_eq!(part.pages[0].data.as_deref(), Some(&next[..]));
}

#[test]
fn a_blocks_contents_are_copied_from_memory() {
    let mut encoder = Encoder::new(None);
    increment(&mut encoder, vec![page(1, noise(1))]);
    encoder.begin();
    let blocks = [noise(1), vec![0; PAGE_BYTES], noise(3)];
    let block = |(index, data): (usize, &Vec<u8>)| DiskBlock {
        disk: 0,
        index: index as u64,
        data: data.clone().into(),
    };
    let part = CheckpointPart { pages: Vec::new(), blocks: blocks.iter().enumerate().map(block).collect() };
    let encoded = encoder.encode(part.clone());
    assert_eq!(encoded.blocks.iter().map(|block| block.encoding).collect::<Vec<_>>(), [3, 1, 0]);
    let mut receiver = Receiver::new();
    receiver.pages[1] = noise(1).into();
    assert_eq!(decode_part(&encoded, |index| receiver.source(index)), Ok(part));
}

#[test]
fn what_does_not_pay_is_tried_seldom() {
    fn clock() -> u64 {
        use std::cell::Cell;
        thread_local!(static NOW_NS: Cell<u64> = const { Cell::new(0) });
        NOW_NS.replace(NOW_NS.get() + 20_000)
    }
    let text = |index: u64| page(index, changed(&Change::Text(20 + index as u8), &[], &[]));
    let pages = || (0..200).map(text).collect::<Vec<_>>();
    let zstd = |encoded: &EncodedPart| codes(encoded).iter().filter(|code| **code == 4).count();
    // Each try takes 20 us and saves some 4000 bytes: 200 MB/s.
    let mut slow_link = Encoder::new(Some(clock));
    slow_link.set_link_rate(10_000_000);
    assert_eq!(zstd(&increment(&mut slow_link, pages())), 200);
    let mut fast_link = Encoder::new(Some(clock));
    fast_link.set_link_rate(1_000_000_000);
    let tried = zstd(&increment(&mut fast_link, pages()));
    assert!((32..50).contains(&tried), "{tried} of 200 pages");
}

#[test]
fn damaged_pages_are_errors() {
    let receiver = Receiver::new();
    let decode = |encoding, packed: &'static [u8]| {
        let page = EncodedPage { index: 3, encoding, packed: Bytes::from_static(packed) };
        let part = EncodedPart { pages: vec![page], blocks: Vec::new() };
        decode_part(&part, |index| receiver.source(index)).map(|_| ()).unwrap_err()
    };
    assert_eq!(decode(9, b""), PageError::UnknownEncoding { found: 9 });
    assert!(matches!(decode(0, b"short"), PageError::Length { found: 5, expected: PAGE_BYTES, .. }));
    assert!(matches!(decode(1, b"x"), PageError::Length { found: 1, expected: 0, .. }));
    assert_eq!(decode(3, &[200, 0, 0, 0, 0, 0, 0, 0]), PageError::NoSource { index: 200 });
    assert!(matches!(decode(3, &[1]), PageError::Length { expected: 8, .. }));
    assert!(matches!(decode(4, b"no zstd"), PageError::Zstd(_)));
    for delta in
        [&[0][..], &[0, 0], &[0, 2, 1], &[0xff, 0x1f, 2, 1, 1], &[0xff, 0xff, 1, 1], &[0x80], &[0, 1, 1, 5]]
    {
        assert!(matches!(decode(2, delta), PageError::Delta { .. }), "{delta:?}");
    }
    let block = EncodedBlock { disk: 0, index: 1, encoding: 2, packed: Bytes::new() };
    let part = EncodedPart { pages: Vec::new(), blocks: vec![block] };
    let wrong = decode_part(&part, |index| receiver.source(index)).unwrap_err();
    assert_eq!(wrong, PageError::BlockDelta { index: 1 });
}

proptest! {
    #[test]
    fn increments_unpack_to_what_they_were(
        epochs in prop::collection::vec(
            (any::<bool>(), prop::collection::btree_map(0..PAGES, changes(), 0..PAGES)), 1..8
        ),
    ) {
        let mut encoder = Encoder::new(None);
        let mut sender = Receiver::new();
        let mut receiver = Receiver::new();
        for (ends, changes) in epochs {
            let before = sender.pages.clone();
            let pages: Vec<Page> = changes
                .iter()
                .map(|(index, change)| page(*index as u64, changed(change, &before[*index], &before)))
                .collect();
            let part = CheckpointPart { pages, blocks: Vec::new() };
            encoder.begin();
            // In two bites, as the machine's thread hands them on.
            let half = part.pages.len() / 2;
            let bites = [&part.pages[..half], &part.pages[half..]].map(|pages| {
                encoder.encode(CheckpointPart { pages: pages.to_vec(), blocks: Vec::new() })
            });
            if ends {
                encoder.end();
                let decoded = bites.map(|bite| {
                    decode_part(&bite, |index| receiver.source(index)).expect("it was packed just now")
                });
                decoded.iter().for_each(|bite| receiver.put(bite));
                sender.put(&part);
                prop_assert!(receiver.pages == sender.pages);
            }
        }
    }

    #[test]
    fn a_delta_makes_the_new_page(old in changes(), new in changes(), limit in 0..PAGE_BYTES) {
        let old = changed(&old, &[7; PAGE_BYTES], &vec![Bytes::from_static(&[9; PAGE_BYTES]); PAGES]);
        let new = changed(&new, &old, &vec![Bytes::from_static(&[8; PAGE_BYTES]); PAGES]);
        if let Some(packed) = delta::pack(&old, &new, limit) {
            prop_assert!(packed.len() <= limit);
            prop_assert!(delta::apply(&old, &packed).expect("it was packed just now") == new);
        }
    }

    #[test]
    fn no_bytes_do_harm(encoding in any::<u8>(), packed in prop::collection::vec(any::<u8>(), 0..64)) {
        let receiver = Receiver::new();
        let page = EncodedPage { index: 1, encoding, packed: packed.clone().into() };
        let block = EncodedBlock { disk: 0, index: 1, encoding: encoding % 6, packed: packed.into() };
        let part = EncodedPart { pages: vec![page], blocks: vec![block] };
        if let Ok(part) = decode_part(&part, |index| receiver.source(index)) {
            let lengths = part.pages.iter().filter_map(|page| page.data.as_ref()).map(Bytes::len);
            let lengths = lengths.chain(part.blocks.iter().map(|block| block.data.len()));
            prop_assert!(lengths.into_iter().all(|length| length == PAGE_BYTES));
        }
    }
}
