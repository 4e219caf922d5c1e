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

/// The time stamp counter.
pub fn cycles() -> u64 {
    // SAFETY: Reading the counter has no precondition.
    unsafe { shim::iocm_cycles() }
}
