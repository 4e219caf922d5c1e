// SPDX-License-Identifier: GPL-2.0

//! When to change: as soon as not to have changed has cost as much as a change.
//!
//! That is the rule for renting or buying skis (Karlin and others, Competitive Snoopy Caching, 1988),
//! for each number of cores: what it would have saved since it began to be cheaper is added up, in
//! cores times intervals, and begins anew when nothing is left of it. A large gain is followed at
//! once and a small one after a while, and a load that jumps to and fro is not followed if it does
//! so too fast for a change to pay. A load that has come to a new level and stays there
//! ([`super::level`]) has no need to wait for that.
//!
//! Whether taking cores has paid is judged when they are given back, by what the number before would
//! have cost meanwhile. If it has not, the next time takes twice as much.
//!
//! The original IOcm compared bytes for each cycle before and after a change, for 60 intervals in
//! which it did nothing else, and took back what had not made them more: so a change that served
//! the same load with fewer cores was taken back as well, and a load that changed meanwhile decided
//! instead of the change. Here what the other number of cores would have cost is estimated for the
//! same load.

/// What a change has to save before it is made, in cores times intervals, at least and at most.
const PATIENCE: [f64; 2] = [1.0, 16.0];
/// A load that has come to a new level and stays there is taken to last for so many intervals more.
const LASTING: f64 = 100.0;
/// Intervals without a change that did not pay after which patience is halved.
const FORGIVE: u32 = 200;

/// What is remembered.
#[derive(Clone, Debug)]
pub struct Regret {
    /// What each number of cores would have saved.
    saved: Vec<f64>,
    /// What taking cores has to save.
    patience: f64,
    /// Intervals since patience was changed.
    since: u32,
    /// Cores that were taken and not given back: the number before, and what they have saved.
    taken: Option<(usize, f64)>,
}

impl Default for Regret {
    fn default() -> Self {
        Self {
            saved: Vec::new(),
            patience: PATIENCE[0],
            since: 0,
            taken: None,
        }
    }
}

impl Regret {
    /// Goes on by an interval in which each number of cores would have cost so much, in cores;
    /// infinity if it would not do. One that is cheaper by less than its margin is not worth a change; of
    /// one that is, all that it would have saved counts. `change` is what a change of a core costs, in
    /// cores times intervals. If the load `is_lasting`, and changes have paid lately, the number that
    /// will be cheapest is chosen at once, margin or not. Says which number there is to be.
    pub fn decide(
        &mut self,
        now: usize,
        costs: &[f64],
        margins: &[f64],
        change: f64,
        is_lasting: bool,
    ) -> usize {
        self.saved.resize(costs.len(), 0.0);
        self.since = self.since.saturating_add(1);
        if self.since > FORGIVE {
            self.patience = (self.patience / 2.0).max(PATIENCE[0]);
            self.since = 0;
        }
        let cost = costs[now];
        let is_worth_it = |cores: usize| costs[cores] + margins[cores] < cost;
        for (cores, saved) in self.saved.iter_mut().enumerate() {
            let gain = cost - costs[cores];
            let counted = if is_worth_it(cores) {
                gain
            } else {
                gain - margins[cores]
            };
            *saved = (*saved + counted).max(0.0);
        }
        self.saved[now] = 0.0;
        if let Some((before, saved)) = &mut self.taken {
            // What could not have served the load has no cost to compare with.
            *saved += (costs[*before] - cost).min(1.0);
        }
        if is_lasting && self.patience <= PATIENCE[0] {
            let best = cheapest(now, costs, change);
            if best != now {
                self.change(now, best, change);
                return best;
            }
        }
        let surplus = |cores: usize| {
            let patience = if cores > now {
                self.patience
            } else {
                PATIENCE[0]
            };
            let threshold = patience + 2.0 * change * now.abs_diff(cores) as f64;
            self.saved[cores] - threshold
        };
        let best = (0..costs.len())
            .filter(|cores| *cores != now && is_worth_it(*cores))
            .max_by(|one, other| surplus(*one).total_cmp(&surplus(*other)));
        match best {
            Some(best) if surplus(best) >= 0.0 => {
                self.change(now, best, change);
                best
            }
            _ => now,
        }
    }

    /// Notes that the number of cores changes.
    fn change(&mut self, now: usize, next: usize, change: f64) {
        self.saved.fill(0.0);
        let cost = change * now.abs_diff(next) as f64;
        if next > now {
            self.taken = Some((now, -cost));
        } else if let Some((_, saved)) = self.taken.take() {
            self.patience = if saved < cost {
                (self.patience * 2.0).min(PATIENCE[1])
            } else {
                (self.patience / 2.0).max(PATIENCE[0])
            };
            self.since = 0;
        }
    }
}

/// The number of cores that costs least if the load lasts, with what a change has to save at least.
fn cheapest(now: usize, costs: &[f64], change: f64) -> usize {
    let price = |cores: usize| {
        let way = if cores == now {
            0.0
        } else {
            PATIENCE[0] + 2.0 * change * now.abs_diff(cores) as f64
        };
        LASTING * costs[cores] + way
    };
    (0..costs.len())
        .filter(|cores| price(*cores) < price(now))
        .min_by(|one, other| price(*one).total_cmp(&price(*other)))
        .unwrap_or(now)
}
