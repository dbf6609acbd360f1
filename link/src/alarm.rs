//! Timers that others can set nearer, for drivers whose core is fed from several threads.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;
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

/// A thread waits; any other may say that the time it waits for came nearer.
///
/// For a time that comes so often that the way through tokio's timers and its poll would cost more than
/// what there is to do then.
#[derive(Debug)]
pub struct ThreadAlarm {
    /// Who waits, once it does.
    thread: OnceLock<Thread>,
    /// What it waits for; `u64::MAX` while it finds out.
    armed_ns: AtomicU64,
    /// The time came nearer since it began to find out.
    changed: AtomicBool,
}

impl Default for ThreadAlarm {
    fn default() -> Self {
        let (thread, armed_ns) = (OnceLock::new(), AtomicU64::new(u64::MAX));
        ThreadAlarm { thread, armed_ns, changed: AtomicBool::new(false) }
    }
}

impl ThreadAlarm {
    /// The time is now `due_ns` at the latest: wakes the thread if that is news to it.
    pub fn nearer(&self, due_ns: u64) {
        if due_ns < self.armed_ns.load(Ordering::Acquire) {
            self.changed.store(true, Ordering::Release);
            if let Some(thread) = self.thread.get() {
                thread.unpark();
            }
        }
    }

    /// Calls `tick` now, then always at the time that it gave, or when that came nearer, until it
    /// gives none. One thread only.
    pub fn run(&self, mut tick: impl FnMut() -> Option<u64>) {
        self.thread.get_or_init(std::thread::current);
        loop {
            self.changed.store(false, Ordering::Release);
            self.armed_ns.store(u64::MAX, Ordering::Release);
            let Some(due_ns) = tick() else { return };
            self.armed_ns.store(due_ns, Ordering::Release);
            // What `tick` waits for may have taken the token that `unpark` leaves: hence the flag.
            while !self.changed.load(Ordering::Acquire) {
                let left_ns = due_ns.saturating_sub(monotonic_ns());
                if left_ns == 0 {
                    break;
                }
                std::thread::park_timeout(Duration::from_nanos(left_ns.min(LONGEST_SLEEP_NS)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_thread_is_woken_by_a_nearer_time_alone() {
        let alarm = Arc::new(ThreadAlarm::default());
        let (ticked, ticks) = channel();
        let (due, dues) = channel();
        let waiting = Arc::clone(&alarm);
        let thread = std::thread::spawn(move || {
            waiting.run(|| {
                ticked.send(()).unwrap();
                dues.recv().unwrap()
            });
        });
        ticks.recv().unwrap();
        // It finds out: what comes meanwhile is not missed. Else it would wait for centuries.
        alarm.nearer(u64::MAX - 1);
        due.send(Some(u64::MAX)).unwrap();
        ticks.recv().unwrap();
        // A time that is over does not wait at all.
        due.send(Some(0)).unwrap();
        ticks.recv().unwrap();
        due.send(None).unwrap();
        thread.join().unwrap();
        assert!(ticks.recv().is_err(), "one call for each reason");
    }

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
