//! Narrows the difference between two executions down to one instruction.

use anyhow::Result;
use machine::{Difference, Machine};
use serde_json::{Value, json};

use crate::history::{Arrival, History};
use crate::log::moment;

/// Where two executions part.
pub struct Parting {
    /// Up to here, right before this instruction, both are in the same state.
    pub icount: u64,
    /// The instruction in each of them: what executes between the last place at which they are
    /// equal and the first at which they differ.
    pub instructions: [Option<Instruction>; 2],
    /// What differs right behind it.
    pub differences: Vec<Difference>,
    /// The last line printed before it, with its guest time in nanoseconds.
    pub printed: Option<(u64, String)>,
    /// Replays it took to find.
    pub steps: u32,
}

/// An instruction about to execute.
pub struct Instruction {
    /// The hart.
    pub hart: usize,
    /// Its program counter.
    pub pc: u64,
    /// The instruction's bytes as a number, where they can be read; 16 bits if it is compressed.
    pub word: Option<u32>,
}

impl Instruction {
    fn at(history: &History) -> Option<Instruction> {
        let machine = history.machine();
        let hart = machine.hart_in_turn();
        let pc = machine.hart(hart)?.pc();
        let mut bytes = [0; 4];
        let len = machine.read_virtual(hart, pc, &mut bytes);
        let word = match (len, bytes[0] & 3) {
            (4, 3) => Some(u32::from_le_bytes(bytes)),
            (2..=4, 0..=2) => Some(u32::from(u16::from_le_bytes([bytes[0], bytes[1]]))),
            _ => None,
        };
        Some(Instruction { hart, pc, word })
    }

    /// The instruction's bytes as they are written.
    pub fn word_text(&self) -> String {
        match self.word {
            Some(word) if word & 3 == 3 => format!("{word:08x}"),
            Some(word) => format!("{word:04x}"),
            None => "not in memory".to_owned(),
        }
    }

    fn to_json(&self) -> Value {
        json!({ "hart": self.hart, "pc": format!("{:#x}", self.pc), "word": self.word_text() })
    }
}

impl Parting {
    /// Finds where `a` and `b`, which are equal at `equal` and differ at `differing`, part. `None`
    /// if they do not differ there after all, or already do at `equal`.
    ///
    /// # Errors
    /// When a log can no longer be read.
    pub fn find(
        a: &mut History,
        b: &mut History,
        equal: u64,
        differing: u64,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Option<Parting>> {
        a.stop_comparing()?;
        b.stop_comparing()?;
        if !differ_at(a, b, differing)? || differ_at(a, b, equal)? {
            return Ok(None);
        }
        let (mut equal, mut differing, mut steps) = (equal, differing, 2);
        while differing - equal > 1 {
            progress(equal, differing);
            let middle = equal + (differing - equal) / 2;
            *if differ_at(a, b, middle)? { &mut differing } else { &mut equal } = middle;
            steps += 1;
        }
        differ_at(a, b, equal)?;
        let instructions = [Instruction::at(a), Instruction::at(b)];
        let printed = last_line(a);
        differ_at(a, b, differing)?;
        let differences = a.machine_mut().differences(b.machine_mut())?;
        Ok(Some(Parting { icount: equal, instructions, differences, printed, steps }))
    }

    /// Lines for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "equal before instruction {}, different behind it (found in {} replays)",
            self.icount, self.steps
        )];
        for (side, instruction) in ["A", "B"].iter().zip(&self.instructions) {
            if let Some(Instruction { hart, pc, .. }) = instruction {
                let word = instruction.as_ref().map(Instruction::word_text).unwrap_or_default();
                lines.push(format!("  {side}: hart {hart}, pc {pc:#x}, instruction {word}"));
            }
        }
        if let Some((time_ns, line)) = &self.printed {
            lines.push(format!("  last printed before: [{:>12.6}] {line}", *time_ns as f64 / 1e9));
        }
        lines.push("what differs behind it:".to_owned());
        lines.extend(
            self.differences
                .iter()
                .map(|found| format!("  {}: A {}, B {}", found.what, found.one, found.other)),
        );
        lines
    }

    /// The same for programs.
    pub fn to_json(&self) -> Value {
        let differences: Vec<Value> = self
            .differences
            .iter()
            .map(|found| json!({ "what": found.what, "a": found.one, "b": found.other }))
            .collect();
        let [a, b] = &self.instructions;
        json!({
            "icount": self.icount,
            "a": a.as_ref().map(Instruction::to_json),
            "b": b.as_ref().map(Instruction::to_json),
            "differences": differences,
            "printed_before": self.printed.as_ref().map(|(time_ns, line)| json!({ "time_ns": time_ns, "line": line })),
            "replays": self.steps,
        })
    }
}

/// Brings both to a place and compares them there. One that does not come there, while the other
/// does, differs.
fn differ_at(a: &mut History, b: &mut History, icount: u64) -> Result<bool> {
    let arrivals = [a.seek(icount, &mut || false)?, b.seek(icount, &mut || false)?];
    if arrivals[0] != arrivals[1] || a.moment() != b.moment() {
        return Ok(true);
    }
    if arrivals[0] != Arrival::There {
        tracing::debug!("both end at {}", moment(a.moment()));
    }
    Ok(a.machine_mut().digest() != b.machine_mut().digest())
}

/// The last line that the guest printed.
fn last_line(history: &History) -> Option<(u64, String)> {
    let mut lines: Vec<(u64, String)> = Vec::new();
    let mut is_open = false;
    for logged in history.printed() {
        let log_format::Output::Console(bytes) = &logged.output else { continue };
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = String::from_utf8_lossy(piece);
            match lines.last_mut() {
                Some((_, line)) if is_open => line.push_str(&text),
                _ => lines = vec![(logged.at.time_ns, text.into_owned())],
            }
            is_open = !piece.ends_with(b"\n");
        }
    }
    lines.pop().map(|(time_ns, line)| (time_ns, line.trim_end().escape_debug().to_string()))
}
