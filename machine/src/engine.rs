//! What executes instructions.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use thiserror::Error;

/// What executes instructions. No part of the machine, its state or its log: every engine does the
/// same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "String")]
pub enum Engine {
    /// The interpreter, on every host.
    Interpreter,
    /// The translator to the host's code.
    Translator,
    /// The translator on hosts that have one, else the interpreter.
    #[default]
    Auto,
}

/// What was translated since the translator was chosen, all harts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Translation {
    /// Blocks.
    pub blocks: u64,
    /// Bytes of host code.
    pub bytes: u64,
    /// Time that it took in nanoseconds, by the clock of
    /// [`crate::RiscvMachine::time_translation`] and since that was given.
    pub ns: u64,
}

/// A word that names no engine of this host.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum EngineError {
    /// No such engine.
    #[error("there is no engine {0:?}; there are interpreter, translator and auto")]
    Unknown(String),
    /// The translator, on another host than it is for.
    #[error("the translator is for x86-64 Linux, and this host is not; use interpreter or auto")]
    Foreign,
}

impl Engine {
    /// Whether this host is one that the translator is for.
    pub const HAS_TRANSLATOR: bool = cfg!(all(target_arch = "x86_64", target_os = "linux"));

    /// The engines of this host, each by its own name.
    pub fn all() -> &'static [Engine] {
        if Engine::HAS_TRANSLATOR {
            &[Engine::Interpreter, Engine::Translator]
        } else {
            &[Engine::Interpreter]
        }
    }
}

impl TryFrom<String> for Engine {
    type Error = EngineError;

    fn try_from(word: String) -> Result<Engine, EngineError> {
        word.parse()
    }
}

impl FromStr for Engine {
    type Err = EngineError;

    fn from_str(word: &str) -> Result<Engine, EngineError> {
        match word {
            "interpreter" => Ok(Engine::Interpreter),
            "translator" if Engine::HAS_TRANSLATOR => Ok(Engine::Translator),
            "translator" => Err(EngineError::Foreign),
            "auto" => Ok(Engine::Auto),
            _ => Err(EngineError::Unknown(word.to_owned())),
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Engine::Interpreter => "interpreter",
            Engine::Translator => "translator",
            Engine::Auto => "auto",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_named() {
        for engine in [Engine::Interpreter, Engine::Auto].iter().chain(Engine::all()) {
            assert_eq!(engine.to_string().parse(), Ok(*engine));
        }
        assert_eq!("fast".parse::<Engine>(), Err(EngineError::Unknown("fast".to_owned())));
    }
}
