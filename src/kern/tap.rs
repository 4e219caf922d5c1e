// SPDX-License-Identifier: GPL-2.0

//! The backends of a virtqueue: tun, tap and packet sockets.

use super::bindings as shim;
use super::error::enotsock;
use super::eventfd::FileRef;
use super::user::{as_iovec, UserMemory};
use crate::engine::mem::Segment;
use crate::engine::vnet;
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

    fn as_ptr(&self) -> *mut bindings::socket {
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

/// Why a packet cannot become a frame of a batch.
pub enum FrameError {
    /// It has to be sent alone: it is too large, or there is no memory for a large one.
    Alone,
    /// It could not be read from the guest.
    Fault,
    /// It is broken, or there is no memory for it.
    Dropped,
}

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

/// A batch of frames that are sent with one call.
///
/// # Invariants
///
/// The pointer is valid and this object's alone; `count` is the number of frames in it, at most
/// [`BATCH`].
pub struct Frames {
    frames: NonNull<shim::iocm_frames>,
    count: usize,
}

// SAFETY: The batch is a piece of memory that belongs to no thread.
unsafe impl Send for Frames {}

impl Frames {
    /// An empty batch.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        // SAFETY: Allocating has no precondition.
        let frames = NonNull::new(unsafe { shim::iocm_frames_alloc() }).ok_or(ENOMEM)?;
        // INVARIANT: Allocated just now, empty.
        Ok(Self { frames, count: 0 })
    }

    /// Whether the batch is empty.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Copies `len` bytes of `segments` of `memory`, from `skip` bytes on, into the batch for
    /// `socket`. The first `header_len` of them are the virtio header, which is 0, 10, 12 or 24. Returns
    /// whether the batch is full, and should be sent before there is more.
    #[inline(always)]
    pub fn add(
        &mut self,
        socket: &Socket,
        _memory: &UserMemory<'_>,
        segments: &[Segment],
        skip: usize,
        len: usize,
        header_len: usize,
    ) -> Result<bool, FrameError> {
        if self.count >= BATCH {
            return Err(FrameError::Alone);
        }
        let mut header = core::ptr::null_mut();
        // SAFETY: The batch and the socket are valid, and there is room for a frame; the segments have
        // the layout of `struct iovec` and point to what is reached as user memory only; the last
        // argument is valid for writes.
        let result = unsafe {
            shim::iocm_frames_add(
                self.frames.as_ptr(),
                socket.as_ptr(),
                as_iovec(segments),
                segments.len() as u32,
                skip,
                len,
                header_len,
                &mut header,
            )
        };
        if result < 0 {
            return Err(match result {
                _ if result == ENOSPC.to_errno() => FrameError::Alone,
                _ if result == EFAULT.to_errno() => FrameError::Fault,
                _ => FrameError::Dropped,
            });
        }
        // SAFETY: What was written is the start of a frame, where there is padding that the longest
        // header fits into, and nobody else has the frame yet.
        let header = unsafe { &mut *header.cast::<vnet::Header>() };
        match vnet::checked_hdr_len(header, len) {
            Ok(None) => (),
            Ok(Some(hdr_len)) => vnet::set_hdr_len(header, hdr_len),
            Err(vnet::ChecksumOutside) => {
                // SAFETY: A frame was added just now.
                unsafe { shim::iocm_frames_drop_last(self.frames.as_ptr()) };
                return Err(FrameError::Dropped);
            }
        }
        // INVARIANT: One more, and it was below the maximum.
        self.count += 1;
        Ok(result > 0)
    }

    /// Sends the batch to `socket`; it is empty afterwards in any case.
    ///
    /// # Errors
    ///
    /// The socket's own, when it refused the batch as a whole. A frame that it cannot deliver it
    /// drops without saying so.
    pub fn send(&mut self, socket: &Socket) -> Result {
        if self.count == 0 {
            return Ok(());
        }
        // INVARIANT: The call empties the batch.
        self.count = 0;
        // SAFETY: The batch and the socket are valid.
        to_result(unsafe { shim::iocm_frames_send(self.frames.as_ptr(), socket.as_ptr()) })
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        // Who adds frames sends them before its slice ends, so there is none left to free.
        // SAFETY: By the type invariant the batch is valid and this object's alone.
        unsafe { shim::iocm_frames_free(self.frames.as_ptr()) };
    }
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
