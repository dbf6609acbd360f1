//! The thread on which the machine follows.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread::JoinHandle;

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

/// Keeps the state that diverged, for diagnosis.
fn keep_state<M: Machine, F: FnMut() -> M>(worker: &mut ReplayWorker<M, F>, folder: &Path) {
    let Some(machine) = worker.diverged_machine() else { return };
    let head = machine.begin_checkpoint();
    let path = folder.join(format!("backup-at-{}.checkpoint", head.moment.icount));
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| store::write_checkpoint(&path, head, || machine.take_checkpoint_pages(DUMP_PAGES)));
    match written {
        Ok(()) => tracing::error!("the diverged state is kept in {}", path.display()),
        Err(error) => tracing::error!("the diverged state could not be kept in {}: {error}", path.display()),
    }
}
