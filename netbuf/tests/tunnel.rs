//! The tunnel end to end: a switch, VMs on the tunnel, clients that live through a takeover.

#![allow(clippy::unwrap_used)] // Helpers are tests too.

mod common;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use bytes::Bytes;
use common::{GUEST_ADDRESS, GUEST_MAC, Guest, host_config, port_id, serve_echo, service, tunnel_to};
use netbuf::announce::gratuitous_arp_request;
use netbuf::host::{Direction, Host, HostStream};
use netbuf::switch::{Switch, SwitchService};
use netbuf::{MacAddress, PortHandle, port};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CLIENT_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const CLIENT_MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 0x64]);
const ECHO: SocketAddrV4 = SocketAddrV4::new(GUEST_ADDRESS, 7);

fn client(switch: &Switch) -> Host {
    let mut config = host_config(CLIENT_MAC, CLIENT_ADDRESS);
    config.kept_segments = 10_000;
    Host::start(switch.attach(), config)
}

async fn live_port(switch: &SwitchService, term: u64) -> PortHandle {
    let port = quiet_port(switch, term).await;
    port.sender().set_live(true).unwrap();
    port
}

async fn quiet_port(switch: &SwitchService, term: u64) -> PortHandle {
    let spec = tunnel_to(switch.tunnel_address());
    port::open(&spec, port_id("vm"), term).await.unwrap()
}

async fn echo(stream: &mut HostStream, number: u32) {
    stream.write_u32(number).await.unwrap();
    assert_eq!(stream.read_u32().await.unwrap(), number);
}

/// Waits for what other tasks bring about; a test that waits for ever is stopped from outside.
async fn until(mut reached: impl FnMut() -> bool) {
    while !reached() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_outlive_a_takeover() {
    let switch = service(&[]);
    let first = live_port(&switch, 1).await;
    let backup = quiet_port(&switch, 1).await;
    let guest = Guest::new().plug(first);
    let _server = serve_echo(guest.host.listen(7, 8).unwrap());
    let client = client(switch.switch());
    let mut streams = Vec::new();
    for number in 0..8 {
        let mut stream = client.connect(ECHO).await.unwrap();
        echo(&mut stream, number).await;
        streams.push(stream);
    }

    // The first host dies: what is on the way to it is lost.
    let guest = guest.unplug().await;
    for stream in &mut streams {
        stream.write_u32(77).await.unwrap();
    }
    let before = switch.switch().statistics();
    backup.sender().set_term(2);
    backup.sender().set_live(true).unwrap();
    let _guest = guest.plug(backup);
    for stream in &mut streams {
        assert_eq!(stream.read_u32().await.unwrap(), 77);
        echo(stream, 78).await;
        assert!(stream.last_arrival().is_some());
    }
    let after = switch.switch().statistics();
    assert_eq!(after.tunnel.takeovers, before.tunnel.takeovers + 1);
    assert!(after.tunnel.repeated >= 8, "the lost questions went out again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_side_that_takes_over_gets_the_lost_frames_at_once() {
    let switch = service(&[]);
    let mut client = switch.switch().attach();
    let first = live_port(&switch, 1).await;
    first.sender().send(gratuitous_arp_request(GUEST_MAC, GUEST_ADDRESS));
    client.receive().await.unwrap();
    let question: Bytes = [&GUEST_MAC.0[..], &CLIENT_MAC.0, &[0x88, 0xb5], b"question"].concat().into();
    client.send(question.clone());
    let mut second = quiet_port(&switch, 2).await;
    second.sender().set_live(true).unwrap();
    assert_eq!(second.receive().await.unwrap(), question);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_side_is_refused_and_told_so() {
    let switch = service(&[]);
    let mut client = switch.switch().attach();
    let mut stale = live_port(&switch, 1).await;
    stale.sender().send(gratuitous_arp_request(GUEST_MAC, GUEST_ADDRESS));
    client.receive().await.unwrap();
    let mut fresh = live_port(&switch, 2).await;
    until(|| switch.switch().statistics().tunnel.takeovers == 1).await;

    // The stale side goes on: neither its frames nor its hellos count.
    stale.sender().send(gratuitous_arp_request(GUEST_MAC, Ipv4Addr::new(10, 0, 2, 66)));
    until(|| stale.sender().superseded_by() == Some(2)).await;
    assert_eq!(fresh.sender().superseded_by(), None);
    assert!(switch.switch().statistics().tunnel.stale >= 1);
    let fresh_frame = gratuitous_arp_request(GUEST_MAC, GUEST_ADDRESS);
    fresh.sender().send(fresh_frame.clone());
    assert_eq!(client.receive().await.unwrap(), fresh_frame, "nothing stale came before");

    // Traffic to the guest goes to the fresh side only.
    let question: Bytes = [&GUEST_MAC.0[..], &CLIENT_MAC.0, &[0x88, 0xb5], b"question"].concat().into();
    client.send(question.clone());
    assert_eq!(fresh.receive().await.unwrap(), question);
    assert!(tokio::time::timeout(Duration::from_millis(20), stale.receive()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_attracts_and_sends_nothing() {
    let switch = service(&[]);
    let mut client = switch.switch().attach();
    let backup = quiet_port(&switch, 5).await;
    backup.sender().send(gratuitous_arp_request(GUEST_MAC, GUEST_ADDRESS));
    assert_eq!(backup.sender().statistics().dropped_not_live, 1);
    // A primary in a lower term is still accepted: the switch has not heard of the backup.
    let primary = live_port(&switch, 1).await;
    let frame = gratuitous_arp_request(GUEST_MAC, GUEST_ADDRESS);
    primary.sender().send(frame.clone());
    assert_eq!(client.receive().await.unwrap(), frame);
    assert_eq!(switch.switch().statistics().tunnel.stale, 0);
    assert_eq!(primary.sender().superseded_by(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_switchover_leaves_in_order() {
    let switch = service(&[]);
    let guest = Guest::new().plug(live_port(&switch, 1).await);
    let _server = serve_echo(guest.host.listen(7, 8).unwrap());
    let client = client(switch.switch());
    let mut stream = client.connect(ECHO).await.unwrap();
    echo(&mut stream, 1).await;
    guest.sender.set_live(false).unwrap();
    let guest = guest.unplug().await;
    stream.write_u32(2).await.unwrap();
    let _guest = guest.plug(live_port(&switch, 2).await);
    assert_eq!(stream.read_u32().await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vms_on_one_switch_reach_each_other() {
    let switch = service(&[]);
    let guest = Guest::new().plug(live_port(&switch, 1).await);
    let _server = serve_echo(guest.host.listen(7, 8).unwrap());
    let spec = tunnel_to(switch.tunnel_address());
    let mut other = port::open(&spec, port_id("other"), 9).await.unwrap();
    other.sender().set_live(true).unwrap();
    let inside = Switch::new();
    let mut cable = inside.attach();
    let host = Host::start(inside.attach(), host_config(CLIENT_MAC, CLIENT_ADDRESS));
    let _carrying = tokio::spawn(async move {
        loop {
            tokio::select! {
                Some(frame) = other.receive() => cable.send(frame),
                Some(frame) = cable.receive() => other.sender().send(frame),
                else => return,
            }
        }
    });
    let mut stream = host.connect(ECHO).await.unwrap();
    echo(&mut stream, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_sees_its_segments_with_their_times() {
    let switch = service(&[]);
    let guest = Guest::new().plug(live_port(&switch, 1).await);
    let _server = serve_echo(guest.host.listen(7, 8).unwrap());
    let client = client(switch.switch());
    let mut stream = client.connect(ECHO).await.unwrap();
    echo(&mut stream, 4).await;
    let segments = client.take_segments();
    assert!(segments.is_sorted_by_key(|segment| segment.at));
    let data = |direction| {
        segments
            .iter()
            .find(|segment| segment.direction == direction && segment.payload_bytes == 4)
            .expect("a segment of four bytes")
    };
    let (question, answer) = (data(Direction::Out), data(Direction::In));
    assert_eq!((question.source, question.destination), (stream.local_address(), ECHO));
    assert!(question.at <= answer.at);
    assert!(segments[0].syn && segments[0].direction == Direction::Out);
}

#[tokio::test]
async fn a_switch_that_is_not_there_yet_is_found_later() {
    let reserved = service(&[]);
    let address = reserved.tunnel_address();
    drop(reserved);
    let mut port = port::open(&tunnel_to(address), port_id("early"), 1).await.unwrap();
    port.sender().set_live(true).unwrap();
    // Several refusals by ICMP come back before anybody listens.
    for _ in 0..3 {
        port.sender().send(gratuitous_arp_request(GUEST_MAC, GUEST_ADDRESS));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let switch = Switch::new();
    let _tunnel = switch.serve_tunnel(address).unwrap();
    let client = switch.attach();
    let question: Bytes = [&[0xff; 6][..], &CLIENT_MAC.0, &[0x88, 0xb5], b"question"].concat().into();
    let asking = async {
        loop {
            client.send(question.clone());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        frame = port.receive() => assert_eq!(frame.unwrap(), question),
        () = asking => {}
    }
}

#[tokio::test]
async fn frames_that_do_not_fit_are_counted_not_sent() {
    let switch = service(&[]);
    let port = live_port(&switch, 1).await;
    let mut client = switch.switch().attach();
    let frame = |bytes: usize| -> Bytes {
        let mut frame = gratuitous_arp_request(GUEST_MAC, GUEST_ADDRESS).to_vec();
        frame.resize(bytes, 0);
        frame.into()
    };
    port.sender().send(frame(13));
    port.sender().send(frame(netbuf::tunnel::MAX_FRAME_BYTES + 1));
    assert_eq!(port.sender().statistics().dropped_refused, 2);
    for bytes in [14, 9_000 + 14, netbuf::tunnel::MAX_FRAME_BYTES] {
        port.sender().send(frame(bytes));
        assert_eq!(client.receive().await.unwrap().len(), bytes);
    }
    assert_eq!(port.sender().statistics().sent_frames, 3);
}

#[tokio::test]
async fn noise_on_the_tunnels_socket_is_counted() {
    let switch = service(&[]);
    let noisy = std::net::UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let mut state = 0x5eed_u64;
    for round in 0..200usize {
        let bytes: Vec<u8> = (0..round)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        noisy.send_to(&bytes, switch.tunnel_address()).unwrap();
        until(|| switch.switch().statistics().malformed_datagrams == round as u64 + 1).await;
    }
}

#[tokio::test]
async fn a_name_without_address_is_one_clear_line() {
    let spec = "tunnel:no-such-host.invalid:4789".parse().unwrap();
    let Err(error) = port::open(&spec, port_id("vm"), 1).await else {
        panic!("a name that must not exist has an address");
    };
    let error = error.to_string();
    assert!(error.contains("no-such-host.invalid") && !error.contains('\n'), "{error}");
}
