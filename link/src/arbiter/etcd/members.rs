//! Questions to whichever member of etcd answers first.
//!
//! Each member has a client of its own. A question goes to the member that answered last; when
//! it is slow or fails, to the next one as well, and the first answer counts. So a dead member
//! costs [`HEDGE`] and not a timeout, as long as a question may be asked twice: the callers see
//! to that.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::config::EtcdConfig;
use crate::arbiter::ArbiterError;

/// How long one member is waited for before another is asked too.
const HEDGE: Duration = Duration::from_millis(250);
/// How long one member may take. A connection that stays silent for as long is given up.
const ATTEMPT: Duration = Duration::from_millis(1500);
/// Pause before each further attempt, once as many failed as there are members.
const PAUSE: Duration = Duration::from_millis(100);
/// etcd ends connections on which it is pinged more often than each 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// The members of the cluster, as far as they are configured.
pub(super) struct Members {
    members: Vec<Arc<Member>>,
    /// Which one answered last.
    preferred: AtomicUsize,
    timeout: Duration,
}

struct Member {
    address: String,
    options: ConnectOptions,
    /// Connected at the first use; dropped when it stays silent.
    client: Mutex<Option<Client>>,
}

/// Why no member answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CallError {
    /// A member refused, and so would the others.
    Refused(String),
    /// None answered in time, and this is what the last one said.
    Unreachable(String),
}

impl Members {
    /// Loads what the files hold; connects to nobody yet.
    pub(super) fn new(config: &EtcdConfig) -> Result<Members, ArbiterError> {
        let options = connect_options(config)?;
        let member = |address: &String| {
            let (address, options) = (address.clone(), options.clone());
            Arc::new(Member { address, options, client: Mutex::default() })
        };
        Ok(Members {
            members: config.endpoints.iter().map(member).collect(),
            preferred: AtomicUsize::new(0),
            timeout: config.timeout,
        })
    }

    /// The members' addresses, for messages.
    pub(super) fn describe(&self) -> String {
        let addresses: Vec<&str> = self.members.iter().map(|member| member.address.as_str()).collect();
        addresses.join(", ")
    }

    /// Asks until a member answers or the configured time is over.
    ///
    /// The question may reach several members, and one that was given up may still be
    /// answered: asking twice must be as good as asking once.
    pub(super) async fn call<T, Asked>(
        &self,
        ask: impl Fn(Client) -> Asked + Clone + Send + Sync + 'static,
    ) -> Result<T, CallError>
    where
        T: Send + 'static,
        Asked: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let deadline = Instant::now() + self.timeout;
        let count = self.members.len();
        let mut running = vec![false; count];
        let mut attempts: JoinSet<(usize, Result<T, CallError>)> = JoinSet::new();
        let mut next = self.preferred.load(Ordering::Relaxed);
        let mut failures = 0;
        let mut last = "no answer".to_owned();
        loop {
            if let Some(index) = (0..count).map(|step| (next + step) % count).find(|&index| !running[index]) {
                let (member, ask) = (Arc::clone(&self.members[index]), ask.clone());
                running[index] = true;
                next = index + 1;
                attempts.spawn(async move { (index, member.ask(ask).await) });
            }
            tokio::select! {
                () = sleep_until(deadline) => return Err(CallError::Unreachable(last)),
                () = sleep(HEDGE) => {}
                Some(done) = attempts.join_next() => match done {
                    Ok((index, Ok(answer))) => {
                        self.preferred.store(index, Ordering::Relaxed);
                        return Ok(answer);
                    }
                    Ok((_, Err(refused @ CallError::Refused(_)))) => return Err(refused),
                    Ok((index, Err(CallError::Unreachable(text)))) => {
                        running[index] = false;
                        last = text;
                        failures += 1;
                        if failures >= count {
                            sleep(PAUSE).await;
                        }
                    }
                    Err(failed) => last = failed.to_string(),
                },
            }
        }
    }

    /// Connects to the next member in turn, for a stream.
    pub(super) async fn connect(&self, turn: usize) -> Result<Client, CallError> {
        let first = self.preferred.load(Ordering::Relaxed);
        self.members[(first + turn) % self.members.len()].client().await
    }
}

impl Member {
    async fn ask<T, Asked>(&self, ask: impl Fn(Client) -> Asked) -> Result<T, CallError>
    where
        Asked: Future<Output = Result<T, Error>>,
    {
        let answer = timeout(ATTEMPT, async { ask(self.client().await?).await.map_err(sorted) }).await;
        match answer {
            Ok(Err(CallError::Unreachable(text))) => {
                Err(CallError::Unreachable(format!("{}: {text}", self.address)))
            }
            Ok(answered) => answered,
            Err(_) => {
                // A new connection does not wait for the old one's retransmissions.
                self.slot().take();
                Err(CallError::Unreachable(format!("{}: no answer", self.address)))
            }
        }
    }

    async fn client(&self) -> Result<Client, CallError> {
        if let Some(client) = self.slot().clone() {
            return Ok(client);
        }
        let made = Client::connect([&self.address], Some(self.options.clone())).await.map_err(sorted)?;
        Ok(self.slot().get_or_insert(made).clone())
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Client>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells what every member would say from what another may not say.
fn sorted(error: Error) -> CallError {
    // The codes are gRPC's: 3 invalid argument, 7 permission denied, 9 failed precondition,
    // 16 unauthenticated.
    match &error {
        Error::GRpcStatus(status) => match i32::from(status.code()) {
            // An expired token is a new connection's business, not the user's.
            16 if status.message().contains("token") => CallError::Unreachable(status.message().to_owned()),
            3 | 7 | 9 | 16 => CallError::Refused(status.message().to_owned()),
            _ => CallError::Unreachable(first_line(status.message())),
        },
        Error::InvalidArgs(_) | Error::InvalidUri(_) => CallError::Refused(error.to_string()),
        _ => CallError::Unreachable(first_line(&error.to_string())),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn connect_options(config: &EtcdConfig) -> Result<ConnectOptions, ArbiterError> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(ATTEMPT)
        .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
        // A member that lost the others says so instead of letting a stream wait.
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some(ca) = &config.ca {
        let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(load(ca)?));
        if let Some((cert, key)) = &config.identity {
            tls = tls.identity(Identity::from_pem(load(cert)?, load(key)?));
        }
        options = options.with_tls(tls);
    }
    if let Some((user, file)) = &config.user {
        let text = load(file)?;
        let password = first_line(&String::from_utf8_lossy(&text));
        options = options.with_user(user, password);
    }
    Ok(options)
}

fn load(path: &Path) -> Result<Vec<u8>, ArbiterError> {
    std::fs::read(path).map_err(|source| ArbiterError::EtcdFile { path: path.to_owned(), source })
}
