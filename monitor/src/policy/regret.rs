// SPDX-License-Identifier: GPL-2.0

//! Numbers of cores that were not enough, and for how long they are not tried again.
//!
//! The original IOcm compared bytes for each cycle before and after a change, for 60 intervals in
//! which it did nothing else, and took back what had not made them more: so a change that served
//! the same load with fewer cores was taken back as well, and a load that changed meanwhile decided
//! instead of the change. Here a change is a short probe, judged by the age of work, and what is
//! learned is in proportion to the load that was offered: so many packets for each core were too
//! many. To serve the same load in time with fewer cores is a gain.

/// What is remembered of failures.
#[derive(Clone, Debug, Default)]
pub struct Regret {
    /// The rate for each core that was too much, in packets in a second.
    failed: Option<f64>,
    /// Intervals for which that counts.
    left: u32,
    /// Intervals for which the last failure was to count.
    penalty: u32,
}

/// Rates that differ by less than this part count as the same.
const SAME: f64 = 0.1;
/// For how many intervals the first failure counts. Each further one counts twice as long.
const PENALTY_MIN: u32 = 100;
/// The longest that a failure counts, in intervals.
const PENALTY_MAX: u32 = 3200;

impl Regret {
    /// Goes on by one interval.
    pub fn pass(&mut self) {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.failed = None;
        }
    }

    /// Notes that so many cores were not enough for `rate` packets in a second.
    pub fn fail(&mut self, cores: u32, rate: f64) {
        let share = rate / f64::from(cores.max(1));
        // What fails at a rate that failed before was tried too soon.
        let again = self.failed.is_none_or(|failed| share < failed * 1.5);
        if again {
            self.penalty = (self.penalty * 2).clamp(PENALTY_MIN, PENALTY_MAX);
        }
        self.failed = Some(self.failed.map_or(share, |failed| failed.min(share)));
        self.left = self.penalty;
    }

    /// Whether `cores` may be enough for `rate` packets in a second, as far as is known.
    pub fn allows(&self, cores: u32, rate: f64) -> bool {
        self.failed
            .is_none_or(|failed| rate / f64::from(cores.max(1)) < failed * (1.0 - SAME))
    }
}
