//! What an overlay and its journal stand on: a file, or in tests a host that dies.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A file of the host. What was written counts on nothing before [`Medium::sync`]: a power cut
/// may keep any part of it, in any order.
pub trait Medium: std::fmt::Debug + Send {
    /// Its length in bytes.
    fn len_bytes(&self) -> io::Result<u64>;
    /// Reads what there is from `at` on; how many bytes that was.
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize>;
    /// Writes all of it from `at` on, and makes the file longer where it has to.
    fn write_at(&self, at: u64, from: &[u8]) -> io::Result<()>;
    /// Cuts it off, or makes it longer with zeros.
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;
    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;
}

impl Medium for File {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match FileExt::read_at(self, &mut into[done..], at + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, at: u64, from: &[u8]) -> io::Result<()> {
        store::fault::before_write()?;
        self.write_all_at(from, at)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        File::set_len(self, len_bytes)
    }

    fn sync(&self) -> io::Result<()> {
        store::fault::before_sync();
        self.sync_data()
    }
}
