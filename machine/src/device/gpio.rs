//! A SiFive GPIO block with one pin, to which the power button is wired.
//!
//! Linux drives it with `gpio-sifive` and `gpio-keys`; the button is KEY_POWER.

use serde::{Deserialize, Serialize};

/// Bytes of its register file.
pub const LEN_BYTES: u64 = 0x1000;

/// How long a press of the button lasts.
const PRESS_NS: u64 = 100_000_000;
/// The only pin.
const PIN: u32 = 1;

const INPUT_VALUE: u64 = 0x00;
const INPUT_ENABLE: u64 = 0x04;
const OUTPUT_ENABLE: u64 = 0x08;
const OUTPUT_VALUE: u64 = 0x0c;
const RISE_ENABLE: u64 = 0x18;
const LOW_PENDING: u64 = 0x34;

/// What an interrupt can be raised by, in the order of the registers.
const RISE: usize = 0;
const FALL: usize = 1;
const HIGH: usize = 2;
const LOW: usize = 3;

/// The GPIO block, and for how long the button is still pressed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpio {
    released_ns: Option<u64>,
    input_enable: bool,
    output_enable: bool,
    output_value: bool,
    /// By what an interrupt is raised: rise, fall, high, low.
    enable: [bool; 4],
    pending: [bool; 4],
}

impl Gpio {
    /// Presses the button. A press while it is pressed is part of the same press.
    pub fn press(&mut self, now_ns: u64) {
        if self.released_ns.is_none() {
            self.pending[RISE] = true;
            self.released_ns = Some(now_ns.saturating_add(PRESS_NS));
        }
        self.look_at_level();
    }

    /// When the button is released.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.released_ns
    }

    /// Releases the button when its time has come.
    pub fn settle(&mut self, now_ns: u64) {
        if self.released_ns.is_some_and(|released_ns| released_ns <= now_ns) {
            self.released_ns = None;
            self.pending[FALL] = true;
        }
        self.look_at_level();
    }

    /// Level of the interrupt wire.
    pub fn line(&self) -> bool {
        self.input_enable && self.enable.iter().zip(self.pending).any(|(enable, pending)| *enable && pending)
    }

    /// Reads a register: 4 bytes, aligned; all else reads as 0.
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        let bit = match offset {
            _ if size != 4 => false,
            INPUT_VALUE => self.input_enable && self.is_high(),
            INPUT_ENABLE => self.input_enable,
            OUTPUT_ENABLE => self.output_enable,
            OUTPUT_VALUE => self.output_value,
            _ => match interrupt_register(offset) {
                Some((cause, false)) => self.enable[cause],
                Some((cause, true)) => self.pending[cause],
                None => false,
            },
        };
        bit.into()
    }

    /// Writes a register, with the same rule on accesses. A 1 clears what is pending.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) {
        if size != 4 {
            return;
        }
        let bit = value as u32 & PIN != 0;
        match offset {
            INPUT_ENABLE => self.input_enable = bit,
            OUTPUT_ENABLE => self.output_enable = bit,
            OUTPUT_VALUE => self.output_value = bit,
            _ => match interrupt_register(offset) {
                Some((cause, false)) => self.enable[cause] = bit,
                Some((cause, true)) => self.pending[cause] &= !bit,
                None => {}
            },
        }
        self.look_at_level();
    }

    fn is_high(&self) -> bool {
        self.released_ns.is_some()
    }

    fn look_at_level(&mut self) {
        self.pending[if self.is_high() { HIGH } else { LOW }] = true;
    }
}

/// The cause that an interrupt register is about, and whether it shows what is pending.
fn interrupt_register(offset: u64) -> Option<(usize, bool)> {
    let within = (RISE_ENABLE..=LOW_PENDING).contains(&offset) && offset.is_multiple_of(4);
    let index = within.then(|| (offset - RISE_ENABLE) / 4)?;
    Some((index as usize / 2, index % 2 == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_press_rises_and_falls() {
        let mut gpio = Gpio::default();
        gpio.write(INPUT_ENABLE, 4, 1);
        gpio.write(RISE_ENABLE, 4, 1);
        gpio.write(RISE_ENABLE + 8, 4, 1);
        assert!(!gpio.line());
        gpio.press(1000);
        assert!(gpio.line());
        assert_eq!(gpio.read(INPUT_VALUE, 4), 1);
        gpio.write(RISE_ENABLE + 4, 4, 1);
        assert!(!gpio.line());
        gpio.settle(999 + PRESS_NS);
        assert_eq!(gpio.deadline_ns(), Some(1000 + PRESS_NS));
        gpio.settle(1000 + PRESS_NS);
        assert!(gpio.line());
        assert_eq!((gpio.read(INPUT_VALUE, 4), gpio.read(RISE_ENABLE + 12, 4)), (0, 1));
    }

    #[test]
    fn a_level_stays_pending_while_it_lasts() {
        let mut gpio = Gpio::default();
        gpio.write(INPUT_ENABLE, 4, 1);
        gpio.write(RISE_ENABLE + 16, 4, 1);
        gpio.press(0);
        gpio.write(RISE_ENABLE + 20, 4, 1);
        assert!(gpio.line());
        gpio.settle(PRESS_NS);
        gpio.write(RISE_ENABLE + 20, 4, 1);
        assert!(!gpio.line());
    }
}
