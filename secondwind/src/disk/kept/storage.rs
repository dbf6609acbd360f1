//! An [`AtomicFile`] as `imago` wants storage to be, shared with whoever commits.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

use super::atomic::AtomicFile;
use super::medium::Medium;

/// The overlay's file, which `imago` writes to and [`super::KeptDisk`] commits.
#[derive(Debug)]
pub struct Shared<F = File, J = File>(Arc<Mutex<AtomicFile<F, J>>>);

impl<F, J> Clone for Shared<F, J> {
    fn clone(&self) -> Self {
        Shared(self.0.clone())
    }
}

impl<F: Medium, J: Medium> Shared<F, J> {
    /// Shares a file.
    pub fn new(file: AtomicFile<F, J>) -> Shared<F, J> {
        Shared(Arc::new(Mutex::new(file)))
    }

    /// The file, for this caller alone. No call leaves it half changed, even where it panics.
    pub fn lock(&self) -> MutexGuard<'_, AtomicFile<F, J>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `imago` gets.
#[derive(Debug)]
pub struct SharedStorage<F, J> {
    shared: Shared<F, J>,
    path: PathBuf,
    helper: CommonStorageHelper,
}

impl<F, J> SharedStorage<F, J> {
    /// The file at `path`.
    pub fn new(shared: Shared<F, J>, path: PathBuf) -> SharedStorage<F, J> {
        SharedStorage { shared, path, helper: CommonStorageHelper::default() }
    }
}

impl<F, J> fmt::Display for SharedStorage<F, J> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "journaled:{}", self.path.display())
    }
}

impl<F: Medium + 'static, J: Medium + 'static> Storage for SharedStorage<F, J> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.shared.lock().len_bytes())
    }

    fn get_filename(&self) -> Option<PathBuf> {
        Some(self.path.clone())
    }

    // The two below are unsafe to call for what other storages ask of alignment and of
    // concurrency. This one asks nothing: slices go through a lock.
    unsafe fn pure_readv(&self, into: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        let file = self.shared.lock();
        for mut slice in into.into_inner() {
            file.read_at(offset, &mut slice)?;
            offset += slice.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, from: IoVector<'_>, mut offset: u64) -> io::Result<()> {
        let mut file = self.shared.lock();
        for slice in from.into_inner() {
            file.write_at(offset, &slice)?;
            offset += slice.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        // Whoever shares the file commits it, when the tables fit the data.
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}
