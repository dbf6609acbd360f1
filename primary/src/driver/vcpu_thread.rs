//! The thread on which the machine runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use link::clock::monotonic_ns;
use log_format::Event;
use machine::Machine;

use super::DriverError;
use super::encoder::EncoderThread;
use super::shared::Shared;
use crate::core::MachineRequest;
use crate::recorder::Step;
use crate::snapshot::{Advance, SnapshotOrder};
use crate::vcpu::{Told, Vcpu};

/// A snapshot's taker, or the encoder, that is behind gets this long to catch up.
const TAKER_BEHIND_NS: u64 = 500_000;

/// What the machine's thread is told.
#[derive(Debug)]
pub enum ToVcpu {
    /// An input for the guest.
    Input(Event),
    /// A request of the core.
    Request(MachineRequest),
    /// Hold the guest, or let it go on.
    Brake(bool),
    /// Keep the present state in this folder: the backup's differs.
    KeepState(PathBuf),
    /// Give the present state to somebody outside.
    Snapshot(SnapshotOrder),
    /// Let a guest go on that stands still at a snapshot.
    Release,
    /// End the thread.
    Stop,
}

/// Runs the machine until it is told to stop, and gives it back.
pub fn start<M: Machine + 'static>(
    vcpu: Vcpu<M>,
    commands: Receiver<ToVcpu>,
    shared: Arc<Shared>,
) -> Result<JoinHandle<Vcpu<M>>, DriverError> {
    let encoder = EncoderThread::start(Arc::clone(&shared))?;
    let thread = std::thread::Builder::new().name("vcpu".into());
    thread.spawn(move || run(vcpu, &commands, &shared, encoder)).map_err(DriverError::Thread)
}

fn run<M: Machine>(
    mut vcpu: Vcpu<M>,
    commands: &Receiver<ToVcpu>,
    shared: &Arc<Shared>,
    mut encoder: EncoderThread,
) -> Vcpu<M> {
    loop {
        while let Ok(command) = commands.try_recv() {
            if !obey(&mut vcpu, command, shared) {
                return stop(vcpu, shared, encoder);
            }
        }
        let is_behind = !encoder.has_room();
        vcpu.hold_increment(is_behind);
        let step = vcpu.turn(monotonic_ns());
        let advance = vcpu.advance_snapshot(monotonic_ns());
        tell(&mut vcpu, shared, &mut encoder);
        let until_ns = match (advance, step) {
            (Advance::More, _) | (_, Step::Continue) => continue,
            (Advance::Waiting, _) => Some(monotonic_ns() + TAKER_BEHIND_NS),
            (Advance::Done, Step::Sleep { until_ns }) => until_ns,
            (Advance::Done, Step::Stalled | Step::Halted { .. } | Step::HostFault { .. }) => None,
        };
        let encoder_ns = is_behind.then(|| monotonic_ns() + TAKER_BEHIND_NS);
        let until_ns = until_ns.into_iter().chain(encoder_ns).min();
        let command = match until_ns {
            Some(until_ns) => {
                let left_ns = until_ns.saturating_sub(monotonic_ns());
                match commands.recv_timeout(Duration::from_nanos(left_ns)) {
                    Err(RecvTimeoutError::Timeout) => continue,
                    other => other.ok(),
                }
            }
            None => commands.recv().ok(),
        };
        // The driver is gone when nobody is left to send.
        if !command.is_some_and(|command| obey(&mut vcpu, command, shared)) {
            return stop(vcpu, shared, encoder);
        }
    }
}

/// Whether to go on.
fn obey<M: Machine>(vcpu: &mut Vcpu<M>, command: ToVcpu, shared: &Arc<Shared>) -> bool {
    let now_ns = monotonic_ns();
    match command {
        ToVcpu::Input(event) => vcpu.handle_input(event, now_ns),
        ToVcpu::Request(request) => {
            vcpu.handle_request(request, now_ns);
            if matches!(request, MachineRequest::BeginCheckpoint { .. }) {
                let pause_ns = monotonic_ns().saturating_sub(now_ns);
                vcpu.note_pause(pause_ns);
                shared.note_checkpoint_pause(pause_ns);
            }
        }
        ToVcpu::Brake(braked) => vcpu.brake(braked, now_ns),
        ToVcpu::KeepState(folder) => keep_state(vcpu, &folder, now_ns),
        ToVcpu::Snapshot(order) => {
            let unix_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
            if vcpu.handle_snapshot(order, now_ns) {
                let pause_ns = monotonic_ns().saturating_sub(now_ns);
                vcpu.note_snapshot(u64::try_from(unix_ns).unwrap_or(u64::MAX), pause_ns);
            }
        }
        ToVcpu::Release => vcpu.release(now_ns),
        ToVcpu::Stop => return false,
    }
    true
}

/// Keeps the present state, for diagnosis beside the backup's.
fn keep_state<M: Machine>(vcpu: &mut Vcpu<M>, folder: &Path, now_ns: u64) {
    let written = vcpu.keep_state(now_ns, |head, next_part| {
        let path = folder.join(format!("primary-at-{}.checkpoint", head.moment.icount));
        std::fs::create_dir_all(folder)
            .and_then(|()| store::write_checkpoint(&path, head, next_part))
            .map(|()| path)
    });
    match written {
        Some(Ok(path)) => tracing::error!("the primary's state is kept in {}", path.display()),
        Some(Err(error)) => {
            tracing::error!("the primary's state could not be kept in {}: {error}", folder.display());
        }
        None => tracing::error!("the primary's state is not kept: a checkpoint is under way"),
    }
}

/// Hands on what the machine's thread has to tell.
fn tell<M: Machine>(vcpu: &mut Vcpu<M>, shared: &Arc<Shared>, encoder: &mut EncoderThread) {
    while let Some(told) = vcpu.poll_unpacked() {
        match told {
            Told::ToCore(message) => shared.with(|primary, now_ns| primary.handle_machine(message, now_ns)),
            Told::ToPacker(input) => encoder.push(input),
        }
    }
}

fn stop<M: Machine>(mut vcpu: Vcpu<M>, shared: &Arc<Shared>, mut encoder: EncoderThread) -> Vcpu<M> {
    vcpu.stop(monotonic_ns());
    tell(&mut vcpu, shared, &mut encoder);
    encoder.finish();
    vcpu
}
