//! The thread on which the machine follows.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread::JoinHandle;

use log_format::CheckpointStart;
use machine::{CheckpointExtent, Machine};

use super::DriverError;
use super::log::KeepStart;
use super::shared::Shared;
use crate::worker::{ReplayReport, ReplayWorker, ToReplayer};

/// Instructions replayed between two looks at what came: some milliseconds.
const TURN_INSTRUCTIONS: u64 = 1_000_000;
/// Pages written at once when a diverged state is kept.
const DUMP_PAGES: usize = 256;

/// A command of the core, with what the log on disk needs done.
pub struct Ordered {
    pub command: ToReplayer,
    pub keep: Option<KeepStart>,
}

/// Replays until nobody is left who could send commands, and gives the worker back.
pub fn start<M: Machine + 'static, F: FnMut() -> M + Send + 'static>(
    new_machine: F,
    commands: Receiver<Ordered>,
    shared: Arc<Shared>,
    diverged: Option<PathBuf>,
) -> Result<JoinHandle<ReplayWorker<M, F>>, DriverError> {
    let thread = std::thread::Builder::new().name("replay".into());
    thread.spawn(move || run(new_machine, &commands, &shared, diverged)).map_err(DriverError::Thread)
}

fn run<M: Machine, F: FnMut() -> M>(
    new_machine: F,
    commands: &Receiver<Ordered>,
    shared: &Arc<Shared>,
    diverged: Option<PathBuf>,
) -> ReplayWorker<M, F> {
    let mut thread = ReplayThread { worker: ReplayWorker::new(new_machine), shared, diverged, keep: None };
    let mut more = false;
    loop {
        if !more {
            match commands.recv() {
                Ok(ordered) => thread.obey(ordered),
                Err(_) => return thread.worker,
            }
        }
        loop {
            match commands.try_recv() {
                Ok(ordered) => thread.obey(ordered),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return thread.worker,
            }
        }
        more = thread.worker.turn(TURN_INSTRUCTIONS);
        thread.report();
    }
}

/// What the thread works with.
struct ReplayThread<'a, M, F> {
    worker: ReplayWorker<M, F>,
    shared: &'a Arc<Shared>,
    diverged: Option<PathBuf>,
    /// To be kept once the checkpoint under way is whole.
    keep: Option<KeepStart>,
}

impl<M: Machine, F: FnMut() -> M> ReplayThread<'_, M, F> {
    fn obey(&mut self, ordered: Ordered) {
        match ordered.command {
            ToReplayer::Boot { .. } | ToReplayer::RestoreBegin { .. } | ToReplayer::Discard => {
                self.keep = ordered.keep;
            }
            _ => {}
        }
        let may_be_restored = matches!(ordered.command, ToReplayer::RestoreEnd);
        self.worker.handle(ordered.command);
        if may_be_restored {
            // Before the machine goes on.
            self.report();
        }
    }

    fn report(&mut self) {
        while let Some(report) = self.worker.poll() {
            match (&report.report, &self.diverged) {
                (ReplayReport::Diverged(_), Some(folder)) => keep_state(&mut self.worker, folder),
                (ReplayReport::Restored, _) => self.keep_start(),
                (ReplayReport::RestoreFailed { .. }, _) => self.keep = None,
                _ => {}
            }
            self.shared.handle_replayed(report);
        }
    }

    /// Keeps the state at which the log on disk begins.
    fn keep_start(&mut self) {
        let (Some(keep), Some(machine)) = (self.keep.take(), self.worker.following_machine()) else { return };
        let start =
            CheckpointStart { head: machine.begin_checkpoint(CheckpointExtent::Full).head, ..*keep.start };
        let written = std::fs::create_dir_all(keep.path.parent().unwrap_or(&keep.path)).and_then(|()| {
            store::write_start(&keep.path, start, || {
                machine.take_checkpoint_pages(CheckpointExtent::Full, DUMP_PAGES)
            })
        });
        match written {
            // The log's thread may have ended, which it says itself.
            Ok(()) => drop(keep.done.send(())),
            Err(error) => {
                let path = keep.path.display();
                tracing::error!("the state at which the log begins could not be kept in {path}: {error}");
            }
        }
    }
}

/// Keeps the state that diverged, for diagnosis.
fn keep_state<M: Machine, F: FnMut() -> M>(worker: &mut ReplayWorker<M, F>, folder: &Path) {
    let Some(machine) = worker.diverged_machine() else { return };
    let head = machine.begin_checkpoint(CheckpointExtent::Full).head;
    let path = folder.join(format!("backup-at-{}.checkpoint", head.moment.icount));
    let written = std::fs::create_dir_all(folder).and_then(|()| {
        store::write_checkpoint(&path, head, || {
            machine.take_checkpoint_pages(CheckpointExtent::Full, DUMP_PAGES)
        })
    });
    match written {
        Ok(()) => tracing::error!("the diverged state is kept in {}", path.display()),
        Err(error) => tracing::error!("the diverged state could not be kept in {}: {error}", path.display()),
    }
}
