//! Checks that batches follow each other.

use log_format::{ChainHash, IncrementStart, Position, SealedBatch, SegmentEnd, SegmentHeader};

/// A place in a log, and the check that what comes next follows from there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Follower {
    position: Position,
    chain: ChainHash,
    /// Outputs since boot, once a batch told.
    outputs: Option<u64>,
}

/// In what a record does not follow the one before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("found {what} {found}, expected {expected}")]
pub struct NotNext {
    /// What of it.
    pub what: &'static str,
    /// In the record.
    pub found: String,
    /// By the one before.
    pub expected: String,
}

impl Follower {
    /// Stands at the start of a segment.
    pub fn at(header: &SegmentHeader) -> Follower {
        Follower { position: header.position, chain: header.chain, outputs: None }
    }

    /// The place reached.
    pub fn end_position(&self) -> Position {
        self.position
    }

    /// The chain hash there.
    pub fn chain(&self) -> ChainHash {
        self.chain
    }

    /// Steps over a batch.
    ///
    /// # Errors
    /// When it does not follow: by number, chain hash, term, moment or number of outputs.
    /// The place stays where it was.
    pub fn accept(&mut self, batch: &SealedBatch) -> Result<(), NotNext> {
        let next = self.position.sequence.saturating_add(1);
        expect("batch", batch.sequence, next, batch.sequence == next)?;
        let previous = batch.previous();
        expect("chain hash", previous, self.chain, previous == self.chain)?;
        let term = self.position.term;
        expect("term", batch.term, format!("at least {term}"), batch.term >= term)?;
        let at = self.position.moment;
        let first = batch.events.first().map_or(batch.end, |event| event.at);
        for moment in [first, batch.end] {
            let is_later = moment.icount >= at.icount && moment.time_ns >= at.time_ns;
            expect("moment", format!("{moment:?}"), format!("{at:?} or later"), is_later)?;
        }
        if let Some(outputs) = self.outputs {
            let is_next = batch.first_output == outputs;
            expect("first output", batch.first_output, outputs, is_next)?;
        }
        self.position = batch.end_position();
        self.chain = batch.chain();
        self.outputs = Some(batch.outputs_after());
        Ok(())
    }

    /// Steps over an increment. One that leads to where log was read already, as in `hybrid` mode, leaves
    /// the place where it is; another one leads to its own. Which of the two it is.
    ///
    /// # Errors
    /// When it builds on what lies further on, or runs backwards. The place stays where it was.
    pub fn accept_increment(&mut self, start: &IncrementStart) -> Result<bool, NotNext> {
        let (here, to) = (self.position, start.position);
        let base = format!("at most {}", here.sequence);
        expect("base", start.base, base, start.base <= here.sequence && start.base <= to.sequence)?;
        if to.sequence <= here.sequence {
            return Ok(false);
        }
        expect("term", to.term, format!("at least {}", here.term), to.term >= here.term)?;
        let is_later = to.moment.icount >= here.moment.icount && to.moment.time_ns >= here.moment.time_ns;
        expect("moment", format!("{:?}", to.moment), format!("{:?} or later", here.moment), is_later)?;
        self.position = to;
        self.chain = start.chain;
        self.outputs = Some(start.head.outputs_before);
        Ok(true)
    }

    /// Checks that a segment begins here.
    ///
    /// # Errors
    /// When it begins elsewhere.
    pub fn accept_header(&self, header: &SegmentHeader) -> Result<(), NotNext> {
        self.accept_place(header.position, header.chain)
    }

    /// Checks that a segment of so many batches ends here.
    ///
    /// # Errors
    /// When it ends elsewhere.
    pub fn accept_end(&self, end: &SegmentEnd, batches: u64) -> Result<(), NotNext> {
        self.accept_place(end.position, end.chain)?;
        expect("number of batches", end.batches, batches, end.batches == batches)
    }

    fn accept_place(&self, position: Position, chain: ChainHash) -> Result<(), NotNext> {
        expect(
            "sequence",
            position.sequence,
            self.position.sequence,
            position.sequence == self.position.sequence,
        )?;
        expect("chain hash", chain, self.chain, chain == self.chain)?;
        expect("position", format!("{position:?}"), format!("{:?}", self.position), position == self.position)
    }
}

fn expect(
    what: &'static str,
    found: impl ToString,
    expected: impl ToString,
    holds: bool,
) -> Result<(), NotNext> {
    if holds {
        return Ok(());
    }
    Err(NotNext { what, found: found.to_string(), expected: expected.to_string() })
}
