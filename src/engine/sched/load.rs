// SPDX-License-Identifier: GPL-2.0

//! How busy a worker has been lately.
//!
//! The share of its time that a worker serves is averaged over windows, each new one counting for an
//! eighth: what was a second ago hardly counts. A worker that sleeps updates nothing, so who reads
//! goes on to the present time.

use crate::atomics::AtomicU64;

/// The time that counts as one value of the average, in nanoseconds.
const WINDOW: u64 = 10_000_000;
/// Weight of a new window in the moving average: one in 2^3.
const AVERAGE_SHIFT: u32 = 3;
/// What the average of a worker that does nothing else is.
const FULL: u64 = 1 << 20;
/// After so many windows without work nothing is left of the average that could be told.
const WINDOWS_MAX: u64 = 128;

/// All of the time, in parts per thousand.
pub const LOAD_MAX: u32 = 1000;

/// The load of one worker, which is the only writer. What a reader sees may mix two windows.
#[derive(Default)]
pub struct Load {
    /// The number of the window in which `used` counts.
    window: AtomicU64,
    /// Nanoseconds of it that were spent serving.
    used: AtomicU64,
    /// The average of the windows before, of [`FULL`].
    average: AtomicU64,
}

impl Load {
    /// No load.
    pub const fn new() -> Self {
        Self {
            window: AtomicU64::new(0),
            used: AtomicU64::new(0),
            average: AtomicU64::new(0),
        }
    }

    /// Accounts for `used` nanoseconds of serving that ended at `now`.
    pub fn charge(&self, used: u64, now: u64) {
        let window = now / WINDOW;
        if window != self.window.load() {
            self.average.store(self.average_at(window));
            self.window.store(window);
            self.used.store(0);
        }
        self.used.store(self.used.load().saturating_add(used));
    }

    /// The load at `now`, in parts per thousand.
    pub fn share(&self, now: u64) -> u32 {
        let average = self.average_at(now / WINDOW).min(FULL);
        (average * u64::from(LOAD_MAX) / FULL) as u32
    }

    /// The average of all windows before `window`.
    fn average_at(&self, window: u64) -> u64 {
        let passed = window.saturating_sub(self.window.load());
        if passed > WINDOWS_MAX {
            return 0;
        }
        let mut average = self.average.load();
        for index in 0..passed {
            // The first of them is the one that was charged, nothing happened in the others.
            let used = if index == 0 { self.used.load() } else { 0 };
            let share = used.min(WINDOW) * FULL / WINDOW;
            average = average - (average >> AVERAGE_SHIFT) + (share >> AVERAGE_SHIFT);
        }
        average
    }
}
