//! Packs chunks on threads of its own; they come out in their order.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use log_format::checkpoint_file::{Chunk, ChunkKind, Method};

use super::keys::ChunkCipher;

/// More threads than this would wait for the one that brings the chunks.
const MAX_THREADS: usize = 4;
/// zstd level: its default.
const LEVEL: i32 = 3;
/// Shorter chunks are not worth packing.
const PACK_FROM_BYTES: usize = 64;

/// A chunk ready to be written.
pub struct PackedChunk {
    pub row: Chunk,
    pub stored: Vec<u8>,
}

struct Job {
    number: u32,
    kind: ChunkKind,
    plain: Vec<u8>,
}

/// Packs chunks: compresses, encrypts and hashes.
pub struct Packer {
    jobs: Option<SyncSender<Job>>,
    done: Receiver<(u32, PackedChunk)>,
    threads: Vec<JoinHandle<()>>,
    /// Packed before others that come first.
    early: BTreeMap<u32, PackedChunk>,
    pushed: u32,
    polled: u32,
}

impl Packer {
    pub fn start(cipher: Option<ChunkCipher>) -> std::io::Result<Packer> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let (jobs, waiting) = sync_channel::<Job>(threads);
        let (packed, done) = std::sync::mpsc::channel();
        let waiting = Arc::new(Mutex::new(waiting));
        let cipher = Arc::new(cipher);
        let mut packer = Packer {
            jobs: Some(jobs),
            done,
            threads: Vec::new(),
            early: BTreeMap::new(),
            pushed: 0,
            polled: 0,
        };
        for _ in 0..threads {
            let (waiting, cipher, packed) = (Arc::clone(&waiting), Arc::clone(&cipher), packed.clone());
            let thread = std::thread::Builder::new().name("pack".into());
            packer.threads.push(thread.spawn(move || {
                loop {
                    // The lock is held while waiting for a job: one thread waits, the others pack.
                    let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = job else { return };
                    let number = job.number;
                    if packed.send((number, pack(job, cipher.as_ref().as_ref()))).is_err() {
                        return;
                    }
                }
            })?);
        }
        Ok(packer)
    }

    /// Hands over the next chunk. May wait until a thread is free.
    pub fn push(&mut self, kind: ChunkKind, plain: Vec<u8>) {
        let job = Job { number: self.pushed, kind, plain };
        self.pushed += 1;
        if let Some(jobs) = &self.jobs {
            jobs.send(job).expect("the threads wait for jobs as long as there can be any");
        }
    }

    /// The next chunk in order, if it is packed.
    pub fn poll(&mut self) -> Option<PackedChunk> {
        self.early.extend(self.done.try_iter());
        self.next()
    }

    /// The next chunk in order, waiting for it; `None` when all that were pushed have come.
    pub fn wait(&mut self) -> Option<PackedChunk> {
        loop {
            if let Some(chunk) = self.next() {
                return Some(chunk);
            }
            if self.polled == self.pushed {
                return None;
            }
            let (number, chunk) = self.done.recv().expect("a thread packs what was pushed");
            self.early.insert(number, chunk);
        }
    }

    fn next(&mut self) -> Option<PackedChunk> {
        let chunk = self.early.remove(&self.polled)?;
        self.polled += 1;
        Some(chunk)
    }
}

impl Drop for Packer {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn pack(job: Job, cipher: Option<&ChunkCipher>) -> PackedChunk {
    let Job { number, kind, plain } = job;
    let plain_bytes = plain.len() as u32;
    let packed = if plain.len() >= PACK_FROM_BYTES { zstd::bulk::compress(&plain, LEVEL).ok() } else { None };
    let (method, mut stored) = match packed {
        Some(packed) if packed.len() < plain.len() => (Method::Zstd, packed),
        _ => (Method::Plain, plain),
    };
    if let Some(cipher) = cipher {
        cipher.seal(kind as u8, number, &mut stored);
    }
    let hash = *blake3::hash(&stored).as_bytes();
    PackedChunk { row: Chunk { kind, method, plain_bytes, stored_bytes: stored.len() as u32, hash }, stored }
}
