//! Output buffer and network ports: hold frames until committed; tap, tunnel, in-process switch.
//!
//! - [`OutputBuffer`] is the logic of output commit, without I/O.
//! - [`port::open`] opens what stands behind a machine's network device, as a [`NetSpec`]
//!   says it: a [`PortSender`] that never waits and a channel of incoming frames.
//! - [`switch`] is the other end of a tunnel, and the in-process network of `--net user`.

mod address;
pub mod announce;
mod buffer;
mod delay;
mod error;
mod gateway;
pub mod host;
pub mod port;
mod spec;
pub mod switch;
mod tap;
pub mod tunnel;
mod user;

pub use address::{MacAddress, MacAddressError};
pub use buffer::{BufferLimits, BufferStatistics, OutputBuffer};
pub use delay::DelayHistogram;
pub use error::PortError;
pub use gateway::{GATEWAY_ADDRESS, GATEWAY_MAC};
pub use port::{PortHandle, PortSender, PortStatistics};
pub use spec::{DEFAULT_GUEST_ADDRESS, Forward, NetKind, NetSpec, SpecError};
pub use tunnel::{PortId, VmId};
