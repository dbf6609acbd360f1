//! Stands by: store, replay, verify, detect failure, take over.

mod replayer;

pub use replayer::{Counted, Divergence, DivergenceKind, Progress, Replayer};
