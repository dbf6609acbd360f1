use proptest::prelude::*;

use super::super::fabric::Fabric;
use super::*;
use crate::tunnel::VmId;

const MS: u64 = 1_000_000;

/// A registry with a fabric to take ports from.
#[derive(Default)]
struct Fixture {
    fabric: Fabric,
    registry: Registry,
}

impl Fixture {
    fn hear(&mut self, term: u64, sender: u16, message: Message, now_ns: u64) -> Verdict {
        self.hear_sequence(term, sender, message, now_ns, 0)
    }

    fn hear_sequence(
        &mut self,
        term: u64,
        sender: u16,
        message: Message,
        now_ns: u64,
        sequence: u64,
    ) -> Verdict {
        let datagram = Datagram { port: port(1), term, sequence, message };
        let fabric = &mut self.fabric;
        self.registry.handle(datagram, address(sender), now_ns, || fabric.add_port())
    }

    fn fabric_port(&self) -> FabricPort {
        self.registry.remotes[&port(1)].fabric_port
    }

    /// Where a frame sent to the VM now goes.
    fn send(&mut self, number: u8, now_ns: u64) -> Option<SocketAddr> {
        let to = self.fabric_port();
        let sent = self.registry.send(to, &frame(number), now_ns);
        sent.map(|(_, address)| address)
    }
}

fn port(number: u64) -> PortId {
    PortId { vm: VmId(number), port: 0 }
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

fn frame(number: u8) -> Bytes {
    Bytes::from(vec![number; 60])
}

fn repeated(verdict: Verdict) -> Vec<u8> {
    match verdict {
        Verdict::Accept { repeat, .. } => repeat.iter().map(|frame| frame[0]).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_address_follows_the_live_side() {
    let mut fixture = Fixture::default();
    fixture.hear(1, 10, Message::Hello, 0);
    assert_eq!(fixture.send(0, 1), Some(address(10)));
    fixture.hear(1, 11, Message::Hello, 2);
    assert_eq!(fixture.send(0, 3), Some(address(11)));
    fixture.hear(2, 20, Message::Hello, 4);
    assert_eq!(fixture.send(0, 5), Some(address(20)));
    assert_eq!(fixture.hear(1, 11, Message::Frame(frame(9)), 6), Verdict::Refuse { term: 2 });
    assert_eq!(fixture.send(0, 7), Some(address(20)));
    assert_eq!(fixture.registry.counters().stale, 1);
}

#[test]
fn a_stale_leave_does_not_unplug_the_new_side() {
    let mut fixture = Fixture::default();
    fixture.hear(1, 10, Message::Hello, 0);
    fixture.hear(2, 20, Message::Hello, 1);
    fixture.hear(1, 10, Message::Leave, 2);
    assert_eq!(fixture.send(0, 3), Some(address(20)));
}

#[test]
fn a_side_that_left_or_fell_silent_is_away_and_stays_superseded() {
    let mut fixture = Fixture::default();
    fixture.hear(3, 10, Message::Hello, 0);
    fixture.hear(3, 10, Message::Leave, 1);
    assert_eq!(fixture.send(0, 2), None);
    assert_eq!(fixture.hear(2, 20, Message::Hello, 3), Verdict::Refuse { term: 3 });
    fixture.hear(3, 10, Message::Hello, 4);
    assert_eq!(fixture.send(0, 3 + SILENCE_NS), Some(address(10)));
    assert_eq!(fixture.send(0, 4 + SILENCE_NS), None);
}

#[test]
fn a_takeover_repeats_what_the_dead_side_may_have_lost() {
    let mut fixture = Fixture::default();
    fixture.hear(1, 10, Message::Hello, 0);
    fixture.send(1, 850 * MS);
    fixture.send(2, 950 * MS);
    fixture.hear(1, 10, Message::Frame(frame(0)), 1000 * MS);
    fixture.send(3, 1100 * MS);
    fixture.send(4, 1600 * MS);
    let verdict = fixture.hear(2, 20, Message::Hello, 1700 * MS);
    // 1 was sent more than the log's delay before the dead side was last heard.
    assert_eq!(repeated(verdict), [2, 3, 4]);
    let again = fixture.hear(2, 20, Message::Hello, 1701 * MS);
    assert_eq!(repeated(again), [0; 0], "once only");
    assert_eq!(fixture.registry.counters().takeovers, 1);
    assert_eq!(fixture.registry.counters().repeated, 3);
}

#[test]
fn retained_frames_are_bounded_by_count_bytes_and_age() {
    let mut fixture = Fixture::default();
    fixture.hear(1, 10, Message::Hello, 0);
    for number in 0..2 * RETAINED_FRAMES {
        fixture.send(number as u8, MS);
    }
    let retained = &fixture.registry.remotes[&port(1)].retained;
    assert_eq!(retained.frames.len(), RETAINED_FRAMES);

    let to = fixture.fabric_port();
    let jumbo = Bytes::from(vec![0; 60_000]);
    for _ in 0..100 {
        fixture.registry.send(to, &jumbo, MS);
    }
    let retained = &fixture.registry.remotes[&port(1)].retained;
    assert!(retained.bytes <= RETAINED_BYTES);
    let held: usize = retained.frames.iter().map(|(_, frame)| frame.len()).sum();
    assert_eq!(retained.bytes, held);

    fixture.send(7, 2 * MS + RETAINED_NS);
    let retained = &fixture.registry.remotes[&port(1)].retained;
    assert_eq!(retained.frames.len(), 1);
}

#[test]
fn gaps_in_the_sequence_are_counted_as_lost() {
    let mut fixture = Fixture::default();
    fixture.hear_sequence(1, 10, Message::Hello, 0, 5);
    fixture.hear_sequence(1, 10, Message::Hello, 1, 6);
    assert_eq!(fixture.registry.counters().lost, 0);
    fixture.hear_sequence(1, 10, Message::Hello, 2, 9);
    assert_eq!(fixture.registry.counters().lost, 2);
    // Another side counts anew.
    fixture.hear_sequence(2, 20, Message::Hello, 3, 0);
    fixture.hear_sequence(2, 20, Message::Hello, 4, u64::MAX);
    assert_eq!(fixture.registry.counters().lost, u64::MAX, "a lie saturates");
}

#[test]
fn invented_vms_do_not_grow_the_table() {
    let mut fixture = Fixture::default();
    for vm in 0..2 * MAX_PORTS as u64 {
        let datagram = Datagram { port: port(vm), term: 1, sequence: 0, message: Message::Hello };
        let fabric = &mut fixture.fabric;
        fixture.registry.handle(datagram, address(10), 0, || fabric.add_port());
    }
    assert_eq!(fixture.registry.remotes.len(), MAX_PORTS);
    assert_eq!(fixture.registry.counters().table_full, MAX_PORTS as u64);
}

proptest! {
    /// Law 3's part at the switch: what is accepted never steps back in term, and frames for
    /// the VM go to a side of the highest term.
    #[test]
    fn the_accepted_term_never_falls(
        heard in prop::collection::vec((0u64..5, 0u8..3), 1..60)
    ) {
        let mut fixture = Fixture::default();
        let mut highest = 0;
        for (now, (term, kind)) in heard.into_iter().enumerate() {
            let message = match kind {
                0 => Message::Hello,
                1 => Message::Frame(frame(1)),
                _ => Message::Leave,
            };
            // The sender's port is its term: a frame must go to the highest.
            let verdict = fixture.hear(term, term as u16, message, now as u64);
            if term >= highest {
                let accepted = matches!(verdict, Verdict::Accept { .. });
                prop_assert!(accepted);
                highest = term;
            } else {
                prop_assert_eq!(verdict, Verdict::Refuse { term: highest });
            }
            let to = fixture.send(0, now as u64);
            prop_assert!(to.is_none() || to == Some(address(highest as u16)));
        }
    }
}
