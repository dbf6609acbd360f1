//! An arbiter in etcd: the record as a key, and leases for primaries.
//!
//! ```text
//!   PREFIX/VM/record   the record, in the text form of the lock file
//!   PREFIX/VM/write    a random word of the last write, so that a repeated question is known
//!   PREFIX/VM/lease    "NODE in term TERM", under a lease that the primary keeps alive
//! ```
//!
//! All reads are linearizable: they hold even while etcd changes its leader. The record is
//! compared and set in one transaction, on the revision of the record that was read.
//!
//! What the lease is for. Taking over needs no clock: a stale primary releases nothing that
//! its backups did not acknowledge, whoever's lease lives. But a primary without a backup
//! releases freely, and only time can stop it when it is cut off. So: a node that the record
//! does not name as a backup becomes the primary only while no other node's lease lives
//! ([`ArbiterError::LeaseHeld`]), and a primary releases only while its lease is provably
//! good ([`guard`]).

mod config;
mod guard;
mod members;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, Error, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse};

use super::{Arbiter, ArbiterError, CasOutcome, Guard, Tell};
use super::{encode_record, parse_record};
use crate::arbitration::Record;
pub use config::{EtcdConfig, EtcdConfigError};
pub use guard::CLOCK_RATE_MARGIN_PERCENT;
use members::{CallError, Members};

const UNREACHABLE: &str =
    "check that most of its members run and that this host reaches them; the arbiter is asked again";
const REFUSED: &str = "check user, password-file, ca, cert and key of --arbiter etcd:...";

/// Keeps one VM's record in etcd.
pub struct EtcdArbiter {
    inner: Arc<Inner>,
    /// A thread of its own: a lease is kept alive however busy the rest of the process is.
    /// An `Option` only to be ended without waiting, see `drop`.
    runtime: Option<tokio::runtime::Runtime>,
}

/// What the arbiter and its guards share.
struct Inner {
    members: Members,
    keys: Keys,
    vm: String,
    ttl: Duration,
}

/// Names of the keys of one VM.
struct Keys {
    record: String,
    write: String,
    lease: String,
}

/// A record as etcd keeps it.
struct Stored {
    record: Record,
    /// Revision of the store in which it was written.
    revision: i64,
}

/// What is read at once, in one moment of the store.
struct View {
    record: Option<KeyValue>,
    lease: Option<KeyValue>,
    write: Option<KeyValue>,
    /// Raft term and member of the answer.
    origin: (u64, u64),
}

impl EtcdArbiter {
    /// The arbiter of VM `vm` in the cluster that `config` names. Asks it once.
    ///
    /// # Errors
    /// When a file of the configuration cannot be read, etcd does not answer, or the key
    /// holds something else than a record of this VM.
    pub fn open(config: &EtcdConfig, vm: &str) -> Result<EtcdArbiter, ArbiterError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("arbiter")
            .enable_all()
            .build()
            .map_err(|source| ArbiterError::Io {
                action: "start a thread for",
                path: "etcd".into(),
                source,
            })?;
        let key = |name| format!("{}/{vm}/{name}", config.prefix);
        let inner = Inner {
            members: Members::new(config)?,
            keys: Keys { record: key("record"), write: key("write"), lease: key("lease") },
            vm: vm.to_owned(),
            ttl: config.ttl,
        };
        let arbiter = EtcdArbiter { inner: Arc::new(inner), runtime: Some(runtime) };
        arbiter.read()?;
        Ok(arbiter)
    }

    /// Runs `task` on the arbiter's own thread and blocks for its answer.
    fn block<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, ArbiterError>> + Send + 'static,
    ) -> Result<T, ArbiterError> {
        let (answer, answered) = mpsc::sync_channel(1);
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move {
                // Nobody waits any more when the process ends.
                let _ = answer.send(task.await);
            });
        }
        answered.recv().unwrap_or_else(|_| Err(self.inner.unreachable("its thread ended".into())))
    }
}

impl Arbiter for EtcdArbiter {
    fn read(&self) -> Result<Option<Record>, ArbiterError> {
        let inner = Arc::clone(&self.inner);
        self.block(async move { Ok(inner.stored().await?.map(|stored| stored.record)) })
    }

    fn compare_and_set(&self, expected: Option<&Record>, new: &Record) -> Result<CasOutcome, ArbiterError> {
        let (inner, expected, new) = (Arc::clone(&self.inner), expected.cloned(), new.clone());
        self.block(async move { inner.compare_and_set(expected, new).await })
    }

    fn guard(&self, term: u64, node: &str, tell: Tell) -> Option<Box<dyn Guard>> {
        let runtime = self.runtime.as_ref()?.handle().clone();
        Some(Box::new(guard::EtcdGuard::start(Arc::clone(&self.inner), runtime, term, node, tell)))
    }
}

impl Drop for EtcdArbiter {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // The last owner may be a task of another runtime, which must not block.
            runtime.shutdown_background();
        }
    }
}

impl Inner {
    /// Reads the record, the lease and the last write, as of one moment.
    async fn view(&self) -> Result<View, ArbiterError> {
        let keys = [&self.keys.record, &self.keys.lease, &self.keys.write].map(String::clone);
        let ask = move |client| view(client, keys.clone());
        self.members.call(ask).await.map_err(|error| self.error(error))
    }

    async fn stored(&self) -> Result<Option<Stored>, ArbiterError> {
        self.view().await?.record.map(|kept| self.parse(&kept)).transpose()
    }

    fn parse(&self, kept: &KeyValue) -> Result<Stored, ArbiterError> {
        let path = PathBuf::from(format!("etcd key {}", self.keys.record));
        let record = parse_record(kept.value(), &path, &self.vm)?;
        Ok(Stored { record, revision: kept.mod_revision() })
    }

    async fn compare_and_set(
        &self,
        expected: Option<Record>,
        new: Record,
    ) -> Result<CasOutcome, ArbiterError> {
        let current = self.stored().await?;
        if current.as_ref().map(|stored| &stored.record) != expected.as_ref() {
            return Ok(CasOutcome::Lost(current.map(|stored| stored.record)));
        }
        let revision = current.map_or(0, |stored| stored.revision);
        let write = random_word();
        let mut compares = vec![Compare::mod_revision(self.keys.record.as_str(), CompareOp::Equal, revision)];
        let is_outsider = expected.is_some_and(|current| is_outsider(&current, &new));
        if is_outsider {
            compares.push(Compare::create_revision(self.keys.lease.as_str(), CompareOp::Equal, 0));
        }
        let change = Txn::new().when(compares).and_then([
            TxnOp::put(self.keys.record.as_str(), encode_record(&self.vm, &new), None),
            TxnOp::put(self.keys.write.as_str(), write.as_str(), None),
        ]);
        let view = match self.change(change).await? {
            None => return Ok(CasOutcome::Won),
            Some(view) => view,
        };
        if view.write.is_some_and(|kept| kept.value() == write.as_bytes()) {
            // An earlier attempt, whose answer was lost, did it.
            return Ok(CasOutcome::Won);
        }
        let found = view.record.map(|kept| self.parse(&kept)).transpose()?;
        match (found, view.lease) {
            (Some(found), Some(lease)) if is_outsider && found.revision == revision => {
                let (node, term) = (found.record.holder, found.record.term);
                tracing::debug!("{:?} is alive", String::from_utf8_lossy(lease.value()));
                Err(ArbiterError::LeaseHeld { node, term, ttl_s: self.ttl.as_secs() })
            }
            (found, _) => Ok(CasOutcome::Lost(found.map(|stored| stored.record))),
        }
    }

    /// Makes a change on its conditions. Returns what is there instead when they do not hold.
    async fn change(&self, change: Txn) -> Result<Option<View>, ArbiterError> {
        let keys = [&self.keys.record, &self.keys.lease, &self.keys.write].map(String::clone);
        let change = change.or_else(keys.clone().map(|key| TxnOp::get(key, None)));
        let ask = move |mut client: Client| {
            let change = change.clone();
            async move {
                let answer = client.txn(change).await?;
                if answer.succeeded() { Ok(None) } else { View::of(&answer).map(Some) }
            }
        };
        self.members.call(ask).await.map_err(|error| self.error(error))
    }

    fn error(&self, error: CallError) -> ArbiterError {
        match error {
            CallError::Unreachable(detail) => self.unreachable(detail),
            CallError::Refused(detail) => {
                ArbiterError::Etcd { members: self.members.describe(), detail, way_out: REFUSED }
            }
        }
    }

    fn unreachable(&self, detail: String) -> ArbiterError {
        ArbiterError::Etcd { members: self.members.describe(), detail, way_out: UNREACHABLE }
    }
}

/// Whether the change makes a node the primary that the record does not name.
fn is_outsider(current: &Record, new: &Record) -> bool {
    let is_named = new.holder == current.holder || current.counts_on(&new.holder);
    !is_named
}

/// A linearizable read of the three keys: a transaction that only reads is one.
async fn view(mut client: Client, keys: [String; 3]) -> Result<View, Error> {
    let reads = keys.map(|key| TxnOp::get(key, None));
    View::of(&client.txn(Txn::new().and_then(reads)).await?)
}

impl View {
    fn of(answer: &etcd_client::TxnResponse) -> Result<View, Error> {
        let mut found = answer.op_responses().into_iter().map(|response| match response {
            TxnOpResponse::Get(mut get) => Ok(get.take_kvs().pop()),
            _ => Err(Error::Internal("etcd answered a read with something else".into())),
        });
        let mut next = || found.next().transpose().map(Option::flatten);
        let (record, lease, write) = (next()?, next()?, next()?);
        let origin = answer.header().map_or((0, 0), |header| (header.raft_term(), header.member_id()));
        Ok(View { record, lease, write, origin })
    }
}

/// 128 bits that no other write has.
fn random_word() -> String {
    let half = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", half(), half())
}

/// Options of a put under a lease.
fn under(lease: i64) -> Option<PutOptions> {
    Some(PutOptions::new().with_lease(lease))
}

#[cfg(test)]
mod tests;
