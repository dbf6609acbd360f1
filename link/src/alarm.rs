//! A timer that others can set nearer, for drivers whose core is fed from several threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::monotonic_ns;

/// Longest sleep without a look at the core.
const LONGEST_SLEEP_NS: u64 = 60_000_000_000;

/// One task waits; any thread may say that the time it waits for came nearer.
#[derive(Debug, Default)]
pub struct Alarm {
    changed: Notify,
    /// What the task waits for; `u64::MAX` while it finds out.
    armed_ns: AtomicU64,
}

impl Alarm {
    /// An alarm that nobody waits for.
    pub fn new() -> Alarm {
        Alarm { changed: Notify::new(), armed_ns: AtomicU64::new(u64::MAX) }
    }

    /// The time is now `due_ns` at the latest: wakes the task if that is news to it.
    pub fn nearer(&self, due_ns: u64) {
        if due_ns < self.armed_ns.load(Ordering::Acquire) {
            self.changed.notify_one();
        }
    }

    /// Waits until the time that `due_ns` gives, or until it came nearer.
    pub async fn wait(&self, due_ns: impl FnOnce() -> u64) {
        // Whoever changes the core between here and the sleep leaves a notification.
        self.armed_ns.store(u64::MAX, Ordering::Release);
        let due_ns = due_ns();
        self.armed_ns.store(due_ns, Ordering::Release);
        let left_ns = due_ns.saturating_sub(monotonic_ns()).min(LONGEST_SLEEP_NS);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_nanos(left_ns)) => {}
            () = self.changed.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_nearer_time_wakes_even_before_the_sleep() {
        let alarm = Alarm::new();
        // Without the notification this would wait for a minute.
        alarm
            .wait(|| {
                alarm.nearer(5);
                u64::MAX
            })
            .await;
        // A time that is over does not wait at all.
        alarm.wait(|| 0).await;
    }
}
