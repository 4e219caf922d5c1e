// SPDX-License-Identifier: GPL-2.0

//! Native tests of the engine.
//!
//! Most of them use the crate. Those that explore interleavings need to stand between the engine
//! and its atomics, so this file is one more crate root for the engine's files, beside that of the
//! kernel module and that of the crate: it brings its own `atomics`, which the tests control.

mod atomics;
#[path = "../../src/engine/mod.rs"]
#[allow(
    dead_code,
    reason = "the explorations use the parts of the engine that have atomics or barriers"
)]
mod engine;

mod guest;

/// A number of random cases. Failing ones are printed, and turned into tests of their own by hand.
fn cases(cases: u32) -> proptest::test_runner::Config {
    proptest::test_runner::Config {
        cases,
        failure_persistence: None,
        ..Default::default()
    }
}

mod abi;
mod ahead;
mod avail;
mod batch;
mod budget;
mod credit;
mod delay;
mod explore;
mod faults;
mod garbage;
mod indirect;
mod iotlb;
mod lifecycle;
mod limits;
mod load;
mod log;
mod memory_table;
mod notify;
mod ownership;
mod placement;
mod polling;
mod share;
mod simulation;
mod snapshot;
mod standby;
mod stats;
mod stress;
mod turn;
mod used;
mod vnet;
mod wakeups;
