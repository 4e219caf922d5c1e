// SPDX-License-Identifier: GPL-2.0
//! The memory of a hostile guest, where the fuzzer's scripts expect it.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicU8, Ordering};

use anyhow::{ensure, Context, Result};
use nix::sys::mman::{madvise, mmap_anonymous, munmap, MapFlags, MmapAdvise, ProtFlags};
use vhost_iocm_fuzz::{memory_size, Write, OWNER};

/// Memory that the device and several threads write and read at the same time.
pub struct Arena {
    start: NonNull<c_void>,
    length: usize,
}

// SAFETY: The memory is reached by atomic accesses only, and stays mapped for as long as the value lives.
unsafe impl Send for Arena {}
// SAFETY: As above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps memory for rings of all sizes.
    pub fn new() -> Result<Self> {
        let length = memory_size(1 << 15) as usize;
        // SAFETY: The flag refuses an address at which there is something.
        let start = unsafe {
            mmap_anonymous(
                NonZeroUsize::new(OWNER as usize),
                NonZeroUsize::new(length).context("no length")?,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE,
            )
        }
        .context("map the guest's memory")?;
        let arena = Self { start, length };
        ensure!(start.as_ptr() as u64 == OWNER, "memory at {start:?}");
        Ok(arena)
    }

    /// Zeroes the first bytes, which stay resident.
    pub fn clear(&self, length: u64) {
        for at in (0..length.min(self.length as u64)).step_by(8) {
            self.atomic::<AtomicU64>(at as usize)
                .store(0, Ordering::Relaxed);
        }
    }

    /// Zeroes everything by giving it back: who touches it next gets a page fault.
    pub fn give_up(&self) -> Result<()> {
        // SAFETY: The range is the mapping's own, of which nobody holds a reference to anything but atomics.
        unsafe { madvise(self.start, self.length, MmapAdvise::MADV_DONTNEED) }
            .context("give the guest's memory up")
    }

    /// Writes as the guest does: a field at once, or a descriptor. What is not in the memory is not written.
    pub fn write(&self, write: &Write) {
        let bytes = write.bytes();
        let Some(at) = write.addr.checked_sub(OWNER).map(|at| at as usize) else {
            return;
        };
        if at >= self.length || bytes.len() > self.length - at {
            return;
        }
        if let (&[low, high], 0) = (bytes, at % 2) {
            let value = u16::from_le_bytes([low, high]).to_le();
            self.atomic::<AtomicU16>(at).store(value, Ordering::Release);
            return;
        }
        for (offset, byte) in bytes.iter().enumerate() {
            self.atomic::<AtomicU8>(at + offset)
                .store(*byte, Ordering::Relaxed);
        }
    }

    /// The integer `at` bytes from the start, where it is aligned.
    fn atomic<T>(&self, at: usize) -> &T {
        assert!(at + size_of::<T>() <= self.length && at.is_multiple_of(align_of::<T>()));
        // SAFETY: It lies in the mapping and is aligned, as was just checked; all bytes are a value of the
        // atomic integers for which this is called, and the mapping lives as long as the reference.
        unsafe { self.start.byte_add(at).cast::<T>().as_ref() }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: The range is the mapping's own, to which no reference is left. Nothing depends on success.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}
