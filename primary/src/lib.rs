//! Runs the machine live: record, checkpoint, ship, commit output.
