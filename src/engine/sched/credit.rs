// SPDX-License-Identifier: GPL-2.0

//! Deficit round robin, charged in time (Shreedhar and Varghese, SIGCOMM 1995).
//!
//! A worker serves in rounds. In each round a virtqueue may be served for its *quantum*, which is
//! proportional to the weight of its device; what it used beyond that is taken off the next one.
//! The round ends when everybody who has work has used the quantum up. Unlike in the paper a
//! virtqueue gives the worker back after every slice and not after its quantum, so a large weight
//! makes turns more frequent and not longer; and a virtqueue that ran out of work keeps the rest of
//! its quantum until the round ends, so one that sends and waits by turns is not made to wait for
//! the next round by those who send all the time.

/// The weight of a device for which nobody set one, as in cgroup v2.
pub const WEIGHT_DEFAULT: u32 = 100;
/// The smallest weight.
pub const WEIGHT_MIN: u32 = 1;
/// The largest weight.
pub const WEIGHT_MAX: u32 = 10_000;

/// The time, in nanoseconds, for which a virtqueue may be served in one round: one slice of
/// `slice` nanoseconds at the default weight. If `competitors` virtqueues of the device have work
/// on the same worker they divide the device's share among themselves.
pub fn quantum(slice: u64, weight: u32, competitors: u32) -> u64 {
    let divisor = u64::from(WEIGHT_DEFAULT) * u64::from(competitors.max(1));
    (slice.saturating_mul(u64::from(weight)) / divisor).max(1)
}

/// What a virtqueue may still use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Credit {
    /// In nanoseconds; negative for what was used too much.
    left: i64,
    /// The round in which the quantum was added last.
    round: u64,
}

impl Credit {
    /// Nothing used and nothing given.
    pub const fn new() -> Self {
        Self { left: 0, round: 0 }
    }

    /// Adds the quantum of `round`, unless that was done before, and says whether the virtqueue
    /// may be served now. Rounds are counted from 1. Quanta of rounds that the virtqueue sat out
    /// are not made up for.
    #[must_use]
    pub fn may_run(&mut self, round: u64, quantum: u64) -> bool {
        if self.round != round {
            self.round = round;
            let quantum = i64::try_from(quantum).unwrap_or(i64::MAX);
            self.left = self.left.min(0).saturating_add(quantum);
        }
        self.left > 0
    }

    /// Takes off what was used, in nanoseconds; returns whether anything is left.
    pub fn charge(&mut self, used: u64) -> bool {
        self.left = self.left.saturating_sub_unsigned(used);
        self.left > 0
    }
}
