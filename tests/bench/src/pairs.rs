// SPDX-License-Identifier: GPL-2.0
//! Measurements of the one module and of the other, by turns.

use anyhow::Result;

use crate::record::{Record, Tier};
use crate::subject::Module;
use crate::workload::{Direction, Shape, SHAPES};

/// Which metrics are wanted: all, or those whose names contain one of some words.
pub struct Wanted(pub Vec<String>);

impl Wanted {
    /// Whether this one is.
    pub fn has(&self, metric: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|word| metric.contains(word))
    }
}

/// Measures both modules `rounds` times in the order stock, ours, ours, stock, so that what drifts harms both
/// alike, and compares neighbours. The first measurement of each is not counted.
pub fn measure(
    tier: Tier,
    metric: &str,
    rounds: usize,
    mut cost: impl FnMut(Module) -> Result<f64>,
) -> Result<[Record; 3]> {
    let (mut stock, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for module in [Module::Stock, Module::Ours, Module::Ours, Module::Stock] {
            let cost = cost(module)?;
            match module {
                Module::Stock => stock.push(cost),
                Module::Ours => ours.push(cost),
            }
        }
    }
    Ok(compare(tier, metric, ("stock", &stock), ("ours", &ours)))
}

/// A subject's name and its measurements.
pub type Subject<'a> = (&'a str, &'a [f64]);

/// Compares measurements that were made in that order. The first of each is not counted.
pub fn compare(tier: Tier, metric: &str, reference: Subject<'_>, own: Subject<'_>) -> [Record; 3] {
    let (values, own_values) = (&reference.1[1..], &own.1[1..]);
    let pairs: Vec<_> = own_values
        .iter()
        .zip(values)
        .map(|(own, reference)| own / reference)
        .collect();
    let same: Vec<_> = values.windows(2).map(|pair| pair[1] / pair[0]).collect();
    [
        alone(tier, metric, reference),
        alone(tier, metric, own),
        Record::ratio(tier, metric.to_owned(), &pairs, &same),
    ]
}

/// Measurements that are compared with nothing. The first one is not counted.
pub fn alone(tier: Tier, metric: &str, (name, values): Subject<'_>) -> Record {
    Record::new(tier, format!("{metric}_{name}"), &values[1..])
}

/// Measures both directions and all shapes, as far as they are wanted. `what` says in which unit.
pub fn sweep(
    tier: Tier,
    what: &str,
    rounds: usize,
    wanted: &Wanted,
    cost: impl Fn(Module, Direction, &Shape) -> Result<f64>,
) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for direction in Direction::ALL {
        for shape in &SHAPES {
            let metric = format!(
                "{}_{}{}_{what}_per_{}",
                tier.name(),
                direction.name(),
                shape.name,
                shape.per()
            );
            if wanted.has(&metric) {
                let cost = |module| cost(module, direction, shape);
                records.extend(measure(tier, &metric, rounds, cost)?);
            }
        }
    }
    Ok(records)
}
