// SPDX-License-Identifier: GPL-2.0

//! Processors and their clock.

use super::bindings as shim;
use crate::engine::abi;
use kernel::cpu::CpuId;
use kernel::cpumask::CpumaskVar;
use kernel::prelude::*;

/// CPUs on which a thread is to run.
///
/// # Invariants
///
/// There is at least one, and the machine can have all of them.
pub struct CpuList(CpumaskVar);

impl CpuList {
    /// Reads a list of numbers and ranges, one of which has to be online.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what is no such list, `ERANGE` for CPUs that the machine cannot have, `ENODEV`
    /// when none of them is online, `ENOMEM`.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let mut mask = CpumaskVar::new_zero(GFP_KERNEL)?;
        let mut online = false;
        abi::parse_cpu_list(text, |first, last| {
            // The end comes first, so that the loop is no longer than the machine's CPUs are many.
            let last = CpuId::from_u32(last).ok_or(ERANGE)?;
            for number in first..=last.as_u32() {
                let cpu = CpuId::from_u32(number).ok_or(ERANGE)?;
                if !is_possible(cpu) {
                    return Err(ERANGE);
                }
                mask.set(cpu);
                online |= is_online(cpu);
            }
            Ok(())
        })?;
        if !online {
            return Err(ENODEV);
        }
        // INVARIANT: A list has at least one item, and only possible CPUs were set.
        Ok(Self(mask))
    }

    pub(super) fn as_raw(&self) -> *const kernel::bindings::cpumask {
        self.0.as_raw()
    }
}

fn is_possible(cpu: CpuId) -> bool {
    // SAFETY: The number is one of a CPU mask.
    unsafe { shim::iocm_cpu_possible(cpu.as_u32()) }
}

fn is_online(cpu: CpuId) -> bool {
    // SAFETY: The number is one of a CPU mask.
    unsafe { shim::iocm_cpu_online(cpu.as_u32()) }
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

/// Cycles of the time stamp counter as nanoseconds.
pub fn from_cycles(cycles: u64) -> u64 {
    // SAFETY: The function only computes.
    unsafe { shim::iocm_from_cycles(cycles) }
}

/// Waits until `end`, in nanoseconds of [`now`], without giving the CPU away.
pub fn spin_until(end: u64) {
    while now() < end {
        // SAFETY: The instruction has no precondition.
        unsafe { shim::iocm_relax() };
    }
}

/// The soft interrupts of the current thread's CPU at one time.
pub struct SoftInterrupts(shim::iocm_softirqs);

impl SoftInterrupts {
    /// Those until now.
    pub fn now() -> Self {
        let mut softirqs = shim::iocm_softirqs::default();
        // SAFETY: The function writes to the structure, which is valid.
        unsafe { shim::iocm_read_softirqs(&mut softirqs) };
        Self(softirqs)
    }

    /// How many have run since, and for how many nanoseconds. There are none if the thread was
    /// switched out meanwhile: others may have been interrupted then, or it is on another CPU.
    pub fn since(&self) -> (u64, u64) {
        let Self(now) = Self::now();
        if now.switches != self.0.switches {
            return (0, 0);
        }
        (
            u64::from(now.count.wrapping_sub(self.0.count)),
            now.time.saturating_sub(self.0.time),
        )
    }
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
