// SPDX-License-Identifier: GPL-2.0

//! Module parameters, as they are now: user space may change them while the module is loaded.

use super::bindings as shim;
use super::home;
use crate::engine::sched::polling::{Mode, Tunables};
use crate::engine::sched::standby;

const NANOSECONDS: u64 = 1000;

/// The mode of new virtqueues.
pub fn poll_mode() -> Mode {
    // SAFETY: The function reads a parameter.
    match unsafe { shim::iocm_poll_mode() } {
        shim::iocm_poll_mode_IOCM_POLL_NEVER => Mode::Never,
        shim::iocm_poll_mode_IOCM_POLL_ALWAYS => Mode::Always,
        _ => Mode::Auto,
    }
}

/// The longest slice in nanoseconds.
pub fn slice() -> u64 {
    // SAFETY: The function reads a parameter.
    u64::from(unsafe { shim::iocm_slice_us() }) * NANOSECONDS
}

/// When polling starts and stops.
pub fn polling() -> Tunables {
    Tunables {
        // SAFETY: The function reads a parameter.
        start: u64::from(unsafe { shim::iocm_poll_start_us() }) * NANOSECONDS,
        // SAFETY: The function reads a parameter.
        idle: u64::from(unsafe { shim::iocm_poll_idle_us() }) * NANOSECONDS,
    }
}

/// The age of waiting work, in nanoseconds, above which a worker is congested.
pub fn wake_age() -> u64 {
    // SAFETY: The function reads a parameter.
    u64::from(unsafe { shim::iocm_wake_pending_us() }) * NANOSECONDS
}

/// The time between two checks of the workers, in nanoseconds.
pub fn balance_interval() -> u64 {
    // SAFETY: The function reads a parameter.
    u64::from(unsafe { shim::iocm_balance_us() }) * NANOSECONDS
}

/// When parked workers are woken, and parked again.
pub fn standby() -> standby::Tunables {
    standby::Tunables {
        interval: balance_interval(),
        wake_age: wake_age(),
        // SAFETY: The function reads a parameter.
        park_load: unsafe { shim::iocm_park_load() },
        // SAFETY: The function reads a parameter.
        park_time: u64::from(unsafe { shim::iocm_park_after_us() }) * NANOSECONDS,
        // SAFETY: The function reads a parameter.
        woken_max: unsafe { shim::iocm_max_woken() },
    }
}

/// The nice value of new workers, from -20 to 19.
pub fn worker_nice() -> i32 {
    // SAFETY: The function reads a parameter.
    unsafe { shim::iocm_worker_nice() }
}

/// The real-time priority of new workers, from 1 to 99, or 0 for none.
pub fn worker_priority() -> u32 {
    // SAFETY: The function reads a parameter.
    unsafe { shim::iocm_worker_priority() }
}

/// Which threads new devices have at home.
pub fn home_kind() -> home::Kind {
    // SAFETY: The function reads a parameter.
    if unsafe { shim::iocm_fork_from_owner_default() } {
        home::Kind::Task
    } else {
        home::Kind::Kthread
    }
}

/// The most regions of a memory table.
pub fn regions_max() -> u32 {
    // SAFETY: The function reads a parameter.
    unsafe { shim::iocm_max_mem_regions() }
}

/// The most translations of a device IOTLB.
pub fn translations_max() -> usize {
    // SAFETY: The function reads a parameter.
    unsafe { shim::iocm_max_iotlb_entries() as usize }
}

/// The time, in nanoseconds, for which a pinned page is relied on.
pub fn poll_recheck() -> u64 {
    // SAFETY: The function reads a parameter.
    u64::from(unsafe { shim::iocm_poll_recheck_us() }) * NANOSECONDS
}
