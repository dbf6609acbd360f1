//! Goes on with a machine from the log on this node's own disk, after its process died.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use backup::{Counted, Divergence, LogReplay, Replayer};
use log_format::{Life, Position};
use machine::{Handover, Machine, PrimacyStart, RiscvMachine};
use store::{LogFolder, LogOptions, LogReader, LogWriter};

use crate::recording;

/// Instructions between two looks at the outputs and the time: some milliseconds.
const TURN_INSTRUCTIONS: u64 = 10_000_000;
/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// A machine at the end of its log, and the log, which goes on there.
pub struct Reopened {
    pub handover: Handover<RiscvMachine>,
    pub log: LogWriter,
}

/// Replays the log in `folder` to the end of what is whole. `machine` is the machine as it is at
/// its boot. `progress` is told the number of the last batch replayed now and then.
///
/// The machine's guest time goes on with this host's clock, from when the last batch was written.
///
/// # Errors
/// When the log is damaged or another machine's, or the replay does not do what was recorded.
pub fn reopen(folder: &Path, mut machine: RiscvMachine, mut progress: impl FnMut(u64)) -> Result<Reopened> {
    let written_unix_ns = last_write_unix_ns(folder)?;
    // What is torn was never durable: it is cut off.
    let (log, resumed) = LogWriter::resume(folder, LogOptions::default())?;
    let mut reader = LogReader::open(folder)?;
    if machine.identity() != reader.header().identity {
        bail!(
            "the log in {} is of another machine; start with the options it had, or choose another --log-dir",
            folder.display()
        );
    }
    let mut replay = match LogFolder::start_path(folder).exists() {
        false => {
            machine.revert_disks();
            LogReplay::new(Replayer::new(machine, 0, Counted::default()), None, resumed.increments)
        }
        true => {
            let (replayer, start) = recording::after_start(folder, machine)?;
            LogReplay::new(replayer, Some(&start), resumed.increments)
        }
    };
    let mut told = Instant::now();
    while let Some(entry) = reader.next_entry() {
        replay.push(entry?).map_err(differs)?;
        while !replay.step(TURN_INSTRUCTIONS).map_err(differs)?.caught_up {}
        if told.elapsed() >= PROGRESS_INTERVAL {
            told = Instant::now();
            progress(replay.sequence());
        }
    }
    let counted = replay.replayed();
    let (reissue, outputs_released) = replay.unreleased();
    let (reissue, replayer) = (reissue.to_vec(), replay.into_replayer());
    let moment = replayer.moment();
    let end = log.end_position();
    let away_ns = crate::vm::unix_ns().saturating_sub(written_unix_ns);
    let guest_ns = i128::from(moment.time_ns) + i128::from(away_ns);
    let offset_ns = guest_ns - i128::from(link::clock::monotonic_ns());
    let start = PrimacyStart {
        from: Position { moment, ..end },
        chain: log.chain(),
        events_before: counted.events,
        outputs_logged: counted.outputs,
        outputs_released,
        reissue,
        clock_offset_ns: Some(i64::try_from(offset_ns).unwrap_or(i64::MAX)),
        life: Life::UNKNOWN,
    };
    Ok(Reopened { handover: Handover { machine: replayer.into_machine(), start }, log })
}

fn differs(divergence: Divergence) -> anyhow::Error {
    anyhow::anyhow!(
        "the machine does not do what its log says ({divergence}); keep the log for a report, and start \
         with another --log-dir"
    )
}

/// When the log was last written to, by the host's wall clock.
fn last_write_unix_ns(folder: &Path) -> Result<u64> {
    let mut latest = None;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|end| end == "log") {
            latest = latest.max(Some(entry.metadata()?.modified()?));
        }
    }
    let since = latest.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    Ok(since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::DiskMode;
    use crate::recording::{Recording, made};

    #[test]
    fn a_machine_goes_on_where_its_log_ends() {
        let folder = tempfile::tempdir().unwrap();
        made::ledger(folder.path(), 5);
        let mut recording = Recording::open(folder.path(), None).unwrap();
        let machine = recording.vm.build(DiskMode::Overlay).unwrap();
        let batches: Vec<_> = recording.reader.by_ref().map(Result::unwrap).collect();
        let last = batches.last().unwrap();
        let mut numbers = Vec::new();
        let Reopened { mut handover, log } =
            reopen(folder.path(), machine, |number| numbers.push(number)).unwrap();
        let start = &handover.start;
        assert_eq!((start.from.sequence, start.chain), (last.sequence, last.chain()));
        assert_eq!(start.from.moment, handover.machine.moment());
        assert_eq!(start.outputs_logged, last.outputs_after());
        assert!(start.reissue.iter().all(|output| output.ordinal >= last.released_outputs));
        assert_eq!(log.end_position().sequence, last.sequence);

        for batch in &batches {
            recording.replayer.push_batch(batch);
        }
        while !recording.replayer.step(1_000_000).unwrap().caught_up {}
        assert_eq!(recording.replayer.machine_mut().digest(), handover.machine.digest());
    }

    #[test]
    fn a_torn_end_is_cut_off_and_damage_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        made::ledger(folder.path(), 6);
        let recording = Recording::open(folder.path(), None).unwrap();
        let path = folder.path().join("00000000000000000001.log");
        let whole = std::fs::read(&path).unwrap();
        let open = || reopen(folder.path(), recording.vm.build(DiskMode::Overlay).unwrap(), |_| {});
        let last = open().unwrap().handover.start.from.sequence;

        std::fs::write(&path, &whole[..whole.len() - 70]).unwrap();
        let cut = open().unwrap().handover.start.from.sequence;
        assert!(cut < last && cut > 0, "{cut} of {last}");
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        std::fs::write(&path, flipped).unwrap();
        assert!(open().is_err());
    }
}
