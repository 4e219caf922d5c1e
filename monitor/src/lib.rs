// SPDX-License-Identifier: GPL-2.0

//! The monitor of vhost_iocm.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod policy;
pub mod simulate;
