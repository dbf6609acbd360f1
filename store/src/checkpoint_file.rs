//! A machine's state as a file: checkpoint messages, one after the other
//! (docs/log-format.md).

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use log_format::{
    ChainHash, CheckpointEnd, CheckpointHead, CheckpointPart, CheckpointStart, Message, MessageDecoder,
    Position,
};

use crate::error::StoreError;

/// Writes a state for diagnosis: its head, and the parts that `next_part` gives until an empty
/// one. Synced when it returns; a file that could not be written whole is removed.
///
/// # Errors
/// What the disk says.
pub fn write_checkpoint(
    path: &Path,
    head: CheckpointHead,
    next_part: impl FnMut() -> CheckpointPart,
) -> io::Result<()> {
    let start = CheckpointStart {
        position: Position { moment: head.moment, ..Position::default() },
        chain: ChainHash::NONE,
        events_before: 0,
        released_outputs: head.outputs_before,
        held: Vec::new(),
        head,
    };
    write_start(path, start, next_part)
}

/// Writes a state at which a log starts, with all that `start` says of the place: as
/// [`write_checkpoint`] otherwise.
///
/// # Errors
/// What the disk says.
pub fn write_start(
    path: &Path,
    start: CheckpointStart,
    next_part: impl FnMut() -> CheckpointPart,
) -> io::Result<()> {
    let written = File::create(path).and_then(|file| write_to(file, start, next_part));
    if written.is_err() {
        // Half a state is of no use; the error says why there is none.
        let _ = std::fs::remove_file(path);
    }
    written
}

/// Reads a state back, message by message: its head first, then its parts. Whether it was
/// whole is known when this returns.
///
/// # Errors
/// What the disk says; [`StoreError::Damaged`] and [`StoreError::ForeignFile`] when it is not what was
/// written; the error of `take`.
pub fn read_checkpoint<E: From<StoreError>>(
    path: &Path,
    mut take: impl FnMut(Message) -> Result<(), E>,
) -> Result<(), E> {
    const PIECE_BYTES: usize = 1 << 20;
    let read_error = |error| StoreError::io("read", path, error);
    let foreign = |found: &str| StoreError::ForeignFile { path: path.to_owned(), found: found.to_owned() };
    let mut file = File::open(path).map_err(read_error)?;
    let mut decoder = MessageDecoder::default();
    let (mut parts, mut piece, mut offset) = (None, vec![0; PIECE_BYTES], 0);
    loop {
        let found = file.read(&mut piece).map_err(read_error)?;
        decoder.push(piece.get(..found).unwrap_or_default());
        let damaged = |cause| StoreError::Damaged { path: path.to_owned(), offset, cause };
        while let Some(message) = decoder.poll().map_err(damaged)? {
            match (&message, &mut parts) {
                (Message::CheckpointHead(_), None) => parts = Some(0),
                (Message::CheckpointPart(_), Some(parts)) => *parts += 1,
                (Message::CheckpointEnd(end), Some(parts)) if end.parts == *parts => return Ok(()),
                _ => return Err(foreign("its messages are not those of one whole checkpoint").into()),
            }
            take(message)?;
        }
        if found == 0 {
            return Err(foreign("it ends before its checkpoint does").into());
        }
        offset += found as u64;
    }
}

/// Reads the head of a state that was written: where it was taken.
///
/// # Errors
/// What the disk says; [`StoreError::Damaged`] and [`StoreError::ForeignFile`].
pub(crate) fn read_head(path: &Path) -> Result<CheckpointStart, StoreError> {
    const PIECE_BYTES: usize = 64 << 10;
    let read_error = |error| StoreError::io("read", path, error);
    let mut file = File::open(path).map_err(read_error)?;
    let mut decoder = MessageDecoder::default();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let found = file.read(&mut piece).map_err(read_error)?;
        decoder.push(piece.get(..found).unwrap_or_default());
        let damaged = |cause| StoreError::Damaged { path: path.to_owned(), offset: 0, cause };
        match decoder.poll().map_err(damaged)? {
            Some(Message::CheckpointHead(start)) => return Ok(start),
            None if found > 0 => {}
            Some(_) | None => {
                let found = "it does not begin with a checkpoint's head".to_owned();
                return Err(StoreError::ForeignFile { path: path.to_owned(), found });
            }
        }
    }
}

fn write_to(
    file: File,
    start: CheckpointStart,
    mut next_part: impl FnMut() -> CheckpointPart,
) -> io::Result<()> {
    let mut file = BufWriter::new(file);
    write_message(&mut file, &Message::CheckpointHead(start))?;
    let mut parts = 0;
    loop {
        let part = next_part();
        if part.is_empty() {
            break;
        }
        parts += 1;
        write_message(&mut file, &Message::CheckpointPart(part))?;
    }
    write_message(&mut file, &Message::CheckpointEnd(CheckpointEnd { parts }))?;
    file.into_inner()?.sync_all()
}

fn write_message(file: &mut impl Write, message: &Message) -> io::Result<()> {
    file.write_all(&message.encode().map_err(io::Error::other)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use log_format::{Digest, MachineIdentity, MessageDecoder, Moment, Page};

    fn head() -> CheckpointHead {
        CheckpointHead {
            identity: MachineIdentity { semantics: 1, config: [1; 32], boot_images: [2; 32], disks: vec![] },
            moment: Moment { icount: 77, time_ns: 78 },
            outputs_before: 3,
            ram_bytes: 8192,
            digest: Digest([5; 16]),
            state: vec![9; 100].into(),
        }
    }

    #[test]
    fn a_state_is_read_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let page = Page { index: 1, data: Some(Bytes::from(vec![7; 4096])) };
        let part = CheckpointPart { pages: vec![page], blocks: vec![] };
        let mut parts = vec![CheckpointPart::default(), part.clone()];
        write_checkpoint(&path, head(), || parts.pop().unwrap()).unwrap();

        let mut decoder = MessageDecoder::default();
        decoder.push(&std::fs::read(&path).unwrap());
        let mut next = || decoder.poll().unwrap();
        assert!(matches!(next(), Some(Message::CheckpointHead(start)) if start.head == head()));
        assert_eq!(next(), Some(Message::CheckpointPart(part)));
        assert_eq!(next(), Some(Message::CheckpointEnd(CheckpointEnd { parts: 1 })));
        assert_eq!(next(), None);
    }

    #[test]
    fn a_state_is_given_back_whole_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let page = |index| Page { index, data: Some(Bytes::from(vec![7; 4096])) };
        let mut parts: Vec<_> =
            (0..3).map(|index| CheckpointPart { pages: vec![page(index)], blocks: vec![] }).collect();
        parts.insert(0, CheckpointPart::default());
        write_checkpoint(&path, head(), || parts.pop().unwrap()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let read = || {
            let mut messages = 0;
            read_checkpoint(&path, |_| {
                messages += 1;
                Ok::<_, StoreError>(())
            })
            .map(|()| messages)
        };
        assert_eq!(read().unwrap(), 4, "the head and three parts");
        for cut in [0, 10, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(matches!(read(), Err(StoreError::ForeignFile { .. })), "cut at {cut}");
        }
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        std::fs::write(&path, flipped).unwrap();
        assert!(matches!(read(), Err(StoreError::Damaged { .. })));
        std::fs::write(&path, &whole[whole.len() - 60..]).unwrap();
        assert!(read().is_err(), "without its head");
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write_checkpoint(&folder.path().join("no/state"), head(), CheckpointPart::default).is_err());
    }
}
