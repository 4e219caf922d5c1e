// SPDX-License-Identifier: GPL-2.0

//! Changes that did not pay, and for how long they are not tried again.
//!
//! The original IOcm compared bytes for each cycle before and after a change, for 60 intervals in
//! which it did nothing else, and took back what had not made them more: so a change that served
//! the same load with fewer cores was taken back as well, and a load that changed meanwhile decided
//! instead of the change. Here a change is a short probe. What is compared is the age of work, with
//! the load that was offered before and after; if the load has changed, nothing is learned. To
//! serve the same load in time with fewer cores is what giving back a core is for.

/// What was tried: to serve a load with so many cores.
#[derive(Clone, Copy, Debug)]
struct Probe {
    /// The number of cores before.
    before: u32,
    /// The load before, in cores.
    load: f64,
    /// Intervals since.
    age: u32,
}

/// What is remembered of changes of the number of cores.
#[derive(Clone, Debug, Default)]
pub struct Regret {
    probe: Option<Probe>,
    /// The smallest load at which giving back a core failed, in cores for each core that was left.
    failed: Option<f64>,
    /// Intervals for which that counts.
    left: u32,
    /// Intervals for which the next failure will count.
    penalty: u32,
}

/// A change that has paid for so many intervals is no probe any more.
const PROBE_INTERVALS: u32 = 20;
/// Loads that differ by less than this part count as the same.
const SAME_LOAD: f64 = 0.1;
/// For how many intervals the first failure counts. Each further one counts twice as long.
const PENALTY_MIN: u32 = 25;
/// The longest that a failure counts, in intervals.
const PENALTY_MAX: u32 = 3200;

impl Regret {
    /// Notes that a core was given back, while the load was so many cores.
    pub fn begin(&mut self, before: u32, load: f64) {
        self.probe = Some(Probe {
            before,
            load,
            age: 0,
        });
    }

    /// Goes on by one interval in which the load was `load`, and there was congestion or not.
    /// Returns the number of cores to go back to, if giving back was wrong.
    pub fn judge(&mut self, cores: u32, load: f64, congested: bool) -> Option<u32> {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.failed = None;
        }
        let mut probe = self.probe.take()?;
        probe.age += 1;
        if cores >= probe.before {
            return None;
        }
        if congested {
            // What no longer fits may have grown: then it is not the change that was wrong, though
            // a core is needed all the same.
            if load <= probe.load * (1.0 + SAME_LOAD) {
                let share = probe.load / f64::from(cores.max(1));
                self.failed = Some(self.failed.map_or(share, |failed| failed.min(share)));
                self.penalty = (self.penalty * 2).clamp(PENALTY_MIN, PENALTY_MAX);
                self.left = self.penalty;
            }
            return Some(probe.before);
        }
        if probe.age < PROBE_INTERVALS {
            self.probe = Some(probe);
        } else {
            self.penalty /= 2;
        }
        None
    }

    /// Whether serving `load` with `cores` is worth trying: it is unless it failed lately.
    pub fn allows(&self, cores: u32, load: f64) -> bool {
        self.failed
            .is_none_or(|failed| load / f64::from(cores.max(1)) < failed * (1.0 - SAME_LOAD))
    }
}
