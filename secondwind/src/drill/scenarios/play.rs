//! Plays a scenario: boots the machine, protects it, does its steps, reads everything back.
//!
//! ```text
//!   first host starts --> clients --> backups join --> step, step, ... --> read-back
//!                                          |
//!                       false alarm <------+  before the first step: all over again
//! ```

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use machine::Engine;
use netbuf::switch::{Switch, TunnelServer};
use tokio::time::Instant;

use super::condition::Condition;
use super::file::Scenario;
use super::hosts::{Hosts, Setting, backups};
use super::step::{Action, ArbiterState, DiskState, Host, Role, Step, Who};
use crate::control::Request;
use crate::drill::clock::{Clock, ms};
use crate::drill::evidence::{AgentEvidence, Evidence, Window};
use crate::drill::load::{Finished, Load};
use crate::drill::plan::{boot_limit, load_plan};
use crate::drill::progress::Progress;
use crate::drill::random::Random;
use crate::drill::timeline;

/// How often the agents are asked.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Load on the unprotected machine.
const BASELINE: Duration = Duration::from_millis(500);
/// Load on the protected machine before the first step, at least and at most.
const PROTECTED: (Duration, Duration) = (Duration::from_millis(600), Duration::from_millis(1400));
/// Load after the last step.
const END: Duration = Duration::from_millis(400);
/// How long backups may take until they are counted on.
const JOIN_LIMIT: Duration = Duration::from_secs(60);
/// A stale machine greets the switch each second: after this long without, it is silent.
const STALE_SILENCE: Duration = Duration::from_millis(1100);

/// What was seen of a scenario.
pub struct Played {
    /// Of the machine.
    pub machine: Evidence,
    /// What was broken, and when, in nanoseconds since the drill began.
    pub faults: Vec<Fault>,
    /// When the load ended.
    pub end_ns: u64,
    /// The term when the steps began.
    pub first_term: u64,
    /// What was awaited at the end, and whether it held.
    pub held: Vec<(Condition, bool)>,
    /// Hosts that learned that another one took over.
    pub fenced: Vec<Host>,
    /// How many backups the primary counts on at the end.
    pub protected_by: usize,
    /// Terms in which two nodes said at one time that they are live.
    pub doubled: Vec<u64>,
    /// Datagrams of a stale machine that the switch refused at the end.
    pub stale_at_end: u64,
    /// Steps that were done, of those there are.
    pub done: (usize, usize),
}

/// Something that was broken.
#[derive(Debug, Clone)]
pub struct Fault {
    /// When.
    pub at_ns: u64,
    /// Who was the primary afterwards, until the next fault.
    pub survivor: Option<String>,
    /// In which term.
    pub term: u64,
}

/// One side took the other for dead before anything was broken.
#[derive(Debug, thiserror::Error)]
#[error("false alarm before the first step")]
pub struct FalseAlarm;

/// What a scenario is played with.
pub struct Props<'a> {
    /// Seed of every random choice.
    pub seed: u64,
    /// Where its files go.
    pub folder: &'a Path,
    /// What an upgraded host runs.
    pub newer_program: PathBuf,
    /// What executes the guests.
    pub engine: Engine,
    /// The drill's time.
    pub clock: Clock,
}

/// Plays `scenario` once.
///
/// # Errors
/// When it cannot begin, or [`FalseAlarm`]. What goes wrong later is in what was seen.
pub async fn play(scenario: &Scenario, props: &Props<'_>, progress: &mut Progress) -> Result<Played> {
    let switch = Switch::new();
    let tunnel = switch.serve_tunnel(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let setting = Setting {
        folder: props.folder.to_owned(),
        tunnel: tunnel.local_address(),
        engine: props.engine,
        newer_program: props.newer_program.clone(),
    };
    let hosts = Hosts::prepare(scenario, setting).await?;
    let mut player = Player::boot(scenario, props, hosts, (switch, tunnel), progress).await?;
    player.protect().await?;
    let halted = match player.steps().await {
        Err(error) if error.is::<FalseAlarm>() => return Err(error),
        outcome => outcome.err().map(|error| format!("{error:#}")),
    };
    if let Some(reason) = &halted {
        player.progress.detail(format!("cannot go on: {reason}"));
    }
    player.end(halted).await
}

struct Player<'a> {
    scenario: &'a Scenario,
    clock: Clock,
    seed: u64,
    progress: &'a mut Progress,
    random: Random,
    hosts: Hosts,
    load: Load,
    switch: Switch,
    _tunnel: TunnelServer,
    unprotected: Window,
    protected: Window,
    first_term: u64,
    faults: Vec<Fault>,
    /// When the last action was done: what was written before it is old.
    acted_ns: u64,
    done: usize,
    doubled: Vec<u64>,
}

impl<'a> Player<'a> {
    async fn boot(
        scenario: &'a Scenario,
        props: &Props<'_>,
        mut hosts: Hosts,
        (switch, tunnel): (Switch, TunnelServer),
        progress: &'a mut Progress,
    ) -> Result<Player<'a>> {
        let first = Host(0);
        hosts.start(first, Role::Primary)?;
        progress.detail(format!("primary {first} starts: guest {}", scenario.guest.name()));
        let mut plan = load_plan(scenario.guest, scenario.load.connections, props.seed);
        plan.interval = scenario.load.interval().unwrap_or(plan.interval);
        plan.put_percent = scenario.load.put_percent.unwrap_or(plan.put_percent);
        let mut connecting = Box::pin(Load::start(&switch, plan, props.clock));
        let deadline = Instant::now() + boot_limit(scenario.guest);
        let load = loop {
            tokio::select! {
                load = &mut connecting => break load?,
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            progress.live("the guest boots");
            hosts.observe().await;
            let epitaph = || hosts.agent(first).map(|agent| agent.epitaph()).unwrap_or_default();
            if !hosts.runs(first) {
                bail!("the primary did not start: {}", epitaph());
            }
            if Instant::now() > deadline {
                bail!("the guest did not answer; {}", epitaph());
            }
        };
        drop(connecting);
        Ok(Player {
            scenario,
            clock: props.clock,
            seed: props.seed,
            progress,
            random: Random::new(props.seed, 1),
            hosts,
            load,
            switch,
            _tunnel: tunnel,
            unprotected: 0..0,
            protected: 0..0,
            first_term: 1,
            faults: Vec::new(),
            acted_ns: 0,
            done: 0,
            doubled: Vec::new(),
        })
    }

    /// Starts the backups and lets the load run.
    async fn protect(&mut self) -> Result<()> {
        self.unprotected = self.measure(BASELINE).await?;
        for host in (1..=self.scenario.backups).map(Host) {
            self.hosts.start(host, Role::Backup)?;
            self.progress.detail(format!("backup {host} starts"));
        }
        if self.scenario.backups > 0 {
            let protected = Condition::Protected(self.scenario.backups);
            self.until(&protected, JOIN_LIMIT).await?;
            self.progress.detail(protected.to_string());
        }
        let (least, most) = PROTECTED;
        let duration = self.random.between(least, most);
        self.protected = self.measure(duration).await?;
        self.hosts.weigh();
        let record = self.hosts.record().context("the arbiter has no record")?;
        self.first_term = record.term;
        let is_as_begun =
            record.holder == Host(0).to_string() && backups(&record).len() == self.scenario.backups;
        if is_as_begun { Ok(()) } else { Err(FalseAlarm.into()) }
    }

    /// Does the steps, one after the other.
    async fn steps(&mut self) -> Result<()> {
        let (began, mut former) = (Instant::now(), Instant::now());
        self.acted_ns = self.clock.now_ns();
        let scenario = self.scenario;
        for (number, step) in (1..).zip(&scenario.steps) {
            let due = (began + step.at).max(former + step.after);
            let result = self.step(step, due).await;
            if result.is_err() && self.faults.is_empty() && self.is_false_alarm() {
                return Err(FalseAlarm.into());
            }
            result.with_context(|| format!("step {number}"))?;
            former = Instant::now();
            self.done = number;
        }
        self.measure(END).await.map(drop)
    }

    fn is_false_alarm(&self) -> bool {
        let old = |record: &link::arbitration::Record| {
            record.term == self.first_term && backups(record).len() >= self.scenario.backups
        };
        !self.hosts.record().as_ref().is_some_and(old)
    }

    async fn step(&mut self, step: &Step, due: Instant) -> Result<()> {
        while Instant::now() < due {
            tokio::time::sleep(LOOK_INTERVAL.min(due - Instant::now())).await;
            self.look().await?;
        }
        if let Some(condition) = &step.wait_for {
            self.until(condition, step.within).await?;
            self.progress.detail(condition.to_string());
        }
        match &step.action {
            Some(action) => self.act(action).await,
            None => Ok(()),
        }
    }

    /// Lets the load run for some time, and gives when that was.
    async fn measure(&mut self, duration: Duration) -> Result<Window> {
        let from_ns = self.clock.now_ns();
        let end = Instant::now() + duration;
        while Instant::now() < end {
            tokio::time::sleep(LOOK_INTERVAL.min(end - Instant::now())).await;
            self.look().await?;
        }
        Ok(from_ns..self.clock.now_ns())
    }

    /// Waits until a condition holds.
    async fn until(&mut self, condition: &Condition, limit: Duration) -> Result<()> {
        let (since_ns, deadline) = (self.clock.now_ns(), Instant::now() + limit);
        loop {
            self.look().await?;
            if self.holds(condition, since_ns) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "not {condition:?} within {} s: {}",
                    limit.as_secs_f64(),
                    self.state(),
                    condition = condition.to_string()
                );
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    fn holds(&self, condition: &Condition, since_ns: u64) -> bool {
        let agent = |who: &Who| self.hosts.agent(self.hosts.resolve(*who).ok()?);
        let is = |who: &Who, what: fn(&crate::drill::agents::Agent) -> bool| agent(who).is_some_and(what);
        match condition {
            Condition::Answered => self.load.all_answered_since(since_ns),
            Condition::Protected(number) => self.protected_by() >= *number,
            Condition::Alone => self.hosts.record().is_some_and(|record| backups(&record).is_empty()),
            Condition::Live(who) => {
                let holder = self.hosts.record().map(|record| record.holder);
                agent(who).is_some_and(|agent| agent.is_live() && Some(&agent.node) == holder.as_ref())
            }
            Condition::Fenced(who) => self.hosts.resolve(*who).is_ok_and(|host| self.was_fenced(host)),
            Condition::Ended(who) => is(who, |agent| agent.seen.exit.is_some()),
            Condition::Wrote(who, event) => agent(who).is_some_and(|agent| {
                let events = timeline::read(&agent.files().timeline, self.clock);
                events.iter().any(|found| found.at_ns >= self.acted_ns && found.event == *event)
            }),
            Condition::Says(who, field, value) => agent(who).is_some_and(|agent| {
                let path = format!("/{}", field.replace('.', "/"));
                agent.seen.answer.pointer(&path).is_some_and(|field| value.fits(field))
            }),
        }
    }

    /// How many backups the primary counts on, by its word and the arbiter's.
    fn protected_by(&self) -> usize {
        let Some(record) = self.hosts.record() else { return 0 };
        let holder = self.hosts.names().find(|host| host.to_string() == record.holder);
        let agent = holder.and_then(|host| self.hosts.agent(host));
        let counts = agent.is_some_and(|agent| agent.is_live() && agent.seen.status.is_protected);
        if counts { backups(&record).len() } else { 0 }
    }

    fn was_fenced(&self, host: Host) -> bool {
        let node = host.to_string();
        self.hosts.agents().filter(|agent| agent.node == node).any(|agent| {
            let events = || timeline::read(&agent.files().timeline, self.clock);
            agent.is_fenced() || events().iter().any(|event| event.event == "fenced")
        })
    }

    /// Asks the agents and shows the present state.
    async fn look(&mut self) -> Result<()> {
        self.hosts.observe().await;
        self.progress.live(&self.state());
        let mut live_terms: Vec<u64> =
            self.hosts.agents().filter(|agent| agent.is_live()).map(|agent| agent.seen.status.term).collect();
        live_terms.sort_unstable();
        self.doubled.extend(live_terms.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]));
        match self.load.broken().first() {
            Some(broken) => bail!("a client's connection broke: {broken}"),
            None => Ok(()),
        }
    }

    fn state(&self) -> String {
        let silent_ms = ms(self.clock.now_ns().saturating_sub(self.load.last_answer_ns()));
        let record = self.hosts.record().map_or("no record".to_owned(), |record| record.to_string());
        let ended = self.hosts.names().filter_map(|host| self.hosts.agent(host));
        let ended: Vec<String> =
            ended.filter(|agent| agent.seen.exit.is_some()).map(|agent| agent.epitaph()).collect();
        let ended = if ended.is_empty() { String::new() } else { format!("; {}", ended.join("; ")) };
        format!("{record}; {} answers, the last {silent_ms:.0} ms ago{ended}", self.load.answered())
    }

    /// Does what a step says.
    async fn act(&mut self, action: &Action) -> Result<()> {
        if self.faults.is_empty() && self.is_false_alarm() {
            return Err(FalseAlarm.into());
        }
        self.hosts.weigh();
        self.end_fault();
        let resolve = |hosts: &Hosts, all: &[Who]| {
            all.iter().map(|who| hosts.resolve(*who)).collect::<Result<Vec<_>>>()
        };
        let at_ns = self.clock.now_ns();
        let what = match action {
            Action::Kill(all) => {
                let hosts = resolve(&self.hosts, all)?;
                self.hosts.kill(&hosts);
                format!("SIGKILL to {}", list(&hosts))
            }
            Action::Stop(all) => {
                let hosts = resolve(&self.hosts, all)?;
                for host in &hosts {
                    self.hosts.stop(*host).await;
                }
                format!("{} stopped in order", list(&hosts))
            }
            Action::Start(all, role) => {
                let hosts = resolve(&self.hosts, all)?;
                for host in &hosts {
                    self.hosts.start(*host, *role)?;
                }
                format!("{} starts as {role:?}", list(&hosts)).to_lowercase()
            }
            Action::StartEnded => {
                let is_ended = |host: &Host| self.hosts.agent(*host).is_some() && !self.hosts.runs(*host);
                let hosts: Vec<Host> = self.hosts.names().filter(is_ended).collect();
                for host in &hosts {
                    self.hosts.start(*host, Role::Backup)?;
                }
                match hosts.is_empty() {
                    true => "every host runs".to_owned(),
                    false => format!("{} starts as backup", list(&hosts)),
                }
            }
            Action::Pause(all) | Action::Resume(all) => {
                let hosts = resolve(&self.hosts, all)?;
                let is_pause = matches!(action, Action::Pause(_));
                hosts.iter().for_each(|host| self.hosts.pause(*host, is_pause));
                format!("{} to {}", if is_pause { "SIGSTOP" } else { "SIGCONT" }, list(&hosts))
            }
            Action::Link(change) => {
                self.hosts.change_link(change);
                change.to_string()
            }
            Action::Takeover(who) => {
                let host = self.hosts.resolve(*who)?;
                self.hosts.order(host, Request::Takeover).await?;
                format!("the operator lets {host} take over")
            }
            Action::Arbiter(state) => {
                self.hosts.set_arbiter(*state)?;
                match state {
                    ArbiterState::Gone => "the arbiter is gone".to_owned(),
                    ArbiterState::OneLess => "a member of the arbiter is killed".to_owned(),
                    ArbiterState::Back => "the arbiter is back".to_owned(),
                }
            }
            Action::Disk(all, state) => {
                let hosts = resolve(&self.hosts, all)?;
                for host in &hosts {
                    self.hosts.set_disk(*host, *state)?;
                }
                let disks = list(&hosts);
                match state {
                    DiskState::Well => format!("the disk of {disks} is well"),
                    DiskState::Slow(delay) => {
                        format!("the disk of {disks} needs {} ms more", delay.as_millis())
                    }
                    DiskState::Full => format!("the disk of {disks} is full"),
                }
            }
            Action::Switchover(who, to) => {
                let host = self.hosts.resolve(*who)?;
                self.hosts.hand_over(host, "switchover", *to).await?;
                format!("{host} switched over")
            }
            Action::Migrate(who, to) => {
                let host = self.hosts.resolve(*who)?;
                self.hosts.hand_over(host, "migrate", Some(*to)).await?;
                format!("{host} was migrated to {to}")
            }
            Action::Upgrade(who) => {
                let host = self.hosts.resolve(*who)?;
                self.hosts.stop(host).await;
                self.hosts.upgrade(host);
                self.hosts.start(host, Role::Backup)?;
                format!("{host} is upgraded")
            }
        };
        self.acted_ns = at_ns;
        if action.is_fault() {
            self.faults.push(Fault { at_ns, survivor: None, term: 0 });
            self.progress.fault_at(at_ns, what);
        } else {
            self.progress.detail(what);
        }
        Ok(())
    }

    /// Notes who is the primary after the last fault.
    fn end_fault(&mut self) {
        let record = self.hosts.record();
        if let (Some(fault), Some(record)) = (self.faults.last_mut(), record) {
            fault.survivor = Some(record.holder);
            fault.term = record.term;
        }
    }

    /// Ends the load, reads everything back, asks everybody a last time, and ends the agents.
    async fn end(mut self, halted: Option<String>) -> Result<Played> {
        let stale_before = self.switch.statistics().tunnel.stale;
        tokio::time::sleep(STALE_SILENCE).await;
        let stale_at_end = self.switch.statistics().tunnel.stale - stale_before;
        self.end_fault();
        self.hosts.observe().await;
        self.hosts.weigh();
        let now_ns = self.clock.now_ns();
        let wanted = &self.scenario.expect.holds;
        let held =
            wanted.iter().map(|condition| (condition.clone(), self.holds(condition, now_ns))).collect();
        let protected_by = self.protected_by();
        let fenced = self.hosts.names().filter(|host| self.was_fenced(*host)).collect();
        self.progress.detail("the load ends; everything is read back");
        let end_ns = self.clock.now_ns();
        let Finished { history, broken, read_back } = self.load.finish().await;
        self.hosts.observe().await;
        let live_nodes =
            self.hosts.agents().filter(|agent| agent.is_live()).map(|agent| agent.node.clone()).collect();
        let record = self.hosts.record();
        // How they ended by themselves counts, not how they end now.
        let exits: Vec<_> = self.hosts.agents().map(|agent| agent.seen.exit).collect();
        self.hosts.end().await;
        let agents = self.hosts.agents().zip(exits).map(|(agent, exit)| AgentEvidence {
            node: agent.node.clone(),
            seen: crate::drill::agents::Seen { exit, ..agent.seen.clone() },
            events: timeline::read(&agent.files().timeline, self.clock),
        });
        let machine = Evidence {
            guest: self.scenario.guest,
            seed: self.seed,
            steps: self.progress.steps(),
            unprotected: self.unprotected,
            protected: vec![self.protected],
            halted,
            history,
            broken,
            read_back,
            agents: agents.collect(),
            live_nodes,
            record,
            false_alarms: 0,
        };
        Ok(Played {
            machine,
            faults: self.faults,
            end_ns,
            first_term: self.first_term,
            held,
            fenced,
            protected_by,
            doubled: self.doubled,
            stale_at_end,
            done: (self.done, self.scenario.steps.len()),
        })
    }
}

fn list(hosts: &[Host]) -> String {
    let names: Vec<String> = hosts.iter().map(Host::to_string).collect();
    names.join(" and ")
}
