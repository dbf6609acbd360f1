//! A machine's state as a file: checkpoint messages, one after the other
//! (docs/log-format.md).

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use log_format::{
    ChainHash, CheckpointEnd, CheckpointHead, CheckpointPart, CheckpointStart, Message, Position,
};

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
    let written = File::create(path).and_then(|file| write_to(file, head, next_part));
    if written.is_err() {
        // Half a state is of no use; the error says why there is none.
        let _ = std::fs::remove_file(path);
    }
    written
}

fn write_to(
    file: File,
    head: CheckpointHead,
    mut next_part: impl FnMut() -> CheckpointPart,
) -> io::Result<()> {
    let mut file = BufWriter::new(file);
    let start = CheckpointStart {
        position: Position { moment: head.moment, ..Position::default() },
        chain: ChainHash::NONE,
        events_before: 0,
        released_outputs: head.outputs_before,
        held: Vec::new(),
        head,
    };
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
            state: vec![9; 100],
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
    fn a_folder_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write_checkpoint(&folder.path().join("no/state"), head(), CheckpointPart::default).is_err());
    }
}
