//! What must hold of anything that a guest, a peer on the tunnel or a user sends us. Shared
//! with the fuzz targets, so that an input found there becomes a test here.

use bytes::Bytes;
use netbuf::announce::AddressLearner;
use netbuf::switch::Switch;
use netbuf::tunnel::{Datagram, HEADER_BYTES, MAX_FRAME_BYTES, Message};
use netbuf::{Forward, MacAddress, NetSpec};

/// Bytes from the tunnel's socket: an error, or a datagram that is written as it was read.
pub fn datagram(bytes: &[u8]) {
    let Ok(datagram) = Datagram::decode(bytes) else {
        return;
    };
    if let Message::Frame(frame) = &datagram.message {
        assert!((14..=MAX_FRAME_BYTES).contains(&frame.len()));
        assert_eq!(frame.len() + HEADER_BYTES, bytes.len());
    }
    let mut written = Vec::new();
    datagram.encode_into(&mut written);
    assert_eq!(written, bytes);
}

/// The same with a good beginning, which no fuzzer has to guess.
pub fn datagram_resealed(bytes: &[u8]) {
    let mut resealed = bytes.to_vec();
    for (to, from) in resealed.iter_mut().zip(*b"SWtn\x01") {
        *to = from;
    }
    if let Some(reserved) = resealed.get_mut(7) {
        *reserved = 0;
    }
    datagram(&resealed);
}

/// A frame that a guest sends: what is learned from it can be announced, and a switch
/// delivers it whole to others or not at all.
pub fn guest_frame(bytes: &[u8]) {
    let mut learner = AddressLearner::new();
    learner.observe(bytes);
    for (mac, address) in learner.addresses() {
        assert!(mac.is_station());
        assert!(!address.is_multicast() && !address.is_unspecified());
    }
    for announced in learner.announcement() {
        assert_eq!(announced.len(), 60);
        assert_eq!(MacAddress::source_of(&announced), MacAddress::source_of(bytes));
    }
    let switch = Switch::new();
    let (sender, _others) = (switch.attach(), [switch.attach(), switch.attach()]);
    sender.send(Bytes::copy_from_slice(bytes));
    let delivered = switch.statistics().delivered_frames;
    let has_source = MacAddress::source_of(bytes).is_some_and(|source| source.is_station());
    let to_itself = MacAddress::destination_of(bytes) == MacAddress::source_of(bytes);
    assert_eq!(delivered, if has_source && !to_itself { 2 } else { 0 });
}

/// What a user wrote after `--net` or `--forward`: a one-line error, or a value that is
/// itself again after writing and reading.
pub fn specification(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match text.parse::<NetSpec>() {
        Ok(spec) => assert_eq!(spec.to_string().parse(), Ok(spec)),
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
    match text.parse::<Forward>() {
        Ok(forward) => assert_eq!(forward.to_string().parse(), Ok(forward)),
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
}
