// SPDX-License-Identifier: GPL-2.0

//! Atomics for the engine under loom, with the interface of `kern/atomics.rs`.
//!
//! They promise less than the kernel's, so what holds with them holds there. An exchange is
//! ordered as acquire and release and not fully. The barriers are C11's, which order what the
//! kernel's do.

use std::sync::OnceLock;

use loom::sync::atomic::{self, fence, Ordering};

/// Loom's own words cannot be made in a constant. Each is made by the first access, which has to
/// happen before it is shared.
struct Word<T, W> {
    initial: T,
    word: OnceLock<W>,
}

impl<T: Copy, W> Word<T, W> {
    const fn new(initial: T) -> Self {
        Self {
            initial,
            word: OnceLock::new(),
        }
    }

    fn get(&self, make: fn(T) -> W) -> &W {
        self.word.get_or_init(|| make(self.initial))
    }
}

impl Word<u32, atomic::AtomicU32> {
    fn load(&self) -> u32 {
        self.get(atomic::AtomicU32::new).load(Ordering::Relaxed)
    }

    fn compare_exchange(&self, old: u32, new: u32, order: Ordering) -> Result<(), u32> {
        self.get(atomic::AtomicU32::new)
            .compare_exchange(old, new, order, Ordering::Relaxed)
            .map(|_| ())
    }
}

/// A 32-bit word that threads hand work over with.
pub struct AtomicU32(Word<u32, atomic::AtomicU32>);

impl AtomicU32 {
    pub const fn new(value: u32) -> Self {
        Self(Word::new(value))
    }

    pub fn load(&self) -> u32 {
        self.0.load()
    }

    pub fn compare_exchange(&self, old: u32, new: u32) -> Result<(), u32> {
        self.0.compare_exchange(old, new, Ordering::AcqRel)
    }
}

/// The same without any order, for a planted bug.
pub struct Unordered(Word<u32, atomic::AtomicU32>);

impl Unordered {
    pub const fn new(value: u32) -> Self {
        Self(Word::new(value))
    }

    pub fn load(&self) -> u32 {
        self.0.load()
    }

    pub fn compare_exchange(&self, old: u32, new: u32) -> Result<(), u32> {
        self.0.compare_exchange(old, new, Ordering::Relaxed)
    }
}

/// A 64-bit word for counting, unordered.
pub struct AtomicU64(Word<u64, atomic::AtomicU64>);

impl AtomicU64 {
    pub const fn new(value: u64) -> Self {
        Self(Word::new(value))
    }

    fn get(&self) -> &atomic::AtomicU64 {
        self.0.get(atomic::AtomicU64::new)
    }

    pub fn load(&self) -> u64 {
        self.get().load(Ordering::Relaxed)
    }

    pub fn store(&self, value: u64) {
        self.get().store(value, Ordering::Relaxed);
    }

    pub fn fetch_add(&self, value: u64) {
        self.get().fetch_add(value, Ordering::Relaxed);
    }
}

impl Default for AtomicU64 {
    fn default() -> Self {
        Self::new(0)
    }
}

pub fn smp_rmb() {
    fence(Ordering::Acquire);
}

pub fn smp_wmb() {
    fence(Ordering::Release);
}

pub fn smp_mb() {
    fence(Ordering::SeqCst);
}
