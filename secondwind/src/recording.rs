//! Opens a recording: its log, and the machine that was recorded as it was at the log's start.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use backup::{Counted, Replayer};
use log_format::checkpoint_file::Root;
use log_format::{ChainHash, CheckpointStart, Message, Position, SegmentHeader};
use machine::{Machine, RiscvMachine};
use store::checkpoint::{Chain, SecretKey, Trust};
use store::{LogFolder, LogReader};

use crate::disk::DiskMode;
use crate::vm::Vm;

/// A recording that can be replayed.
pub struct Recording {
    /// Its folder.
    pub dir: PathBuf,
    /// What the machine is made of.
    pub vm: Vm,
    /// Its log, before the first batch.
    pub reader: LogReader,
    /// The machine, with all that lies before the first batch already behind it.
    pub replayer: Replayer<RiscvMachine>,
}

/// The checkpoint at which the log of a restored machine starts.
const START_FILE: &str = "start.swc";
/// Batches before the log of a restored machine: the checkpoint stands for the first one.
const CHECKPOINT_SEQUENCE: u64 = 1;

/// Where the checkpoint lies with which the log in `dir` starts.
pub fn start_path(dir: &Path) -> PathBuf {
    dir.join(START_FILE)
}

/// The place after a checkpoint in a log that starts with it, and the chain hash there: it
/// ties the log to this very checkpoint.
pub fn place_after(checkpoint: &Root, moment: log_format::Moment) -> (Position, ChainHash) {
    let mut chain = [0; 16];
    chain.copy_from_slice(&checkpoint.0[..16]);
    (Position { moment, sequence: CHECKPOINT_SEQUENCE, ..Position::default() }, ChainHash(chain))
}

impl Recording {
    /// Opens the recording in a folder, with the secret key of the checkpoint at which the log starts,
    /// where that is encrypted.
    ///
    /// # Errors
    /// When there is no log, or when images, disks or the checkpoint are not what they were when
    /// it was recorded.
    pub fn open(dir: &Path, secret: Option<&SecretKey>) -> Result<Recording> {
        let reader = LogReader::open(dir)?;
        let vm = Vm::from_recording(dir, &reader.header().boot)?;
        let machine = vm.build(DiskMode::Overlay)?;
        check_identity(&machine, &reader)?;
        let replayer = match reader.header().log_start {
            _ if LogFolder::start_path(dir).exists() => after_start(dir, machine)?.0,
            0 => Replayer::new(machine, 0, Counted::default()),
            _ => after_checkpoint(dir, &vm, machine, reader.header(), secret)?,
        };
        Ok(Recording { dir: dir.to_owned(), vm, reader, replayer })
    }
}

/// Brings a machine to the state at which an agent's log starts, and says what was sent before it and not
/// known to be released. That the state and the log fit each other is seen where the log is opened.
pub fn after_start(
    dir: &Path,
    mut machine: RiscvMachine,
) -> Result<(Replayer<RiscvMachine>, Box<CheckpointStart>)> {
    let path = LogFolder::start_path(dir);
    let unfit = || format!("{} does not fit this machine", path.display());
    let mut start = None;
    store::read_checkpoint(&path, |message| {
        match message {
            Message::CheckpointHead(head) => {
                machine.restore_begin(&head.head).with_context(unfit)?;
                start = Some(Box::new(head));
            }
            Message::CheckpointPart(part) => machine.restore_part(&part).with_context(unfit)?,
            _ => {}
        }
        anyhow::Ok(())
    })?;
    let Some(start) = start else {
        bail!("{} has no head; put the state at which this log starts there", path.display());
    };
    if machine.digest() != start.head.digest {
        bail!("{}: the restored state is not the one that was kept; it cannot be used", path.display());
    }
    let counted = Counted { events: start.events_before, outputs: start.head.outputs_before };
    machine.restore_end();
    Ok((Replayer::new(machine, start.position.sequence, counted), start))
}

/// Brings a machine to the checkpoint at which the log starts.
fn after_checkpoint(
    dir: &Path,
    vm: &Vm,
    mut machine: RiscvMachine,
    header: &SegmentHeader,
    secret: Option<&SecretKey>,
) -> Result<Replayer<RiscvMachine>> {
    let path = start_path(dir);
    // The log names the checkpoint by its root, whoever signed it.
    let chain = Chain::open(&path, &[], &Trust::AnySigner, secret)?;
    let file = chain.last();
    let head = &file.description().head;
    if (header.position, header.chain) != place_after(&file.root(), head.moment) {
        bail!("{} is not the checkpoint at which this log starts; put that one there", path.display());
    }
    crate::restore::load(&mut machine, &chain, &vm.images.read_all()?)?;
    let counted = Counted { events: file.description().events_before, outputs: head.outputs_before };
    Ok(Replayer::new(machine, header.position.sequence, counted))
}

fn check_identity(machine: &RiscvMachine, reader: &LogReader) -> Result<()> {
    let (found, recorded) = (machine.identity(), &reader.header().identity);
    if found.disks != recorded.disks {
        bail!("a disk image is not what it was when this was recorded; restore it, then replay");
    }
    if &found != recorded {
        bail!(
            "the boot images or the configuration in this folder were changed; replay needs them as recorded"
        );
    }
    Ok(())
}

#[cfg(test)]
pub mod made {
    //! Recordings made for tests, on made-up time: small, and the same for the same seed.

    use std::path::Path;

    use bytes::Bytes;
    use log_format::{ChainHash, Event, Position, SegmentHeader};
    use machine::Machine;
    use primary::{Batcher, Recorder, RecorderConfig, Step};
    use store::{LogOptions, LogWriter};

    use crate::disk::DiskMode;
    use crate::options::VmOptions;
    use crate::vm::Vm;

    /// Digests are this far apart.
    pub const DIGEST_INSTRUCTIONS: u64 = 150_000;

    /// Records the built-in guest, half busy, with random inputs, for 20 ms of guest time.
    pub fn ledger(dir: &Path, seed: u64) {
        let options = VmOptions {
            guest: Some("ledger".into()),
            memory: Some("16M".into()),
            append: Some("burn=50 dirty=1:20".into()),
            ..VmOptions::default()
        };
        let vm = Vm::from_options(&options, "made").expect("the options are right");
        let machine = vm.build(DiskMode::Overlay).expect("it has no disks");
        let identity = machine.identity();
        let header = SegmentHeader::at_boot("made".into(), identity.clone(), 0, vm.recipe().unwrap());
        let mut writer = LogWriter::create(dir, header, LogOptions::default()).unwrap();
        vm.save_images(dir).unwrap();
        let config = RecorderConfig {
            slice_instructions: 3000,
            digest_interval_instructions: DIGEST_INSTRUCTIONS,
            hand_on_interval_ns: 0,
            ..RecorderConfig::default()
        };
        let mut batcher = Batcher::new(Position::default(), ChainHash::genesis(&identity), 0);
        let mut recorder = Recorder::new(machine, config, 0, 0);
        recorder.handle_input(Event::Entropy(Bytes::copy_from_slice(&seed.to_le_bytes())), 0);
        let (mut now_ns, mut dice) = (0, seed);
        while now_ns < 20_000_000 {
            match recorder.step(now_ns) {
                Step::Sleep { until_ns } => now_ns = until_ns.unwrap_or(u64::MAX).min(now_ns + 400_000),
                _ => now_ns += 4000,
            }
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if dice >> 56 < 4 {
                let event = match dice >> 40 & 3 {
                    0 => Event::ConsoleIn(Bytes::from_static(b"?")),
                    1 => Event::ClockAdvance { delta_ns: dice >> 44 },
                    _ => Event::NetworkIn { port: 0, frame: vec![0xff; 64].into() },
                };
                recorder.handle_input(event, now_ns);
            }
            if let Some(recorded) = recorder.take_recorded(now_ns) {
                batcher.push(recorded, now_ns);
            }
            if dice >> 48 & 31 == 0 && !batcher.is_empty() {
                writer.append(&batcher.seal(0)).unwrap();
            }
        }
        recorder.record_digest();
        batcher.push(recorder.take_recorded(now_ns).expect("a digest"), now_ns);
        writer.append(&batcher.seal(0)).unwrap();
        writer.finish().unwrap();
    }
}
