//! `secondwind restore`: a machine goes on from a checkpoint file.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use log_format::SegmentHeader;
use machine::{CheckpointExtent, Engine, Machine, RiscvMachine};
use primary::Begun;
use serde_json::{Value, json};
use store::checkpoint::{Chain, CheckpointFile, CheckpointWriter, Images, SecretKey};

use crate::checkpoint::order::Prepared;
use crate::checkpoint::{keys, recipe};
use crate::disk::{DiskMode, DiskSpec};
use crate::kept_image;
use crate::live::{self, LiveArgs, Start};
use crate::options::disk_parser;
use crate::recording;
use crate::resume::Origin;
use crate::vm::Vm;

/// Goes on with a machine from a checkpoint file.
///
/// Nothing executes before the whole file was checked: its signature by a key that is trusted here, and
/// every byte. Guest time advances by the time that has passed since the checkpoint, and the guest
/// gets fresh entropy, so that two machines restored from one file differ. What the guest
/// writes to disks goes to overlays that end with the run; the next checkpoint has it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  secondwind restore vm.swc
  secondwind restore vm.swc --forward 7000:7000 --record /tmp/rec
  secondwind restore more.swc --base db.swc        an incremental one; by default beside it
  secondwind restore vm.swc --trust host-a.pub --decrypt secret.key
  secondwind restore vm.swc --verify --json        check it, and say what is in it")]
pub struct RestoreArgs {
    /// The checkpoint file
    file: PathBuf,
    /// What an incremental checkpoint builds on; may be given several times, nearest first
    /// [default: beside it, under the name it had]
    #[arg(long, value_name = "FILE")]
    base: Vec<PathBuf>,
    /// Trust checkpoints signed by this public key, beside those of this user; may be given several times
    #[arg(long, value_name = "PUBKEY")]
    trust: Vec<PathBuf>,
    /// Secret key of an encrypted checkpoint
    #[arg(long, value_name = "FILE")]
    decrypt: Option<PathBuf>,
    /// Check all of it and say what is in it; do not run it
    #[arg(long)]
    verify: bool,
    /// Print what --verify finds as JSON
    #[arg(long, requires = "verify")]
    json: bool,
    /// Record the machine from here on into this folder, for secondwind replay
    #[arg(long, value_name = "DIR", conflicts_with = "verify")]
    record: Option<PathBuf>,
    /// Let this many seconds have passed for the guest [default: as many as have]
    #[arg(long, value_name = "SECONDS")]
    away: Option<f64>,
    /// Where the kernel is, if not where it was
    #[arg(long, value_name = "FILE", help_heading = "Virtual machine")]
    kernel: Option<PathBuf>,
    /// Where the initial ramdisk is, if not where it was
    #[arg(long, value_name = "FILE", help_heading = "Virtual machine")]
    initrd: Option<PathBuf>,
    /// Where the firmware is, if not where it was
    #[arg(long, value_name = "FILE", help_heading = "Virtual machine")]
    firmware: Option<PathBuf>,
    /// Where the disk images are, if not where they were: all of them, in order
    #[arg(long, value_name = "SPEC", help_heading = "Virtual machine", value_parser = disk_parser())]
    disk: Vec<DiskSpec>,
    /// What executes the guest on this host: interpreter, translator (to x86-64 code) or auto
    #[arg(long, value_name = "ENGINE", default_value_t, help_heading = "Virtual machine")]
    engine: Engine,
    /// What stands behind the network ports, if not what did: all of them, in order
    #[arg(long, value_name = "SPEC", help_heading = "Virtual machine")]
    net: Vec<String>,
    /// Forward a host TCP port to the guest, instead of those that were forwarded
    #[arg(long, value_name = "HOST:GUEST", help_heading = "Virtual machine")]
    forward: Vec<String>,
    #[command(flatten)]
    live: LiveArgs,
}

/// Runs `secondwind restore`.
pub fn restore(args: &RestoreArgs) -> Result<ExitCode> {
    let secret = keys::secret_key(args.decrypt.as_deref())?;
    let chain = Chain::open(&args.file, &args.base, &keys::trust(&args.trust)?, secret.as_ref())?;
    let file = chain.last();
    let overrides = recipe::ImageOverrides {
        kernel: args.kernel.clone(),
        initrd: args.initrd.clone(),
        firmware: args.firmware.clone(),
    };
    let (mut vm, images) = recipe::decode(file, &overrides)?;
    vm.engine = args.engine;
    args.plug_in(&mut vm)?;
    let mut machine = build(&vm, file, &images)?;
    load(&mut machine, &chain, &images)?;
    if args.verify {
        print(&describe(&chain), args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let description = file.description();
    let name = args.live.name.clone().unwrap_or_else(|| description.vm.clone());
    let origin = args.origin(description.taken_unix_ns)?;
    let log = match &args.record {
        Some(dir) => {
            let start = RecordedStart { vm: &vm, name: &name, file, secret: secret.as_ref() };
            Some(start.begin(dir, &mut machine)?)
        }
        None => None,
    };
    let start = Start {
        name,
        role: "restore",
        disks: DiskMode::Overlay,
        machine,
        origin,
        events_before: description.events_before,
        log,
        vm,
    };
    // Beside the guest, which need not wait for that.
    let (keeper, folder) = (start.machine.image_keeper(), start.vm.images.folder());
    std::thread::Builder::new().name("images".into()).spawn(move || kept_image::keep(keeper, &folder))?;
    drop((chain, images));
    let config = live::recorder_config(start.log.is_some());
    live::go_live(start, config, &args.live)
}

impl RestoreArgs {
    /// Puts what is plugged into the machine where this host has it.
    fn plug_in(&self, vm: &mut Vm) -> Result<()> {
        if !self.disk.is_empty() {
            if self.disk.len() != vm.disks.len() {
                bail!(
                    "the machine has {} disks, {} are named; name all with --disk",
                    vm.disks.len(),
                    self.disk.len()
                );
            }
            vm.disks.clone_from(&self.disk);
        }
        vm.plug_nets(&self.net, &self.forward)
    }

    fn origin(&self, taken_unix_ns: u64) -> Result<Origin> {
        let away_ns = match self.away {
            Some(seconds) if !(0.0..=1e9).contains(&seconds) => {
                bail!("--away {seconds} is out of range; choose 0 to 1000000000 seconds")
            }
            away => away.map(|seconds| (seconds * 1e9) as u64),
        };
        Ok(Origin::Checkpoint { taken_unix_ns, away_ns })
    }
}

/// Makes the machine that was checkpointed, as at its boot.
fn build(vm: &Vm, file: &CheckpointFile, images: &[Bytes]) -> Result<RiscvMachine> {
    let found = vm.build_with(DiskMode::Overlay, images);
    let fits = found.as_ref().is_ok_and(|machine| machine.identity() == file.description().head.identity);
    if !fits {
        recipe::check_images(file, images)?;
    }
    let machine = found?;
    let (found, expected) = (machine.identity(), &file.description().head.identity);
    if found.disks != expected.disks {
        bail!("a disk image is not what it was when this was checkpointed; name that one with --disk");
    }
    if found.semantics != expected.semantics {
        bail!(
            "{} has machine semantics {}, its recipe {}; it was not made by this program",
            file.path().display(),
            expected.semantics,
            found.semantics
        );
    }
    Ok(machine)
}

/// Gives a machine the state of a checkpoint, and checks that it has it.
pub fn load(machine: &mut RiscvMachine, chain: &Chain, images: &[Bytes]) -> Result<()> {
    let path = chain.last().path().display();
    let head = &chain.last().description().head;
    machine.restore_begin(head).with_context(|| format!("{path} does not fit this machine"))?;
    chain.load(images, |part| {
        machine.restore_part(&part).with_context(|| format!("{path} does not fit this machine"))
    })?;
    if machine.digest() != head.digest {
        bail!("{path}: the restored state is not the one that was checkpointed; it cannot be used");
    }
    Ok(())
}

/// What a recording that starts at a checkpoint is made of.
struct RecordedStart<'a> {
    vm: &'a Vm,
    name: &'a str,
    file: &'a CheckpointFile,
    secret: Option<&'a SecretKey>,
}

impl RecordedStart<'_> {
    /// Begins the log, with a full checkpoint of `machine` beside it: whatever becomes of the file
    /// it was restored from, and of those it builds on, the recording replays.
    fn begin(&self, dir: &std::path::Path, machine: &mut RiscvMachine) -> Result<live::log::NewLog> {
        let description = self.file.description();
        let path = recording::start_path(dir);
        let written = self.write_start(dir, &path, machine)?;
        let head = &description.head;
        let (position, chain) = recording::place_after(&written, head.moment);
        let header = SegmentHeader {
            position,
            chain,
            log_start: position.sequence,
            vm: self.name.to_owned(),
            identity: machine.identity(),
            boot: self.vm.recipe()?,
        };
        let log = live::begin_recording(dir, self.vm, header, head.outputs_before, |_| Ok(()));
        if log.is_err() {
            // Beside a log that is another's it would only confuse.
            let _ = std::fs::remove_file(&path);
        }
        log
    }

    fn write_start(
        &self,
        dir: &std::path::Path,
        path: &std::path::Path,
        machine: &mut RiscvMachine,
    ) -> Result<log_format::checkpoint_file::Root> {
        if path.exists() || store::LogReader::open(dir).is_ok() {
            bail!("{} holds a recording; choose another folder", dir.display());
        }
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot make {}; choose another folder", dir.display()))?;
        let description = self.file.description();
        // Encrypted if the file was, with the same key.
        let secret = self.secret.filter(|_| self.file.is_encrypted()).cloned();
        let prepared = Prepared {
            signer: keys::signing_key(None)?.0,
            secret,
            base: None,
            images: Images::new(recipe::images(self.vm, false)?),
            recipe: description.recipe.clone(),
        };
        let head = machine.begin_checkpoint(CheckpointExtent::Full).head;
        let begun = Begun {
            head,
            events_before: description.events_before,
            unix_ns: description.taken_unix_ns,
            pause_ns: 0,
        };
        let mut writer = CheckpointWriter::create(path, prepared.plan(self.name, &begun))?;
        crate::checkpoint::take_all(machine, &mut writer)?;
        Ok(writer.finish()?.root)
    }
}

/// What is in a checkpoint.
fn describe(chain: &Chain) -> Value {
    let file = chain.last();
    let (description, contents) = (file.description(), file.contents());
    let head = &description.head;
    let images: Vec<Value> = description
        .images
        .iter()
        .map(|image| json!({ "name": image.name, "bytes": image.bytes, "bundled": image.bundled }))
        .collect();
    let files: Vec<Value> = chain
        .files()
        .iter()
        .map(
            |file| json!({ "file": file.path(), "bytes": file.len_bytes(), "root": file.root().to_string() }),
        )
        .collect();
    json!({
        "vm": description.vm, "program": description.program, "taken_unix_ns": description.taken_unix_ns,
        "kind": if description.base.is_some() { "incremental" } else { "full" },
        "signer": file.signer().to_string(), "encrypted": file.is_encrypted(),
        "icount": head.moment.icount, "guest_ns": head.moment.time_ns, "digest": head.digest.to_string(),
        "semantics": head.identity.semantics, "memory_bytes": head.ram_bytes,
        "units": contents.units, "own_units": contents.own_units, "image_units": contents.image_units,
        "base_units": contents.base_units, "images": images, "files": files,
    })
}

fn print(description: &Value, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(description)?);
        return Ok(());
    }
    println!("whole, and signed by {}", description["signer"].as_str().unwrap_or_default());
    crate::status::print_fields(description, &["signer"]);
    Ok(())
}
