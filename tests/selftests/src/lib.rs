// SPDX-License-Identifier: GPL-2.0
//! A user-space virtio-net driver over the vhost ioctls, and what the suites need around it.
//!
//! The driver plays the guest and the virtual machine monitor at once: [`nic::Nic`] owns a vhost
//! [`device::Device`], two [`ring::SplitRing`]s in a [`memory::GuestMemory`], and the eventfds
//! between them. Behind the device is a [`tap::Tap`], and on the host's side of the tap sits a
//! [`wire::PacketSocket`]. [`traffic`] sends numbered [`frame`]s through all of it and tells lost,
//! duplicated and reordered ones apart.
//!
//! Nothing here knows which module serves the node: the path and the expectations come from
//! [`options::Options`], so that the same code drives vhost_iocm and the kernel's own vhost_net.

#![cfg_attr(
    test,
    expect(clippy::unwrap_used, reason = "a test says enough by failing")
)]

pub mod card;
pub mod cgroup;
pub mod control;
pub mod counters;
pub mod cpu;
pub mod device;
pub mod frame;
pub mod header;
pub mod interface;
pub mod iotlb;
pub mod ktap;
pub mod load;
pub mod log;
pub mod meminfo;
pub mod memory;
pub mod module;
pub mod nic;
pub mod options;
pub mod parameter;
pub mod probe;
pub mod process;
pub mod random;
pub mod refusal;
pub mod ring;
pub mod segment;
pub mod service;
pub mod snapshot;
pub mod statistics;
pub mod store;
pub mod tap;
pub mod thread;
pub mod traffic;
pub mod userfault;
pub mod wait;
pub mod wire;
pub mod xdp;
