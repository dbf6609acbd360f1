//! Arbitrary values for property tests.

use bytes::Bytes;
use log_format::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn bytes(max_len: usize) -> impl Strategy<Value = Bytes> {
    // Runs of one byte let some bodies compress.
    prop_oneof![
        vec(any::<u8>(), 0..max_len),
        (any::<u8>(), 0..max_len).prop_map(|(fill, len)| vec![fill; len]),
    ]
    .prop_map(Bytes::from)
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (any::<u8>(), bytes(1600)).prop_map(|(port, frame)| Event::NetworkIn { port, frame }),
        1 => bytes(40).prop_map(Event::ConsoleIn),
        1 => any::<u64>().prop_map(|delta_ns| Event::ClockAdvance { delta_ns }),
        1 => bytes(64).prop_map(Event::Entropy),
        1 => any::<u64>().prop_map(|unix_ns| Event::WallClock { unix_ns }),
        1 => prop_oneof![
            Just(Control::PowerButton),
            Just(Control::Reset),
            Just(Control::Announce)
        ]
        .prop_map(Event::Control),
    ]
}

fn moment() -> impl Strategy<Value = Moment> {
    (number(), number()).prop_map(|(icount, time_ns)| Moment { icount, time_ns })
}

/// Numbers of every length, the extremes included.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (any::<u64>(), 0..64u32).prop_map(|(number, shift)| number >> shift),
        1 => Just(0),
        1 => Just(u64::MAX),
    ]
}

fn ordered_moments(max_len: usize) -> impl Strategy<Value = Vec<Moment>> {
    vec((number(), number()), 1..=max_len).prop_map(|pairs| {
        let (mut icounts, mut times): (Vec<u64>, Vec<u64>) = pairs.into_iter().unzip();
        icounts.sort_unstable();
        times.sort_unstable();
        let pairs = icounts.into_iter().zip(times);
        pairs.map(|(icount, time_ns)| Moment { icount, time_ns }).collect()
    })
}

/// A batch of up to `max_events` events whose moments lie anywhere, in order.
pub fn batch(max_events: usize) -> impl Strategy<Value = Batch> {
    let events = ordered_moments(max_events + 1)
        .prop_flat_map(|moments| (vec(event(), moments.len() - 1), Just(moments)));
    let digests = vec((any::<prop::sample::Index>(), number(), any::<[u8; 16]>()), 0..4);
    let numbers = (number(), number(), number(), number());
    let hashes = vec(any::<u32>(), 0..20);
    (events, digests, numbers, hashes).prop_map(
        |((events, moments), digests, (term, sequence, first, released), output_hashes)| {
            let mut digests: Vec<LoggedDigest> = digests
                .into_iter()
                .map(|(at, events_before, digest)| LoggedDigest {
                    at: *at.get(&moments),
                    events_before,
                    digest: Digest(digest),
                })
                .collect();
            digests.sort_by_key(|logged| logged.at);
            Batch {
                term,
                sequence,
                end: moments[moments.len() - 1],
                events: moments
                    .iter()
                    .zip(events)
                    .map(|(at, event)| LoggedEvent { at: *at, event })
                    .collect(),
                digests,
                first_output: first,
                output_hashes,
                released_outputs: released,
            }
        },
    )
}

fn identity() -> impl Strategy<Value = MachineIdentity> {
    (any::<u32>(), any::<[u8; 32]>(), any::<[u8; 32]>(), vec((number(), any::<[u8; 32]>()), 0..3)).prop_map(
        |(semantics, config, boot_images, disks)| MachineIdentity { semantics, config, boot_images, disks },
    )
}

fn position() -> impl Strategy<Value = Position> {
    (number(), moment(), number()).prop_map(|(term, moment, sequence)| Position { term, moment, sequence })
}

fn chain() -> impl Strategy<Value = ChainHash> {
    any::<[u8; 16]>().prop_map(ChainHash)
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 16]>().prop_map(Digest)
}

/// Any message.
pub fn message() -> impl Strategy<Value = Message> {
    prop_oneof![hand_shake(), checkpoint(), running(), disks()]
}

fn hand_shake() -> impl Strategy<Value = Message> {
    let have =
        proptest::option::of((position(), chain()).prop_map(|(position, chain)| Have { position, chain }));
    let names = ("[a-z0-9-]{0,40}", "\\PC{0,40}");
    let hello = (any::<(u8, u8)>(), names, (number(), number()), identity(), have, any::<bool>()).prop_map(
        |((min, max), (vm, node), (term, life), identity, have, has_boot_images)| {
            Message::Hello(Hello {
                term,
                life: Life(life),
                versions: VersionRange { min, max },
                vm,
                node,
                identity,
                have,
                has_boot_images,
            })
        },
    );
    let plan = prop_oneof![Just(JoinPlan::LogFromBoot), Just(JoinPlan::Resume), Just(JoinPlan::Checkpoint)];
    let numbers = (any::<u8>(), number(), any::<u32>());
    let welcome = (position(), chain(), "\\PC{0,40}", plan, identity(), numbers).prop_map(
        |(from, chain, node, plan, identity, (version, term, heartbeat_interval_ms))| {
            Message::Welcome(Welcome {
                from,
                chain,
                version,
                node,
                term,
                plan,
                identity,
                heartbeat_interval_ms,
            })
        },
    );
    let refuse = (number(), any::<u8>(), "\\PC{0,200}")
        .prop_map(|(term, reason, text)| Message::Refuse(Refuse { term, reason: reason.into(), text }));
    let goodbye = (number(), any::<u8>(), "\\PC{0,200}")
        .prop_map(|(term, reason, text)| Message::Goodbye(Goodbye { term, reason: reason.into(), text }));
    prop_oneof![hello, welcome, refuse, goodbye]
}

fn checkpoint() -> impl Strategy<Value = Message> {
    let head = (identity(), moment(), number(), number(), digest(), bytes(2000)).prop_map(
        |(identity, moment, outputs_before, ram_bytes, digest, state)| CheckpointHead {
            identity,
            moment,
            outputs_before,
            ram_bytes,
            digest,
            state,
        },
    );
    let port = proptest::option::of(any::<u8>());
    let held = (number(), moment(), port, bytes(200)).prop_map(|(ordinal, at, port, bytes)| {
        let output = match port {
            Some(port) => Output::Frame { port, frame: bytes },
            None => Output::Console(bytes),
        };
        LoggedOutput { ordinal, at, output }
    });
    let start = (position(), chain(), number(), number(), vec(held, 0..4), head).prop_map(
        |(position, chain, events_before, released_outputs, held, head)| {
            Message::CheckpointHead(CheckpointStart {
                position,
                chain,
                events_before,
                released_outputs,
                held,
                head,
            })
        },
    );
    let start = start.boxed();
    let increment = (start.clone(), number()).prop_map(|(start, base)| match start {
        Message::CheckpointHead(start) => Message::IncrementHead(IncrementStart {
            position: start.position,
            chain: start.chain,
            base,
            events_before: start.events_before,
            released_outputs: start.released_outputs,
            held: start.held,
            head: start.head,
        }),
        other => other,
    });
    let packed = (number(), any::<u8>(), bytes(4200)).boxed();
    let packed_page =
        packed.clone().prop_map(|(index, encoding, packed)| EncodedPage { index, encoding, packed });
    let packed_block = (any::<u8>(), packed).prop_map(|(disk, (index, encoding, packed))| EncodedBlock {
        disk,
        index,
        encoding,
        packed,
    });
    let increment_part = (vec(packed_page, 0..4), vec(packed_block, 0..3))
        .prop_map(|(pages, blocks)| Message::IncrementPart(EncodedPart { pages, blocks }));
    let increment_end = (number(), digest())
        .prop_map(|(parts, digest)| Message::IncrementEnd(IncrementEnd { parts, digest }));
    let page = (number(), proptest::option::of(bytes(4097))).prop_map(|(index, data)| Page { index, data });
    let block =
        (any::<u8>(), number(), bytes(4097)).prop_map(|(disk, index, data)| DiskBlock { disk, index, data });
    let part = (vec(page, 0..4), vec(block, 0..3))
        .prop_map(|(pages, blocks)| Message::CheckpointPart(CheckpointPart { pages, blocks }));
    let end = number().prop_map(|parts| Message::CheckpointEnd(CheckpointEnd { parts }));
    prop_oneof![start, part, end, increment, increment_part, increment_end]
}

fn disks() -> impl Strategy<Value = Message> {
    let page = (number(), digest()).prop_map(|(index, hash)| OfferedPage { index, hash });
    let block = (any::<u8>(), number(), digest())
        .prop_map(|(disk, index, hash)| OfferedBlock { disk, index, hash })
        .boxed();
    let part =
        prop_oneof![Just(ImagePart::Identity), Just(ImagePart::Hashes), Just(ImagePart::Contents)].boxed();
    let donor = (number(), any::<bool>(), any::<bool>())
        .prop_map(|(term, memory, disks)| Message::Donor(Donor { term, memory, disks }));
    let offer = (number(), vec(page, 0..20), vec(block.clone(), 0..20))
        .prop_map(|(bite, pages, blocks)| Message::Offer(Offer { bite, pages, blocks }));
    let want = (number(), bytes(40), bytes(40))
        .prop_map(|(bite, pages, blocks)| Message::Want(Want { bite, pages, blocks }));
    let check = (number(), number(), number())
        .prop_map(|(term, sequence, check)| Message::DiskCheck(DiskCheck { term, sequence, check }));
    let hashes = (number(), vec(block, 0..20), any::<bool>(), "\\PC{0,40}").prop_map(
        |(check, blocks, is_last, error)| Message::DiskHashes(DiskHashes { check, blocks, is_last, error }),
    );
    let request = ("\\PC{0,40}", any::<u8>(), part.clone(), number(), number()).prop_map(
        |(vm, disk, part, at, len_bytes)| {
            Message::ImageRequest(ImageRequest { vm, disk, part, at, len_bytes })
        },
    );
    let reply = (any::<u8>(), part, number(), number(), any::<[u8; 32]>(), bytes(4200)).prop_map(
        |(disk, part, at, image_bytes, image_hash, data)| {
            Message::ImageReply(ImageReply { disk, part, at, image_bytes, image_hash, data })
        },
    );
    let address = (any::<std::net::IpAddr>(), any::<u16>())
        .prop_map(|place| Message::Address(Address { listen: place.into() }));
    prop_oneof![donor, offer, want, check, hashes, request, reply, address]
}

fn running() -> impl Strategy<Value = Message> {
    let sealed =
        (batch(8), chain()).prop_map(|(batch, previous)| Message::Batch(batch.seal(previous).unwrap()));
    let mark = proptest::option::of(moment());
    let heartbeat = (number(), number(), number(), mark, number(), any::<bool>()).prop_map(
        |(term, after_sequence, sent_ns, mark, released_outputs, required)| {
            Message::Heartbeat(Heartbeat { term, after_sequence, sent_ns, mark, released_outputs, required })
        },
    );
    let reply = (number(), number(), moment(), number()).prop_map(|(term, echo_ns, replayed, held)| {
        Message::HeartbeatReply(HeartbeatReply { term, echo_ns, replayed, held })
    });
    let ack = (number(), number(), any::<bool>())
        .prop_map(|(term, sequence, durable)| Message::Ack(Ack { term, sequence, durable }));
    let ready = (number(), number()).prop_map(|(term, sequence)| Message::Ready(Ready { term, sequence }));
    let divergence = (number(), moment(), digest(), digest(), "\\PC{0,200}").prop_map(
        |(term, at, expected, found, what)| {
            Message::Divergence(Divergence { term, at, expected, found, what })
        },
    );
    let mode = (number(), number(), proptest::sample::select(ProtectionMode::ALL.to_vec()))
        .prop_map(|(term, sequence, mode)| Message::Mode(ModeChange { term, sequence, mode }));
    prop_oneof![sealed, heartbeat, reply, ack, ready, divergence, mode]
}
