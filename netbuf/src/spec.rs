//! What a user writes after `--net` and `--forward`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::str::FromStr;

use crate::address::{MacAddress, MacAddressError};

/// A network port of a machine: what stands behind its network device.
///
/// Text forms: `tap:NAME`, `tunnel:HOST:PORT`, `user` and `none`, each but the last with
/// `,mac=..`, and `user` with any number of `,forward=HOST:GUEST`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetSpec {
    /// What stands behind the device.
    pub kind: NetKind,
    /// The guest's Ethernet address, when the user chose one.
    pub mac: Option<MacAddress>,
}

/// The kinds of [`NetSpec`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetKind {
    /// A Linux tap device of this name.
    Tap(String),
    /// Ethernet over UDP to a switch elsewhere.
    Tunnel {
        /// Name or address of the switch's host.
        host: String,
        /// Its UDP port.
        port: u16,
    },
    /// A network of its own, 10.0.2.0/24, inside this process.
    User {
        /// Host ports carried to the guest.
        forwards: Vec<Forward>,
    },
    /// No cable: what the guest sends is dropped.
    None,
}

/// The guest's address on the user network, unless a forward names another: as with QEMU.
pub const DEFAULT_GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// A TCP port of the host that is carried to a guest.
///
/// Text forms, as of QEMU's hostfwd: `tcp:127.0.0.1:6379-:6379`,
/// `tcp::6379-10.0.2.15:6379`; and short ones: `6379:6379`, `127.0.0.1:8080:80`. A host
/// address that is left out is 127.0.0.1, so that nothing is opened to the world unasked;
/// write 0.0.0.0 for every address. A guest address that is left out is 10.0.2.15.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Forward {
    /// Where the host listens; port 0 lets the host choose.
    pub host: SocketAddr,
    /// Where the guest listens.
    pub guest: SocketAddrV4,
}

/// Why a [`NetSpec`] or [`Forward`] does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The word before the first colon is none of ours.
    #[error(
        "network {found:?} is of no known kind; expected tap:NAME, tunnel:HOST:PORT, user or none, as in --net tunnel:192.0.2.1:4789"
    )]
    Kind {
        /// What was found.
        found: String,
    },
    /// The tap's name is no name of a Linux network device.
    #[error(
        "tap name {found:?} is not a device name; expected 1 to 15 letters, digits, '.', '_' or '-', as in --net tap:sw0"
    )]
    TapName {
        /// What was found.
        found: String,
    },
    /// The tunnel's other end is not HOST:PORT.
    #[error(
        "tunnel {found:?} names no switch; expected HOST:PORT with a port from 1 to 65535, as in --net tunnel:192.0.2.1:4789 or --net tunnel:[2001:db8::1]:4789"
    )]
    TunnelEnd {
        /// What was found.
        found: String,
    },
    /// An option after a comma is none that this kind has.
    #[error("network option {found:?} is not one of {kind}; expected {expected}, as in --net {example}")]
    Option {
        /// What was found.
        found: String,
        /// The network's kind.
        kind: &'static str,
        /// The options it has.
        expected: &'static str,
        /// A specification that has one.
        example: &'static str,
    },
    /// An option that can be given once is given again.
    #[error("network option {found:?} is given twice; keep one of them")]
    Twice {
        /// The option's name.
        found: &'static str,
    },
    /// `none` or `user` is followed by what it does not take.
    #[error("network {found:?} has something after {kind:?} that it does not take; expected --net {kind}")]
    Excess {
        /// What was found.
        found: String,
        /// The kind.
        kind: &'static str,
    },
    /// The value of `mac=`.
    #[error(transparent)]
    Mac(#[from] MacAddressError),
    /// The value of `forward=`.
    #[error(
        "forward {found:?} has {what}; expected [HOST-ADDRESS:]HOST-PORT:GUEST-PORT or tcp:[HOST-ADDRESS]:HOST-PORT-[GUEST-ADDRESS]:GUEST-PORT, as in 127.0.0.1:8080:80 or tcp:127.0.0.1:8080-:80"
    )]
    Forward {
        /// What was found.
        found: String,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl NetSpec {
    /// No cable.
    pub const NONE: NetSpec = NetSpec { kind: NetKind::None, mac: None };

    /// The forwards of a user network; none for other kinds.
    pub fn forwards(&self) -> &[Forward] {
        match &self.kind {
            NetKind::User { forwards } => forwards,
            _ => &[],
        }
    }
}

impl FromStr for NetSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        let head = parts.next().unwrap_or_default();
        let mut spec = NetSpec { kind: kind_of(head)?, mac: None };
        for option in parts {
            spec.apply(option)?;
        }
        Ok(spec)
    }
}

impl NetSpec {
    fn apply(&mut self, option: &str) -> Result<(), SpecError> {
        let (kind, expected, example) = match self.kind {
            NetKind::Tap(_) => ("tap", "mac=", "tap:sw0,mac=52:54:00:12:34:56"),
            NetKind::Tunnel { .. } => ("tunnel", "mac=", "tunnel:192.0.2.1:4789,mac=52:54:00:12:34:56"),
            NetKind::User { .. } => ("user", "mac= or forward=", "user,forward=8080:80"),
            NetKind::None => {
                return Err(SpecError::Excess { found: format!("none,{option}"), kind: "none" });
            }
        };
        match (option.split_once('='), &mut self.kind) {
            (Some(("mac", value)), _) => {
                if self.mac.replace(value.parse()?).is_some() {
                    return Err(SpecError::Twice { found: "mac" });
                }
            }
            (Some(("forward", value)), NetKind::User { forwards }) => forwards.push(value.parse()?),
            _ => {
                return Err(SpecError::Option { found: option.to_owned(), kind, expected, example });
            }
        }
        Ok(())
    }
}

fn kind_of(head: &str) -> Result<NetKind, SpecError> {
    let (kind, rest) = match head.split_once(':') {
        Some((kind, rest)) => (kind, Some(rest)),
        None => (head, None),
    };
    match (kind, rest) {
        ("tap", name) => tap_name(name.unwrap_or_default()),
        ("tunnel", end) => tunnel_end(end.unwrap_or_default()),
        ("user", None) => Ok(NetKind::User { forwards: Vec::new() }),
        ("none", None) => Ok(NetKind::None),
        ("user", Some(_)) => Err(SpecError::Excess { found: head.to_owned(), kind: "user" }),
        ("none", Some(_)) => Err(SpecError::Excess { found: head.to_owned(), kind: "none" }),
        _ => Err(SpecError::Kind { found: head.to_owned() }),
    }
}

fn tap_name(name: &str) -> Result<NetKind, SpecError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_name = (1..=15).contains(&name.len()) && name.bytes().all(allowed) && name != "." && name != "..";
    if !is_name {
        return Err(SpecError::TapName { found: name.to_owned() });
    }
    Ok(NetKind::Tap(name.to_owned()))
}

fn tunnel_end(end: &str) -> Result<NetKind, SpecError> {
    let refuse = || SpecError::TunnelEnd { found: end.to_owned() };
    let (host, port) = end.rsplit_once(':').ok_or_else(refuse)?;
    let host = match host.strip_prefix('[') {
        Some(address) => address.strip_suffix(']').ok_or_else(refuse)?,
        // More colons outside brackets: an IPv6 address whose end nobody can tell.
        None if host.contains(':') => return Err(refuse()),
        None => host,
    };
    let port: u16 = parse_port(port).ok_or_else(refuse)?;
    if host.is_empty() || port == 0 || host.contains(char::is_whitespace) {
        return Err(refuse());
    }
    Ok(NetKind::Tunnel { host: host.to_owned(), port })
}

/// Digits only: `u16::from_str` would take a sign.
fn parse_port(text: &str) -> Option<u16> {
    if !text.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

impl fmt::Display for NetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            NetKind::Tap(name) => write!(f, "tap:{name}")?,
            NetKind::Tunnel { host, port } if host.contains(':') => {
                write!(f, "tunnel:[{host}]:{port}")?;
            }
            NetKind::Tunnel { host, port } => write!(f, "tunnel:{host}:{port}")?,
            NetKind::User { .. } => f.write_str("user")?,
            NetKind::None => f.write_str("none")?,
        }
        if let Some(mac) = self.mac {
            write!(f, ",mac={mac}")?;
        }
        self.forwards().iter().try_for_each(|forward| write!(f, ",forward={forward}"))
    }
}

impl FromStr for Forward {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |what| SpecError::Forward { found: text.to_owned(), what };
        let (host, guest) = match text.strip_prefix("tcp:") {
            Some(long) => long
                .split_once('-')
                .ok_or_else(|| refuse("no '-' between the host's side and the guest's"))?,
            None if text.starts_with("udp:") => {
                return Err(refuse("a protocol that is not carried; only tcp is"));
            }
            None => text.rsplit_once(':').ok_or_else(|| refuse("only one port"))?,
        };
        let (host_address, host_port) = host.rsplit_once(':').unwrap_or(("", host));
        let (guest_address, guest_port) = guest.rsplit_once(':').unwrap_or(("", guest));
        let host_address = host_address
            .strip_prefix('[')
            .and_then(|address| address.strip_suffix(']'))
            .unwrap_or(host_address);
        let host_address: IpAddr = match host_address {
            "" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            address => address.parse().map_err(|_| refuse("a host address that is not an IP address"))?,
        };
        let guest_address: Ipv4Addr = match guest_address {
            "" => DEFAULT_GUEST_ADDRESS,
            address => address.parse().map_err(|_| refuse("a guest address that is not an IPv4 address"))?,
        };
        let host_port = parse_port(host_port)
            .ok_or_else(|| refuse("a host port that is not a number from 0 to 65535"))?;
        let guest_port = parse_port(guest_port)
            .filter(|port| *port != 0)
            .ok_or_else(|| refuse("a guest port that is not a number from 1 to 65535"))?;
        Ok(Forward {
            host: SocketAddr::new(host_address, host_port),
            guest: SocketAddrV4::new(guest_address, guest_port),
        })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tcp:{}-{}", self.host, self.guest)
    }
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
