// SPDX-License-Identifier: GPL-2.0

//! Whether a load has come to a new level and stays there.
//!
//! Nobody knows how long a load will last, so what another number of cores would save is added up
//! before cores change hands ([`super::regret`]). That takes long where little is saved in an
//! interval. But what has lasted for a while will likely last for as long again and longer (Lindy's
//! law): a load that is another one than before and has been the same for some intervals is a
//! reason to take the best number of cores at once. Not so where the levels before were short.

/// Loads that differ by no more than this part, or so many cores, are the same.
const SAME: f64 = 0.15;
const NOTHING: f64 = 0.05;
/// Intervals for which a load has to be the same.
const LASTING: u32 = 5;
/// A level that is so many times as high as the last one, or as low, is another one.
const STEP: f64 = 1.3;
/// Where one of the last two levels ended within so many intervals, the next one is not taken to
/// last.
const SHORT: u32 = 40;

/// What is remembered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Level {
    /// The mean load for as long as it has been the same, and for how many intervals that is.
    mean: f64,
    lasted: u32,
    /// The mean load of the last level that was looked at.
    told: f64,
    /// For how many intervals the last two levels lasted.
    before: [Option<u32>; 2],
}

impl Level {
    /// Goes on by an interval with this load, in cores.
    pub fn follow(&mut self, load: f64) {
        if (load - self.mean).abs() > NOTHING.max(SAME * self.mean) {
            if self.lasted >= LASTING {
                self.before = [Some(self.lasted), self.before[0]];
            }
            self.mean = load;
            self.lasted = 1;
            return;
        }
        self.lasted = self.lasted.saturating_add(1);
        self.mean += (load - self.mean) / f64::from(self.lasted);
    }

    /// Whether the load has come to a new level and is likely to stay there. It is said once for
    /// each level.
    pub fn tell(&mut self) -> bool {
        let is_new = self.mean > self.told * STEP || self.mean * STEP < self.told;
        if self.lasted < LASTING || !is_new {
            return false;
        }
        self.told = self.mean;
        self.before.iter().flatten().all(|lasted| *lasted > SHORT)
    }
}
