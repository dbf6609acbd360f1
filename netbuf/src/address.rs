//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet address, as `52:54:00:12:34:56`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Every station.
    pub const BROADCAST: MacAddress = MacAddress([0xff; 6]);

    /// Whether this names a group of stations, broadcast included.
    pub fn is_group(&self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether a station can have this address: not a group's, not all zeros.
    pub fn is_station(&self) -> bool {
        !self.is_group() && self.0 != [0; 6]
    }

    /// Destination of an Ethernet frame, or `None` when it is cut short.
    pub fn destination_of(frame: &[u8]) -> Option<MacAddress> {
        frame.first_chunk().copied().map(MacAddress)
    }

    /// Source of an Ethernet frame, or `None` when it is cut short.
    pub fn source_of(frame: &[u8]) -> Option<MacAddress> {
        frame.get(6..)?.first_chunk().copied().map(MacAddress)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Not the address of a station.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "found {found:?} where a MAC address of one station was expected; write six hexadecimal bytes, the first even: 52:54:00:12:34:56"
)]
pub struct MacAddressError {
    found: String,
}

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || MacAddressError { found: text.to_owned() };
        let mut bytes = [0u8; 6];
        let mut digits = text.split(':');
        for byte in &mut bytes {
            let pair = digits.next().ok_or_else(refuse)?;
            if pair.len() != 2 || !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(refuse());
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| refuse())?;
        }
        let address = MacAddress(bytes);
        if digits.next().is_some() || !address.is_station() {
            return Err(refuse());
        }
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_there_and_back() {
        let text = "52:54:00:ab:cd:ef";
        assert_eq!(text.parse::<MacAddress>().unwrap().to_string(), text);
    }

    #[test]
    fn what_is_not_a_station_is_refused() {
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "5254:00:12:34:56:7",
            "52:54:00:12:34:+6",
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
        ] {
            let error = text.parse::<MacAddress>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
