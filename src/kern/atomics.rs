// SPDX-License-Identifier: GPL-2.0

//! Atomics for the engine in the kernel: the Linux kernel memory model, by the kernel crate.

use kernel::sync::atomic::{Atomic, Full, Relaxed};

pub use kernel::sync::barrier::{smp_mb, smp_rmb, smp_wmb};

/// A 32-bit word that threads hand work over with: fully ordered exchanges.
pub struct AtomicU32(Atomic<u32>);

impl AtomicU32 {
    /// A word with the given value.
    pub const fn new(value: u32) -> Self {
        Self(Atomic::new(value))
    }

    /// Reads the word, unordered: only good as the first guess of an exchange.
    #[inline]
    pub fn load(&self) -> u32 {
        self.0.load(Relaxed)
    }

    /// Stores `new` if the word still is `old`, fully ordered; returns the word otherwise.
    #[inline]
    pub fn compare_exchange(&self, old: u32, new: u32) -> Result<(), u32> {
        self.0.cmpxchg(old, new, Full).map(|_| ())
    }
}

/// A 64-bit word for counting, unordered.
#[repr(transparent)]
pub struct AtomicU64(Atomic<u64>);

impl AtomicU64 {
    /// A word with the given value.
    pub const fn new(value: u64) -> Self {
        Self(Atomic::new(value))
    }

    /// Reads the word.
    #[inline]
    pub fn load(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Writes the word.
    #[inline]
    pub fn store(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Adds to the word, atomically.
    #[inline]
    pub fn fetch_add(&self, value: u64) {
        self.0.add(value, Relaxed);
    }
}

impl Default for AtomicU64 {
    fn default() -> Self {
        Self::new(0)
    }
}
