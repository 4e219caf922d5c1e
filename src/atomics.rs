// SPDX-License-Identifier: GPL-2.0

//! Atomics for the engine outside of the kernel, with the interface of `kern/atomics.rs`.

use core::sync::atomic::{fence, Ordering};

/// A 32-bit word that threads hand work over with: fully ordered exchanges.
pub struct AtomicU32(core::sync::atomic::AtomicU32);

impl AtomicU32 {
    /// A word with the given value.
    pub const fn new(value: u32) -> Self {
        Self(core::sync::atomic::AtomicU32::new(value))
    }

    /// Reads the word, unordered: only good as the first guess of an exchange.
    pub fn load(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Stores `new` if the word still is `old`, fully ordered; returns the word otherwise.
    pub fn compare_exchange(&self, old: u32, new: u32) -> Result<(), u32> {
        self.0
            .compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed)
            .map(|_| ())
    }
}

/// A 64-bit word for counting, unordered.
#[derive(Default)]
#[repr(transparent)]
pub struct AtomicU64(core::sync::atomic::AtomicU64);

impl AtomicU64 {
    /// A word with the given value.
    pub const fn new(value: u64) -> Self {
        Self(core::sync::atomic::AtomicU64::new(value))
    }

    /// Reads the word.
    #[inline]
    pub fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Writes the word.
    pub fn store(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds to the word, atomically.
    pub fn fetch_add(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }
}

/// Orders earlier reads before later reads.
#[inline]
pub fn smp_rmb() {
    fence(Ordering::Acquire);
}

/// Orders earlier writes before later writes.
pub fn smp_wmb() {
    fence(Ordering::Release);
}

/// Orders everything earlier before everything later.
pub fn smp_mb() {
    fence(Ordering::SeqCst);
}
