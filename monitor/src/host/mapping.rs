// SPDX-License-Identifier: GPL-2.0

//! The one place that is unsafe: a mapping of the binary snapshot, and the end of the program when
//! the module behind it is unloaded.

#![expect(unsafe_code)]

use crate::failure::{Failure, Result};
use nix::sys::mman::{mmap, munmap, MapFlags, ProtFlags};
use std::fs::File;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use vhost_iocm_engine::atomics::AtomicU64;

/// What is said when the module is unloaded under a mapping.
const GONE: &[u8] = b"iocm: vhost_iocm was unloaded; the monitor ends\n";
/// The exit status of [`Failure::ModuleGone`].
const STATUS: i32 = 3;

/// A part of a file that is mapped, shared and for reading only.
pub struct Mapping {
    start: NonNull<AtomicU64>,
    bytes: NonZeroUsize,
}

// SAFETY: The memory is mapped for the whole process, and accessed atomically.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps the first `bytes` bytes of a file, of which not all have to be there yet. Touching what
    /// is not there ends the program, see [`end_when_unloaded`].
    ///
    /// # Errors
    ///
    /// Whatever mapping fails with.
    pub fn new(file: &File, bytes: NonZeroUsize) -> Result<Self> {
        // SAFETY: A new mapping is made, which nothing else refers to.
        let start = unsafe {
            mmap(
                None,
                bytes,
                ProtFlags::PROT_READ,
                MapFlags::MAP_SHARED,
                file,
                0,
            )
        };
        let start = start.map_err(|errno| Failure::System {
            what: "cannot map the snapshot".into(),
            source: errno.into(),
        })?;
        Ok(Self {
            start: start.cast(),
            bytes,
        })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        let words = self.bytes.get() / size_of::<AtomicU64>();
        // SAFETY: So many words are mapped as long as this object is; pages begin aligned; whatever
        // the module writes meanwhile is a valid atomic word.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: The mapping is this object's, and nothing refers to it any more.
        let _ = unsafe { munmap(self.start.cast(), self.bytes.get()) };
    }
}

/// Makes touching a mapped page that is gone, which is SIGBUS, end the program with a sentence. The
/// pages go when the module is unloaded, and nothing can keep that from happening between a look
/// and a touch. Being ended there is no harm: what the monitor was doing is in its journal.
///
/// # Errors
///
/// Whatever the system refuses the handler with.
pub fn end_when_unloaded() -> Result<()> {
    let action = || {
        use std::os::fd::BorrowedFd;
        // SAFETY: The standard error is open, or the write fails.
        let output = unsafe { BorrowedFd::borrow_raw(2) };
        let _ = nix::unistd::write(output, GONE);
        signal_hook::low_level::exit(STATUS);
    };
    // SAFETY: The action only calls write() and _exit(), which are safe in a signal handler.
    let registered =
        unsafe { signal_hook::low_level::register(signal_hook::consts::SIGBUS, action) };
    registered.map(drop).map_err(|source| Failure::System {
        what: "cannot handle the end of the module".into(),
        source,
    })
}
