//! The first difference between two logs, without executing anything.

use std::collections::VecDeque;
use std::path::Path;

use anyhow::Result;
use log_format::{LoggedDigest, LoggedEvent, MachineIdentity};
use serde_json::{Value, json};
use store::LogReader;

use crate::log::{describe, moment};

/// Where two logs differ first, by what is in them. How they are cut into batches does not
/// count.
#[derive(Default)]
pub struct LogDifferences {
    /// What the machines differ in; nothing else is compared then.
    pub machine: Vec<String>,
    /// Number of the first event that differs, and what each log has there.
    pub event: Option<(u64, Option<LoggedEvent>, Option<LoggedEvent>)>,
    /// The first two digests of one place that differ.
    pub digest: Option<(LoggedDigest, LoggedDigest)>,
    /// Number of the first output whose hashes differ, and what each log has there.
    pub output: Option<(u64, Option<u32>, Option<u32>)>,
    /// Why a log ends early.
    pub damage: Vec<String>,
}

impl LogDifferences {
    /// Compares the logs in two folders.
    ///
    /// # Errors
    /// When there is no log.
    pub fn between(a: &Path, b: &Path) -> Result<LogDifferences> {
        let (mut a, mut b) = (Contents::open(a)?, Contents::open(b)?);
        let mut found = LogDifferences {
            machine: machine_differences(&a.reader.header().identity, &b.reader.header().identity),
            ..LogDifferences::default()
        };
        if !found.machine.is_empty() {
            return Ok(found);
        }
        while !(found.event.is_some() && found.digest.is_some() && found.output.is_some()) {
            let more = [a.read(), b.read()];
            found.compare(&mut a, &mut b);
            if more == [false, false] {
                break;
            }
        }
        found.damage = a.damage.into_iter().chain(b.damage).collect();
        Ok(found)
    }

    /// Whether the logs hold the same.
    pub fn is_empty(&self) -> bool {
        self.machine.is_empty() && self.event.is_none() && self.digest.is_none() && self.output.is_none()
    }

    /// Compares what both have, or what one has that the other has ended before.
    fn compare(&mut self, a: &mut Contents, b: &mut Contents) {
        while let Some((one, other)) = next_pair(&mut a.events, &mut b.events, a.ended, b.ended) {
            if self.event.is_none() && one != other {
                self.event = Some((a.compared_events, one, other));
            }
            a.compared_events += 1;
        }
        while let Some((one, other)) = next_pair(&mut a.outputs, &mut b.outputs, a.ended, b.ended) {
            if self.output.is_none() && one != other {
                self.output = Some((a.compared_outputs, one, other));
            }
            a.compared_outputs += 1;
        }
        // Two recordings of one execution may take their digests at places of their own.
        while let (Some(one), Some(other)) = (a.digests.front(), b.digests.front()) {
            let (here, there) = ((one.at, one.events_before), (other.at, other.events_before));
            if self.digest.is_none() && here == there && one.digest != other.digest {
                self.digest = Some((*one, *other));
            }
            if here <= there {
                a.digests.pop_front();
            }
            if there <= here {
                b.digests.pop_front();
            }
        }
    }

    /// One line for each difference.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.machine.clone();
        let show_event = |event: &Option<LoggedEvent>| match event {
            Some(event) => format!("{}: {}", moment(event.at), describe(&event.event)),
            None => "the log ends".to_owned(),
        };
        let show_hash = |hash: &Option<u32>| hash.map_or("none".to_owned(), |hash| format!("{hash:08x}"));
        if let Some((number, a, b)) = &self.event {
            lines.push(format!("event {number} differs: A {}; B {}", show_event(a), show_event(b)));
        }
        if let Some((a, b)) = &self.digest {
            lines.push(format!("the digests at {} differ: A {}, B {}", moment(a.at), a.digest, b.digest));
        }
        if let Some((number, a, b)) = &self.output {
            lines.push(format!("output {number} differs: hash A {}, B {}", show_hash(a), show_hash(b)));
        }
        lines
    }

    /// The same for programs.
    pub fn to_json(&self) -> Value {
        let event = |event: &Option<LoggedEvent>| {
            event.as_ref().map(|event| {
                let (icount, time_ns) = (event.at.icount, event.at.time_ns);
                json!({ "icount": icount, "time_ns": time_ns, "event": describe(&event.event) })
            })
        };
        json!({
            "machine": self.machine,
            "event": self.event.as_ref().map(|(number, a, b)| json!({ "number": number, "a": event(a), "b": event(b) })),
            "digest": self.digest.as_ref().map(|(a, b)| json!({
                "icount": a.at.icount, "time_ns": a.at.time_ns,
                "a": a.digest.to_string(), "b": b.digest.to_string(),
            })),
            "output": self.output.as_ref().map(|(number, a, b)| json!({ "number": number, "a": a, "b": b })),
            "damage": self.damage,
        })
    }
}

/// What is read of a log and not compared yet.
struct Contents {
    reader: LogReader,
    events: VecDeque<LoggedEvent>,
    digests: VecDeque<LoggedDigest>,
    outputs: VecDeque<u32>,
    compared_events: u64,
    compared_outputs: u64,
    ended: bool,
    damage: Option<String>,
}

impl Contents {
    fn open(dir: &Path) -> Result<Contents> {
        Ok(Contents {
            reader: LogReader::open(dir)?,
            events: VecDeque::new(),
            digests: VecDeque::new(),
            outputs: VecDeque::new(),
            compared_events: 0,
            compared_outputs: 0,
            ended: false,
            damage: None,
        })
    }

    /// Reads a batch. Returns whether there was one.
    fn read(&mut self) -> bool {
        match self.reader.next() {
            Some(Ok(batch)) => {
                let batch = batch.into_batch();
                self.events.extend(batch.events);
                self.digests.extend(batch.digests);
                self.outputs.extend(batch.output_hashes);
            }
            Some(Err(error)) => {
                self.damage = Some(error.to_string());
                self.ended = true;
            }
            None => self.ended = true,
        }
        !self.ended
    }
}

/// The next of both, once it is known for both; `None` for a log that has ended.
fn next_pair<T>(
    a: &mut VecDeque<T>,
    b: &mut VecDeque<T>,
    a_ended: bool,
    b_ended: bool,
) -> Option<(Option<T>, Option<T>)> {
    let is_known = (!a.is_empty() || a_ended) && (!b.is_empty() || b_ended);
    let is_there = !a.is_empty() || !b.is_empty();
    (is_known && is_there).then(|| (a.pop_front(), b.pop_front()))
}

fn machine_differences(a: &MachineIdentity, b: &MachineIdentity) -> Vec<String> {
    let parts = [
        (a.semantics == b.semantics, "the versions of their semantics"),
        (a.config == b.config, "their configurations"),
        (a.boot_images == b.boot_images, "their boot images"),
        (a.disks == b.disks, "their disks"),
    ];
    let differing = parts.into_iter().filter(|(same, _)| !same);
    differing.map(|(_, what)| format!("they are of different machines: {what} differ")).collect()
}
