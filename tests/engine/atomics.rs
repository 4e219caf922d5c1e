// SPDX-License-Identifier: GPL-2.0

//! Atomics under the control of a test, for the copy of the engine that this crate root compiles.
//!
//! All state is of the test's own thread, so tests do not see each other.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Learns of the barriers that the engine executes.
pub trait Barriers {
    /// Earlier reads before later reads.
    fn read_barrier(&self);
    /// Earlier writes before later writes.
    fn write_barrier(&self);
    /// Everything earlier before everything later.
    fn full_barrier(&self);
}

thread_local! {
    static WORD: Cell<u32> = const { Cell::new(0) };
    static INTERFERENCE: Cell<Option<u32>> = const { Cell::new(None) };
    static BARRIERS: RefCell<Option<Rc<dyn Barriers>>> = const { RefCell::new(None) };
}

/// What all words of this thread hold. One word at a time is all that a test needs.
pub fn word() -> u32 {
    WORD.get()
}

/// Sets what all words of this thread hold.
pub fn set_word(word: u32) {
    WORD.set(word);
}

/// Lets another thread, as it were, change the word to `word` just before the next exchange.
pub fn interfere(word: u32) {
    INTERFERENCE.set(Some(word));
}

/// Reports barriers of this thread to `barriers` while `run` runs.
pub fn with_barriers<R>(barriers: Rc<dyn Barriers>, run: impl FnOnce() -> R) -> R {
    BARRIERS.set(Some(barriers));
    let result = run();
    BARRIERS.set(None);
    result
}

/// A stand-in for the 32-bit word of `kern/atomics.rs`.
pub struct AtomicU32;

impl AtomicU32 {
    pub const fn new(_value: u32) -> Self {
        Self
    }

    pub fn load(&self) -> u32 {
        WORD.get()
    }

    pub fn compare_exchange(&self, old: u32, new: u32) -> Result<(), u32> {
        if let Some(word) = INTERFERENCE.take() {
            WORD.set(word);
        }
        let current = WORD.get();
        if current != old {
            return Err(current);
        }
        WORD.set(new);
        Ok(())
    }
}

/// A stand-in for the 64-bit word of `kern/atomics.rs`.
#[derive(Default)]
pub struct AtomicU64(Cell<u64>);

impl AtomicU64 {
    pub const fn new(value: u64) -> Self {
        Self(Cell::new(value))
    }

    pub fn load(&self) -> u64 {
        self.0.get()
    }

    pub fn store(&self, value: u64) {
        self.0.set(value);
    }

    pub fn fetch_add(&self, value: u64) {
        self.0.set(self.0.get().wrapping_add(value));
    }
}

fn barriers() -> Option<Rc<dyn Barriers>> {
    BARRIERS.with_borrow(Clone::clone)
}

pub fn smp_rmb() {
    if let Some(barriers) = barriers() {
        barriers.read_barrier();
    }
}

pub fn smp_wmb() {
    if let Some(barriers) = barriers() {
        barriers.write_barrier();
    }
}

pub fn smp_mb() {
    if let Some(barriers) = barriers() {
        barriers.full_barrier();
    }
}
