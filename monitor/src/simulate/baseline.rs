// SPDX-License-Identifier: GPL-2.0

//! What policies are compared with.

use super::measure::{Outcome, WINDOW};

/// A sequence of numbers of cores, chosen by who knew what comes.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimum {
    /// The number of cores in each window.
    pub cores: Vec<usize>,
    /// The mean cost, in cores, with that of the changes.
    pub cost: f64,
}

/// The clairvoyant optimum: from the runs with each fixed number of cores, in the order of the
/// number, the cheapest way to change from one to another between windows, by dynamic programming.
/// Each core that is taken or given back costs its hand-over, in nanoseconds.
///
/// What a window costs is taken from a run in which the number was the same all the time. Work that
/// waits is bounded by the length of queues, which is a few milliseconds, so windows are nearly
/// independent of what was before.
pub fn clairvoyant(fixed: &[Outcome], handover: f64, begin: usize) -> Optimum {
    let windows = fixed
        .iter()
        .map(|outcome| outcome.windows.len())
        .min()
        .unwrap_or(0);
    let change = |from: usize, to: usize| from.abs_diff(to) as f64 * handover / WINDOW as f64;
    // The cheapest way to be at each number in the present window, and where it came from.
    let mut cost: Vec<f64> = (0..fixed.len()).map(|cores| change(begin, cores)).collect();
    let mut origins: Vec<Vec<usize>> = Vec::with_capacity(windows);
    for window in 0..windows {
        let mut next = Vec::with_capacity(fixed.len());
        let mut origin = Vec::with_capacity(fixed.len());
        for (cores, outcome) in fixed.iter().enumerate() {
            let way = |from: usize| {
                let moved = if window == 0 {
                    0.0
                } else {
                    change(from, cores)
                };
                cost[from] + moved
            };
            let from = if window == 0 {
                cores
            } else {
                (0..fixed.len())
                    .min_by(|one, other| way(*one).total_cmp(&way(*other)))
                    .unwrap_or(cores)
            };
            origin.push(from);
            next.push(way(from) + outcome.windows[window].cost());
        }
        origins.push(origin);
        cost = next;
    }
    let Some(mut at) = (0..fixed.len()).min_by(|one, other| cost[*one].total_cmp(&cost[*other]))
    else {
        return Optimum {
            cores: Vec::new(),
            cost: 0.0,
        };
    };
    let total = cost[at];
    let mut cores = Vec::with_capacity(windows);
    for origin in origins.iter().rev() {
        cores.push(at);
        at = origin[at];
    }
    cores.reverse();
    Optimum {
        cores,
        cost: total / windows.max(1) as f64,
    }
}
