// SPDX-License-Identifier: GPL-2.0

//! Eventfds: the calls to a guest, and the files of its kicks.

use core::ptr::NonNull;
use kernel::bindings;
use kernel::error::from_err_ptr;
use kernel::prelude::*;

/// The descriptor number that unbinds an eventfd (`VHOST_FILE_UNBIND`).
const UNBIND: i32 = -1;

/// An eventfd that is signalled.
///
/// # Invariants
///
/// The pointer is valid and this object owns one reference to what it points to.
pub struct EventFd(NonNull<bindings::eventfd_ctx>);

// SAFETY: An eventfd context is reference counted and its operations lock it.
unsafe impl Send for EventFd {}
// SAFETY: An eventfd context is reference counted and its operations lock it.
unsafe impl Sync for EventFd {}

impl EventFd {
    /// Takes a reference to the eventfd that `fd` names, or to none for -1.
    ///
    /// # Errors
    ///
    /// `EBADF` for a descriptor that is not open, `EINVAL` for one that is not an eventfd.
    pub fn from_fd(fd: i32) -> Result<Option<Self>> {
        if fd == UNBIND {
            return Ok(None);
        }
        // SAFETY: Any number is good: it is looked up in the caller's table.
        let context = from_err_ptr(unsafe { bindings::eventfd_ctx_fdget(fd) })?;
        // INVARIANT: The lookup returned its own reference.
        Ok(NonNull::new(context).map(Self))
    }

    /// Adds one to the eventfd's counter and wakes who waits for it.
    pub fn signal(&self) {
        // SAFETY: The pointer is valid by the type invariant.
        unsafe { bindings::eventfd_signal_mask(self.0.as_ptr(), 0) };
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        // SAFETY: By the type invariant there is a reference to give up.
        unsafe { bindings::eventfd_ctx_put(self.0.as_ptr()) };
    }
}

/// A reference to an open file.
///
/// # Invariants
///
/// The pointer is valid and this object owns one reference to what it points to.
pub struct FileRef(NonNull<bindings::file>);

// SAFETY: A file is reference counted; what is done with it here may be done by any thread.
unsafe impl Send for FileRef {}
// SAFETY: A file is reference counted; what is done with it here may be done by any thread.
unsafe impl Sync for FileRef {}

impl FileRef {
    /// Takes a reference to the eventfd file that `fd` names, or to none for -1.
    ///
    /// # Errors
    ///
    /// `EBADF` for a descriptor that is not open, `EINVAL` for one that is not an eventfd.
    pub fn from_eventfd(fd: i32) -> Result<Option<Self>> {
        if fd == UNBIND {
            return Ok(None);
        }
        // SAFETY: Any number is good: it is looked up in the caller's table.
        let file = from_err_ptr(unsafe { bindings::eventfd_fget(fd) })?;
        // INVARIANT: The lookup returned its own reference.
        Ok(NonNull::new(file).map(Self))
    }

    /// Wraps a file whose reference the caller gives up.
    ///
    /// # Safety
    ///
    /// `file` is valid and comes with a reference that is now this object's.
    pub(super) unsafe fn from_raw(file: NonNull<bindings::file>) -> Self {
        // INVARIANT: The caller's promise.
        Self(file)
    }

    /// The file.
    pub(super) fn as_ptr(&self) -> *mut bindings::file {
        self.0.as_ptr()
    }
}

impl PartialEq for FileRef {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Clone for FileRef {
    fn clone(&self) -> Self {
        // SAFETY: The pointer is valid by the type invariant, so a reference can be added.
        unsafe { bindings::get_file(self.0.as_ptr()) };
        // INVARIANT: The reference was taken just now.
        Self(self.0)
    }
}

impl Drop for FileRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariant there is a reference to give up.
        unsafe { bindings::fput(self.0.as_ptr()) };
    }
}
