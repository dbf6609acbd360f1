//! A 16550A serial port.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Bytes of its register file.
pub const LEN_BYTES: u64 = 0x100;

const FIFO_BYTES: usize = 16;
/// Input waiting outside for room in the FIFO; more is dropped.
const BACKLOG_BYTES: usize = 64 << 10;

const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMIT_EMPTY: u8 = 1 << 1;
const IER_LINE_STATUS: u8 = 1 << 2;
const IER_MASK: u8 = 0x0f;

const IIR_NONE: u8 = 0x01;
const IIR_TRANSMIT_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFO_ENABLED: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;
const FCR_KEPT: u8 = 0xc9;

const LCR_DIVISOR_LATCH: u8 = 1 << 7;
const MCR_LOOPBACK: u8 = 1 << 4;
const MCR_MASK: u8 = 0x1f;

const LSR_DATA_READY: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_TRANSMIT_EMPTY: u8 = 0x60;

/// DCD, DSR and CTS: somebody listens.
const MSR_CONNECTED: u8 = 0xb0;

/// The serial port. Sending takes no time; what the guest sends goes to the machine's
/// console output.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uart {
    fifo: VecDeque<u8>,
    backlog: VecDeque<u8>,
    /// A transmitter-empty interrupt that was not read yet.
    transmit_pending: bool,
    overrun: bool,
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: u16,
}

impl Uart {
    /// Whether a port can be in this state.
    pub fn is_sound(&self) -> bool {
        self.fifo.len() <= FIFO_BYTES && self.backlog.len() <= BACKLOG_BYTES
    }

    /// Bytes arrive. What does not fit is dropped.
    pub fn receive(&mut self, bytes: &[u8]) {
        let room = BACKLOG_BYTES - self.backlog.len();
        self.backlog.extend(&bytes[..bytes.len().min(room)]);
        self.refill();
    }

    /// Takes input past the registers, as the SBI's console does.
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let len = len.min(self.fifo.len() + self.backlog.len());
        (0..len).map(|_| self.receiver_buffer()).collect()
    }

    /// Registers as after a reset. Input that waits outside stays there.
    pub fn reset(&mut self) {
        let backlog = std::mem::take(&mut self.backlog);
        *self = Uart { backlog, ..Uart::default() };
    }

    /// Level of the interrupt wire.
    pub fn line(&self) -> bool {
        self.cause() != IIR_NONE
    }

    /// Reads a byte register. A wider access reads the first register only.
    pub fn read(&mut self, offset: u64) -> u64 {
        let latch = self.line_control & LCR_DIVISOR_LATCH != 0;
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        let value = match offset {
            0 if latch => divisor_low,
            0 => self.receiver_buffer(),
            1 if latch => divisor_high,
            1 => self.interrupt_enable,
            2 => self.identify(),
            3 => self.line_control,
            4 => self.modem_control,
            5 => self.line_status(),
            6 => self.modem_status(),
            7 => self.scratch,
            _ => 0,
        };
        value.into()
    }

    /// Writes a byte register. Returns a byte that leaves the port.
    pub fn write(&mut self, offset: u64, value: u64) -> Option<u8> {
        let value = value as u8;
        let latch = self.line_control & LCR_DIVISOR_LATCH != 0;
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            0 if latch => self.divisor = u16::from_le_bytes([value, divisor_high]),
            1 if latch => self.divisor = u16::from_le_bytes([divisor_low, value]),
            0 => return self.transmit(value),
            1 => {
                // The transmitter is always empty: enabling the interrupt raises it.
                self.transmit_pending |= value & !self.interrupt_enable & IER_TRANSMIT_EMPTY != 0;
                self.interrupt_enable = value & IER_MASK;
            }
            2 => self.write_fifo_control(value),
            3 => self.line_control = value,
            4 => self.modem_control = value & MCR_MASK,
            7 => self.scratch = value,
            _ => {}
        }
        None
    }

    fn capacity(&self) -> usize {
        if self.fifo_control & FCR_ENABLE != 0 { FIFO_BYTES } else { 1 }
    }

    fn looped_back(&self) -> bool {
        self.modem_control & MCR_LOOPBACK != 0
    }

    /// Moves waiting input into the FIFO as far as there is room.
    fn refill(&mut self) {
        while !self.looped_back() && self.fifo.len() < self.capacity() {
            let Some(byte) = self.backlog.pop_front() else { break };
            self.fifo.push_back(byte);
        }
    }

    fn receiver_buffer(&mut self) -> u8 {
        let byte = self.fifo.pop_front().unwrap_or(0);
        self.refill();
        byte
    }

    fn transmit(&mut self, byte: u8) -> Option<u8> {
        self.transmit_pending = true;
        if !self.looped_back() {
            return Some(byte);
        }
        if self.fifo.len() < self.capacity() {
            self.fifo.push_back(byte);
        } else {
            self.overrun = true;
        }
        None
    }

    fn write_fifo_control(&mut self, value: u8) {
        let toggled = (value ^ self.fifo_control) & FCR_ENABLE != 0;
        if toggled || value & FCR_CLEAR_RECEIVER != 0 {
            self.fifo.clear();
        }
        self.fifo_control = if value & FCR_ENABLE != 0 { value & FCR_KEPT } else { 0 };
        self.refill();
    }

    fn cause(&self) -> u8 {
        let enabled = |bit| self.interrupt_enable & bit != 0;
        if enabled(IER_LINE_STATUS) && self.overrun {
            IIR_LINE_STATUS
        } else if enabled(IER_RECEIVED) && !self.fifo.is_empty() {
            if self.fifo.len() >= self.trigger() { IIR_RECEIVED } else { IIR_TIMEOUT }
        } else if enabled(IER_TRANSMIT_EMPTY) && self.transmit_pending {
            IIR_TRANSMIT_EMPTY
        } else {
            IIR_NONE
        }
    }

    fn trigger(&self) -> usize {
        match self.fifo_control {
            control if control & FCR_ENABLE == 0 => 1,
            control => [1, 4, 8, 14][usize::from(control >> 6)],
        }
    }

    fn identify(&mut self) -> u8 {
        let cause = self.cause();
        if cause == IIR_TRANSMIT_EMPTY {
            self.transmit_pending = false;
        }
        let fifo = if self.fifo_control & FCR_ENABLE != 0 { IIR_FIFO_ENABLED } else { 0 };
        cause | fifo
    }

    fn line_status(&mut self) -> u8 {
        let ready = if self.fifo.is_empty() { 0 } else { LSR_DATA_READY };
        let overrun = if std::mem::take(&mut self.overrun) { LSR_OVERRUN } else { 0 };
        LSR_TRANSMIT_EMPTY | ready | overrun
    }

    fn modem_status(&self) -> u8 {
        if !self.looped_back() {
            return MSR_CONNECTED;
        }
        let control = self.modem_control;
        (control & 0b0010) << 3 | (control & 0b0001) << 5 | (control & 0b1100) << 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_finds_a_16550a() {
        let mut uart = Uart::default();
        uart.write(1, 0);
        assert_eq!(uart.read(1), 0);
        uart.write(1, 0x0f);
        assert_eq!(uart.read(1), 0x0f);
        uart.write(1, 0);
        // Loopback with RTS and OUT2 shows CTS and DCD.
        uart.write(4, u64::from(MCR_LOOPBACK | 0x0a));
        assert_eq!(uart.read(6) & 0xf0, 0x90);
        uart.write(4, 0);
        uart.write(2, 0x01);
        assert_eq!(uart.read(2) >> 6, 3);
        uart.write(7, 0x5a);
        assert_eq!(uart.read(7), 0x5a);
    }

    #[test]
    fn transmitter_interrupt_comes_again_whenever_enabled() {
        let mut uart = Uart::default();
        for _ in 0..2 {
            uart.write(1, u64::from(IER_TRANSMIT_EMPTY));
            assert!(uart.line());
            assert_eq!(uart.read(2) as u8, IIR_TRANSMIT_EMPTY);
            assert!(!uart.line());
            uart.write(1, 0);
        }
        uart.write(1, u64::from(IER_TRANSMIT_EMPTY));
        uart.read(2);
        assert_eq!(uart.write(0, b'x'.into()), Some(b'x'));
        assert!(uart.line());
    }

    #[test]
    fn input_waits_for_room_and_keeps_its_order() {
        let mut uart = Uart::default();
        uart.write(2, 0x81);
        uart.write(1, u64::from(IER_RECEIVED));
        uart.receive(b"abc");
        assert_eq!(uart.read(2) as u8 & 0x3f, IIR_TIMEOUT);
        let rest: Vec<u8> = (0..100).collect();
        uart.receive(&rest);
        assert_eq!(uart.read(2) as u8 & 0x3f, IIR_RECEIVED);
        let mut read = Vec::new();
        while uart.read(5) as u8 & LSR_DATA_READY != 0 {
            read.push(uart.read(0) as u8);
        }
        assert_eq!(read, [b"abc".to_vec(), rest].concat());
        assert!(!uart.line());
    }

    #[test]
    fn input_is_bounded() {
        let mut uart = Uart::default();
        uart.receive(&vec![7; 3 * BACKLOG_BYTES]);
        uart.receive(&[8; 10]);
        assert!(uart.backlog.len() <= BACKLOG_BYTES);
    }

    #[test]
    fn loopback_returns_what_is_sent() {
        let mut uart = Uart::default();
        uart.write(2, 1);
        uart.write(4, u64::from(MCR_LOOPBACK));
        for byte in 0..20u8 {
            assert_eq!(uart.write(0, byte.into()), None);
        }
        assert_eq!(uart.read(5) as u8 & (LSR_OVERRUN | LSR_DATA_READY), LSR_OVERRUN | LSR_DATA_READY);
        assert_eq!((0..16).map(|_| uart.read(0) as u8).collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
    }
}
