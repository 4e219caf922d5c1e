// SPDX-License-Identifier: GPL-2.0

//! Packets that are received from a socket.

use super::bindings as shim;
use super::socket::{Socket, NAME_SIZE};
use super::user::{as_iovec, UserMemory};
use crate::engine::mem::Segment;
use core::ptr::NonNull;
use kernel::prelude::*;

/// How long a packet is kept that is being received.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Not at all: it is lost if the buffers cannot be written.
    Not,
    /// Until it is in the buffers.
    UntilWritten,
    /// Until [`Receiver::complete`] or [`Receiver::take_back`], if it is in the buffers.
    UntilCompleted,
}

/// What became of a packet that was to be received.
pub enum Received {
    /// It is in the guest's buffers.
    Whole,
    /// The buffers could not be written, and it is the next one still.
    Fault,
    /// It is lost.
    Lost,
}

/// Packets that were taken from a tap's ring and not yet received.
///
/// # Invariants
///
/// The pointer is valid and this object's alone; if it is attached, it is to `socket`.
pub struct Entries {
    entries: NonNull<shim::iocm_entries>,
}

// SAFETY: The entries are a piece of memory that belongs to no thread.
unsafe impl Send for Entries {}

impl Entries {
    /// No entries, of no socket.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        // SAFETY: Allocating has no precondition.
        let entries = NonNull::new(unsafe { shim::iocm_entries_alloc() }).ok_or(ENOMEM)?;
        // INVARIANT: Allocated just now, not attached.
        Ok(Self { entries })
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this is valid and this object's alone.
        unsafe { shim::iocm_entries_free(self.entries.as_ptr()) };
    }
}

/// The receiving end of a socket.
///
/// # Invariants
///
/// `entries` are attached to `socket`.
pub struct Receiver {
    entries: Entries,
    socket: Socket,
}

impl Receiver {
    /// Receives from `socket`, which has this [`Socket::name`].
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(socket: Socket, name: &[u8; NAME_SIZE]) -> Result<Self> {
        let entries = Entries::new()?;
        let name = name.as_ptr().cast();
        // SAFETY: Both are valid, and the name is ended by a zero.
        unsafe { shim::iocm_entries_attach(entries.entries.as_ptr(), socket.as_ptr(), name) };
        // INVARIANT: Attached just now.
        Ok(Self { entries, socket })
    }

    /// The socket.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The length of the next packet in bytes, without any header; 0 if there is none.
    pub fn peek(&mut self) -> usize {
        // SAFETY: By the type invariant the entries are attached to the socket.
        unsafe { shim::iocm_entries_peek(self.entries.entries.as_ptr(), self.socket.as_ptr()) }
    }

    /// Whether there is a packet.
    pub fn is_ready(&mut self) -> bool {
        // SAFETY: By the type invariant the entries are attached to the socket.
        unsafe { shim::iocm_entries_ready(self.entries.entries.as_ptr(), self.socket.as_ptr()) }
    }

    /// Whether the socket has a ring. Others can be received from only where one may sleep: they
    /// lose a packet that cannot be written.
    pub fn has_ring(&self) -> bool {
        // SAFETY: By the type invariant the entries are valid.
        unsafe { shim::iocm_entries_has_ring(self.entries.entries.as_ptr()) }
    }

    /// Prepares the next packet, which may have been received already, to be given back to the socket with this
    /// object's end. Returns false if it is lost: memory for it is missing.
    pub fn restore(&mut self) -> bool {
        // SAFETY: By the type invariant the entries are valid.
        unsafe { shim::iocm_entries_restore(self.entries.entries.as_ptr()) }
    }

    /// Receives the packet that was peeked at into `segments` of `memory`, from `skip` bytes on.
    /// `len` is its length with the socket's header, into which the number of `buffers` is written
    /// unless it is 0. Unless the packet is not to be kept, it is received only if the segments can be
    /// written without waiting.
    pub fn receive(
        &mut self,
        _memory: &UserMemory<'_>,
        segments: &[Segment],
        skip: usize,
        len: usize,
        buffers: u16,
        keep: Keep,
    ) -> Received {
        let keep = match keep {
            Keep::Not => shim::iocm_keep_IOCM_KEEP_NOT,
            Keep::UntilWritten => shim::iocm_keep_IOCM_KEEP_UNTIL_WRITTEN,
            Keep::UntilCompleted => shim::iocm_keep_IOCM_KEEP_UNTIL_COMPLETED,
        };
        // SAFETY: By the type invariant the entries are attached to the socket, and a packet was
        // peeked at. The segments have the layout of `struct iovec` and point to what is reached
        // as user memory only.
        let error = unsafe {
            shim::iocm_entries_receive(
                self.entries.entries.as_ptr(),
                self.socket.as_ptr(),
                as_iovec(segments),
                segments.len() as u32,
                skip,
                len,
                buffers.into(),
                keep,
            )
        };
        match error {
            0 => Received::Whole,
            _ if error == EFAULT.to_errno() => Received::Fault,
            _ => Received::Lost,
        }
    }

    /// Gives up the packet that was received last: it has arrived.
    pub fn complete(&mut self) {
        // SAFETY: By the type invariant the entries are valid.
        unsafe { shim::iocm_entries_complete(self.entries.entries.as_ptr()) };
    }

    /// Has the interface count what was received since this was called last, as far as it does not know of it.
    /// To be called before anybody sees these packets.
    pub fn account(&mut self) {
        // SAFETY: By the type invariant the entries are attached to the socket.
        unsafe {
            shim::iocm_entries_account(self.entries.entries.as_ptr(), self.socket.as_ptr());
        }
    }

    /// Takes the packet that was received last back: it is the next one again. It is lost if the
    /// socket could not keep it; returns whether it is there.
    pub fn take_back(&mut self) -> bool {
        // SAFETY: By the type invariant the entries are valid.
        unsafe { shim::iocm_entries_take_back(self.entries.entries.as_ptr()) }
    }

    /// Drops the packet that was peeked at; its first byte may land in `segment` of `memory`.
    pub fn drop_packet(&mut self, _memory: &UserMemory<'_>, segment: &Segment) {
        // SAFETY: As for `receive`. The result does not matter: the packet is gone in any case.
        unsafe {
            shim::iocm_entries_drop(
                self.entries.entries.as_ptr(),
                self.socket.as_ptr(),
                as_iovec(core::slice::from_ref(segment)),
            )
        };
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the entries are attached to the socket.
        unsafe { shim::iocm_entries_detach(self.entries.entries.as_ptr()) };
    }
}
