//! The reader of a segment on any bytes. Also the body of a fuzz target.

use log_format::{HEADER_BYTES, SegmentRecord};
use store::{Follower, SegmentReader};

/// Reads records as long as there are whole ones, and checks that batches follow. Returns how
/// many records there were.
pub fn segment(bytes: &[u8]) -> u64 {
    let mut reader = SegmentReader::new(bytes);
    let mut follower: Option<Follower> = None;
    let (mut records, mut batches) = (0, 0);
    loop {
        let before = reader.offset();
        let record = reader.read();
        let Ok(Some(record)) = record else {
            assert_eq!(reader.offset(), before, "stays where the bad record begins");
            return records;
        };
        records += 1;
        assert!(reader.offset() >= before + HEADER_BYTES as u64);
        assert!(reader.offset() <= bytes.len() as u64);
        match (record, &mut follower) {
            (SegmentRecord::Header(header), None) => follower = Some(Follower::at(&header)),
            (SegmentRecord::Header(header), Some(follower)) => {
                let goes_on = follower.accept_header(&header).is_ok();
                assert!(!goes_on || header.chain == follower.chain());
            }
            (SegmentRecord::Batch(batch), Some(follower)) => {
                let was_at = follower.end_position();
                if follower.accept(&batch).is_ok() {
                    batches += 1;
                    assert_eq!(follower.end_position(), batch.end_position());
                    assert_eq!(follower.chain(), batch.chain());
                } else {
                    assert_eq!(follower.end_position(), was_at);
                }
            }
            (SegmentRecord::IncrementStart(start), Some(follower)) => {
                let was_at = follower.end_position();
                match follower.accept_increment(&start) {
                    Ok(true) => assert_eq!(follower.end_position(), start.position),
                    Ok(false) | Err(_) => assert_eq!(follower.end_position(), was_at),
                }
            }
            (SegmentRecord::IncrementPart(_) | SegmentRecord::IncrementEnd(_), Some(_)) => {}
            (SegmentRecord::End(end), Some(follower)) => {
                let ends = follower.accept_end(&end, batches).is_ok();
                assert!(!ends || end.batches == batches);
            }
            (_, None) => {}
        }
    }
}
