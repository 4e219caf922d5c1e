// SPDX-License-Identifier: GPL-2.0

//! Batches of frames to send.

use super::bindings as shim;
use super::socket::{Socket, BATCH};
use super::user::{as_iovec, UserMemory};
use crate::engine::mem::Segment;
use crate::engine::vnet;
use core::ptr::NonNull;
use kernel::error::to_result;
use kernel::prelude::*;

/// Why a packet cannot become a frame of a batch.
pub enum FrameError {
    /// It has to be sent alone: it is too large, or there is no memory for a large one.
    Alone,
    /// It could not be read from the guest.
    Fault,
    /// It is broken, or there is no memory for it.
    Dropped,
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
