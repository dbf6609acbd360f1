//! Values that the tests share: one of each message and record, the same in every run.

// Every test file uses its own part of this.
#![allow(dead_code, clippy::unwrap_used)]

pub mod decoders;
pub mod reseal;
pub mod strategies;

use bytes::Bytes;
use log_format::*;

pub fn identity() -> MachineIdentity {
    MachineIdentity {
        semantics: 1,
        config: std::array::from_fn(|i| i as u8),
        boot_images: std::array::from_fn(|i| 255 - i as u8),
        disks: vec![(1 << 30, [0x5a; 32]), (4096, [0xc3; 32])],
    }
}

pub fn moment(icount: u64, time_ns: u64) -> Moment {
    Moment { icount, time_ns }
}

pub fn position() -> Position {
    Position { term: 3, moment: moment(9_000_000_000, 12_345_678_901), sequence: 77 }
}

pub fn chain() -> ChainHash {
    ChainHash(std::array::from_fn(|i| 16 * i as u8))
}

pub fn digest(fill: u8) -> Digest {
    Digest([fill; 16])
}

/// Every kind of event, digests and outputs.
pub fn full_batch() -> Batch {
    let end = moment(5_000_000, 9_000_000);
    let events = [
        Event::NetworkIn {
            port: 1,
            frame: Bytes::from_static(b"\x52\x54\0\x12\x34\x56\x52\x55\x0a\0\x02\x02\x08\0E\0"),
        },
        Event::ConsoleIn(Bytes::from_static(b"ls\n")),
        Event::ClockAdvance { delta_ns: 4_000_000 },
        Event::Entropy(Bytes::from_static(&[9; 32])),
        Event::WallClock { unix_ns: 1_795_000_000_000_000_000 },
        Event::Control(Control::PowerButton),
        Event::Control(Control::Reset),
        Event::Control(Control::Announce),
    ];
    let events: Vec<LoggedEvent> = events
        .into_iter()
        .zip(1u64..)
        .map(|(event, n)| LoggedEvent { at: moment(4_000_000 + 1000 * n, 7_000_000 + 3000 * n), event })
        .collect();
    Batch {
        term: 3,
        sequence: 78,
        end,
        digests: vec![
            LoggedDigest { at: moment(4_000_000, 7_000_000), events_before: 1000, digest: digest(0x11) },
            LoggedDigest { at: end, events_before: 1008, digest: digest(0xee) },
        ],
        events,
        first_output: 500,
        output_hashes: vec![0xdead_beef, 1, u32::MAX],
        released_outputs: 498,
    }
}

/// A batch without events: a mark.
pub fn mark_batch() -> Batch {
    Batch {
        term: 3,
        sequence: 79,
        end: moment(6_000_000, 10_000_000),
        first_output: 503,
        released_outputs: 503,
        ..Batch::default()
    }
}

/// A batch large and regular enough to be compressed.
pub fn compressible_batch() -> Batch {
    let frame: Bytes = b"GET /ledger HTTP/1.1\r\n".repeat(40).into();
    Batch {
        term: 3,
        sequence: 80,
        end: moment(7_000_000, 11_000_000),
        events: (0..10)
            .map(|n| LoggedEvent {
                at: moment(6_100_000 + n, 10_100_000 + n),
                event: Event::NetworkIn { port: 0, frame: frame.clone() },
            })
            .collect(),
        first_output: 503,
        released_outputs: 503,
        ..Batch::default()
    }
}

pub fn segment_header() -> SegmentHeader {
    SegmentHeader {
        position: position(),
        chain: chain(),
        log_start: 5,
        vm: "ledger".into(),
        identity: identity(),
        boot: Bytes::from_static(b"harts = 1\n"),
    }
}

pub fn segment_end() -> SegmentEnd {
    SegmentEnd { position: position(), chain: chain(), last: true, batches: 72 }
}

/// One of each message, with a name for its golden file.
pub fn messages() -> Vec<(&'static str, Message)> {
    let page = |fill| Page { index: u64::from(fill), data: Some(vec![fill; 4096].into()) };
    vec![
        (
            "hello",
            Message::Hello(Hello {
                term: 3,
                life: Life::UNKNOWN,
                versions: VersionRange { min: 1, max: 1 },
                vm: "ledger".into(),
                node: "node-b".into(),
                identity: identity(),
                have: Some(Have { position: position(), chain: chain() }),
                has_boot_images: true,
            }),
        ),
        (
            "welcome",
            Message::Welcome(Welcome {
                from: position(),
                chain: chain(),
                version: 1,
                node: "node-a".into(),
                term: 3,
                plan: JoinPlan::Resume,
                identity: identity(),
                heartbeat_interval_ms: 20,
            }),
        ),
        (
            "refuse",
            Message::Refuse(Refuse {
                term: 4,
                reason: RefuseReason::StaleTerm,
                text: "found term 3, expected 4".into(),
            }),
        ),
        (
            "checkpoint-head",
            Message::CheckpointHead(CheckpointStart {
                position: position(),
                chain: chain(),
                events_before: 1008,
                released_outputs: 501,
                held: vec![
                    LoggedOutput {
                        ordinal: 501,
                        at: position().moment,
                        output: Output::Frame { port: 1, frame: vec![9; 20].into() },
                    },
                    LoggedOutput {
                        ordinal: 502,
                        at: position().moment,
                        output: Output::Console(b"login: ".to_vec().into()),
                    },
                ],
                head: CheckpointHead {
                    identity: identity(),
                    moment: position().moment,
                    outputs_before: 503,
                    ram_bytes: 64 << 20,
                    digest: digest(0xab),
                    state: (0..=255).collect(),
                },
            }),
        ),
        (
            "checkpoint-part",
            Message::CheckpointPart(CheckpointPart {
                pages: vec![page(7), Page { index: 8, data: None }],
                blocks: vec![DiskBlock { disk: 1, index: 12, data: vec![3; 4096].into() }],
            }),
        ),
        ("checkpoint-end", Message::CheckpointEnd(CheckpointEnd { parts: 12 })),
        ("batch", Message::Batch(full_batch().seal(chain()).unwrap())),
        ("batch-mark", Message::Batch(mark_batch().seal(chain()).unwrap())),
        ("batch-compressed", Message::Batch(compressible_batch().seal(chain()).unwrap())),
        (
            "heartbeat",
            Message::Heartbeat(Heartbeat {
                term: 3,
                after_sequence: 80,
                sent_ns: 123_456_789,
                mark: Some(moment(8_000_000, 12_000_000)),
                released_outputs: 503,
                required: true,
            }),
        ),
        (
            "heartbeat-reply",
            Message::HeartbeatReply(HeartbeatReply {
                term: 3,
                echo_ns: 123_456_789,
                replayed: moment(7_500_000, 11_000_000),
                held: 80,
            }),
        ),
        ("ack", Message::Ack(Ack { term: 3, sequence: 80, durable: true })),
        ("ready", Message::Ready(Ready { term: 3, sequence: 80 })),
        (
            "divergence",
            Message::Divergence(Divergence {
                term: 3,
                at: moment(8_000_000, 12_000_000),
                expected: digest(1),
                found: digest(2),
                what: "digest".into(),
            }),
        ),
        (
            "goodbye",
            Message::Goodbye(Goodbye {
                term: 3,
                reason: GoodbyeReason::GuestEnded,
                text: "the guest powered itself off".into(),
            }),
        ),
        ("mode", Message::Mode(ModeChange { term: 3, sequence: 80, mode: ProtectionMode::Checkpoint })),
        ("increment-head", Message::IncrementHead(increment_start())),
        (
            "increment-part",
            Message::IncrementPart(EncodedPart {
                pages: vec![EncodedPage { index: 7, encoding: 4, packed: vec![1, 2, 3].into() }],
                blocks: vec![EncodedBlock { disk: 1, index: 12, encoding: 0, packed: Bytes::new() }],
            }),
        ),
        ("increment-end", Message::IncrementEnd(IncrementEnd { parts: 12, digest: digest(0xcd) })),
        ("donor", Message::Donor(Donor { term: 3, memory: true, disks: false })),
        ("offer", Message::Offer(offer())),
        ("want", Message::Want(Want::of(&offer(), |page| page.index == 9, |_| true))),
        ("disk-check", Message::DiskCheck(DiskCheck { term: 3, sequence: 80, check: 2 })),
        (
            "disk-hashes",
            Message::DiskHashes(DiskHashes {
                check: 2,
                blocks: offer().blocks,
                is_last: true,
                error: String::new(),
            }),
        ),
        (
            "image-request",
            Message::ImageRequest(ImageRequest {
                vm: "db".into(),
                disk: 1,
                part: ImagePart::Hashes,
                at: 1 << 20,
                len_bytes: 2 << 20,
            }),
        ),
        (
            "image-reply",
            Message::ImageReply(ImageReply {
                disk: 1,
                part: ImagePart::Identity,
                at: 0,
                image_bytes: 2 << 30,
                image_hash: [0x5a; 32],
                data: Bytes::from_static(b"data"),
            }),
        ),
        ("address", Message::Address(Address { listen: "192.0.2.7:7420".parse().unwrap() })),
    ]
}

fn offer() -> Offer {
    Offer {
        bite: 4,
        pages: vec![
            OfferedPage { index: 7, hash: digest(0x11) },
            OfferedPage { index: 9, hash: digest(0x22) },
        ],
        blocks: vec![OfferedBlock { disk: 1, index: 12, hash: digest(0x33) }],
    }
}

fn increment_start() -> IncrementStart {
    IncrementStart {
        position: position(),
        chain: chain(),
        base: 77,
        events_before: 400,
        released_outputs: 500,
        held: vec![LoggedOutput {
            ordinal: 501,
            at: moment(7_000_000, 9_000_000),
            output: Output::Console(b"held".to_vec().into()),
        }],
        head: CheckpointHead {
            identity: identity(),
            moment: position().moment,
            outputs_before: 502,
            ram_bytes: 64 << 20,
            digest: Digest::default(),
            state: (0..=255).collect(),
        },
    }
}

/// The frame of one of every kind, with a name for its golden file.
pub fn frames() -> Vec<(&'static str, Bytes)> {
    let mut frames: Vec<_> =
        messages().into_iter().map(|(name, message)| (name, message.encode().unwrap())).collect();
    frames.push(("segment-header", segment_header().encode().unwrap()));
    frames.push(("segment-end", segment_end().encode().unwrap()));
    frames
}
