// SPDX-License-Identifier: GPL-2.0

//! Runs of a scenario: with all policies, over seeds and costs, with the same load for each policy.

use super::baseline::{clairvoyant, Optimum};
use super::costs::Costs;
use super::host::{Host, Setup};
use super::measure::{mean, Outcome};
use super::scenario::Scenario;
use crate::policy::fixed::Fixed;
use crate::policy::original::Original;
use crate::policy::standard::{Settings, Standard};
use crate::policy::{Plan, Policy};
use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

/// Packets after which the module tells the other side.
const SIGNAL_BATCH: usize = 64;

/// A run with a seed and a choice of costs, with everything that is compared.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The seed.
    pub seed: u64,
    /// The costs.
    pub costs: Costs,
    /// With 0 cores, which is stock vhost, 1, and so on, as far as it was run: so many cores cost
    /// at least their number, and no more are tried when that is more in each window than what
    /// fewer cost.
    pub fixed: Vec<Outcome>,
    /// The clairvoyant optimum of these.
    pub optimum: Optimum,
    /// The default policy.
    pub standard: Outcome,
    /// The original's policy.
    pub original: Outcome,
}

impl Comparison {
    /// Runs everything.
    pub fn run(scenario: &Scenario, costs: Costs, seed: u64, settings: &Settings) -> Self {
        let run = |cores: u32, policy: Option<&mut dyn Policy>| {
            let setup = Setup {
                scenario,
                costs,
                seed,
                signal_batch: SIGNAL_BATCH,
                cores,
            };
            Host::new(&setup).run(policy).0
        };
        let mut fixed = vec![run(0, None)];
        for cores in 1..=scenario.cores_max {
            let is_beaten = |window: usize| {
                let costs = fixed.iter().map(|run| run.windows[window].cost());
                costs.fold(f64::INFINITY, f64::min) <= f64::from(cores)
            };
            if (0..fixed[0].windows.len()).all(is_beaten) {
                break;
            }
            fixed.push(run(cores, Some(&mut Fixed { cores })));
        }
        Self {
            seed,
            costs,
            optimum: clairvoyant(&fixed, costs.handover, 0),
            fixed,
            standard: run(0, Some(&mut Standard::new(settings.clone()))),
            original: run(0, Some(&mut Original::default())),
        }
    }
}

/// What the default policy decides in a run, and when, in nanoseconds.
pub fn decisions(
    scenario: &Scenario,
    costs: Costs,
    seed: u64,
    settings: &Settings,
) -> Vec<(u64, Plan)> {
    let setup = Setup {
        scenario,
        costs,
        seed,
        signal_batch: SIGNAL_BATCH,
        cores: 0,
    };
    let mut host = Host::new(&setup);
    host.log = Some(Vec::new());
    host.run(Some(&mut Standard::new(settings.clone()))).1
}

/// Runs a scenario with the seeds from `first` on, one for each choice of costs, on all cores of this
/// machine.
pub fn sweep(
    scenario: &Scenario,
    costs: &[Costs],
    first: u64,
    settings: &Settings,
) -> Vec<Comparison> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(costs.len()) {
            scope.spawn(|| loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(costs) = costs.get(index) else {
                    break;
                };
                let seed = first + index as u64;
                let comparison = Comparison::run(scenario, *costs, seed, settings);
                if let Ok(mut done) = done.lock() {
                    done.push(comparison);
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_default();
    done.sort_by_key(|comparison| comparison.seed);
    done
}

/// A mean over seeds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Half of the width of the 95 % confidence interval, by Student's distribution.
    pub half_width: f64,
}

impl Estimate {
    /// Of these values.
    pub fn of(values: &[f64]) -> Self {
        let count = values.len() as f64;
        let average = mean(values.iter().copied());
        if values.len() < 2 {
            return Self {
                mean: average,
                half_width: f64::NAN,
            };
        }
        let variance = values
            .iter()
            .map(|value| (value - average).powi(2))
            .sum::<f64>()
            / (count - 1.0);
        let quantile = StudentsT::new(0.0, 1.0, count - 1.0)
            .map_or(f64::NAN, |student| student.inverse_cdf(0.975));
        Self {
            mean: average,
            half_width: quantile * (variance / count).sqrt(),
        }
    }
}

/// One policy's results over all seeds.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What it is.
    pub name: String,
    /// Runs in which it was tried. In the others its cost is taken to be its number of cores, which
    /// is less than it would have been.
    pub runs: usize,
    /// The cost, in cores.
    pub cost: Estimate,
    /// The cost in parts of the optimum's of the same seed.
    pub ratio: Estimate,
    /// The worst of these ratios.
    pub ratio_max: f64,
    /// Cores that I/O used.
    pub cores: Estimate,
    /// The mean of the windows' p99, in parts of the target.
    pub p99: Estimate,
    /// The p99 over whole runs, in parts of the target.
    pub p99_all: f64,
    /// The share of windows beyond the target.
    pub late: f64,
    /// Changes of the number of cores in a run.
    pub changes: f64,
}

/// What a single run cost, in cores.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Run {
    /// The seed.
    pub seed: u64,
    /// What things cost in it.
    pub costs: Costs,
    /// The optimum.
    pub optimum: f64,
    /// The default policy.
    pub standard: f64,
    /// The original's policy.
    pub original: f64,
    /// Stock threads.
    pub stock: f64,
}

impl From<&Comparison> for Run {
    fn from(comparison: &Comparison) -> Self {
        Self {
            seed: comparison.seed,
            costs: comparison.costs,
            optimum: comparison.optimum.cost,
            standard: comparison.standard.cost(),
            original: comparison.original.cost(),
            stock: comparison.fixed[0].cost(),
        }
    }
}

/// A scenario's results.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// The scenario.
    pub scenario: Scenario,
    /// Seeds, and choices of costs.
    pub seeds: usize,
    /// The policies.
    pub rows: Vec<Row>,
    /// The mean cost of the optimum, in cores.
    pub optimum: Estimate,
    /// The cores that are best if they may not change, of the means.
    pub best_static: usize,
    /// The default policy's cost less that of stock threads, by seed.
    pub over_stock: Estimate,
    /// Seeds for which it is more.
    pub dearer_than_stock: usize,
    /// Seeds for which the default policy costs more than the original's.
    pub dearer_than_original: usize,
    /// The default policy's cost less the original's, by seed.
    pub over_original: Estimate,
    /// As before, the cores alone and the p99 alone.
    pub over_original_cores: Estimate,
    /// The p99.
    pub over_original_p99: Estimate,
    /// The single runs, in the order of their seeds.
    pub runs: Vec<Run>,
}

impl Results {
    /// Sums up comparisons.
    pub fn of(scenario: &Scenario, comparisons: &[Comparison]) -> Self {
        let optimum: Vec<f64> = comparisons.iter().map(|one| one.optimum.cost).collect();
        let row = |name: String, least: f64, pick: &dyn Fn(&Comparison) -> Option<&Outcome>| {
            let all = |value: &dyn Fn(&Outcome) -> f64| -> Vec<f64> {
                comparisons
                    .iter()
                    .filter_map(|one| pick(one).map(value))
                    .collect()
            };
            let costs: Vec<f64> = comparisons
                .iter()
                .map(|one| pick(one).map_or(least, Outcome::cost))
                .collect();
            let ratios: Vec<f64> = costs
                .iter()
                .zip(&optimum)
                .map(|(cost, optimum)| cost / optimum.max(1e-9))
                .collect();
            Row {
                name,
                runs: all(&Outcome::cost).len(),
                cost: Estimate::of(&costs),
                ratio: Estimate::of(&ratios),
                ratio_max: ratios.iter().copied().fold(0.0, f64::max),
                cores: Estimate::of(&all(&Outcome::cores)),
                p99: Estimate::of(&all(&Outcome::p99)),
                p99_all: mean(all(&|outcome| outcome.time.p99).into_iter()),
                late: mean(all(&Outcome::late).into_iter()),
                changes: mean(all(&|outcome| outcome.changes.len() as f64).into_iter()),
            }
        };
        let mut rows = vec![
            row("default policy".into(), 0.0, &|one| Some(&one.standard)),
            row("original policy".into(), 0.0, &|one| Some(&one.original)),
            row("stock threads".into(), 0.0, &|one| one.fixed.first()),
        ];
        for cores in 1..=scenario.cores_max as usize {
            rows.push(row(format!("static {cores}"), cores as f64, &|one| {
                one.fixed.get(cores)
            }));
        }
        let best_static = rows[2..]
            .iter()
            .enumerate()
            .min_by(|(_, one), (_, other)| one.cost.mean.total_cmp(&other.cost.mean))
            .map_or(0, |(cores, _)| cores);
        let differences = |value: &dyn Fn(&Outcome) -> f64,
                           pick: &dyn Fn(&Comparison) -> &Outcome| {
            let difference = |one: &Comparison| value(&one.standard) - value(pick(one));
            comparisons.iter().map(difference).collect::<Vec<f64>>()
        };
        let over_stock = differences(&Outcome::cost, &|one| &one.fixed[0]);
        let over_original = differences(&Outcome::cost, &|one| &one.original);
        // What differs by rounding alone is the same.
        let dearer = |over: &[f64]| over.iter().filter(|over| **over > 1e-9).count();
        Self {
            scenario: scenario.clone(),
            seeds: comparisons.len(),
            optimum: Estimate::of(&optimum),
            best_static,
            dearer_than_stock: dearer(&over_stock),
            dearer_than_original: dearer(&over_original),
            over_stock: Estimate::of(&over_stock),
            over_original: Estimate::of(&over_original),
            over_original_cores: Estimate::of(&differences(&Outcome::cores, &|one| &one.original)),
            over_original_p99: Estimate::of(&differences(&Outcome::p99, &|one| &one.original)),
            runs: comparisons.iter().map(Run::from).collect(),
            rows,
        }
    }
}
