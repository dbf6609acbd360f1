//! The role of a backup: follows a primary, and takes its place.

use std::process::ExitCode;

use anyhow::Result;
use backup::BackupEvent;
use backup::driver::Outcome;
use machine::{Machine, RiscvMachine};
use store::LogFolder;
use tokio::sync::{mpsc, watch};

use super::node::{Agent, COMMANDS, Leadership, Role, draw_life};
use super::orders::obey_as_backup;
use super::restart::RECLAIM_AFTER;
use super::timeline;
use crate::control::{Order, Request};
use crate::disk::DiskMode;
use crate::vm::Vm;

/// Exit status of a backup that cannot serve: see [`super::BackupArgs`].
const UNUSABLE: u8 = 3;

impl Agent {
    /// Follows whoever leads, until it takes over or is told to end.
    pub(super) async fn follow(&mut self, machine: RiscvMachine) -> Result<Role> {
        let identity = machine.identity();
        let config = backup::driver::DriverConfig {
            core: backup::CoreConfig {
                life: draw_life(),
                listen: self.reservation.as_ref().and_then(|reserved| reserved.local_address().ok()),
                ..self.settings.backup_core(identity.clone())
            },
            primaries: self.settings.peers.clone(),
            security: self.settings.security.clone(),
            transport: Default::default(),
            arbiter: self.settings.arbiter.shared(),
            learn: self.settings.arbiter.learn(),
            learners: self.learners(),
            log: self.log_folder(identity)?,
            diverged: Some(self.settings.diverged_folder()),
        };
        let (commands, received) = mpsc::channel(COMMANDS);
        let (status, mut shown) = watch::channel(backup::driver::showing(Default::default()));
        let (events, mut happened) = mpsc::unbounded_channel();
        let controls = backup::driver::Controls { commands: received, status, events };
        let mut running = Box::pin(backup::driver::run(machines(self.vm.clone(), machine), config, controls));
        let soon = || tokio::time::Instant::now() + RECLAIM_AFTER;
        let mut reclaim_at = self.reclaim.map(|_| soon());
        let mut reclaiming = false;
        let outcome = loop {
            tokio::select! {
                outcome = &mut running => break outcome?,
                Some((at_ns, event)) = happened.recv() => {
                    match event {
                        BackupEvent::Joining { .. } => reclaim_at = None,
                        // It has another log now, and its core knows when to take over.
                        BackupEvent::Ready => self.reclaim = None,
                        BackupEvent::ConnectionLost if self.may_reclaim() => reclaim_at = Some(soon()),
                        _ => {}
                    }
                    let (name, details) = timeline::of_backup(&event);
                    self.timeline.write(at_ns, name, details);
                }
                () = tokio::time::sleep_until(reclaim_at.unwrap_or_else(soon)), if reclaim_at.is_some() => {
                    (reclaim_at, reclaiming) = (None, true);
                    let _ = commands.send(backup::Operator::Stop).await;
                }
                Some(request) = self.requests.recv() => {
                    reclaiming &= !matches!(request, Order::Simple(Request::Stop));
                    obey_as_backup(&self.settings.arbiter, &commands, request).await;
                }
                Ok(()) = shown.changed() => {
                    let look = backup::driver::Look::clone(&shown.borrow_and_update());
                    self.status.send_replace(self.settings.describe_later("backup", move || look()));
                }
            }
        };
        let last = backup::driver::Look::clone(&shown.borrow());
        self.status.send_replace(self.settings.describe_later("backup", move || last()));
        // The machine goes live first; what is left to write down is written meanwhile.
        let mut timeline = self.timeline.share()?;
        tokio::spawn(async move {
            while let Some((at_ns, event)) = happened.recv().await {
                let (name, details) = timeline::of_backup(&event);
                timeline.write(at_ns, name, details);
            }
        });
        match (self.reclaim, &outcome) {
            (Some(term), Outcome::Ended(backup::Finish::Stopped)) if reclaiming => {
                return self.reclaim(term).await;
            }
            _ => self.reclaim = None,
        }
        Ok(match outcome {
            Outcome::TakenOver { handover, learners, log } => {
                Role::Lead(Box::new(Leadership { handover: *handover, learners, store: log.map(|log| *log) }))
            }
            Outcome::Ended(finish) => Role::End(ended(finish)),
        })
    }
}

impl Agent {
    /// Whether the log of before is still there to go on from: a backup that joins begins a new one.
    fn may_reclaim(&self) -> bool {
        let promised = self.settings.log_dir.as_deref().and_then(LogFolder::durable_term);
        self.reclaim.is_some() && promised == self.reclaim
    }
}

/// Exit status of a backup that did not take over.
fn ended(finish: backup::Finish) -> ExitCode {
    match finish {
        backup::Finish::Stopped | backup::Finish::TakenOver(_) => ExitCode::SUCCESS,
        backup::Finish::GuestEnded { text } => {
            eprintln!("secondwind: the machine ended: {text}");
            ExitCode::SUCCESS
        }
        backup::Finish::Refused { text } | backup::Finish::Unusable { text } => {
            eprintln!("secondwind: {text}");
            ExitCode::from(UNUSABLE)
        }
    }
}

/// Makes machines as they are at their boot: `first`, then new ones.
fn machines(vm: Vm, first: RiscvMachine) -> impl FnMut() -> RiscvMachine + Send {
    let mut first = Some(first);
    move || match first.take() {
        Some(machine) => machine,
        None => vm.build(DiskMode::Overlay).unwrap_or_else(|error| {
            // It could be built when this process began: its files are gone, and nothing can
            // be followed without them.
            eprintln!("secondwind: {error:#}");
            std::process::exit(1)
        }),
    }
}
