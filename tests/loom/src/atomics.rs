// SPDX-License-Identifier: GPL-2.0

//! Atomics for the engine under loom, with the interface of `kern/atomics.rs`.
//!
//! They promise less than the kernel's, so what holds with them holds there. An exchange is
//! ordered as acquire and release and not fully. The barriers are C11's, which order what the
//! kernel's do.

use std::sync::{atomic, OnceLock};

use loom::sync::atomic::{fence, Ordering};

/// A word whose exchanges are as ordered as told.
///
/// Loom's own cannot be made in a constant. It is made by the first access, which has to happen
/// before the word is shared.
struct Word {
    initial: u32,
    word: OnceLock<loom::sync::atomic::AtomicU32>,
}

impl Word {
    const fn new(initial: u32) -> Self {
        Self {
            initial,
            word: OnceLock::new(),
        }
    }

    fn get(&self) -> &loom::sync::atomic::AtomicU32 {
        self.word
            .get_or_init(|| loom::sync::atomic::AtomicU32::new(self.initial))
    }

    fn load(&self) -> u32 {
        self.get().load(Ordering::Relaxed)
    }

    fn compare_exchange(&self, old: u32, new: u32, order: Ordering) -> Result<(), u32> {
        self.get()
            .compare_exchange(old, new, order, Ordering::Relaxed)
            .map(|_| ())
    }
}

/// A 32-bit word that threads hand work over with.
pub struct AtomicU32(Word);

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
pub struct Unordered(Word);

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

/// A 64-bit word for counting, which nothing depends on and loom need not see.
#[derive(Default)]
pub struct AtomicU64(atomic::AtomicU64);

impl AtomicU64 {
    pub const fn new(value: u64) -> Self {
        Self(atomic::AtomicU64::new(value))
    }

    pub fn load(&self) -> u64 {
        self.0.load(atomic::Ordering::Relaxed)
    }

    pub fn store(&self, value: u64) {
        self.0.store(value, atomic::Ordering::Relaxed);
    }

    pub fn fetch_add(&self, value: u64) {
        self.0.fetch_add(value, atomic::Ordering::Relaxed);
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
