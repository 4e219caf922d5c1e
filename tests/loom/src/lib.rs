// SPDX-License-Identifier: GPL-2.0

//! The engine where threads meet, explored with loom: the interleavings of small programs, with all
//! values that weakly ordered memory allows a read to return.
//!
//! This is one more crate root for the engine's files. It brings [`atomics`] that are loom's, so
//! that what is explored is the source that runs in the kernel. To know that the explorations can
//! find anything, they are repeated with copies of it that have one bug each (see `build.rs`), and
//! every one of these has to be found.

#![cfg(test)]

mod atomics;
#[path = "../../../src/engine/mod.rs"]
#[allow(dead_code, reason = "what is explored is where threads meet")]
mod engine;
#[allow(
    warnings,
    clippy::all,
    reason = "what is wrong with the copies is the point of them"
)]
mod planted {
    include!(concat!(env!("OUT_DIR"), "/planted.rs"));
}

mod explore;
mod notification;
mod ownership;
mod snapshot;
