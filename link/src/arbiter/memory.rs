//! An arbiter in memory, for the simulator and tests.

use super::{Arbiter, ArbiterError, CasOutcome};
use crate::arbitration::Record;
use std::sync::{Arc, Mutex, PoisonError};

/// Keeps the record in memory. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryArbiter {
    record: Arc<Mutex<Option<Record>>>,
}

impl Arbiter for MemoryArbiter {
    fn read(&self) -> Result<Option<Record>, ArbiterError> {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(record.clone())
    }

    fn compare_and_set(&self, expected: Option<&Record>, new: &Record) -> Result<CasOutcome, ArbiterError> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        if record.as_ref() != expected {
            return Ok(CasOutcome::Lost(record.clone()));
        }
        *record = Some(new.clone());
        Ok(CasOutcome::Won)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::contract;

    #[test]
    fn meets_the_contract() {
        contract::keeps_what_was_won_and_refuses_the_rest(&MemoryArbiter::default());
    }

    #[test]
    fn one_of_many_contenders_wins_each_step() {
        let arbiter = MemoryArbiter::default();
        contract::one_wins_each_step(8, || arbiter.clone());
    }
}
