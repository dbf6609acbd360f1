//! A disk that the kernel says is full. A test program of its own, since the limit it sets
//! holds for the whole process.

mod common;

use common::*;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use store::*;

#[test]
fn a_write_that_the_kernel_cuts_short_is_taken_back() {
    const LIMIT_BYTES: u64 = 2000;
    let directory = tempdir().unwrap();
    let header = header();
    let all = batches(&header, 30);
    let options = LogOptions::default();
    let mut writer = LogWriter::create(directory.path(), header, options).unwrap();
    // SAFETY: ignoring a signal installs no handler.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, LIMIT_BYTES, hard).unwrap();
    let mut appended = 0;
    let error = loop {
        match writer.append(&all[appended]) {
            Ok(()) => appended += 1,
            Err(error) => break error,
        }
    };
    let again = writer.append(&all[appended]).unwrap_err();
    setrlimit(Resource::RLIMIT_FSIZE, soft, hard).unwrap();

    assert!(error.is_full() && again.is_full(), "{error}; {again}");
    assert!(appended > 5 && appended < all.len());
    let (read, end) = read_log(directory.path());
    assert_eq!(read, all[..appended]);
    assert_eq!(end.unwrap(), Ending::Unfinished);
    // With room again it goes on.
    for batch in &all[appended..] {
        writer.append(batch).unwrap();
    }
    writer.finish().unwrap();
    assert_eq!(read_log(directory.path()).0, all);
}
