//! Virtio 1.x devices on the MMIO transport, over split queues of our own.
//!
//! The field's `virtio-queue` works on `vm-memory`, which knows nothing of our pages'
//! states; and a queue is small. What a driver writes into rings and registers is never
//! trusted: a malformed ring breaks its device ([`queue::Broken`], DEVICE_NEEDS_RESET)
//! and nothing else, and what one notification can cause is bounded by the queue's size.

pub mod block;
pub mod entropy;
pub mod mmio;
pub mod net;
pub mod queue;

use log_format::Moment;

use crate::contract::HostPart;
use crate::disk::Disk;
use crate::output::Outputs;
use crate::ram::Ram;
use entropy::EntropyPool;

/// What a device can reach beside its own registers.
pub struct Environment<'a> {
    /// Guest memory.
    pub ram: &'a mut Ram,
    /// The present.
    pub now: Moment,
    /// Where frames go.
    pub outputs: &'a mut Outputs,
    /// Where entropy comes from.
    pub pool: &'a mut EntropyPool,
    /// All disks of the machine.
    pub disks: &'a mut [Disk],
    /// Set when a disk's store fails: the machine must stop.
    pub host_fault: &'a mut Option<HostFault>,
}

/// The host failed at something the guest must not see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFault {
    /// What it failed to read or write.
    pub part: HostPart,
    /// What the host said.
    pub message: String,
}
