//! The lease of a primary: granted, kept alive, and proven.
//!
//! **What is proven.** Until `valid_until` nobody but a registered backup can be made the
//! primary. The proof has no wall clock in it, only the rates of two monotonic clocks:
//!
//! * `sent` is read on this host's clock *before* the request leaves. etcd counts the ttl from
//!   when it handles the request, so later: it ends the lease not before `sent + ttl`, as its
//!   leader's clock counts. A new leader starts the ttl again, which only adds to it.
//! * Two clocks run at different rates. Up to [`CLOCK_RATE_MARGIN_PERCENT`] is allowed for:
//!   `valid_until = sent + ttl x (100 - margin) / 100`. Quartz is off by 0.02 % at most, a
//!   clock that is being slewed by 0.05 %; the margin is thirty times that.
//! * A member that was the leader until a moment ago answers a keep-alive from what it knows,
//!   and the true leader never hears of it. So each answer is confirmed by a linearizable read
//!   from the same member in the same raft term: then a majority followed that leader after it
//!   renewed, and the key was there under our lease.
//! * The host's sleep counts. The ttl is counted on the boot-time clock, which sees it, and
//!   carried over to the monotonic clock, which does not, each time somebody asks.
//!
//! What it cannot prove: that a frame leaves at the moment when its sender looked. A process
//! that is stopped between the two lets go, when it goes on, what it was about to send.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, Error, KeyValue, Txn, TxnOp, WatchOptions};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::{Inner, Stored, View, under, view};
use crate::arbiter::{ArbiterError, Guard, GuardNews, Tell};
use crate::clock::{boot_ns, monotonic_ns};

/// By how much the clocks of two hosts may differ in rate.
pub const CLOCK_RATE_MARGIN_PERCENT: u64 = 2;
/// The lease is renewed this often in a ttl.
const RENEWALS_PER_TTL: u32 = 5;
/// Pause after something failed.
const RETRY: Duration = Duration::from_millis(200);
/// How long [`Guard::release`] blocks at most.
const RELEASE_WITHIN: Duration = Duration::from_millis(500);

/// Keeps the lease of one primacy. See [`Guard`].
pub(super) struct EtcdGuard {
    keeper: Arc<Keeper>,
    runtime: Handle,
    tasks: [AbortHandle; 2],
}

/// What the tasks of a guard share.
struct Keeper {
    inner: Arc<Inner>,
    term: u64,
    node: String,
    tell: Tell,
    validity: Validity,
    /// The lease that is ours, 0 for none, to give it back.
    lease: Mutex<i64>,
    /// Revision of the record that was told last.
    told_revision: Mutex<i64>,
}

/// Until when the lease is good, on the clock that counts the host's sleep too.
#[derive(Default)]
struct Validity {
    until_boot_ns: AtomicU64,
}

/// What became of a try to renew.
enum Renewal {
    /// Good for the ttl from when the request was sent.
    Confirmed { sent_boot_ns: u64, ttl: Duration },
    /// The lease ended, or the key is not under it any more.
    Gone,
    /// The answers do not fit together: etcd was changing its leader.
    Unproven,
}

impl EtcdGuard {
    pub(super) fn start(inner: Arc<Inner>, runtime: Handle, term: u64, node: &str, tell: Tell) -> EtcdGuard {
        let keeper = Arc::new(Keeper {
            inner,
            term,
            node: node.to_owned(),
            tell,
            validity: Validity::default(),
            lease: Mutex::new(0),
            told_revision: Mutex::new(0),
        });
        let keeping = runtime.spawn(Arc::clone(&keeper).keep()).abort_handle();
        let watching = runtime.spawn(Arc::clone(&keeper).watch()).abort_handle();
        EtcdGuard { keeper, runtime, tasks: [keeping, watching] }
    }

    fn stop(&self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Guard for EtcdGuard {
    fn valid_until_ns(&self) -> u64 {
        self.keeper.validity.until_ns(monotonic_ns, boot_ns)
    }

    fn release(self: Box<Self>) {
        self.stop();
        let lease = std::mem::take(&mut *lock(&self.keeper.lease));
        if lease == 0 {
            return;
        }
        let (done, is_done) = std::sync::mpsc::sync_channel(1);
        let keeper = Arc::clone(&self.keeper);
        self.runtime.spawn(async move {
            let ask = move |mut client: Client| async move { client.lease_revoke(lease).await.map(drop) };
            if let Err(error) = keeper.inner.members.call(ask).await {
                tracing::debug!("the lease ends by itself: {error:?}");
            }
            let _ = done.send(());
        });
        // Without an answer it ends by itself.
        let _ = is_done.recv_timeout(RELEASE_WITHIN);
    }
}

impl Drop for EtcdGuard {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Validity {
    /// The request left at `sent_boot_ns`. An answer that comes late shortens nothing.
    fn extend(&self, sent_boot_ns: u64, ttl: Duration) {
        let ttl_ns = u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX);
        let good_ns = ttl_ns / 100 * (100 - CLOCK_RATE_MARGIN_PERCENT);
        self.until_boot_ns.fetch_max(sent_boot_ns.saturating_add(good_ns), Ordering::AcqRel);
    }

    /// The same moment on the monotonic clock; 0 before the first lease.
    fn until_ns(&self, monotonic_ns: impl FnOnce() -> u64, boot_ns: impl FnOnce() -> u64) -> u64 {
        let until_boot_ns = self.until_boot_ns.load(Ordering::Acquire);
        if until_boot_ns == 0 {
            return 0;
        }
        // In this order: what passes between the two makes the moment earlier, never later.
        let now_ns = monotonic_ns();
        let now_boot_ns = boot_ns();
        match until_boot_ns.checked_sub(now_boot_ns) {
            Some(left_ns) => now_ns.saturating_add(left_ns),
            None => now_ns.saturating_sub(now_boot_ns - until_boot_ns),
        }
    }
}

impl Keeper {
    /// Gets the lease, renews it, and gets a new one when it was lost.
    async fn keep(self: Arc<Self>) {
        let mut troubled = false;
        loop {
            let lease = *lock(&self.lease);
            let outcome = if lease == 0 { self.acquire().await } else { self.renew(lease).await };
            let pause = match outcome {
                Ok(Some(ttl)) => {
                    troubled = false;
                    ttl / RENEWALS_PER_TTL
                }
                Ok(None) => RETRY,
                Err(error) => {
                    if !std::mem::replace(&mut troubled, true) {
                        (self.tell)(GuardNews::NotRenewed { text: error.to_string() });
                    }
                    RETRY
                }
            };
            sleep(pause).await;
        }
    }

    /// Tries to become the holder of the lease key. `None`: try again.
    async fn acquire(&self) -> Result<Option<Duration>, ArbiterError> {
        let before = self.inner.view().await?;
        let Some(stored) = self.note(before.record.as_ref())? else { return Ok(None) };
        if !self.is_ours(&stored) {
            return Ok(None);
        }
        let sent_boot_ns = boot_ns();
        let (lease, ttl) = self.grant().await?;
        let keys = &self.inner.keys;
        let lease_revision = before.lease.map_or(0, |kept| kept.mod_revision());
        let claim = Txn::new()
            .when([
                Compare::mod_revision(keys.record.as_str(), CompareOp::Equal, stored.revision),
                Compare::mod_revision(keys.lease.as_str(), CompareOp::Equal, lease_revision),
            ])
            .and_then([TxnOp::put(keys.lease.as_str(), self.lease_text(), under(lease))]);
        if let Some(instead) = self.inner.change(claim).await?
            && instead.lease.is_none_or(|kept| kept.lease() != lease)
        {
            // The record or the lease changed meanwhile; this lease ends by itself.
            return Ok(None);
        }
        *lock(&self.lease) = lease;
        self.confirm(sent_boot_ns, ttl);
        Ok(Some(ttl))
    }

    async fn grant(&self) -> Result<(i64, Duration), ArbiterError> {
        let ttl_s = i64::try_from(self.inner.ttl.as_secs()).unwrap_or(i64::MAX);
        let ask = move |mut client: Client| async move {
            let granted = client.lease_grant(ttl_s, None).await?;
            Ok((granted.id(), seconds(granted.ttl())))
        };
        self.inner.members.call(ask).await.map_err(|error| self.inner.error(error))
    }

    /// Renews the lease. `None`: try again, with a new one if [`Keeper::lease`] says so.
    async fn renew(&self, lease: i64) -> Result<Option<Duration>, ArbiterError> {
        let keys = &self.inner.keys;
        let keys = [&keys.record, &keys.lease, &keys.write].map(String::clone);
        let ask = move |client| renew(client, lease, keys.clone());
        let asked = self.inner.members.call(ask).await;
        let (renewal, record) = asked.map_err(|error| self.inner.error(error))?;
        // A newer record is told before the lease is prolonged.
        let stored = self.note(record.as_ref())?;
        match renewal {
            Renewal::Confirmed { .. } if !stored.is_some_and(|stored| self.is_ours(&stored)) => Ok(None),
            Renewal::Confirmed { sent_boot_ns, ttl } => {
                self.confirm(sent_boot_ns, ttl);
                Ok(Some(ttl))
            }
            Renewal::Gone => {
                *lock(&self.lease) = 0;
                Ok(None)
            }
            Renewal::Unproven => Ok(None),
        }
    }

    fn confirm(&self, sent_boot_ns: u64, ttl: Duration) {
        self.validity.extend(sent_boot_ns, ttl);
        let valid_until_ns = self.validity.until_ns(monotonic_ns, boot_ns);
        (self.tell)(GuardNews::Lease { valid_until_ns });
    }

    /// Tells the record if it is news.
    fn note(&self, kept: Option<&KeyValue>) -> Result<Option<Stored>, ArbiterError> {
        let Some(kept) = kept else { return Ok(None) };
        let stored = self.inner.parse(kept)?;
        // Held while it is told, so that what is told last is the newest.
        let mut told = lock(&self.told_revision);
        if stored.revision > *told {
            *told = stored.revision;
            (self.tell)(GuardNews::Record(stored.record.clone()));
        }
        Ok(Some(stored))
    }

    fn is_ours(&self, stored: &Stored) -> bool {
        stored.record.term == self.term && stored.record.holder == self.node
    }

    fn lease_text(&self) -> String {
        format!("{} in term {}", self.node, self.term)
    }

    /// Tells each new record as soon as etcd does.
    async fn watch(self: Arc<Self>) {
        for turn in 0.. {
            if let Err(text) = self.watch_one(turn).await {
                tracing::debug!("watching the arbiter's record: {text}");
            }
            sleep(RETRY).await;
        }
    }

    /// Watches through one member until the stream ends.
    async fn watch_one(&self, turn: usize) -> Result<(), String> {
        let now = self.inner.view().await.map_err(|error| error.to_string())?;
        self.note(now.record.as_ref()).map_err(|error| error.to_string())?;
        let from_revision = now.record.map_or(1, |kept| kept.mod_revision() + 1);
        let mut client = self.inner.members.connect(turn).await.map_err(|error| format!("{error:?}"))?;
        let options = WatchOptions::new().with_start_revision(from_revision);
        let watched = client.watch(self.inner.keys.record.as_str(), Some(options)).await;
        let mut watched = watched.map_err(|error| error.to_string())?;
        while let Some(answer) = watched.message().await.map_err(|error| error.to_string())? {
            if answer.canceled() {
                return Err(format!("it was cancelled: {}", answer.cancel_reason()));
            }
            for event in answer.events() {
                // A deleted record has no value: the next step finds it gone, and says so.
                let kept = event.kv().filter(|kept| !kept.value().is_empty());
                self.note(kept).map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }
}

/// Asks one member to renew, and the same one whether that holds.
async fn renew(
    mut client: Client,
    lease: i64,
    keys: [String; 3],
) -> Result<(Renewal, Option<KeyValue>), Error> {
    let opened = client.lease_keep_alive(lease).await;
    let (mut keeper, mut answers) = match opened {
        // The crate asks once to open the stream, and gives an ended lease as this error.
        Err(Error::LeaseKeepAliveError(_)) => {
            return Ok((Renewal::Gone, view(client, keys).await?.record));
        }
        opened => opened?,
    };
    let sent_boot_ns = boot_ns();
    keeper.keep_alive().await?;
    let answer = answers.message().await?;
    let answer = answer.ok_or_else(|| Error::LeaseKeepAliveError("the stream ended".into()))?;
    // Filled in before the member passed the request on: see the module.
    let origin = answer.header().map_or((0, 0), |header| (header.raft_term(), header.member_id()));
    let View { record, lease: kept, origin: confirmed_by, .. } = view(client, keys).await?;
    let is_held = answer.ttl() > 0 && kept.is_some_and(|kept| kept.lease() == lease);
    let renewal = if !is_held {
        Renewal::Gone
    } else if origin != confirmed_by {
        Renewal::Unproven
    } else {
        Renewal::Confirmed { sent_boot_ns, ttl: seconds(answer.ttl()) }
    };
    Ok((renewal, record))
}

fn seconds(ttl_s: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl_s).unwrap_or(0))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn a_lease_is_good_from_before_the_request_less_the_margin() {
        let validity = Validity::default();
        assert_eq!(validity.until_ns(|| 3, || 4), 0);
        validity.extend(100 * SECOND_NS, Duration::from_secs(10));
        // The answer is here 1 s after the request left; 7 s on this process's own clock.
        assert_eq!(validity.until_ns(|| 7 * SECOND_NS, || 101 * SECOND_NS), 15_800_000_000);
        // A late answer of an earlier request shortens nothing.
        validity.extend(90 * SECOND_NS, Duration::from_secs(10));
        assert_eq!(validity.until_ns(|| 7 * SECOND_NS, || 101 * SECOND_NS), 15_800_000_000);
    }

    #[test]
    fn what_the_host_slept_is_taken_off() {
        let validity = Validity::default();
        validity.extend(100 * SECOND_NS, Duration::from_secs(10));
        let awake_ns = validity.until_ns(|| 7 * SECOND_NS, || 101 * SECOND_NS);
        let slept_ns = validity.until_ns(|| 7 * SECOND_NS, || 104 * SECOND_NS);
        assert_eq!(awake_ns - slept_ns, 3 * SECOND_NS);
        // An hour: over, and not by way of an overflow.
        assert_eq!(validity.until_ns(|| 8 * SECOND_NS, || 3700 * SECOND_NS), 0);
    }
}
