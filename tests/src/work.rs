//! Fixed pieces of work, the same in each run: `benches/small.rs` measures how long they take, and the
//! program `instructions` counts the host's instructions.

use bytes::Bytes;
use link::arbitration::Record;
use log_format::page_codec::{Encoder, Encoding, PAGE_BYTES, decode_part};
use log_format::{
    Ack, Batch, ChainHash, CheckpointPart, Digest, Event, Hello, Life, LoggedDigest, LoggedEvent,
    LoggedOutput, MachineIdentity, Message, Moment, Output, PROTOCOL_VERSION, Page, Ready, SealedBatch,
    VersionRange,
};
use machine::ram::Ram;
use machine::{CheckpointExtent, PrimacyStart, content_hash};
use netbuf::{BufferLimits, OutputBuffer};
use primary::{ConnectionId, CoreConfig, FromMachine, Primary, Recorded};

use crate::sim::random::Random;

/// Events, outputs or pages of a piece of work.
pub const AT_ONCE: usize = 64;
/// Pages packed at once: fewer than an encoder tries before it finds that nothing repeats.
pub const PACKED_AT_ONCE: usize = 24;
/// Pages written to, where there are many.
pub const DIRTY_PAGES: u64 = 1000;
const RAM_PAGES: u64 = 16 << 10;
/// Where a guest's memory begins.
const RAM_BASE: u64 = 0x8000_0000;
const FRAME_BYTES: usize = 200;
/// Between the moments of events.
const STEP: u64 = 1000;

/// Does a piece of work again with each call.
pub type Work = Box<dyn FnMut()>;

/// A piece of work.
pub struct Piece {
    /// Its name.
    pub name: &'static str,
    /// What it works on, one after the other.
    pub count: u64,
    /// Prepares it.
    pub make: fn() -> Work,
}

/// All of them.
pub const PIECES: &[Piece] = &[
    Piece { name: "batch-seal-64-events", count: AT_ONCE as u64, make: batch_seal },
    Piece { name: "batch-decode-64-events", count: AT_ONCE as u64, make: batch_decode },
    Piece { name: "batch-seal-mark", count: 1, make: mark_seal },
    Piece { name: "page-encode-raw", count: PACKED_AT_ONCE as u64, make: || page_encode(Encoding::Raw) },
    Piece { name: "page-encode-zero", count: PACKED_AT_ONCE as u64, make: || page_encode(Encoding::Zero) },
    Piece { name: "page-encode-delta", count: PACKED_AT_ONCE as u64, make: || page_encode(Encoding::Delta) },
    Piece { name: "page-encode-copy", count: PACKED_AT_ONCE as u64, make: || page_encode(Encoding::Copy) },
    Piece { name: "page-encode-zstd", count: PACKED_AT_ONCE as u64, make: || page_encode(Encoding::Zstd) },
    Piece { name: "page-decode-delta", count: PACKED_AT_ONCE as u64, make: || page_decode(Encoding::Delta) },
    Piece { name: "page-decode-copy", count: PACKED_AT_ONCE as u64, make: || page_decode(Encoding::Copy) },
    Piece { name: "page-decode-zstd", count: PACKED_AT_ONCE as u64, make: || page_decode(Encoding::Zstd) },
    Piece { name: "digest-page", count: 1, make: digest_page },
    Piece { name: "digest-1000-dirty-pages", count: DIRTY_PAGES, make: digest_dirty },
    Piece { name: "ram-freeze-1000-dirty-pages", count: DIRTY_PAGES, make: ram_freeze },
    Piece { name: "ram-copy-on-write-1000-pages", count: DIRTY_PAGES, make: ram_copy_on_write },
    Piece { name: "ram-write-4-mib", count: 1, make: ram_write },
    Piece { name: "buffer-hold-commit-release", count: AT_ONCE as u64, make: buffer_round },
    Piece { name: "core-event-alone", count: AT_ONCE as u64, make: core_alone },
    Piece { name: "core-event-protected", count: AT_ONCE as u64, make: core_protected },
];

// --- the log ------------------------------------------------------------------------------

fn identity() -> MachineIdentity {
    MachineIdentity { semantics: 1, config: [1; 32], boot_images: [2; 32], disks: Vec::new() }
}

fn genesis() -> ChainHash {
    ChainHash::genesis(&identity())
}

fn moment(number: u64) -> Moment {
    Moment { icount: STEP * number, time_ns: STEP * number }
}

/// A frame that zstd makes little of.
fn frame(random: &mut Random) -> Bytes {
    let mut frame = Vec::with_capacity(FRAME_BYTES);
    while frame.len() < FRAME_BYTES {
        frame.extend(random.next_u64().to_le_bytes());
    }
    frame.truncate(FRAME_BYTES);
    frame.into()
}

/// What a machine under load logs: a frame in, an answer out, and a digest in the end.
fn batch() -> Batch {
    let mut random = Random::new(1);
    let mut batch = Batch { term: 1, sequence: 1, end: moment(AT_ONCE as u64 + 1), ..Batch::default() };
    for number in 1..=AT_ONCE as u64 {
        let event = Event::NetworkIn { port: 0, frame: frame(&mut random) };
        batch.events.push(LoggedEvent { at: moment(number), event });
        batch.output_hashes.push(number as u32);
    }
    let events_before = AT_ONCE as u64;
    batch.digests.push(LoggedDigest { at: batch.end, events_before, digest: Digest([7; 16]) });
    batch
}

fn batch_seal() -> Work {
    let batch = batch();
    Box::new(move || {
        keep(batch.clone().seal(genesis()).expect("it is in order"));
    })
}

fn batch_decode() -> Work {
    let bytes = batch().seal(genesis()).expect("it is in order").bytes().clone();
    Box::new(move || {
        keep(SealedBatch::decode(&bytes).expect("it was sealed"));
    })
}

fn mark_seal() -> Work {
    let mark = Batch { term: 1, sequence: 1, end: moment(1), ..Batch::default() };
    Box::new(move || {
        keep(mark.clone().seal(genesis()).expect("it is in order"));
    })
}

// --- pages --------------------------------------------------------------------------------

/// The contents of a page: bytes without any pattern.
fn noise(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..PAGE_BYTES / 8).flat_map(|_| random.next_u64().to_le_bytes()).collect()
}

/// Words that repeat, as a text does.
fn prose(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let words = ["machine", "replay", "log", "output", "commit", "backup", "term", "epoch"];
    let mut text = String::new();
    while text.len() < PAGE_BYTES {
        text.push_str(random.pick::<&str>(&words));
        text.push_str(&random.between(0, 99).to_string());
    }
    text.truncate(PAGE_BYTES);
    text.into_bytes()
}

fn part(contents: impl Fn(u64) -> Option<Vec<u8>>) -> CheckpointPart {
    let page = |index| Page { index, data: contents(index).map(Bytes::from) };
    CheckpointPart { pages: (0..PACKED_AT_ONCE as u64).map(page).collect(), blocks: Vec::new() }
}

/// The states between which pages go back and forth so that they are packed in one way.
fn states(encoding: Encoding) -> [CheckpointPart; 2] {
    [0, 1].map(|state| {
        part(|index| match encoding {
            // Of noise that was never seen there is no end: what is known is forgotten.
            Encoding::Raw => Some(noise(2 * index + state)),
            Encoding::Zero => None,
            Encoding::Delta => {
                let mut page = noise(index);
                page[100..132].fill(state as u8);
                Some(page)
            }
            // Pages change places.
            Encoding::Copy => Some(noise(index ^ state)),
            Encoding::Zstd => Some(prose(2 * index + state)),
        })
    })
}

fn knows_nothing(encoding: Encoding) -> bool {
    matches!(encoding, Encoding::Raw | Encoding::Zstd)
}

fn page_encode(encoding: Encoding) -> Work {
    let states = states(encoding);
    let mut encoder = Encoder::new(None);
    let mut turn = 0;
    Box::new(move || {
        if knows_nothing(encoding) {
            encoder.forget();
        }
        encoder.begin();
        let packed = keep(encoder.encode(states[turn % 2].clone()));
        encoder.end();
        let meant = packed.pages.iter().filter(|page| page.encoding == encoding as u8).count();
        // Other ways are tried now and then; and nothing is known at first.
        assert!(turn == 0 || meant * 10 >= PACKED_AT_ONCE * 9, "{encoding:?}: {meant} pages in turn {turn}");
        turn += 1;
    })
}

fn page_decode(encoding: Encoding) -> Work {
    let [before, after] = states(encoding);
    let mut encoder = Encoder::new(None);
    if !knows_nothing(encoding) {
        encoder.begin();
        encoder.encode(before.clone());
        encoder.end();
    }
    encoder.begin();
    let packed = encoder.encode(after);
    assert!(packed.pages.iter().all(|page| page.encoding == encoding as u8), "{encoding:?} is not tried");
    Box::new(move || {
        let source = |index: u64| before.pages.get(usize::try_from(index).ok()?)?.data.as_deref();
        keep(decode_part(&packed, source).expect("it was packed"));
    })
}

// --- memory -------------------------------------------------------------------------------

/// Memory all of which was written to and hashed, in no epoch.
fn ram() -> Ram {
    let mut ram = Ram::new(RAM_PAGES);
    for page in 0..RAM_PAGES {
        ram.write(RAM_BASE + page * PAGE_BYTES as u64, &page.to_le_bytes()).expect("there is such a page");
    }
    ram.digest();
    ram.begin_checkpoint(CheckpointExtent::Epoch);
    ram
}

/// Writes to pages all over the memory.
fn dirty(ram: &mut Ram, value: u64) {
    for number in 0..DIRTY_PAGES {
        let page = number * (RAM_PAGES / DIRTY_PAGES);
        ram.write(RAM_BASE + page * PAGE_BYTES as u64 + 8, &value.to_le_bytes())
            .expect("there is such a page");
    }
}

fn digest_page() -> Work {
    let page = noise(1);
    Box::new(move || {
        keep(content_hash(&page));
    })
}

fn digest_dirty() -> Work {
    let (mut ram, mut turn) = (ram(), 0);
    Box::new(move || {
        turn += 1;
        dirty(&mut ram, turn);
        keep(ram.digest());
    })
}

fn ram_freeze() -> Work {
    let (mut ram, mut turn) = (ram(), 0);
    Box::new(move || {
        turn += 1;
        dirty(&mut ram, turn);
        assert_eq!(ram.begin_checkpoint(CheckpointExtent::Increment), DIRTY_PAGES);
        while !keep(ram.take_pages(CheckpointExtent::Increment, AT_ONCE)).is_empty() {}
        ram.end_increment();
    })
}

fn ram_copy_on_write() -> Work {
    let (mut ram, mut turn) = (ram(), 0);
    Box::new(move || {
        turn += 1;
        ram.begin_checkpoint(CheckpointExtent::Full);
        dirty(&mut ram, turn);
        keep(ram.held_bytes());
        ram.cancel_checkpoint(CheckpointExtent::Full);
    })
}

fn ram_write() -> Work {
    let (mut ram, bytes) = (ram(), vec![7; 4 << 20]);
    Box::new(move || {
        ram.write(RAM_BASE, &bytes).expect("there is so much memory");
    })
}

// --- outputs ------------------------------------------------------------------------------

fn output(number: u64) -> LoggedOutput {
    let output = Output::Frame { port: 0, frame: Bytes::from_static(&[5; FRAME_BYTES]) };
    LoggedOutput { ordinal: number, at: moment(number + 1), output }
}

fn buffer_round() -> Work {
    let (mut buffer, mut next) = (OutputBuffer::new(BufferLimits::default()), 0);
    Box::new(move || {
        for _ in 0..AT_ONCE {
            buffer.hold(output(next), next);
            next += 1;
        }
        buffer.commit(moment(next));
        while keep(buffer.poll_release(next)).is_some() {}
    })
}

// --- the primary's core -------------------------------------------------------------------

/// The backup of [`protected`].
pub const CONNECTION: ConnectionId = ConnectionId(1);

/// What the machine did between two answers.
fn recorded(number: u64, frame: &Bytes) -> Recorded {
    let output = output(number);
    let event = Event::NetworkIn { port: 0, frame: frame.clone() };
    let end = output.at;
    Recorded {
        events: vec![LoggedEvent { at: end, event }],
        outputs: vec![output],
        end,
        ..Recorded::default()
    }
}

fn primary() -> Primary {
    Primary::new(CoreConfig::new("vm", "a", identity()), PrimacyStart::boot(&identity(), 1), 0)
}

/// One event and its answer after the other, each released before the next.
fn core_alone() -> Work {
    let mut primary = primary();
    let (frame, mut next) = (frame(&mut Random::new(1)), 0);
    Box::new(move || {
        for _ in 0..AT_ONCE {
            primary.handle_machine(FromMachine::Recorded(recorded(next, &frame)), next);
            next += 1;
            keep(primary.poll_release(next).expect("nobody has to hold it"));
        }
    })
}

/// The same, each acknowledged by a backup first.
fn core_protected() -> Work {
    let mut primary = protected();
    let (frame, mut next) = (frame(&mut Random::new(1)), 0);
    Box::new(move || {
        for _ in 0..AT_ONCE {
            primary.handle_machine(FromMachine::Recorded(recorded(next, &frame)), next);
            assert_eq!(primary.poll_release(next), None, "the backup has not got it");
            let mut sequence = 0;
            while let Some(message) = primary.poll_transmit(CONNECTION, true) {
                if let Message::Batch(sealed) = &message {
                    sequence = sealed.batch().sequence;
                }
                keep(message);
            }
            let ack = Ack { term: 1, sequence, durable: false };
            primary.handle_message(CONNECTION, Message::Ack(ack), next);
            next += 1;
            keep(primary.poll_release(next).expect("the backup has it"));
        }
    })
}

/// A primary whose backup, at [`CONNECTION`], is counted on.
pub fn protected() -> Primary {
    let mut primary = primary();
    primary.handle_connected(CONNECTION, None, 0);
    let hello = Hello {
        term: 0,
        life: Life::UNKNOWN,
        versions: VersionRange { min: PROTOCOL_VERSION, max: PROTOCOL_VERSION },
        vm: "vm".to_owned(),
        node: "b".to_owned(),
        identity: identity(),
        have: None,
        has_boot_images: true,
    };
    primary.handle_message(CONNECTION, Message::Hello(hello), 0);
    while primary.poll_transmit(CONNECTION, true).is_some() {}
    primary.handle_message(CONNECTION, Message::Ready(Ready { term: 1, sequence: 0 }), 0);
    assert!(primary.poll_arbiter_request(0).is_some(), "the backup is to be registered");
    primary.handle_arbiter_reply(Ok(Record::pair(1, "a", "b")), 0);
    assert!(primary.is_protected());
    primary
}

/// The value, without which the work might be left out.
fn keep<T>(value: T) -> T {
    std::hint::black_box(value)
}
