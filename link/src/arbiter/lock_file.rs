//! An arbiter in a file on storage that both hosts share.
//!
//! The record is a small text file. Contenders hold `flock` on a sidecar file, `NAME.lock`,
//! while they compare and set: the record itself is replaced by rename, so a lock on it
//! would be a lock on a file that is no longer there. A reader needs no lock and sees the
//! old record or the new one, never half of one.
//!
//! [`super::record_text`] has its form.

use super::{Arbiter, ArbiterError, CasOutcome, encode_record, parse_record};
use crate::arbitration::Record;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A longer file is not a record.
const MAX_RECORD_BYTES: u64 = 4096;
/// A contender holds the lock for two fsyncs: whoever holds it longer is stuck.
const LOCK_RETRY: Duration = Duration::from_millis(2);
const LOCK_RETRIES: u32 = 2500;

/// Keeps one VM's record in a file.
#[derive(Debug, Clone)]
pub struct LockFileArbiter {
    path: PathBuf,
    vm: String,
}

impl LockFileArbiter {
    /// The arbiter of VM `vm` at `path`. The file may be missing, its directory not.
    ///
    /// # Errors
    /// When the directory is missing or the file is not a record of this VM.
    pub fn open(path: impl Into<PathBuf>, vm: &str) -> Result<Self, ArbiterError> {
        let arbiter = LockFileArbiter { path: path.into(), vm: vm.to_owned() };
        let directory = arbiter.directory();
        if !directory.is_dir() {
            let path = directory.to_owned();
            return Err(ArbiterError::MissingDirectory { path });
        }
        arbiter.read()?;
        Ok(arbiter)
    }

    fn directory(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }

    /// The record's path with `suffix` appended to the file name.
    fn sidecar(&self, suffix: &str) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(suffix);
        PathBuf::from(name)
    }

    /// Holds the lock until the returned file is dropped.
    fn lock(&self) -> Result<File, ArbiterError> {
        let path = self.sidecar(".lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        for _ in 0..LOCK_RETRIES {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_RETRY),
                Err(TryLockError::Error(error)) => return Err(io_error("lock", &path)(error)),
            }
        }
        Err(ArbiterError::Busy { path })
    }

    /// Replaces the record so that a crash leaves the old one or the new one, and so that
    /// the new one is on disk when this returns.
    fn replace(&self, record: &Record) -> Result<(), ArbiterError> {
        let temporary = self.sidecar(".new");
        let mut file = File::create(&temporary).map_err(io_error("create", &temporary))?;
        file.write_all(encode_record(&self.vm, record).as_bytes()).map_err(io_error("write", &temporary))?;
        file.sync_all().map_err(io_error("sync", &temporary))?;
        std::fs::rename(&temporary, &self.path).map_err(io_error("replace", &self.path))?;
        let directory = self.directory();
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(io_error("sync", directory))
    }
}

impl Arbiter for LockFileArbiter {
    fn read(&self) -> Result<Option<Record>, ArbiterError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("open", &self.path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_RECORD_BYTES + 1).read_to_end(&mut bytes).map_err(io_error("read", &self.path))?;
        parse_record(&bytes, &self.path, &self.vm).map(Some)
    }

    fn compare_and_set(&self, expected: Option<&Record>, new: &Record) -> Result<CasOutcome, ArbiterError> {
        let _lock = self.lock()?;
        let current = self.read()?;
        if current.as_ref() != expected {
            return Ok(CasOutcome::Lost(current));
        }
        self.replace(new)?;
        Ok(CasOutcome::Won)
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ArbiterError {
    let path = path.to_owned();
    move |source| ArbiterError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::contract::{self, record};

    fn opened() -> (tempfile::TempDir, LockFileArbiter) {
        let directory = tempfile::tempdir().unwrap();
        let arbiter = LockFileArbiter::open(directory.path().join("web.record"), "web").unwrap();
        (directory, arbiter)
    }

    /// The error of opening a file with these contents.
    fn error_of(contents: &[u8]) -> ArbiterError {
        let (_directory, arbiter) = opened();
        std::fs::write(&arbiter.path, contents).unwrap();
        LockFileArbiter::open(&arbiter.path, "web").unwrap_err()
    }

    #[test]
    fn meets_the_contract() {
        let (_directory, arbiter) = opened();
        contract::keeps_what_was_won_and_refuses_the_rest(&arbiter);
    }

    #[test]
    fn one_of_many_contenders_wins_each_step() {
        let (directory, _) = opened();
        let path = directory.path().join("web.record");
        contract::one_wins_each_step(6, || LockFileArbiter::open(&path, "web").unwrap());
    }

    #[test]
    fn the_record_survives_and_reads_as_documented() {
        let (_directory, arbiter) = opened();
        let kept = record(4, "alpha", Some("beta"));
        arbiter.compare_and_set(None, &kept).unwrap();
        let reopened = LockFileArbiter::open(&arbiter.path, "web").unwrap();
        assert_eq!(reopened.read().unwrap(), Some(kept));
        assert_eq!(
            std::fs::read_to_string(&arbiter.path).unwrap(),
            "secondwind-arbiter 1\nvm = \"web\"\nterm = 4\nholder = \"alpha\"\nbackup = \"beta\"\ncrc32 = 0x8f4a1012\n"
        );
        assert!(!arbiter.sidecar(".new").exists());
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_apart() {
        let good = encode_record("web", &record(4, "alpha", Some("beta")));
        assert!(matches!(error_of(b""), ArbiterError::Foreign { .. }));
        assert!(matches!(error_of(b"\x7fELF\x02\x01 binary"), ArbiterError::Foreign { .. }));
        assert!(matches!(
            error_of(good.replace("arbiter 1", "arbiter 3").as_bytes()),
            ArbiterError::FutureVersion { found: 3, .. }
        ));
        assert!(matches!(
            error_of(encode_record("db", &record(1, "a", None)).as_bytes()),
            ArbiterError::OtherVm { .. }
        ));
        assert!(matches!(
            error_of(good.replace("term = 4", "term = 5").as_bytes()),
            ArbiterError::Corrupt { .. }
        ));
        assert!(matches!(error_of(&good.as_bytes()[..good.len() / 2]), ArbiterError::Corrupt { .. }));
    }

    #[test]
    fn a_missing_directory_is_named() {
        let (directory, _) = opened();
        let path = directory.path().join("absent/web.record");
        let message = LockFileArbiter::open(path, "web").unwrap_err().to_string();
        assert!(message.contains("absent does not exist"), "{message}");
    }

    #[test]
    fn an_unreadable_file_is_named() {
        let (directory, _) = opened();
        // A directory in its place: root may read every file, but not this.
        let message = LockFileArbiter::open(directory.path(), "web").unwrap_err();
        assert!(message.to_string().contains("cannot read"), "{message}");
    }

    #[test]
    fn a_crash_between_write_and_rename_leaves_the_old_record() {
        let (_directory, arbiter) = opened();
        let old = record(1, "a", None);
        arbiter.compare_and_set(None, &old).unwrap();
        std::fs::write(arbiter.sidecar(".new"), "half a rec").unwrap();
        assert_eq!(arbiter.read().unwrap().as_ref(), Some(&old));
        let new = record(2, "a", None);
        let outcome = arbiter.compare_and_set(Some(&old), &new).unwrap();
        assert_eq!(outcome, CasOutcome::Won);
        assert_eq!(arbiter.read().unwrap(), Some(new));
    }
}
