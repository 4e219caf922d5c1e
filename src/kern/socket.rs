// SPDX-License-Identifier: GPL-2.0

//! The backends of a virtqueue: tun, tap and packet sockets.

use super::bindings as shim;
use super::error::enotsock;
use super::eventfd::FileRef;
use super::user::{as_iovec, UserMemory};
use crate::engine::mem::Segment;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::error::{from_err_ptr, to_result};
use kernel::prelude::*;

/// Frames in a batch, and entries that are taken from a tap's ring at once.
pub const BATCH: usize = shim::IOCM_BATCH as usize;

/// The longest name of an interface, with the zero that ends it (`IFNAMSIZ`).
pub const NAME_SIZE: usize = 16;

/// A socket that packets are sent to and received from.
///
/// # Invariants
///
/// The pointer is valid and this object owns one reference to the socket's file.
pub struct Socket(NonNull<bindings::socket>);

// SAFETY: A socket's operations lock it; its file is reference counted.
unsafe impl Send for Socket {}
// SAFETY: As for `Send`.
unsafe impl Sync for Socket {}

impl Socket {
    /// Takes the socket behind `fd`.
    ///
    /// # Errors
    ///
    /// `ENOTSOCK` for everything that is neither a tun or tap file nor a raw packet socket.
    pub fn from_fd(fd: i32) -> Result<Self> {
        // SAFETY: Any number is good: it is looked up in the caller's table.
        let socket = from_err_ptr(unsafe { shim::iocm_socket_get(fd) })?;
        // INVARIANT: The lookup returned its own reference.
        NonNull::new(socket).map(Self).ok_or_else(enotsock)
    }

    pub(super) fn as_ptr(&self) -> *mut bindings::socket {
        self.0.as_ptr()
    }

    /// The socket's file, to be watched.
    pub fn file(&self) -> Result<FileRef> {
        // SAFETY: The socket is valid and has a file as long as there is a reference to it.
        let file = NonNull::new(unsafe { (*self.as_ptr()).file }).ok_or_else(enotsock)?;
        // SAFETY: The file is valid, so a reference can be added.
        unsafe { bindings::get_file(file.as_ptr()) };
        // SAFETY: The reference was taken just now.
        Ok(unsafe { FileRef::from_raw(file) })
    }

    /// The name of the interface behind the socket, ended by a zero. May sleep.
    pub fn name(&self) -> [u8; NAME_SIZE] {
        let mut name = [0u8; NAME_SIZE];
        // SAFETY: The socket is valid, and the buffer has the size that is passed.
        unsafe { shim::iocm_socket_name(self.as_ptr(), name.as_mut_ptr().cast(), name.len()) };
        name
    }

    /// Whether the socket takes batches: its send buffer has no limit.
    pub fn takes_batches(&self) -> bool {
        // SAFETY: The socket is valid.
        unsafe { shim::iocm_socket_unlimited(self.as_ptr()) }
    }

    /// Whether there is room to send.
    pub fn is_writable(&self) -> bool {
        // SAFETY: The socket is valid.
        unsafe { shim::iocm_socket_writable(self.as_ptr()) }
    }

    /// Sends `len` bytes of `segments` of `memory`, from `skip` bytes on, as one packet. `more`
    /// says that another one follows at once.
    ///
    /// # Errors
    ///
    /// The socket's own; `EAGAIN`, `ENOMEM` and `ENOBUFS` may pass.
    pub fn send(
        &self,
        _memory: &UserMemory<'_>,
        segments: &[Segment],
        skip: usize,
        len: usize,
        more: bool,
    ) -> Result {
        // SAFETY: The socket is valid. The segments have the layout of `struct iovec` and point
        // to what is reached as user memory only.
        let sent = unsafe {
            shim::iocm_socket_send(
                self.as_ptr(),
                as_iovec(segments),
                segments.len() as u32,
                skip,
                len,
                more,
            )
        };
        to_result(sent.min(0))
    }
}

impl PartialEq for Socket {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: By the type invariant there is a reference to give up.
        unsafe { shim::iocm_socket_put(self.as_ptr()) };
    }
}
