//! The control socket of an agent: `secondwind status`, `takeover`, `stop`, `checkpoint`, `switchover`
//! and `migrate` talk to a running machine through it. One line of JSON each way; the answer of what
//! takes its time may have lines of progress before it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

use crate::checkpoint::CheckpointRequest;

/// Gives what is shown of an agent, when somebody asks: keeping it up to date would cost an idle one most
/// of what it costs.
pub type Look = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// Shows this.
pub fn showing(value: serde_json::Value) -> Look {
    Arc::new(move || value.clone())
}

/// What an agent can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Writes the machine's state to a file.
    Checkpoint(CheckpointRequest),
    /// Hands the machine to another node.
    Transfer(TransferRequest),
    /// Compares the disks with the backups'.
    CompareDisks,
}

/// To whom a machine is handed, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TransferRequest {
    /// The node. `None`: any backup that could take over.
    pub to: Option<String>,
    /// Waits for the node to join and to come into step, for so many milliseconds at most until
    /// it asks to join. `None`: it must be in step already.
    pub join_within_ms: Option<u64>,
    /// Whether this side goes on as a backup of the new primary, or ends.
    pub keep_source: bool,
}

/// What an agent is told to do.
#[derive(Debug)]
pub enum Order {
    /// Nothing more is answered than that it was accepted.
    Simple(Request),
    /// Each line of the answer is sent when there is something to say; the one who asked has
    /// gone away when the channel is closed.
    Checkpoint(CheckpointRequest, mpsc::UnboundedSender<serde_json::Value>),
    /// As [`Order::Checkpoint`].
    Transfer(TransferRequest, mpsc::UnboundedSender<serde_json::Value>),
    /// As above: what came of [`Request::CompareDisks`].
    CompareDisks(mpsc::UnboundedSender<serde_json::Value>),
}

/// Longest request that is read.
const REQUEST_LIMIT_BYTES: u64 = 64 << 10;
/// How long `secondwind status` waits for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a sign of progress is waited for.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(60);

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
    /// on to `orders`.
    pub async fn serve(self, status: watch::Receiver<Look>, orders: mpsc::Sender<Order>) {
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (status, orders) = (status.clone(), orders.clone());
            tokio::spawn(async move {
                // A client that goes away half-way is its own affair.
                let _ = answer(stream, status, orders).await;
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
    status: watch::Receiver<Look>,
    orders: mpsc::Sender<Order>,
) -> std::io::Result<()> {
    let (reading, mut writing) = stream.split();
    let mut reading = tokio::io::BufReader::new(reading.take(REQUEST_LIMIT_BYTES));
    let mut line = String::new();
    tokio::time::timeout(ANSWER_TIMEOUT, reading.read_line(&mut line)).await??;
    let reply = match serde_json::from_str::<Request>(line.trim()) {
        Ok(Request::Status) => {
            let look = Look::clone(&status.borrow());
            look()
        }
        Ok(request @ (Request::Checkpoint(_) | Request::Transfer(_) | Request::CompareDisks)) => {
            let (lines, mut replies) = mpsc::unbounded_channel();
            let order = match request {
                Request::Checkpoint(request) => Order::Checkpoint(request, lines),
                Request::Transfer(request) => Order::Transfer(request, lines),
                Request::CompareDisks => Order::CompareDisks(lines),
                simple => Order::Simple(simple),
            };
            if orders.try_send(order).is_err() {
                busy()
            } else {
                return pass_on(&mut reading, &mut writing, &mut replies).await;
            }
        }
        Ok(request) => match orders.try_send(Order::Simple(request.clone())) {
            Ok(()) => serde_json::json!({ "accepted": request }),
            Err(_) => busy(),
        },
        Err(error) => serde_json::json!({ "error": format!("not a request: {error}") }),
    };
    writing.write_all(format!("{reply}\n").as_bytes()).await
}

fn busy() -> serde_json::Value {
    serde_json::json!({ "error": "the agent is busy or ending; try again" })
}

/// Passes lines on until the last one, or until the client is gone.
async fn pass_on(
    reading: &mut (impl tokio::io::AsyncRead + Unpin),
    writing: &mut (impl tokio::io::AsyncWrite + Unpin),
    replies: &mut mpsc::UnboundedReceiver<serde_json::Value>,
) -> std::io::Result<()> {
    let mut byte = [0];
    loop {
        tokio::select! {
            // A client that has asked says nothing more: it can only go away.
            _ = reading.read(&mut byte) => return Ok(()),
            reply = replies.recv() => match reply {
                Some(reply) => writing.write_all(format!("{reply}\n").as_bytes()).await?,
                None => return Ok(()),
            },
        }
    }
}

/// Asks the agent at `path`.
pub fn ask(path: &Path, request: Request) -> Result<serde_json::Value> {
    let mut stream = connect(path)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(format!("{}\n", serde_json::to_string(&request)?).as_bytes())?;
    read_reply(&mut BufReader::new(stream), path)
}

/// Asks the agent at `path` to compare its disks with the backups', and waits until it has.
pub fn ask_to_compare_disks(path: &Path) -> Result<serde_json::Value> {
    let mut stream = connect(path)?;
    stream.write_all(format!("{}\n", serde_json::to_string(&Request::CompareDisks)?).as_bytes())?;
    read_reply(&mut BufReader::new(stream), path)
}

/// Asks the agent at `path` for something that takes its time, and waits as long as it makes
/// progress, which is given to `progress` now and then.
pub fn ask_and_wait(
    path: &Path,
    request: &Request,
    mut progress: impl FnMut(&serde_json::Value),
) -> Result<serde_json::Value> {
    let mut stream = connect(path)?;
    stream.set_read_timeout(Some(PROGRESS_TIMEOUT))?;
    stream.write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes())?;
    let mut stream = BufReader::new(stream);
    loop {
        let reply = read_reply(&mut stream, path)?;
        match reply.get("progress") {
            Some(done) => progress(done),
            None => return Ok(reply),
        }
    }
}

fn connect(path: &Path) -> Result<UnixStream> {
    UnixStream::connect(path).with_context(|| {
        format!("no agent answers at {}; start one, or name its socket with --control", path.display())
    })
}

fn read_reply(stream: &mut BufReader<UnixStream>, path: &Path) -> Result<serde_json::Value> {
    let mut line = String::new();
    stream
        .read_line(&mut line)
        .with_context(|| format!("the agent at {} does not answer; it may be stopped", path.display()))?;
    if line.is_empty() {
        bail!("the agent at {} ended before it answered", path.display());
    }
    let reply: serde_json::Value = serde_json::from_str(&line).with_context(|| {
        format!("the agent at {} gave no JSON; is it a secondwind agent?", path.display())
    })?;
    if let Some(error) = reply.get("error").and_then(|error| error.as_str()) {
        bail!("{error}");
    }
    Ok(reply)
}

/// The socket that `word` names: a path, or the name of a machine of which one agent runs here.
/// Without a word, the only one in the runtime folder.
pub fn find_socket(word: Option<&Path>) -> Result<PathBuf> {
    let name = match word {
        Some(path) if path.components().count() > 1 || path.extension().is_some_and(|end| end == "sock") => {
            return Ok(path.to_owned());
        }
        word => word.map(|word| word.display().to_string()),
    };
    let is_of = |socket: &PathBuf| {
        let stem = socket.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        name.as_ref().is_none_or(|name| {
            stem == *name || stem.strip_prefix(name.as_str()).is_some_and(|node| node.starts_with('-'))
        })
    };
    let found: Vec<PathBuf> = known_sockets().into_iter().filter(is_of).collect();
    let alive = |socket: &&PathBuf| UnixStream::connect(socket).is_ok();
    match (found.iter().filter(alive).collect::<Vec<_>>().as_slice(), name) {
        ([only], _) => Ok((*only).clone()),
        ([], Some(name)) => {
            bail!("no machine called {name} of this user runs on this host; see secondwind status")
        }
        ([], None) => {
            bail!("no machine of this user runs on this host; start one, or name its control socket")
        }
        (several, _) => {
            let sockets: Vec<String> = several.iter().map(|socket| socket.display().to_string()).collect();
            bail!("{} machines fit; name one of their control sockets: {}", several.len(), sockets.join(", "))
        }
    }
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
        let (_keep, status) = watch::channel(showing(serde_json::json!({ "role": "primary" })));
        let (commands, mut received) = mpsc::channel(1);
        let server = ControlServer::bind(&path).unwrap();
        let task = tokio::spawn(server.serve(status, commands));

        let asked = path.clone();
        let reply = tokio::task::spawn_blocking(move || ask(&asked, Request::Status)).await.unwrap().unwrap();
        assert_eq!(reply["role"], "primary");
        let asked = path.clone();
        tokio::task::spawn_blocking(move || ask(&asked, Request::Takeover)).await.unwrap().unwrap();
        assert!(matches!(received.recv().await, Some(Order::Simple(Request::Takeover))));

        assert!(ControlServer::bind(&path).is_err(), "the socket of a living agent is not taken");
        task.abort();
        let _ = task.await;
        assert!(!path.exists(), "the socket's file goes with its agent");
        assert!(ask(&path, Request::Status).is_err());
    }
}
