//! The compact form of events and digests inside a batch: moments as deltas, arrays without
//! names (`docs/log-format.md` section 3).

use std::fmt;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Control, Digest, Event, LoggedDigest, LoggedEvent, Moment};

/// The distance between two moments: instructions, and how much the guest clock moved more
/// (or less) than one nanosecond for each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delta {
    icount: u64,
    skew: i64,
}

impl Delta {
    /// From `earlier` to `later`, neither of whose parts may run backwards.
    pub(crate) fn between(earlier: Moment, later: Moment) -> Option<Delta> {
        let icount = later.icount.checked_sub(earlier.icount)?;
        let time_ns = later.time_ns.checked_sub(earlier.time_ns)?;
        Some(Delta { icount, skew: time_ns.wrapping_sub(icount).cast_signed() })
    }

    /// The later moment, if there is one.
    pub(crate) fn after(self, earlier: Moment) -> Option<Moment> {
        Some(Moment {
            icount: earlier.icount.checked_add(self.icount)?,
            time_ns: earlier.time_ns.checked_add(self.time_ns())?,
        })
    }

    /// The earlier moment, if there is one.
    pub(crate) fn before(self, later: Moment) -> Option<Moment> {
        Some(Moment {
            icount: later.icount.checked_sub(self.icount)?,
            time_ns: later.time_ns.checked_sub(self.time_ns())?,
        })
    }

    fn time_ns(self) -> u64 {
        self.icount.wrapping_add(self.skew.cast_unsigned())
    }
}

const NETWORK_IN: u8 = 1;
const CONSOLE_IN: u8 = 2;
const CLOCK_ADVANCE: u8 = 3;
const ENTROPY: u8 = 4;
const WALL_CLOCK: u8 = 5;
const CONTROL: u8 = 6;

/// An event about to be written.
pub(crate) struct EventOut<'a> {
    pub(crate) delta: Delta,
    pub(crate) logged: &'a LoggedEvent,
}

impl Serialize for EventOut<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (code, extra) = match &self.logged.event {
            Event::NetworkIn { .. } => (NETWORK_IN, 2),
            Event::ConsoleIn(_) => (CONSOLE_IN, 1),
            Event::ClockAdvance { .. } => (CLOCK_ADVANCE, 1),
            Event::Entropy(_) => (ENTROPY, 1),
            Event::WallClock { .. } => (WALL_CLOCK, 1),
            Event::Control(_) => (CONTROL, 1),
        };
        let mut tuple = serializer.serialize_tuple(3 + extra)?;
        tuple.serialize_element(&code)?;
        tuple.serialize_element(&self.delta.icount)?;
        tuple.serialize_element(&self.delta.skew)?;
        match &self.logged.event {
            Event::NetworkIn { port, frame } => {
                tuple.serialize_element(port)?;
                tuple.serialize_element(frame)?;
            }
            Event::ConsoleIn(bytes) | Event::Entropy(bytes) => tuple.serialize_element(bytes)?,
            Event::ClockAdvance { delta_ns } => tuple.serialize_element(delta_ns)?,
            Event::WallClock { unix_ns } => tuple.serialize_element(unix_ns)?,
            Event::Control(control) => tuple.serialize_element(&control_code(*control))?,
        }
        tuple.end()
    }
}

/// An event as read, its moment still relative.
pub(crate) struct EventIn {
    pub(crate) delta: Delta,
    pub(crate) event: Event,
}

impl<'de> Deserialize<'de> for EventIn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EventVisitor;
        impl<'de> Visitor<'de> for EventVisitor {
            type Value = EventIn;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an event: kind, instructions, skew and what the kind asks for")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<EventIn, A::Error> {
                let code: u8 = next(&mut seq)?;
                let delta = Delta { icount: next(&mut seq)?, skew: next(&mut seq)? };
                let event = match code {
                    NETWORK_IN => Event::NetworkIn { port: next(&mut seq)?, frame: next(&mut seq)? },
                    CONSOLE_IN => Event::ConsoleIn(next(&mut seq)?),
                    CLOCK_ADVANCE => Event::ClockAdvance { delta_ns: next(&mut seq)? },
                    ENTROPY => Event::Entropy(next(&mut seq)?),
                    WALL_CLOCK => Event::WallClock { unix_ns: next(&mut seq)? },
                    CONTROL => Event::Control(control_from_code(next(&mut seq)?)?),
                    _ => {
                        return Err(A::Error::custom(format!(
                            "found event kind {code}, expected {NETWORK_IN} to {CONTROL}"
                        )));
                    }
                };
                Ok(EventIn { delta, event })
            }
        }
        deserializer.deserialize_seq(EventVisitor)
    }
}

/// The form of a digest; the fields are in the order of the bytes.
#[derive(Serialize, Deserialize)]
pub(crate) struct DigestRecord {
    icount: u64,
    skew: i64,
    events_before: u64,
    digest: Digest,
}

impl DigestRecord {
    pub(crate) fn new(delta: Delta, logged: &LoggedDigest) -> Self {
        DigestRecord {
            icount: delta.icount,
            skew: delta.skew,
            events_before: logged.events_before,
            digest: logged.digest,
        }
    }

    pub(crate) fn delta(&self) -> Delta {
        Delta { icount: self.icount, skew: self.skew }
    }

    pub(crate) fn at(&self, at: Moment) -> LoggedDigest {
        LoggedDigest { at, events_before: self.events_before, digest: self.digest }
    }
}

/// The next element of an array that must have one.
fn next<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(seq: &mut A) -> Result<T, A::Error> {
    seq.next_element()?.ok_or_else(|| A::Error::custom("found fewer elements than its kind asks for"))
}

fn control_code(control: Control) -> u8 {
    match control {
        Control::PowerButton => 1,
        Control::Reset => 2,
        Control::Announce => 3,
    }
}

fn control_from_code<E: serde::de::Error>(code: u8) -> Result<Control, E> {
    match code {
        1 => Ok(Control::PowerButton),
        2 => Ok(Control::Reset),
        3 => Ok(Control::Announce),
        _ => Err(E::custom(format!("found control {code}, expected 1 to 3"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn deltas_reach_every_pair_of_ordered_moments() {
        let numbers = [0, 1, 1000, u64::MAX / 2, u64::MAX - 1, u64::MAX];
        for (icount, time_ns) in numbers.iter().flat_map(|i| numbers.map(|t| (*i, t))) {
            for (later_icount, later_time_ns) in numbers.iter().flat_map(|i| numbers.map(|t| (*i, t))) {
                let earlier = Moment { icount, time_ns };
                let later = Moment { icount: later_icount, time_ns: later_time_ns };
                let ordered = later_icount >= icount && later_time_ns >= time_ns;
                let delta = Delta::between(earlier, later);
                assert_eq!(delta.is_some(), ordered);
                if let Some(delta) = delta {
                    assert_eq!(delta.after(earlier), Some(later));
                    assert_eq!(delta.before(later), Some(earlier));
                }
            }
        }
    }

    #[test]
    fn a_network_event_costs_ten_bytes_over_its_frame() {
        let at = Moment { icount: 1_000_000, time_ns: 5_000_000 };
        let end = Moment { icount: 1_030_000, time_ns: 5_030_000 };
        let logged =
            LoggedEvent { at, event: Event::NetworkIn { port: 0, frame: Bytes::from_static(&[7; 98]) } };
        let delta = Delta::between(at, end).unwrap();
        let bytes = rmp_serde::to_vec(&EventOut { delta, logged: &logged }).unwrap();
        assert!(bytes.len() <= 98 + 10, "{} bytes", bytes.len());
    }
}
