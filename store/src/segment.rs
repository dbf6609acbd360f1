//! Reads the records of one segment.

use std::io::{self, ErrorKind, Read};

use bytes::{Bytes, BytesMut};
use log_format::{Frame, FrameError, FrameHeader, HEADER_BYTES, SegmentRecord};

/// Reads records from anything that gives bytes: a file, or a slice in tests.
#[derive(Debug)]
pub struct SegmentReader<R> {
    source: R,
    offset: u64,
}

/// Why no record could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The source failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The bytes are no record.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl<R: Read> SegmentReader<R> {
    /// Reads from where `source` stands, which becomes offset 0.
    pub fn new(source: R) -> Self {
        SegmentReader { source, offset: 0 }
    }

    /// Where the next record begins; after an error, where the bad one does.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next record, or `None` at the end of the source. Not to be called again after an
    /// error.
    ///
    /// # Errors
    /// [`FrameError::Torn`] when the source ends inside a record, else what is wrong.
    pub fn read(&mut self) -> Result<Option<SegmentRecord>, ReadError> {
        let Some(bytes) = self.read_frame()? else {
            return Ok(None);
        };
        let record = SegmentRecord::from_frame(&Frame::decode(&bytes)?)?;
        self.offset += bytes.len() as u64;
        Ok(Some(record))
    }

    /// The bytes of one frame, as far as there are any.
    fn read_frame(&mut self) -> Result<Option<Bytes>, ReadError> {
        let mut bytes = BytesMut::zeroed(HEADER_BYTES);
        let found = read_up_to(&mut self.source, &mut bytes)?;
        if found == 0 {
            return Ok(None);
        }
        bytes.truncate(found);
        let frame_bytes = FrameHeader::decode(&bytes)?.frame_bytes();
        bytes.resize(frame_bytes, 0);
        let found = HEADER_BYTES + read_up_to(&mut self.source, &mut bytes[HEADER_BYTES..])?;
        bytes.truncate(found);
        Ok(Some(bytes.freeze()))
    }
}

/// Fills `buffer` as far as the source reaches.
fn read_up_to(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
