//! gdb's `monitor` commands: what only a recording can answer.

use anyhow::Result;
use log_format::{LoggedOutput, Output};

use super::target::DebugTarget;
use crate::history::{Arrival, History};
use crate::log::{describe, moment};

/// What is told to a gdb that was started from here: `goto` and `event`, which also make gdb look at its
/// registers and memory again.
pub const GDB_COMMANDS: &str = "\
set confirm off
define goto
monitor goto $arg0
maintenance flush register-cache
maintenance flush dcache
end
document goto
goto ICOUNT: goes to an instruction of the recording, or to start or end.
end
define event
monitor event $arg0
maintenance flush register-cache
maintenance flush dcache
end
document event
event next, event prev: goes to an input of the recording.
end
";

const HELP: &str = "\
where              the place: icount, guest time, harts
goto ICOUNT        go to right before an instruction; goto start, goto end
event next|prev    go to right behind the next or the last input
console [LINES]    what the guest printed so far, with guest times: the last LINES, or 20
phys on|off        whether gdb reads physical memory
xp ADDRESS [LEN]   show physical memory
After goto and event, gdb has to look again: maintenance flush register-cache
(a gdb started with `secondwind debug --gdb` has the commands goto and event, which do that)";

/// Lines of `console` unless somebody says otherwise.
const CONSOLE_LINES: usize = 20;
/// Bytes shown by `xp` unless somebody says otherwise, and at most.
const SHOWN_BYTES: u64 = 64;
const SHOWN_LIMIT_BYTES: u64 = 4096;

/// Executes a command. What it cannot do it says in its answer.
///
/// # Errors
/// When the log can no longer be read.
pub fn execute(target: &mut DebugTarget, command: &str) -> Result<String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    Ok(match words[..] {
        [] | ["help"] => HELP.to_owned(),
        ["where"] => place(&target.history),
        ["goto", "start"] => goto(target, 0)?,
        ["goto", "end"] => goto(target, u64::MAX)?,
        ["goto", icount] => match number(icount) {
            Some(icount) => goto(target, icount)?,
            None => format!("{icount:?} is no icount; write a number, start or end"),
        },
        ["event", direction @ ("next" | "prev")] => event(target, direction == "next")?,
        ["console"] => console(&target.history, CONSOLE_LINES),
        ["console", lines] => match number(lines) {
            Some(lines) => console(&target.history, usize::try_from(lines).unwrap_or(usize::MAX)),
            None => format!("{lines:?} is no number of lines"),
        },
        ["phys", state @ ("on" | "off")] => {
            target.reads_physical = state == "on";
            format!("gdb reads {} memory", if target.reads_physical { "physical" } else { "virtual" })
        }
        ["xp", address] => show_physical(target, address, None),
        ["xp", address, len] => show_physical(target, address, Some(len)),
        _ => format!("there is no command {command:?}; try: monitor help"),
    })
}

/// A number as gdb's users write it.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.replace(['_', ','], "").parse().ok(),
    }
}

fn goto(target: &mut DebugTarget, icount: u64) -> Result<String> {
    let arrival = target.history.seek(icount, &mut || false)?;
    let ended = if arrival == Arrival::End { "this is the end of the recording\n" } else { "" };
    Ok(format!("{ended}{}", place(&target.history)))
}

fn event(target: &mut DebugTarget, is_next: bool) -> Result<String> {
    let history = &mut target.history;
    let found = if is_next { history.event_after()? } else { history.event_before()? };
    let Some(found) = found else {
        let which = if is_next { "later" } else { "earlier" };
        return Ok(format!("there is no {which} event in the recording"));
    };
    history.seek(found.at.icount, &mut || false)?;
    Ok(format!("behind {} at {}\n{}", describe(&found.event), moment(found.at), place(history)))
}

fn place(history: &History) -> String {
    let mut text = format!("before instruction {}", moment(history.moment()));
    text.push_str(&format!("; {} events and", history.events_before()));
    text.push_str(&format!(" {} console outputs before", history.printed().count()));
    let machine = history.machine();
    for hart in 0..machine.config().harts {
        let turn = if hart == machine.hart_in_turn() { " <- in turn" } else { "" };
        text.push_str(&format!("\nhart {hart}: {}{turn}", describe_hart(history, hart)));
    }
    if let Some(divergence) = history.divergence() {
        text.push_str(&format!("\n{divergence}"));
    }
    if let Some(damage) = history.damage() {
        text.push_str(&format!("\nthe recording ends here: {damage}"));
    }
    text
}

/// A hart in a few words.
pub fn describe_hart(history: &History, hart: usize) -> String {
    let machine = history.machine();
    let Some(state) = machine.hart(hart) else { return "none".to_owned() };
    let status = match (machine.is_hart_stopped(hart), state.is_waiting()) {
        (true, _) => ", not started",
        (false, true) => ", waits for an interrupt",
        (false, false) => "",
    };
    format!("{} mode{status}, pc {:#x}", state.privilege(), state.pc())
}

fn console(history: &History, lines: usize) -> String {
    let printed = lines_of(history.printed());
    printed[printed.len().saturating_sub(lines)..].join("\n")
}

/// Lines with the guest times of their first bytes.
fn lines_of<'a>(printed: impl Iterator<Item = &'a LoggedOutput>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut is_open = false;
    for logged in printed {
        let Output::Console(bytes) = &logged.output else { continue };
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text: String = String::from_utf8_lossy(piece).replace(['\n', '\r'], "");
            match lines.last_mut() {
                Some(line) if is_open => line.push_str(&text),
                _ => lines.push(format!("[{:>12.6}] {text}", logged.at.time_ns as f64 / 1e9)),
            }
            is_open = !piece.ends_with(b"\n");
        }
    }
    lines
}

fn show_physical(target: &DebugTarget, address: &str, len: Option<&str>) -> String {
    let len = len.map_or(Some(SHOWN_BYTES), number).filter(|len| (1..=SHOWN_LIMIT_BYTES).contains(len));
    let (Some(address), Some(len)) = (number(address), len) else {
        return format!("write: monitor xp ADDRESS [LEN], LEN up to {SHOWN_LIMIT_BYTES}");
    };
    let mut bytes = vec![0; len as usize];
    if !target.history.machine().read_physical(address, &mut bytes) {
        return format!("{len} bytes at physical {address:#x} are not all memory");
    }
    let line = |(number, row): (usize, &[u8])| {
        let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{:#x}: {}", address + 16 * number as u64, hex.join(" "))
    };
    bytes.chunks(16).enumerate().map(line).collect::<Vec<_>>().join("\n")
}
