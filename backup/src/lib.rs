//! Stands by: store, replay, verify, detect failure, take over.
