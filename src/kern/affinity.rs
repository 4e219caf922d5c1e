// SPDX-License-Identifier: GPL-2.0

//! The CPUs of threads, kept over CPU hotplug; see `shim/affinity.c`.

use super::bindings as shim;
use super::cpu::CpuList;
use super::sysfs::{Content, Directory, Text};
use core::ptr::{self, NonNull};
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::str::CStr;
use kernel::task::Task;

/// What follows CPUs that come and go, while threads have an [`Affinity`]. There can be one, so
/// this is made once, by the module's initialisation.
pub struct Hotplug(());

impl Hotplug {
    /// Begins to follow CPUs.
    ///
    /// # Errors
    ///
    /// `ENOSPC` when the kernel has no room for one more who does, `ENOMEM`.
    pub fn new() -> Result<Self> {
        // SAFETY: Nothing is registered: this is called once.
        to_result(unsafe { shim::iocm_affinity_register() })?;
        Ok(Self(()))
    }
}

impl Drop for Hotplug {
    fn drop(&mut self) {
        // SAFETY: It was registered when this was made, and threads are gone before.
        unsafe { shim::iocm_affinity_unregister() };
    }
}

/// Where a thread is wanted to run, and whether it does.
///
/// # Invariants
///
/// The pointer came from `iocm_affinity_alloc()` and is this object's. Between `begin` and `end`
/// the thread's structure is valid.
pub(super) struct Affinity(NonNull<shim::iocm_affinity>);

// SAFETY: The object may be used and freed by any thread.
unsafe impl Send for Affinity {}
// SAFETY: It locks itself; only `look` is for one thread alone.
unsafe impl Sync for Affinity {}

impl Affinity {
    /// For a thread that is not there yet. The class was registered, and so was [`Hotplug`].
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn new() -> Result<Self> {
        // SAFETY: `Hotplug` is made before any thread.
        let affinity = unsafe { shim::iocm_affinity_alloc() };
        // INVARIANT: As above.
        NonNull::new(affinity).map(Self).ok_or(ENOMEM)
    }

    /// Lets a new thread run on `cpus`, or on any CPU.
    ///
    /// # Safety
    ///
    /// `task` was made by `kthread_create_on_node()` and not woken yet. Its structure is valid
    /// until `end` was called.
    ///
    /// # Errors
    ///
    /// `ENODEV` when none of the CPUs is online any more.
    pub(super) unsafe fn begin(&self, task: &Task, cpus: Option<&CpuList>) -> Result {
        let mask = cpus.map_or(ptr::null(), CpuList::as_raw);
        // SAFETY: By the caller's promise, and the invariants of this object and of the list.
        to_result(unsafe { shim::iocm_affinity_begin(self.0.as_ptr(), task.as_ptr(), mask) })
    }

    /// Leaves the thread alone from now on.
    pub(super) fn end(&self) {
        // SAFETY: By the type invariant.
        unsafe { shim::iocm_affinity_end(self.0.as_ptr()) };
    }

    /// Lets the thread run on `cpus`.
    ///
    /// # Errors
    ///
    /// `ENODEV` when none of them is online any more.
    pub(super) fn set(&self, cpus: &CpuList) -> Result {
        // SAFETY: By the type invariants of both.
        to_result(unsafe { shim::iocm_affinity_set(self.0.as_ptr(), cpus.as_raw()) })
    }

    /// Notes what others did to the current thread, and returns whether its CPUs have changed.
    ///
    /// # Safety
    ///
    /// This object is the current thread's.
    pub(super) unsafe fn look(&self) -> bool {
        // SAFETY: By the type invariant and the caller's promise.
        unsafe { shim::iocm_affinity_look(self.0.as_ptr()) }
    }

    /// Whether none of the wanted CPUs is online, so that the thread runs on others.
    pub(super) fn is_displaced(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { shim::iocm_affinity_displaced(self.0.as_ptr()) }
    }

    /// Prints the CPUs that are wanted, as a list of ranges.
    pub(super) fn write_wanted(&self, text: &mut Text<'_>) {
        // SAFETY: By the type invariant; what is written fits into the buffer whose size is
        // passed.
        text.fill(|buffer, size| unsafe {
            shim::iocm_affinity_wanted(self.0.as_ptr(), buffer, size)
        });
    }

    /// Wakes those who poll a file of `directory` when what [`Affinity::is_displaced`] says
    /// changes.
    ///
    /// # Errors
    ///
    /// `ENOENT` when there is no such file.
    pub(super) fn announce<T: Content>(&self, directory: &Directory<T>, file: &CStr) -> Result {
        let kobject = directory.kobject();
        // SAFETY: By the type invariant; the directory is in sysfs, and the name ends in a zero.
        to_result(unsafe {
            shim::iocm_affinity_announce(self.0.as_ptr(), kobject, file.as_char_ptr())
        })
    }
}

impl Drop for Affinity {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, and this object is not used again.
        unsafe { shim::iocm_affinity_free(self.0.as_ptr()) };
    }
}
