//! Measures what a response waits for at least: a message from an operating-system thread
//! (the vCPU's), through TLS to the other side on loopback, and its acknowledgement back.
//! Then how fast the pages of a checkpoint pass.
//!
//! `cargo run --release -p link --example round_trip [-- COUNT]`

use anyhow::Context;
use link::keys::{DEFAULT_VALIDITY, KeyPaths, NodeKeys, generate};
use link::tls::{PairTls, Security};
use link::transport::{Connection, Listener, TransportConfig, connect};
use log_format::{Ack, CheckpointPart, Heartbeat, Message, Moment, Page};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

fn main() -> anyhow::Result<()> {
    let count = match std::env::args().nth(1) {
        Some(count) => count.parse().context("COUNT must be a number")?,
        None => 5000,
    };
    let keys = tempfile::tempdir()?;
    generate(keys.path(), &["alpha", "beta"], DEFAULT_VALIDITY)?;
    let load = |node| security(keys.path(), node);
    println!("{:<28} {:>9} {:>9} {:>9}", "round trips", "p50 us", "p99 us", "max us");
    for (name, server, client, pause) in [
        ("TLS, back to back", load("alpha")?, load("beta")?, Duration::ZERO),
        ("TLS, one a millisecond", load("alpha")?, load("beta")?, Duration::from_millis(1)),
        ("plain, back to back", Security::Insecure, Security::Insecure, Duration::ZERO),
    ] {
        measure(name, server, client, pause, count)?;
    }
    let rate = measure_bulk(load("alpha")?, load("beta")?)?;
    println!("incompressible pages over TLS: {:.0} MB/s", rate / 1e6);
    Ok(())
}

fn security(directory: &Path, node: &str) -> anyhow::Result<Security> {
    let keys = NodeKeys::load(&KeyPaths::in_directory(directory, node))?;
    Ok(Security::Tls(Arc::new(PairTls::new(keys)?)))
}

fn measure(
    name: &str,
    server: Security,
    client: Security,
    pause: Duration,
    count: usize,
) -> anyhow::Result<()> {
    // A runtime each, as two processes have.
    let (primary_runtime, backup_runtime) = (runtime()?, runtime()?);
    let config = TransportConfig::default();
    let mut listener = primary_runtime.block_on(Listener::bind("127.0.0.1:0", server, config))?;
    let addresses = vec![listener.local_address()?.to_string()];
    let dialed = backup_runtime.spawn(async move { connect(&addresses, &client, config).await });
    let primary = primary_runtime.block_on(listener.accept())?;
    let backup = backup_runtime.block_on(dialed)??;
    backup_runtime.spawn(acknowledge(backup));
    let (acknowledged, acknowledgements) = mpsc::channel();
    let mut receiver = primary.receiver;
    primary_runtime.spawn(async move {
        while let Ok(Some(message)) = receiver.receive().await {
            if acknowledged.send(message).is_err() {
                break;
            }
        }
    });

    let mut microseconds = Vec::with_capacity(count);
    for round in 0..count {
        std::thread::sleep(pause);
        let start = now();
        primary.sender.queue(&heartbeat(round as u64))?;
        primary.sender.write_out();
        acknowledgements.recv()?;
        microseconds.push(start.elapsed().as_secs_f64() * 1e6);
    }
    microseconds.sort_by(f64::total_cmp);
    let at = |part: f64| microseconds[((count - 1) as f64 * part) as usize];
    println!("{name:<28} {:>9.1} {:>9.1} {:>9.1}", at(0.5), at(0.99), at(1.0));
    Ok(())
}

/// Bytes of pages per second.
fn measure_bulk(server: Security, client: Security) -> anyhow::Result<f64> {
    const PARTS: u64 = 1000;
    const PAGES: u64 = 64;
    let runtime = runtime()?;
    let config = TransportConfig::default();
    runtime.block_on(async {
        let mut listener = Listener::bind("127.0.0.1:0", server, config).await?;
        let addresses = [listener.local_address()?.to_string()];
        let (primary, backup) = tokio::join!(listener.accept(), connect(&addresses, &client, config));
        let (primary, mut backup) = (primary?, backup?);
        let start = now();
        let receiving = tokio::spawn(async move {
            for _ in 0..PARTS {
                backup.receiver.receive().await?;
            }
            anyhow::Ok(())
        });
        for part in 0..PARTS {
            primary.sender.send(&pages(part * PAGES, PAGES)).await?;
        }
        receiving.await??;
        Ok((PARTS * PAGES * 4096) as f64 / start.elapsed().as_secs_f64())
    })
}

/// Pages that do not compress.
fn pages(first: u64, count: u64) -> Message {
    let page = |index: u64| {
        let mut state = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let words = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        Page { index, data: Some(words.take(512).flatten().collect::<Vec<u8>>().into()) }
    };
    Message::CheckpointPart(CheckpointPart {
        pages: (first..first + count).map(page).collect(),
        blocks: Vec::new(),
    })
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

async fn acknowledge(mut backup: Connection) {
    let mut sequence = 0;
    while let Ok(Some(_)) = backup.receiver.receive().await {
        sequence += 1;
        let ack = Message::Ack(Ack { term: 1, sequence, durable: false });
        if backup.sender.queue(&ack).is_err() {
            break;
        }
        backup.sender.write_out();
    }
}

fn heartbeat(sent_ns: u64) -> Message {
    Message::Heartbeat(Heartbeat {
        term: 1,
        after_sequence: sent_ns,
        sent_ns,
        mark: Some(Moment::BOOT),
        released_outputs: 0,
        required: true,
    })
}

#[expect(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}
