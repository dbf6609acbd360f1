//! How two hosts talk: mutual TLS, handshake, heartbeats, failure detection, arbitration.
//!
//! [`detector`] and [`arbitration`] are logic without I/O, clock
//! or thread; the simulator runs the very same types. The
//! arbiters are thin drivers around them.

pub mod arbiter;
pub mod arbitration;
pub mod detector;
pub mod keys;
pub mod tls;
pub mod transport;
