//! The role of the primary: runs the machine live.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use machine::{Handover, Machine, RiscvMachine};
use netbuf::announce::AddressLearner;
use primary::driver::{Command, DriverConfig, ImageServer, Look, PrimaryStatus};
use primary::{Finish, Operator};
use serde_json::{Value, json};
use store::{LogFolder, LogWriter};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::images::ServedImages;
use super::node::{Agent, COMMANDS, Leadership, Role};
use super::orders::obey_as_primary;
use super::timeline;
use super::transfer::Transfer;
use crate::control::{Order, TransferRequest};
use crate::disk;

/// How often a transfer under way is looked at.
const TRANSFER_INTERVAL: Duration = Duration::from_millis(50);

/// Exit status of a primary that another one replaced.
pub const FENCED: u8 = 4;

impl Agent {
    /// Runs the machine live until the primacy ends.
    pub(super) async fn lead(&mut self, leadership: Leadership) -> Result<Role> {
        let Leadership { handover, learners, store } = leadership;
        self.promise(store.is_some(), handover.start.from.term)?;
        let config = self.driver_config(&handover, learners, store)?;
        let (commands, received) = mpsc::channel(COMMANDS);
        let (status, mut shown) = watch::channel(primary::driver::showing(Default::default()));
        let (events, mut happened) = mpsc::unbounded_channel();
        let controls = primary::driver::Controls { commands: received, status, events };
        let mut running = Box::pin(primary::driver::run(handover, config, controls));
        let mut transfer: Option<Transfer> = None;
        let mut transfer_due = Instant::now();
        // Who asked for a comparison of the disks.
        let mut waiting: Vec<mpsc::UnboundedSender<Value>> = Vec::new();
        let ended = loop {
            let failed = tokio::select! {
                ended = &mut running => break ended?,
                Some((at_ns, event)) = happened.recv() => {
                    let (name, details) = timeline::of_primary(&event);
                    if matches!(event, primary::PrimaryEvent::DisksCompared(_)) {
                        // Who asked may have gone away.
                        waiting.drain(..).for_each(|replies| drop(replies.send(details.clone())));
                    }
                    self.timeline.write(at_ns, name, details);
                    transfer.as_mut().map_or(Ok(()), |transfer| transfer.note(&event))
                }
                Some(order) = self.requests.recv() => {
                    match order {
                        Order::Transfer(request, replies) => {
                            self.begin_transfer(&mut transfer, request, replies, &look(&shown));
                            if let Some(transfer) = &transfer {
                                tell(&commands, transfer.opening()).await;
                            }
                        }
                        order => {
                            obey_as_primary(&self.settings, &self.vm, &commands, &mut waiting, order).await;
                        }
                    }
                    Ok(())
                }
                Ok(()) = shown.changed() => {
                    let look = Look::clone(&shown.borrow_and_update());
                    self.status.send_replace(self.settings.describe_later("primary", move || look()));
                    Ok(())
                }
                () = sleep_until(transfer_due), if transfer.is_some() => {
                    transfer_due = Instant::now() + TRANSFER_INTERVAL;
                    self.advance_transfer(&mut transfer, &look(&shown), &commands).await
                }
            };
            if let Err(why) = failed
                && let Some(transfer) = transfer.take()
            {
                transfer.fail(&why);
                tell(&commands, Operator::Expect { node: None }).await;
            }
        };
        let last = look(&shown);
        self.status.send_replace(self.settings.describe_later("primary", move || last.clone()));
        while let Ok((at_ns, event)) = happened.try_recv() {
            let (name, details) = timeline::of_primary(&event);
            self.timeline.write(at_ns, name, details);
        }
        self.ports = ended.ports;
        self.reservation = ended.listener.and_then(|listener| {
            // Only the next primacy needs it, which says so then.
            listener.leave().inspect_err(|error| tracing::warn!("{error}")).ok()
        });
        let keeps_source = transfer.as_ref().is_none_or(Transfer::keeps_source);
        match (transfer, &ended.finish) {
            (Some(transfer), Finish::SwitchedOver { .. }) => {
                transfer.succeed().await;
            }
            (Some(transfer), _) => transfer.fail("the machine ended, or another node took it over"),
            (None, _) => {}
        }
        self.after_primacy(ended.finish, ended.machine, keeps_source)
    }

    /// What the primary is connected to.
    fn driver_config(
        &mut self,
        handover: &Handover<RiscvMachine>,
        learners: Vec<AddressLearner>,
        store: Option<LogWriter>,
    ) -> Result<DriverConfig> {
        let first_inputs = match handover.start.events_before {
            0 => crate::resume::first_events(crate::vm::unix_ns(), crate::vm::entropy_seed()?),
            // It is the one machine, which goes on with the clock and the entropy that it has.
            _ => Vec::new(),
        };
        let disks = &handover.machine.identity().disks;
        let images: Arc<dyn ImageServer> =
            Arc::new(ServedImages::new(&self.settings.name, &self.vm.disks, disks));
        Ok(DriverConfig {
            core: self.settings.primary_core(handover.machine.identity()),
            recorder: Default::default(),
            listener: self.reservation.take(),
            arbiter: self.settings.arbiter.shared(),
            ports: std::mem::take(&mut self.ports),
            learners,
            console: self.settings.open_console()?,
            store,
            diverged: Some(self.settings.diverged_folder()),
            first_inputs,
            images: Some(images),
        })
    }

    /// Says in the folder of the log whether the log will hold all that leaves in this term.
    fn promise(&self, has_log: bool, term: u64) -> Result<()> {
        let Some(path) = &self.settings.log_dir else { return Ok(()) };
        match (self.settings.is_durable(), has_log) {
            (true, true) => LogFolder::promise_durable(path, term)?,
            (true, false) => bail!(
                "there is no log in {} to go on with, which --durability disk needs; see to the disk and \
                 start again",
                path.display()
            ),
            (false, _) => LogFolder::promise_nothing(path)?,
        }
        Ok(())
    }

    /// Begins to hand the machine over, unless that is being done already.
    fn begin_transfer(
        &self,
        present: &mut Option<Transfer>,
        request: TransferRequest,
        replies: mpsc::UnboundedSender<Value>,
        status: &PrimaryStatus,
    ) {
        let error = match &request.to {
            _ if present.is_some() => "the machine is being handed over already; wait for that",
            Some(to) if *to == self.settings.node => "the machine runs on this very node; name another",
            _ if request.join_within_ms.is_some()
                && request.keep_source
                && self.settings.peers.is_empty() =>
            {
                "this node knows no other, so it cannot become a backup; start it with --peer, or leave \
                 --keep-source out"
            }
            _ => {
                *present = Some(Transfer::begin(request, replies, &self.settings, status));
                return;
            }
        };
        // Who asked may be gone.
        let _ = replies.send(json!({ "error": error }));
    }

    /// Goes on with what is handed over. An error ends it.
    async fn advance_transfer(
        &self,
        transfer: &mut Option<Transfer>,
        status: &PrimaryStatus,
        commands: &mpsc::Sender<Command>,
    ) -> Result<(), String> {
        let Some(transfer) = transfer else { return Ok(()) };
        if let Some(operator) = transfer.advance(status)? {
            tell(commands, operator).await;
        }
        Ok(())
    }

    /// The role after a primacy that ended so.
    fn after_primacy(&mut self, finish: Finish, machine: RiscvMachine, keeps_source: bool) -> Result<Role> {
        Ok(Role::End(match finish {
            Finish::GuestEnded { code } => ExitCode::from(code.min(255) as u8),
            Finish::Stopped => ExitCode::SUCCESS,
            Finish::HostFault { part } => {
                eprintln!(
                    "secondwind: {} could not be read or written; see to it and start again",
                    disk::shown(part, &self.vm.disks)
                );
                ExitCode::FAILURE
            }
            Finish::SwitchedOver { .. } if !keeps_source || self.settings.peers.is_empty() => {
                ExitCode::SUCCESS
            }
            // It needs to get only what has changed since.
            Finish::SwitchedOver { .. } => return Ok(Role::Follow(Box::new(machine))),
            Finish::Fenced { text } => return self.replaced(&text, machine),
        }))
    }
}

/// What the primary shows of itself now.
fn look(shown: &watch::Receiver<Look>) -> PrimaryStatus {
    let look = Look::clone(&shown.borrow());
    look()
}

/// Tells the primary's core something.
async fn tell(commands: &mpsc::Sender<Command>, operator: Operator) {
    // A driver that is ending takes no more commands.
    let _ = commands.send(Command::Operator(operator)).await;
}
