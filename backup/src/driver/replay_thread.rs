//! The thread on which the machine follows.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread::JoinHandle;

use log_format::{ChainHash, CheckpointEnd, CheckpointPart, CheckpointStart, Message, Position};
use machine::Machine;

use super::DriverError;
use super::shared::Shared;
use crate::worker::{ReplayReport, ReplayWorker, ToReplayer};

/// Instructions replayed between two looks at what came: some milliseconds.
const TURN_INSTRUCTIONS: u64 = 1_000_000;
/// Pages written at once when a diverged state is kept.
const DUMP_PAGES: usize = 256;

/// Replays until nobody is left who could send commands, and gives the worker back.
pub fn start<M: Machine + 'static, F: FnMut() -> M + Send + 'static>(
    new_machine: F,
    commands: Receiver<ToReplayer>,
    shared: Arc<Shared>,
    diverged: Option<PathBuf>,
) -> Result<JoinHandle<ReplayWorker<M, F>>, DriverError> {
    let thread = std::thread::Builder::new().name("replay".into());
    thread.spawn(move || run(new_machine, &commands, &shared, diverged)).map_err(DriverError::Thread)
}

fn run<M: Machine, F: FnMut() -> M>(
    new_machine: F,
    commands: &Receiver<ToReplayer>,
    shared: &Arc<Shared>,
    diverged: Option<PathBuf>,
) -> ReplayWorker<M, F> {
    let mut worker = ReplayWorker::new(new_machine);
    let mut more = false;
    loop {
        if !more {
            match commands.recv() {
                Ok(command) => worker.handle(command),
                Err(_) => return worker,
            }
        }
        loop {
            match commands.try_recv() {
                Ok(command) => worker.handle(command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return worker,
            }
        }
        more = worker.turn(TURN_INSTRUCTIONS);
        while let Some(report) = worker.poll() {
            if let (ReplayReport::Diverged(_), Some(folder)) = (&report.report, &diverged) {
                keep_state(&mut worker, folder);
            }
            shared.handle_replayed(report);
        }
    }
}

/// Keeps the state that diverged as a file of checkpoint messages (docs/log-format.md).
fn keep_state<M: Machine, F: FnMut() -> M>(worker: &mut ReplayWorker<M, F>, folder: &Path) {
    let Some(machine) = worker.diverged_machine() else { return };
    match write_state(machine, folder) {
        Ok(path) => tracing::error!("the diverged state is kept in {}", path.display()),
        Err(error) => {
            tracing::error!("the diverged state could not be kept in {}: {error}", folder.display())
        }
    }
}

fn write_state<M: Machine>(machine: &mut M, folder: &Path) -> std::io::Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    let head = machine.begin_checkpoint();
    let path = folder.join(format!("diverged-at-{}.checkpoint", head.moment.icount));
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path)?);
    let position = Position { moment: head.moment, ..Position::default() };
    let encoded = |message: Message| message.encode().map_err(std::io::Error::other);
    let start = CheckpointStart {
        position,
        chain: ChainHash::NONE,
        events_before: 0,
        released_outputs: head.outputs_before,
        held: Vec::new(),
        head,
    };
    file.write_all(&encoded(Message::CheckpointHead(start))?)?;
    let mut parts = 0;
    loop {
        let part: CheckpointPart = machine.take_checkpoint_pages(DUMP_PAGES);
        if part.is_empty() {
            break;
        }
        parts += 1;
        file.write_all(&encoded(Message::CheckpointPart(part))?)?;
    }
    file.write_all(&encoded(Message::CheckpointEnd(CheckpointEnd { parts }))?)?;
    file.into_inner()?.sync_all()?;
    Ok(path)
}
