//! The disk under a host's log: [`store::Directory`], and what can be wrong with it. It outlives
//! the host's processes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use store::{Directory, Disk, DiskFile};

use super::random::Random;

/// How a disk answers at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskHealth {
    /// As it should.
    #[default]
    Well,
    /// It has no room: a write fails after a part of its bytes.
    Full,
    /// It fails: writes after a part of their bytes, and every sync.
    Failing,
}

#[derive(Debug)]
struct State {
    health: DiskHealth,
    random: Random,
    /// Length of each file now, and as far as it was synced; by present name.
    files: BTreeMap<String, (u64, u64)>,
    /// Names made and not synced.
    new_names: Vec<String>,
}

/// A directory on a disk that can fail.
#[derive(Debug)]
pub struct SimDisk {
    directory: Directory,
    handle: DiskHandle,
}

/// An open file on it.
#[derive(Debug)]
pub struct SimFile {
    file: File,
    name: RefCell<String>,
    handle: DiskHandle,
}

/// The disk in the hands of the simulation.
#[derive(Debug, Clone)]
pub struct DiskHandle(Rc<RefCell<State>>);

impl DiskHandle {
    /// A disk that is well.
    pub fn new(random: Random) -> Self {
        let (files, new_names) = (BTreeMap::new(), Vec::new());
        DiskHandle(Rc::new(RefCell::new(State { health: DiskHealth::Well, random, files, new_names })))
    }

    /// Opens an empty or known directory on it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open(&self, path: &Path) -> io::Result<SimDisk> {
        Ok(SimDisk { directory: Directory::lock(path)?, handle: self.clone() })
    }

    /// How it answers from now on.
    pub fn set_health(&self, health: DiskHealth) {
        self.0.borrow_mut().health = health;
    }

    /// The power fails: of what was not synced in this directory, anything may be lost, but the
    /// end of a file before its middle.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn lose_power(&self, path: &Path) -> io::Result<()> {
        let State { files, new_names, random, .. } = &mut *self.0.borrow_mut();
        for (name, (len, synced)) in std::mem::take(files) {
            let path = path.join(&name);
            if new_names.contains(&name) && random.chance(300) {
                std::fs::remove_file(&path)?;
            } else {
                let kept = random.between(synced, len);
                File::options().write(true).open(&path)?.set_len(kept)?;
            }
        }
        new_names.clear();
        Ok(())
    }

    /// The process ends, the disk's cache stays.
    pub fn close(&self) {
        let mut state = self.0.borrow_mut();
        state.files.clear();
        state.new_names.clear();
    }

    /// A bit of a file in this directory flips. Whether there was one.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn rot(&self, path: &Path) -> io::Result<bool> {
        let random = &mut self.0.borrow_mut().random;
        let mut paths: Vec<_> = std::fs::read_dir(path)?.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        paths.retain(|path| path.metadata().is_ok_and(|metadata| metadata.len() > 0));
        if paths.is_empty() {
            return Ok(false);
        }
        let file = File::options().read(true).write(true).open(random.pick(&paths))?;
        let offset = random.between(0, file.metadata()?.len() - 1);
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset)?;
        byte[0] ^= 1 << random.between(0, 7);
        FileExt::write_all_at(&file, &byte, offset)?;
        Ok(true)
    }
}

impl State {
    fn error(&self) -> Option<io::Error> {
        match self.health {
            DiskHealth::Well => None,
            DiskHealth::Full => Some(io::ErrorKind::StorageFull.into()),
            DiskHealth::Failing => Some(io::Error::other("the disk fails")),
        }
    }

    /// Names can be changed on a full disk, not on one that fails.
    fn check_names(&self) -> io::Result<()> {
        match self.health {
            DiskHealth::Failing => Err(io::Error::other("the disk fails")),
            DiskHealth::Well | DiskHealth::Full => Ok(()),
        }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.directory.names()
    }

    fn create_new(&self, name: &str) -> io::Result<SimFile> {
        let mut state = self.handle.0.borrow_mut();
        state.check_names()?;
        let file = self.directory.create_new(name)?;
        state.files.insert(name.to_owned(), (0, 0));
        state.new_names.push(name.to_owned());
        Ok(SimFile { file, name: RefCell::new(name.to_owned()), handle: self.handle.clone() })
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let file = self.directory.open(name)?;
        let len = file.metadata()?.len();
        self.handle.0.borrow_mut().files.insert(name.to_owned(), (len, len));
        Ok(SimFile { file, name: RefCell::new(name.to_owned()), handle: self.handle.clone() })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.handle.0.borrow_mut();
        state.check_names()?;
        self.directory.rename(from, to)?;
        if let Some(lengths) = state.files.remove(from) {
            state.files.insert(to.to_owned(), lengths);
        }
        state.new_names.retain(|name| name != from);
        state.new_names.push(to.to_owned());
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.directory.remove(name)?;
        self.handle.0.borrow_mut().files.remove(name);
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.handle.0.borrow_mut();
        state.check_names()?;
        state.new_names.clear();
        Ok(())
    }
}

impl SimFile {
    /// The file's present name: only segments begun under another name change it.
    fn name(&self, state: &State) -> String {
        let mut name = self.name.borrow_mut();
        if !state.files.contains_key(&*name) {
            *name = name.trim_end_matches(".new").to_owned();
        }
        name.clone()
    }

    fn note_len(&self, state: &mut State) -> io::Result<()> {
        let len = self.file.metadata()?.len();
        let name = self.name(state);
        if let Some(lengths) = state.files.get_mut(&name) {
            *lengths = (len, lengths.1.min(len));
        }
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.handle.0.borrow_mut();
        let error = state.error();
        let done = match error {
            None => bytes.len(),
            Some(_) => state.random.between(0, bytes.len() as u64) as usize,
        };
        DiskFile::write_all_at(&self.file, &bytes[..done], offset)?;
        self.note_len(&mut state)?;
        error.map_or(Ok(()), Err)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.handle.0.borrow_mut();
        state.check_names()?;
        DiskFile::set_len(&self.file, len)?;
        self.note_len(&mut state)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.handle.0.borrow_mut();
        state.check_names()?;
        let name = self.name(&state);
        if let Some(lengths) = state.files.get_mut(&name) {
            lengths.1 = lengths.0;
        }
        Ok(())
    }
}
