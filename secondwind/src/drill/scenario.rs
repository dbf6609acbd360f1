//! One machine's life in a drill.
//!
//! ```text
//!   boot --> load unprotected --> join --> load protected --> fault --> one side goes on
//!                                   ^                                        |
//!                                   +---- load goes on; the next backup <----+
//!                                   |
//!                                   +--> (after the last fault) load ends, all is read back
//! ```
//!
//! The clients' connections stay open from the first load to the read-back.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use link::proxy::Cut;
use netbuf::switch::{Switch, TunnelServer};

use super::agents::Agent;
use super::args::Fault;
use super::clock::{Clock, ms};
use super::cluster::{AgentPlan, Cluster};
use super::evidence::{AgentEvidence, ChainEvidence, Evidence, Round, Window};
use super::load::{Finished, Load};
use super::plan::Plan;
use super::progress::Progress;
use super::random::Random;
use super::timeline;

/// How often the agents are asked while something is awaited.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How often they are asked while the load is measured: less, to disturb it less.
const MEASURED_LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How long every connection may take to be answered once a side goes on.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// A stale machine greets the switch each second: after this long without, it is silent.
const STALE_SILENCE: Duration = Duration::from_millis(1500);

/// Runs `plan` with its files in `folder`.
///
/// # Errors
/// When the drill cannot begin: a process cannot be started, the guest does not boot. What
/// goes wrong later is in the evidence.
pub async fn run(plan: &Plan, folder: &Path, clock: Clock, progress: &mut Progress) -> Result<ChainEvidence> {
    let switch = Switch::new();
    let tunnel = switch.serve_tunnel(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let mut drill = Drill::boot(plan, folder, switch, tunnel, clock, progress).await?;
    let halted = drill.live().await.err().map(|error| format!("{error:#}"));
    if let Some(reason) = &halted {
        drill.progress.step(format!("cannot go on: {reason}"));
    }
    drill.end(halted).await
}

/// A drill under way.
struct Drill<'a> {
    plan: &'a Plan,
    clock: Clock,
    progress: &'a mut Progress,
    random: Random,
    cluster: Cluster,
    load: Load,
    switch: Switch,
    _tunnel: TunnelServer,
    unprotected: Window,
    protected: Vec<Window>,
    rounds: Vec<Round>,
    false_alarms: u32,
}

impl<'a> Drill<'a> {
    /// Starts the primary and the clients.
    async fn boot(
        plan: &'a Plan,
        folder: &Path,
        switch: Switch,
        tunnel: TunnelServer,
        clock: Clock,
        progress: &'a mut Progress,
    ) -> Result<Drill<'a>> {
        let agents = AgentPlan {
            guest: plan.guest.name(),
            engine: plan.engine,
            memory_bytes: plan.memory_bytes,
            disk_bytes: plan.disk_bytes,
            tunnel: tunnel.local_address(),
            through_proxy: plan.fault == Fault::CutLink,
        };
        let mut cluster = Cluster::start(folder, agents)?;
        let memory_mib = plan.memory_bytes >> 20;
        progress.step(format!("primary a starts: guest {}, {memory_mib} MiB", plan.guest.name()));
        let mut connecting = Box::pin(Load::start(&switch, plan.load.clone(), clock));
        let deadline = tokio::time::Instant::now() + plan.phases.boot_limit;
        let load = loop {
            tokio::select! {
                load = &mut connecting => break load?,
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            progress.live("the guest boots");
            if !cluster.primary.is_running() {
                bail!("the primary did not start: {}", cluster.primary.epitaph());
            }
            if tokio::time::Instant::now() > deadline {
                let limit_s = plan.phases.boot_limit.as_secs();
                bail!("the guest did not answer within {limit_s} s; {}", cluster.primary.epitaph());
            }
        };
        drop(connecting);
        progress.step(format!("the guest serves {} connections, unprotected", load.connections()));
        let random = Random::new(plan.seed, 1);
        Ok(Drill {
            plan,
            clock,
            progress,
            random,
            cluster,
            load,
            switch,
            _tunnel: tunnel,
            unprotected: 0..0,
            protected: Vec::new(),
            rounds: Vec::new(),
            false_alarms: 0,
        })
    }

    /// From the unprotected load to the end of the last round.
    async fn live(&mut self) -> Result<()> {
        self.unprotected = self.measure(self.plan.phases.baseline).await?;
        self.join().await?;
        for _ in 0..self.plan.rounds {
            self.round().await?;
        }
        self.measure(self.plan.phases.end).await?;
        Ok(())
    }

    /// Lets the load run for some time, and gives when that was.
    async fn measure(&mut self, duration: Duration) -> Result<Window> {
        let from_ns = self.clock.now_ns();
        let end = tokio::time::Instant::now() + duration;
        while let Some(left) =
            end.checked_duration_since(tokio::time::Instant::now()).filter(|left| !left.is_zero())
        {
            tokio::time::sleep(left.min(MEASURED_LOOK_INTERVAL)).await;
            self.look().await?;
        }
        Ok(from_ns..self.clock.now_ns())
    }

    /// Waits until `holds`.
    async fn until(&mut self, what: &str, limit: Duration, holds: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            self.look().await?;
            if holds(self) {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                bail!("{what} did not happen within {} s", limit.as_secs());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Asks the agents and shows the present state.
    async fn look(&mut self) -> Result<()> {
        self.cluster.observe().await;
        let silent_ms = ms(self.clock.now_ns().saturating_sub(self.load.last_answer_ns()));
        let backup = self.cluster.backup.as_ref().map_or("none", |backup| backup.node.as_str());
        let state = format!(
            "primary {}, backup {backup}, {} answers, the last {silent_ms:.0} ms ago",
            self.cluster.primary.node,
            self.load.answered(),
        );
        self.progress.live(&state);
        match self.load.broken().first() {
            Some(broken) => bail!("a client's connection broke: {broken}"),
            None => Ok(()),
        }
    }

    /// Starts a backup and waits until it is counted on.
    async fn join(&mut self) -> Result<()> {
        let node = self.cluster.add_backup().await?;
        self.progress.detail(format!("backup {node} starts and joins the running machine"));
        let limit = self.plan.phases.join_limit;
        let joined = self.until("protection", limit, |drill| drill.is_protected() || !drill.both_run());
        joined.await?;
        self.check_both_run()?;
        self.progress.detail(format!("protected by {node}"));
        Ok(())
    }

    fn is_protected(&self) -> bool {
        self.cluster.primary.seen.status.is_protected && self.is_backup_registered()
    }

    fn is_backup_registered(&self) -> bool {
        let Some(backup) = &self.cluster.backup else { return false };
        self.cluster.record().is_some_and(|record| {
            record.holder == self.cluster.primary.node && record.counts_on(&backup.node)
        })
    }

    fn both_run(&self) -> bool {
        self.cluster.primary.seen.exit.is_none()
            && self.cluster.backup.as_ref().is_none_or(|backup| backup.seen.exit.is_none())
    }

    fn check_both_run(&self) -> Result<()> {
        for agent in [&self.cluster.primary].into_iter().chain(&self.cluster.backup) {
            if agent.seen.exit.is_some() {
                bail!("an agent ended: {}", agent.epitaph());
            }
        }
        Ok(())
    }

    /// Load, a fault, what comes of it, and protection by a new backup.
    async fn round(&mut self) -> Result<()> {
        loop {
            let phases = &self.plan.phases;
            let before = self.random.between(phases.protected_least, phases.protected_most);
            let window = self.measure(before).await?;
            // What the victim counted until now goes with it.
            self.cluster.observe().await;
            self.cluster.weigh();
            // Losing one more is a second failure, which nobody promises to survive.
            if self.is_backup_registered() && self.both_run() {
                self.protected.push(window);
                break;
            }
            self.get_over_false_alarm().await?;
        }
        let backup = self.cluster.backup.as_ref().context("there is no backup")?.node.clone();
        let term = self.cluster.record().context("the arbiter has no record")?.term;
        let mut round = Round {
            primary: self.cluster.primary.node.clone(),
            backup,
            term,
            fault_ns: 0,
            resolved_ns: None,
            answered_ns: None,
            reprotected_ns: None,
            record: None,
            loser_stopped: None,
        };
        let result = self.break_and_recover(&mut round).await;
        if result.is_ok() {
            let (number, planned) = (self.rounds.len() + 1, self.plan.rounds);
            self.progress.round(&format!("{number} of {planned}: {}", round.summary()));
        }
        self.rounds.push(round);
        result
    }

    /// On a host that is short of processors one side may take the other for dead, though
    /// nothing was broken. The clients must not notice that either; then the drill goes on.
    async fn get_over_false_alarm(&mut self) -> Result<()> {
        let limit = self.plan.phases.takeover_limit;
        let backup = self.cluster.backup.as_ref().map(|backup| backup.node.clone());
        let holder = self.cluster.record().map(|record| record.holder);
        if backup.is_some() && holder == backup {
            let goes_live = self.until("the takeover", limit, |drill| {
                drill.cluster.backup.as_ref().is_some_and(Agent::is_live)
            });
            goes_live.await?;
            self.cluster.promote_backup();
            self.progress.detail(format!("false alarm: {} took over", self.cluster.primary.node));
            self.false_alarms += 1;
            return self.join().await;
        }
        self.check_both_run()?;
        self.progress.detail("false alarm: the backup was taken for lost");
        self.false_alarms += 1;
        let limit = self.plan.phases.join_limit;
        let protected = self.until("protection", limit, |drill| drill.is_protected() || !drill.both_run());
        protected.await?;
        self.check_both_run()
    }

    async fn break_and_recover(&mut self, round: &mut Round) -> Result<()> {
        self.inject(round);
        self.resolve(round).await?;
        let resolved_ns = self.clock.now_ns();
        round.resolved_ns = Some(resolved_ns);
        let answered = self.until("an answer on every connection", ANSWER_LIMIT, |drill| {
            drill.load.all_answered_since(resolved_ns)
        });
        answered.await?;
        round.answered_ns = Some(self.clock.now_ns());
        self.progress.detail("every connection is answered again");
        self.measure(self.plan.phases.after).await?;
        if self.plan.fault == Fault::CutLink {
            self.settle_cut(round).await?;
        }
        if self.cluster.backup.is_none() {
            self.join().await?;
        }
        round.reprotected_ns = Some(self.clock.now_ns());
        Ok(())
    }

    /// Makes the fault.
    fn inject(&mut self, round: &mut Round) {
        round.fault_ns = self.clock.now_ns();
        let victim = match self.plan.fault {
            Fault::KillPrimary => {
                self.cluster.primary.kill();
                &round.primary
            }
            Fault::KillBackup => {
                if let Some(backup) = &mut self.cluster.backup {
                    backup.kill();
                }
                &round.backup
            }
            Fault::CutLink => {
                self.cluster.cut_link(Cut::Both);
                &round.backup
            }
        };
        self.progress.fault_at(round.fault_ns, self.plan.fault.deed(victim));
    }

    /// Waits until one side goes on alone, and notes which.
    async fn resolve(&mut self, round: &mut Round) -> Result<()> {
        let Round { primary, backup, term, .. } = round.clone();
        let limit = self.plan.phases.takeover_limit;
        let resolved = self.until("the decision who goes on", limit, |drill| {
            let Some(record) = drill.cluster.record() else { return false };
            let alone = record.holder == primary && record.term == term && record.backups.is_empty();
            let taken_over = record.holder == backup && record.term > term;
            alone || taken_over
        });
        resolved.await?;
        round.record = self.cluster.record();
        if round.survivor() == Some(round.backup.as_str()) {
            let goes_live = self.until("the takeover", limit, |drill| {
                drill.cluster.backup.as_ref().is_some_and(Agent::is_live)
            });
            goes_live.await?;
            self.cluster.promote_backup();
            self.progress.detail(format!("backup {backup} took over, term {}", term + 1));
        } else {
            if self.plan.fault == Fault::KillBackup {
                self.cluster.retire_backup();
            }
            self.progress.detail(format!("primary {primary} goes on alone, term {term}"));
        }
        Ok(())
    }

    /// After a cut: the losing side must have stopped. Then the link is whole again.
    async fn settle_cut(&mut self, round: &mut Round) -> Result<()> {
        let limit = self.plan.phases.takeover_limit;
        if round.was_taken_over() {
            let loser = round.primary.clone();
            let fenced = self.until("the fencing of the old primary", limit, |drill| {
                drill.cluster.retired.iter().any(|agent| agent.node == loser && agent.is_fenced())
            });
            round.loser_stopped = Some(fenced.await.is_ok());
        } else {
            let backup = self.cluster.backup.as_ref();
            round.loser_stopped = Some(backup.is_some_and(|backup| !backup.seen.status.is_live()));
        }
        self.cluster.cut_link(Cut::None);
        self.progress.detail("the link is whole again");
        if self.cluster.backup.is_some() {
            // The refused backup comes back by itself.
            let limit = self.plan.phases.join_limit;
            let rejoined = self.until("protection by the backup that was cut off", limit, |drill| {
                drill.is_protected() || !drill.both_run()
            });
            rejoined.await?;
            if !self.both_run() {
                self.cluster.retire_backup();
            }
        }
        Ok(())
    }

    /// Ends the load, reads everything back, asks everybody a last time, and ends the agents.
    async fn end(mut self, halted: Option<String>) -> Result<ChainEvidence> {
        let stale_before = self.switch.statistics().tunnel.stale;
        if self.plan.fault == Fault::CutLink {
            tokio::time::sleep(STALE_SILENCE).await;
        }
        let stale_at_end = self.switch.statistics().tunnel.stale - stale_before;
        self.progress.step("the load ends; everything is read back");
        let Finished { history, broken, read_back } = self.load.finish().await;
        self.cluster.observe().await;
        self.cluster.weigh();
        let live_nodes =
            self.cluster.agents().filter(|agent| agent.is_live()).map(|agent| agent.node.clone()).collect();
        let record = self.cluster.record();
        self.cluster.stop().await;
        let agents = self.cluster.agents().map(|agent| AgentEvidence {
            node: agent.node.clone(),
            seen: agent.seen.clone(),
            events: timeline::read(&agent.files().timeline, self.clock),
        });
        let machine = Evidence {
            guest: self.plan.guest,
            seed: self.plan.seed,
            steps: self.progress.steps(),
            unprotected: self.unprotected,
            protected: self.protected,
            halted,
            history,
            broken,
            read_back,
            agents: agents.collect(),
            live_nodes,
            record,
            false_alarms: self.false_alarms,
        };
        Ok(ChainEvidence {
            machine,
            fault: self.plan.fault,
            rounds_planned: self.plan.rounds,
            rounds: self.rounds,
            stale_at_end,
        })
    }
}
