//! What an agent does when it is told to, through its control socket or by a signal.

use log_format::Event;
use primary::driver::Command;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::settings::{ArbiterChoice, Settings};
use crate::checkpoint::order::{ToMachine, carry_out};
use crate::control::{Order, Request};
use crate::vm::Vm;

pub(super) async fn obey_as_primary(
    settings: &Settings,
    vm: &Vm,
    commands: &mpsc::Sender<Command>,
    waiting: &mut Vec<mpsc::UnboundedSender<Value>>,
    order: Order,
) {
    let command = match order {
        Order::Simple(Request::Takeover) if settings.arbiter.grant() => return,
        Order::Simple(Request::Takeover) => Command::Operator(primary::Operator::GoAlone),
        Order::Simple(Request::Stop) => Command::Operator(primary::Operator::Stop),
        Order::Simple(Request::PowerButton) => {
            Command::Input(Event::Control(log_format::Control::PowerButton))
        }
        Order::Simple(
            Request::Status | Request::Checkpoint(_) | Request::Transfer(_) | Request::CompareDisks,
        ) => return,
        Order::CompareDisks(replies) => {
            waiting.push(replies);
            if waiting.len() > 1 {
                // All get what the one under way finds.
                return;
            }
            Command::Operator(primary::Operator::CompareDisks)
        }
        // It has an order of its own, which the role takes.
        Order::Transfer(..) => return,
        Order::Checkpoint(request, replies) => {
            let (vm, name, commands) = (vm.clone(), settings.name.clone(), commands.clone());
            let tell = move |told| {
                // A driver that is ending drops the order, which is answered then.
                let _ = commands.blocking_send(match told {
                    ToMachine::Snapshot(order) => Command::Snapshot(order),
                    ToMachine::Release => Command::Release,
                    ToMachine::Stop => Command::Operator(primary::Operator::Stop),
                });
            };
            tokio::task::spawn_blocking(move || carry_out(&request, &vm, &name, &replies, tell));
            return;
        }
    };
    // A driver that is ending takes no more commands.
    let _ = commands.send(command).await;
}

pub(super) async fn obey_as_backup(
    arbiter: &ArbiterChoice,
    commands: &mpsc::Sender<backup::Operator>,
    order: Order,
) {
    let request = match order {
        Order::Simple(request) => request,
        Order::Checkpoint(_, replies) => {
            let error = "this is a backup; ask the primary for a checkpoint";
            let _ = replies.send(json!({ "error": error }));
            return;
        }
        Order::CompareDisks(replies) => {
            let error = "this is a backup; have the primary compare the disks";
            let _ = replies.send(json!({ "error": error }));
            return;
        }
        Order::Transfer(_, replies) => {
            let error = "this is a backup; ask the primary, on its own host";
            let _ = replies.send(json!({ "error": error }));
            return;
        }
    };
    let command = match request {
        Request::Status
        | Request::PowerButton
        | Request::Checkpoint(_)
        | Request::Transfer(_)
        | Request::CompareDisks => return,
        Request::Takeover if arbiter.grant() => return,
        Request::Takeover => {
            arbiter.grant_next();
            backup::Operator::TakeOver
        }
        Request::Stop => backup::Operator::Stop,
    };
    let _ = commands.send(command).await;
}

/// What is said of a comparison of the disks.
pub(super) fn describe_comparison(found: &Result<primary::DiskComparison, String>) -> Value {
    let found = match found {
        Ok(found) => found,
        Err(text) => return json!({ "error": text }),
    };
    let backup = |backup: &primary::BackupDisks| {
        json!({
            "node": backup.node, "differing_blocks": backup.differing_blocks,
            "first_blocks": backup.first.iter().map(|(disk, index)| json!([disk, index])).collect::<Vec<_>>(),
            "failure": backup.error,
        })
    };
    json!({
        "equal": found.is_equal(), "sequence": found.sequence, "written_blocks": found.blocks,
        "backups": found.backups.iter().map(backup).collect::<Vec<_>>(),
    })
}

/// Passes SIGINT and SIGTERM on as a request to stop.
pub(super) async fn stop_on_signal(orders: mpsc::Sender<Order>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if orders.send(Order::Simple(Request::Stop)).await.is_err() {
            return;
        }
    }
}
