//! What the commands share: each section is flags and, with the same names, a table of the
//! TOML file. A flag wins over the file, the file over the default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::disk::DiskSpec;

/// Parses `--disk`, whose path need not be UTF-8.
pub fn disk_parser() -> impl clap::builder::TypedValueParser<Value = DiskSpec> {
    use clap::builder::TypedValueParser;
    clap::builder::OsStringValueParser::new().try_map(|text| DiskSpec::parse(&text))
}

/// Takes, field by field, the flag where one was given, else the file's value.
macro_rules! layered {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident : $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, clap::Args, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub struct $name {
            $($(#[$field_doc])* #[serde(default)] pub $field: $type,)*
        }

        impl $name {
            /// These values where they are given, else those of `file`.
            pub fn over(self, file: $name) -> $name {
                $name { $($field: Layer::over(self.$field, file.$field),)* }
            }
        }
    };
}

trait Layer {
    fn over(self, below: Self) -> Self;
}

impl<T> Layer for Option<T> {
    fn over(self, below: Self) -> Self {
        self.or(below)
    }
}

impl<T> Layer for Vec<T> {
    fn over(self, below: Self) -> Self {
        if self.is_empty() { below } else { self }
    }
}

impl Layer for bool {
    fn over(self, below: Self) -> Self {
        self || below
    }
}

layered! {
    /// The virtual machine. Table `[vm]`.
    VmOptions {
        /// A guest that comes along: `ledger` (built in), or made by guest/debian/build `debian`
        /// (in memory) or `debian-disk` (root on ext4 on its first disk)
        ///
        /// Without --disk, debian-disk starts from debian-root.img of guest/debian/build and
        /// forgets what it writes; keep it with --disk debian-root.img,overlay=mine.qcow2.
        #[arg(long, value_name = "GUEST", help_heading = "Virtual machine")]
        guest: Option<String>,
        /// Kernel to boot: a RISC-V Linux Image or an ELF file
        #[arg(long, value_name = "FILE", help_heading = "Virtual machine")]
        kernel: Option<PathBuf>,
        /// Initial ramdisk for the kernel
        #[arg(long, value_name = "FILE", help_heading = "Virtual machine")]
        initrd: Option<PathBuf>,
        /// Kernel command line, added to the guest's own
        #[arg(long, value_name = "ARGS", help_heading = "Virtual machine")]
        append: Option<String>,
        /// Boot this M-mode firmware (ELF or raw, as OpenSBI) instead of the built-in SBI
        #[arg(long, value_name = "FILE", help_heading = "Virtual machine")]
        firmware: Option<PathBuf>,
        /// Disk image: `FILE[,format=raw|qcow2][,serial=S][,ro][,snapshot][,overlay=FILE]`; may be
        /// given several times, for vda, vdb and so on
        ///
        /// A comma in a path is written twice. Where no format is said, an image that begins as
        /// qcow2 does is qcow2, and any other raw. ro: the guest may only read. `secondwind run`
        /// writes to the image itself, or to the qcow2 file that overlay= names, which it makes
        /// where it is missing, or, with snapshot, to a file that ends with it. All other
        /// commands leave the image alone.
        #[arg(long, value_name = "SPEC", help_heading = "Virtual machine", value_parser = disk_parser())]
        disk: Vec<DiskSpec>,
        /// Guest memory, as 256M or 1G [default: 64M for ledger, else 256M]
        #[arg(long, value_name = "SIZE", help_heading = "Virtual machine")]
        memory: Option<String>,
        /// Number of harts (virtual CPUs), 1 to 8 [default: 1]
        #[arg(long, value_name = "N", help_heading = "Virtual machine")]
        harts: Option<usize>,
        /// Network port: user, tap:NAME, tunnel:HOST:PORT or none; may be given several times
        /// [default: user]
        #[arg(long, value_name = "SPEC", help_heading = "Virtual machine")]
        net: Vec<String>,
        /// Forward a host TCP port to the guest through the user port: HOST:GUEST, as 8080:80
        #[arg(long, value_name = "HOST:GUEST", help_heading = "Virtual machine")]
        forward: Vec<String>,
    }
}

layered! {
    /// How an agent finds and trusts the others. Table `[pair]`.
    PairOptions {
        /// Name of the virtual machine; both sides must say the same [default: vm]
        #[arg(long, value_name = "NAME", help_heading = "Pair")]
        name: Option<String>,
        /// Folder with this node's keys, made by `secondwind keygen`
        #[arg(long, value_name = "DIR", help_heading = "Pair")]
        keys: Option<PathBuf>,
        /// Talk without encryption or authentication; for trusted links only
        #[arg(long, help_heading = "Pair")]
        insecure: bool,
        /// Name of this node, where there are no keys to take it from
        #[arg(long, value_name = "NODE", help_heading = "Pair")]
        node: Option<String>,
        /// Who decides a takeover: lock:FILE on storage that both hosts share, or manual
        #[arg(long, value_name = "ARBITER", help_heading = "Pair")]
        arbiter: Option<String>,
        /// Address on which a primary waits for backups [default: 127.0.0.1:7420]
        #[arg(long, value_name = "ADDRESS", help_heading = "Pair")]
        listen: Option<SocketAddr>,
        /// When the backup is lost: continue unprotected, or pause until one is back
        /// [default: continue]
        #[arg(long, value_name = "continue|pause", help_heading = "Pair")]
        on_backup_loss: Option<String>,
        /// Heartbeat interval in milliseconds [default: 20]
        #[arg(long, value_name = "MS", help_heading = "Pair")]
        heartbeat_ms: Option<u64>,
        /// Shortest silence that can count as a failure, in milliseconds [default: 100]
        #[arg(long, value_name = "MS", help_heading = "Pair")]
        detection_floor_ms: Option<u64>,
        /// Socket on which `secondwind status` and `takeover` reach this agent
        /// [default: in the runtime folder, by name and node]
        #[arg(long, value_name = "SOCKET", help_heading = "Pair")]
        control: Option<PathBuf>,
        /// Primary: also write the log to this folder, for secondwind log and replay
        #[arg(long, value_name = "DIR", help_heading = "Pair")]
        log_dir: Option<PathBuf>,
        /// Write what the guest prints to this file instead of standard output
        #[arg(long, value_name = "FILE", help_heading = "Pair")]
        console: Option<PathBuf>,
        /// Write a line of JSON to this file for each event of the protocol
        #[arg(long, value_name = "FILE", help_heading = "Pair")]
        timeline: Option<PathBuf>,
    }
}

/// A configuration file: the tables of the sections above and, for a backup, its primaries.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ConfigFile {
    /// The virtual machine.
    #[serde(default)]
    pub vm: VmOptions,
    /// How an agent finds and trusts the others.
    #[serde(default)]
    pub pair: PairOptions,
    /// Addresses at which a backup looks for the primary.
    #[serde(default)]
    pub primary: Vec<String>,
}

impl ConfigFile {
    /// Reads `path`, or gives an empty configuration where there is none.
    pub fn load(path: Option<&Path>) -> Result<ConfigFile> {
        let Some(path) = path else { return Ok(ConfigFile::default()) };
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("cannot read the configuration {}; check the path given to --config", path.display())
        })?;
        // toml's message spans lines; what a user needs of it is on the last one.
        toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            anyhow::anyhow!("{}:{line}: {}", path.display(), error.message().replace('\n', "; "))
        })
    }
}

/// Parses a size as `256M`, `1G`, `65536K` or a number of bytes.
pub fn parse_size_bytes(text: &str) -> Result<u64> {
    let text = text.trim();
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => bail!("{text:?} is not a size; write it as 256M, 1G or a number of bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_the_usual_suffixes() {
        assert_eq!(parse_size_bytes("256M").unwrap(), 256 << 20);
        assert_eq!(parse_size_bytes("1g").unwrap(), 1 << 30);
        assert_eq!(parse_size_bytes("4096").unwrap(), 4096);
        for bad in ["", "M", "-1M", "0", "1T", "99999999999G"] {
            assert!(parse_size_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let file: ConfigFile =
            toml::from_str("[vm]\nmemory = \"1G\"\nharts = 2\n[pair]\non-backup-loss = \"pause\"").unwrap();
        let flags = VmOptions { memory: Some("64M".into()), ..VmOptions::default() };
        let vm = flags.over(file.vm);
        assert_eq!((vm.memory.as_deref(), vm.harts), (Some("64M"), Some(2)));
        assert_eq!(file.pair.on_backup_loss.as_deref(), Some("pause"));
    }

    #[test]
    fn disks_stand_in_the_file_as_on_the_command_line() {
        let file: ConfigFile =
            toml::from_str("[vm]\ndisk = [\"root.qcow2,serial=A\", \"a,,b.img,ro\"]").unwrap();
        let [root, data] = &file.vm.disk[..] else { panic!("two disks") };
        assert_eq!((root.path.to_str(), root.serial.as_str()), (Some("root.qcow2"), "A"));
        assert_eq!((data.path.to_str(), data.read_only), (Some("a,b.img"), true));
        let wrong = toml::from_str::<ConfigFile>("[vm]\ndisk = [\"d,color=red\"]").unwrap_err();
        assert!(wrong.to_string().contains("color=red"), "{wrong}");
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.toml");
        std::fs::write(&path, "[vm]\nmemroy = \"1G\"\n").unwrap();
        let error = ConfigFile::load(Some(&path)).unwrap_err().to_string();
        assert!(error.contains(":2:") && error.contains("memroy"), "{error}");
    }
}
