//! QEMU: finding it, running a program on it, and looking at the memory it leaves.
//!
//! Guest memory is a file that QEMU maps: the program is written there before, and what it
//! did is read from there afterwards. Nothing has to be loaded or printed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::layout;

/// Environment variable that names the QEMU to compare with.
pub const QEMU_VARIABLE: &str = "SECONDWIND_QEMU";
const QEMU_IN_PATH: &str = "qemu-system-riscv64";
/// Where `bench/qemu` puts QEMU, below the user's cache directory.
const QEMU_IN_CACHE: &str = "secondwind/qemu/bin/qemu-peer";

/// A hart with the very extensions of ours, so that the same words are illegal.
const CPU: &str = "rv64i,m=on,a=on,f=on,d=on,c=on,zicsr=on,zifencei=on,zicntr=on,zba=on,zbb=on,zbs=on,\
                   zicond=on,zicbom=on,zicboz=on,s=on,u=on,sstc=on,svadu=on,svade=off,sv39=on,sv48=on,mmu=on,pmp=on,\
                   debug=off,pmu-mask=0,priv_spec=v1.12.0";

/// A program takes a second at most; a machine this slow must be stopped.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Why QEMU could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum OracleError {
    /// There is none.
    #[error(
        "no QEMU to compare with: set {QEMU_VARIABLE} to a qemu-system-riscv64, install Debian's qemu-system-riscv (qemu-system-misc before trixie), or fetch one with bench/qemu; or leave these tests out with `-- --skip differential`"
    )]
    Missing,
    /// It could not be started, or its memory not be read.
    #[error("QEMU {path}: {error}")]
    Io {
        /// The program.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// It ended with an error.
    #[error("QEMU {path} failed ({status}): {message}; it must be version 9 or later")]
    Failed {
        /// The program.
        path: PathBuf,
        /// How it ended.
        status: String,
        /// What it printed.
        message: String,
    },
    /// Its debug stub said something unexpected.
    #[error("QEMU's debug stub: {0}")]
    Stub(String),
}

/// A QEMU on this machine.
#[derive(Debug, Clone)]
pub struct Oracle {
    path: PathBuf,
}

impl Oracle {
    /// The QEMU that [`QEMU_VARIABLE`] names, or else one in `PATH`, or else the one that
    /// `bench/qemu` fetched.
    ///
    /// # Errors
    /// When there is none.
    pub fn find() -> Result<Oracle, OracleError> {
        if let Some(path) = std::env::var_os(QEMU_VARIABLE) {
            return Ok(Oracle { path: path.into() });
        }
        let in_path = std::env::var_os("PATH").into_iter().flat_map(|paths| {
            std::env::split_paths(&paths).map(|folder| folder.join(QEMU_IN_PATH)).collect::<Vec<_>>()
        });
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
        let in_cache = cache.map(|cache| cache.join(QEMU_IN_CACHE));
        let path = in_path.chain(in_cache).find(|path| path.is_file()).ok_or(OracleError::Missing)?;
        Ok(Oracle { path })
    }

    /// Starts QEMU with a program in memory.
    ///
    /// # Errors
    /// When that fails.
    pub fn start(&self, memory: &[(u64, Vec<u8>)], arguments: &[String]) -> Result<Running, OracleError> {
        let failed = |error| self.io_error(error);
        let folder = tempfile::Builder::new().prefix("secondwind-differential-").tempdir().map_err(failed)?;
        let path = folder.path().join("memory");
        let file = File::options().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
        file.set_len(layout::RAM_BYTES).map_err(failed)?;
        for (address, bytes) in memory {
            file.write_all_at(bytes, address - layout::RAM).map_err(failed)?;
        }
        let backend = format!(
            "memory-backend-file,id=ram,share=on,size={},mem-path={}",
            layout::RAM_BYTES,
            path.display()
        );
        let mut command = Command::new(&self.path);
        command.args(["-M", "virt,memory-backend=ram", "-smp", "1", "-cpu", CPU, "-bios", "none"]);
        command.arg("-m").arg(format!("{}M", layout::RAM_BYTES >> 20)).args(["-object", &backend]);
        command.args(["-display", "none", "-serial", "none", "-monitor", "none", "-no-reboot"]);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().map_err(failed)?;
        Ok(Running { oracle: self.clone(), child, file, folder })
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// When QEMU cannot be run. That the program did not end is no error.
    pub fn run(&self, memory: &[(u64, Vec<u8>)]) -> Result<Outcome, OracleError> {
        self.start(memory, &[])?.finish()
    }

    fn io_error(&self, error: io::Error) -> OracleError {
        OracleError::Io { path: self.path.clone(), error }
    }
}

/// A QEMU that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Running {
    oracle: Oracle,
    child: Child,
    file: File,
    folder: tempfile::TempDir,
}

impl Running {
    /// A folder of its own.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Waits until QEMU has ended by itself, or loses patience.
    ///
    /// # Errors
    /// When it ended with an error.
    pub fn finish(mut self) -> Result<Outcome, OracleError> {
        let mut waited = Duration::ZERO;
        let status = loop {
            if let Some(status) = self.child.try_wait().map_err(|error| self.oracle.io_error(error))? {
                break Some(status);
            }
            if waited >= PATIENCE {
                break None;
            }
            std::thread::sleep(POLL_INTERVAL);
            waited += POLL_INTERVAL;
        };
        if let Some(status) = status.filter(|status| !status.success()) {
            let message = self.child.stderr.take().map(io::read_to_string);
            let message = message.and_then(Result::ok).unwrap_or_default().trim().replace('\n', "; ");
            let path = self.oracle.path.clone();
            return Err(OracleError::Failed { path, status: status.to_string(), message });
        }
        let file = self.file.try_clone().map_err(|error| self.oracle.io_error(error))?;
        Ok(Outcome { file, powered_off: status.is_some(), path: self.oracle.path.clone() })
    }

    /// Memory as it is now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn memory(&self, address: u64, len: usize) -> Result<Vec<u8>, OracleError> {
        read_memory(&self.file, address, len).map_err(|error| self.oracle.io_error(error))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; nothing is left to do about an error here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program left on QEMU.
#[derive(Debug)]
pub struct Outcome {
    file: File,
    path: PathBuf,
    /// Whether it powered off by itself.
    pub powered_off: bool,
}

impl Outcome {
    /// Memory at the end.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn memory(&self, address: u64, len: usize) -> Result<Vec<u8>, OracleError> {
        let failed = |error| OracleError::Io { path: self.path.clone(), error };
        read_memory(&self.file, address, len).map_err(failed)
    }
}

fn read_memory(file: &File, address: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, address - layout::RAM)?;
    Ok(bytes)
}
