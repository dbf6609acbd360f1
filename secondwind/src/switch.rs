//! `secondwind switch`: an Ethernet switch for tunnels, in a process of its own.

use std::net::SocketAddr;

use anyhow::Result;
use netbuf::Forward;
use netbuf::switch::{SwitchConfig, SwitchService};

/// Runs an Ethernet switch that machines reach by `--net tunnel:HOST:PORT`.
///
/// It stands outside the hosts that may fail, so that TCP connections from outside survive a
/// takeover: the machine comes back on another host and sends through the same switch. Frames
/// of an older term than the newest seen are refused.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  secondwind switch --listen 0.0.0.0:4789 --forward 6379:6379
  secondwind primary --guest debian --net tunnel:SWITCH-HOST:4789 ...")]
pub struct SwitchArgs {
    /// UDP address on which machines are waited for
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4789")]
    listen: SocketAddr,
    /// Carry a TCP port of this host to a machine: HOST:GUEST, as 8080:80 or
    /// tcp:127.0.0.1:6379-10.0.2.15:6379; may be given several times
    #[arg(long, value_name = "HOST:GUEST")]
    forward: Vec<Forward>,
}

/// Runs `secondwind switch`.
pub fn switch(args: SwitchArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let config = SwitchConfig { listen: args.listen, forwards: args.forward };
        tokio::select! {
            ended = netbuf::switch::run(config, announce) => match ended {
                Err(error) => Err(error.into()),
                Ok(never) => match never {},
            },
            interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        }
    })
}

fn announce(service: &SwitchService) {
    println!("machines are waited for on {}", service.tunnel_address());
    service.forward_addresses().iter().for_each(|address| println!("forwarding from {address}"));
}
