// SPDX-License-Identifier: GPL-2.0

//! Abstractions over the kernel: everything that is unsafe, every binding, every errno. What is
//! public here is safe to use from `vhost`.

pub mod affinity;
mod bindings;
pub mod control;
pub mod cpu;
pub mod error;
pub mod eventfd;
pub mod frames;
mod hand_over;
pub mod home;
pub mod inbox;
pub mod misc;
pub mod mm;
pub mod parameters;
pub mod pin;
pub mod process;
pub mod receiver;
pub mod served;
pub mod snapshot;
pub mod socket;
pub mod sysfs;
pub mod thread;
pub mod trace;
pub mod user;
pub mod vhost_abi;
pub mod watch;
