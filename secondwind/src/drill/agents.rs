//! The agents of a drill as processes: started, watched, asked, killed.
//!
//! An [`Agent`] that is dropped is killed, and the kernel kills it if the drill itself is
//! killed: nothing stays behind.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::agent_status::AgentStatus;
use super::memory;
use crate::control;

/// How long an agent may take to answer; one that is stopped or gone is asked again later.
const ANSWER_PATIENCE: Duration = Duration::from_millis(500);
/// What an agent exits with when another machine took over.
const FENCED_EXIT_STATUS: i32 = 4;
/// How long an agent may take to end in order before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// A running (or ended) `secondwind primary` or `secondwind backup`.
pub struct Agent {
    /// Its node's name.
    pub node: String,
    /// What was seen of it.
    pub seen: Seen,
    child: Child,
    files: AgentFiles,
}

/// What was seen of an agent while it lived.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Its last answer.
    pub status: AgentStatus,
    /// The same as it was given.
    pub answer: serde_json::Value,
    /// The most memory it had, beyond the guest's, in bytes.
    pub overhead_bytes: Option<u64>,
    /// How it ended.
    pub exit: Option<ExitStatus>,
}

/// Where an agent writes.
#[derive(Debug, Clone)]
pub struct AgentFiles {
    /// Its control socket.
    pub control: PathBuf,
    /// Its timeline.
    pub timeline: PathBuf,
    /// What the guest prints there.
    pub console: PathBuf,
    /// Its standard output and error.
    pub messages: PathBuf,
}

impl AgentFiles {
    /// The files of `node` in `folder`.
    pub fn in_folder(folder: &Path, node: &str) -> AgentFiles {
        AgentFiles {
            control: folder.join(format!("{node}.sock")),
            timeline: folder.join(format!("{node}.timeline.jsonl")),
            console: folder.join(format!("{node}.console")),
            messages: folder.join(format!("{node}.log")),
        }
    }
}

impl Agent {
    /// Starts `command` (a `secondwind` with its flags) as the agent of `node`. Must be
    /// called on the drill's main thread: the agent dies with the thread that started it.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start(node: &str, mut command: Command, files: AgentFiles) -> Result<Agent> {
        let messages = File::create(&files.messages)
            .with_context(|| format!("cannot write {}; free some space", files.messages.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(messages.try_clone()?)
            .stderr(messages)
            // Ctrl-C is for the drill, which ends its agents itself.
            .process_group(0);
        die_with_this_thread(&mut command);
        let child = command.spawn().with_context(|| {
            format!("cannot start {}; check that it may be executed", command.get_program().display())
        })?;
        Ok(Agent { node: node.to_owned(), seen: Seen::default(), child, files })
    }

    /// Where it writes.
    pub fn files(&self) -> &AgentFiles {
        &self.files
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process is there. Notes how it ended once it is not.
    pub fn is_running(&mut self) -> bool {
        if self.seen.exit.is_none() {
            self.seen.exit = self.child.try_wait().ok().flatten();
        }
        self.seen.exit.is_none()
    }

    /// Looks at it: its status, where it gives one.
    pub async fn observe(&mut self) {
        if self.is_running()
            && let Some(answer) = self.ask(control::Request::Status).await
        {
            self.seen.status.update(&answer);
            self.seen.answer = answer;
        }
    }

    /// Notes how much memory it takes beyond the guest's.
    pub fn weigh(&mut self, guest_memory_bytes: u64) {
        if !self.is_running() {
            return;
        }
        if let Some(bytes) = memory::overhead_bytes(self.pid(), guest_memory_bytes) {
            self.seen.overhead_bytes = self.seen.overhead_bytes.max(Some(bytes));
        }
    }

    async fn ask(&self, request: control::Request) -> Option<serde_json::Value> {
        tokio::time::timeout(ANSWER_PATIENCE, self.order(request)).await.ok()?.ok()
    }

    /// Gives it an order, and waits for its answer.
    ///
    /// # Errors
    /// When it does not answer, or with what it answered.
    pub async fn order(&self, request: control::Request) -> Result<serde_json::Value> {
        let socket = self.files.control.clone();
        tokio::task::spawn_blocking(move || control::ask(&socket, request)).await?
    }

    /// Sends it a signal. It may have ended meanwhile: then nobody gets it.
    pub fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.pid()) {
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
        }
    }

    /// Whether it runs and is the live machine, by its own word.
    pub fn is_live(&self) -> bool {
        self.seen.exit.is_none() && self.seen.status.is_live()
    }

    /// Whether it stopped because another machine took over: by its own word, or by its exit
    /// status.
    pub fn is_fenced(&self) -> bool {
        // One that knows where the others are goes on as a backup.
        let follows = self.seen.exit.is_none() && self.seen.status.role == "backup";
        let ended = self.seen.exit.and_then(|exit| exit.code()) == Some(FENCED_EXIT_STATUS);
        self.seen.status.is_fenced || follows || ended
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) {
        if self.is_running() {
            // Fails only for a process that ended meanwhile, which `wait` then tells.
            let _ = self.child.kill();
            self.seen.exit = self.child.wait().ok();
        }
    }

    /// Asks it to end in order, and kills it if it does not.
    pub async fn stop(&mut self) {
        if !self.is_running() {
            return;
        }
        if self.ask(control::Request::Stop).await.is_some() {
            let deadline = tokio::time::Instant::now() + STOP_PATIENCE;
            while self.is_running() && tokio::time::Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        self.kill();
    }

    /// How it ended and its last words, in one line.
    pub fn epitaph(&self) -> String {
        let how = match self.seen.exit {
            Some(exit) if exit.signal().is_some() => {
                format!("was killed by signal {}", exit.signal().unwrap_or_default())
            }
            Some(exit) => format!("ended with exit status {}", exit.code().unwrap_or_default()),
            None => "is running".to_owned(),
        };
        match self.last_message() {
            Some(message) => format!("{} {how}: {message}", self.node),
            None => format!("{} {how}", self.node),
        }
    }

    fn last_message(&self) -> Option<String> {
        let mut text = String::new();
        File::open(&self.files.messages).ok()?.read_to_string(&mut text).ok()?;
        let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
        Some(line.trim().to_owned())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Makes the kernel kill the process when the thread that starts it ends, however it ends.
pub fn die_with_this_thread(command: &mut Command) {
    let parent = Pid::this();
    let prepare = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        if Pid::parent() != parent {
            // The drill ended before the line above: nobody would ever send the signal.
            return Err(std::io::Error::from(std::io::ErrorKind::Interrupted));
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed: `prctl` and
    // `getppid` are system calls, and nothing here allocates or takes a lock (the errors are
    // plain numbers).
    unsafe {
        command.pre_exec(prepare);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(script: &str) -> (tempfile::TempDir, Agent) {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let agent = Agent::start("a", command, AgentFiles::in_folder(folder.path(), "a")).unwrap();
        (folder, agent)
    }

    #[test]
    fn a_dropped_agent_is_gone() {
        let (_folder, mut agent) = agent("exec sleep 600");
        let pid = Pid::from_raw(agent.pid() as i32);
        assert!(agent.is_running());
        drop(agent);
        assert!(nix::sys::signal::kill(pid, None).is_err());
    }

    #[test]
    fn an_agent_that_failed_says_why() {
        let (_folder, mut agent) = agent("echo first; echo 'secondwind: the port is taken' >&2; exit 3");
        while agent.is_running() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(agent.epitaph(), "a ended with exit status 3: secondwind: the port is taken");
    }
}
