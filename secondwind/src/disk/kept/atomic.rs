//! A file whose changes take effect together, whatever dies: a redo journal beside it.
//!
//! ```text
//!   write ──> pages in memory ──commit──> journal ──apply (when it is long, and at the end)──> file
//!                                          sync 1   then: file, sync 2, a new generation
//! ```
//!
//! A page in memory hides the one in the file. A commit appends one record with the pages that
//! changed; whoever opens the file next puts the journal's whole records into place first, so
//! that it finds the file as one of the commits left it. The journal is made durable before any
//! of it goes into the file, and the file before the journal is used anew.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::journal::{self, PAGE_BYTES, Page, RECORDS_AT, RecordHead};
use super::medium::Medium;

/// A journal longer than this is put into its file.
const APPLY_AT_BYTES: u64 = 8 << 20;
/// Pages written to the file in one go.
const RUN_PAGES: usize = 256;

/// See the module.
#[derive(Debug)]
pub struct AtomicFile<F, J> {
    file: F,
    journal: J,
    /// What the file does not hold yet: committed or not.
    pages: BTreeMap<u64, Page>,
    uncommitted: BTreeSet<u64>,
    /// Length of the file with all that is in `pages`.
    len_bytes: u64,
    /// The place of the next record.
    next: RecordHead,
    /// Where it goes in the journal.
    journal_end: u64,
    /// Records were appended that are not durable.
    is_journal_stale: bool,
    is_incomplete: bool,
    apply_at_bytes: u64,
}

impl<F: Medium, J: Medium> AtomicFile<F, J> {
    /// Opens a file for writing, and puts into it what its journal holds.
    ///
    /// `fresh` is a number that was never a generation of this journal.
    ///
    /// # Errors
    /// When the host fails.
    pub fn open(file: F, journal: J, fresh: u64) -> io::Result<AtomicFile<F, J>> {
        let is_incomplete = journal::is_incomplete(&journal)?;
        let mut pages = BTreeMap::new();
        let found = journal::read(&journal, |index, page| drop(pages.insert(index, page)))?;
        let (head, journal_end) = match found {
            Some((head, end)) => (RecordHead { number: head.number + 1, ..head }, end),
            None => {
                let file_bytes = file.len_bytes()?;
                let head = RecordHead { generation: fresh, number: 0, file_bytes };
                (head, RECORDS_AT)
            }
        };
        let mut opened = AtomicFile {
            file,
            journal,
            pages,
            uncommitted: BTreeSet::new(),
            len_bytes: head.file_bytes,
            next: head,
            journal_end,
            is_journal_stale: true,
            is_incomplete,
            apply_at_bytes: APPLY_AT_BYTES,
        };
        if found.is_some() {
            opened.apply()?;
        }
        Ok(opened)
    }

    /// Whether the disk is between two states: part of one, part of another.
    pub fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    /// Says, for good, that the disk is between two states: before a part of the new one is
    /// committed. Or that it is not: after all of it was, durably.
    ///
    /// # Errors
    /// When the host fails.
    pub fn set_incomplete(&mut self, is_incomplete: bool) -> io::Result<()> {
        if self.is_incomplete != is_incomplete {
            self.journal.write_at(0, &journal::encode_mark(is_incomplete))?;
            self.journal.sync()?;
            self.is_incomplete = is_incomplete;
        }
        Ok(())
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// What changed since the last commit, in bytes.
    pub fn uncommitted_bytes(&self) -> u64 {
        (self.uncommitted.len() * PAGE_BYTES) as u64
    }

    /// Reads from `at` on; past the end there are zeros.
    ///
    /// # Errors
    /// When the host fails.
    pub fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let found = self.file.read_at(at, into)?;
        into[found..].fill(0);
        let end = at + into.len() as u64;
        let first = at / PAGE_BYTES as u64;
        for (index, page) in self.pages.range(first..end.div_ceil(PAGE_BYTES as u64)) {
            let start = index * PAGE_BYTES as u64;
            let from = start.max(at);
            let to = (start + PAGE_BYTES as u64).min(end);
            let target = &mut into[(from - at) as usize..(to - at) as usize];
            target.copy_from_slice(&page[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }

    /// Writes from `at` on, into memory.
    ///
    /// # Errors
    /// When the host cannot read a page of which only a part is written.
    pub fn write_at(&mut self, at: u64, from: &[u8]) -> io::Result<()> {
        let end = at + from.len() as u64;
        let mut done = at;
        while done < end {
            let index = done / PAGE_BYTES as u64;
            let start = index * PAGE_BYTES as u64;
            let stop = end.min(start + PAGE_BYTES as u64);
            let piece = &from[(done - at) as usize..(stop - at) as usize];
            let offset = (done - start) as usize;
            let mut page = Box::new([0; PAGE_BYTES]);
            self.read_at(start, &mut page[..])?;
            // Tables are written as a whole for the sake of an entry: what stays as it was
            // needs no place in the journal.
            if page[offset..offset + piece.len()] != *piece || stop > self.len_bytes {
                page[offset..offset + piece.len()].copy_from_slice(piece);
                self.pages.insert(index, page);
                self.uncommitted.insert(index);
            }
            done = stop;
        }
        self.len_bytes = self.len_bytes.max(end);
        Ok(())
    }

    /// Makes all that was written so far one change, which takes effect together; with
    /// `durable`, it is on the disk when this comes back, and so is all before it.
    ///
    /// # Errors
    /// When the host fails: the change is then not made, and may be tried again.
    pub fn commit(&mut self, durable: bool) -> io::Result<()> {
        if !self.uncommitted.is_empty() {
            self.append()?;
        }
        if durable && self.is_journal_stale {
            self.journal.sync()?;
            self.is_journal_stale = false;
        }
        if self.journal_end > self.apply_at_bytes {
            self.apply()?;
        }
        Ok(())
    }

    fn append(&mut self) -> io::Result<()> {
        let pages: Vec<(u64, &Page)> =
            self.uncommitted.iter().filter_map(|index| Some((*index, self.pages.get(index)?))).collect();
        let head = RecordHead { file_bytes: self.len_bytes, ..self.next };
        let record = journal::encode(head, pages.into_iter());
        self.journal.write_at(self.journal_end, &record)?;
        self.is_journal_stale = true;
        self.journal_end += record.len() as u64;
        self.next = RecordHead { number: head.number + 1, ..head };
        self.uncommitted.clear();
        Ok(())
    }

    /// Puts all that is committed into the file, and begins the journal anew.
    ///
    /// # Errors
    /// When the host fails; everything stays as it is then, and may be tried again.
    fn apply(&mut self) -> io::Result<()> {
        assert!(self.uncommitted.is_empty(), "what is not in the journal does not go into the file");
        if self.is_journal_stale {
            self.journal.sync()?;
            self.is_journal_stale = false;
        }
        self.write_pages()?;
        if self.file.len_bytes()? != self.len_bytes {
            self.file.set_len(self.len_bytes)?;
        }
        self.file.sync()?;
        self.pages.clear();
        self.journal_end = RECORDS_AT;
        // The records of the old generation stay until they are written over: putting them into
        // the file once more changes nothing.
        self.next = RecordHead {
            generation: self.next.generation.wrapping_add(1),
            number: 0,
            file_bytes: self.len_bytes,
        };
        Ok(())
    }

    /// Writes pages that lie side by side together.
    fn write_pages(&self) -> io::Result<()> {
        let mut run: Vec<u8> = Vec::new();
        let mut run_start = 0;
        for (index, page) in &self.pages {
            let at = index * PAGE_BYTES as u64;
            if !run.is_empty() && (run_start + run.len() as u64 != at || run.len() >= RUN_PAGES * PAGE_BYTES)
            {
                self.file.write_at(run_start, &run)?;
                run.clear();
            }
            if run.is_empty() {
                run_start = at;
            }
            // The file may end inside its last page.
            let bytes = (self.len_bytes.saturating_sub(at)).min(PAGE_BYTES as u64);
            run.extend_from_slice(&page[..bytes as usize]);
        }
        if run.is_empty() { Ok(()) } else { self.file.write_at(run_start, &run) }
    }

    /// Commits, and puts everything into the file. Whether the journal is of no more use: it is
    /// while the disk is between two states.
    ///
    /// # Errors
    /// When the host fails.
    pub fn close(&mut self) -> io::Result<bool> {
        self.commit(true)?;
        self.apply()?;
        Ok(!self.is_incomplete)
    }

    /// A journal longer than this is put into its file.
    #[cfg(test)]
    pub fn set_apply_at_bytes(&mut self, bytes: u64) {
        self.apply_at_bytes = bytes;
    }
}
