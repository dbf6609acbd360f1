//! The built-in supervisor binary interface (SBI 2.0), as a function from a call to what
//! the board must do and what the caller gets back.

use serde::{Deserialize, Serialize};

use crate::device::syscon::Request;

/// `a0` to `a7` of the caller.
pub type Arguments = [u64; 8];

/// What the caller gets back in `a0` (0 or a negative error) and `a1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// `a0`.
    pub error: i64,
    /// `a1`.
    pub value: u64,
}

/// What the board must do. The answer beside it assumes that it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Set the caller's timer.
    SetTimer {
        /// The value of `time` at which it rings; any pending timer interrupt is cleared.
        ticks: u64,
    },
    /// Raise the supervisor software interrupt of these harts.
    SendIpi(HartSet),
    /// `fence.i` on these harts.
    FenceInstruction(HartSet),
    /// `sfence.vma` for all addresses on these harts.
    FenceAddress(HartSet),
    /// Start a stopped hart.
    Start {
        /// Which.
        hart: usize,
        /// Where.
        address: u64,
        /// Its `a1`.
        opaque: u64,
    },
    /// Stop the caller. It gets no answer.
    Stop,
    /// Let the caller wait for an interrupt, then go on after the call.
    Wait,
    /// Let the caller wait for an interrupt, then start it anew. It gets no answer.
    Suspend {
        /// Where.
        address: u64,
        /// Its `a1`.
        opaque: u64,
    },
    /// Power off or reset. The caller gets no answer.
    System(Request),
    /// Write guest memory to the console; `value` is the number of bytes that lay in RAM.
    ConsoleWrite {
        /// Where they lie.
        address: u64,
        /// How many they are.
        len: u64,
    },
    /// Read console input into guest memory. The board fills in the answer.
    ConsoleRead {
        /// Where to.
        address: u64,
        /// How many bytes at most.
        len: u64,
    },
    /// Write one byte to the console.
    ConsoleByte(u8),
}

/// A set of harts, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HartSet(pub u64);

impl HartSet {
    /// Whether `hart` is in it.
    pub fn contains(self, hart: usize) -> bool {
        self.0 >> hart & 1 != 0
    }
}

/// What a hart does, as HSM tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HartStatus {
    /// It executes or waits in `wfi`.
    Started,
    /// It was never started, or stopped itself.
    Stopped,
    /// It waits for an interrupt, then starts anew.
    Suspended {
        /// Where.
        address: u64,
        /// Its `a1`.
        opaque: u64,
    },
}

const BASE: u64 = 0x10;
const TIME: u64 = 0x5449_4d45;
const IPI: u64 = 0x0073_5049;
const RFENCE: u64 = 0x5246_4e43;
const HSM: u64 = 0x0048_534d;
const SRST: u64 = 0x5352_5354;
const DBCN: u64 = 0x4442_434e;

const NOT_SUPPORTED: i64 = -2;
const INVALID_PARAMETER: i64 = -3;
const INVALID_ADDRESS: i64 = -5;
const ALREADY_AVAILABLE: i64 = -6;

const SPECIFICATION_VERSION: u64 = 2 << 24;
/// Not in the registry of implementations.
const IMPLEMENTATION_ID: u64 = 0x5357;
const IMPLEMENTATION_VERSION: u64 = 1;

/// Bytes that one console call writes or reads at most; the caller comes again.
pub const CONSOLE_CALL_BYTES: u64 = 4096;

impl Answer {
    /// Success.
    pub fn value(value: u64) -> Answer {
        Answer { error: 0, value }
    }

    fn error(error: i64) -> Answer {
        Answer { error, value: 0 }
    }
}

/// What a call does. `statuses` are the harts of the board; `in_ram` says whether a range
/// of guest-physical memory is RAM.
pub fn handle(
    arguments: &Arguments,
    statuses: &[HartStatus],
    in_ram: impl Fn(u64, u64) -> bool,
) -> (Action, Answer) {
    let [a0, a1, a2, _, _, _, function, extension] = *arguments;
    let done = |action| (action, Answer::value(0));
    let failed = |error| (Action::Nothing, Answer::error(error));
    match (extension, function) {
        (BASE, _) => base(function, a0),
        (TIME, 0) => done(Action::SetTimer { ticks: a0 }),
        (IPI, 0) => for_harts(a0, a1, statuses.len(), Action::SendIpi),
        (RFENCE, 0) => for_harts(a0, a1, statuses.len(), Action::FenceInstruction),
        (RFENCE, 1 | 2) => for_harts(a0, a1, statuses.len(), Action::FenceAddress),
        (HSM, _) => hart_state(function, [a0, a1, a2], statuses, in_ram),
        (SRST, 0) => system_reset(a0, a1),
        (DBCN, 0 | 1) if a0 == 0 => done(Action::Nothing),
        (DBCN, 0 | 1) => {
            // Higher halves of addresses (`a2`) are always 0 here.
            let len = a0.min(CONSOLE_CALL_BYTES);
            match (a2 == 0 && in_ram(a1, len), function) {
                (false, _) => failed(INVALID_PARAMETER),
                (true, 0) => (Action::ConsoleWrite { address: a1, len }, Answer::value(len)),
                (true, _) => done(Action::ConsoleRead { address: a1, len }),
            }
        }
        (DBCN, 2) => done(Action::ConsoleByte(a0 as u8)),
        _ => failed(NOT_SUPPORTED),
    }
}

fn base(function: u64, probed: u64) -> (Action, Answer) {
    let value = match function {
        0 => SPECIFICATION_VERSION,
        1 => IMPLEMENTATION_ID,
        2 => IMPLEMENTATION_VERSION,
        3 => [BASE, TIME, IPI, RFENCE, HSM, SRST, DBCN].contains(&probed).into(),
        4..=6 => 0,
        _ => return (Action::Nothing, Answer::error(NOT_SUPPORTED)),
    };
    (Action::Nothing, Answer::value(value))
}

/// A call on the harts of a mask that begins at hart `base`, or on all where that is -1.
fn for_harts(mask: u64, base: u64, harts: usize, action: fn(HartSet) -> Action) -> (Action, Answer) {
    let all = (1u64 << harts) - 1;
    let set = if base == u64::MAX {
        Some(all)
    } else {
        // Shifted out is as wrong as a hart that does not exist.
        u32::try_from(base).ok().and_then(|base| mask.checked_shl(base)).filter(|set| set >> base == mask)
    };
    match set.filter(|set| set & !all == 0) {
        Some(set) => (action(HartSet(set)), Answer::value(0)),
        None => (Action::Nothing, Answer::error(INVALID_PARAMETER)),
    }
}

fn hart_state(
    function: u64,
    [a0, a1, a2]: [u64; 3],
    statuses: &[HartStatus],
    in_ram: impl Fn(u64, u64) -> bool,
) -> (Action, Answer) {
    let failed = |error| (Action::Nothing, Answer::error(error));
    let hart = usize::try_from(a0).unwrap_or(usize::MAX);
    let status = statuses.get(hart);
    match (function, status) {
        (0 | 2, None) => failed(INVALID_PARAMETER),
        (0, Some(HartStatus::Stopped)) if in_ram(a1, 4) => {
            (Action::Start { hart, address: a1, opaque: a2 }, Answer::value(0))
        }
        (0, Some(HartStatus::Stopped)) => failed(INVALID_ADDRESS),
        (0, Some(_)) => failed(ALREADY_AVAILABLE),
        (1, _) => (Action::Stop, Answer::value(0)),
        (2, Some(HartStatus::Started)) => (Action::Nothing, Answer::value(0)),
        (2, Some(HartStatus::Stopped)) => (Action::Nothing, Answer::value(1)),
        (2, Some(HartStatus::Suspended { .. })) => (Action::Nothing, Answer::value(4)),
        (3, _) => match a0 as u32 {
            0 => (Action::Wait, Answer::value(0)),
            0x8000_0000 if in_ram(a1, 4) => (Action::Suspend { address: a1, opaque: a2 }, Answer::value(0)),
            0x8000_0000 => failed(INVALID_ADDRESS),
            _ => failed(INVALID_PARAMETER),
        },
        _ => failed(NOT_SUPPORTED),
    }
}

/// Shutdown, cold and warm reboot. A shutdown for a system failure ends with status 1.
fn system_reset(kind: u64, reason: u64) -> (Action, Answer) {
    let request = match kind as u32 {
        0 => Request::PowerOff { code: (reason as u32 != 0).into() },
        1 | 2 => Request::Reset,
        _ => return (Action::Nothing, Answer::error(INVALID_PARAMETER)),
    };
    (Action::System(request), Answer::value(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUSES: [HartStatus; 3] =
        [HartStatus::Started, HartStatus::Stopped, HartStatus::Suspended { address: 0, opaque: 0 }];

    fn call(extension: u64, function: u64, arguments: [u64; 3]) -> (Action, Answer) {
        let [a0, a1, a2] = arguments;
        let in_ram = |address: u64, len: u64| address >= 0x8000_0000 && len <= CONSOLE_CALL_BYTES;
        handle(&[a0, a1, a2, 0, 0, 0, function, extension], &STATUSES, in_ram)
    }

    #[test]
    fn probes_tell_what_is_there() {
        assert_eq!(call(BASE, 0, [0; 3]).1, Answer::value(0x0200_0000));
        for (extension, there) in [(TIME, 1), (HSM, 1), (DBCN, 1), (0, 0), (1, 0), (0x504d55, 0)] {
            assert_eq!(call(BASE, 3, [extension, 0, 0]).1, Answer::value(there));
        }
        assert_eq!(call(0x01, 0, [65, 0, 0]), (Action::Nothing, Answer::error(NOT_SUPPORTED)));
        assert_eq!(call(TIME, 9, [0; 3]).1, Answer::error(NOT_SUPPORTED));
    }

    #[test]
    fn hart_masks_are_checked() {
        assert_eq!(call(IPI, 0, [0b11, 1, 0]).0, Action::SendIpi(HartSet(0b110)));
        assert_eq!(call(IPI, 0, [0, u64::MAX, 0]).0, Action::SendIpi(HartSet(0b111)));
        for (mask, base) in [(0b1000, 0), (1, 3), (1, 64), (2, 63), (1, 1 << 40)] {
            assert_eq!(call(RFENCE, 1, [mask, base, 0]).1, Answer::error(INVALID_PARAMETER));
        }
    }

    #[test]
    fn harts_start_stop_and_tell() {
        let start = Action::Start { hart: 1, address: 0x8000_0000, opaque: 5 };
        assert_eq!(call(HSM, 0, [1, 0x8000_0000, 5]).0, start);
        assert_eq!(call(HSM, 0, [1, 0x1000, 5]).1, Answer::error(INVALID_ADDRESS));
        assert_eq!(call(HSM, 0, [0, 0x8000_0000, 5]).1, Answer::error(ALREADY_AVAILABLE));
        assert_eq!(call(HSM, 0, [u64::MAX, 0x8000_0000, 5]).1, Answer::error(INVALID_PARAMETER));
        let told: Vec<u64> = (0..3).map(|hart| call(HSM, 2, [hart, 0, 0]).1.value).collect();
        assert_eq!(told, [0, 1, 4]);
        assert_eq!(call(HSM, 3, [0, 0, 0]).0, Action::Wait);
        assert_eq!(call(HSM, 3, [5, 0, 0]).1, Answer::error(INVALID_PARAMETER));
    }

    #[test]
    fn console_and_reset_calls() {
        let write = Action::ConsoleWrite { address: 0x8000_0000, len: 5 };
        assert_eq!(call(DBCN, 0, [5, 0x8000_0000, 0]), (write, Answer::value(5)));
        assert_eq!(call(DBCN, 0, [u64::MAX, 0x8000_0000, 0]).1, Answer::value(CONSOLE_CALL_BYTES));
        assert_eq!(call(DBCN, 0, [5, 0x10, 0]).1, Answer::error(INVALID_PARAMETER));
        assert_eq!(call(DBCN, 2, [0x41, 0, 0]).0, Action::ConsoleByte(b'A'));
        assert_eq!(call(SRST, 0, [0, 1, 0]).0, Action::System(Request::PowerOff { code: 1 }));
        assert_eq!(call(SRST, 0, [1, 0, 0]).0, Action::System(Request::Reset));
        assert_eq!(call(SRST, 0, [9, 0, 0]).1, Answer::error(INVALID_PARAMETER));
    }
}
