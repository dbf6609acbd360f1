//! The command line: a thin shell over the crates that do the work.

fn main() {}
