// SPDX-License-Identifier: GPL-2.0

//! Hostile guests and owners for the ring engine, made from bytes.
//!
//! [`run`] takes any bytes for a script: what the guest writes into its ring, when it changes
//! memory under the engine's feet, which memory table the owner sets, which accesses fail, and
//! which calls the device makes meanwhile. A call is right when
//!
//! - it ends without a panic or an overflow, after no more work than its bound, and what it says
//!   of its work covers what it did;
//! - a chain that it takes was made available, is what the guest wrote at the moment at which it
//!   was read, and lies in regions of the memory table, each segment of it;
//! - a chain that it refuses is found again, and so is one that was put back;
//! - what it gives back are chains that were taken, each once and in its slot, published behind
//!   their elements, or after a fault not at all;
//! - notifications and interrupts are asked for and decided by the rules of the specification.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod act;
mod device;
mod input;
mod memory;
mod oracle;
mod outcome;
mod script;

pub use act::{Act, Setup};
pub use device::{DeviceRing, Taken};
pub use memory::{memory_size, Memory, Write, GUEST, OWNER};
pub use outcome::{Event, Outcomes, ERRORS, EVENTS};
pub use script::{acts, run};

/// Where the committed inputs are.
pub const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus");

/// What [`device_ring`] needs of the engine.
#[doc(hidden)]
pub mod interface {
    pub use vhost_iocm_engine::engine::error::RingError;
    pub use vhost_iocm_engine::engine::mem::{Segment, UsedElem};
    pub use vhost_iocm_engine::engine::ring::Layout;
}
