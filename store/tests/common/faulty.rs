//! A disk that fails at a chosen step.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::rc::Rc;

use store::{Directory, Disk, DiskFile};

/// What happens at the chosen step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The step fails for want of space, a write after a part of its bytes. Later ones succeed.
    Full,
    /// The process is killed in the step; nothing after it happens.
    Killed,
    /// The power fails in the step: of what was not synced, anything may be lost.
    PowerLost,
}

/// Which step fails, and how.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub step: usize,
    pub fault: Fault,
    /// How many quarters of a failing write are done.
    pub quarters: usize,
    /// Chooses what a loss of power takes.
    pub seed: u64,
}

#[derive(Debug)]
struct State {
    plan: Plan,
    steps: usize,
    dead: bool,
    /// Length of each file now, and as far as synced; by present name.
    files: HashMap<String, (u64, u64)>,
    /// Names made and not synced.
    new_names: Vec<String>,
}

/// A [`Directory`] that fails as planned.
#[derive(Debug)]
pub struct FaultyDisk {
    directory: Directory,
    state: Rc<RefCell<State>>,
}

#[derive(Debug)]
pub struct FaultyFile {
    file: File,
    name: RefCell<String>,
    state: Rc<RefCell<State>>,
}

/// Tells, after the writer is gone, what happened.
pub struct Witness(Rc<RefCell<State>>);

impl FaultyDisk {
    pub fn new(path: &Path, plan: Plan) -> (FaultyDisk, Witness) {
        let state = Rc::new(RefCell::new(State {
            plan,
            steps: 0,
            dead: false,
            files: HashMap::new(),
            new_names: Vec::new(),
        }));
        let disk = FaultyDisk { directory: Directory::lock(path).unwrap(), state: state.clone() };
        (disk, Witness(state))
    }
}

impl Witness {
    /// Whether the plan's step was reached.
    pub fn struck(&self) -> bool {
        let state = self.0.borrow();
        state.steps > state.plan.step
    }

    /// Takes from the directory what the loss of power takes.
    pub fn lose_power(&self, path: &Path) {
        let state = self.0.borrow();
        let mut seed = state.plan.seed;
        let mut choose = |limit: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % limit
        };
        let mut names: Vec<_> = state.files.iter().collect();
        names.sort();
        for (name, (len, synced)) in names {
            let path = path.join(name);
            let name_lost = state.new_names.contains(name) && choose(3) == 0;
            if name_lost {
                std::fs::remove_file(&path).unwrap();
            } else {
                let kept = synced + choose(len - synced + 1);
                let file = File::options().write(true).open(&path).unwrap();
                file.set_len(kept).unwrap();
            }
        }
    }
}

impl State {
    /// Counts a step. `Err` when it is the one that fails, or comes after it.
    fn step(&mut self) -> io::Result<()> {
        if self.dead {
            return Err(io::Error::other("killed"));
        }
        self.steps += 1;
        if self.steps != self.plan.step + 1 {
            return Ok(());
        }
        match self.plan.fault {
            Fault::Full => Err(io::ErrorKind::StorageFull.into()),
            Fault::Killed | Fault::PowerLost => {
                self.dead = true;
                Err(io::Error::other("killed"))
            }
        }
    }
}

impl Disk for FaultyDisk {
    type File = FaultyFile;

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.directory.names()
    }

    fn create_new(&self, name: &str) -> io::Result<FaultyFile> {
        let mut state = self.state.borrow_mut();
        state.step()?;
        let file = self.directory.create_new(name)?;
        state.files.insert(name.to_owned(), (0, 0));
        state.new_names.push(name.to_owned());
        Ok(FaultyFile { file, name: RefCell::new(name.to_owned()), state: self.state.clone() })
    }

    fn open(&self, name: &str) -> io::Result<FaultyFile> {
        let mut state = self.state.borrow_mut();
        state.step()?;
        let file = self.directory.open(name)?;
        let len = file.metadata()?.len();
        state.files.insert(name.to_owned(), (len, len));
        Ok(FaultyFile { file, name: RefCell::new(name.to_owned()), state: self.state.clone() })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.step()?;
        self.directory.rename(from, to)?;
        if let Some(lengths) = state.files.remove(from) {
            state.files.insert(to.to_owned(), lengths);
        }
        state.new_names.retain(|name| name != from);
        state.new_names.push(to.to_owned());
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        if state.dead {
            return Err(io::Error::other("killed"));
        }
        self.directory.remove(name)?;
        state.files.remove(name);
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.step()?;
        state.new_names.clear();
        Ok(())
    }
}

impl FaultyFile {
    /// The file's present name: only segments begun under another name change it.
    fn name(&self, state: &State) -> String {
        let name = self.name.borrow().clone();
        let renamed = name.trim_end_matches(".new").to_owned();
        if state.files.contains_key(&name) { name } else { renamed }
    }

    fn set_known_len(&self, state: &mut State) {
        let len = self.file.metadata().unwrap().len();
        let name = self.name(state);
        if let Some(lengths) = state.files.get_mut(&name) {
            *lengths = (len, lengths.1.min(len));
        }
    }
}

impl DiskFile for FaultyFile {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        let was_dead = state.dead;
        let stepped = state.step();
        let done = match stepped {
            Ok(()) => bytes.len(),
            Err(_) if was_dead => 0,
            Err(_) => bytes.len() * state.plan.quarters / 4,
        };
        DiskFile::write_all_at(&self.file, &bytes[..done], offset)?;
        self.set_known_len(&mut state);
        stepped
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.step()?;
        DiskFile::set_len(&self.file, len)?;
        self.set_known_len(&mut state);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.step()?;
        let name = self.name(&state);
        if let Some(lengths) = state.files.get_mut(&name) {
            lengths.1 = lengths.0;
        }
        Ok(())
    }
}
