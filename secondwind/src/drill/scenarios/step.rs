//! One step of a scenario: when, and what.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};
use link::proxy::{Conditions, Cut};
use serde::Deserialize;

use super::condition::Condition;

/// One of a scenario's hosts: 0 is a.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host(pub usize);

/// Whom a step or a condition is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// This host.
    Host(Host),
    /// The present primary, by the arbiter's record.
    Primary,
    /// The present backup, by the same.
    Backup,
}

/// One step: waits, then acts.
#[derive(Debug, Clone)]
pub struct Step {
    /// Not before this long after the first step's beginning.
    pub at: Duration,
    /// Not before this long after the step before.
    pub after: Duration,
    /// Not before this holds.
    pub wait_for: Option<Condition>,
    /// How long that may take.
    pub within: Duration,
    /// What is done then.
    pub action: Option<Action>,
}

impl Step {
    /// What becomes of a link, if that is what the step does.
    pub fn link_change(&self) -> Option<&LinkChange> {
        match &self.action {
            Some(Action::Link(change)) => Some(change),
            _ => None,
        }
    }
}

/// What a step does.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// SIGKILL to all of them at once.
    Kill(Vec<Who>),
    /// `secondwind stop`.
    Stop(Vec<Who>),
    /// Starts agents.
    Start(Vec<Who>, Role),
    /// Starts every host that has ended, as a backup.
    StartEnded,
    /// SIGSTOP.
    Pause(Vec<Who>),
    /// SIGCONT.
    Resume(Vec<Who>),
    /// What the network between two hosts is like from now on.
    Link(LinkChange),
    /// `secondwind takeover`: the operator's word.
    Takeover(Who),
    /// Whether the arbiter can be reached.
    Arbiter(ArbiterState),
    /// What the disks of hosts are like from now on.
    Disk(Vec<Who>, DiskState),
    /// `secondwind switchover`.
    Switchover(Who, Option<Host>),
    /// `secondwind migrate`, which ends the agent that hands its machine over.
    Migrate(Who, Host),
    /// Stopped in order, and started as a backup with the newer binary.
    Upgrade(Who),
}

/// What an agent is started as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// `secondwind primary`.
    Primary,
    /// `secondwind backup`, of whichever host leads.
    #[default]
    Backup,
    /// `secondwind agent`: what the arbiter's record makes of it.
    Agent,
}

/// Whether the arbiter can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArbiterState {
    /// Every question is an error.
    Gone,
    /// Of an etcd, one member is killed.
    OneLess,
    /// As at the beginning.
    Back,
}

/// What a disk is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskState {
    /// As it should be.
    Well,
    /// Each sync takes so much longer.
    Slow(Duration),
    /// Nothing more can be written.
    Full,
}

/// What becomes of the network between two hosts.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkChange {
    /// The two.
    pub between: (Host, Host),
    /// From the first to the second ...
    pub there: Conditions,
    /// ... and, but for the cut, the same the other way.
    pub back: Conditions,
    /// Whether every connection is closed.
    pub reset: bool,
}

/// `[[step]]` as it stands in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StepTable {
    at_ms: Option<u64>,
    after_ms: Option<u64>,
    wait_for: Option<String>,
    within_ms: Option<u64>,
    kill: Option<OneOrMore>,
    stop: Option<OneOrMore>,
    start: Option<OneOrMore>,
    #[serde(rename = "as")]
    role: Option<Role>,
    pause: Option<OneOrMore>,
    resume: Option<OneOrMore>,
    link: Option<String>,
    cut: Option<String>,
    delay_ms: Option<u64>,
    rate_kbit: Option<u64>,
    lost_percent: Option<f64>,
    corrupted_percent: Option<f64>,
    reset: Option<bool>,
    takeover: Option<String>,
    arbiter: Option<ArbiterState>,
    disk: Option<OneOrMore>,
    slow_ms: Option<u64>,
    full: Option<bool>,
    switchover: Option<String>,
    migrate: Option<String>,
    to: Option<String>,
    upgrade: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a host or a list of hosts")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// How long a condition may take that says nothing of it.
const DEFAULT_WITHIN: Duration = Duration::from_secs(20);
/// How `start` names the hosts that have ended.
const ENDED: &str = "ended";

impl StepTable {
    /// The step, with its hosts among the first `hosts`.
    ///
    /// # Errors
    /// When it says nothing, too much, or of hosts that are not there.
    pub fn check(self, hosts: usize) -> Result<Step> {
        let wait_for = self.wait_for.as_deref().map(|text| Condition::parse(text, hosts)).transpose()?;
        if self.within_ms.is_some() && wait_for.is_none() {
            bail!("within-ms belongs to wait-for; say what is waited for");
        }
        let (at, after) = (self.at_ms, self.after_ms);
        let within = self.within_ms.map_or(DEFAULT_WITHIN, Duration::from_millis);
        let action = self.action(hosts)?;
        if action.is_none() && wait_for.is_none() && at.is_none() && after.is_none() {
            bail!("this step does nothing and waits for nothing");
        }
        let ms = |ms: Option<u64>| Duration::from_millis(ms.unwrap_or(0));
        Ok(Step { at: ms(at), after: ms(after), wait_for, within, action })
    }

    fn action(self, hosts: usize) -> Result<Option<Action>> {
        let all = |words: OneOrMore| words.parse(hosts);
        let who = |word: String| Who::parse(&word, hosts);
        let mut found: Vec<Action> = Vec::new();
        let link = self.link_change(hosts)?;
        let disk = self.disk_state()?;
        let to = self.to.as_deref().map(|word| Host::parse(word, hosts)).transpose()?;
        if to.is_some() && self.switchover.is_none() && self.migrate.is_none() {
            bail!("`to` belongs to switchover or migrate");
        }
        if self.role.is_some() && self.start.is_none() {
            bail!("`as` belongs to start; say which host starts");
        }
        found.extend(link.map(Action::Link));
        found.extend(self.kill.map(all).transpose()?.map(Action::Kill));
        found.extend(self.stop.map(all).transpose()?.map(Action::Stop));
        match self.start {
            Some(OneOrMore::One(word)) if word == ENDED => found.push(Action::StartEnded),
            Some(words) => found.push(Action::Start(all(words)?, self.role.unwrap_or_default())),
            None => {}
        }
        found.extend(self.pause.map(all).transpose()?.map(Action::Pause));
        found.extend(self.resume.map(all).transpose()?.map(Action::Resume));
        found.extend(self.takeover.map(who).transpose()?.map(Action::Takeover));
        found.extend(self.arbiter.map(Action::Arbiter));
        found.extend(self.disk.map(all).transpose()?.map(|hosts| Action::Disk(hosts, disk)));
        found.extend(self.switchover.map(who).transpose()?.map(|from| Action::Switchover(from, to)));
        match (self.migrate.map(who).transpose()?, to) {
            (Some(from), Some(to)) => found.push(Action::Migrate(from, to)),
            (Some(from), None) => bail!("migrate = \"{from}\" needs `to`: the host that goes on"),
            (None, _) => {}
        }
        found.extend(self.upgrade.map(who).transpose()?.map(Action::Upgrade));
        if found.len() > 1 {
            bail!("this step does {} things; make a step of each", found.len());
        }
        Ok(found.pop())
    }

    fn disk_state(&self) -> Result<DiskState> {
        if self.disk.is_none() && (self.slow_ms.is_some() || self.full.is_some()) {
            bail!("slow-ms and full belong to disk; say which host's");
        }
        match (self.slow_ms, self.full.unwrap_or(false)) {
            (Some(_), true) => bail!("a disk is slow or full; choose one"),
            (Some(ms), false) => Ok(DiskState::Slow(Duration::from_millis(ms))),
            (None, true) => Ok(DiskState::Full),
            (None, false) => Ok(DiskState::Well),
        }
    }

    fn link_change(&self, hosts: usize) -> Result<Option<LinkChange>> {
        let Some(link) = &self.link else {
            let stray = [
                ("cut", self.cut.is_some()),
                ("delay-ms", self.delay_ms.is_some()),
                ("rate-kbit", self.rate_kbit.is_some()),
                ("lost-percent", self.lost_percent.is_some()),
                ("corrupted-percent", self.corrupted_percent.is_some()),
                ("reset", self.reset.is_some()),
            ];
            return match stray.iter().find(|(_, given)| *given) {
                Some((name, _)) => bail!("{name} belongs to a link; say which, as link = \"a-b\""),
                None => Ok(None),
            };
        };
        let Some((first, second)) = link.split_once('-') else {
            bail!("{link:?} is no link; name two hosts, as \"a-b\"");
        };
        let between = (Host::parse(first, hosts)?, Host::parse(second, hosts)?);
        if between.0 == between.1 {
            bail!("{link:?} is no link; name two different hosts");
        }
        let both = Conditions {
            delay: Duration::from_millis(self.delay_ms.unwrap_or(0)),
            bytes_per_second: self.rate_kbit.map(|kbit| kbit * 1000 / 8),
            cut: Cut::None,
            lost_per_million: per_million("lost-percent", self.lost_percent)?,
            corrupted_per_million: per_million("corrupted-percent", self.corrupted_percent)?,
        };
        if both.bytes_per_second == Some(0) {
            bail!("rate-kbit = 0 carries nothing; cut the link instead");
        }
        let (cut_there, cut_back) = match self.cut.as_deref() {
            None => (Cut::None, Cut::None),
            Some("both") => (Cut::Both, Cut::Both),
            // As seen from the side that connects: the first to the second, and the second to
            // the first.
            Some(word) if word == format!("to-{second}") => (Cut::ToServer, Cut::ToClient),
            Some(word) if word == format!("to-{first}") => (Cut::ToClient, Cut::ToServer),
            Some(word) => bail!("{word:?} is no cut; choose \"both\", \"to-{first}\" or \"to-{second}\""),
        };
        Ok(Some(LinkChange {
            between,
            there: Conditions { cut: cut_there, ..both },
            back: Conditions { cut: cut_back, ..both },
            reset: self.reset.unwrap_or(false),
        }))
    }
}

impl OneOrMore {
    fn parse(self, hosts: usize) -> Result<Vec<Who>> {
        let words = match self {
            OneOrMore::One(word) => vec![word],
            OneOrMore::More(words) => words,
        };
        if words.is_empty() {
            bail!("a list of no hosts; name at least one");
        }
        words.iter().map(|word| Who::parse(word, hosts)).collect()
    }
}

fn per_million(name: &str, percent: Option<f64>) -> Result<u32> {
    let percent = percent.unwrap_or(0.0);
    if !(0.0..=100.0).contains(&percent) {
        bail!("{name} = {percent} is out of range; choose 0 to 100");
    }
    Ok((percent * 10_000.0).round() as u32)
}

impl Host {
    /// The host of this letter, among the first `hosts`.
    ///
    /// # Errors
    /// When there is none.
    pub fn parse(word: &str, hosts: usize) -> Result<Host> {
        match (0..hosts).map(Host).find(|host| host.to_string() == word) {
            Some(host) => Ok(host),
            None => bail!(
                "there is no host {word:?}; the {hosts} hosts are called {} to {}",
                Host(0),
                Host(hosts - 1)
            ),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", char::from(b'a' + self.0 as u8))
    }
}

impl Who {
    /// A host, `primary` or `backup`.
    ///
    /// # Errors
    /// When it is none of them.
    pub fn parse(word: &str, hosts: usize) -> Result<Who> {
        match word {
            "primary" => Ok(Who::Primary),
            "backup" => Ok(Who::Backup),
            word => Host::parse(word, hosts).map(Who::Host),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Host(host) => host.fmt(f),
            Who::Primary => f.write_str("primary"),
            Who::Backup => f.write_str("backup"),
        }
    }
}

impl Action {
    /// Whether it breaks something, so that a blackout counts from it.
    pub fn is_fault(&self) -> bool {
        match self {
            Action::Kill(_) | Action::Stop(_) | Action::Pause(_) | Action::Upgrade(_) => true,
            Action::Arbiter(state) => *state != ArbiterState::Back,
            Action::Disk(_, state) => *state != DiskState::Well,
            Action::Switchover(..) | Action::Migrate(..) => true,
            Action::Link(change) => change.reset || change.there != Conditions::default(),
            Action::Start(..) | Action::StartEnded | Action::Resume(_) | Action::Takeover(_) => false,
        }
    }
}

impl fmt::Display for LinkChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, second) = self.between;
        write!(f, "the link {first}-{second} ")?;
        let Conditions { delay, bytes_per_second, cut, lost_per_million, corrupted_per_million } = self.there;
        let mut parts = Vec::new();
        match cut {
            Cut::None => {}
            Cut::Both => parts.push("is cut".to_owned()),
            Cut::ToServer => parts.push(format!("carries nothing to {second}")),
            Cut::ToClient => parts.push(format!("carries nothing to {first}")),
        }
        if !delay.is_zero() {
            parts.push(format!("takes {} ms each way", delay.as_millis()));
        }
        if let Some(rate) = bytes_per_second {
            parts.push(format!("carries {} kbit/s", rate * 8 / 1000));
        }
        let percent = |per_million: u32| f64::from(per_million) / 10_000.0;
        if lost_per_million > 0 {
            parts.push(format!("loses {} % of its segments", percent(lost_per_million)));
        }
        if corrupted_per_million > 0 {
            parts.push(format!("corrupts {} % of its segments", percent(corrupted_per_million)));
        }
        if self.reset {
            parts.push("closes its connections".to_owned());
        }
        f.write_str(&if parts.is_empty() { "is whole".to_owned() } else { parts.join(", ") })
    }
}
