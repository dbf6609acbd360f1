//! Which port a frame goes to: a learning Ethernet switch without I/O.

use std::collections::HashMap;

use crate::address::MacAddress;

/// A port of the fabric. Numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FabricPort(u64);

/// Where a frame goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// To one port.
    One(FabricPort),
    /// To every port but the one it came from.
    Flood,
    /// Nowhere: malformed, or its station is on the port it came from.
    Nowhere,
}

/// Stations remembered; a guest that makes addresses up pushes out old ones, no more.
const MAX_STATIONS: usize = 4096;
/// A station not heard for this long is looked for everywhere again (IEEE 802.1D's default).
const STATION_LIFETIME_NS: u64 = 300 * 1_000_000_000;

#[derive(Debug, Default)]
pub(crate) struct Fabric {
    ports_made: u64,
    ports: Vec<FabricPort>,
    stations: HashMap<MacAddress, Station>,
}

#[derive(Debug)]
struct Station {
    port: FabricPort,
    heard_ns: u64,
}

impl Fabric {
    pub(crate) fn add_port(&mut self) -> FabricPort {
        let port = FabricPort(self.ports_made);
        self.ports_made += 1;
        self.ports.push(port);
        port
    }

    pub(crate) fn remove_port(&mut self, port: FabricPort) {
        self.ports.retain(|other| *other != port);
        self.stations.retain(|_, station| station.port != port);
    }

    /// Every port but `from`, in the order in which they were added.
    pub(crate) fn others(&self, from: FabricPort) -> impl Iterator<Item = FabricPort> + '_ {
        self.ports.iter().copied().filter(move |port| *port != from)
    }

    /// Learns from the frame's source where that station is, and says where the frame goes.
    pub(crate) fn route(&mut self, from: FabricPort, frame: &[u8], now_ns: u64) -> Route {
        let (Some(destination), Some(source)) =
            (MacAddress::destination_of(frame), MacAddress::source_of(frame))
        else {
            return Route::Nowhere;
        };
        if !source.is_station() {
            return Route::Nowhere;
        }
        self.learn(source, from, now_ns);
        if destination.is_group() {
            return Route::Flood;
        }
        match self.stations.get(&destination) {
            Some(station) if is_fresh(station, now_ns) => {
                if station.port == from {
                    Route::Nowhere
                } else {
                    Route::One(station.port)
                }
            }
            _ => Route::Flood,
        }
    }

    fn learn(&mut self, source: MacAddress, port: FabricPort, now_ns: u64) {
        if !self.stations.contains_key(&source) && self.stations.len() >= MAX_STATIONS {
            self.forget_some(now_ns);
        }
        self.stations.insert(source, Station { port, heard_ns: now_ns });
    }

    fn forget_some(&mut self, now_ns: u64) {
        self.stations.retain(|_, station| is_fresh(station, now_ns));
        if self.stations.len() < MAX_STATIONS {
            return;
        }
        // A quarter at once, so that inventing addresses costs little per frame.
        let mut ages: Vec<(u64, MacAddress)> =
            self.stations.iter().map(|(address, station)| (station.heard_ns, *address)).collect();
        ages.sort_unstable();
        for (_, address) in &ages[..MAX_STATIONS / 4] {
            self.stations.remove(address);
        }
    }
}

fn is_fresh(station: &Station, now_ns: u64) -> bool {
    now_ns.saturating_sub(station.heard_ns) < STATION_LIFETIME_NS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn station(number: u16) -> MacAddress {
        let [high, low] = number.to_be_bytes();
        MacAddress([0x52, 0x54, 0, 0, high, low])
    }

    fn frame(destination: MacAddress, source: MacAddress) -> Vec<u8> {
        [&destination.0[..], &source.0[..], &[0x08, 0x00]].concat()
    }

    #[test]
    fn unknown_stations_are_flooded_known_ones_are_not() {
        let mut fabric = Fabric::default();
        let (a, b) = (fabric.add_port(), fabric.add_port());
        assert_eq!(fabric.route(a, &frame(station(2), station(1)), 0), Route::Flood);
        assert_eq!(fabric.route(b, &frame(station(1), station(2)), 0), Route::One(a));
        assert_eq!(fabric.route(a, &frame(station(2), station(1)), 0), Route::One(b));
        assert_eq!(fabric.route(a, &frame(MacAddress::BROADCAST, station(1)), 0), Route::Flood);
        assert_eq!(fabric.route(b, &frame(station(2), station(3)), 0), Route::Nowhere);
    }

    #[test]
    fn a_station_that_moves_is_followed() {
        let mut fabric = Fabric::default();
        let (a, b, c) = (fabric.add_port(), fabric.add_port(), fabric.add_port());
        fabric.route(a, &frame(MacAddress::BROADCAST, station(1)), 0);
        fabric.route(b, &frame(MacAddress::BROADCAST, station(1)), 1);
        assert_eq!(fabric.route(c, &frame(station(1), station(3)), 2), Route::One(b));
        fabric.remove_port(b);
        assert_eq!(fabric.route(c, &frame(station(1), station(3)), 3), Route::Flood);
        assert_eq!(fabric.others(c).collect::<Vec<_>>(), [a]);
    }

    #[test]
    fn silent_stations_are_forgotten() {
        let mut fabric = Fabric::default();
        let (a, b) = (fabric.add_port(), fabric.add_port());
        fabric.route(a, &frame(MacAddress::BROADCAST, station(1)), 0);
        let to_one = frame(station(1), station(2));
        assert_eq!(fabric.route(b, &to_one, STATION_LIFETIME_NS - 1), Route::One(a));
        assert_eq!(fabric.route(b, &to_one, STATION_LIFETIME_NS), Route::Flood);
    }

    #[test]
    fn invented_stations_do_not_grow_the_table() {
        let mut fabric = Fabric::default();
        let a = fabric.add_port();
        for number in 0..=u16::MAX {
            fabric.route(a, &frame(MacAddress::BROADCAST, station(number)), u64::from(number));
        }
        assert!(fabric.stations.len() <= MAX_STATIONS);
        assert!(fabric.stations.contains_key(&station(u16::MAX)));
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_route(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut fabric = Fabric::default();
            let a = fabric.add_port();
            let route = fabric.route(a, &bytes, 0);
            prop_assert!(bytes.len() >= 12 || route == Route::Nowhere);
        }
    }
}
