//! The stack of one host: smoltcp, its device and its clock.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use bytes::Bytes;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration as StackDuration, Instant as StackInstant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Cidr};

use super::HostConfig;
use super::segment::{Direction, Segment};
use crate::switch::SwitchSender;

/// Payload of a frame: what every guest takes without being asked.
const MTU_BYTES: usize = 1500;
const ETHERNET_HEADER_BYTES: usize = 14;
/// Local ports of connections (RFC 6335's dynamic range).
const FIRST_LOCAL_PORT: u16 = 49_152;
/// smoltcp rounds every retransmission timeout up to this (RFC 6298, 2.4), fixed.
const STACK_MIN_RETRANSMISSION: Duration = Duration::from_secs(1);
/// An abandoned connection whose other end stays silent is forgotten after this, host time.
const ABANDONED_LIFETIME: Duration = Duration::from_secs(60);

/// All of it, behind one lock.
pub(crate) struct Stack {
    config: HostConfig,
    clock: Clock,
    interface: Interface,
    sockets: SocketSet<'static>,
    device: Wire,
    next_local_port: u16,
    /// Streams and listeners that are gone, whose connections are not.
    abandoned: Vec<Abandoned>,
    /// The connections of streams, by this end's port and the other end.
    connections: HashMap<(u16, SocketAddrV4), Connection>,
    /// Until when the host's task sleeps.
    armed: Option<Instant>,
}

/// What is remembered of a connection beside its socket.
struct Connection {
    handle: SocketHandle,
    last_arrival: Option<Instant>,
    last_acknowledgement: Option<u32>,
}

struct Abandoned {
    handle: SocketHandle,
    since: Instant,
    /// Its time was up, and the other end is told.
    was_reset: bool,
}

/// The stack's clock. smoltcp takes the time as an argument and has its shortest
/// retransmission timeout built in; so that a host can retransmit sooner, the time it is
/// told runs faster than the host's by a constant factor.
#[derive(Clone, Copy)]
struct Clock {
    started: Instant,
    speed: u32,
}

impl Clock {
    fn new(min_retransmission: Duration) -> Clock {
        let micros = min_retransmission.as_micros().max(1);
        let speed = STACK_MIN_RETRANSMISSION.as_micros() / micros;
        Clock { started: Instant::now(), speed: u32::try_from(speed).unwrap_or(u32::MAX).clamp(1, 1000) }
    }

    fn stack_time(&self, now: Instant) -> StackInstant {
        let micros = now.saturating_duration_since(self.started).as_micros() * u128::from(self.speed);
        StackInstant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    fn host_time(&self, at: StackInstant) -> Instant {
        let micros = u64::try_from(at.total_micros()).unwrap_or(0);
        self.started + Duration::from_micros(micros.div_ceil(u64::from(self.speed)))
    }

    fn stack_duration(&self, duration: Duration) -> StackDuration {
        let micros = duration.as_micros() * u128::from(self.speed);
        StackDuration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }
}

impl Stack {
    pub(crate) fn new(config: HostConfig, sender: SwitchSender) -> Stack {
        let clock = Clock::new(config.min_retransmission);
        let mut device = Wire {
            sender,
            incoming: None,
            segments: Segments { kept: VecDeque::new(), limit: config.kept_segments },
        };
        let hardware = HardwareAddress::Ethernet(EthernetAddress(config.mac.0));
        let mut interface_config = Config::new(hardware);
        interface_config.random_seed = config.seed;
        let mut interface = Interface::new(interface_config, &mut device, clock.stack_time(Instant::now()));
        let network = IpCidr::Ipv4(Ipv4Cidr::new(config.address, config.prefix_bits.min(32)));
        interface.update_ip_addrs(|addresses| {
            // The list is empty and has room for two at least.
            let _ = addresses.push(network);
        });
        Stack {
            // Another seed, other ports: two hosts one after the other at the same address
            // do not meet each other's connections.
            next_local_port: FIRST_LOCAL_PORT + (config.seed % 8192) as u16,
            config,
            clock,
            interface,
            sockets: SocketSet::new(Vec::new()),
            device,
            abandoned: Vec::new(),
            connections: HashMap::new(),
            armed: None,
        }
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        self.config.address
    }

    pub(crate) fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn connect(&mut self, remote: SocketAddrV4) -> io::Result<(SocketHandle, SocketAddrV4)> {
        let network = Ipv4Cidr::new(self.config.address, self.config.prefix_bits.min(32));
        if !network.contains_addr(remote.ip()) {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let local_port = self.free_local_port().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let mut socket = self.new_socket();
        let remote_endpoint = (IpAddress::Ipv4(*remote.ip()), remote.port());
        socket
            .connect(self.interface.context(), remote_endpoint, local_port)
            .map_err(|_| io::ErrorKind::AddrNotAvailable)?;
        let handle = self.sockets.add(socket);
        self.connected(handle, local_port, remote);
        Ok((handle, SocketAddrV4::new(self.config.address, local_port)))
    }

    /// A socket that listens on `port`.
    pub(crate) fn listen(&mut self, port: u16) -> io::Result<SocketHandle> {
        let mut socket = self.new_socket();
        socket.listen(port).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(self.sockets.add(socket))
    }

    pub(crate) fn listens_on(&self, port: u16) -> bool {
        tcp_sockets(&self.sockets)
            .any(|socket| socket.is_listening() && socket.listen_endpoint().port == port)
    }

    fn new_socket(&self) -> tcp::Socket<'static> {
        let buffer = || tcp::SocketBuffer::new(vec![0; self.config.buffer_bytes]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        let scaled = |duration| self.clock.stack_duration(duration);
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(scaled(self.config.acknowledgement_delay)));
        socket.set_keep_alive(self.config.keep_alive.map(scaled));
        socket.set_timeout(self.config.give_up_after.map(scaled));
        socket
    }

    fn free_local_port(&mut self) -> Option<u16> {
        let used: std::collections::HashSet<u16> = tcp_sockets(&self.sockets)
            .filter_map(|socket| socket.local_endpoint())
            .map(|endpoint| endpoint.port)
            .collect();
        for _ in FIRST_LOCAL_PORT..=u16::MAX {
            let port = self.next_local_port;
            self.next_local_port = port.checked_add(1).unwrap_or(FIRST_LOCAL_PORT);
            if !used.contains(&port) {
                return Some(port);
            }
        }
        None
    }

    /// Remembers a connection that a stream is about to hold.
    pub(crate) fn connected(&mut self, handle: SocketHandle, local_port: u16, remote: SocketAddrV4) {
        let connection = Connection { handle, last_arrival: None, last_acknowledgement: None };
        self.connections.insert((local_port, remote), connection);
    }

    /// Takes frames from the wire, then answers, retransmits and wakes what has to.
    pub(crate) fn take_in(&mut self, frames: Vec<Bytes>, now: Instant) {
        let time = self.clock.stack_time(now);
        for frame in frames {
            if let Some(segment) = Segment::read(&frame, Direction::In, now) {
                self.device.segments.keep(segment);
                if self.is_harmful(&segment) {
                    continue;
                }
            }
            // One at a time: what a segment means depends on those before it.
            self.device.incoming = Some(frame);
            self.interface.poll_ingress_single(time, &mut self.device, &mut self.sockets);
        }
        self.interface.poll(time, &mut self.device, &mut self.sockets);
        self.sweep(now);
    }

    /// Notes that a segment arrived. Returns whether it must be kept from smoltcp 0.14.
    ///
    /// There, the third duplicate acknowledgement while nothing but our FIN is unacknowledged
    /// turns the retransmission timer off, for good: a FIN that was lost is never sent again.
    /// Such a duplicate says nothing, as the timer will send the FIN again anyway.
    fn is_harmful(&mut self, segment: &Segment) -> bool {
        let ends = (segment.destination.port(), segment.source);
        let Some(connection) = self.connections.get_mut(&ends) else {
            return false;
        };
        connection.last_arrival = Some(segment.at);
        let before = connection.last_acknowledgement.replace(segment.acknowledgement);
        let says_nothing = before == Some(segment.acknowledgement)
            && segment.payload_bytes == 0
            && !(segment.syn || segment.fin || segment.rst);
        let socket = self.sockets.get::<tcp::Socket>(connection.handle);
        let fin_only = socket.send_queue() == 0
            && matches!(socket.state(), tcp::State::FinWait1 | tcp::State::Closing | tcp::State::LastAck);
        says_nothing && fin_only
    }

    /// Sends what the sockets have to send. Returns whether the task must be woken, as it
    /// would sleep too long now.
    pub(crate) fn send_pending(&mut self, now: Instant) -> bool {
        let time = self.clock.stack_time(now);
        while self.interface.poll_egress(time, &mut self.device, &mut self.sockets)
            == smoltcp::iface::PollResult::SocketStateChanged
        {}
        self.sweep(now);
        match (self.deadline(now), self.armed) {
            (Some(deadline), Some(armed)) => deadline < armed,
            (deadline, None) => deadline.is_some(),
            (None, Some(_)) => false,
        }
    }

    /// Until when the host's task may sleep.
    pub(crate) fn arm(&mut self, now: Instant) -> Option<Instant> {
        self.armed = self.deadline(now);
        self.armed
    }

    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let time = self.clock.stack_time(now);
        let stack = self.interface.poll_at(time, &self.sockets).map(|at| self.clock.host_time(at));
        let sweep = self.abandoned.first().map(|abandoned| abandoned.since + ABANDONED_LIFETIME);
        [stack, sweep].into_iter().flatten().min()
    }

    /// When something last arrived for a connection.
    pub(crate) fn last_arrival(&self, local_port: u16, remote: SocketAddrV4) -> Option<Instant> {
        self.connections.get(&(local_port, remote))?.last_arrival
    }

    pub(crate) fn take_segments(&mut self) -> Vec<Segment> {
        self.device.segments.kept.drain(..).collect()
    }

    /// The holder of a socket is gone. Unread data means that the other end's words are
    /// lost, which a reset tells it (RFC 2525, 2.17); else the connection ends in order.
    pub(crate) fn abandon(&mut self, handle: SocketHandle) {
        let socket = self.socket(handle);
        if socket.can_recv() {
            socket.abort();
        } else {
            socket.close();
        }
        self.abandoned.push(Abandoned { handle, since: Instant::now(), was_reset: false });
    }

    /// Frees the abandoned sockets whose connections ended.
    fn sweep(&mut self, now: Instant) {
        let Stack { sockets, connections, abandoned, .. } = self;
        abandoned.retain_mut(|abandoned| {
            let socket = sockets.get_mut::<tcp::Socket>(abandoned.handle);
            // While it has a local end, a reset is still to be sent.
            let mut ended = socket.state() == tcp::State::Closed && socket.local_endpoint().is_none();
            if now.saturating_duration_since(abandoned.since) >= ABANDONED_LIFETIME {
                ended |= abandoned.was_reset;
                abandoned.was_reset = true;
                socket.abort();
            }
            if ended {
                sockets.remove(abandoned.handle);
                connections.retain(|_, connection| connection.handle != abandoned.handle);
            }
            !ended
        });
    }
}

fn tcp_sockets<'a>(sockets: &'a SocketSet<'static>) -> impl Iterator<Item = &'a tcp::Socket<'static>> {
    sockets.iter().map(|(_, socket)| match socket {
        smoltcp::socket::Socket::Tcp(socket) => socket,
    })
}

/// The stack's network device: the port of a switch.
struct Wire {
    sender: SwitchSender,
    incoming: Option<Bytes>,
    segments: Segments,
}

struct Segments {
    kept: VecDeque<Segment>,
    limit: usize,
}

impl Segments {
    fn keep(&mut self, segment: Segment) {
        if self.limit == 0 {
            return;
        }
        if self.kept.len() == self.limit {
            self.kept.pop_front();
        }
        self.kept.push_back(segment);
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Received, Sending<'_>)> {
        let frame = self.incoming.take()?;
        Some((Received(frame), Sending(self)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Sending<'_>> {
        Some(Sending(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MTU_BYTES + ETHERNET_HEADER_BYTES;
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities
    }
}

struct Received(Bytes);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct Sending<'a>(&'a mut Wire);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, bytes: usize, write: F) -> R {
        let mut frame = vec![0; bytes];
        let result = write(&mut frame);
        if self.0.segments.limit > 0
            && let Some(segment) = Segment::read(&frame, Direction::Out, Instant::now())
        {
            self.0.segments.keep(segment);
        }
        self.0.sender.send(frame.into());
        result
    }
}
