//! Stands for the translator on hosts that have none.

use super::Hart;
use super::blocks::Block;
use crate::bus::Bus;
use crate::engine::Translation;

/// There is none.
pub(super) enum Translator {}

#[derive(Default)]
pub(super) struct View;

/// There is none.
#[derive(Debug, Clone, Copy)]
pub(super) enum PatchRequest {}

impl Translator {
    pub fn new(_bytes: usize) -> Option<Box<Translator>> {
        None
    }

    pub fn view(&self) -> View {
        match *self {}
    }
}

impl Hart {
    pub fn time_translation(&mut self, _clock: fn() -> u64) {}

    pub fn translation(&self) -> Option<Translation> {
        None
    }

    pub(super) fn make_room_to_translate(&mut self) {}

    pub(super) fn run_translated(&mut self, _block: Block, _slack: i64, _bus: &mut dyn Bus) -> bool {
        false
    }
}
