//! `secondwind drill`: the main job in one command.

mod history;
mod report;
mod workload;
