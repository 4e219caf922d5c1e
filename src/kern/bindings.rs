// SPDX-License-Identifier: GPL-2.0

//! What bindgen made of `bindings_helper.h`: the shim, the vhost ABI and some constants. Types
//! that the kernel crate has are taken from there.

#![allow(
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]

use kernel::bindings::*;
use kernel::ffi;

include!(concat!(
    env!("VHOST_IOCM_OBJ"),
    "/kern/bindings_generated.rs"
));
