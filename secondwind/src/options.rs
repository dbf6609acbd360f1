//! What the commands share: each section is flags and, with the same names, a table of the
//! TOML file. A flag wins over the file, the file over the default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use machine::Engine;
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
        /// where it is missing, or, with snapshot, to a file that ends with it. `primary` and
        /// `backup` write to the overlay, without overlay= to IMAGE.NAME-NODE.qcow2; all other
        /// commands write nowhere.
        #[arg(long, value_name = "SPEC", help_heading = "Virtual machine", value_parser = disk_parser())]
        disk: Vec<DiskSpec>,
        /// Guest memory, as 256M or 1G [default: 64M for ledger, else 256M]
        #[arg(long, value_name = "SIZE", help_heading = "Virtual machine")]
        memory: Option<String>,
        /// Number of harts (virtual CPUs), 1 to 8 [default: 1]
        #[arg(long, value_name = "N", help_heading = "Virtual machine")]
        harts: Option<usize>,
        /// What executes the guest on this host: interpreter, translator (to x86-64 code) or auto
        /// [default: auto, the translator where there is one]
        ///
        /// Every engine does the same: it is no part of the machine, and the two sides of a pair may
        /// have different ones.
        #[arg(long, value_name = "ENGINE", help_heading = "Virtual machine")]
        engine: Option<Engine>,
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
        /// Who decides a takeover: lock:FILE on storage that both hosts share,
        /// etcd:HOST:PORT,HOST:PORT with options after it, etcd:@FILE.toml, which holds the same, or
        /// manual
        ///
        /// Options of etcd, each after a comma: prefix=/secondwind, ttl=10s, timeout=5s, ca=FILE,
        /// cert=FILE with key=FILE, user=NAME with password-file=FILE.
        #[arg(long, value_name = "ARBITER", help_heading = "Pair")]
        arbiter: Option<String>,
        /// Address on which a primary waits for backups [default: 127.0.0.1:7420]
        #[arg(long, value_name = "ADDRESS", help_heading = "Pair")]
        listen: Option<SocketAddr>,
        /// Address of another node, where the primary may be when this node is not it; may be given
        /// several times
        ///
        /// With it, a primary that another node replaces goes on as a backup. All nodes may have the
        /// same list, in the same file: a node leaves itself out.
        #[arg(long, value_name = "HOST:PORT", help_heading = "Pair")]
        peer: Vec<String>,
        /// When the backup is lost: continue unprotected, or pause until one is back
        /// [default: continue]
        #[arg(long, value_name = "continue|pause", help_heading = "Pair")]
        on_backup_loss: Option<String>,
        /// Heartbeat interval in milliseconds [default: 40]
        #[arg(long, value_name = "MS", help_heading = "Pair")]
        heartbeat_ms: Option<u64>,
        /// Shortest silence that can count as a failure, in milliseconds [default: 120]
        #[arg(long, value_name = "MS", help_heading = "Pair")]
        detection_floor_ms: Option<u64>,
        /// Socket on which `secondwind status` and `takeover` reach this agent
        /// [default: in the runtime folder, by name and node]
        #[arg(long, value_name = "SOCKET", help_heading = "Pair")]
        control: Option<PathBuf>,
        /// Also write the log to this folder, for secondwind log and replay
        ///
        /// A backup begins a new one whenever it joins, and keeps the one before in `previous`.
        #[arg(long, value_name = "DIR", help_heading = "Pair")]
        log_dir: Option<PathBuf>,
        /// Backup: fetch a disk image that is missing here at most this fast, in bytes per second, as
        /// 20M [default: as fast as the link]
        #[arg(long, value_name = "SIZE", help_heading = "Pair")]
        sync_rate: Option<String>,
        /// Write what the guest prints to this file instead of standard output
        #[arg(long, value_name = "FILE", help_heading = "Pair")]
        console: Option<PathBuf>,
        /// Write a line of JSON to this file for each event of the protocol
        #[arg(long, value_name = "FILE", help_heading = "Pair")]
        timeline: Option<PathBuf>,
    }
}

layered! {
    /// How a machine is protected. Table `[protection]`. All nodes should say the same: whoever is the
    /// primary goes by its own.
    ProtectionOptions {
        /// What is shipped: replay (the log, which backups execute along), hybrid (the log, and a
        /// checkpoint now and then), checkpoint (checkpoints only), or auto, which chooses
        /// [default: replay]
        #[arg(long, value_name = "replay|hybrid|checkpoint|auto", help_heading = "Protection")]
        mode: Option<String>,
        /// How many backups are taken; other nodes that ask stand by [default: 1]
        #[arg(long, value_name = "N", help_heading = "Protection")]
        backups: Option<usize>,
        /// How many backups must hold an output before it leaves: all, quorum (more than half) or any
        /// [default: all]
        #[arg(long, value_name = "all|quorum|any", help_heading = "Protection")]
        release: Option<String>,
        /// When the log counts as held: in the backups' memory, or on disk on every node, this one too,
        /// which takes --log-dir [default: memory]
        ///
        /// With disk, nothing that was acknowledged is lost when all nodes fail at once: the same commands
        /// go on from the logs.
        #[arg(long, value_name = "memory|disk", help_heading = "Protection")]
        durability: Option<String>,
        /// Mode hybrid: how long a takeover may need to replay the log, in milliseconds [default: 1000]
        #[arg(long, value_name = "MS", help_heading = "Protection")]
        takeover_within_ms: Option<u64>,
    }
}

layered! {
    /// When checkpoints are taken in mode `checkpoint`. Table `[checkpoint]`, without the flags'
    /// `checkpoint-`.
    CheckpointOptions {
        /// Most checkpoints per second, 1 to 1000 [default: 100]
        #[arg(long = "checkpoint-rate", value_name = "N", help_heading = "Protection")]
        rate: Option<u64>,
        /// Fewest checkpoints per second, 1 to --checkpoint-rate [default: 10]
        #[arg(long = "checkpoint-rate-min", value_name = "N", help_heading = "Protection")]
        rate_min: Option<u64>,
        /// Aim for the time that the guest stands still at a checkpoint, in milliseconds [default: 1]
        #[arg(long = "checkpoint-pause-ms", value_name = "MS", help_heading = "Protection")]
        pause_ms: Option<f64>,
        /// Aim for the time that an output waits for its checkpoint, in milliseconds [default: 30]
        #[arg(long = "checkpoint-delay-ms", value_name = "MS", help_heading = "Protection")]
        delay_ms: Option<f64>,
        /// What begins a checkpoint: the clock, or an output that waits [default: clock]
        #[arg(long = "checkpoint-trigger", value_name = "clock|output", help_heading = "Protection")]
        trigger: Option<String>,
    }
}

/// A configuration file: the tables of the sections above and the other nodes' addresses.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ConfigFile {
    /// The virtual machine.
    #[serde(default)]
    pub vm: VmOptions,
    /// How an agent finds and trusts the others.
    #[serde(default)]
    pub pair: PairOptions,
    /// How the machine is protected.
    #[serde(default)]
    pub protection: ProtectionOptions,
    /// When checkpoints are taken.
    #[serde(default)]
    pub checkpoint: CheckpointOptions,
    /// Addresses at which the primary may be.
    #[serde(default)]
    pub primary: Vec<String>,
    /// Addresses of the nodes that stand by: to find the primary, the same as those above.
    #[serde(default)]
    pub backups: Vec<String>,
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
