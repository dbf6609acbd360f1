//! An agent: what it holds in every role, and how it goes from one to the next.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use link::arbitration::{ArbitrationError, Authority, Record, Step, arbitrate};
use link::transport::Reservation;
use log_format::{Life, MachineIdentity};
use machine::{Handover, Machine, RiscvMachine};
use netbuf::announce::AddressLearner;
use netbuf::{MacAddress, PortHandle, PortId, VmId};
use serde_json::json;
use store::{LogFolder, LogWriter};
use tokio::sync::{mpsc, watch};

use super::orders::stop_on_signal;
use super::restart::{OwnLog, in_the_way};
use super::settings::Settings;
use super::timeline::Timeline;
use crate::control::{ControlServer, Look, Order, showing};
use crate::disk::DiskMode;
use crate::vm::Vm;

/// Commands that wait to be carried out.
pub(super) const COMMANDS: usize = 16;

/// The role that an agent begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstRole {
    /// It starts the machine.
    Lead {
        /// Whatever the arbiter's record says.
        force: bool,
    },
    /// It follows whoever leads.
    Follow,
    /// What the arbiter's record says.
    AsRecorded {
        /// Without a record it starts the machine.
        first: bool,
    },
}

/// What an agent does next.
pub(super) enum Role {
    /// Runs the machine.
    Lead(Box<Leadership>),
    /// Follows, with this machine as it is at its boot.
    Follow(Box<RiscvMachine>),
    /// Nothing: the process ends.
    End(ExitCode),
}

/// What a primacy begins with.
pub(super) struct Leadership {
    pub handover: Handover<RiscvMachine>,
    pub learners: Vec<AddressLearner>,
    pub store: Option<LogWriter>,
}

/// A number that no other life of this node has.
pub(super) fn draw_life() -> Life {
    // Keyed anew for each, from the host's random numbers.
    Life(RandomState::new().build_hasher().finish().max(1))
}

/// An agent with all that it holds whatever its role is.
pub struct Agent {
    pub(super) settings: Arc<Settings>,
    pub(super) vm: Vm,
    pub(super) ports: Vec<PortHandle>,
    /// Where a primary waits for backups; `None` while one does, and when it was lost to another
    /// process.
    pub(super) reservation: Option<Reservation>,
    pub(super) timeline: Timeline,
    pub(super) status: watch::Sender<Look>,
    pub(super) requests: mpsc::Receiver<Order>,
    /// The term whose log on this node's disk may be gone on from, while no primary answers.
    pub(super) reclaim: Option<u64>,
    /// Ends the control socket, and removes its file, with the agent.
    _control: AbortOnDrop,
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Agent {
    /// Takes everything that can be taken by another process, before any question to the
    /// arbiter.
    pub async fn prepare(settings: Settings, vm: Vm) -> Result<Agent> {
        let reservation =
            Reservation::bind(&settings.listen, settings.security.clone(), Default::default()).await?;
        let mut ports = Vec::new();
        for (port, spec) in (0..).zip(&vm.nets) {
            let id = PortId { vm: VmId::from_name(&settings.name), port };
            ports.push(netbuf::port::open(spec, id, 0).await?);
        }
        let timeline = Timeline::open(settings.timeline.as_deref(), &settings.node)?;
        let (status, shown) = watch::channel(showing(json!({ "role": "starting" })));
        let (commands, requests) = mpsc::channel(COMMANDS);
        let server = ControlServer::bind(&settings.control)?;
        let control = AbortOnDrop(tokio::spawn(server.serve(shown, commands.clone())));
        tokio::spawn(stop_on_signal(commands));
        let reservation = Some(reservation);
        Ok(Agent {
            settings: Arc::new(settings),
            vm,
            ports,
            reservation,
            timeline,
            status,
            requests,
            reclaim: None,
            _control: control,
        })
    }

    /// Goes from role to role until the process is to end.
    pub async fn run(mut self, machine: RiscvMachine, first: FirstRole) -> Result<ExitCode> {
        let mut role = self.begin(machine, first).await?;
        loop {
            role = match role {
                Role::Lead(leadership) => self.lead(*leadership).await?,
                Role::Follow(machine) => self.follow(*machine).await?,
                Role::End(code) => return Ok(code),
            };
        }
    }

    /// The first role, once the arbiter agrees with it.
    async fn begin(&mut self, machine: RiscvMachine, first: FirstRole) -> Result<Role> {
        let own_log = self.own_log().await?;
        match (first, own_log) {
            (FirstRole::Lead { force: true }, _) => self.boot(machine, Authority::Operator, first).await,
            (FirstRole::Lead { .. } | FirstRole::AsRecorded { .. }, OwnLog::OfPrimary { term }) => {
                self.start_again(machine, term, first).await
            }
            (FirstRole::Follow | FirstRole::AsRecorded { .. }, OwnLog::OfBackup { term }) => {
                self.reclaim = Some(term);
                Ok(Role::Follow(Box::new(machine)))
            }
            (FirstRole::Follow, _) => Ok(Role::Follow(Box::new(machine))),
            (FirstRole::AsRecorded { .. }, OwnLog::Stale) if !self.is_recorded_alone().await? => {
                Ok(Role::Follow(Box::new(machine)))
            }
            (
                FirstRole::Lead { .. } | FirstRole::AsRecorded { .. },
                OwnLog::Stale | OwnLog::OfBackup { .. },
            ) => {
                let path = self.settings.log_dir.clone().unwrap_or_default();
                Err(in_the_way(&path, self.settings.is_durable()))
            }
            (FirstRole::AsRecorded { first: false }, OwnLog::None) if self.record().await?.is_none() => {
                tracing::warn!(
                    "the arbiter knows nothing of this machine yet; one node must start it with --first"
                );
                Ok(Role::Follow(Box::new(machine)))
            }
            (_, OwnLog::None) => self.boot(machine, Authority::Rules, first).await,
        }
    }

    /// Starts the machine from its boot, if the arbiter agrees.
    async fn boot(
        &mut self,
        mut machine: RiscvMachine,
        authority: Authority,
        first: FirstRole,
    ) -> Result<Role> {
        let record = match self.claim_start(authority).await {
            Err(ArbitrationError::Refused(refusal)) if matches!(first, FirstRole::AsRecorded { .. }) => {
                tracing::info!("{refusal}");
                return Ok(Role::Follow(Box::new(machine)));
            }
            other => {
                other.context("this node may not start the machine (--force overrides what is recorded)")?
            }
        };
        let mut start = self.vm.first_primacy(&mut machine, record.term, self.settings.log_dir.is_some())?;
        start.life = record.life_of(&self.settings.node);
        let store = self.begin_log(&machine, record.term)?;
        let handover = Handover { machine, start };
        Ok(Role::Lead(Box::new(Leadership { handover, learners: self.learners(), store })))
    }

    async fn is_recorded_alone(&self) -> Result<bool> {
        let record = self.record().await?;
        Ok(record.is_some_and(|record| record.holder == self.settings.node && record.backups.is_empty()))
    }

    pub(super) async fn record(&self) -> Result<Option<Record>> {
        let arbiter = self.settings.arbiter.shared();
        Ok(tokio::task::spawn_blocking(move || arbiter.read()).await??)
    }

    pub(super) async fn claim_start(&self, authority: Authority) -> Result<Record, ArbitrationError> {
        let step = Step::ClaimStart { node: self.settings.node.clone(), life: draw_life(), authority };
        let arbiter = self.settings.arbiter.shared();
        let claimed = tokio::task::spawn_blocking(move || arbitrate(&*arbiter, &step)).await;
        // A panic in the arbiter is a bug there; it is passed on as one.
        claimed.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// Where the log of this machine is kept, if it is. The boot images are there then, to replay it.
    pub(super) fn log_folder(&self, identity: MachineIdentity) -> Result<Option<LogFolder>> {
        let Some(path) = &self.settings.log_dir else { return Ok(None) };
        std::fs::create_dir_all(path)
            .with_context(|| format!("cannot make {}; choose another --log-dir", path.display()))?;
        self.vm.save_images(path)?;
        Ok(Some(LogFolder::new(path, &self.settings.name, identity, self.vm.recipe()?)))
    }

    /// The log of a machine that boots, where one is wanted.
    fn begin_log(&self, machine: &RiscvMachine, term: u64) -> Result<Option<LogWriter>> {
        let folder = self.log_folder(machine.identity())?;
        Ok(folder.map(|folder| folder.begin_at_boot(term)).transpose()?)
    }

    /// The role after a primacy that another node ended; `text` says how that is known.
    pub(super) fn replaced(&mut self, text: &str, machine: RiscvMachine) -> Result<Role> {
        if self.settings.peers.is_empty() {
            eprintln!("secondwind: fenced: {text}; start this node as a backup of the new primary");
            return Ok(Role::End(ExitCode::from(super::lead::FENCED)));
        }
        tracing::warn!("fenced: {text}; this node goes on as a backup");
        // It needs to get only what has changed since.
        Ok(Role::Follow(Box::new(machine)))
    }

    /// Follows from now on, with a new machine.
    pub(super) fn follow_next(&self) -> Result<Role> {
        Ok(Role::Follow(Box::new(self.vm.build(DiskMode::Overlay)?)))
    }

    /// One for each network port: they learn the guest's addresses.
    pub(super) fn learners(&self) -> Vec<AddressLearner> {
        self.vm.config.nets.iter().map(|net| AddressLearner::with_mac(MacAddress(net.mac))).collect()
    }
}
