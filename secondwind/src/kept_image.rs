//! Boot images beside the machine's memory, for a reset.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use machine::{ImageKeeper, KeptImage};
use tracing::warn;

/// A copy in a file without a name, which ends with this process. Not the file that the image was read
/// from: that may be another by the time of the reset, and a reset boots what the machine was made of.
#[derive(Debug)]
struct ImageCopy(File);

impl ImageCopy {
    /// In `folder`, or where temporary files go.
    fn new(folder: &Path, bytes: &[u8]) -> io::Result<ImageCopy> {
        let mut file = tempfile::tempfile_in(folder).or_else(|_| tempfile::tempfile())?;
        file.write_all(bytes)?;
        Ok(ImageCopy(file))
    }
}

impl KeptImage for ImageCopy {
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(into, at)
    }
}

/// Keeps images in `folder`. Where that cannot be, they stay in memory.
pub fn keep(keeper: ImageKeeper, folder: &Path) {
    if let Err(error) = keeper.keep(|bytes| ImageCopy::new(folder, bytes)) {
        warn!("boot images stay in memory, for no file can hold them: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_needs_neither_its_folder_nor_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let copy = ImageCopy::new(folder.path(), b"kernel").unwrap();
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        drop(folder);
        let mut found = [0; 3];
        copy.read(2, &mut found).unwrap();
        assert_eq!(&found, b"rne");
        assert_eq!(copy.read(4, &mut found).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let elsewhere = ImageCopy::new(Path::new("/no/such/folder"), b"kernel").unwrap();
        elsewhere.read(0, &mut found).unwrap();
        assert_eq!(&found, b"ker");
    }
}
