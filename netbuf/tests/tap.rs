//! Tap devices: the kernel's TCP outside, a guest's TCP inside, each test in a network
//! namespace of its own. They need root, /dev/net/tun and `ip`, and say so when they miss one.

#![allow(clippy::unwrap_used)] // Helpers are tests too.

mod common;

use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddrV4;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{GUEST_ADDRESS, GUEST_MAC, Guest, pattern, port_id, serve_echo};
use netbuf::announce::AddressLearner;
use netbuf::{NetSpec, PortError, PortHandle, port};
use nix::sched::{CloneFlags, unshare};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const GUEST: SocketAddrV4 = SocketAddrV4::new(GUEST_ADDRESS, 7);

/// Runs `test` on a thread in a new network namespace; every socket it makes is in there.
fn in_namespace<Test, Running>(test: Test)
where
    Test: FnOnce() -> Running + Send + 'static,
    Running: Future<Output = ()>,
{
    let outcome = std::thread::spawn(move || {
        if !Path::new("/dev/net/tun").exists() {
            return Err("there is no /dev/net/tun".to_owned());
        }
        if Command::new("ip").arg("-V").output().is_err() {
            return Err("there is no `ip` (package iproute2)".to_owned());
        }
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|error| format!("no network namespace without root: {error}"))?;
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
        Ok(())
    })
    .join();
    match outcome {
        Ok(Ok(())) => {}
        // Past the test harness, which would swallow it.
        Ok(Err(missing)) => {
            let line = format!("tap test NOT RUN: {missing}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
        }
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

async fn open(spec: &str) -> Result<PortHandle, PortError> {
    let spec: NetSpec = spec.parse().unwrap();
    port::open(&spec, port_id("tap"), 1).await
}

async fn refusal(spec: &str) -> PortError {
    match open(spec).await {
        Ok(_) => panic!("{spec} was opened"),
        Err(error) => error,
    }
}

#[test]
fn the_kernel_and_a_guest_talk_through_a_tap() {
    in_namespace(|| async {
        let port = open("tap:sw0").await.unwrap();
        port.sender().set_live(true).unwrap();
        ip("addr add 10.0.2.1/24 dev sw0");
        let guest = Guest::new().plug(port);
        let _echo = serve_echo(guest.host.listen(7, 8).unwrap());
        let (mut reader, mut writer) = TcpStream::connect(GUEST).await.unwrap().into_split();
        let sent = pattern(1 << 20);
        let copy = sent.clone();
        let writing = tokio::spawn(async move {
            writer.write_all(&copy).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.unwrap();
        writing.await.unwrap();
        assert!(received == sent, "{} bytes, or damaged", received.len());
        let statistics = guest.sender.statistics();
        assert!(statistics.sent_bytes > 1 << 20 && statistics.received_bytes > 1 << 20);
    });
}

#[test]
fn a_tap_that_the_administrator_made_is_attached_to() {
    in_namespace(|| async {
        ip("tuntap add sw0 mode tap");
        let port = open("tap:sw0").await.unwrap();
        assert!(ip("-o link show sw0").contains("UP"), "it is brought up");
        drop(port);
        assert!(ip("-o link show sw0").contains("sw0"), "it stays");
    });
}

#[test]
fn a_tap_that_we_made_goes_away_with_us() {
    in_namespace(|| async {
        let port = open("tap:sw0").await.unwrap();
        assert!(ip("-o link show").contains("sw0"));
        drop(port);
        // The receiving task holds the device until the runtime comes to drop it.
        while ip("-o link show").contains("sw0") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn a_name_in_use_and_a_foreign_device_are_refused() {
    in_namespace(|| async {
        let _port = open("tap:sw0").await.unwrap();
        let error = refusal("tap:sw0").await;
        assert!(matches!(error, PortError::TapInUse { .. }), "{error}");
        let error = refusal("tap:lo").await;
        assert!(matches!(error, PortError::TapForeign { .. }), "{error}");
    });
}

#[test]
fn a_quiet_tap_takes_and_gives_nothing() {
    in_namespace(|| async {
        let mut port = open("tap:sw0").await.unwrap();
        ip("addr add 10.0.2.1/24 dev sw0");
        // The kernel asks for the guest, which is not live here.
        let connecting = TcpStream::connect(GUEST);
        let answered = tokio::time::timeout(Duration::from_millis(50), connecting).await;
        assert!(answered.is_err());
        let incoming = tokio::time::timeout(Duration::from_millis(10), port.receive()).await;
        assert!(incoming.is_err());
        let statistics = port.sender().statistics();
        assert!(statistics.dropped_not_live >= 1);
        assert_eq!((statistics.sent_frames, statistics.received_frames), (0, 0));
    });
}

#[test]
fn an_announcement_updates_the_kernels_neighbours() {
    in_namespace(|| async {
        let port = open("tap:sw0").await.unwrap();
        port.sender().set_live(true).unwrap();
        ip("addr add 10.0.2.1/24 dev sw0");
        ip("neigh add 10.0.2.15 lladdr 52:54:00:00:00:99 nud stale dev sw0");
        let mut learner = AddressLearner::new();
        learner.observe(&netbuf::announce::gratuitous_arp_reply(GUEST_MAC, GUEST_ADDRESS));
        for frame in learner.announcement() {
            port.sender().send(frame);
        }
        while !ip("neigh show dev sw0").contains(&GUEST_MAC.to_string()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}
