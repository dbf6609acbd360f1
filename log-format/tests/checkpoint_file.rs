//! The codec of checkpoint files: what is encoded decodes to the same, whatever it is, and bytes
//! that are nothing are refused.

// Helpers of tests unwrap as tests do.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use log_format::checkpoint_file::*;
use log_format::{CheckpointHead, Digest, MachineIdentity, Moment};
use proptest::prelude::*;

fn place() -> impl Strategy<Value = UnitPlace> {
    prop_oneof![
        3 => (0u64..5000).prop_map(UnitPlace::Page),
        1 => (0u8..3, 0u64..500).prop_map(|(disk, index)| UnitPlace::Block { disk, index }),
    ]
}

fn source() -> impl Strategy<Value = Source> {
    prop_oneof![
        3 => any::<UnitHash>().prop_map(|hash| Source::Own(vec![hash])),
        1 => any::<UnitHash>().prop_map(|hash| Source::Base(vec![hash])),
        1 => (0u8..3, 0u64..9).prop_map(|(image, first_page)| Source::Image { image, first_page }),
        1 => (0u8..3, 0u64..9, any::<UnitHash>()).prop_map(|(image, first_page, hash)| {
            Source::Patched { image, first_page, hashes: vec![hash] }
        }),
    ]
}

/// Units at places that ascend; only pages come from images.
fn units() -> impl Strategy<Value = Vec<(UnitPlace, Source)>> {
    prop::collection::btree_map(place(), source(), 0..300).prop_map(|units| {
        let whole = |(place, source)| match (place, source) {
            (UnitPlace::Block { .. }, Source::Image { .. } | Source::Patched { .. }) => {
                (place, Source::Own(vec![[7; 16]]))
            }
            pair => pair,
        };
        units.into_iter().map(whole).collect()
    })
}

fn decode(pieces: &[Vec<u8>]) -> Result<Table, FormatError> {
    let mut table = Table::default();
    pieces.iter().try_for_each(|piece| table.decode_piece(piece))?;
    Ok(table)
}

proptest! {
    #[test]
    fn a_table_is_read_as_it_was_made(units in units()) {
        let mut table = Table::default();
        units.iter().for_each(|(place, source)| table.push(*place, source));
        prop_assert_eq!(table.units(), units.len() as u64);
        let read = decode(&table.encode()).unwrap();
        prop_assert_eq!(&read, &table);
        for (place, source) in &units {
            let (run, within) = read.find(*place).unwrap();
            match (&read.runs[run].source, source) {
                (Source::Own(_), Source::Own(hash)) | (Source::Base(_), Source::Base(hash)) => {
                    prop_assert_eq!(read.hash_of(*place), Some(hash[0]));
                }
                (Source::Image { image, first_page }, Source::Image { image: other, first_page: page }) => {
                    prop_assert_eq!((*image, first_page + u64::from(within)), (*other, *page));
                }
                (Source::Patched { first_page, .. }, Source::Patched { first_page: page, hashes, .. }) => {
                    prop_assert_eq!(first_page + u64::from(within), *page);
                    prop_assert_eq!(read.hash_of(*place), Some(hashes[0]));
                }
                (found, expected) => prop_assert!(false, "{:?}, not {:?}", found, expected),
            }
        }
        let places: std::collections::BTreeSet<_> = units.iter().map(|(place, _)| *place).collect();
        for page in (0..5000).step_by(37).map(UnitPlace::Page).filter(|page| !places.contains(page)) {
            prop_assert_eq!(read.find(page), None);
        }
    }

    #[test]
    fn headers_and_trailers_are_read_as_they_were_made(
        incremental: bool, key in prop::option::of((any::<[u8; 16]>(), any::<[u8; 32]>())),
        offset in 64u64..1 << 60, index in 0u64..1 << 40, root: [u8; 32], signer: [u8; 32],
    ) {
        let kind = if incremental { FileKind::Incremental } else { FileKind::Full };
        let cipher = key.map_or(Cipher::None, |(key_check, salt)| Cipher::ChaCha20Poly1305 { key_check, salt });
        let header = FileHeader::new(kind, cipher);
        prop_assert_eq!(FileHeader::decode(&header.encode()), Ok(header));
        let trailer = Trailer {
            index_offset: offset, index_bytes: index, root: Root(root), signer, signature: [9; 64],
        };
        let bytes = trailer.encode();
        prop_assert_eq!(Trailer::decode(&bytes, trailer.file_bytes()), Ok(trailer));
        prop_assert!(Trailer::decode(&bytes, trailer.file_bytes() + 1).is_err());
    }

    /// Of a header, and of a trailer, every flipped bit is seen, but for those that a signature or
    /// a root must show.
    #[test]
    fn flipped_bits_are_seen(at in 0usize..168 * 8) {
        let trailer = Trailer {
            index_offset: 64, index_bytes: 44, root: Root([1; 32]), signer: [2; 32], signature: [3; 64],
        };
        let mut bytes = trailer.encode();
        bytes[at / 8] ^= 1 << (at % 8);
        prop_assert!(Trailer::decode(&bytes, trailer.file_bytes()).is_err());
        let header = FileHeader::new(FileKind::Full, Cipher::None);
        let mut bytes = header.encode();
        bytes[at / 8 % 64] ^= 1 << (at % 8);
        let seen = FileHeader::decode(&bytes).ok();
        prop_assert_ne!(seen, Some(header));
    }

    #[test]
    fn any_bytes_are_refused_or_mean_something(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = FileHeader::decode(&bytes);
        let _ = Index::decode(&bytes, 64);
        let _ = Description::decode(&bytes, FileKind::Full);
        let _ = decode(&[bytes]);
    }
}

fn description() -> Description {
    Description {
        vm: "vm".into(),
        program: "0.1.0".into(),
        taken_unix_ns: u64::MAX,
        events_before: 3,
        base: None,
        head: CheckpointHead {
            identity: MachineIdentity {
                semantics: 2,
                config: [1; 32],
                boot_images: [2; 32],
                disks: vec![(8192, [3; 32])],
            },
            moment: Moment { icount: 1, time_ns: 2 },
            outputs_before: 4,
            ram_bytes: 1 << 20,
            digest: Digest([5; 16]),
            state: vec![6; 100].into(),
        },
        recipe: Bytes::from_static(b"{}"),
        images: vec![ImageReference { name: "kernel".into(), bytes: 5000, hash: [7; 32], bundled: true }],
    }
}

#[test]
fn a_description_is_read_as_it_was_made_and_must_agree_with_its_file() {
    let full = description();
    assert_eq!(Description::decode(&full.encode().unwrap(), FileKind::Full).unwrap(), full);
    assert!(Description::decode(&full.encode().unwrap(), FileKind::Incremental).is_err());
    let base = |file_name: &str| Some(Base { root: [8; 32], file_name: file_name.into() });
    let on_base = Description { base: base("a.swc"), ..description() };
    assert_eq!(Description::decode(&on_base.encode().unwrap(), FileKind::Incremental).unwrap(), on_base);
    for name in ["../a.swc", "/etc/passwd", "..", "a\0b"] {
        let astray = Description { base: base(name), ..description() };
        assert!(Description::decode(&astray.encode().unwrap(), FileKind::Incremental).is_err(), "{name}");
    }
}

#[test]
fn a_table_must_lie_in_its_machine_its_images_and_its_file() {
    let shape = TableShape {
        pages: 100,
        disk_blocks: vec![10],
        image_bytes: vec![5000],
        has_base: false,
        own_units: 1,
    };
    let own = |place| vec![(place, Source::Own(vec![[1; 16]]))];
    let check = |units: Vec<(UnitPlace, Source)>, shape: &TableShape| {
        let mut table = Table::default();
        units.iter().for_each(|(place, source)| table.push(*place, source));
        table.check(shape)
    };
    assert_eq!(check(own(UnitPlace::Page(99)), &shape), Ok(()));
    assert!(check(own(UnitPlace::Page(100)), &shape).is_err(), "outside memory");
    assert_eq!(check(own(UnitPlace::Block { disk: 0, index: 9 }), &shape), Ok(()));
    assert!(check(own(UnitPlace::Block { disk: 0, index: 10 }), &shape).is_err(), "outside the disk");
    assert!(check(own(UnitPlace::Block { disk: 1, index: 0 }), &shape).is_err(), "no such disk");
    assert!(check(vec![], &shape).is_err(), "a unit of the file belongs to no place");
    let none = TableShape { own_units: 0, ..shape.clone() };
    let image = |image, first_page| vec![(UnitPlace::Page(0), Source::Image { image, first_page })];
    assert_eq!(check(image(0, 1), &none), Ok(()), "5000 bytes are two pages");
    assert!(check(image(0, 2), &none).is_err());
    assert!(check(image(0, u64::MAX), &none).is_err());
    assert!(check(image(1, 0), &none).is_err());
    let base = || vec![(UnitPlace::Page(0), Source::Base(vec![[1; 16]]))];
    assert!(check(base(), &none).is_err());
    assert_eq!(check(base(), &TableShape { has_base: true, ..none.clone() }), Ok(()));
}

#[test]
fn a_chunk_unpacks_to_what_it_says_and_no_more() {
    let plain = vec![5; 1 << 20];
    let packed = zstd::bulk::compress(&plain, 3).unwrap();
    let chunk = |plain_bytes| Chunk {
        kind: ChunkKind::Units,
        method: Method::Zstd,
        plain_bytes,
        stored_bytes: packed.len() as u32,
        hash: [0; 32],
    };
    assert_eq!(unpack_chunk(&chunk(1 << 20), &packed).unwrap(), plain);
    for wrong in [0, 4096, (1 << 20) - 1, (1 << 20) + 1] {
        assert!(unpack_chunk(&chunk(wrong), &packed).is_err(), "{wrong}");
    }
    assert!(unpack_chunk(&chunk(1 << 20), &packed[1..]).is_err());
}
