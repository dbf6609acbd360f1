//! The control socket of an agent: `secondwind status` and `secondwind takeover` talk to a
//! running primary or backup through it. One line of JSON each way.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

/// What an agent can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Its present state.
    Status,
    /// The operator's word that this side is, or becomes, the one live machine.
    Takeover,
    /// Ends the agent as Ctrl-C does.
    Stop,
    /// Presses the guest's power button.
    PowerButton,
}

/// Longest request that is read.
const REQUEST_LIMIT_BYTES: u64 = 4096;
/// How long `secondwind status` waits for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The folder that holds the control sockets of this user's agents.
pub fn runtime_folder() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder).join("secondwind"),
        _ if nix::unistd::geteuid().is_root() => PathBuf::from("/run/secondwind"),
        _ => std::env::temp_dir().join(format!("secondwind-{}", nix::unistd::geteuid())),
    }
}

/// Where the agent `node` of the machine `name` listens unless it is told otherwise.
pub fn default_socket(name: &str, node: &str) -> PathBuf {
    runtime_folder().join(format!("{name}-{node}.sock"))
}

/// A listening control socket; its file is removed when it is dropped.
pub struct ControlServer {
    listener: tokio::net::UnixListener,
    path: PathBuf,
}

impl ControlServer {
    /// Listens at `path`. A file left behind by an agent that was killed is replaced; one of
    /// a living agent is an error.
    pub fn bind(path: &Path) -> Result<ControlServer> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}; choose another --control", folder.display()))?;
        }
        if UnixStream::connect(path).is_ok() {
            bail!("another agent listens on {}; stop it, or choose another --control", path.display());
        }
        if std::fs::symlink_metadata(path).is_ok_and(|found| {
            use std::os::unix::fs::FileTypeExt;
            found.file_type().is_socket()
        }) {
            std::fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
        }
        let listener = tokio::net::UnixListener::bind(path)
            .with_context(|| format!("cannot listen on {}; choose another --control", path.display()))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(ControlServer { listener, path: path.to_owned() })
    }

    /// Answers requests until dropped: `Status` from `status`, everything else by passing it
    /// on to `commands`.
    pub async fn serve(self, status: watch::Receiver<serde_json::Value>, commands: mpsc::Sender<Request>) {
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (status, commands) = (status.clone(), commands.clone());
            tokio::spawn(async move {
                // A client that goes away half-way is its own affair.
                let _ = tokio::time::timeout(ANSWER_TIMEOUT, answer(stream, status, commands)).await;
            });
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn answer(
    mut stream: tokio::net::UnixStream,
    status: watch::Receiver<serde_json::Value>,
    commands: mpsc::Sender<Request>,
) -> std::io::Result<()> {
    let (reading, mut writing) = stream.split();
    let mut line = String::new();
    tokio::io::BufReader::new(reading.take(REQUEST_LIMIT_BYTES)).read_line(&mut line).await?;
    let reply = match serde_json::from_str::<Request>(line.trim()) {
        Ok(Request::Status) => status.borrow().clone(),
        Ok(request) => match commands.try_send(request) {
            Ok(()) => serde_json::json!({ "accepted": request }),
            Err(_) => serde_json::json!({ "error": "the agent is busy or ending; try again" }),
        },
        Err(error) => serde_json::json!({ "error": format!("not a request: {error}") }),
    };
    writing.write_all(format!("{reply}\n").as_bytes()).await
}

/// Asks the agent at `path`.
pub fn ask(path: &Path, request: Request) -> Result<serde_json::Value> {
    let mut stream = UnixStream::connect(path).with_context(|| {
        format!("no agent answers at {}; start one, or name its socket with --control", path.display())
    })?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(format!("{}\n", serde_json::to_string(&request)?).as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .with_context(|| format!("the agent at {} does not answer; it may be stopped", path.display()))?;
    let reply: serde_json::Value = serde_json::from_str(&line).with_context(|| {
        format!("the agent at {} gave no JSON; is it a secondwind agent?", path.display())
    })?;
    if let Some(error) = reply.get("error").and_then(|error| error.as_str()) {
        bail!("{error}");
    }
    Ok(reply)
}

/// The sockets of agents in the runtime folder, sorted by name.
pub fn known_sockets() -> Vec<PathBuf> {
    let mut sockets: Vec<PathBuf> = std::fs::read_dir(runtime_folder())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "sock"))
        .collect();
    sockets.sort();
    sockets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn status_is_answered_and_commands_are_passed_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let (_keep, status) = watch::channel(serde_json::json!({ "role": "primary" }));
        let (commands, mut received) = mpsc::channel(1);
        let server = ControlServer::bind(&path).unwrap();
        let task = tokio::spawn(server.serve(status, commands));

        let asked = path.clone();
        let reply = tokio::task::spawn_blocking(move || ask(&asked, Request::Status)).await.unwrap().unwrap();
        assert_eq!(reply["role"], "primary");
        let asked = path.clone();
        tokio::task::spawn_blocking(move || ask(&asked, Request::Takeover)).await.unwrap().unwrap();
        assert_eq!(received.recv().await, Some(Request::Takeover));

        assert!(ControlServer::bind(&path).is_err(), "the socket of a living agent is not taken");
        task.abort();
        let _ = task.await;
        assert!(!path.exists(), "the socket's file goes with its agent");
        assert!(ask(&path, Request::Status).is_err());
    }
}
