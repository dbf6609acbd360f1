//! A VM for the tests: a TCP/IP host behind a port, where a machine would be.

#![allow(dead_code)] // Each test file uses its own part.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use netbuf::host::{Host, HostConfig, HostListener};
use netbuf::switch::{Switch, SwitchConfig, SwitchPort, SwitchService};
use netbuf::{MacAddress, NetKind, NetSpec, PortHandle, PortId, PortSender, VmId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

pub const GUEST_MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
pub const GUEST_ADDRESS: Ipv4Addr = netbuf::DEFAULT_GUEST_ADDRESS;

pub fn port_id(name: &str) -> PortId {
    PortId { vm: VmId::from_name(name), port: 0 }
}

/// The same stack on both sides, with a short retransmission time so that tests are quick.
pub fn host_config(mac: MacAddress, address: Ipv4Addr) -> HostConfig {
    HostConfig { min_retransmission: Duration::from_millis(20), ..HostConfig::new(mac, address) }
}

/// What runs in a VM, and the end of the cable that leads out of it.
pub struct Guest {
    pub host: Arc<Host>,
    cable: SwitchPort,
}

impl Guest {
    pub fn new() -> Guest {
        let inside = Switch::new();
        let cable = inside.attach();
        let config = host_config(GUEST_MAC, GUEST_ADDRESS);
        let host = Arc::new(Host::start(inside.attach(), config));
        Guest { host, cable }
    }

    /// Puts the cable into a port. Stop the task to pull it out again.
    pub fn plug(self, mut port: PortHandle) -> Plugged {
        let sender = port.sender().clone();
        let Guest { host, mut cable } = self;
        let (unplug, mut unplugged) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(frame) = port.receive() => cable.send(frame),
                    Some(frame) = cable.receive() => port.sender().send(frame),
                    _ = &mut unplugged => return cable,
                    else => return cable,
                }
            }
        });
        Plugged { host, sender, unplug, task }
    }
}

pub struct Plugged {
    pub host: Arc<Host>,
    pub sender: PortSender,
    unplug: tokio::sync::oneshot::Sender<()>,
    task: JoinHandle<SwitchPort>,
}

impl Plugged {
    /// Pulls the cable. The port's sender lives on for whoever cloned it.
    pub async fn unplug(self) -> Guest {
        self.unplug.send(()).expect("plugged in");
        let cable = self.task.await.expect("no panic");
        Guest { host: self.host, cable }
    }
}

pub fn service(forwards: &[&str]) -> SwitchService {
    let config = SwitchConfig {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        forwards: forwards.iter().map(|forward| forward.parse().expect("a forward")).collect(),
    };
    SwitchService::start(&config).expect("a free port")
}

pub fn tunnel_to(address: SocketAddr) -> NetSpec {
    NetSpec { kind: NetKind::Tunnel { host: address.ip().to_string(), port: address.port() }, mac: None }
}

/// Answers every connection with what it says, until it is silent; then ends its side.
pub fn serve_echo(mut listener: HostListener) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 16 << 10];
                loop {
                    match stream.read(&mut buffer).await {
                        Ok(0) | Err(_) => break,
                        Ok(bytes) => {
                            if stream.write_all(&buffer[..bytes]).await.is_err() {
                                break;
                            }
                        }
                    }
                }
                let _ = stream.shutdown().await;
            });
        }
    })
}

/// `bytes` that differ at every place, so that a gap or a swap shows.
pub fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|index| (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}
