// SPDX-License-Identifier: GPL-2.0
//! What a device got of the worker that it shares, and whether that is less than before.

use std::time::Duration;

use anyhow::{bail, Result};

use crate::probe::Probe;
use crate::statistics::{median, quantile};

/// Length of a window, in each of which a stream and round trips are measured once.
const WINDOW: Duration = Duration::from_millis(250);
/// What a device must keep of its throughput beside an idle one.
const RATE_KEPT: f64 = 0.95;
/// How much longer its round trips may take, at the 99th percentile.
const TAIL_GROWTH: f64 = 2.0;

/// What a device got, window by window.
#[derive(Default)]
pub struct Service {
    /// Frames a second.
    rates: Vec<f64>,
    /// The 99th percentile of the round trips.
    tails: Vec<Duration>,
}

impl Service {
    /// Measures it for so many windows more.
    pub fn measure(&mut self, probe: &mut Probe, windows: usize) -> Result<()> {
        for _ in 0..windows {
            self.rates.push(probe.stream(WINDOW)?);
            self.tails.push(quantile(&probe.round_trips(WINDOW)?, 0.99));
        }
        Ok(())
    }

    fn rate(&self) -> f64 {
        median(&self.rates)
    }

    fn tail(&self) -> Duration {
        median(&self.tails)
    }

    /// Fails if this is less than what the device got beside an idle one.
    pub fn compare(&self, idle: &Self) -> Result<()> {
        let kept = self.rate() / idle.rate();
        if kept < RATE_KEPT {
            bail!("the neighbour kept {:.1} % of its throughput", kept * 100.0);
        }
        let growth = self.tail().as_secs_f64() / idle.tail().as_secs_f64();
        if growth > TAIL_GROWTH {
            bail!("the neighbour's round trips took {growth:.2} times as long");
        }
        Ok(())
    }
}

impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.0} frames/s, 99 % of round trips within {:?} (medians of {} windows)",
            self.rate(),
            self.tail(),
            self.rates.len()
        )
    }
}
