//! The terminal as the guest's console.

use std::io::{IsTerminal, Read};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// The terminal in raw mode, for as long as this lives. Standard input that is no terminal
/// is passed on as it is.
pub struct Console {
    before: Option<Termios>,
}

/// What was typed.
#[derive(Debug, PartialEq, Eq)]
pub enum Keys {
    /// Bytes for the guest.
    Bytes(Vec<u8>),
    /// Ctrl-A x.
    Quit,
    /// Nothing more will come.
    Closed,
}

const ESCAPE: u8 = 1;

impl Console {
    /// Takes the terminal over, where there is one.
    pub fn open() -> Console {
        let before = tcgetattr(std::io::stdin()).ok().filter(|_| std::io::stdin().is_terminal());
        if let Some(before) = &before {
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            // Keep "\n" going to the start of the line for our own messages.
            raw.output_flags = before.output_flags;
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw);
            eprintln!("secondwind: Ctrl-A x ends the machine\r");
        }
        Console { before }
    }

    /// A reader of what is typed.
    pub fn keys(&self) -> KeyReader {
        KeyReader { decoder: KeyDecoder { terminal: self.before.is_some(), escaped: false } }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// Reads standard input.
pub struct KeyReader {
    decoder: KeyDecoder,
}

impl KeyReader {
    /// Waits for something to be typed.
    pub fn read(&mut self) -> Keys {
        let mut buffer = [0; 256];
        loop {
            match std::io::stdin().read(&mut buffer) {
                Ok(0) | Err(_) => return Keys::Closed,
                Ok(len) => match self.decoder.decode(&buffer[..len]) {
                    Keys::Bytes(bytes) if bytes.is_empty() => {}
                    keys => return keys,
                },
            }
        }
    }
}

/// Finds the escape key among what was typed.
struct KeyDecoder {
    terminal: bool,
    escaped: bool,
}

impl KeyDecoder {
    fn decode(&mut self, typed: &[u8]) -> Keys {
        if !self.terminal {
            return Keys::Bytes(typed.to_vec());
        }
        let mut bytes = Vec::new();
        for &byte in typed {
            match (std::mem::take(&mut self.escaped), byte) {
                (true, b'x' | b'X') => return Keys::Quit,
                (true, b'a' | ESCAPE) => bytes.push(ESCAPE),
                (true, other) => bytes.extend([ESCAPE, other]),
                (false, ESCAPE) => self.escaped = true,
                (false, other) => bytes.push(other),
            }
        }
        Keys::Bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_key_is_found_across_reads() {
        let mut decoder = KeyDecoder { terminal: true, escaped: false };
        assert_eq!(decoder.decode(b"ls\r"), Keys::Bytes(b"ls\r".to_vec()));
        assert_eq!(decoder.decode(b"a\x01"), Keys::Bytes(b"a".to_vec()));
        assert_eq!(decoder.decode(b"a"), Keys::Bytes(vec![1]));
        assert_eq!(decoder.decode(b"\x01b"), Keys::Bytes(vec![1, b'b']));
        assert_eq!(decoder.decode(b"abc\x01x"), Keys::Quit);
    }

    #[test]
    fn a_pipe_is_passed_on_as_it_is() {
        let mut decoder = KeyDecoder { terminal: false, escaped: false };
        assert_eq!(decoder.decode(b"\x01x"), Keys::Bytes(b"\x01x".to_vec()));
    }
}
