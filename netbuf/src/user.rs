//! The user network: 10.0.2.0/24 inside this process, for users without root.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::error::PortError;
use crate::gateway::Gateway;
use crate::spec::Forward;
use crate::switch::{Switch, SwitchSender};

/// A switch with one guest and a gateway. The gateway is there while the port is live: a
/// backup must not hold the host ports that its primary, on the same host, serves.
pub(crate) struct UserNetwork {
    switch: Switch,
    guest: SwitchSender,
    forwards: Vec<Forward>,
    gateway: Mutex<Option<Gateway>>,
    runtime: tokio::runtime::Handle,
}

impl UserNetwork {
    /// Must be called inside a tokio runtime.
    pub(crate) fn new(forwards: Vec<Forward>) -> (UserNetwork, mpsc::Receiver<Bytes>) {
        let switch = Switch::new();
        let (guest, incoming) = switch.attach().split();
        let network = UserNetwork {
            switch,
            guest,
            forwards,
            gateway: Mutex::new(None),
            runtime: tokio::runtime::Handle::current(),
        };
        (network, incoming)
    }

    pub(crate) fn send(&self, frame: Bytes) {
        self.guest.send(frame);
    }

    pub(crate) fn set_live(&self, live: bool) -> Result<(), PortError> {
        // The machine's own thread may be the caller.
        let _inside = self.runtime.enter();
        let mut gateway = self.gateway.lock().unwrap_or_else(PoisonError::into_inner);
        match (live, gateway.is_some()) {
            (true, false) => *gateway = Some(Gateway::start(&self.switch, &self.forwards)?),
            (false, true) => *gateway = None,
            _ => {}
        }
        Ok(())
    }

    /// Where the forwards listen; empty while the port is not live.
    pub(crate) fn forward_addresses(&self) -> Vec<std::net::SocketAddr> {
        let gateway = self.gateway.lock().unwrap_or_else(PoisonError::into_inner);
        gateway.as_ref().map_or_else(Vec::new, |gateway| gateway.addresses().to_vec())
    }
}
