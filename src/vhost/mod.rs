// SPDX-License-Identifier: GPL-2.0

//! The driver: devices and their ioctls, virtqueues and their data path, workers and their
//! control. Safe Rust throughout.

pub mod channel;
pub mod device;
pub mod fast_loop;
pub mod features;
pub mod home;
pub mod log;
pub mod net;
pub mod node;
pub mod others;
pub mod pool;
pub mod sysfs;
pub mod virtqueue;
pub mod worker;

pub use node::VhostNet;
