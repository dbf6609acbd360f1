//! Checkpoint files: what is written is read back, and what is not what was signed is refused.

// Helpers of tests unwrap as tests do.
#![allow(clippy::unwrap_used)]

#[path = "common/checkpoints.rs"]
mod checkpoints;

use checkpoints::{Desk, How, State, new_secret, new_signer, read};
use store::checkpoint::{Chain, CheckpointError, CheckpointFile, Trust};

#[test]
fn a_checkpoint_is_read_back_as_it_was_written() {
    let desk = Desk::new();
    let mut state = State::some();
    for is_secret in [false, true] {
        for bundled in [false, true] {
            state.images[0].bundled = bundled;
            let written = desk.write("file", &state, How { is_secret, ..How::default() }).unwrap();
            let path = desk.path("file");
            assert_eq!(written.bytes, std::fs::metadata(&path).unwrap().len());
            assert_eq!((written.units, written.image_units, written.base_units), (630, 20, 0));
            let found = desk.read(&path, &state.image_bytes()).unwrap();
            assert_eq!(found, state);
            assert_eq!(found.images.len(), usize::from(bundled));
            if bundled {
                assert_eq!(found.images[0].bytes, state.images[0].bytes);
            }
            let opened = CheckpointFile::open(&path, &desk.trust(), Some(&desk.secret)).unwrap();
            assert_eq!((opened.root(), opened.is_encrypted()), (written.root, is_secret));
            assert_eq!(opened.contents().own_units, written.own_units);
        }
    }
    let names: Vec<_> = std::fs::read_dir(desk.folder.path()).unwrap().collect();
    assert_eq!(names.len(), 4, "two key files, the public key, the checkpoint; nothing half-done");
}

#[test]
fn pages_that_are_in_a_boot_image_cost_next_to_nothing() {
    let desk = Desk::new();
    let state = State::some();
    let with = desk.write("with", &state, How::default()).unwrap();
    let without = desk.write("without", &State { images: vec![], ..state.clone() }, How::default()).unwrap();
    assert_eq!((with.own_units + 20, with.image_units), (without.own_units, 20));
    assert!(with.bytes < without.bytes);
    let refused = desk.read(&desk.path("with"), &[]).unwrap_err();
    assert!(matches!(refused, CheckpointError::OtherImage { .. }), "{refused}");
}

#[test]
fn an_incremental_checkpoint_holds_what_differs() {
    let desk = Desk::new();
    let (first, second) = (State::some(), State::some().later());
    let third = State { icount: 99, ..second.later() };
    let full = desk.write("full", &first, How { is_secret: true, ..How::default() }).unwrap();
    let open =
        |name: &str| CheckpointFile::open(&desk.path(name), &desk.trust(), Some(&desk.secret)).unwrap();
    let base = open("full");
    let how = How { base: Some(&base), is_secret: true };
    let one = desk.write("one", &second, how).unwrap();
    assert_eq!((one.own_units, one.units), (2, 629));
    assert!(one.bytes * 4 < full.bytes, "{} of {} bytes", one.bytes, full.bytes);
    let base = open("one");
    desk.write("two", &third, How { base: Some(&base), is_secret: false }).unwrap();
    for (name, state) in [("full", &first), ("one", &second), ("two", &third)] {
        assert_eq!(&desk.read(&desk.path(name), &state.image_bytes()).unwrap(), state, "{name}");
    }
}

#[test]
fn a_wrong_or_missing_base_is_refused() {
    let desk = Desk::new();
    let state = State::some();
    desk.write("full", &state, How::default()).unwrap();
    let base = CheckpointFile::open(&desk.path("full"), &desk.trust(), None).unwrap();
    desk.write("more", &state.later(), How { base: Some(&base), ..How::default() }).unwrap();
    desk.write("other", &state.later(), How::default()).unwrap();
    let more = desk.path("more");
    let open = |bases: &[_]| Chain::open(&more, bases, &desk.trust(), None).map(|_| ()).unwrap_err();
    let other = open(&[desk.path("other")]);
    assert!(matches!(other, CheckpointError::OtherRoot { .. }), "{other}");
    std::fs::rename(desk.path("full"), desk.path("moved")).unwrap();
    assert!(Chain::open(&more, &[desk.path("moved")], &desk.trust(), None).is_ok());
    let missing = open(&[]);
    assert!(matches!(missing, CheckpointError::NoBase { .. }), "{missing}");

    let mut foreign = state.description();
    foreign.head.identity.config = [9; 32];
    let plan = store::checkpoint::Plan {
        description: foreign,
        images: &store::checkpoint::Images::new(vec![]),
        base: Some(&base),
        signer: &desk.signer,
        secret: None,
    };
    let refused =
        store::checkpoint::CheckpointWriter::create(&desk.path("no"), plan).map(|_| ()).unwrap_err();
    assert!(matches!(refused, CheckpointError::ForeignBase { .. }), "{refused}");
    assert!(!desk.path("no").exists() && !desk.path("no.partial").exists());
}

#[test]
fn other_keys_are_refused() {
    let desk = Desk::new();
    let state = State::some();
    desk.write("plain", &state, How::default()).unwrap();
    desk.write("secret", &state, How { is_secret: true, ..How::default() }).unwrap();
    let stranger = new_signer(&desk.path("stranger"));
    let images = state.image_bytes();
    let trust = Trust::Keys(vec![stranger.public()]);
    let untrusted = read(&desk.path("plain"), &[], &trust, None, &images).unwrap_err();
    assert!(matches!(untrusted, CheckpointError::Untrusted { .. }), "{untrusted}");
    let trust = Trust::Keys(vec![stranger.public(), desk.signer.public()]);
    assert!(read(&desk.path("plain"), &[], &trust, None, &images).is_ok());
    let none = read(&desk.path("secret"), &[], &trust, None, &images).unwrap_err();
    assert!(matches!(none, CheckpointError::Encrypted { .. }), "{none}");
    let other = new_secret(&desk.path("other"));
    let wrong = read(&desk.path("secret"), &[], &trust, Some(&other), &images).unwrap_err();
    assert!(matches!(wrong, CheckpointError::WrongSecret { .. }), "{wrong}");
}

/// Each byte of a file of every kind: a flipped bit in it is refused.
#[test]
fn a_flipped_bit_is_refused_wherever_it_is() {
    let desk = Desk::new();
    let state = State::some();
    desk.write("base", &state, How::default()).unwrap();
    let base = CheckpointFile::open(&desk.path("base"), &desk.trust(), None).unwrap();
    for (number, how) in [
        How::default(),
        How { is_secret: true, ..How::default() },
        How { base: Some(&base), is_secret: false },
    ]
    .into_iter()
    .enumerate()
    {
        let mut small = state.clone();
        small.pages.truncate(20);
        small.blocks.truncate(2);
        desk.write("file", &small, how).unwrap();
        let path = desk.path("file");
        let bytes = std::fs::read(&path).unwrap();
        // All of header, index and trailer, and every 41st byte of the rest.
        let chosen = (0..bytes.len()).filter(|at| *at < 200 || *at + 800 > bytes.len() || at % 41 == number);
        for at in chosen {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            std::fs::write(&path, &flipped).unwrap();
            let refused = desk.read(&path, &state.image_bytes());
            assert!(refused.is_err(), "byte {at} of {} in file {number}", bytes.len());
        }
    }
}

#[test]
fn a_file_that_was_cut_or_added_to_is_refused() {
    let desk = Desk::new();
    let mut state = State::some();
    state.pages.truncate(30);
    desk.write("file", &state, How::default()).unwrap();
    let path = desk.path("file");
    let bytes = std::fs::read(&path).unwrap();
    let lengths = (0..300).chain((300..bytes.len()).step_by(97)).chain(bytes.len() - 300..bytes.len());
    for len in lengths {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(desk.read(&path, &state.image_bytes()).is_err(), "{len} of {} bytes", bytes.len());
    }
    std::fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
    assert!(desk.read(&path, &state.image_bytes()).is_err(), "a byte more");
    let doubled = [&bytes[..], &bytes[..]].concat();
    std::fs::write(&path, doubled).unwrap();
    assert!(desk.read(&path, &state.image_bytes()).is_err(), "twice");
}

/// Two files of one machine and one key: no part of one passes for the other's.
#[test]
fn parts_of_another_file_are_refused() {
    let desk = Desk::new();
    let state = State::some();
    for is_secret in [false, true] {
        desk.write("one", &state, How { is_secret, ..How::default() }).unwrap();
        desk.write("two", &state.later(), How { is_secret, ..How::default() }).unwrap();
        let (one, two) = (std::fs::read(desk.path("one")).unwrap(), std::fs::read(desk.path("two")).unwrap());
        for (start, end) in [(0, 64), (64, 4000), (4000, one.len() / 2), (one.len() - 168, one.len())] {
            let mut mixed = one.clone();
            let end_in_two = if end == one.len() { two.len() } else { end };
            let start_in_two = end_in_two - (end - start);
            mixed[start..end].copy_from_slice(&two[start_in_two..end_in_two]);
            if mixed == one {
                continue;
            }
            std::fs::write(desk.path("mixed"), &mixed).unwrap();
            let refused = desk.read(&desk.path("mixed"), &state.image_bytes());
            assert!(refused.is_err(), "bytes {start} to {end} of another file");
        }
    }
}

#[test]
fn a_writer_that_ends_early_leaves_the_old_file() {
    let desk = Desk::new();
    let state = State::some();
    desk.write("file", &state, How::default()).unwrap();
    let images = store::checkpoint::Images::new(vec![]);
    let plan = || store::checkpoint::Plan {
        description: state.description(),
        images: &images,
        base: None,
        signer: &desk.signer,
        secret: None,
    };
    let path = desk.path("file");
    let mut writer = store::checkpoint::CheckpointWriter::create(&path, plan()).unwrap();
    let busy = store::checkpoint::CheckpointWriter::create(&path, plan()).map(|_| ()).unwrap_err();
    assert!(matches!(busy, CheckpointError::Busy { .. }), "{busy}");
    let part = log_format::CheckpointPart { pages: state.pages.clone(), blocks: vec![] };
    writer.push(&part).unwrap();
    assert!(writer.push(&part).is_err(), "pages come in order");
    drop(writer);
    assert!(!desk.path("file.partial").exists());
    assert_eq!(desk.read(&path, &state.image_bytes()).unwrap(), state);
    // What a killed process left is replaced.
    std::fs::write(desk.path("file.partial"), vec![1; 10 << 20]).unwrap();
    desk.write("file", &state.later(), How::default()).unwrap();
    assert_eq!(desk.read(&path, &state.image_bytes()).unwrap(), state.later());
    assert!(!desk.path("file.partial").exists());
}

#[test]
fn keys_are_not_overwritten_and_foreign_ones_are_named() {
    let desk = Desk::new();
    let path = desk.path("sign");
    assert!(store::checkpoint::generate_signing(&path).is_err());
    assert!(store::checkpoint::generate_secret(&path).is_err());
    for (file, text) in
        [("empty", ""), ("text", "hello"), ("pem", "-----BEGIN X-----\nAAAA\n-----END X-----\n")]
    {
        std::fs::write(desk.path(file), text).unwrap();
        assert!(store::checkpoint::SigningKey::load(&desk.path(file)).is_err());
        assert!(store::checkpoint::SecretKey::load(&desk.path(file)).is_err());
        assert!(store::checkpoint::PublicKey::load_all(&desk.path(file)).is_err());
    }
    let public = store::checkpoint::PublicKey::load_all(&desk.path("sign.pub")).unwrap();
    assert_eq!(public, [desk.signer.public()]);
    use std::os::unix::fs::PermissionsExt;
    let mode = |name: &str| std::fs::metadata(desk.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("sign"), mode("secret")), (0o600, 0o600));
}
