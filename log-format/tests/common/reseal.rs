//! Makes the checksums of a changed frame good again, so that what lies behind them is
//! reached. Also part of the fuzz targets.

/// Offsets of the frame's header, as docs/log-format.md section 1 gives them.
const BODY_LENGTH: std::ops::Range<usize> = 4..7;
const BODY_CRC: std::ops::Range<usize> = 56..60;
const HEADER_CRC: std::ops::Range<usize> = 60..64;
const HEADER_BYTES: usize = 64;

/// How every frame begins.
pub const MAGIC: [u8; 2] = [0xb2, 0x57];

/// Sets magic, body length and both checksums to what the bytes ask for. Bytes too short for
/// a header, or too long for a body, stay as they are.
pub fn reseal(frame: &mut [u8]) {
    let Some(body_bytes) = frame.len().checked_sub(HEADER_BYTES) else {
        return;
    };
    let Ok(body_bytes) = u32::try_from(body_bytes) else {
        return;
    };
    if body_bytes >> 24 != 0 {
        return;
    }
    frame[..2].copy_from_slice(&MAGIC);
    frame[BODY_LENGTH].copy_from_slice(&body_bytes.to_le_bytes()[..3]);
    let body_crc = crc32fast::hash(&frame[HEADER_BYTES..]);
    frame[BODY_CRC].copy_from_slice(&body_crc.to_le_bytes());
    let header_crc = crc32fast::hash(&frame[..HEADER_CRC.start]);
    frame[HEADER_CRC].copy_from_slice(&header_crc.to_le_bytes());
}
