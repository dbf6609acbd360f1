//! How two hosts talk: mutual TLS, handshake, heartbeats, failure detection, arbitration.
