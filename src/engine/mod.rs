// SPDX-License-Identifier: GPL-2.0

//! The pure part of vhost_iocm: what a virtqueue is, who may serve it, and how the control
//! interface reads and writes.
//!
//! Nothing here knows the kernel, allocates, or contains `unsafe`. The kernel module and a cargo
//! crate compile the same files; both crate roots declare `atomics` beside this module, with the
//! kernel's atomics in one and look-alikes in the other.

pub mod abi;
pub mod error;
pub mod iotlb;
pub mod log;
pub mod mem;
pub mod ring;
pub mod sched;
pub mod snapshot;
pub mod stats;
pub mod tunable;
pub mod vnet;
