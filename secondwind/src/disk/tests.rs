//! Disks from files to block stores: raw, qcow2, chains, overlays, locks, damage.

use std::ffi::OsStr;
use std::panic::AssertUnwindSafe;
use std::process::Command;

use super::*;

const BLOCK: usize = 4096;

fn spec(path: &Path, options: &str) -> DiskSpec {
    let mut text = path.as_os_str().to_owned();
    text.push(options);
    DiskSpec::parse(&text).unwrap()
}

fn contents(disk: &mut dyn BlockStore) -> Vec<u8> {
    let mut found = vec![0xee; disk.len_sectors() as usize * 512];
    disk.read(0, &mut found).unwrap();
    found
}

/// Bytes that differ from sector to sector, with zeros among them.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| if (at / 8192) % 3 == 2 { 0 } else { (at / 512 + at % 7) as u8 | 1 }).collect()
}

/// The line that opening fails with.
fn refusal(spec: &DiskSpec, mode: DiskMode) -> String {
    match open(spec, mode) {
        Ok(_) => panic!("{spec:?} opens"),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn an_overlay_leaves_the_image_alone_and_can_go_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let before = pattern(6 * BLOCK + 512);
    std::fs::write(&path, &before).unwrap();
    let mut disk = open(&spec(&path, ""), DiskMode::Overlay).unwrap();
    assert_eq!(disk.len_sectors(), 49);
    assert_eq!(disk.base_hash(), *blake3::hash(&before).as_bytes());

    disk.write(7, &[9; 1024]).unwrap();
    disk.write(48, &[8; 512]).unwrap();
    disk.zero(17, 16, true).unwrap();
    let mut expected = before.clone();
    expected[7 * 512..9 * 512].fill(9);
    expected[48 * 512..].fill(8);
    expected[17 * 512..33 * 512].fill(0);
    assert!(contents(&mut *disk) == expected);
    assert_eq!(std::fs::read(&path).unwrap(), before, "the image is not written to");

    disk.revert().unwrap();
    assert!(contents(&mut *disk) == before);
}

#[test]
fn a_direct_disk_makes_a_machine_and_keeps_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, vec![1; 8192]).unwrap();
    let mut disk = open(&spec(&path, ""), DiskMode::Direct).unwrap();
    disk.revert().expect("an untouched image is its base, as a machine that is made wants it");
    disk.write(3, &[9; 512]).unwrap();
    disk.zero(5, 2, true).unwrap();
    disk.flush().unwrap();
    let found = std::fs::read(&path).unwrap();
    assert_eq!((found[3 * 512], found[5 * 512], found[7 * 512]), (9, 0, 1));
    assert!(disk.revert().is_err(), "what it was is gone");
}

#[test]
fn a_snapshot_and_a_read_only_disk_leave_the_image_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, vec![1; 8192]).unwrap();
    let mut disk = open(&spec(&path, ",snapshot"), DiskMode::Direct).unwrap();
    disk.write(0, &[9; 512]).unwrap();
    drop(disk);
    assert_eq!(std::fs::read(&path).unwrap(), [1; 8192]);
    let mut disk = open(&spec(&path, ",ro"), DiskMode::Direct).unwrap();
    assert!(disk.write(0, &[9; 512]).is_err(), "even if the device let it through");
}

#[test]
fn a_size_that_is_no_disk_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    for bytes in [0, 100, 513] {
        std::fs::write(&path, vec![0; bytes]).unwrap();
        assert!(refusal(&spec(&path, ""), DiskMode::Overlay).contains("not a multiple of 512"));
    }
    assert!(refusal(&spec(folder.path(), ""), DiskMode::Overlay).contains("no disk image"));
    assert!(refusal(&spec(&path, "x"), DiskMode::Overlay).contains("cannot open"));
}

#[test]
fn one_writer_or_many_readers_use_an_image() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, vec![1; 8192]).unwrap();
    let disk = spec(&path, "");
    let readers = [open(&disk, DiskMode::Overlay).unwrap(), open(&disk, DiskMode::Overlay).unwrap()];
    assert!(refusal(&disk, DiskMode::Direct).contains("another machine uses"));
    drop(readers);
    let _writer = open(&disk, DiskMode::Direct).unwrap();
    assert!(refusal(&disk, DiskMode::Overlay).contains("another machine writes to"));
}

#[test]
fn a_guest_cannot_turn_a_guessed_raw_image_into_qcow2() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, vec![1; 8192]).unwrap();
    let mut header = [0; 1024];
    header[..4].copy_from_slice(b"QFI\xfb");
    let mut disk = open(&spec(&path, ""), DiskMode::Direct).unwrap();
    assert!(disk.write(0, &header).unwrap_err().to_string().contains("format=raw"));
    drop(disk);
    let raw = spec(&path, ",format=raw");
    open(&raw, DiskMode::Direct).unwrap().write(0, &header).unwrap();
    assert_eq!(contents(&mut *open(&raw, DiskMode::Overlay).unwrap())[..1024], header);
    assert!(refusal(&spec(&path, ""), DiskMode::Overlay).contains("version 0"));
}

/// A raw image, and the path of an overlay over it.
fn image_and_overlay(folder: &Path) -> (PathBuf, PathBuf, Vec<u8>) {
    let path = folder.join("base.raw");
    let before = pattern(300 << 10);
    std::fs::write(&path, &before).unwrap();
    (path, folder.join("over.qcow2"), before)
}

#[test]
fn an_overlay_file_keeps_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (path, overlay, before) = image_and_overlay(folder.path());
    let disk = spec(&path, &format!(",overlay={}", overlay.display()));
    assert!(refusal(&disk, DiskMode::Overlay).contains("is not there"));
    assert!(!overlay.exists());

    let mut expected = before.clone();
    for round in 0..3u8 {
        let mut direct = open(&disk, DiskMode::Direct).unwrap();
        let sector = 100 + 77 * u64::from(round);
        direct.write(sector, &[round + 1; 4096]).unwrap();
        expected[sector as usize * 512..][..4096].fill(round + 1);
        direct.zero(sector + 3, 200, round == 1).unwrap();
        expected[(sector as usize + 3) * 512..][..200 * 512].fill(0);
        assert!(contents(&mut *direct) == expected, "round {round}");
        if round == 2 {
            direct.flush().unwrap();
            // A power cut: nothing of this process closes the image.
            std::mem::forget(direct);
            break;
        }
        drop(direct);
        assert!(contents(&mut *open(&disk, DiskMode::Overlay).unwrap()) == expected);
    }
    assert_eq!(std::fs::read(&path).unwrap(), before);
    let copy = folder.path().join("copy.qcow2");
    std::fs::copy(&overlay, &copy).unwrap();
    assert!(contents(&mut *open(&spec(&copy, ""), DiskMode::Overlay).unwrap()) == expected);

    let other = folder.path().join("other.raw");
    std::fs::copy(&path, &other).unwrap();
    let wrong = spec(&other, &format!(",overlay={}", copy.display()));
    assert!(refusal(&wrong, DiskMode::Direct).contains("stands on"));
    std::fs::rename(&path, folder.path().join("moved.raw")).unwrap();
    let missing = refusal(&spec(&copy, ""), DiskMode::Overlay);
    assert!(missing.contains("is not there") && missing.contains("rebase"), "{missing}");
}

#[test]
fn a_backing_chain_that_goes_round_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other, third] = ["a", "b", "c"].map(|name| folder.path().join(name));
    std::fs::write(&other, vec![0; 65536]).unwrap();
    qcow2::create_overlay(&one, &other, Format::Qcow2, 65536).unwrap();
    qcow2::create_overlay(&third, &one, Format::Qcow2, 65536).unwrap();
    std::fs::rename(&third, &other).unwrap();
    assert!(refusal(&spec(&one, ""), DiskMode::Overlay).contains("circle"));
}

#[test]
fn an_image_without_refcounts_is_only_read() {
    let folder = tempfile::tempdir().unwrap();
    let (path, overlay, before) = image_and_overlay(folder.path());
    let disk = spec(&path, &format!(",overlay={}", overlay.display()));
    drop(open(&disk, DiskMode::Direct).unwrap());
    let mut bytes = std::fs::read(&overlay).unwrap();
    let table = u64::from_be_bytes(bytes[48..56].try_into().unwrap()) as usize;
    bytes[table..table + 8].fill(0);
    std::fs::write(&overlay, &bytes).unwrap();
    // imago 0.2.6 would write over the header, and recurse without end.
    assert!(refusal(&disk, DiskMode::Direct).contains("a refcount block at 0"));
    assert!(contents(&mut *open(&disk, DiskMode::Overlay).unwrap()) == before);
}

/// A small generator, so that a failing seed is the whole story.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Changes some bytes, mostly of the tables, or cuts the image off.
fn damage(image: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..=dice.roll(4) {
        let len = image.len() as u64;
        let at = match dice.roll(8) {
            0..4 => dice.roll(120),
            // Entries of a table, wherever it is: each of 64 KiB clusters begins with one.
            4..7 => dice.roll(len >> 16) << 16 | dice.roll(64),
            _ => dice.roll(len),
        };
        let value = [0, 0xff, 0x80, 1, dice.roll(256) as u8][dice.roll(5) as usize];
        image[at as usize] = value;
    }
    if dice.roll(6) == 0 {
        image.truncate(dice.roll(image.len() as u64) as usize);
    }
}

#[test]
fn damaged_qcow2_images_are_errors_or_harmless() {
    let folder = tempfile::tempdir().unwrap();
    let (path, overlay, _) = image_and_overlay(folder.path());
    let disk = spec(&path, &format!(",overlay={}", overlay.display()));
    let mut direct = open(&disk, DiskMode::Direct).unwrap();
    direct.write(64, &pattern(100 << 10)).unwrap();
    direct.zero(8, 500, true).unwrap();
    drop(direct);
    let good = std::fs::read(&overlay).unwrap();
    let damaged = folder.path().join("damaged.qcow2");
    let mut refused = 0;
    for seed in 0..1500 {
        let mut dice = Dice(seed);
        let mut image = good.clone();
        damage(&mut image, &mut dice);
        std::fs::write(&damaged, &image).unwrap();
        let mode = if dice.roll(2) == 0 { DiskMode::Direct } else { DiskMode::Overlay };
        let used = std::panic::catch_unwind(AssertUnwindSafe(|| use_image(&damaged, mode, &mut dice)));
        match used {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                assert!(!error.to_string().contains('\n'));
                refused += 1;
            }
            Err(_) => panic!("seed {seed} panics"),
        }
    }
    assert!((200..1500).contains(&refused), "{refused} of 1500 refused");
}

fn use_image(path: &Path, mode: DiskMode, dice: &mut Dice) -> Result<()> {
    let disk = spec(path, ",format=qcow2");
    let (image, _) = open_image(&disk, Access::Read)?;
    if image.len_bytes() > 16 << 20 {
        // The damage made it a large disk; hashing that takes time and shows nothing.
        return Ok(());
    }
    drop(image);
    let mut disk = open(&disk, mode)?;
    let sectors = disk.len_sectors().min(4096);
    for _ in 0..6 {
        let sector = dice.roll(sectors);
        let len = (1 + dice.roll(64)).min(sectors - sector);
        let mut bytes = vec![7; len as usize * 512];
        match dice.roll(4) {
            0 => disk.read(sector, &mut bytes)?,
            1 => disk.zero(sector, len, true)?,
            2 => disk.flush()?,
            _ => disk.write(sector, &bytes)?,
        }
    }
    Ok(())
}

/// Runs qemu-img, which `tests/run` installs. What it printed.
fn qemu_img<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> String {
    let done = Command::new("qemu-img").args(arguments).output().expect("qemu-img (Debian: qemu-utils)");
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "qemu-img: {said}");
    said
}

#[test]
fn qemu_conversions_of_an_image_are_the_same_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _, before) = image_and_overlay(folder.path());
    let raw = path.to_str().unwrap();
    let expected = open(&spec(&path, ""), DiskMode::Overlay).unwrap().base_hash();
    let made = folder.path().join("made.qcow2");
    let out = made.to_str().unwrap();
    for options in [
        &["-o", "compat=1.1"][..],
        &["-o", "compat=0.10"],
        &["-c"],
        &["-c", "-o", "compat=0.10,cluster_size=4096"],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=2M"],
        &["-o", "preallocation=metadata"],
        &["-o", "lazy_refcounts=on,refcount_bits=64"],
    ] {
        qemu_img([&["convert", "-f", "raw", "-O", "qcow2"][..], options, &[raw, out]].concat());
        let mut disk = open(&spec(&made, ""), DiskMode::Overlay).unwrap();
        assert_eq!(disk.base_hash(), expected, "{options:?}");
        assert!(contents(&mut *disk) == before, "{options:?}");
        drop(disk);
        written_images_please_qemu(&made, &before);
    }
}

/// Writes to an image at random, and has QEMU look at it.
fn written_images_please_qemu(path: &Path, before: &[u8]) {
    let mut expected = before.to_vec();
    let mut dice = Dice(5);
    for _ in 0..3 {
        let mut disk = open(&spec(path, ""), DiskMode::Direct).unwrap();
        for _ in 0..60 {
            let sector = dice.roll(expected.len() as u64 / 512);
            let len = (1 + dice.roll(100)).min(expected.len() as u64 / 512 - sector);
            let range = &mut expected[sector as usize * 512..][..len as usize * 512];
            if dice.roll(3) == 0 {
                disk.zero(sector, len, dice.roll(2) == 0).unwrap();
                range.fill(0);
            } else {
                range.fill(dice.roll(256) as u8);
                disk.write(sector, range).unwrap();
            }
        }
        assert!(contents(&mut *disk) == expected);
    }
    let checked = qemu_img(["check", "-f", "qcow2", path.to_str().unwrap()]);
    assert!(checked.contains("No errors"), "{checked}");
    let raw = path.with_extension("written");
    std::fs::write(&raw, &expected).unwrap();
    qemu_img(["compare", "-f", "qcow2", "-F", "raw", path.to_str().unwrap(), raw.to_str().unwrap()]);
}

#[test]
fn qemu_chains_are_followed_and_stay_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _, before) = image_and_overlay(folder.path());
    let names = ["one.qcow2", "two.qcow2"].map(|name| folder.path().join(name));
    let [one, two] = names.each_ref().map(|path| path.to_str().unwrap());
    qemu_img(["create", "-f", "qcow2", "-F", "raw", "-b", "base.raw", one]);
    // Larger than what is below it: the rest is zeros.
    qemu_img(["create", "-f", "qcow2", "-F", "qcow2", "-b", "one.qcow2", two, "400K"]);
    let mut larger = before.clone();
    larger.resize(400 << 10, 0);
    let files = || [&path, &names[0]].map(|path| std::fs::read(path).unwrap());
    let below = files();
    assert!(contents(&mut *open(&spec(&names[1], ""), DiskMode::Overlay).unwrap()) == larger);
    written_images_please_qemu(&names[1], &larger);
    assert!(files() == below, "what is below is only read");

    // An internal snapshot shares clusters with what is written.
    qemu_img(["snapshot", "-c", "kept", two]);
    let shared = contents(&mut *open(&spec(&names[1], ""), DiskMode::Overlay).unwrap());
    written_images_please_qemu(&names[1], &shared);
    qemu_img(["snapshot", "-a", "kept", two]);
    assert!(contents(&mut *open(&spec(&names[1], ""), DiskMode::Overlay).unwrap()) == shared);

    // No format said: raw is safe to take, qcow2 is not.
    qemu_img(["rebase", "-u", "-b", "base.raw", "-F", "raw", one]);
    let unsaid = folder.path().join("unsaid.qcow2");
    qemu_img(["create", "-f", "qcow2", "-F", "qcow2", "-b", "one.qcow2", unsaid.to_str().unwrap()]);
    let mut bytes = std::fs::read(&unsaid).unwrap();
    let at = bytes.windows(4).position(|bytes| bytes == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&unsaid, &bytes).unwrap();
    let said = refusal(&spec(&unsaid, ""), DiskMode::Overlay);
    assert!(said.contains("does not say of which format"), "{said}");
}

#[test]
fn qemu_images_that_cannot_be_served_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let out = path.to_str().unwrap();
    let data = folder.path().join("data.raw");
    let external = format!("data_file={}", data.display());
    let secret = ["--object", "secret,id=s,data=1"];
    for (arguments, said) in [
        (&["create", "-f", "qcow2", "-o", "extended_l2=on", out, "1M"][..], "extended L2"),
        (&["create", "-f", "qcow2", "-o", "compression_type=zstd", out, "1M"], "zlib"),
        (&["create", "-f", "qcow2", "-o", &external, out, "1M"], "another file"),
        (
            &[
                "create",
                secret[0],
                secret[1],
                "-f",
                "qcow2",
                "-o",
                "encrypt.format=luks,encrypt.key-secret=s",
                out,
                "1M",
            ],
            "encrypted",
        ),
    ] {
        qemu_img(arguments);
        for mode in [DiskMode::Direct, DiskMode::Overlay] {
            let refused = refusal(&spec(&path, ""), mode);
            assert!(refused.contains(said) && !refused.contains('\n'), "{refused}");
        }
    }
    let remote = ["create", "-u", "-f", "qcow2", "-F", "raw", "-b", "nbd://127.0.0.1/x", out, "1M"];
    qemu_img(remote);
    assert!(refusal(&spec(&path, ""), DiskMode::Overlay).contains("not a local one"));
}

#[test]
fn qemu_heeds_our_locks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, vec![1; 65536]).unwrap();
    let name = path.to_str().unwrap();
    let resize = || Command::new("qemu-img").args(["resize", "-f", "raw", name, "128K"]).output().unwrap();
    let disk = open(&spec(&path, ""), DiskMode::Direct).unwrap();
    let refused = resize();
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("lock"), "{refused:?}");
    drop(disk);
    assert!(resize().status.success());
}
