//! From the options of a virtual machine to a machine: images, configuration, disks, ports.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use machine::disk::BlockStore;
use machine::{
    BootImages, BootKind, DiskConfig, Engine, Machine, MachineConfig, NetConfig, PrimacyStart, RiscvMachine,
};
use netbuf::{Forward, NetKind, NetSpec};
use serde::{Deserialize, Serialize};

use crate::disk::{self, DiskMode, DiskSpec, Format};
use crate::kept_image;
use crate::options::{VmOptions, parse_size_bytes};

/// The built-in guest.
const LEDGER_ELF: &[u8] = include_bytes!("../../guest/ledger/ledger.elf");

/// Everything that a machine is made of, and what is plugged into it.
#[derive(Clone)]
pub struct Vm {
    /// The machine's shape.
    pub config: MachineConfig,
    /// What it boots.
    pub images: ImageSources,
    /// Its disks, in order.
    pub disks: Vec<DiskSpec>,
    /// What stands behind its network devices, in order.
    pub nets: Vec<NetSpec>,
    /// What executes it on this host.
    pub engine: Engine,
}

/// Where a machine's boot images are. They are read when a machine is made, and not kept:
/// that would be memory that the guest does not have.
#[derive(Clone)]
pub struct ImageSources {
    kind: BootKind,
    kernel: ImageSource,
    initrd: Option<ImageSource>,
    firmware: Option<ImageSource>,
}

/// Where a boot image is.
#[derive(Clone)]
pub enum ImageSource {
    /// In this program.
    BuiltIn(&'static [u8]),
    /// In memory.
    Held(Bytes),
    /// In a file.
    File(PathBuf),
}

impl ImageSource {
    /// Its bytes.
    pub fn read(&self) -> Result<Bytes> {
        match self {
            ImageSource::BuiltIn(bytes) => Ok(Bytes::from_static(bytes)),
            ImageSource::Held(bytes) => Ok(bytes.clone()),
            ImageSource::File(path) => {
                let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
                if bytes.is_empty() {
                    bail!("{} is empty; it should hold a boot image", path.display());
                }
                Ok(bytes.into())
            }
        }
    }
}

impl ImageSources {
    /// The images by their names, in the order of the machine's identity.
    pub fn named(&self) -> Vec<(&'static str, &ImageSource)> {
        let others = [("initrd", &self.initrd), ("firmware", &self.firmware)];
        let others = others.into_iter().filter_map(|(name, source)| Some((name, source.as_ref()?)));
        std::iter::once(("kernel", &self.kernel)).chain(others).collect()
    }

    /// Where files may be that go with them: beside the first that is in a file.
    pub fn folder(&self) -> PathBuf {
        let paths = self.named().into_iter().filter_map(|(_, source)| match source {
            ImageSource::File(path) => Some(path.as_path()),
            ImageSource::BuiltIn(_) | ImageSource::Held(_) => None,
        });
        let mut folders = paths.filter_map(Path::parent);
        match folders.next() {
            Some(folder) if folder.as_os_str().is_empty() => PathBuf::from("."),
            Some(folder) => folder.to_owned(),
            None => std::env::temp_dir(),
        }
    }

    /// The boot images, of their bytes in the same order.
    fn assemble(&self, images: &[Bytes]) -> Result<BootImages> {
        let names: Vec<&str> = self.named().into_iter().map(|(name, _)| name).collect();
        if names.len() != images.len() {
            bail!("the machine has {} boot images, {} are there", names.len(), images.len());
        }
        let of =
            |wanted: &str| names.iter().position(|name| *name == wanted).map(|number| images[number].clone());
        let kernel = of("kernel").context("a machine has a kernel")?;
        Ok(BootImages { kind: self.kind, kernel, initrd: of("initrd"), firmware: of("firmware") })
    }

    /// Their bytes, in the same order.
    pub fn read_all(&self) -> Result<Vec<Bytes>> {
        self.named().into_iter().map(|(_, source)| source.read()).collect()
    }
}

/// What a recording keeps of a [`Vm`], to build the same machine again.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    config: MachineConfig,
    kind: BootKind,
    initrd: bool,
    firmware: bool,
    disks: Vec<RecordedDisk>,
}

/// A disk of a recording. A raw image is its path alone, as in recordings that know no other.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum RecordedDisk {
    Raw(PathBuf),
    Other { path: PathBuf, format: Format },
}

/// Folder of a recording that holds the boot images.
const BOOT_FOLDER: &str = "boot";

impl Vm {
    /// Reads what the options name. `name` is the machine's: its Ethernet addresses follow
    /// from it, so that both sides of a pair have the same.
    pub fn from_options(options: &VmOptions, name: &str) -> Result<Vm> {
        let (images, mut bootargs, memory) = boot_images(options)?;
        if let Some(append) = &options.append {
            bootargs = format!("{bootargs} {append}").trim().to_owned();
        }
        let nets = net_specs(options)?;
        let disks = disks_of(options);
        let config = MachineConfig {
            harts: options.harts.unwrap_or(1),
            memory_bytes: parse_size_bytes(options.memory.as_deref().unwrap_or(memory))
                .context("--memory")?,
            nets: (0..nets.len()).map(|port| NetConfig { mac: mac_of(&nets[port], name, port) }).collect(),
            disks: disks.iter().map(disk_config).collect(),
            bootargs,
            ..MachineConfig::default()
        };
        Ok(Vm { config, images, disks, nets, engine: options.engine.unwrap_or_default() })
    }

    /// Keeps what the guest writes to its disks, on this node: see [`DiskSpec::keep`].
    pub fn keep_disks(&mut self, name: &str, node: &str) {
        self.disks.iter_mut().for_each(|disk| disk.keep(name, node));
    }

    /// Where the primacy of a machine that was just built begins.
    ///
    /// # Errors
    /// When a disk cannot be begun with, or the log could not be replayed: `logs` says whether
    /// one is written.
    pub fn first_primacy(&self, machine: &mut RiscvMachine, term: u64, logs: bool) -> Result<PrimacyStart> {
        disk::check_complete(&self.disks)?;
        let identity = machine.identity();
        if machine.has_base_disks() {
            return Ok(PrimacyStart::boot(&identity, term));
        }
        if logs {
            bail!(
                "the disks keep what an earlier run wrote, so a log from this boot on could not be replayed; \
                 leave --log-dir out, or begin with new overlays (overlay=FILE) or with snapshot"
            );
        }
        Ok(PrimacyStart::boot_with_kept_disks(&identity, machine.digest(), term))
    }

    /// Makes the machine.
    pub fn build(&self, mode: DiskMode) -> Result<RiscvMachine> {
        let machine = self.build_with(mode, &self.images.read_all()?)?;
        kept_image::keep(machine.image_keeper(), &self.images.folder());
        Ok(machine)
    }

    /// Makes the machine of its boot images, which [`ImageSources::named`] has in this order.
    /// They are still in its memory.
    pub fn build_with(&self, mode: DiskMode, images: &[Bytes]) -> Result<RiscvMachine> {
        let stores: Vec<Box<dyn BlockStore>> =
            self.disks.iter().map(|spec| disk::open(spec, mode)).collect::<Result<_>>()?;
        let mut machine = RiscvMachine::new(self.config.clone(), &self.images.assemble(images)?, stores)?;
        machine.set_engine(self.engine);
        if self.engine == Engine::Translator && !machine.translates() {
            bail!(
                "this host does not let code be translated (an executable mapping of an anonymous file); \
                   use --engine auto or interpreter"
            );
        }
        Ok(machine)
    }

    /// Whether a checkpoint of this machine could be restored.
    ///
    /// # Errors
    /// When it writes to a disk image itself: the base that a checkpoint builds on is gone then.
    pub fn check_checkpoint(&self, mode: DiskMode) -> Result<()> {
        let is_written = |disk: &&DiskSpec| mode == DiskMode::Direct && !disk.snapshot && !disk.read_only;
        match self.disks.iter().find(is_written) {
            Some(disk) => bail!(
                "the machine writes to {} itself, so a checkpoint could not be restored; \
                 give --disk the option snapshot, and checkpoints keep what is written",
                disk.overlay.as_ref().unwrap_or(&disk.path).display()
            ),
            None => Ok(()),
        }
    }

    /// Puts these behind the network ports instead of what is there, where they are given.
    pub fn plug_nets(&mut self, nets: &[String], forwards: &[String]) -> Result<()> {
        if !nets.is_empty() {
            if nets.len() != self.config.nets.len() {
                bail!(
                    "the machine has {} network ports, {} are named; name all with --net",
                    self.config.nets.len(),
                    nets.len()
                );
            }
            self.nets = nets.iter().map(|spec| spec.parse::<NetSpec>()).collect::<Result<_, _>>()?;
        }
        if !forwards.is_empty()
            && let Some(old) = user_forwards(&mut self.nets)
        {
            old.clear();
        }
        add_forwards(&mut self.nets, forwards)
    }

    /// The program that the machine boots, if it is a bare-metal one.
    pub fn bare_program(&self) -> Result<Option<Bytes>> {
        match self.images.kind {
            BootKind::Bare => self.images.kernel.read().map(Some),
            BootKind::Supervisor | BootKind::Firmware => Ok(None),
        }
    }

    /// Keeps the boot images in the recording `folder`.
    pub fn save_images(&self, folder: &Path) -> Result<()> {
        let boot = folder.join(BOOT_FOLDER);
        std::fs::create_dir_all(&boot)
            .with_context(|| format!("cannot make {}; choose another folder", boot.display()))?;
        let images = [
            ("kernel", Some(&self.images.kernel)),
            ("initrd", self.images.initrd.as_ref()),
            ("firmware", self.images.firmware.as_ref()),
        ];
        for (name, source) in images {
            if let Some(source) = source {
                std::fs::write(boot.join(name), source.read()?)
                    .with_context(|| format!("cannot write to {}; free some space", boot.display()))?;
            }
        }
        Ok(())
    }

    /// The bytes that [`Vm::from_recording`] needs beside the images.
    pub fn recipe(&self) -> Result<Bytes> {
        let recipe = Recipe {
            config: self.config.clone(),
            kind: self.images.kind,
            initrd: self.images.initrd.is_some(),
            firmware: self.images.firmware.is_some(),
            disks: self.disks.iter().map(RecordedDisk::of).collect::<Result<_>>()?,
        };
        Ok(serde_json::to_vec(&recipe)?.into())
    }

    /// The machine of a recording, from its folder and the bytes that [`Vm::recipe`] gave.
    pub fn from_recording(folder: &Path, recipe: &[u8]) -> Result<Vm> {
        let boot = folder.join(BOOT_FOLDER);
        Vm::from_recipe(recipe, |name| Some(ImageSource::File(boot.join(name)))).with_context(|| {
            format!("{} was recorded by another version; replay it with that one", folder.display())
        })
    }

    /// The machine that [`Vm::recipe`] gave these bytes of, with the images of these names.
    pub fn from_recipe(recipe: &[u8], mut image: impl FnMut(&str) -> Option<ImageSource>) -> Result<Vm> {
        let recipe: Recipe = serde_json::from_slice(recipe)?;
        let mut named = |name: &str| image(name).with_context(|| format!("it has no {name}"));
        let images = ImageSources {
            kind: recipe.kind,
            kernel: named("kernel")?,
            initrd: recipe.initrd.then(|| named("initrd")).transpose()?,
            firmware: recipe.firmware.then(|| named("firmware")).transpose()?,
        };
        let disks = recipe.disks.into_iter().map(RecordedDisk::spec).collect();
        Ok(Vm { config: recipe.config, images, disks, nets: Vec::new(), engine: Engine::Auto })
    }
}

impl RecordedDisk {
    fn of(spec: &DiskSpec) -> Result<RecordedDisk> {
        let (path, format) = spec.recorded()?;
        let path = std::path::absolute(&path).unwrap_or(path);
        Ok(match format {
            Format::Raw => RecordedDisk::Raw(path),
            Format::Qcow2 => RecordedDisk::Other { path, format },
        })
    }

    fn spec(self) -> DiskSpec {
        let (path, format) = match self {
            RecordedDisk::Raw(path) => (path, Format::Raw),
            RecordedDisk::Other { path, format } => (path, format),
        };
        DiskSpec { format: Some(format), ..DiskSpec::new(path) }
    }
}

fn disk_config(spec: &DiskSpec) -> DiskConfig {
    DiskConfig { serial: spec.serial.clone(), read_only: spec.read_only }
}

/// The images, the guest's own command line and its default memory.
fn boot_images(options: &VmOptions) -> Result<(ImageSources, String, &'static str)> {
    if options.guest.is_some() && options.kernel.is_some() {
        bail!("--guest and --kernel exclude each other; give one");
    }
    let file = |path: &Option<PathBuf>| path.clone().map(ImageSource::File);
    let (firmware, initrd) = (file(&options.firmware), file(&options.initrd));
    if let Some(kernel) = file(&options.kernel) {
        let kind = match firmware {
            Some(_) => BootKind::Firmware,
            None if machine::boot::is_bare(&kernel.read()?) => BootKind::Bare,
            None => BootKind::Supervisor,
        };
        let bootargs = if options.append.is_some() { "" } else { "console=ttyS0" };
        return Ok((ImageSources { kind, kernel, initrd, firmware }, bootargs.to_owned(), "256M"));
    }
    if let (Some(kernel), None) = (firmware, &options.guest) {
        let images = ImageSources { kind: BootKind::Bare, kernel, initrd: None, firmware: None };
        return Ok((images, String::new(), "256M"));
    }
    let supervisor =
        |kernel, initrd| ImageSources { kind: BootKind::Supervisor, kernel, initrd, firmware: None };
    match options.guest.as_deref().unwrap_or("ledger") {
        "ledger" => Ok((supervisor(ImageSource::BuiltIn(LEDGER_ELF), initrd), String::new(), "64M")),
        "debian" => {
            let run = if options.append.as_deref().is_some_and(|append| append.contains(".run=")) {
                "console=ttyS0"
            } else {
                "console=ttyS0 secondwind.run=redis"
            };
            let kernel = debian_file("Image")?;
            let initrd = initrd.map_or_else(|| debian_file("initramfs-redis.cpio.gz"), Ok)?;
            Ok((supervisor(kernel, Some(initrd)), run.to_owned(), "256M"))
        }
        DEBIAN_DISK => {
            let root = "console=ttyS0 secondwind.root=/dev/vda";
            let kernel = debian_file("Image")?;
            let initrd = initrd.map_or_else(|| debian_file("initramfs-base.cpio.gz"), Ok)?;
            Ok((supervisor(kernel, Some(initrd)), root.to_owned(), "256M"))
        }
        other => {
            bail!("no guest {other:?} comes along; choose ledger, debian or debian-disk, or give --kernel")
        }
    }
}

/// The guest whose root is on its first disk.
const DEBIAN_DISK: &str = "debian-disk";

/// The disks given. A guest that lives on a disk has one even if none is given: the image
/// that comes along, to which nothing is written.
fn disks_of(options: &VmOptions) -> Vec<DiskSpec> {
    if options.guest.as_deref() == Some(DEBIAN_DISK) && options.disk.is_empty() {
        let path = debian_folder().join("debian-root.img");
        return vec![DiskSpec { format: Some(Format::Raw), snapshot: true, ..DiskSpec::new(path) }];
    }
    options.disk.clone()
}

/// Says how to make the Debian guest if it is not there.
pub fn find_debian() -> Result<()> {
    debian_file("Image").map(drop)
}

/// A file of the Debian guest.
fn debian_file(name: &str) -> Result<ImageSource> {
    let path = debian_folder().join(name);
    if !path.exists() {
        bail!("the Debian guest is not in {}; make it with guest/debian/build", debian_folder().display());
    }
    Ok(ImageSource::File(path))
}

/// Where guest/debian/build puts its images.
fn debian_folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("SECONDWIND_DEBIAN") {
        return PathBuf::from(folder);
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache")
    });
    cache.join("secondwind/debian")
}

fn net_specs(options: &VmOptions) -> Result<Vec<NetSpec>> {
    let given: &[String] = if options.net.is_empty() { &["user".to_owned()] } else { &options.net };
    let mut specs = given.iter().map(|spec| spec.parse::<NetSpec>()).collect::<Result<Vec<_>, _>>()?;
    add_forwards(&mut specs, &options.forward)?;
    Ok(specs)
}

/// Adds forwards to the first user port.
fn add_forwards(specs: &mut [NetSpec], forwards: &[String]) -> Result<()> {
    let parsed = forwards.iter().map(|forward| forward.parse::<Forward>()).collect::<Result<Vec<_>, _>>()?;
    if parsed.is_empty() {
        return Ok(());
    }
    match user_forwards(specs) {
        Some(forwards) => forwards.extend(parsed),
        None => bail!(
            "--forward needs a user port; add --net user, or forward ports at the switch (secondwind switch --forward)"
        ),
    }
    Ok(())
}

/// The forwards of the first user port.
fn user_forwards(specs: &mut [NetSpec]) -> Option<&mut Vec<Forward>> {
    specs.iter_mut().find_map(|spec| match &mut spec.kind {
        NetKind::User { forwards } => Some(forwards),
        _ => None,
    })
}

/// The address given, or one of the locally administered ones, fixed by the machine's name.
fn mac_of(spec: &NetSpec, name: &str, port: usize) -> [u8; 6] {
    if let Some(mac) = spec.mac {
        return mac.0;
    }
    let hash = blake3::hash(format!("{name}/{port}").as_bytes());
    let [a, b, c, ..] = *hash.as_bytes();
    [0x52, 0x54, 0x00, a, b, c]
}

/// A seed for the guest's entropy device, from the host's.
pub fn entropy_seed() -> Result<Bytes> {
    let mut seed = [0; 32];
    let mut source = std::fs::File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    std::io::Read::read_exact(&mut source, &mut seed).context("cannot read /dev/urandom")?;
    Ok(Bytes::copy_from_slice(&seed))
}

/// The host's wall-clock time in nanoseconds since 1970.
pub fn unix_ns() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos().min(u128::from(u64::MAX)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_names_its_disks_as_before_and_any_format() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, [0; 512]).unwrap();
        let spec = DiskSpec { serial: "A".into(), ..DiskSpec::new(path.clone()) };
        let raw = serde_json::to_value(RecordedDisk::of(&spec).unwrap()).unwrap();
        assert_eq!(raw, serde_json::json!(path), "programs that know no qcow2 read it");
        let read: RecordedDisk = serde_json::from_value(raw).unwrap();
        assert_eq!(read.spec().format, Some(Format::Raw), "whatever the guest wrote to it");

        std::fs::write(&path, b"QFI\xfb").unwrap();
        let qcow2 = serde_json::to_value(RecordedDisk::of(&spec).unwrap()).unwrap();
        let read: RecordedDisk = serde_json::from_value(qcow2).unwrap();
        assert_eq!(read.spec(), DiskSpec { format: Some(Format::Qcow2), ..DiskSpec::new(path) });
    }
}
