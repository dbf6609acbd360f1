//! The platform-level interrupt controller (RISC-V PLIC 1.0, SiFive's layout).

use serde::{Deserialize, Serialize};

use crate::config::MAX_HARTS;

/// Bytes of its register file.
pub const LEN_BYTES: u64 = 0x60_0000;
/// Highest interrupt source; source 0 does not exist.
pub const MAX_SOURCE: u32 = 95;
/// Highest priority.
const MAX_PRIORITY: u32 = 7;

const WORDS: usize = 3;
const CONTEXTS: usize = 2 * MAX_HARTS;
const PENDING: u64 = 0x1000;
const ENABLE: u64 = 0x2000;
const ENABLE_STRIDE: u64 = 0x80;
const CONTEXT: u64 = 0x20_0000;
const CONTEXT_STRIDE: u64 = 0x1000;

/// The interrupt controller. Context `2 * hart` is that hart's M-mode, `2 * hart + 1` its
/// S-mode. All sources are levels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plic {
    contexts: usize,
    priority: Vec<u8>,
    level: [u32; WORDS],
    pending: [u32; WORDS],
    /// Claimed and not completed yet: the gateway forwards nothing meanwhile.
    in_service: [u32; WORDS],
    enable: [[u32; WORDS]; CONTEXTS],
    threshold: [u8; CONTEXTS],
}

impl Plic {
    /// The controller of a board with `harts` harts.
    pub fn new(harts: usize) -> Plic {
        Plic {
            contexts: 2 * harts,
            priority: vec![0; MAX_SOURCE as usize + 1],
            level: [0; WORDS],
            pending: [0; WORDS],
            in_service: [0; WORDS],
            enable: [[0; WORDS]; CONTEXTS],
            threshold: [0; CONTEXTS],
        }
    }

    /// Whether this can be the controller of a board with `harts` harts.
    pub fn fits(&self, harts: usize) -> bool {
        self.contexts == 2 * harts && self.priority.len() == MAX_SOURCE as usize + 1
    }

    /// Sets the level of a source's wire.
    pub fn set_level(&mut self, source: u32, high: bool) {
        let (word, bit) = place(source);
        if high {
            self.level[word] |= bit;
            self.pending[word] |= bit & !self.in_service[word];
        } else {
            self.level[word] &= !bit;
        }
    }

    /// Whether `context` has an interrupt above its threshold.
    pub fn line(&self, context: usize) -> bool {
        self.best(context).is_some_and(|(_, priority)| priority > self.threshold[context])
    }

    /// The pending, enabled source of highest priority, the lowest number first.
    fn best(&self, context: usize) -> Option<(u32, u8)> {
        let mut best = None;
        for word in 0..WORDS {
            let mut candidates = self.pending[word] & self.enable[context][word];
            while candidates != 0 {
                let source = word as u32 * 32 + candidates.trailing_zeros();
                candidates &= candidates - 1;
                let priority = self.priority[source as usize];
                if priority > best.map_or(0, |(_, priority)| priority) {
                    best = Some((source, priority));
                }
            }
        }
        best
    }

    /// Reads a register. Only aligned 4-byte accesses count; the rest reads as 0. Reading
    /// a claim register claims.
    pub fn read(&mut self, offset: u64, size: u8) -> u64 {
        let value = match Register::at(offset, size, self.contexts) {
            Some(Register::Priority(source)) => self.priority[source].into(),
            Some(Register::Pending(word)) => self.pending[word],
            Some(Register::Enable(context, word)) => self.enable[context][word],
            Some(Register::Threshold(context)) => self.threshold[context].into(),
            Some(Register::Claim(context)) => self.claim(context),
            None => 0,
        };
        value.into()
    }

    /// Writes a register, with the same rule on accesses.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) {
        let value = value as u32;
        match Register::at(offset, size, self.contexts) {
            Some(Register::Priority(source)) => self.priority[source] = (value & MAX_PRIORITY) as u8,
            Some(Register::Enable(context, word)) => {
                self.enable[context][word] = if word == 0 { value & !1 } else { value };
            }
            Some(Register::Threshold(context)) => self.threshold[context] = (value & MAX_PRIORITY) as u8,
            Some(Register::Claim(context)) => self.complete(context, value),
            Some(Register::Pending(_)) | None => {}
        }
    }

    fn claim(&mut self, context: usize) -> u32 {
        let Some((source, _)) = self.best(context) else { return 0 };
        let (word, bit) = place(source);
        self.pending[word] &= !bit;
        self.in_service[word] |= bit;
        source
    }

    fn complete(&mut self, context: usize, source: u32) {
        if source == 0 || source > MAX_SOURCE {
            return;
        }
        let (word, bit) = place(source);
        if self.enable[context][word] & bit != 0 {
            self.in_service[word] &= !bit;
            self.pending[word] |= self.level[word] & bit;
        }
    }
}

fn place(source: u32) -> (usize, u32) {
    assert!((1..=MAX_SOURCE).contains(&source), "the board wires sources 1 to {MAX_SOURCE}");
    (source as usize / 32, 1 << (source % 32))
}

enum Register {
    Priority(usize),
    Pending(usize),
    Enable(usize, usize),
    Threshold(usize),
    Claim(usize),
}

impl Register {
    fn at(offset: u64, size: u8, contexts: usize) -> Option<Register> {
        if size != 4 || !offset.is_multiple_of(4) {
            return None;
        }
        let in_words = |start: u64| usize::try_from((offset - start) / 4).ok().filter(|word| *word < WORDS);
        if offset < PENDING {
            let source = (offset / 4) as usize;
            (1..=MAX_SOURCE as usize).contains(&source).then_some(Register::Priority(source))
        } else if offset < ENABLE {
            in_words(PENDING).map(Register::Pending)
        } else if offset < CONTEXT {
            let context = ((offset - ENABLE) / ENABLE_STRIDE) as usize;
            let word = ((offset - ENABLE) % ENABLE_STRIDE / 4) as usize;
            (context < contexts && word < WORDS).then_some(Register::Enable(context, word))
        } else {
            let context = ((offset - CONTEXT) / CONTEXT_STRIDE) as usize;
            match (offset - CONTEXT) % CONTEXT_STRIDE {
                _ if context >= contexts => None,
                0 => Some(Register::Threshold(context)),
                4 => Some(Register::Claim(context)),
                _ => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIM_S0: u64 = CONTEXT + CONTEXT_STRIDE + 4;

    fn with_sources(sources: &[(u32, u64)]) -> Plic {
        let mut plic = Plic::new(1);
        for (source, priority) in sources {
            plic.write(u64::from(*source) * 4, 4, *priority);
            let address = ENABLE + ENABLE_STRIDE + u64::from(source / 32 * 4);
            let before = plic.read(address, 4);
            plic.write(address, 4, before | 1 << (source % 32));
        }
        plic
    }

    #[test]
    fn a_level_is_claimed_once_and_pends_again_after_completion() {
        let mut plic = with_sources(&[(10, 1)]);
        plic.set_level(10, true);
        assert!(plic.line(1) && !plic.line(0));
        assert_eq!(plic.read(CLAIM_S0, 4), 10);
        plic.set_level(10, true);
        assert!(!plic.line(1));
        assert_eq!(plic.read(CLAIM_S0, 4), 0);
        plic.write(CLAIM_S0, 4, 10);
        assert!(plic.line(1), "the wire is still high");
        assert_eq!(plic.read(CLAIM_S0, 4), 10);
        plic.set_level(10, false);
        plic.write(CLAIM_S0, 4, 10);
        assert!(!plic.line(1));
    }

    #[test]
    fn priority_then_number_decides_and_the_threshold_masks() {
        let mut plic = with_sources(&[(3, 2), (40, 5), (2, 2), (95, 5)]);
        [3, 40, 2, 95].iter().for_each(|source| plic.set_level(*source, true));
        let claims: Vec<u64> = (0..5).map(|_| plic.read(CLAIM_S0, 4)).collect();
        assert_eq!(claims, [40, 95, 2, 3, 0]);
        let mut plic = with_sources(&[(3, 2)]);
        plic.set_level(3, true);
        plic.write(CONTEXT + CONTEXT_STRIDE, 4, 2);
        assert!(!plic.line(1));
        plic.write(CONTEXT + CONTEXT_STRIDE, 4, 1);
        assert!(plic.line(1));
    }

    #[test]
    fn any_access_is_survived() {
        let mut plic = Plic::new(2);
        for step in 0..LEN_BYTES / 4 {
            for size in [1, 2, 4, 8] {
                plic.write(step * 4 + step % 3, size, u64::MAX);
                plic.read(step * 4 + step % 5, size);
            }
        }
        plic.set_level(95, true);
        assert!(!plic.line(3), "its threshold is 7");
    }
}
