//! Whole clusters on virtual time.

pub mod ledger;
pub mod random;
pub mod toy;
