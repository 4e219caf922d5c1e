// SPDX-License-Identifier: GPL-2.0

//! What a device may have of its workers' time.

use super::credit::WEIGHT_DEFAULT;
use crate::atomics::AtomicU64;

/// A ceiling of all of the time: none.
pub const TIME_SHARE_MAX: u32 = 1000;

/// The time over which a ceiling is kept, in nanoseconds.
const WINDOW: u64 = 10_000_000;

/// The share of one device.
///
/// The fields are written by control operations and by the workers of the device's virtqueues. A
/// device has two workers at most, and a ceiling holds for both together; if both account at the
/// same instant at the end of a window, one of the two slices may count for the wrong window.
///
/// The snapshot has the fields in this order.
#[repr(C)]
pub struct Share {
    weight: AtomicU64,
    /// Parts per thousand of one worker's time.
    ceiling: AtomicU64,
    /// The number of the window in which `used` counts.
    window: AtomicU64,
    /// Nanoseconds used in the window, with what the ones before used too much; less than 0, in two's
    /// complement, if they left something.
    used: AtomicU64,
}

impl Share {
    /// The default weight and no ceiling.
    pub const fn new() -> Self {
        Self {
            weight: AtomicU64::new(WEIGHT_DEFAULT as u64),
            ceiling: AtomicU64::new(TIME_SHARE_MAX as u64),
            window: AtomicU64::new(0),
            used: AtomicU64::new(0),
        }
    }

    /// Goes back to the default weight and no ceiling, where zeroes were.
    pub fn reset(&self) {
        self.set_weight(WEIGHT_DEFAULT);
        self.set_ceiling(TIME_SHARE_MAX);
    }

    /// The weight, from `credit::WEIGHT_MIN` to `credit::WEIGHT_MAX`.
    pub fn weight(&self) -> u32 {
        self.weight.load() as u32
    }

    /// Sets the weight, which the caller has checked.
    pub fn set_weight(&self, weight: u32) {
        self.weight.store(u64::from(weight));
    }

    /// The ceiling in parts per thousand of one worker's time; [`TIME_SHARE_MAX`] is none.
    pub fn ceiling(&self) -> u32 {
        self.ceiling.load() as u32
    }

    /// Sets the ceiling, which the caller has checked.
    pub fn set_ceiling(&self, ceiling: u32) {
        self.ceiling.store(u64::from(ceiling));
    }

    /// Accounts for `used` nanoseconds that ended at `now`.
    pub fn charge(&self, used: u64, now: u64) {
        if self.ceiling() < TIME_SHARE_MAX {
            self.turn(now);
            self.used.fetch_add(used);
        }
    }

    /// Until when, in nanoseconds of the clock of `now`, the device may not be served; `None` if
    /// it may be served now.
    pub fn throttled_until(&self, now: u64) -> Option<u64> {
        if self.ceiling() >= TIME_SHARE_MAX {
            return None;
        }
        self.turn(now);
        (self.used.load() as i64 >= self.allowance()).then(|| (now / WINDOW + 1) * WINDOW)
    }

    /// Whether the device may not be served at `now`, for those who only look.
    pub fn is_throttled(&self, now: u64) -> bool {
        self.ceiling() < TIME_SHARE_MAX && self.used_at(now / WINDOW) >= self.allowance()
    }

    /// What the ceiling allows in one window, in nanoseconds.
    fn allowance(&self) -> i64 {
        (WINDOW * u64::from(self.ceiling()) / u64::from(TIME_SHARE_MAX)) as i64
    }

    /// Goes on to the window of `now`.
    fn turn(&self, now: u64) {
        let window = now / WINDOW;
        if window > self.window.load() {
            let used = self.used_at(window);
            self.window.store(window);
            self.used.store(used as u64);
        }
    }

    /// What counts as used in `window`. What was used too much before has to be paid for by as many
    /// windows as it takes; what was left counts for one more window, since a slice that began in
    /// one window may be accounted for in the next.
    fn used_at(&self, window: u64) -> i64 {
        let used = self.used.load() as i64;
        let passed = window.saturating_sub(self.window.load());
        if passed == 0 {
            return used;
        }
        let allowance = self.allowance();
        let passed = i64::try_from(passed).unwrap_or(i64::MAX);
        used.saturating_sub(allowance.saturating_mul(passed))
            .max(-allowance)
    }
}

impl Default for Share {
    fn default() -> Self {
        Self::new()
    }
}
