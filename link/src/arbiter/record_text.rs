//! The arbiter's record as text, for a file or any other store.
//!
//! ```text
//! secondwind-arbiter 1          secondwind-arbiter 2
//! vm = "web"                    vm = "web"
//! term = 4                      term = 4
//! holder = "alpha"              holder = "alpha"
//! backup = "beta"               backups = ["beta", "gamma"]
//! crc32 = 0x8f4a1012            required = 1
//!                               bids = { gamma = 812 }
//!                               crc32 = 0x...
//! ```
//!
//! The first line is fixed, with the version. Version 1 is written where it suffices: for no
//! backup, where `backup` is left out, and for one. Programs that know only that then go on
//! reading it. `crc32` is over all the bytes before its own line.
//!
//! Which lives of the nodes are meant stands in the line before that, as a comment, where it is
//! known: programs that know nothing of lives skip it, and leave it out of what they write.
//!
//! ```text
//! # lives = { alpha = "9f86d081884c7d65", beta = "9a0b2c44e1f0a1b3" }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use log_format::Life;

use super::ArbiterError;
use crate::arbitration::Record;

const MAGIC: &str = "secondwind-arbiter";
/// Begins the line with the lives.
const LIVES: &str = "# lives = ";
/// Of one backup at most.
const PAIR_VERSION: u64 = 1;
/// Of any number.
const VERSION: u64 = 2;

/// The record of VM `vm` as text.
pub fn encode_record(vm: &str, record: &Record) -> String {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let Record { term, holder, backups, required, bids, lives } = record;
    let is_pair = bids.is_empty() && backups.len() <= 1 && *required as usize == backups.len();
    let version = if is_pair { PAIR_VERSION } else { VERSION };
    let mut text = format!("{MAGIC} {version}\nvm = {}\nterm = {term}\n", quoted(vm));
    text += &format!("holder = {}\n", quoted(holder));
    if is_pair {
        for backup in backups {
            text += &format!("backup = {}\n", quoted(backup));
        }
    } else {
        let names: Vec<String> = backups.iter().map(|name| quoted(name)).collect();
        text += &format!("backups = [{}]\nrequired = {required}\n", names.join(", "));
        let held: toml::Table =
            bids.iter().map(|(name, held)| (name.clone(), toml::Value::from(*held as i64))).collect();
        text += &format!("bids = {}\n", toml::Value::Table(held));
    }
    if !lives.is_empty() {
        let number = |Life(number): &Life| toml::Value::from(format!("{number:016x}"));
        let lives: toml::Table = lives.iter().map(|(name, life)| (name.clone(), number(life))).collect();
        text += &format!("{LIVES}{}\n", toml::Value::Table(lives));
    }
    let crc32 = crc32fast::hash(text.as_bytes());
    text + &format!("crc32 = 0x{crc32:08x}\n")
}

/// The part of the text between its first line and its checksum.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    vm: String,
    term: u64,
    holder: String,
    backup: Option<String>,
    #[serde(default)]
    backups: BTreeSet<String>,
    required: Option<u32>,
    #[serde(default)]
    bids: BTreeMap<String, u64>,
}

/// The record of VM `vm` in these bytes; `path` says in the error where they stand.
///
/// # Errors
/// When it is not a record, not of this version or VM, or damaged.
pub fn parse_record(bytes: &[u8], path: &Path, vm: &str) -> Result<Record, ArbiterError> {
    let corrupt = |detail: String| ArbiterError::Corrupt { path: path.to_owned(), detail };
    let text = String::from_utf8_lossy(bytes);
    let (first_line, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let version = match first_line.strip_prefix(MAGIC) {
        Some(version) => version.trim(),
        None => return Err(foreign(path, first_line)),
    };
    let version: u64 =
        version.parse().map_err(|_| corrupt(format!("version {version:?} is not a number")))?;
    if !(PAIR_VERSION..=VERSION).contains(&version) {
        return Err(ArbiterError::FutureVersion { path: path.to_owned(), found: version, expected: VERSION });
    }
    let (body, checksum) =
        rest.rsplit_once("crc32 = ").ok_or_else(|| corrupt("it ends before its checksum".into()))?;
    let checked = format!("{first_line}\n{body}");
    let expected = format!("0x{:08x}", crc32fast::hash(checked.as_bytes()));
    let found = checksum.trim_end();
    if found != expected {
        return Err(corrupt(format!("crc32 is {found}, expected {expected}")));
    }
    let lives = parse_lives(body).ok_or_else(|| corrupt("its lives are not numbers by name".into()))?;
    let body: Body = toml::from_str(body).map_err(|error| corrupt(error.message().to_owned()))?;
    if body.vm != vm {
        return Err(ArbiterError::OtherVm { path: path.to_owned(), found: body.vm, expected: vm.to_owned() });
    }
    let Body { term, holder, backup, mut backups, required, bids, .. } = body;
    backups.extend(backup);
    let required = required.unwrap_or(backups.len() as u32);
    if required as usize > backups.len() || required == 0 && !backups.is_empty() {
        let count = backups.len();
        return Err(corrupt(format!("{required} of {count} backups are required, expected 1 to {count}")));
    }
    Ok(Record { term, holder, backups, required, bids, lives })
}

/// The lives in the last line of a body, if that is what it holds; `None` if they are damaged.
fn parse_lives(body: &str) -> Option<BTreeMap<String, Life>> {
    let last = body.trim_end_matches('\n').rsplit('\n').next().unwrap_or_default();
    let Some(text) = last.strip_prefix(LIVES) else { return Some(BTreeMap::new()) };
    let table: toml::Table = toml::from_str(&format!("lives = {text}")).ok()?;
    let life = |(name, number): (String, toml::Value)| {
        let number = u64::from_str_radix(number.as_str()?, 16).ok().filter(|number| *number != 0)?;
        Some((name, Life(number)))
    };
    table.get("lives")?.as_table()?.clone().into_iter().map(life).collect()
}

fn foreign(path: &Path, first_line: &str) -> ArbiterError {
    let start: String = first_line.chars().take(24).collect();
    ArbiterError::Foreign { path: path.to_owned(), found: format!("{start:?}"), expected: MAGIC }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_record() -> impl Strategy<Value = Record> {
        let names = prop::collection::btree_set(any::<String>(), 0..4);
        let bids = prop::collection::btree_map(any::<String>(), 0..1u64 << 60, 0..3);
        let lives = prop::collection::btree_map(any::<String>(), (1..=u64::MAX).prop_map(Life), 0..3);
        (0..u64::from(u32::MAX), any::<String>(), names, any::<u32>(), bids, lives).prop_map(
            |(term, holder, backups, required, bids, lives)| {
                let count = backups.len() as u32;
                let required = if count == 0 { 0 } else { 1 + required % count };
                Record { term, holder, backups, required, bids, lives }
            },
        )
    }

    #[test]
    fn a_pair_is_written_as_programs_that_know_no_more_read_it() {
        assert_eq!(
            encode_record("web", &Record::pair(4, "alpha", "beta")),
            "secondwind-arbiter 1\nvm = \"web\"\nterm = 4\nholder = \"alpha\"\nbackup = \"beta\"\ncrc32 = 0x8f4a1012\n"
        );
    }

    #[test]
    fn several_backups_and_bids_read_as_documented() {
        let mut record = Record::pair(4, "alpha", "beta");
        record.backups.insert("gamma".into());
        record.bids.insert("gamma".into(), 812);
        let text = encode_record("web", &record);
        let body = text.rsplit_once("crc32").expect("has a checksum").0;
        assert_eq!(
            body,
            "secondwind-arbiter 2\nvm = \"web\"\nterm = 4\nholder = \"alpha\"\nbackups = [\"beta\", \"gamma\"]\nrequired = 1\nbids = { gamma = 812 }\n"
        );
    }

    #[test]
    fn lives_stand_where_older_programs_skip_them() {
        let record = Record::pair(4, "alpha", "beta").lived("alpha", Life(0x9f86)).lived("beta", Life(7));
        let text = encode_record("web", &record);
        assert_eq!(
            text,
            "secondwind-arbiter 1\nvm = \"web\"\nterm = 4\nholder = \"alpha\"\nbackup = \"beta\"\n# lives = { alpha = \"0000000000009f86\", beta = \"0000000000000007\" }\ncrc32 = 0x19eb81fa\n"
        );
        // As they read it: a comment.
        let body = text.rsplit_once("crc32").expect("has a checksum").0.split_once('\n').expect("lines").1;
        let read: Body = toml::from_str(body).unwrap();
        assert_eq!((read.term, read.backup.as_deref()), (4, Some("beta")));
    }

    proptest! {
        #[test]
        fn any_record_comes_back(kept in any_record(), vm in any::<String>()) {
            let text = encode_record(&vm, &kept);
            prop_assert_eq!(parse_record(text.as_bytes(), Path::new("x"), &vm).unwrap(), kept);
        }

        #[test]
        fn any_bytes_are_a_record_or_an_error(
            head in prop::sample::select(vec!["", "secondwind-arbiter 1\n", "secondwind-arbiter 2\n"]),
            tail in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = [head.as_bytes(), &tail].concat();
            prop_assert!(parse_record(&bytes, Path::new("x"), "web").is_err());
        }

        #[test]
        fn no_flipped_bit_passes_for_the_record(byte in 0..100usize, bit in 0..8u8) {
            let kept = Record::pair(4, "alpha", "beta");
            let mut bytes = encode_record("web", &kept).into_bytes();
            let byte = byte % (bytes.len() - 1); // all but the last line's end
            bytes[byte] ^= 1 << bit;
            if let Ok(record) = parse_record(&bytes, Path::new("x"), "web") {
                prop_assert_eq!(record, kept);
            }
        }
    }
}
