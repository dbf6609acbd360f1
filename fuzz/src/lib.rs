//! What the fuzz targets share.
//!
//! A target turns bytes into something and checks what must hold of whatever comes out; it
//! says nothing about how the fuzzer finds its bytes. The checks of the decoders are those of
//! `log-format`'s, `store`'s and `netbuf`'s own tests, so that an input found here becomes a test there.

#[path = "../../log-format/tests/common/decoders.rs"]
pub mod decoders;
/// Disk images as the program opens them: its own module, since a program is no library.
#[path = "../../secondwind/src/disk/mod.rs"]
pub mod disk;
#[path = "../../netbuf/tests/common/inputs.rs"]
pub mod inputs;
#[path = "../../store/tests/common/checkpoint_bytes.rs"]
pub mod checkpoint_bytes;
#[path = "../../store/tests/common/records.rs"]
pub mod records;
#[path = "../../machine/tests/common/scripts.rs"]
pub mod scripts;
#[path = "../../log-format/tests/common/reseal.rs"]
mod reseal;

use bytes::Bytes;

/// An input as it is, and with checksums made good, so that a fuzzer that cannot guess a
/// checksum reaches what lies behind them.
pub fn as_it_is_and_resealed(data: &[u8]) -> [Bytes; 2] {
    let mut resealed = data.to_vec();
    reseal::reseal(&mut resealed);
    [Bytes::copy_from_slice(data), resealed.into()]
}

/// A stream of frames from one input, cut where a frame's magic stands; each has its
/// checksums made good.
pub fn resealed_frames(data: &[u8]) -> Vec<u8> {
    let starts = data.windows(2).enumerate().filter(|(_, pair)| *pair == reseal::MAGIC).map(|(at, _)| at);
    let mut stream = data.to_vec();
    let mut ends = starts.clone().skip(1).chain([data.len()]);
    for start in starts {
        let end = ends.next().unwrap_or(data.len());
        reseal::reseal(&mut stream[start..end]);
    }
    stream
}
