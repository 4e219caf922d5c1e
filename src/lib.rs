// SPDX-License-Identifier: GPL-2.0

//! The engine of vhost_iocm as a crate, for native tests and for the programs that share its
//! formats. The kernel module compiles the same files from its own crate root.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod atomics;
pub mod engine;
