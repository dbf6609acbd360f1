//! The user network: 10.0.2.0/24 inside this process, for users without root.

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::error::PortError;
use crate::spec::Forward;
use crate::switch::{Switch, SwitchSender};

/// A switch with one guest on it.
pub(crate) struct UserNetwork {
    guest: SwitchSender,
    forwards: Vec<Forward>,
}

impl UserNetwork {
    pub(crate) fn new(forwards: Vec<Forward>) -> (UserNetwork, mpsc::Receiver<Bytes>) {
        let (guest, incoming) = Switch::new().attach().split();
        (UserNetwork { guest, forwards }, incoming)
    }

    pub(crate) fn send(&self, frame: Bytes) {
        self.guest.send(frame);
    }

    pub(crate) fn set_live(&self, live: bool) -> Result<(), PortError> {
        tracing::debug!(live, forwards = self.forwards.len(), "user network");
        Ok(())
    }
}
