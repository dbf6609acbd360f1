//! Hosts on a switch: connections over good and bad networks, the gateway's manners.

#![allow(clippy::unwrap_used)] // Helpers are tests too.

mod common;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use bytes::Bytes;
use common::{GUEST_ADDRESS, GUEST_MAC, host_config, pattern, serve_echo, service};
use netbuf::host::Host;
use netbuf::switch::{Switch, SwitchPort};
use netbuf::{GATEWAY_ADDRESS, GATEWAY_MAC, MacAddress};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4Packet, Icmpv4Repr, IpProtocol,
    Ipv4Packet, Ipv4Repr,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CLIENT_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const CLIENT_MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 0x64]);
const SERVICE: SocketAddrV4 = SocketAddrV4::new(GUEST_ADDRESS, 7);

fn server(switch: &Switch) -> Host {
    Host::start(switch.attach(), host_config(GUEST_MAC, GUEST_ADDRESS))
}

fn client(switch: &Switch) -> Host {
    Host::start(switch.attach(), host_config(CLIENT_MAC, CLIENT_ADDRESS))
}

/// Joins two switches by a cable that loses, doubles and delays frames, by the seed.
async fn bad_cable(mut left: SwitchPort, mut right: SwitchPort, mut seed: u64) {
    let mut late: Option<(bool, Bytes)> = None;
    loop {
        let (to_right, frame) = tokio::select! {
            Some(frame) = left.receive() => (true, frame),
            Some(frame) = right.receive() => (false, frame),
            else => return,
        };
        let send = |to_right: bool, frame: Bytes| {
            if to_right {
                right.send(frame);
            } else {
                left.send(frame);
            }
        };
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
        match (seed >> 33) % 20 {
            0 => {}
            1 => {
                send(to_right, frame.clone());
                send(to_right, frame);
            }
            2 if late.is_none() => late = Some((to_right, frame)),
            _ => send(to_right, frame),
        }
        if seed >> 62 == 0
            && let Some((to_right, frame)) = late.take()
        {
            send(to_right, frame);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_arrive_whole_over_a_bad_cable() {
    for seed in 0..8 {
        let (near, far) = (Switch::new(), Switch::new());
        let cable = tokio::spawn(bad_cable(near.attach(), far.attach(), seed));
        let server = server(&far);
        let _echo = serve_echo(server.listen(7, 2).unwrap());
        let client = client(&near);
        let stream = client.connect(SERVICE).await.unwrap();
        let (mut reader, mut writer) = tokio::io::split(stream);
        let sent = pattern(100_000);
        let copy = sent.clone();
        let writing = tokio::spawn(async move {
            writer.write_all(&copy).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.unwrap();
        writing.await.unwrap();
        assert!(received == sent, "seed {seed}: {} bytes, or damaged", received.len());
        cable.abort();
    }
}

#[tokio::test]
async fn a_port_nobody_listens_on_refuses() {
    let switch = Switch::new();
    let _server = server(&switch);
    let error = client(&switch).connect(SERVICE).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn an_address_off_the_network_is_refused() {
    let switch = Switch::new();
    let far = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 7);
    let error = client(&switch).connect(far).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
}

#[tokio::test]
async fn a_full_backlog_refuses_and_accepting_frees_it() {
    let switch = Switch::new();
    let server = server(&switch);
    let mut listener = server.listen(7, 1).unwrap();
    assert_eq!(server.listen(7, 1).err().unwrap().kind(), ErrorKind::AddrInUse);
    let client = client(&switch);
    let _first = client.connect(SERVICE).await.unwrap();
    assert!(client.connect(SERVICE).await.is_err());
    let _accepted = listener.accept().await.unwrap();
    client.connect(SERVICE).await.unwrap();
}

#[tokio::test]
async fn a_stream_dropped_with_unread_data_resets_one_without_ends() {
    let switch = Switch::new();
    let server = server(&switch);
    let mut listener = server.listen(7, 2).unwrap();
    let client = client(&switch);

    let mut stream = client.connect(SERVICE).await.unwrap();
    stream.write_all(b"unread").await.unwrap();
    let mut accepted = listener.accept().await.unwrap();
    accepted.read_u8().await.unwrap();
    drop(accepted);
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(!stream.is_open());

    let mut stream = client.connect(SERVICE).await.unwrap();
    let accepted = listener.accept().await.unwrap();
    assert!(stream.is_open());
    drop(accepted);
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_silent_other_end_is_given_up_only_when_asked() {
    let switch = Switch::new();
    let server = server(&switch);
    let _listener = server.listen(7, 2).unwrap();
    let patient = client(&switch);
    let mut hasty_config = host_config(MacAddress([0x52, 0x54, 0, 0, 0, 9]), Ipv4Addr::new(10, 0, 2, 9));
    hasty_config.give_up_after = Some(Duration::from_millis(60));
    let hasty = Host::start(switch.attach(), hasty_config);
    let mut patient_stream = patient.connect(SERVICE).await.unwrap();
    let mut hasty_stream = hasty.connect(SERVICE).await.unwrap();
    drop(server);
    patient_stream.write_all(b"?").await.unwrap();
    hasty_stream.write_all(b"?").await.unwrap();
    assert!(hasty_stream.read_u8().await.is_err());
    assert!(patient_stream.is_open());
}

#[tokio::test]
async fn the_gateway_answers_arp_and_pings() {
    let service = service(&[]);
    let mut port = service.switch().attach();
    port.send(ping());
    // Before it answers it asks, by ARP, who it is answering.
    let question = port.receive().await.unwrap();
    assert_eq!(question[12..14], [0x08, 0x06]);
    assert_eq!(MacAddress::source_of(&question), Some(GATEWAY_MAC));
    port.send(netbuf::announce::gratuitous_arp_reply(CLIENT_MAC, CLIENT_ADDRESS));
    port.send(arp_for(GATEWAY_ADDRESS));
    let answer = port.receive().await.unwrap();
    assert_eq!(answer[20..22], [0, 2], "an ARP reply");
    assert_eq!(answer[22..28], GATEWAY_MAC.0);
    port.send(ping());
    let pong = port.receive().await.unwrap();
    let ethernet = EthernetFrame::new_checked(&pong[..]).unwrap();
    let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
    assert_eq!(ip.src_addr(), GATEWAY_ADDRESS);
    let icmp = Icmpv4Packet::new_checked(ip.payload()).unwrap();
    let Icmpv4Repr::EchoReply { seq_no, data, .. } =
        Icmpv4Repr::parse(&icmp, &ChecksumCapabilities::default()).unwrap()
    else {
        panic!("no echo reply: {pong:?}");
    };
    assert_eq!((seq_no, data), (3, &b"echo"[..]));
}

fn arp_for(address: Ipv4Addr) -> Bytes {
    let mut frame = netbuf::announce::gratuitous_arp_request(CLIENT_MAC, CLIENT_ADDRESS).to_vec();
    frame[38..42].copy_from_slice(&address.octets());
    frame.into()
}

fn ping() -> Bytes {
    let icmp = Icmpv4Repr::EchoRequest { ident: 1, seq_no: 3, data: b"echo" };
    let ip = Ipv4Repr {
        src_addr: CLIENT_ADDRESS,
        dst_addr: GATEWAY_ADDRESS,
        next_header: IpProtocol::Icmp,
        payload_len: icmp.buffer_len(),
        hop_limit: 64,
    };
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress(CLIENT_MAC.0),
        dst_addr: EthernetAddress(GATEWAY_MAC.0),
        ethertype: EthernetProtocol::Ipv4,
    };
    let mut bytes = vec![0; ethernet.buffer_len() + ip.buffer_len() + icmp.buffer_len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    ethernet.emit(&mut frame);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet, &ChecksumCapabilities::default());
    let mut message = Icmpv4Packet::new_unchecked(packet.payload_mut());
    icmp.emit(&mut message, &ChecksumCapabilities::default());
    bytes.into()
}
