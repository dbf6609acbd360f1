//! The log and checkpoints in a directory: append, rotate, recover, read.
