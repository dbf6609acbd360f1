//! Why a port or a switch cannot be opened.

use std::io;
use std::net::SocketAddr;

use crate::spec::Forward;

/// Why a port or a switch cannot be opened. One line each, with the way out.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The kernel has no tun/tap driver, or the container hides it.
    #[error(
        "tap {name}: there is no /dev/net/tun on this host; load the driver (modprobe tun), or do without: --net tunnel:HOST:PORT or --net user --forward HOST:GUEST"
    )]
    TapMissing {
        /// The tap's name.
        name: String,
    },
    /// Creating or attaching needs a capability that this process lacks.
    #[error(
        "tap {name}: this user may not open it, that needs CAP_NET_ADMIN; have root create it for you (ip tuntap add {name} mode tap user $USER), or do without: --net tunnel:HOST:PORT or --net user --forward HOST:GUEST"
    )]
    TapPermission {
        /// The tap's name.
        name: String,
    },
    /// Another process is attached.
    #[error(
        "tap {name}: the name is in use by another process; stop that one, choose another name, or use --net tunnel:HOST:PORT"
    )]
    TapInUse {
        /// The tap's name.
        name: String,
    },
    /// There is a network device of this name that is no single-queue tap.
    #[error(
        "tap {name}: a network device of this name exists and is no tap device; choose another name, or remove it (ip link delete {name})"
    )]
    TapForeign {
        /// The tap's name.
        name: String,
    },
    /// It is down and this process may not bring it up.
    #[error(
        "tap {name}: the device is down and this user may not bring it up; have root do it (ip link set {name} up)"
    )]
    TapDown {
        /// The tap's name.
        name: String,
    },
    /// Anything else that the kernel says about a tap.
    #[error("tap {name}: {doing} failed: {source}; check it with: ip -d link show {name}")]
    TapIo {
        /// The tap's name.
        name: String,
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The switch's host has no address.
    #[error(
        "tunnel: the switch's host {host:?} has no address: {reason}; check the name, or write its address"
    )]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        reason: String,
    },
    /// The tunnel's socket.
    #[error("tunnel to {address}: {doing} failed: {source}; check the address and the route to it")]
    Tunnel {
        /// The switch.
        address: SocketAddr,
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody listens there already.
    #[error("{what} {address}: the port is in use by another process; stop that one or choose another port")]
    AddressInUse {
        /// "switch" or "forward".
        what: &'static str,
        /// Where it was to listen.
        address: SocketAddr,
    },
    /// A port below 1024 without the capability.
    #[error(
        "{what} {address}: this user may not listen on this port; choose one from 1024 on, or grant CAP_NET_BIND_SERVICE"
    )]
    AddressPermission {
        /// "switch" or "forward".
        what: &'static str,
        /// Where it was to listen.
        address: SocketAddr,
    },
    /// No such address here, no descriptors left, and the like.
    #[error("{what} {address}: cannot listen: {source}; check that the address is one of this host's")]
    Listen {
        /// "switch" or "forward".
        what: &'static str,
        /// Where it was to listen.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// A forward to an address that is not on the user network.
    #[error(
        "forward {forward}: the guest's address {} is not one of the user network's guests; expected 10.0.2.1 to 10.0.2.254 without 10.0.2.2, as in 127.0.0.1:8080:80 for 10.0.2.15",
        forward.guest.ip()
    )]
    ForwardOutside {
        /// The forward.
        forward: Forward,
    },
}

impl PortError {
    pub(crate) fn listen(what: &'static str, address: SocketAddr, source: io::Error) -> PortError {
        match source.kind() {
            io::ErrorKind::AddrInUse => PortError::AddressInUse { what, address },
            io::ErrorKind::PermissionDenied => PortError::AddressPermission { what, address },
            _ => PortError::Listen { what, address, source },
        }
    }
}
