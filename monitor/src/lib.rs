// SPDX-License-Identifier: GPL-2.0

//! The monitor of vhost_iocm.

// Only `host/mapping.rs` may be unsafe.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod act;
pub mod arguments;
pub mod command;
pub mod daemon;
pub mod failure;
pub mod host;
pub mod policy;
pub mod simulate;
