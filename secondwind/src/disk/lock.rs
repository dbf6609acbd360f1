//! Locks on image files, so that two machines do not write to one image: ours, and QEMU's,
//! which locks the same bytes (`block/file-posix.c`).
//!
//! For each right that a user of an image has, byte 100 + right is locked shared; for each
//! that it grants to nobody else, byte 200 + right. All locks are shared: whoever wants in
//! takes its own, then looks whether others' contradict them. They belong to the open file,
//! and end with it, however the process ends.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

const HAVE: i64 = 100;
const DENY: i64 = 200;

const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// What a machine does with an image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads it; nobody may write.
    Read,
    /// Writes to it, alone.
    Write,
}

impl Access {
    fn rights(self) -> &'static [i64] {
        match self {
            Access::Read => &[READ],
            Access::Write => &[READ, WRITE, RESIZE],
        }
    }

    /// What nobody else may do meanwhile. A reader of an image that another writes to sees
    /// neither one state of it nor another, so a writer denies what readers have, too.
    fn denied(self) -> &'static [i64] {
        &[WRITE, RESIZE]
    }
}

/// Locks an open image.
///
/// # Errors
/// `WouldBlock` where another has a contradicting lock; where the file system knows no such
/// locks there are none, and a warning says so.
pub fn lock(file: &File, access: Access) -> io::Result<()> {
    match retried(|| try_lock(file, access)) {
        Err(Errno::EINVAL | Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS) => {
            tracing::warn!("the file system of a disk image has no locks: see that nobody else uses it");
            Ok(())
        }
        Err(Errno::EAGAIN | Errno::EACCES) => Err(io::ErrorKind::WouldBlock.into()),
        result => Ok(result?),
    }
}

/// Tries again for half a second: a machine may be about to end, and a process that is forked
/// holds its parent's locks until it executes another program.
fn retried(attempt: impl Fn() -> nix::Result<()>) -> nix::Result<()> {
    for _ in 0..50 {
        match attempt() {
            Err(Errno::EAGAIN | Errno::EACCES) => std::thread::sleep(Duration::from_millis(10)),
            result => return result,
        }
    }
    attempt()
}

fn try_lock(file: &File, access: Access) -> nix::Result<()> {
    let own = access.rights().iter().map(|right| HAVE + right);
    let denied = access.denied().iter().map(|right| DENY + right);
    for byte in own.chain(denied) {
        fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, byte)))?;
    }
    let contradicting = access.rights().iter().map(|right| DENY + right);
    for byte in contradicting.chain(access.denied().iter().map(|right| HAVE + right)) {
        // Asks who would be in the way of an exclusive lock; one's own locks are not.
        let mut found = range(libc::F_WRLCK, byte);
        fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut found))?;
        if found.l_type != libc::F_UNLCK as libc::c_short {
            return Err(Errno::EAGAIN);
        }
    }
    Ok(())
}

fn range(kind: libc::c_int, byte: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_and_writers_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, [0; 512]).unwrap();
        let open = || std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (one, other, third) = (open(), open(), open());
        lock(&one, Access::Read).unwrap();
        lock(&other, Access::Read).unwrap();
        assert_eq!(lock(&third, Access::Write).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop((one, other, third));
        let (one, other) = (open(), open());
        lock(&one, Access::Write).unwrap();
        for access in [Access::Read, Access::Write] {
            assert_eq!(lock(&other, access).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
        drop((one, other));
        lock(&open(), Access::Write).unwrap();
    }
}
