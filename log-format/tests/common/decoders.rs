//! Every decoder on any bytes: a value or an error, never a panic; and a value that is written
//! again reads back the same. Also the body of the fuzz targets.

use bytes::Bytes;
use log_format::*;

/// Every decoder of this crate. Returns whether the header is that of a frame.
pub fn all(input: &Bytes) -> bool {
    frame(input);
    message(input);
    segment_record(input);
    batch(input);
    stream(input);
    packed_pages(input);
    FrameHeader::decode(input).is_ok()
}

/// [`Frame`], [`FrameHeader`] and decompression.
pub fn frame(input: &Bytes) {
    let Ok(frame) = Frame::decode(input) else {
        return;
    };
    assert!(frame.bytes().len() <= input.len());
    assert_eq!(frame.header().frame_bytes(), frame.bytes().len());
    if let Ok(body) = frame.body() {
        assert!(body.len() <= MAX_BODY_BYTES);
    }
}

/// [`page_codec`]: a page and a block, packed as the first byte says. What unpacks is whole, and
/// packs and unpacks to the same again.
pub fn packed_pages(input: &Bytes) {
    let Some(encoding) = input.first().copied() else { return };
    let packed = input.slice(1..);
    let held = |index: u64| vec![index as u8 % 3; page_codec::PAGE_BYTES];
    let sources = [0, 1, 2].map(held);
    let source = |index: u64| sources.get(index as usize).map(Vec::as_slice);
    let page = EncodedPage { index: 1, encoding, packed: packed.clone() };
    let block = EncodedBlock { disk: 0, index: 7, encoding, packed };
    let page = EncodedPart { pages: vec![page], blocks: Vec::new() };
    let block = EncodedPart { pages: Vec::new(), blocks: vec![block] };
    for part in [page, block] {
        let Ok(plain) = page_codec::decode_part(&part, source) else { continue };
        let lengths = plain.pages.iter().filter_map(|page| page.data.as_ref()).map(Bytes::len);
        let mut lengths = lengths.chain(plain.blocks.iter().map(|block| block.data.len()));
        assert!(lengths.all(|length| length == page_codec::PAGE_BYTES));
        let mut encoder = page_codec::Encoder::new(None);
        encoder.begin();
        let again = page_codec::decode_part(&encoder.encode(plain.clone()), source);
        let again = again.expect("it was packed just now");
        let contents = |part: &CheckpointPart| {
            let zeros = || Bytes::from_static(&[0; page_codec::PAGE_BYTES]);
            let pages = part.pages.iter().map(|page| page.data.clone().unwrap_or_else(zeros));
            pages.chain(part.blocks.iter().map(|block| block.data.clone())).collect::<Vec<_>>()
        };
        assert!(contents(&again) == contents(&plain));
    }
}

/// [`Message`].
pub fn message(input: &Bytes) {
    let Ok(message) = Message::decode(input) else {
        return;
    };
    let bytes = message.encode().expect("what was read can be written");
    assert_eq!(Message::decode(&bytes), Ok(message));
}

/// [`SegmentRecord`].
pub fn segment_record(input: &Bytes) {
    let Ok(record) = SegmentRecord::decode(input) else {
        return;
    };
    let bytes = match &record {
        SegmentRecord::Header(header) => header.encode(),
        SegmentRecord::Batch(batch) => Ok(batch.bytes().clone()),
        SegmentRecord::IncrementStart(start) => Message::IncrementHead((**start).clone()).encode(),
        SegmentRecord::IncrementPart(part) => Message::IncrementPart(part.clone()).encode(),
        SegmentRecord::IncrementEnd(end) => Message::IncrementEnd(*end).encode(),
        SegmentRecord::End(end) => end.encode(),
    };
    let bytes = bytes.expect("what was read can be written");
    assert_eq!(SegmentRecord::decode(&bytes), Ok(record));
}

/// [`SealedBatch`], taken apart and sealed again.
pub fn batch(input: &Bytes) {
    let Ok(sealed) = SealedBatch::decode(input) else {
        return;
    };
    let batch = sealed.batch().clone();
    let again = batch.seal(sealed.previous());
    let again = again.expect("what was read can be written");
    assert_eq!(again.batch(), sealed.batch());
    assert_eq!(SealedBatch::decode(again.bytes()), Ok(again));
}

/// [`MessageDecoder`]: in whatever pieces the bytes come, the same messages come out, and an
/// error or none. (Which error may differ: a strange start is told before the header is whole,
/// a flipped bit in it only then.)
pub fn stream(input: &Bytes) {
    let whole = messages_in(input.chunks(usize::MAX));
    let pieces = messages_in(input.chunks(1 + input.len() / 3));
    assert_eq!(whole.0, pieces.0);
    assert_eq!(whole.1.is_some(), pieces.1.is_some());
}

fn messages_in<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Message>, Option<FrameError>) {
    let mut decoder = MessageDecoder::default();
    let mut messages = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.poll() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
    }
    (messages, None)
}
