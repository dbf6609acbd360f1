//! A scenario as a TOML file, parsed once into what can be played. docs/drill.md describes
//! every key.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Deserialize;
use toml::Spanned;

use super::condition::Condition;
use super::step::{Host, Step, StepTable};
use crate::drill::args::Guest;
use crate::options::parse_size_bytes;

/// What is set up, what is done to it, and what must come of it.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// In lower case, digits and hyphens.
    pub name: String,
    /// One sentence.
    pub description: String,
    /// What runs in the machine.
    pub guest: Guest,
    /// Its memory.
    pub memory_bytes: u64,
    /// Hosts there are, called a, b, c, ...
    pub hosts: usize,
    /// How many of them back up the first when the steps begin.
    pub backups: usize,
    /// How the agents are started.
    pub agents: AgentTable,
    /// What the clients do.
    pub load: LoadTable,
    /// What is done.
    pub steps: Vec<Step>,
    /// What must come of it.
    pub expect: Expectation,
}

/// Table `[agents]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AgentTable {
    /// Who decides a takeover.
    #[serde(default)]
    pub arbiter: ArbiterKind,
    /// As `--mode`.
    pub mode: Option<Mode>,
    /// As `--durability`.
    pub durability: Option<Durability>,
    /// As `--release`.
    pub release: Option<Release>,
    /// Highest version of the protocol that hosts speak before they are upgraded.
    pub protocol: Option<u8>,
    /// Whether the hosts keep their logs on disk.
    #[serde(default)]
    pub log: bool,
    /// Whether a primary knows the other hosts, and so goes on as a backup once it is replaced.
    pub peers: Option<bool>,
    /// As `--heartbeat-ms`.
    pub heartbeat_ms: Option<u64>,
    /// As `--detection-floor-ms`.
    pub detection_floor_ms: Option<u64>,
    /// As `--on-backup-loss`.
    pub on_backup_loss: Option<String>,
    /// Further flags of every agent.
    #[serde(default)]
    pub options: Vec<String>,
}

/// Who decides a takeover.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArbiterKind {
    /// A file on storage that the hosts share.
    #[default]
    Lock,
    /// The operator.
    Manual,
    /// A real etcd of three members.
    Etcd,
}

/// A protection mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The log is shipped and executed along.
    Replay,
    /// The log is shipped, and a checkpoint now and then.
    Hybrid,
    /// Checkpoints are shipped.
    Checkpoint,
    /// Whichever fits.
    Auto,
}

/// When something counts as held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// When it was received.
    Memory,
    /// When it is on disk.
    Disk,
}

/// How many backups must hold an output before it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Release {
    /// Every one.
    All,
    /// More than half.
    Quorum,
    /// One.
    Any,
}

/// Table `[load]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LoadTable {
    /// TCP connections.
    pub connections: Option<u16>,
    /// Mean time from one request of a connection to its next, in milliseconds.
    pub interval_ms: Option<u64>,
    /// Out of a hundred requests, how many set a key.
    pub put_percent: Option<u64>,
}

/// What must come of a scenario, beyond what must always hold.
#[derive(Debug, Clone, Default)]
pub struct Expectation {
    /// How many takeovers and switchovers there were; `None` where it may be any number.
    pub takeovers: Option<u64>,
    /// The host that is live at the end.
    pub live: Option<Host>,
    /// Hosts that learned that another one took over.
    pub fenced: Vec<Host>,
    /// How the last agent of a host ended.
    pub exit: BTreeMap<Host, Exit>,
    /// Whether a backup is counted on at the end.
    pub protected: bool,
    /// Whether digests were compared.
    pub digests: bool,
    /// Longest blackout in milliseconds.
    pub blackout_ms: Option<f64>,
    /// What else must hold at the end.
    pub holds: Vec<Condition>,
}

/// How an agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "ExitWord")]
pub enum Exit {
    /// With this status.
    Status(i32),
    /// By a signal.
    Killed,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected an exit status or \"killed\"")]
enum ExitWord {
    Status(i32),
    Word(String),
}

impl TryFrom<ExitWord> for Exit {
    type Error = String;

    fn try_from(word: ExitWord) -> Result<Exit, String> {
        match word {
            ExitWord::Status(status) => Ok(Exit::Status(status)),
            ExitWord::Word(word) if word == "killed" => Ok(Exit::Killed),
            ExitWord::Word(word) => Err(format!("{word:?} is no exit; write a status or \"killed\"")),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ScenarioTable {
    name: Spanned<String>,
    description: String,
    #[serde(default)]
    guest: GuestWord,
    memory: Option<Spanned<String>>,
    hosts: Option<Spanned<usize>>,
    backups: Option<Spanned<usize>>,
    #[serde(default)]
    agents: AgentTable,
    #[serde(default)]
    load: LoadTable,
    #[serde(default)]
    step: Vec<Spanned<StepTable>>,
    expect: Option<Spanned<ExpectTable>>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum GuestWord {
    #[default]
    Ledger,
    Debian,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ExpectTable {
    takeovers: Takeovers,
    live: Option<String>,
    #[serde(default)]
    fenced: Vec<String>,
    #[serde(default)]
    exit: BTreeMap<String, Exit>,
    protected: Option<bool>,
    digests: Option<bool>,
    blackout_ms: Option<f64>,
    #[serde(default)]
    holds: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number of takeovers or \"any\"")]
enum Takeovers {
    Number(u64),
    Any(AnyWord),
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum AnyWord {
    Any,
}

/// Hosts of a scenario that does not say how many.
const DEFAULT_HOSTS: usize = 2;
/// More are not named by a letter of this length of alphabet.
pub const MOST_HOSTS: usize = 8;

impl Scenario {
    /// Parses the text of a file, which messages call `shown`.
    ///
    /// # Errors
    /// One line that begins with the file and the line of the mistake.
    pub fn parse(text: &str, shown: &str) -> Result<Scenario> {
        let line_of = |at: usize| 1 + text[..at.min(text.len())].matches('\n').count();
        let table: ScenarioTable = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(span.start));
            anyhow::anyhow!("{shown}:{line}: {}", error.message().replace('\n', "; "))
        })?;
        table.check(&|at, error| anyhow::anyhow!("{shown}:{}: {error:#}", line_of(at)))
    }
}

/// Makes an error of what is wrong at a place of the file.
type At<'a> = &'a dyn Fn(usize, anyhow::Error) -> anyhow::Error;

impl ScenarioTable {
    fn check(self, at: At<'_>) -> Result<Scenario> {
        let start = |spanned: &Option<Spanned<usize>>| spanned.as_ref().map_or(0, |value| value.span().start);
        let (hosts_at, backups_at) = (start(&self.hosts), start(&self.backups));
        check_name(self.name.get_ref()).map_err(|error| at(self.name.span().start, error))?;
        let hosts = self.hosts.map_or(DEFAULT_HOSTS, Spanned::into_inner);
        if !(1..=MOST_HOSTS).contains(&hosts) {
            return Err(at(
                hosts_at,
                anyhow::anyhow!("hosts = {hosts} is out of range; choose 1 to {MOST_HOSTS}"),
            ));
        }
        let backups = self.backups.map_or(1.min(hosts - 1), Spanned::into_inner);
        if backups >= hosts {
            let error = anyhow::anyhow!("{backups} backups need {} hosts, there are {hosts}", backups + 1);
            return Err(at(backups_at, error));
        }
        let guest = match self.guest {
            GuestWord::Ledger => Guest::Ledger,
            GuestWord::Debian => Guest::Debian,
        };
        let memory_bytes = match &self.memory {
            Some(size) => parse_size_bytes(size.get_ref()).map_err(|error| at(size.span().start, error))?,
            None => guest.memory_bytes(),
        };
        let check_step = |step: Spanned<StepTable>| {
            let start = step.span().start;
            step.into_inner().check(hosts).map_err(|error| at(start, error))
        };
        let steps: Vec<Step> = self.step.into_iter().map(check_step).collect::<Result<_>>()?;
        let Some(expect) = self.expect else {
            return Err(at(0, anyhow::anyhow!("the table expect is missing; say what must come of it")));
        };
        let expect_at = expect.span().start;
        let expect = expect.into_inner().check(hosts).map_err(|error| at(expect_at, error))?;
        Ok(Scenario {
            name: self.name.into_inner(),
            description: self.description,
            guest,
            memory_bytes,
            hosts,
            backups,
            agents: self.agents,
            load: self.load,
            steps,
            expect,
        })
    }
}

impl ExpectTable {
    fn check(self, hosts: usize) -> Result<Expectation> {
        let host = |word: &String| Host::parse(word, hosts);
        let exit = self.exit.iter().map(|(word, exit)| Ok((host(word)?, *exit)));
        Ok(Expectation {
            takeovers: match self.takeovers {
                Takeovers::Number(number) => Some(number),
                Takeovers::Any(AnyWord::Any) => None,
            },
            live: self.live.as_ref().map(host).transpose()?,
            fenced: self.fenced.iter().map(host).collect::<Result<_>>()?,
            exit: exit.collect::<Result<_>>()?,
            protected: self.protected.unwrap_or(true),
            digests: self.digests.unwrap_or(true),
            blackout_ms: self.blackout_ms,
            holds: self.holds.iter().map(|text| Condition::parse(text, hosts)).collect::<Result<_>>()?,
        })
    }
}

impl AgentTable {
    /// The flags that follow from it.
    pub fn flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        let mut add = |name: &str, value: Option<String>| {
            flags.extend(value.into_iter().flat_map(|value| [name.to_owned(), value]));
        };
        let word = |choice: String| choice.to_lowercase();
        add("--mode", self.mode.map(|mode| word(format!("{mode:?}"))));
        add("--durability", self.durability.map(|durability| word(format!("{durability:?}"))));
        add("--release", self.release.map(|release| word(format!("{release:?}"))));
        add("--heartbeat-ms", self.heartbeat_ms.map(|ms| ms.to_string()));
        add("--detection-floor-ms", self.detection_floor_ms.map(|ms| ms.to_string()));
        add("--on-backup-loss", self.on_backup_loss.clone());
        flags.extend(self.options.iter().cloned());
        flags
    }
}

impl AgentTable {
    /// Whether the hosts keep their logs on disk.
    pub fn keeps_logs(&self) -> bool {
        self.log || self.durability == Some(Durability::Disk)
    }
}

impl LoadTable {
    /// Time from one request of a connection to its next, where it is said.
    pub fn interval(&self) -> Option<Duration> {
        self.interval_ms.map(Duration::from_millis)
    }
}

/// A name can stand in a file's name and on a command line.
fn check_name(name: &str) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > 40 || !name.bytes().all(fits) {
        bail!("{name:?} is no name of a scenario; use up to 40 lower-case letters, digits and hyphens");
    }
    Ok(())
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
