//! The overlay of a protected machine when its host dies: at every write and every sync.

use std::sync::{Arc, Mutex};

use super::super::DiskSpec;
use super::super::image::{OpenedFile, RawImage};
use super::super::spec::Format;
use super::*;

/// How the host dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// The process: what was written stays.
    Killed,
    /// The power: of what was not synced, any sectors are lost.
    PowerLost,
}

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

#[derive(Debug, Default)]
struct HostFile {
    synced: Vec<u8>,
    now: Vec<u8>,
    unsynced: Vec<Change>,
}

/// Two files that share one fate.
#[derive(Debug)]
struct Host {
    files: [HostFile; 2],
    steps: usize,
    dies_at: usize,
    death: Death,
    dice: Dice,
    is_dead: bool,
}

#[derive(Debug, Clone)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write(at, from) => {
                let end = *at as usize + from.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*at as usize..end].copy_from_slice(from);
            }
            Change::SetLen(len) => bytes.resize(*len as usize, 0),
        }
    }

    /// What a power cut may keep of it: any of its sectors.
    fn survivors(self, dice: &mut Dice) -> Vec<Change> {
        match self {
            Change::SetLen(_) if dice.roll(2) == 0 => Vec::new(),
            Change::SetLen(_) => vec![self],
            Change::Write(at, from) => {
                let sectors = (at..).step_by(512).zip(from.chunks(512));
                let kept = sectors.filter(|_| dice.roll(2) == 0);
                kept.map(|(at, sector)| Change::Write(at, sector.to_vec())).collect()
            }
        }
    }
}

impl Host {
    /// Counts a step; `Err` once the host is dead. The step at which it dies is half done.
    fn step(&mut self, file: usize, change: Option<Change>) -> io::Result<()> {
        let dead = || Err(io::Error::other("the host is dead"));
        if self.is_dead {
            return dead();
        }
        self.steps += 1;
        let dies = self.steps > self.dies_at;
        match change {
            Some(Change::Write(at, mut from)) if dies => {
                from.truncate(from.len() * self.dice.roll(5) as usize / 4);
                self.change(file, Change::Write(at, from));
            }
            Some(change) if !dies || self.dice.roll(2) == 0 => self.change(file, change),
            Some(_) => {}
            None if !dies => {
                self.files[file].unsynced.clear();
                self.files[file].synced = self.files[file].now.clone();
            }
            None => {}
        }
        self.is_dead = dies;
        if dies { dead() } else { Ok(()) }
    }

    fn change(&mut self, file: usize, change: Change) {
        let file = &mut self.files[file];
        change.apply(&mut file.now);
        file.unsynced.push(change);
    }

    /// What is found after it died.
    fn remains(&mut self) -> [Vec<u8>; 2] {
        let (death, mut dice) = (self.death, self.dice.clone());
        self.files.each_mut().map(|file| match death {
            Death::Killed => file.now.clone(),
            Death::PowerLost => {
                let mut bytes = file.synced.clone();
                for change in file.unsynced.drain(..) {
                    change.survivors(&mut dice).iter().for_each(|change| change.apply(&mut bytes));
                }
                bytes
            }
        })
    }
}

/// A file of a host that dies as planned.
#[derive(Debug, Clone)]
struct DyingFile(Arc<Mutex<Host>>, usize);

impl DyingFile {
    /// The overlay's file and its journal, which die at a step.
    fn pair(files: [Vec<u8>; 2], dies_at: usize, death: Death, seed: u64) -> [DyingFile; 2] {
        let files = files.map(|bytes| HostFile { synced: bytes.clone(), now: bytes, unsynced: Vec::new() });
        let host = Host { files, steps: 0, dies_at, death, dice: Dice(seed), is_dead: false };
        let host = Arc::new(Mutex::new(host));
        [DyingFile(host.clone(), 0), DyingFile(host, 1)]
    }

    fn is_dead(&self) -> bool {
        self.0.lock().unwrap().is_dead
    }
}

impl Medium for DyingFile {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().files[self.1].now.len() as u64)
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let host = self.0.lock().unwrap();
        let bytes = &host.files[self.1].now;
        let from = &bytes[bytes.len().min(at as usize)..];
        let len = from.len().min(into.len());
        into[..len].copy_from_slice(&from[..len]);
        Ok(len)
    }

    fn write_at(&self, at: u64, from: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().step(self.1, Some(Change::Write(at, from.to_vec())))
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.0.lock().unwrap().step(self.1, Some(Change::SetLen(len_bytes)))
    }

    fn sync(&self) -> io::Result<()> {
        self.0.lock().unwrap().step(self.1, None)
    }
}

const DISK_BYTES: usize = 300 << 10;

/// A disk over an image in `folder`, whose overlay's bytes and journal are `files`.
struct Bench {
    folder: tempfile::TempDir,
    empty: Vec<u8>,
    before: Vec<u8>,
}

type DyingDisk = KeptDisk<DyingFile, DyingFile>;

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let before: Vec<u8> = (0..DISK_BYTES).map(|at| (at / 512 % 200 + at % 7) as u8).collect();
        std::fs::write(folder.path().join("base"), &before).unwrap();
        let overlay = folder.path().join("overlay");
        qcow2::create_overlay(&overlay, &folder.path().join("base"), Format::Raw, DISK_BYTES as u64).unwrap();
        Bench { empty: std::fs::read(overlay).unwrap(), folder, before }
    }

    fn open(&self, [file, journal]: [DyingFile; 2]) -> Result<DyingDisk> {
        let mut file = AtomicFile::open(file, journal, 7)?;
        file.set_apply_at_bytes(96 << 10);
        // What is looked at before the image is opened is read from a file.
        let path = self.folder.path().join("overlay");
        let mut bytes = vec![0; file.len_bytes() as usize];
        file.read_at(0, &mut bytes)?;
        std::fs::write(&path, bytes)?;
        let base = OpenedFile::open(&self.folder.path().join("base"), Access::Read)?;
        let header = OpenedFile::open(&path, Access::Write)?;
        let mut disk = KeptDisk::over(file, header, Box::new(RawImage::new(base)?), [0; 32], None)?;
        disk.limits = Limits { commit_at_bytes: 64 << 10, change_at_once_bytes: 320 << 10 };
        Ok(disk)
    }
}

/// What may be found after a crash.
struct Expected {
    /// The disk after each of the guest's writes, or of the changes made as one.
    states: Vec<Vec<u8>>,
    /// The first of them that may be found.
    durable: usize,
    /// A change in parts was begun: it may be found marked.
    may_be_incomplete: bool,
}

/// One run of writes, flushes and changes, until the host is dead.
fn use_disk(disk: &mut DyingDisk, seed: u64, expected: &mut Expected) -> io::Result<()> {
    let mut dice = Dice(seed);
    let mut now = expected.states[0].clone();
    for _ in 0..14 {
        match dice.roll(8) {
            0 | 1 => {
                disk.flush()?;
                expected.durable = expected.states.len() - 1;
            }
            2 => {
                disk.begin_change()?;
                let reverts = dice.roll(3) == 0;
                if reverts {
                    disk.revert()?;
                    now = expected.states[0].clone();
                }
                let writes = 1 + dice.roll(4) * dice.roll(4);
                for _ in 0..writes {
                    // It may go to the overlay in parts from the second one on.
                    expected.may_be_incomplete = true;
                    write(disk, &mut dice, &mut now)?;
                }
                expected.states.push(now.clone());
                disk.end_change()?;
                expected.may_be_incomplete = false;
            }
            _ => {
                expected.states.push(now.clone());
                let last = expected.states.len() - 1;
                let written = write(disk, &mut dice, &mut now);
                expected.states[last] = now.clone();
                written?;
            }
        }
    }
    Ok(())
}

fn write(disk: &mut DyingDisk, dice: &mut Dice, now: &mut [u8]) -> io::Result<()> {
    let sectors = (DISK_BYTES / 512) as u64;
    let sector = dice.roll(sectors);
    let len = (1 + dice.roll(96)).min(sectors - sector);
    let range = &mut now[sector as usize * 512..][..len as usize * 512];
    if dice.roll(4) == 0 {
        range.fill(0);
        return disk.zero(sector, len, dice.roll(2) == 0);
    }
    range.fill(dice.roll(255) as u8 + 1);
    disk.write(sector, range)
}

fn contents(disk: &mut DyingDisk) -> Vec<u8> {
    let mut found = vec![0xee; DISK_BYTES];
    disk.read(0, &mut found).unwrap();
    found
}

/// Runs until step `dies_at`, and looks at what is left. Whether the host died at all, and
/// whether what was found was marked as part of one state and part of another.
fn crash(bench: &Bench, seed: u64, dies_at: usize, death: Death) -> (bool, bool) {
    let about = format!("seed {seed}, {death:?} at step {dies_at}");
    let files = DyingFile::pair([bench.empty.clone(), Vec::new()], dies_at, death, seed ^ dies_at as u64);
    let mut expected = Expected { states: vec![bench.before.clone()], durable: 0, may_be_incomplete: false };
    let host = files[0].clone();
    if let Ok(mut disk) = bench.open(files) {
        let used = use_disk(&mut disk, seed, &mut expected);
        assert!(used.is_ok() || host.is_dead(), "{about}: {used:?}");
        drop(disk);
    }
    let died = host.is_dead();
    let remains = host.0.lock().unwrap().remains();

    let files = DyingFile::pair(remains, usize::MAX, death, seed);
    let mut disk = bench.open(files.clone()).unwrap_or_else(|error| panic!("{about}: {error:#}"));
    let is_incomplete = disk.file.lock().is_incomplete();
    let found = contents(&mut disk);
    let place = expected.states.iter().rposition(|state| *state == found);
    if is_incomplete {
        assert!(expected.may_be_incomplete, "{about}: nothing was between two states");
    } else {
        assert!(
            place.is_some_and(|place| place >= expected.durable),
            "{about}: found state {place:?}, expected one of {} from {} on",
            expected.states.len(),
            expected.durable
        );
    }
    let kept: Vec<u64> = disk.kept_blocks().unwrap();
    let differs = |block: &u64| {
        let range = *block as usize * 4096..(*block as usize * 4096 + 4096).min(DISK_BYTES);
        found[range.clone()] != bench.before[range]
    };
    let expected: Vec<u64> = (0..DISK_BYTES.div_ceil(4096) as u64).filter(differs).collect();
    assert_eq!(kept, expected, "{about}: exactly what differs is kept");
    // It goes on from there.
    disk.write(1, &[7; 512]).unwrap();
    disk.flush().unwrap();
    drop(disk);
    let overlay = files[0].0.lock().unwrap().files[0].now.clone();
    if dies_at.is_multiple_of(16) {
        check_with_qemu(bench, &overlay, &about);
    }
    (died, is_incomplete)
}

/// The overlay stands without its journal after a clean end, and QEMU finds nothing wrong.
fn check_with_qemu(bench: &Bench, overlay: &[u8], about: &str) {
    let path = bench.folder.path().join("checked.qcow2");
    std::fs::write(&path, overlay).unwrap();
    let checked = std::process::Command::new("qemu-img")
        .args(["check", "-f", "qcow2"])
        .arg(&path)
        .output()
        .expect("qemu-img (Debian: qemu-utils)");
    let said = String::from_utf8_lossy(&checked.stdout);
    // Leaked clusters (status 3) cost space alone.
    assert!(matches!(checked.status.code(), Some(0 | 3)), "{about}: {said}");
}

#[test]
fn a_disk_survives_its_host_at_every_step() {
    let bench = Bench::new();
    let (mut crashes, mut incomplete) = (0, 0);
    for seed in 0..12 {
        for death in [Death::Killed, Death::PowerLost] {
            let deaths = (0..).map(|step| crash(&bench, seed, step, death)).take_while(|(died, _)| *died);
            for (_, is_incomplete) in deaths {
                crashes += 1;
                incomplete += usize::from(is_incomplete);
            }
        }
    }
    assert!(crashes > 500, "{crashes} crashes");
    assert!(
        incomplete > 5 && incomplete < crashes / 3,
        "{incomplete} of {crashes} were part of a large change"
    );
}

#[test]
fn a_full_disk_is_an_error_and_no_more() {
    let bench = Bench::new();
    for step in 0..40 {
        let files = DyingFile::pair([bench.empty.clone(), Vec::new()], step, Death::Killed, step as u64);
        let host = files[0].clone();
        let Ok(mut disk) = bench.open(files) else { continue };
        let mut now = bench.before.clone();
        let mut dice = Dice(3);
        while write(&mut disk, &mut dice, &mut now).and_then(|()| disk.flush()).is_ok() {}
        // There is space again.
        host.0.lock().unwrap().is_dead = false;
        host.0.lock().unwrap().dies_at = usize::MAX;
        disk.flush().unwrap();
        assert!(contents(&mut disk) == now, "step {step}");
        drop(disk);
        let remains = host.0.lock().unwrap().remains();
        let files = DyingFile::pair(remains, usize::MAX, Death::Killed, 0);
        assert!(contents(&mut bench.open(files).unwrap()) == now, "step {step}");
    }
}

#[test]
fn a_protected_disk_keeps_what_was_written_under_the_images_identity() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base.raw");
    let before: Vec<u8> = (0..DISK_BYTES).map(|at| (at / 512) as u8).collect();
    std::fs::write(&path, &before).unwrap();
    let mut spec = DiskSpec::new(path.clone());
    spec.keep("db", "a");
    let overlay = spec.kept.clone().unwrap();
    assert_eq!(overlay.file_name().unwrap(), "base.raw.db-a.qcow2");
    let open = || super::super::open(&spec, super::super::DiskMode::Overlay).unwrap();
    let mut disk = open();
    assert!(disk.kept_blocks().unwrap().is_empty());
    disk.write(9, &[5; 1024]).unwrap();
    drop(disk);
    assert!(!journal_of(&overlay).exists(), "a clean end leaves one file");
    let mut disk = open();
    assert_eq!(disk.base_hash(), *blake3::hash(&before).as_bytes());
    assert_eq!(disk.kept_blocks().unwrap(), [1]);
    disk.revert_block(1).unwrap();
    assert!(disk.kept_blocks().unwrap().is_empty());
    disk.write(9, &[5; 1024]).unwrap();
    disk.flush().unwrap();
    std::mem::forget(disk);
    assert!(journal_of(&overlay).exists());
    // Another command reads it without a journal. The one before still has its locks, as if the
    // process lived: a copy has none.
    let copy = folder.path().join("copy.qcow2");
    std::fs::copy(&overlay, &copy).unwrap();
    std::fs::copy(journal_of(&overlay), journal_of(&copy)).unwrap();
    let read = DiskSpec { overlay: Some(copy.clone()), ..DiskSpec::new(path.clone()) };
    let mut disk = super::super::open(&read, super::super::DiskMode::Overlay).unwrap();
    let mut found = [0; 1024];
    disk.read(9, &mut found).unwrap();
    assert_eq!(found, [5; 1024]);
    assert_eq!(std::fs::read(&path).unwrap(), before);
}
