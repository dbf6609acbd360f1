//! Announcing where a machine is now: gratuitous ARP (RFC 826, RFC 5227 section 3) and RARP.
//!
//! After a takeover the guest has the addresses it had, on another host. Its clients' ARP
//! caches stay right; the switches between must learn the new way, for which any broadcast
//! from the guest's Ethernet address will do, and does not need the guest's help.

use std::net::Ipv4Addr;

use bytes::Bytes;

use crate::address::MacAddress;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_RARP: u16 = 0x8035;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
const RARP_REQUEST: u16 = 3;
/// Shorter frames are padded to this (IEEE 802.3, without FCS).
const MIN_ETHERNET_BYTES: usize = 60;

/// A gratuitous ARP request: "who has `address`? tell `address`", broadcast. It updates the
/// caches that know the address.
pub fn gratuitous_arp_request(mac: MacAddress, address: Ipv4Addr) -> Bytes {
    let target = MacAddress([0; 6]);
    arp_frame(ETHERTYPE_ARP, ARP_REQUEST, mac, address, target, address)
}

/// A gratuitous ARP reply: "`address` is at `mac`", broadcast. For the stations that heed
/// only this form.
pub fn gratuitous_arp_reply(mac: MacAddress, address: Ipv4Addr) -> Bytes {
    arp_frame(ETHERTYPE_ARP, ARP_REPLY, mac, address, mac, address)
}

/// A RARP request for the station's own address: teaches switches where `mac` is when no IP
/// address is known. What QEMU's announce-self sends.
pub fn rarp_request(mac: MacAddress) -> Bytes {
    let nobody = Ipv4Addr::UNSPECIFIED;
    arp_frame(ETHERTYPE_RARP, RARP_REQUEST, mac, nobody, mac, nobody)
}

fn arp_frame(
    ethertype: u16,
    operation: u16,
    sender: MacAddress,
    sender_address: Ipv4Addr,
    target: MacAddress,
    target_address: Ipv4Addr,
) -> Bytes {
    let mut frame = Vec::with_capacity(MIN_ETHERNET_BYTES);
    frame.extend_from_slice(&MacAddress::BROADCAST.0);
    frame.extend_from_slice(&sender.0);
    frame.extend_from_slice(&ethertype.to_be_bytes());
    // Hardware Ethernet, protocol IPv4, their lengths.
    frame.extend_from_slice(&[0, 1, 8, 0, 6, 4]);
    frame.extend_from_slice(&operation.to_be_bytes());
    frame.extend_from_slice(&sender.0);
    frame.extend_from_slice(&sender_address.octets());
    frame.extend_from_slice(&target.0);
    frame.extend_from_slice(&target_address.octets());
    frame.resize(MIN_ETHERNET_BYTES, 0);
    frame.into()
}

/// Stations behind one network device that are remembered; the guest itself is usually the
/// only one.
const MAX_STATIONS: usize = 16;
/// Addresses of one station that are remembered.
const MAX_ADDRESSES: usize = 8;

/// Learns a guest's addresses from the frames it sends, so that whoever runs it next can
/// announce them. Pure: a backup feeds it the replay's output.
#[derive(Debug, Clone, Default)]
pub struct AddressLearner {
    /// Longest silent first.
    stations: Vec<Station>,
}

#[derive(Debug, Clone)]
struct Station {
    mac: MacAddress,
    /// Claimed by ARP, longest silent first.
    claimed: Vec<Ipv4Addr>,
    /// Source of its last IPv4 packet. A guest that routes sends packets of others, so this
    /// counts only while nothing is claimed.
    sent_from: Option<Ipv4Addr>,
}

impl AddressLearner {
    /// Knows nothing.
    pub fn new() -> AddressLearner {
        AddressLearner::default()
    }

    /// Knows the Ethernet address that the machine was configured with.
    pub fn with_mac(mac: MacAddress) -> AddressLearner {
        let mut learner = AddressLearner::new();
        learner.station(mac);
        learner
    }

    /// Looks at a frame that the guest sent.
    pub fn observe(&mut self, frame: &[u8]) {
        let Some(source) = MacAddress::source_of(frame).filter(MacAddress::is_station) else {
            return;
        };
        let Some(ethertype) = be16(frame, 12) else {
            return;
        };
        let station = self.station(source);
        let payload = frame.get(14..).unwrap_or_default();
        match ethertype {
            ETHERTYPE_ARP => {
                if let Some(address) = arp_claim(payload, source) {
                    station.claimed.retain(|other| *other != address);
                    if station.claimed.len() == MAX_ADDRESSES {
                        station.claimed.remove(0);
                    }
                    station.claimed.push(address);
                }
            }
            ETHERTYPE_IPV4 => {
                if let Some(address) = ipv4_source(payload) {
                    station.sent_from = Some(address);
                }
            }
            _ => {}
        }
    }

    /// The Ethernet addresses known, the one heard last at the end.
    pub fn macs(&self) -> impl Iterator<Item = MacAddress> + '_ {
        self.stations.iter().map(|station| station.mac)
    }

    /// The IPv4 addresses known, each with its Ethernet address.
    pub fn addresses(&self) -> impl Iterator<Item = (MacAddress, Ipv4Addr)> + '_ {
        self.stations.iter().flat_map(|station| {
            let seen = station.sent_from.filter(|_| station.claimed.is_empty()).into_iter();
            let claimed = station.claimed.iter().copied();
            claimed.chain(seen).map(|address| (station.mac, address))
        })
    }

    /// The frames that tell the network where the guest is now: for each station a RARP, and
    /// both forms of gratuitous ARP for each address it has.
    pub fn announcement(&self) -> Vec<Bytes> {
        let by_mac = self.macs().map(rarp_request);
        let by_address = self.addresses().flat_map(|(mac, address)| {
            [gratuitous_arp_request(mac, address), gratuitous_arp_reply(mac, address)]
        });
        by_mac.chain(by_address).collect()
    }

    /// The station with this address, moved to the end.
    fn station(&mut self, mac: MacAddress) -> &mut Station {
        let known = self.stations.iter().position(|station| station.mac == mac);
        let station = match known {
            Some(index) => self.stations.remove(index),
            None => Station { mac, claimed: Vec::new(), sent_from: None },
        };
        if self.stations.len() == MAX_STATIONS {
            self.stations.remove(0);
        }
        self.stations.push(station);
        let last = self.stations.len() - 1;
        &mut self.stations[last]
    }
}

/// The address that an ARP packet says its sender has.
fn arp_claim(packet: &[u8], source: MacAddress) -> Option<Ipv4Addr> {
    let is_ipv4_over_ethernet = packet.starts_with(&[0, 1, 8, 0, 6, 4]);
    let operation = be16(packet, 6)?;
    let sender: [u8; 6] = *packet.get(8..)?.first_chunk()?;
    if !is_ipv4_over_ethernet || !matches!(operation, ARP_REQUEST | ARP_REPLY) || MacAddress(sender) != source
    {
        return None;
    }
    host_address(packet, 14)
}

fn ipv4_source(packet: &[u8]) -> Option<Ipv4Addr> {
    let is_ipv4 = packet.first()? >> 4 == 4 && packet.len() >= 20;
    is_ipv4.then(|| host_address(packet, 12)).flatten()
}

/// The address at `offset`, if one host can have it.
fn host_address(bytes: &[u8], offset: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = *bytes.get(offset..)?.first_chunk()?;
    let address = Ipv4Addr::from(octets);
    let is_host = !address.is_unspecified()
        && !address.is_multicast()
        && !address.is_broadcast()
        && !address.is_loopback();
    is_host.then_some(address)
}

fn be16(bytes: &[u8], offset: usize) -> Option<u16> {
    let pair: [u8; 2] = *bytes.get(offset..)?.first_chunk()?;
    Some(u16::from_be_bytes(pair))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame};

    const GUEST: MacAddress = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

    fn ipv4_frame(source: MacAddress, address: Ipv4Addr) -> Vec<u8> {
        let mut frame = [&[0xff; 6][..], &source.0, &ETHERTYPE_IPV4.to_be_bytes()].concat();
        let mut packet = [0u8; 20];
        packet[0] = 0x45;
        packet[12..16].copy_from_slice(&address.octets());
        frame.extend_from_slice(&packet);
        frame
    }

    fn learned(learner: &AddressLearner) -> Vec<(MacAddress, Ipv4Addr)> {
        learner.addresses().collect()
    }

    /// Another implementation reads them as what they are.
    #[test]
    fn both_forms_are_arp_to_smoltcp() {
        for (frame, operation, target) in [
            (gratuitous_arp_request(GUEST, ADDRESS), ArpOperation::Request, [0; 6]),
            (gratuitous_arp_reply(GUEST, ADDRESS), ArpOperation::Reply, GUEST.0),
        ] {
            assert_eq!(frame.len(), 60);
            let ethernet = EthernetFrame::new_checked(&frame[..]).unwrap();
            assert!(ethernet.dst_addr().is_broadcast());
            let packet = ArpPacket::new_checked(ethernet.payload()).unwrap();
            assert_eq!(
                ArpRepr::parse(&packet).unwrap(),
                ArpRepr::EthernetIpv4 {
                    operation,
                    source_hardware_addr: EthernetAddress(GUEST.0),
                    source_protocol_addr: ADDRESS,
                    target_hardware_addr: EthernetAddress(target),
                    target_protocol_addr: ADDRESS,
                }
            );
        }
    }

    #[test]
    fn the_rarp_is_a_broadcast_from_the_guest() {
        let frame = rarp_request(GUEST);
        assert_eq!(MacAddress::destination_of(&frame), Some(MacAddress::BROADCAST));
        assert_eq!(MacAddress::source_of(&frame), Some(GUEST));
        assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!(frame.len(), 60);
    }

    #[test]
    fn arp_and_ipv4_teach_the_address() {
        let mut learner = AddressLearner::new();
        assert!(learner.announcement().is_empty());
        learner.observe(&ipv4_frame(GUEST, Ipv4Addr::UNSPECIFIED));
        assert_eq!(learner.announcement(), [rarp_request(GUEST)]);
        learner.observe(&ipv4_frame(GUEST, ADDRESS));
        assert_eq!(learned(&learner), [(GUEST, ADDRESS)]);
        assert_eq!(learner.announcement().len(), 3);
    }

    #[test]
    fn a_guest_that_routes_announces_only_what_it_claims() {
        let mut learner = AddressLearner::new();
        learner.observe(&ipv4_frame(GUEST, Ipv4Addr::new(192, 0, 2, 1)));
        learner.observe(&gratuitous_arp_request(GUEST, ADDRESS));
        learner.observe(&ipv4_frame(GUEST, Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!(learned(&learner), [(GUEST, ADDRESS)]);
    }

    #[test]
    fn an_arp_for_somebody_else_or_a_probe_claims_nothing() {
        let mut learner = AddressLearner::new();
        let mut foreign = gratuitous_arp_request(GUEST, ADDRESS).to_vec();
        foreign[22] = 2;
        learner.observe(&foreign);
        learner.observe(&gratuitous_arp_request(GUEST, Ipv4Addr::UNSPECIFIED));
        assert!(learned(&learner).is_empty());
        assert_eq!(learner.macs().collect::<Vec<_>>(), [GUEST]);
    }

    #[test]
    fn a_configured_mac_is_announced_from_the_start() {
        let learner = AddressLearner::with_mac(GUEST);
        assert_eq!(learner.announcement(), [rarp_request(GUEST)]);
    }

    #[test]
    fn tables_are_bounded_and_keep_the_newest() {
        let mut learner = AddressLearner::new();
        for number in 0..100 {
            learner.observe(&gratuitous_arp_reply(GUEST, Ipv4Addr::new(10, 0, 0, number + 1)));
        }
        assert_eq!(learned(&learner).len(), MAX_ADDRESSES);
        assert!(learned(&learner).contains(&(GUEST, Ipv4Addr::new(10, 0, 0, 100))));
        for number in 0..100 {
            learner.observe(&ipv4_frame(MacAddress([2, 0, 0, 0, 0, number]), ADDRESS));
        }
        assert_eq!(learner.macs().count(), MAX_STATIONS);
    }

    proptest! {
        #[test]
        fn any_frame_is_observed_without_harm(
            mut frame in prop::collection::vec(any::<u8>(), 0..80),
            ethertype in prop::sample::select(vec![ETHERTYPE_IPV4, ETHERTYPE_ARP]),
        ) {
            if let Some(at) = frame.get_mut(12..14) {
                at.copy_from_slice(&ethertype.to_be_bytes());
            }
            let mut learner = AddressLearner::new();
            learner.observe(&frame);
            prop_assert!(learner.announcement().len() <= 3);
        }
    }
}
