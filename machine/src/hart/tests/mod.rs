//! What a hart does, by each engine, and that all engines do the same.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod differential;
mod encode;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod random;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod spaces;

/// By the interpreter.
#[path = "."]
mod interpreter {
    pub const ENGINE: crate::Engine = crate::Engine::Interpreter;

    #[path = "suite/mod.rs"]
    mod suite;
}

/// By the translator.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[allow(clippy::duplicate_mod, reason = "each engine goes through the same tests")]
#[path = "."]
mod translator {
    pub const ENGINE: crate::Engine = crate::Engine::Translator;

    #[path = "suite/mod.rs"]
    mod suite;
}
