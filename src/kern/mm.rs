// SPDX-License-Identifier: GPL-2.0

//! Address spaces: whose a device is, and which one a worker is in.

use super::bindings as shim;
use core::marker::PhantomData;
use core::ptr;
use kernel::bindings;
use kernel::mm::{Mm, MmWithUser};
use kernel::prelude::*;
use kernel::sync::aref::ARef;
use kernel::types::NotThreadSafe;

/// The address space of the process that owns a device.
///
/// Only the structure is kept, not what is mapped: a process that ends frees its memory even
/// while another one has the device open.
#[derive(Clone)]
pub struct OwnerMm(ARef<Mm>);

impl OwnerMm {
    /// The address space of the current process.
    ///
    /// # Errors
    ///
    /// `EINVAL` in a kernel thread.
    pub fn current() -> Result<Self> {
        let current = current!();
        let mm: &MmWithUser = current.mm().ok_or(EINVAL)?;
        let mm: &Mm = mm;
        Ok(Self(ARef::from(mm)))
    }

    /// Evidence that the current process is in this address space, if it is.
    pub fn as_current(&self) -> Option<InMm<'_>> {
        let current = current!();
        let mm = current.mm()?;
        // INVARIANT: Checked just now; a system call does not change over.
        ptr::eq(mm.as_raw(), self.0.as_raw()).then_some(InMm {
            switched: false,
            _owner: PhantomData,
        })
    }
}

/// Evidence that the current thread is in the address space of a device's owner.
///
/// Without it nobody gets at user memory: in the wrong address space a virtqueue would read and
/// write the memory of another process.
///
/// # Invariants
///
/// The thread is in that address space as long as `'a` lasts.
pub struct InMm<'a> {
    /// Whether the thread had to change over.
    pub switched: bool,
    _owner: PhantomData<(&'a (), NotThreadSafe)>,
}

/// The address space that a kernel thread has adopted.
///
/// # Invariants
///
/// If there is one, the current thread is in it by `kthread_use_mm()`.
pub struct Adopted {
    mm: Option<ARef<MmWithUser>>,
    // The address space is the thread's: it can be left only by the thread that entered it.
    _thread: NotThreadSafe,
}

impl Adopted {
    /// No address space, for a thread that does nothing but serve: `super::thread` makes one for
    /// each of its threads.
    ///
    /// # Safety
    ///
    /// The current thread is a kernel thread that has no address space, and no other object of
    /// this type.
    pub(super) unsafe fn new() -> Self {
        // INVARIANT: There is none.
        Self {
            mm: None,
            _thread: NotThreadSafe,
        }
    }

    /// Enters the address space `owner`. Returns `None` when there is nothing to enter any more,
    /// since its process has ended.
    pub fn enter(&mut self, owner: &OwnerMm) -> Option<InMm<'_>> {
        let entered = |switched| InMm {
            switched,
            _owner: PhantomData,
        };
        if let Some(mm) = &self.mm {
            if ptr::eq(mm.as_raw(), owner.0.as_raw()) {
                return Some(entered(false));
            }
        }
        let mm = owner.0.mmget_not_zero()?;
        self.leave();
        // SAFETY: This is a kernel thread without address space, since the last one was left, and
        // `mm` has users as long as the reference is kept.
        unsafe { bindings::kthread_use_mm(mm.as_raw()) };
        // INVARIANT: Entered just now. Leaving needs this object, which the evidence borrows.
        self.mm = Some(mm);
        Some(entered(true))
    }

    /// Leaves the address space, if there is one. A thread must not sleep for long in one, or the
    /// memory of a process that ended meanwhile stays allocated.
    pub fn leave(&mut self) {
        if let Some(mm) = self.mm.take() {
            // SAFETY: By the type invariant the thread is in this address space.
            unsafe { bindings::kthread_unuse_mm(mm.as_raw()) };
            // The last reference takes the whole address space down, which may take long and must
            // not delay those who share the thread.
            drop(MmWithUser::into_mmput_async(mm));
        }
    }
}

/// As long as this lives, the current thread does not wait for memory that is not resident:
/// accesses to it fail.
pub struct NoFaults(NotThreadSafe);

impl NoFaults {
    /// From now on.
    pub fn new() -> Self {
        // SAFETY: Dropping this takes it back, in the same thread.
        unsafe { shim::iocm_faults_disable() };
        Self(NotThreadSafe)
    }
}

impl Default for NoFaults {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for NoFaults {
    fn drop(&mut self) {
        // SAFETY: Making this disabled them, in the same thread.
        unsafe { shim::iocm_faults_enable() };
    }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        self.leave();
    }
}
