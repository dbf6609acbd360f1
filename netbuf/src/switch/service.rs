//! A switch that runs on its own: a tunnel for VMs elsewhere, forwards for clients here.
//!
//! TCP clients connect to this process, so their connections outlive the hosts that the VM
//! runs on.

use std::convert::Infallible;
use std::net::SocketAddr;

use super::{Switch, TunnelServer};
use crate::error::PortError;
use crate::gateway::Gateway;
use crate::spec::Forward;

/// What a switch on its own offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchConfig {
    /// UDP address for the tunnels of VMs; port 0 lets the host choose.
    pub listen: SocketAddr,
    /// Host TCP ports carried to guests on 10.0.2.0/24.
    pub forwards: Vec<Forward>,
}

/// A switch at work. Dropping it stops it.
pub struct SwitchService {
    switch: Switch,
    tunnel: TunnelServer,
    gateway: Gateway,
}

impl SwitchService {
    /// Starts a switch. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When an address cannot be listened on; nothing is then left listening.
    pub fn start(config: &SwitchConfig) -> Result<SwitchService, PortError> {
        let switch = Switch::new();
        let tunnel = switch.serve_tunnel(config.listen)?;
        let gateway = Gateway::start(&switch, &config.forwards)?;
        Ok(SwitchService { switch, tunnel, gateway })
    }

    /// The switch, to attach hosts of this process to.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// Where VMs reach it: `--net tunnel:` and this.
    pub fn tunnel_address(&self) -> SocketAddr {
        self.tunnel.local_address()
    }

    /// Where the forwards listen, in their order.
    pub fn forward_addresses(&self) -> &[SocketAddr] {
        self.gateway.addresses()
    }
}

/// Runs a switch until the future is dropped. `ready` is called once it listens.
///
/// # Errors
/// When it cannot start.
pub async fn run(config: SwitchConfig, ready: impl FnOnce(&SwitchService)) -> Result<Infallible, PortError> {
    let service = SwitchService::start(&config)?;
    ready(&service);
    std::future::pending().await
}
