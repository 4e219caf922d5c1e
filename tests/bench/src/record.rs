// SPDX-License-Identifier: GPL-2.0
//! What is written down of a measurement.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use vhost_iocm_selftests::random::Random;
use vhost_iocm_selftests::statistics::{median, quantile};

/// How something was measured.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
pub enum Tier {
    /// Instructions of an emulated machine with one processor, which are exact.
    T1,
    /// Counts of an emulated machine with several processors.
    T2,
    /// The same with many devices.
    T3,
    /// Counts and rates of emulated guests in User Mode Linux.
    T4,
    /// Times in User Mode Linux, whose code runs on the processors of this machine.
    T5,
}

impl Tier {
    /// Its part of a metric's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::T1 => "t1",
            Self::T2 => "t2",
            Self::T3 => "t3",
            Self::T4 => "t4",
            Self::T5 => "t5",
        }
    }

    /// What a single number of this tier is.
    fn kind(self) -> Kind {
        match self {
            Self::T1 | Self::T2 | Self::T3 => Kind::Count,
            Self::T4 | Self::T5 => Kind::Indicative,
        }
    }
}

/// What a number is worth.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Something was counted.
    Count,
    /// Something was timed, which says little apart from what was timed beside it.
    Indicative,
    /// Two such numbers of the same boot were divided.
    Ratio,
}

/// One metric.
#[derive(Debug, Deserialize, Serialize)]
pub struct Record {
    /// Its name.
    pub metric: String,
    /// How it was measured.
    pub tier: Tier,
    /// What the number is.
    pub kind: Kind,
    /// How many measurements, or pairs of them, it comes from.
    pub n: usize,
    /// Their median.
    pub median: f64,
    /// In which the median of other such measurements lies with a confidence of 95 %, by bootstrap.
    pub interval: [f64; 2],
    /// For a ratio the same of pairs of the stock module, which says what means nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_interval: Option<[f64; 2]>,
}

impl Record {
    /// A metric that is a number by itself.
    pub fn new(tier: Tier, metric: String, values: &[f64]) -> Self {
        Self {
            metric,
            tier,
            kind: tier.kind(),
            n: values.len(),
            median: median(values),
            interval: interval(values),
            same_interval: None,
        }
    }

    /// Two numbers of ours, divided.
    pub fn quotient(tier: Tier, metric: String, values: &[f64]) -> Self {
        Self {
            kind: Kind::Ratio,
            ..Self::new(tier, metric, values)
        }
    }

    /// Ours divided by stock's, pair by pair, beside stock's divided by stock's.
    pub fn ratio(tier: Tier, metric: String, pairs: &[f64], same: &[f64]) -> Self {
        Self {
            kind: Kind::Ratio,
            same_interval: Some(interval(same)),
            ..Self::new(tier, metric, pairs)
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [least, greatest] = self.interval;
        write!(
            f,
            "{:<32} {:.3} ({least:.3} to {greatest:.3}, {} times",
            self.metric, self.median, self.n
        )?;
        if let Some([least, greatest]) = self.same_interval {
            write!(f, "; stock by stock {least:.3} to {greatest:.3}")?;
        }
        f.write_str(")")
    }
}

/// Samples that are drawn for an interval.
const SAMPLES: usize = 2000;

/// The interval of the median by Efron's bootstrap (percentiles), the same for the same values.
fn interval(values: &[f64]) -> [f64; 2] {
    let mut random = Random::new(1);
    let medians: Vec<f64> = (0..SAMPLES)
        .map(|_| {
            let sample: Vec<f64> = values.iter().map(|_| *random.choose(values)).collect();
            median(&sample)
        })
        .collect();
    [quantile(&medians, 0.025), quantile(&medians, 0.975)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_holds_the_median_and_no_outlier() {
        let mut values: Vec<f64> = (0..20).map(f64::from).collect();
        values[0] = -1e6;
        let [low, high] = interval(&values);
        assert!(
            low > 2.0 && low < 10.0 && high > 10.0 && high < 17.0,
            "{low} {high}"
        );
        assert_eq!(interval(&[3.0]), [3.0, 3.0]);
    }
}
