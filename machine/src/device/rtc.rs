//! The goldfish real-time clock.

use serde::{Deserialize, Serialize};

/// Bytes of its register file.
pub const LEN_BYTES: u64 = 0x1000;

const TIME_LOW: u64 = 0x00;
const TIME_HIGH: u64 = 0x04;
const ALARM_LOW: u64 = 0x08;
const ALARM_HIGH: u64 = 0x0c;
const IRQ_ENABLED: u64 = 0x10;
const CLEAR_ALARM: u64 = 0x14;
const ALARM_STATUS: u64 = 0x18;
const CLEAR_INTERRUPT: u64 = 0x1c;

/// Wall-clock time as guest time plus an offset, with one alarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rtc {
    /// Wall-clock time minus guest time, wrapping.
    offset_ns: u64,
    /// High half of the time, latched by a read of the low half.
    latched_high: u32,
    /// High half of the alarm, which a write of the low half completes.
    alarm_high: u32,
    /// When the alarm rings.
    alarm_unix_ns: u64,
    armed: bool,
    irq_enabled: bool,
    pending: bool,
}

impl Rtc {
    /// A clock that says `unix_ns` at guest time 0.
    pub fn new(unix_ns: u64) -> Rtc {
        Rtc {
            offset_ns: unix_ns,
            latched_high: 0,
            alarm_high: 0,
            alarm_unix_ns: 0,
            armed: false,
            irq_enabled: false,
            pending: false,
        }
    }

    /// Sets the clock from outside.
    pub fn set_wall_clock(&mut self, unix_ns: u64, now_ns: u64) {
        self.offset_ns = unix_ns.wrapping_sub(now_ns);
    }

    /// Level of the interrupt wire.
    pub fn line(&self) -> bool {
        self.pending && self.irq_enabled
    }

    /// Guest time at which the alarm rings.
    pub fn deadline_ns(&self, now_ns: u64) -> Option<u64> {
        self.armed.then(|| now_ns.saturating_add(self.alarm_unix_ns.saturating_sub(self.unix_ns(now_ns))))
    }

    /// Rings the alarm if its time has come.
    pub fn settle(&mut self, now_ns: u64) {
        if self.armed && self.alarm_unix_ns <= self.unix_ns(now_ns) {
            self.armed = false;
            self.pending = true;
        }
    }

    /// Reads a register: aligned accesses of 4 bytes; all else reads as 0.
    pub fn read(&mut self, offset: u64, size: u8, now_ns: u64) -> u64 {
        if size != 4 {
            return 0;
        }
        let value = match offset {
            TIME_LOW => {
                let unix_ns = self.unix_ns(now_ns);
                self.latched_high = (unix_ns >> 32) as u32;
                unix_ns as u32
            }
            TIME_HIGH => self.latched_high,
            ALARM_LOW => self.alarm_unix_ns as u32,
            ALARM_HIGH => (self.alarm_unix_ns >> 32) as u32,
            IRQ_ENABLED => self.irq_enabled.into(),
            ALARM_STATUS => self.armed.into(),
            _ => 0,
        };
        value.into()
    }

    /// Writes a register, with the same rule on accesses. The high halves are written
    /// first, the low half makes the value count.
    pub fn write(&mut self, offset: u64, size: u8, value: u64, now_ns: u64) {
        if size != 4 {
            return;
        }
        let value = value as u32;
        match offset {
            TIME_HIGH => {
                let unix_ns = u64::from(value) << 32 | self.unix_ns(now_ns) & 0xffff_ffff;
                self.offset_ns = unix_ns.wrapping_sub(now_ns);
            }
            TIME_LOW => {
                let unix_ns = self.unix_ns(now_ns) & !0xffff_ffff | u64::from(value);
                self.offset_ns = unix_ns.wrapping_sub(now_ns);
            }
            ALARM_HIGH => self.alarm_high = value,
            ALARM_LOW => {
                self.alarm_unix_ns = u64::from(self.alarm_high) << 32 | u64::from(value);
                self.armed = true;
                self.settle(now_ns);
            }
            IRQ_ENABLED => self.irq_enabled = value & 1 != 0,
            CLEAR_ALARM => self.armed = false,
            CLEAR_INTERRUPT => self.pending = false,
            _ => {}
        }
    }

    fn unix_ns(&self, now_ns: u64) -> u64 {
        now_ns.wrapping_add(self.offset_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_time(rtc: &mut Rtc, now_ns: u64) -> u64 {
        rtc.read(TIME_LOW, 4, now_ns) | rtc.read(TIME_HIGH, 4, now_ns + 1) << 32
    }

    #[test]
    fn tells_guest_time_plus_offset() {
        let start = 1_767_225_600_000_000_000;
        let mut rtc = Rtc::new(start);
        assert_eq!(read_time(&mut rtc, 5_000_000_000), start + 5_000_000_000);
        rtc.set_wall_clock(7 << 32, 10);
        assert_eq!(read_time(&mut rtc, 12), (7 << 32) + 2);
        rtc.write(TIME_HIGH, 4, 3, 20);
        rtc.write(TIME_LOW, 4, 9, 20);
        assert_eq!(read_time(&mut rtc, 21), (3 << 32) + 10);
    }

    #[test]
    fn the_alarm_rings_at_its_time() {
        let mut rtc = Rtc::new(0);
        rtc.write(IRQ_ENABLED, 4, 1, 0);
        rtc.write(ALARM_HIGH, 4, 1, 0);
        rtc.write(ALARM_LOW, 4, 0, 0);
        assert_eq!(rtc.deadline_ns(5), Some(1 << 32));
        rtc.settle((1 << 32) - 1);
        assert!(!rtc.line() && rtc.read(ALARM_STATUS, 4, 0) == 1);
        rtc.settle(1 << 32);
        assert!(rtc.line() && rtc.deadline_ns(0).is_none());
        rtc.write(CLEAR_INTERRUPT, 4, 1, 0);
        assert!(!rtc.line());
    }
}
