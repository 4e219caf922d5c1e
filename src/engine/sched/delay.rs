// SPDX-License-Identifier: GPL-2.0

//! A service that is made slower, for experiments.

use crate::engine::tunable::Tunable;

/// The longest delay, in cycles: it is a fraction of a millisecond.
const CYCLES_MAX: u32 = 1_000_000;

/// The delay of a device's slices, in cycles of the time stamp counter.
pub struct Delay {
    /// For each slice that moves something.
    pub per_work: Tunable,
    /// For each 1024 bytes that it moves.
    pub per_kbyte: Tunable,
}

impl Delay {
    /// No delay.
    pub const fn new() -> Self {
        Self {
            per_work: Tunable::new(0, 0, CYCLES_MAX),
            per_kbyte: Tunable::new(0, 0, CYCLES_MAX),
        }
    }

    /// For how many cycles a slice is delayed that moved so much.
    pub fn of(&self, packets: u64, bytes: u64) -> u64 {
        if packets == 0 {
            return 0;
        }
        let data = bytes.saturating_mul(self.per_kbyte.get()) / 1024;
        self.per_work.get().saturating_add(data)
    }
}

impl Default for Delay {
    fn default() -> Self {
        Self::new()
    }
}
