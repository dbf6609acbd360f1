//! The thread on which increments are packed, beside the machine's.
//!
//! Its queue is bounded. When it is full, the machine's thread keeps the next part itself and
//! takes no more pages until there is room, so that old pages are held, and in the end the
//! guest stands still, rather than memory filling up.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use link::clock::monotonic_ns;

use super::DriverError;
use super::shared::Shared;
use crate::packer::{Packer, ToPacker};

/// Parts that wait to be packed: 8 MiB of pages.
const QUEUE_PARTS: usize = 32;

/// The way to the thread that packs.
pub struct EncoderThread {
    queue: SyncSender<ToPacker>,
    /// What found no room, in order.
    waiting: VecDeque<ToPacker>,
    thread: JoinHandle<()>,
}

impl EncoderThread {
    /// Starts the thread. What it packs goes to the core.
    pub fn start(shared: Arc<Shared>) -> Result<EncoderThread, DriverError> {
        let (queue, inputs) = sync_channel(QUEUE_PARTS);
        let thread = std::thread::Builder::new().name("encoder".into());
        let thread = thread.spawn(move || run(&inputs, &shared)).map_err(DriverError::Thread)?;
        Ok(EncoderThread { queue, waiting: VecDeque::new(), thread })
    }

    /// Whether there is room for more. Sends what waited for it.
    pub fn has_room(&mut self) -> bool {
        while let Some(input) = self.waiting.pop_front() {
            if let Err(TrySendError::Full(input)) = self.queue.try_send(input) {
                self.waiting.push_front(input);
                return false;
            }
        }
        true
    }

    /// Hands something on. What finds no room is kept: pages are taken only while
    /// [`EncoderThread::has_room`], so that it is a part at most, and what follows it.
    pub fn push(&mut self, input: ToPacker) {
        self.waiting.push_back(input);
        // Without room it waits. A thread that ended before its queue panicked, which joining it
        // reports.
        self.has_room();
    }

    /// Ends the thread, once all that it was given is packed.
    pub fn finish(self) {
        let EncoderThread { queue, waiting, thread } = self;
        for input in waiting {
            let _ = queue.send(input);
        }
        drop(queue);
        if thread.join().is_err() {
            tracing::error!("the encoder's thread panicked: the increments after it are lost");
        }
    }
}

fn run(inputs: &Receiver<ToPacker>, shared: &Arc<Shared>) {
    let mut packer = Packer::new(Some(monotonic_ns));
    while let Ok(input) = inputs.recv() {
        if let Some(message) = packer.handle(input) {
            shared.with(|primary, now_ns| primary.handle_machine(message, now_ns));
        }
    }
}
