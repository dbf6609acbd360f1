//! Properties of the codecs over arbitrary values.

mod common;

use bytes::Bytes;
use common::strategies;
use log_format::*;
use proptest::prelude::*;

proptest! {
    #[test]
    fn a_batch_comes_back_as_it_was(batch in strategies::batch(20), previous: [u8; 16]) {
        let sealed = batch.clone().seal(ChainHash(previous)).unwrap();
        prop_assert_eq!(sealed.batch(), &batch);
        let read = SealedBatch::decode(sealed.bytes()).unwrap();
        prop_assert_eq!(&read, &sealed);
        prop_assert_eq!(read.chain(), sealed.chain());
        prop_assert_eq!(read.previous(), ChainHash(previous));
        // Sealed again it has the same bytes: there is one form of a batch.
        let again = read.into_batch().seal(ChainHash(previous)).unwrap();
        prop_assert_eq!(again.bytes(), sealed.bytes());
    }

    #[test]
    fn a_message_comes_back_as_it_was(message in strategies::message()) {
        let bytes = message.encode().unwrap();
        prop_assert_eq!(Message::decode(&bytes).unwrap(), message);
    }

    #[test]
    fn every_flipped_bit_of_a_batch_is_noticed(batch in strategies::batch(2)) {
        let bytes = batch.seal(ChainHash::NONE).unwrap().bytes().to_vec();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(SealedBatch::decode(&Bytes::from(damaged)).is_err(), "bit {}", bit);
        }
    }

    #[test]
    fn every_cut_of_a_batch_is_noticed(batch in strategies::batch(2)) {
        let sealed = batch.seal(ChainHash::NONE).unwrap();
        for cut in 0..sealed.bytes().len() {
            let error = SealedBatch::decode(&sealed.bytes().slice(..cut)).unwrap_err();
            prop_assert!(error.is_torn(), "cut at {}: {}", cut, error);
        }
    }

    #[test]
    fn the_chain_depends_on_all_of_a_batch(
        batch in strategies::batch(4),
        other in strategies::batch(4),
        previous: [u8; 16],
        other_previous: [u8; 16],
    ) {
        let same_batch = batch == other;
        let sealed = batch.clone().seal(ChainHash(previous)).unwrap();
        let other = other.seal(ChainHash(previous)).unwrap();
        prop_assert_eq!(sealed.chain() == other.chain(), same_batch);
        let elsewhere = batch.seal(ChainHash(other_previous)).unwrap();
        prop_assert_eq!(sealed.chain() == elsewhere.chain(), previous == other_previous);
    }

    #[test]
    fn a_stream_may_arrive_in_any_pieces(
        messages in prop::collection::vec(strategies::message(), 1..8),
        sizes in prop::collection::vec(1..3000usize, 1..20),
    ) {
        let stream: Vec<u8> = messages
            .iter()
            .flat_map(|message| message.encode().unwrap())
            .collect();
        let mut decoder = MessageDecoder::default();
        let mut received = Vec::new();
        let mut rest = &stream[..];
        for size in sizes.iter().cycle() {
            let (piece, later) = rest.split_at((*size).min(rest.len()));
            decoder.push(piece);
            loop {
                let is_ready = decoder.is_ready();
                let message = decoder.poll().unwrap();
                prop_assert_eq!(is_ready, message.is_some());
                let Some(message) = message else { break };
                received.push(message);
            }
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(decoder.pending_bytes(), 0);
        prop_assert_eq!(received, messages);
    }

    #[test]
    fn events_out_of_order_are_refused(batch in strategies::batch(6), index: prop::sample::Index) {
        prop_assume!(!batch.events.is_empty());
        let mut disordered = batch;
        let index = index.index(disordered.events.len());
        let last = disordered.end;
        prop_assume!(last.icount < u64::MAX);
        disordered.events[index].at.icount = last.icount + 1;
        let error = disordered.seal(ChainHash::NONE).unwrap_err();
        let refused = matches!(error, EncodeError::OutOfOrder { what: "event", .. });
        prop_assert!(refused, "{}", error);
    }
}
