// SPDX-License-Identifier: GPL-2.0

//! Numbers that user space sets while they are used.

use crate::atomics::AtomicU64;

/// A number between two bounds, both included.
pub struct Tunable {
    value: AtomicU64,
    min: u32,
    max: u32,
}

impl Tunable {
    /// A number that is `value`, which lies between the bounds, until it is set.
    pub const fn new(value: u32, min: u32, max: u32) -> Self {
        Self {
            value: AtomicU64::new(value as u64),
            min,
            max,
        }
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.value.load()
    }

    /// Sets the number; returns false, and changes nothing, if it is out of bounds.
    #[must_use]
    pub fn set(&self, value: u32) -> bool {
        let within = (self.min..=self.max).contains(&value);
        if within {
            self.value.store(u64::from(value));
        }
        within
    }
}
