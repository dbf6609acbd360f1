//! How two hosts talk: mutual TLS, handshake, heartbeats, failure detection, arbitration.
//!
//! [`detector`], [`arbitration`], [`handshake`] and [`pacing`] are logic without I/O, clock
//! or thread; the simulator runs the very same types. [`transport`], [`proxy`] and the
//! arbiters of [`arbiter`] are thin drivers around them.

pub mod alarm;
pub mod arbiter;
pub mod arbitration;
pub mod clock;
pub mod detector;
pub mod handshake;
pub mod keys;
pub mod lane;
pub mod pacing;
pub mod proxy;
pub mod tls;
pub mod transport;
