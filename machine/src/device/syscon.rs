//! The `sifive,test1` device with which a guest ends or resets its machine.

/// Bytes of its register file.
pub const LEN_BYTES: u64 = 0x1000;

/// Value that powers off.
pub const POWER_OFF: u32 = 0x5555;
/// Value that resets.
pub const RESET: u32 = 0x7777;
/// Low half of a value that powers off with the exit status in the high half.
const FAIL: u32 = 0x3333;

/// What the guest asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Power off with this exit status.
    PowerOff {
        /// 0 is success.
        code: u32,
    },
    /// Reset.
    Reset,
}

/// What a write to the device asks for, if anything: accesses of 2 or 4 bytes at offset 0.
pub fn request(offset: u64, size: u8, value: u64) -> Option<Request> {
    if offset != 0 || !(size == 2 || size == 4) {
        return None;
    }
    let value = value as u32;
    match value & 0xffff {
        POWER_OFF => Some(Request::PowerOff { code: 0 }),
        RESET => Some(Request::Reset),
        FAIL => Some(Request::PowerOff { code: value >> 16 }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_three_words() {
        assert_eq!(request(0, 4, 0x5555), Some(Request::PowerOff { code: 0 }));
        assert_eq!(request(0, 2, 0x7777), Some(Request::Reset));
        assert_eq!(request(0, 4, 0x0007_3333), Some(Request::PowerOff { code: 7 }));
        assert_eq!(request(0, 1, 0x55), None);
        assert_eq!(request(4, 4, 0x5555), None);
    }
}
