// SPDX-License-Identifier: GPL-2.0

//! The dirty log of a virtqueue: how user space learns which pages of guest memory were written.

use crate::kern::eventfd::EventFd;
use crate::kern::user::log_access_ok;
use kernel::sync::Arc;

/// Where the log is, and whether the used ring is logged. Whether buffers are, the features say.
#[derive(Clone, Default)]
pub struct Log {
    /// Where the bitmap begins in the owner's address space.
    pub base: u64,
    /// Where the used ring lies in guest-physical memory, if writes to it are logged.
    pub used: Option<u64>,
    /// The eventfd that is signalled after something was logged.
    pub event: Option<Arc<EventFd>>,
}

impl Log {
    /// Whether the part of the log at `base` that stands for a used ring of `len` bytes lies in user
    /// space, if it is needed.
    pub fn is_used_accessible(&self, base: u64, len: u64) -> bool {
        self.used
            .is_none_or(|address| log_access_ok(base, address, len))
    }
}
