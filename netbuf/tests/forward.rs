//! Forwards end to end: the kernel's TCP outside, a guest's TCP inside.

#![allow(clippy::unwrap_used)] // Helpers are tests too.

mod common;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use common::{Guest, pattern, port_id, serve_echo, service, tunnel_to};
use netbuf::port;
use netbuf::switch::{SwitchConfig, SwitchService};
use netbuf::{NetSpec, PortError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A guest behind a user network with one forward to `guest_port`, and where it listens.
async fn user_guest(guest_port: u16) -> (common::Plugged, SocketAddr) {
    let spec: NetSpec = format!("user,forward=127.0.0.1:0:{guest_port}").parse().unwrap();
    let port = port::open(&spec, port_id("user"), 1).await.unwrap();
    port.sender().set_live(true).unwrap();
    let address = port.sender().forward_addresses()[0];
    (Guest::new().plug(port), address)
}

async fn echo_whole(address: SocketAddr, sent: Vec<u8>) {
    let (mut reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
    let length = sent.len();
    let copy = sent.clone();
    let writing = tokio::spawn(async move {
        writer.write_all(&copy).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut received = Vec::with_capacity(length);
    reader.read_to_end(&mut received).await.unwrap();
    writing.await.unwrap();
    assert!(received == sent, "{} of {length} bytes, or damaged", received.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_megabyte_goes_there_and_back_and_both_ends_close() {
    let (guest, address) = user_guest(7).await;
    let _echo = serve_echo(guest.host.listen(7, 8).unwrap());
    echo_whole(address, pattern(1 << 20)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_at_once() {
    let (guest, address) = user_guest(7).await;
    let _echo = serve_echo(guest.host.listen(7, 64).unwrap());
    let clients: Vec<_> =
        (0..64).map(|number| tokio::spawn(echo_whole(address, pattern(1000 + 97 * number)))).collect();
    for client in clients {
        client.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_close_leaves_the_other_direction_open() {
    let (guest, address) = user_guest(7).await;
    let mut listener = guest.host.listen(7, 8).unwrap();
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut inside = listener.accept().await.unwrap();
    let mut question = String::new();
    inside.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    inside.write_all(b"answer").await.unwrap();
    drop(inside);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guests_reset_resets_the_client() {
    let (guest, address) = user_guest(7).await;
    let mut listener = guest.host.listen(7, 8).unwrap();
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"x").await.unwrap();
    let inside = listener.accept().await.unwrap();
    inside.abort();
    let error = client.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_reset_resets_the_guest() {
    let (guest, address) = user_guest(7).await;
    let mut listener = guest.host.listen(7, 8).unwrap();
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"x").await.unwrap();
    let mut inside = listener.accept().await.unwrap();
    assert_eq!(inside.read_u8().await.unwrap(), b'x');
    client.set_zero_linger().unwrap();
    drop(client);
    let error = inside.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_does_not_listen_refuses_the_client() {
    let (_guest, address) = user_guest(7).await;
    // The reset may come as early as the end of the handshake.
    let refused = async { TcpStream::connect(address).await?.read_u8().await };
    assert_eq!(refused.await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_does_not_read_stops_the_client_and_nothing_is_lost() {
    let (guest, address) = user_guest(7).await;
    let mut listener = guest.host.listen(7, 8).unwrap();
    let sent = pattern(32 << 20);
    let (mut reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
    let copy = sent.clone();
    let mut writing = tokio::spawn(async move {
        writer.write_all(&copy).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut inside = listener.accept().await.unwrap();
    // More than every buffer on the way holds, so the writer must still be waiting.
    let stalled = tokio::time::timeout(Duration::from_millis(300), &mut writing).await;
    assert!(stalled.is_err(), "32 MiB were swallowed with nobody reading");
    let mut received = Vec::new();
    inside.read_to_end(&mut received).await.unwrap();
    assert!(received == sent, "{} bytes, or damaged", received.len());
    writing.await.unwrap();
    drop(inside);
    assert_eq!(reader.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn any_thread_may_set_a_user_network_live() {
    let spec: NetSpec = "user,forward=127.0.0.1:0:7".parse().unwrap();
    let (sender, _incoming) = port::open(&spec, port_id("thread"), 1).await.unwrap().split();
    let addresses = std::thread::spawn(move || {
        sender.set_live(true).unwrap();
        sender.forward_addresses()
    });
    assert_eq!(addresses.join().unwrap().len(), 1);
}

#[tokio::test]
async fn a_port_in_use_is_one_clear_line() {
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let spec: NetSpec = format!("user,forward={address}:7").parse().unwrap();
    let port = port::open(&spec, port_id("taken"), 1).await.unwrap();
    let error = port.sender().set_live(true).unwrap_err();
    assert!(matches!(error, PortError::AddressInUse { .. }), "{error}");
    assert!(error.to_string().contains(&format!("forward {address}")));
    assert!(!port.sender().is_live());

    let switch = service(&[]);
    let config = SwitchConfig { listen: switch.tunnel_address(), forwards: Vec::new() };
    let Err(error) = SwitchService::start(&config) else {
        panic!("two switches at one address");
    };
    assert!(error.to_string().starts_with("switch 127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn a_forward_off_the_network_is_refused() {
    for guest in ["192.0.2.1", "10.0.2.2"] {
        let spec: NetSpec = format!("user,forward=tcp::0-{guest}:7").parse().unwrap();
        let port = port::open(&spec, port_id("outside"), 1).await.unwrap();
        let error = port.sender().set_live(true).unwrap_err();
        assert!(error.to_string().contains(guest), "{error}");
    }
}

#[tokio::test]
async fn the_ports_of_a_closed_network_are_free_again() {
    let spec: NetSpec = "user,forward=127.0.0.1:0:7".parse().unwrap();
    let port = port::open(&spec, port_id("closed"), 1).await.unwrap();
    port.sender().set_live(true).unwrap();
    let address = port.sender().forward_addresses()[0];
    port.sender().set_live(false).unwrap();
    // The listener's task ends a moment after.
    while TcpStream::connect(address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let again: NetSpec = format!("user,forward={address}:7").parse().unwrap();
    let second = port::open(&again, port_id("closed"), 1).await.unwrap();
    second.sender().set_live(true).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forward_reaches_a_guest_on_the_tunnel() {
    let switch = service(&["127.0.0.1:0:7"]);
    let spec = tunnel_to(switch.tunnel_address());
    let port = port::open(&spec, port_id("tunnel"), 1).await.unwrap();
    port.sender().set_live(true).unwrap();
    let guest = Guest::new().plug(port);
    let _echo = serve_echo(guest.host.listen(7, 8).unwrap());
    echo_whole(switch.forward_addresses()[0], pattern(1 << 18)).await;
}
