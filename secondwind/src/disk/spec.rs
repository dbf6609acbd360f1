//! What `--disk` says: `FILE[,OPTION]...`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The form of an image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The disk's bytes, one after the other.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

impl Format {
    /// Its name, as QEMU has it.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// A disk as its owner names it. A comma in a path is written twice, as for QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct DiskSpec {
    /// The image.
    pub path: PathBuf,
    /// Its format; where it is not said, the image's first bytes tell.
    pub format: Option<Format>,
    /// Serial number that the guest can ask for.
    pub serial: String,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// A qcow2 file that takes the guest's writes instead of the image, and keeps them.
    pub overlay: Option<PathBuf>,
    /// Whether the guest's writes are forgotten at the end.
    pub snapshot: bool,
    /// The overlay of a protected machine, which keeps the guest's writes while the disk's
    /// identity stays that of the image: see [`DiskSpec::keep`].
    pub kept: Option<PathBuf>,
}

/// Why a text names no disk. Each message is one line that says the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskSpecError {
    /// No image.
    #[error("a disk needs an image file; write it as FILE[,OPTION]..., as disk.qcow2,serial=A1")]
    NoFile,
    /// An option that there is not.
    #[error(
        "{found:?} is no option of a disk; there are format=raw|qcow2, serial=S, ro, snapshot and \
         overlay=FILE, and a comma in a path is written twice"
    )]
    Option {
        /// As given.
        found: String,
    },
    /// A format that there is not.
    #[error("{found:?} is no format of a disk image; choose raw or qcow2 (qemu-img convert makes them)")]
    Format {
        /// As given.
        found: String,
    },
    /// Options that contradict each other.
    #[error("{one} and {other} exclude each other; give one")]
    Conflict {
        /// An option.
        one: &'static str,
        /// Another.
        other: &'static str,
    },
}

impl DiskSpec {
    /// An image with nothing said about it.
    pub fn new(path: PathBuf) -> DiskSpec {
        DiskSpec {
            path,
            format: None,
            serial: String::new(),
            read_only: false,
            overlay: None,
            snapshot: false,
            kept: None,
        }
    }

    /// Makes it a disk of a protected machine: what the guest writes goes to the overlay that
    /// was named, else to one beside the image, named after the machine and its node. With
    /// `ro` and `snapshot` there is nothing to keep.
    pub fn keep(&mut self, vm: &str, node: &str) {
        if self.read_only || self.snapshot {
            return;
        }
        let beside = || {
            let mut path = self.path.as_os_str().to_owned();
            path.push(format!(".{vm}-{node}.qcow2"));
            PathBuf::from(path)
        };
        self.kept = Some(self.overlay.take().unwrap_or_else(beside));
    }

    /// Parses what was given to `--disk`.
    ///
    /// # Errors
    /// When there is no file, or an option is wrong.
    pub fn parse(text: &OsStr) -> Result<DiskSpec, DiskSpecError> {
        let mut parts = split(text.as_bytes()).into_iter();
        let path = parts.next().unwrap_or_default();
        // QEMU's users write file=disk.raw.
        let path = path.strip_prefix(b"file=").map_or(path.clone(), <[u8]>::to_vec);
        if path.is_empty() {
            return Err(DiskSpecError::NoFile);
        }
        let mut spec = DiskSpec::new(OsString::from_vec(path).into());
        parts.try_for_each(|option| spec.apply(&option))?;
        spec.check()
    }

    fn apply(&mut self, option: &[u8]) -> Result<(), DiskSpecError> {
        let wrong = || DiskSpecError::Option { found: String::from_utf8_lossy(option).into_owned() };
        let mut halves = option.splitn(2, |byte| *byte == b'=');
        let name = halves.next().unwrap_or_default();
        match (name, halves.next()) {
            (b"format", Some(b"raw")) => self.format = Some(Format::Raw),
            (b"format", Some(b"qcow2")) => self.format = Some(Format::Qcow2),
            (b"format", Some(found)) => {
                return Err(DiskSpecError::Format { found: String::from_utf8_lossy(found).into_owned() });
            }
            (b"serial", Some(serial)) => {
                self.serial = String::from_utf8(serial.to_vec()).map_err(|_| wrong())?;
            }
            (b"ro" | b"readonly", None) | (b"readonly", Some(b"on")) => self.read_only = true,
            (b"readonly", Some(b"off")) => self.read_only = false,
            (b"snapshot", None | Some(b"on")) => self.snapshot = true,
            (b"snapshot", Some(b"off")) => self.snapshot = false,
            (b"overlay", Some(path)) if !path.is_empty() => {
                self.overlay = Some(OsString::from_vec(path.to_vec()).into());
            }
            _ => return Err(wrong()),
        }
        Ok(())
    }

    fn check(self) -> Result<DiskSpec, DiskSpecError> {
        let given =
            [(self.read_only, "ro"), (self.overlay.is_some(), "overlay=FILE"), (self.snapshot, "snapshot")];
        let mut given = given.into_iter().filter(|(given, _)| *given);
        match (given.next(), given.next()) {
            (Some((_, one)), Some((_, other))) => Err(DiskSpecError::Conflict { one, other }),
            _ => Ok(self),
        }
    }
}

impl TryFrom<String> for DiskSpec {
    type Error = DiskSpecError;

    fn try_from(text: String) -> Result<DiskSpec, DiskSpecError> {
        DiskSpec::parse(OsStr::new(&text))
    }
}

/// Splits at single commas; two make one that stays.
fn split(text: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte == b',' && bytes.next_if_eq(&b',').is_none() {
            parts.push(Vec::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(byte);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DiskSpec, DiskSpecError> {
        DiskSpec::parse(OsStr::new(text))
    }

    #[test]
    fn a_path_alone_is_a_disk() {
        assert_eq!(parse("disk.raw"), Ok(DiskSpec::new("disk.raw".into())));
        assert_eq!(parse("file=disk.raw"), Ok(DiskSpec::new("disk.raw".into())));
        let not_text = OsStr::from_bytes(b"d\xff");
        assert_eq!(DiskSpec::parse(not_text), Ok(DiskSpec::new(not_text.into())));
    }

    #[test]
    fn options_follow_the_path() {
        let found = parse("a=b,,c.img,format=qcow2,serial=A,,1,overlay=o,,1.qcow2").unwrap();
        let expected = DiskSpec {
            format: Some(Format::Qcow2),
            serial: "A,1".into(),
            overlay: Some("o,1.qcow2".into()),
            ..DiskSpec::new("a=b,c.img".into())
        };
        assert_eq!(found, expected);
        for read_only in ["ro", "readonly", "readonly=on"] {
            assert!(parse(&format!("d,{read_only}")).unwrap().read_only);
        }
        assert!(parse("d,snapshot").unwrap().snapshot);
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        for (text, said) in [
            ("", "needs an image file"),
            (",ro", "needs an image file"),
            ("d,", "no option"),
            ("d,if=virtio", "if=virtio"),
            ("d,ro=maybe", "no option"),
            ("d,overlay=", "no option"),
            ("d,format=vmdk", "vmdk"),
            ("d,ro,overlay=o", "ro and overlay=FILE"),
            ("d,snapshot,overlay=o", "overlay=FILE and snapshot"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
