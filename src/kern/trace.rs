// SPDX-License-Identifier: GPL-2.0

//! Trace events; `shim/trace.h` says what each of them means.

use super::bindings as shim;
use crate::engine::abi::{VirtqueueId, WorkerId};

/// Why a virtqueue leaves its worker.
#[derive(Clone, Copy)]
pub enum Reason {
    /// Guest memory is not resident.
    Fault,
    /// Workers cannot serve its backend.
    Backend,
    /// User space wants it to be served at home.
    Home,
}

/// Calls a trace event of the shim if it is on. The kernel crate's `declare_trace!` does the same
/// for events of the kernel itself.
macro_rules! trace {
    ($name:ident($($argument:expr),* $(,)?)) => {
        #[cfg(CONFIG_TRACEPOINTS)]
        kernel::macros::paste! {
            // SAFETY: The key is that of a tracepoint that C defines.
            let on = unsafe {
                kernel::jump_label::static_branch_unlikely!(
                    shim::[<__tracepoint_ $name>],
                    kernel::bindings::tracepoint,
                    key
                )
            };
            if on {
                // SAFETY: All arguments are numbers, and the events may be called in any context.
                unsafe { shim::[<rust_do_trace_ $name>]($($argument),*) };
            }
        }
        #[cfg(not(CONFIG_TRACEPOINTS))]
        {
            $(let _ = $argument;)*
        }
    };
}

/// The guest has notified. Any context.
#[inline]
pub fn kick(id: VirtqueueId) {
    trace!(iocm_kick(id.device.0, id.index));
}

/// A polled virtqueue is left to its guest to notify.
#[inline]
pub fn park(id: VirtqueueId) {
    trace!(iocm_park(id.device.0, id.index));
}

/// The home thread is done, and the worker serves the virtqueue again.
#[inline]
pub fn come_back(id: VirtqueueId) {
    trace!(iocm_return(id.device.0, id.index));
}

/// A worker has looked at a polled virtqueue.
#[inline]
pub fn poll(id: VirtqueueId, hit: bool) {
    trace!(iocm_poll(id.device.0, id.index, hit));
}

/// Chains were given back, and the guest was interrupted or not.
#[inline]
pub fn interrupt(id: VirtqueueId, sent: bool) {
    trace!(iocm_interrupt(id.device.0, id.index, sent));
}

/// The home thread has to serve the virtqueue.
#[inline]
pub fn leave(id: VirtqueueId, reason: Reason) {
    let reason = match reason {
        Reason::Fault => shim::iocm_leave_reason_IOCM_LEAVE_FAULT,
        Reason::Backend => shim::iocm_leave_reason_IOCM_LEAVE_BACKEND,
        Reason::Home => shim::iocm_leave_reason_IOCM_LEAVE_HOME,
    };
    trace!(iocm_leave(id.device.0, id.index, reason));
}

/// A worker begins a slice.
#[inline]
pub fn slice_begin(worker: WorkerId, id: VirtqueueId) {
    trace!(iocm_slice_begin(worker.0, id.device.0, id.index));
}

/// A worker has ended a slice, for which it charges so many nanoseconds.
#[inline]
pub fn slice_end(worker: WorkerId, id: VirtqueueId, packets: u64, bytes: u64, nanoseconds: u64) {
    trace!(iocm_slice_end(
        worker.0,
        id.device.0,
        id.index,
        packets,
        bytes,
        nanoseconds
    ));
}

/// A virtqueue got another worker.
#[inline]
pub fn moved(id: VirtqueueId, from: WorkerId, to: WorkerId) {
    trace!(iocm_move(id.device.0, id.index, from.0, to.0));
}

/// A worker has nothing to do.
#[inline]
pub fn sleep(worker: WorkerId) {
    trace!(iocm_sleep(worker.0));
}

/// A worker has something to do again.
#[inline]
pub fn wake(worker: WorkerId) {
    trace!(iocm_wake(worker.0));
}

/// A parked worker is woken and gets so many virtqueues of a congested one.
#[inline]
pub fn standby_wake(worker: WorkerId, congested: WorkerId, virtqueues: u32) {
    trace!(iocm_standby_wake(worker.0, congested.0, virtqueues));
}

/// A worker is parked again, and another gets its virtqueues.
#[inline]
pub fn standby_park(worker: WorkerId, heir: WorkerId, virtqueues: u32) {
    trace!(iocm_standby_park(worker.0, heir.0, virtqueues));
}
