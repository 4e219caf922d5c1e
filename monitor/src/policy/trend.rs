// SPDX-License-Identifier: GPL-2.0

//! Whether a load rises again and again.
//!
//! A load that has risen once may stay for long, and is served accordingly at once. One that has risen
//! twice, with nothing lost in between, is taken to rise once more after the same time by the same
//! factor, as a crowd that gathers does. What serves it now only just would then be too little.

/// A load that is larger by this factor has risen, and one that is smaller by it has fallen.
const STEP: f64 = 1.3;
/// A smaller rise, in cores, is none.
const LEAST: f64 = 0.1;
/// The weight of a new interval in the level.
const NEW: f64 = 0.3;
/// Rises with no more than so many intervals between them are one: a load that rises within an
/// interval is seen in two.
const ONE: u32 = 2;
/// Rises with more intervals between them have nothing to do with each other.
const APART: u32 = 20;

/// What is remembered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trend {
    /// The load since the last rise or fall.
    level: f64,
    /// Intervals since the last rise, if the load has not fallen since.
    since: Option<u32>,
    /// The intervals between the last two rises, if they belong together.
    gap: Option<u32>,
    /// The factor of the last rise.
    factor: f64,
}

impl Trend {
    /// Goes on by an interval with this load; says by what factor it will be larger soon, at least 1.
    pub fn follow(&mut self, load: f64) -> f64 {
        self.since = self.since.map(|since| since.saturating_add(1));
        if self.level <= 0.0 {
            self.level = load;
        }
        if load > self.level * STEP && load > self.level + LEAST {
            // A rise from nothing has no factor, and is none.
            let factor = load / self.level;
            if self.since.is_some_and(|since| since <= ONE) {
                self.factor *= factor;
            } else {
                self.gap = self.since.filter(|since| *since <= APART);
                self.factor = factor;
                self.since = Some(0);
            }
            self.level = load;
        } else if load < self.level / STEP {
            *self = Self {
                level: load,
                ..Self::default()
            };
        } else {
            self.level += NEW * (load - self.level);
        }
        match (self.since, self.gap) {
            (Some(since), Some(gap)) if since < 2 * gap => self.factor,
            _ => 1.0,
        }
    }
}
