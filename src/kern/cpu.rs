// SPDX-License-Identifier: GPL-2.0

//! Processors and their clock.

use super::bindings as shim;

/// Whether `cpu` is the number of a CPU that this machine can have.
pub fn is_possible(cpu: i32) -> bool {
    // SAFETY: The function checks the number before it looks into any mask.
    unsafe { shim::iocm_cpu_possible(cpu) }
}

/// Whether `cpu` runs now.
pub fn is_online(cpu: i32) -> bool {
    // SAFETY: The function checks the number before it looks into any mask.
    unsafe { shim::iocm_cpu_online(cpu) }
}

/// The scheduler's clock, in nanoseconds. It goes on while the machine runs, and may differ between
/// CPUs by little.
pub fn now() -> u64 {
    // SAFETY: Reading the clock has no precondition.
    unsafe { shim::iocm_now() }
}

/// Nanoseconds as cycles of the time stamp counter.
pub fn to_cycles(nanoseconds: u64) -> u64 {
    // SAFETY: The function only computes.
    unsafe { shim::iocm_to_cycles(nanoseconds) }
}

/// The NUMA node of `cpu`, which is the number of a possible CPU; -1 if it has none.
pub fn node(cpu: i32) -> i32 {
    // SAFETY: The function checks the number before it looks it up.
    unsafe { shim::iocm_cpu_node(cpu) }
}

/// The time stamp counter.
pub fn cycles() -> u64 {
    // SAFETY: Reading the counter has no precondition.
    unsafe { shim::iocm_cycles() }
}
