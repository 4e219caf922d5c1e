// SPDX-License-Identifier: GPL-2.0

//! Being told about events of a file: kicks, packets in a socket, room in a socket.

use super::bindings as shim;
use super::eventfd::FileRef;
use core::cell::UnsafeCell;
use core::marker::PhantomPinned;
use core::ptr;
use kernel::bindings;
use kernel::prelude::*;

/// Events of a file, as bits of its poll mask.
#[derive(Clone, Copy)]
pub struct Events(u32);

/// Something can be read.
pub const READABLE: Events = Events(shim::IOCM_POLLIN);
/// Something can be written.
pub const WRITABLE: Events = Events(shim::IOCM_POLLOUT);

/// Who is told.
pub trait Notify: Send + Sync + 'static {
    /// An event has come. Called in any context with interrupts off, also from the code that
    /// signals an eventfd: it must neither sleep nor signal one itself.
    fn notify(&self);
}

/// A place in the wait queue of a file, as long as it lives.
///
/// The file's counter is never read: being told is all that a kick is.
///
/// # Invariants
///
/// `wait` is in the wait queue `queue` of `file` exactly if `queue` is not null, and the queue
/// lives as long as the file does.
pub struct Watch<N: Notify> {
    notify: N,
    events: u32,
    table: UnsafeCell<bindings::poll_table_struct>,
    wait: UnsafeCell<bindings::wait_queue_entry>,
    queue: UnsafeCell<*mut bindings::wait_queue_head>,
    file: FileRef,
    _pin: PhantomPinned,
}

// SAFETY: `N` may be used by any thread; the cells are written before the watch is in a queue and
// when it is dropped, and in between by the kernel under the lock of the queue.
unsafe impl<N: Notify> Send for Watch<N> {}
// SAFETY: As for `Send`.
unsafe impl<N: Notify> Sync for Watch<N> {}

impl<N: Notify> Watch<N> {
    /// Begins to watch `file` for `events`. An event that has come before is told at once.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, and `EINVAL` when the file reports an error condition.
    pub fn new(file: FileRef, events: Events, notify: N) -> Result<Pin<KBox<Self>>> {
        let watch = KBox::pin(
            Self {
                notify,
                events: events.0,
                table: UnsafeCell::new(bindings::poll_table_struct {
                    _qproc: Some(Self::enqueue),
                    _key: !0,
                }),
                wait: UnsafeCell::new(bindings::wait_queue_entry {
                    flags: 0,
                    private: ptr::null_mut(),
                    func: Some(Self::wake),
                    entry: bindings::list_head::default(),
                }),
                // INVARIANT: In no queue yet.
                queue: UnsafeCell::new(ptr::null_mut()),
                file,
                _pin: PhantomPinned,
            },
            GFP_KERNEL,
        )?;
        let mask = watch.poll();
        if mask & shim::IOCM_POLLERR != 0 {
            return Err(EINVAL);
        }
        if mask & watch.events != 0 {
            watch.notify.notify();
        }
        Ok(watch)
    }

    /// Who is told.
    pub fn target(&self) -> &N {
        &self.notify
    }

    /// Asks the file for its state, which puts the watch into its queue.
    fn poll(&self) -> u32 {
        let file = self.file.as_ptr();
        // SAFETY: The file is valid as long as `self.file` is.
        let operations = unsafe { (*file).f_op };
        // SAFETY: An open file has operations, which are constant.
        let Some(poll) = (unsafe { (*operations).poll }) else {
            return 0;
        };
        // SAFETY: The file and the table are valid for the call, which uses the table only as long
        // as it lasts.
        unsafe { poll(file, self.table.get()) }
    }

    /// Called by the file's poll operation with its wait queue.
    ///
    /// # Safety
    ///
    /// Called by the poll operation of the file, with the table of a watch that `poll` borrows.
    unsafe extern "C" fn enqueue(
        _file: *mut bindings::file,
        queue: *mut bindings::wait_queue_head,
        table: *mut bindings::poll_table_struct,
    ) {
        // SAFETY: The table is the field of a pinned watch: `poll` passes no other.
        let watch: *const Self =
            unsafe { kernel::container_of!(table.cast::<UnsafeCell<_>>(), Self, table) };
        // SAFETY: As above, and `poll` borrows the watch.
        let watch = unsafe { &*watch };
        // SAFETY: Only this call, under `new`, writes the cell before the watch is dropped.
        let slot = unsafe { &mut *watch.queue.get() };
        if !slot.is_null() {
            // A file with two queues would need two entries; eventfds and sockets have one.
            return;
        }
        // INVARIANT: The entry is put into the queue below.
        *slot = queue;
        // SAFETY: The queue is valid: it is the file's. The entry is pinned and stays until `drop`
        // takes it out.
        unsafe { bindings::add_wait_queue(queue, watch.wait.get()) };
    }

    /// Called with the lock of the wait queue held.
    ///
    /// # Safety
    ///
    /// Called by the kernel for an entry of a watch that is in a wait queue.
    unsafe extern "C" fn wake(
        wait: *mut bindings::wait_queue_entry,
        _mode: kernel::ffi::c_uint,
        _flags: kernel::ffi::c_int,
        key: *mut kernel::ffi::c_void,
    ) -> kernel::ffi::c_int {
        // SAFETY: The entry is the field of a pinned watch, which leaves the queue before it is
        // dropped.
        let watch: *const Self =
            unsafe { kernel::container_of!(wait.cast::<UnsafeCell<_>>(), Self, wait) };
        // SAFETY: As above.
        let watch = unsafe { &*watch };
        // A wake-up without a key may mean any event.
        let key = key as usize as u32;
        if key == 0 || key & watch.events != 0 {
            watch.notify.notify();
        }
        0
    }
}

impl<N: Notify> Drop for Watch<N> {
    fn drop(&mut self) {
        let queue = *self.queue.get_mut();
        if !queue.is_null() {
            // SAFETY: By the type invariant the entry is in this queue, which lives as long as
            // the file, to which there still is a reference. Callbacks run under the queue's
            // lock, so none runs when this returns.
            unsafe { bindings::remove_wait_queue(queue, self.wait.get()) };
        }
    }
}
