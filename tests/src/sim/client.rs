//! Clients outside of the cluster: one request at a time, repeated until it is answered.

use super::ledger::{self, Reply, Request};
use super::random::Random;

/// One operation of a client's history.
#[derive(Debug, Clone)]
pub struct Operation {
    /// The value, if it was an append.
    pub append: Option<u64>,
    /// When it was first asked.
    pub invoked_ns: u64,
    /// When its answer came.
    pub answered_ns: Option<u64>,
    /// The answer.
    pub reply: Option<Reply>,
}

/// A client.
#[derive(Debug)]
pub struct Client {
    id: u8,
    random: Random,
    current: Option<Request>,
    history: Vec<Operation>,
    /// Asks nothing new any more.
    pub finishing: bool,
}

impl Client {
    /// Client number `id`.
    pub fn new(id: u8, random: Random) -> Self {
        Client { id, random, current: None, history: Vec::new(), finishing: false }
    }

    /// The request to send now: the open one again, or a new one.
    pub fn request(&mut self, now_ns: u64) -> Option<Request> {
        if self.current.is_none() && !self.finishing {
            let append = self.random.chance(800).then(|| self.random.next_u64());
            let operation = append.map_or(ledger::Operation::Sum, ledger::Operation::Append);
            let number = self.history.len() as u64 + 1;
            self.history.push(Operation { append, invoked_ns: now_ns, answered_ns: None, reply: None });
            self.current = Some(Request { client: self.id, number, operation });
        }
        self.current.clone()
    }

    /// An answer arrived. Whether it was the one awaited.
    pub fn answered(&mut self, reply: &Reply, now_ns: u64) -> bool {
        if self.current.as_ref().is_none_or(|request| request.number != reply.number) {
            return false;
        }
        self.current = None;
        if let Some(operation) = self.history.last_mut() {
            operation.answered_ns = Some(now_ns);
            operation.reply = Some(reply.clone());
        }
        true
    }

    /// When to ask again, counted from now: soon after an answer, later without one.
    pub fn pause_ns(&mut self) -> u64 {
        match self.current {
            None => self.random.between(100_000, 30_000_000),
            Some(_) => self.random.between(60_000_000, 180_000_000),
        }
    }

    /// Whether every request was answered.
    pub fn is_done(&self) -> bool {
        self.current.is_none()
    }

    /// All operations so far.
    pub fn history(&self) -> &[Operation] {
        &self.history
    }
}
