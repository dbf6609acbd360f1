//! Checkpoint files: what is written is read back, and what is not what was signed is refused.

// Helpers of tests unwrap as tests do.
#![allow(clippy::unwrap_used)]

#[path = "common/checkpoint_bytes.rs"]
mod checkpoint_bytes;
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
fn pages_that_are_almost_in_a_boot_image_cost_little() {
    let desk = Desk::new();
    let mut state = State { pages: vec![], blocks: vec![], ..State::some() };
    let kernel = state.images[0].bytes.clone();
    for page in 0..20 {
        let mut data = kernel[page * 4096..(page + 1) * 4096].to_vec();
        if page > 2 {
            data[100 * page..][..8].fill(9);
        }
        state.pages.push(log_format::Page { index: 300 + page as u64, data: Some(data.into()) });
    }
    let written = desk.write("patched", &state, How::default()).unwrap();
    assert_eq!((written.own_units, written.image_units), (17, 3));
    assert!(written.bytes < 4000, "{} bytes for 17 pages that do not compress", written.bytes);
    let path = desk.path("patched");
    assert_eq!(desk.read(&path, &state.image_bytes()).unwrap(), state);
    let mut other = kernel.to_vec();
    other[5 * 4096] ^= 1;
    assert!(desk.read(&path, &[other.into()]).is_err(), "the hash of each page is checked");

    let base = CheckpointFile::open(&path, &desk.trust(), None).unwrap();
    let mut later = state.clone();
    later.pages[7].data = Some(checkpoints::unit(1));
    let more = desk.write("more", &later, How { base: Some(&base), ..How::default() }).unwrap();
    assert_eq!((more.own_units, more.base_units, more.image_units), (1, 16, 3));
    assert_eq!(desk.read(&desk.path("more"), &later.image_bytes()).unwrap(), later);
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

/// Mutated files with hashes and signature made good: a value or an error, never a panic. The
/// fuzz target `checkpoint_file` goes further; this part runs everywhere, from a fixed seed.
#[test]
fn mutated_files_that_are_signed_again() {
    let desk = Desk::new();
    let mut state = State::some();
    state.images.clear();
    state.pages.truncate(300);
    desk.write("whole", &state, How::default()).unwrap();
    let whole = std::fs::read(desk.path("whole")).unwrap();
    let path = desk.path("mutant");
    let resealed = checkpoint_bytes::resealed(&whole).unwrap();
    assert_eq!(checkpoint_bytes::file(&resealed, &path), Some(330), "resealing harms nothing");

    let mut seed = 1u64;
    let mut random = |limit: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % limit
    };
    let index_at =
        u64::from_le_bytes(whole[whole.len() - 160..whole.len() - 152].try_into().unwrap()) as usize;
    let (mut good, mut bad) = (0, 0);
    for _ in 0..1500 {
        let mut mutant = whole.clone();
        for _ in 0..=random(2) {
            // Header, description, table and index rather than the bytes of pages.
            let at = match random(4) {
                0 => random(64),
                1 => 64 + random(600),
                2 => index_at - 1 - random(2000),
                _ => index_at + random(whole.len() - 168 - index_at),
            };
            match random(3) {
                0 => mutant[at] ^= 1 << random(8),
                1 => mutant[at] = random(256) as u8,
                _ => mutant[at] = [0, 1, 0x7f, 0xff][random(4)],
            }
        }
        let Some(mutant) = checkpoint_bytes::resealed(&mutant) else { continue };
        match checkpoint_bytes::file(&mutant, &path) {
            Some(_) => good += 1,
            None => bad += 1,
        }
    }
    assert!(good > 50 && bad > 300, "{good} good, {bad} bad");
}
