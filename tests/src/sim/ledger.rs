//! What the toy machine serves: an append-only ledger, and its requests and replies as frames.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Append this value.
    Append(u64),
    /// Say how long the ledger is, and its hash.
    Sum,
    /// Power the machine off.
    PowerOff,
}

/// A client's request. A client has one under way at a time and sends it again until it is
/// answered, as TCP would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Number of the client.
    pub client: u8,
    /// Number of the request: grows by one.
    pub number: u64,
    /// What it wants.
    pub operation: Operation,
}

/// The machine's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Number of the client.
    pub client: u8,
    /// Number of the request.
    pub number: u64,
    /// Entries in the ledger after the operation.
    pub length: u64,
    /// Running hash over them.
    pub hash: u64,
    /// Guest time at the answer.
    pub guest_time_ns: u64,
    /// Depends on all that the machine ever did.
    pub noise: u64,
}

impl Request {
    /// As an Ethernet frame's worth of bytes.
    pub fn to_frame(&self) -> Bytes {
        Bytes::from(rmp_serde::to_vec(self).expect("plain data serializes"))
    }

    /// Reads a frame; `None` when it is something else.
    pub fn from_frame(frame: &[u8]) -> Option<Request> {
        rmp_serde::from_slice(frame).ok()
    }
}

impl Reply {
    /// As an Ethernet frame's worth of bytes.
    pub fn to_frame(&self) -> Bytes {
        Bytes::from(rmp_serde::to_vec(self).expect("plain data serializes"))
    }

    /// Reads a frame; `None` when it is something else.
    pub fn from_frame(frame: &[u8]) -> Option<Reply> {
        rmp_serde::from_slice(frame).ok()
    }

    /// The ledger's running hash after one more value.
    pub fn next_hash(hash: u64, value: u64) -> u64 {
        (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
    }
}
