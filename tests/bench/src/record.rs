// SPDX-License-Identifier: GPL-2.0
//! What is written down of a measurement.

use std::fmt;

use serde::{Deserialize, Serialize};
use vhost_iocm_selftests::statistics::median;

/// What a number is worth.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Something was counted.
    Count,
    /// Two such numbers of the same boot were divided.
    Ratio,
}

/// One metric.
#[derive(Debug, Deserialize, Serialize)]
pub struct Record {
    /// Its name.
    pub metric: String,
    /// How it was measured: T1 counts instructions of an emulated machine with one processor.
    pub tier: String,
    /// What the number is.
    pub kind: Kind,
    /// How many measurements, or pairs of them, it comes from.
    pub n: usize,
    /// Their median.
    pub median: f64,
    /// The least and the greatest of them.
    pub interval: [f64; 2],
    /// For a ratio the same of pairs of the stock module, which says what means nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_interval: Option<[f64; 2]>,
}

impl Record {
    /// A metric that is counted.
    pub fn count(metric: String, values: &[f64]) -> Self {
        Self {
            metric,
            tier: "T1".into(),
            kind: Kind::Count,
            n: values.len(),
            median: median(values),
            interval: range(values),
            same_interval: None,
        }
    }

    /// Ours divided by stock's, pair by pair, beside stock's divided by stock's.
    pub fn ratio(metric: String, pairs: &[f64], same: &[f64]) -> Self {
        Self {
            kind: Kind::Ratio,
            same_interval: Some(range(same)),
            ..Self::count(metric, pairs)
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [least, greatest] = self.interval;
        write!(
            f,
            "{:<32} {:.3} ({least:.3} to {greatest:.3}, {} pairs",
            self.metric, self.median, self.n
        )?;
        if let Some([least, greatest]) = self.same_interval {
            write!(f, "; stock by stock {least:.3} to {greatest:.3}")?;
        }
        f.write_str(")")
    }
}

fn range(values: &[f64]) -> [f64; 2] {
    let fold = |start, pick: fn(f64, f64) -> f64| values.iter().copied().fold(start, pick);
    [
        fold(f64::INFINITY, f64::min),
        fold(f64::NEG_INFINITY, f64::max),
    ]
}
