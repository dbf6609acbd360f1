//! The control socket of a machine that is neither primary nor backup.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use anyhow::Result;
use log_format::{Control, Event, Moment};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use super::Input;
use crate::checkpoint::order::{ToMachine, carry_out};
use crate::control::{ControlServer, Look, Order, Request, default_socket, showing};
use crate::disk::DiskMode;
use crate::vm::Vm;

/// Machines with one name that have a socket in the runtime folder.
const MAX_NAMESAKES: usize = 100;
/// Orders that wait to be carried out.
const ORDERS: usize = 16;

/// A control socket, which goes with this.
pub struct LiveControl {
    status: watch::Sender<Look>,
    name: String,
    role: &'static str,
    serving: Option<tokio::task::JoinHandle<()>>,
}

impl LiveControl {
    /// Listens where it is told, or in the runtime folder. Where that folder cannot be used, the
    /// machine runs without a socket.
    pub fn open(
        runtime: &Runtime,
        socket: Option<&Path>,
        vm: &Vm,
        name: &str,
        role: &'static str,
        disks: DiskMode,
        inputs: &Sender<Input>,
    ) -> Result<LiveControl> {
        let _context = runtime.enter();
        let (status, shown) = watch::channel(showing(json!({ "role": role, "name": name })));
        let mut control = LiveControl { status, name: name.to_owned(), role, serving: None };
        let server = match socket {
            Some(socket) => ControlServer::bind(socket)?,
            None => match bind_default(name, role) {
                Ok(server) => server,
                Err(error) => {
                    tracing::warn!("no control socket: {error:#}");
                    return Ok(control);
                }
            },
        };
        let (orders, received) = mpsc::channel(ORDERS);
        runtime.spawn(obey(received, Arc::new(vm.clone()), name.to_owned(), disks, inputs.clone()));
        control.serving = Some(runtime.spawn(server.serve(shown, orders)));
        Ok(control)
    }

    /// What `secondwind status` shows.
    pub fn tell(&self, moment: Moment) {
        let (role, name) = (self.role, &self.name);
        let guest_ms = moment.time_ns / 1_000_000;
        self.status.send_replace(showing(json!({
            "role": role, "name": name, "node": format!("pid {}", std::process::id()),
            "icount": moment.icount, "guest_ms": guest_ms,
        })));
    }
}

impl Drop for LiveControl {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

/// The first name in the runtime folder that no living machine has.
fn bind_default(name: &str, role: &str) -> Result<ControlServer> {
    let mut last = None;
    for number in 1..=MAX_NAMESAKES {
        let node = if number == 1 { role.to_owned() } else { format!("{role}{number}") };
        match ControlServer::bind(&default_socket(name, &node)) {
            Ok(server) => return Ok(server),
            Err(error) => last = Some(error),
        }
    }
    last.map_or_else(|| unreachable!("there is at least one try"), Err)
}

async fn obey(
    mut orders: mpsc::Receiver<Order>,
    vm: Arc<Vm>,
    name: String,
    disks: DiskMode,
    inputs: Sender<Input>,
) {
    while let Some(order) = orders.recv().await {
        let input = match order {
            Order::Simple(Request::Stop) => Input::Stop,
            Order::Simple(Request::PowerButton) => Input::Event(Event::Control(Control::PowerButton)),
            // Nobody else has this machine.
            Order::Simple(_) => continue,
            Order::CompareDisks(replies) => {
                let error = "this machine has no backup to compare with; secondwind primary takes backups";
                let _ = replies.send(json!({ "error": error }));
                continue;
            }
            Order::Transfer(_, replies) => {
                let error = "this machine has no link to another host; run it with secondwind primary";
                let _ = replies.send(json!({ "error": error }));
                continue;
            }
            Order::Checkpoint(request, replies) => {
                let (vm, name, inputs) = (Arc::clone(&vm), name.clone(), inputs.clone());
                let tell = move |told| {
                    // A machine that has ended drops the order, which is answered then.
                    let _ = inputs.send(match told {
                        ToMachine::Snapshot(order) => Input::Snapshot(order),
                        ToMachine::Release => Input::Release,
                        ToMachine::Stop => Input::Stop,
                    });
                };
                tokio::task::spawn_blocking(move || match vm.check_checkpoint(disks) {
                    Ok(()) => carry_out(&request, &vm, &name, &replies, tell),
                    Err(error) => {
                        let _ = replies.send(json!({ "error": crate::one_line(&error) }));
                    }
                });
                continue;
            }
        };
        // A machine that has ended needs nothing more.
        let _ = inputs.send(input);
    }
}
