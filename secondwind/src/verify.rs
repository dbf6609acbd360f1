//! `secondwind verify-disk`: whether disks are equal, block by block.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::control;
use crate::disk::{self, DiskSpec, Image};

/// Compares disks block by block: those of a protected machine with its backups', or two on
/// this host.
///
/// Of a machine that runs, every block that was written to is read and hashed anew on each host,
/// at the same place of the log, while the guest runs; the images below were compared when the
/// backup joined.
///
/// Two disks of this host are images with what lies over them, as --disk names them. Nobody may
/// write to either meanwhile. What a machine that was killed left in an overlay's journal is put
/// into it first.
#[derive(clap::Args)]
#[command(after_help = "\
Exit status: 0 equal, 3 different.

Examples:
  secondwind verify-disk                    the only machine that runs here, and its backups
  secondwind verify-disk db --json          the machine called db
  secondwind verify-disk root.img,overlay=a.qcow2 root.img,overlay=b.qcow2")]
pub struct VerifyDiskArgs {
    /// Name or control socket of the primary [default: the only machine of this user on this
    /// host], or two disks: `FILE[,format=raw|qcow2][,overlay=FILE]`
    #[arg(value_name = "VM | SPEC SPEC", num_args = 0..=2)]
    named: Vec<OsString>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Exit status of disks that differ.
const DIFFERENT: u8 = 3;
const BLOCK_BYTES: u64 = 4096;
/// What is read of each disk at once.
const READ_BYTES: u64 = 1 << 20;
/// Blocks that are named; of the others there is a number.
const NAMED_BLOCKS: usize = 16;
const PROGRESS_AFTER: Duration = Duration::from_secs(1);

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Size of the disks in bytes; their sizes are the same.
    pub disk_bytes: u64,
    /// How many blocks differ.
    pub differing_blocks: u64,
    /// The first of them.
    pub first: Vec<u64>,
}

/// Runs `secondwind verify-disk`.
pub fn verify_disk(args: VerifyDiskArgs) -> Result<ExitCode> {
    match &args.named[..] {
        [one, other] => verify_files(&DiskSpec::parse(one)?, &DiskSpec::parse(other)?, args.json),
        named => verify_machine(named.first().map(Path::new), args.json),
    }
}

/// Has a primary compare its disks with its backups'.
fn verify_machine(named: Option<&Path>, is_json: bool) -> Result<ExitCode> {
    let found = control::ask_to_compare_disks(&control::find_socket(named)?)?;
    let is_equal = found["equal"] == true;
    if is_json {
        println!("{found:#}");
        return Ok(ExitCode::from(if is_equal { 0 } else { DIFFERENT }));
    }
    let backups = found["backups"].as_array().map_or(&[][..], Vec::as_slice);
    for backup in backups {
        let node = backup["node"].as_str().unwrap_or_default();
        match (backup["failure"].as_str(), backup["differing_blocks"].as_u64()) {
            (Some(failure), _) => println!("{node}: could not be compared: {failure}"),
            (None, Some(0)) => {
                println!(
                    "{node}: equal in {} written blocks, after batch {}",
                    found["written_blocks"], found["sequence"]
                );
            }
            _ => println!(
                "{node}: {} blocks differ after batch {}; [disk, block of {BLOCK_BYTES} bytes]: {}",
                backup["differing_blocks"], found["sequence"], backup["first_blocks"]
            ),
        }
    }
    Ok(ExitCode::from(if is_equal { 0 } else { DIFFERENT }))
}

/// Compares two disks of this host.
fn verify_files(first: &DiskSpec, second: &DiskSpec, is_json: bool) -> Result<ExitCode> {
    let (one, other) = (disk::open_to_read(first)?, disk::open_to_read(second)?);
    let shown = |spec: &DiskSpec| spec.overlay.as_ref().unwrap_or(&spec.path).display().to_string();
    if one.len_bytes() != other.len_bytes() {
        let sizes = format!("{} bytes and {} bytes", one.len_bytes(), other.len_bytes());
        report(is_json, json!({ "equal": false, "reason": format!("they have {sizes}") }), || {
            format!("{} and {} differ: they have {sizes}", shown(first), shown(second))
        });
        return Ok(ExitCode::from(DIFFERENT));
    }
    let progress = Progress::new(one.len_bytes());
    let found = compare(&*one, &*other, |at| progress.show(at)).context("cannot read the disks")?;
    progress.clear();
    let is_equal = found.differing_blocks == 0;
    let value = json!({
        "equal": is_equal, "disk_bytes": found.disk_bytes,
        "differing_blocks": found.differing_blocks, "first_blocks": found.first,
    });
    report(is_json, value, || match is_equal {
        true => format!("equal: {} bytes", found.disk_bytes),
        false => format!(
            "{} and {} differ in {} blocks of {BLOCK_BYTES} bytes: {}{}",
            shown(first),
            shown(second),
            found.differing_blocks,
            found.first.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
            if found.differing_blocks > found.first.len() as u64 { " ..." } else { "" }
        ),
    });
    Ok(if is_equal { ExitCode::SUCCESS } else { ExitCode::from(DIFFERENT) })
}

fn report(is_json: bool, value: Value, line: impl FnOnce() -> String) {
    if is_json { println!("{value:#}") } else { println!("{}", line()) }
}

/// Compares two images of the same size. `progress` is told how far it is, in bytes.
///
/// # Errors
/// When one of them cannot be read.
fn compare(one: &dyn Image, other: &dyn Image, mut progress: impl FnMut(u64)) -> std::io::Result<Comparison> {
    let disk_bytes = one.len_bytes();
    let mut found = Comparison { disk_bytes, ..Comparison::default() };
    let (mut left, mut right) = (vec![0; READ_BYTES as usize], vec![0; READ_BYTES as usize]);
    let mut at = 0;
    while at < disk_bytes {
        progress(at);
        let zeros = [one, other].map(|image| image.extent(at, disk_bytes - at));
        let [first, second] = zeros;
        let (first, second) = (first?, second?);
        let both_zero_bytes = first.len_bytes.min(second.len_bytes) / BLOCK_BYTES * BLOCK_BYTES;
        if first.is_zero && second.is_zero && both_zero_bytes > 0 {
            at += both_zero_bytes;
            continue;
        }
        let bytes = READ_BYTES.min(disk_bytes - at) as usize;
        one.read_at(at, &mut left[..bytes])?;
        other.read_at(at, &mut right[..bytes])?;
        let blocks =
            left[..bytes].chunks(BLOCK_BYTES as usize).zip(right[..bytes].chunks(BLOCK_BYTES as usize));
        for (index, _) in (at / BLOCK_BYTES..).zip(blocks).filter(|(_, (left, right))| left != right) {
            found.differing_blocks += 1;
            if found.first.len() < NAMED_BLOCKS {
                found.first.push(index);
            }
        }
        at += bytes as u64;
    }
    Ok(found)
}

/// Tells a terminal how far it is, when that takes long.
struct Progress {
    started: Instant,
    total_bytes: u64,
    is_shown: bool,
}

impl Progress {
    fn new(total_bytes: u64) -> Progress {
        Progress { started: Instant::now(), total_bytes, is_shown: std::io::stderr().is_terminal() }
    }

    fn show(&self, done_bytes: u64) {
        if self.is_shown && self.started.elapsed() >= PROGRESS_AFTER {
            let percent = done_bytes.saturating_mul(100) / self.total_bytes.max(1);
            eprint!("\r\x1b[Kcomparing disks: {percent} %");
        }
    }

    fn clear(&self) {
        if self.is_shown && self.started.elapsed() >= PROGRESS_AFTER {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn spec(path: &Path, options: &str) -> DiskSpec {
        let mut text: OsString = path.as_os_str().to_owned();
        text.push(options);
        DiskSpec::parse(&text).unwrap()
    }

    fn compare_files(one: &Path, other: &Path) -> Comparison {
        let open = |path| disk::open_to_read(&spec(path, ",format=raw")).unwrap();
        compare(&*open(one), &*open(other), |_| {}).unwrap()
    }

    #[test]
    fn the_blocks_that_differ_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let paths: [PathBuf; 2] = ["one", "other"].map(|name| folder.path().join(name));
        let mut bytes = vec![0; (3 << 20) + 512];
        bytes[5000] = 7;
        std::fs::write(&paths[0], &bytes).unwrap();
        // The same with a hole where the other has zeros.
        let file = std::fs::File::create(&paths[1]).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7], 5000).unwrap();
        let equal = compare_files(&paths[0], &paths[1]);
        assert_eq!((equal.differing_blocks, equal.disk_bytes), (0, bytes.len() as u64));

        for at in [0, 1 << 20, 3 << 20] {
            std::os::unix::fs::FileExt::write_all_at(&file, &[9], at).unwrap();
        }
        let found = compare_files(&paths[0], &paths[1]);
        assert_eq!((found.differing_blocks, &found.first[..]), (3, &[0, 256, 768][..]));
    }
}
