//! What the writer asks of a disk. Apart from [`Directory`], tests stand in for it to fail at
//! every single step.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::fault;

/// A directory that holds the files of one log.
pub trait Disk {
    /// A file of it.
    type File: DiskFile;

    /// Where it is, for messages.
    fn path(&self) -> &Path;

    /// Names of the files in it.
    ///
    /// # Errors
    /// What the operating system says; this goes for all that follow.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Makes an empty file that was not there before.
    ///
    /// # Errors
    /// Also when it is there.
    fn create_new(&self, name: &str) -> io::Result<Self::File>;

    /// Opens a file to write to it.
    ///
    /// # Errors
    /// Also when it is not there.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Gives a file another name.
    ///
    /// # Errors
    /// The file has the one name or the other then.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// Also when it is not there.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes the creation and removal of files survive the loss of power.
    ///
    /// # Errors
    /// When that is not known to be so.
    fn sync_names(&self) -> io::Result<()>;
}

/// An open file of a log.
pub trait DiskFile {
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// Any part of them may have been written then.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts the file, or makes it longer with zeros.
    ///
    /// # Errors
    /// The length is not known then.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes its content survive the loss of power.
    ///
    /// # Errors
    /// When that is not known to be so.
    fn sync(&self) -> io::Result<()>;
}

/// A directory of the file system, locked against other writers for as long as this lives.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    lock: Flock<File>,
}

impl Directory {
    /// Locks a directory that is there.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when another process holds it.
    pub fn lock(path: &Path) -> io::Result<Directory> {
        let handle = File::open(path)?;
        if !handle.metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        match Flock::lock(handle, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Directory { path: path.to_owned(), lock }),
            Err((_, Errno::EWOULDBLOCK)) => Err(io::ErrorKind::WouldBlock.into()),
            Err((_, errno)) => Err(errno.into()),
        }
    }
}

impl Disk for Directory {
    type File = File;

    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> io::Result<Vec<String>> {
        names_in(&self.path)
    }

    fn create_new(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).open(self.path.join(name))
    }

    fn open(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.path.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.lock.sync_all()
    }
}

impl DiskFile for File {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        fault::before_write()?;
        FileExt::write_all_at(self, bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        fault::before_sync();
        self.sync_data()
    }
}

/// Names of the files in a directory. A name that is not UTF-8 is none of ours, whatever its
/// bytes: it is given with its strange parts replaced.
pub(crate) fn names_in(path: &Path) -> io::Result<Vec<String>> {
    std::fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
