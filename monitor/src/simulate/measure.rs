// SPDX-License-Identifier: GPL-2.0

//! What is measured in a run, and what it is worth.

use serde::Serialize;

/// The time over which percentiles are taken and costs are added up, in nanoseconds.
pub const WINDOW: u64 = 100_000_000;
/// A p99 that is beyond its target by 100 % costs so many cores.
const EXCESS_PRICE: f64 = 1.0;
/// More excess than this makes a window no worse.
const EXCESS_MAX: f64 = 4.0;
/// What a request that was dropped counts as, in parts of its target.
const DROPPED: f32 = 1000.0;

/// A window of a run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Window {
    /// Cores that I/O used: those that were kept for it, and the time that home threads and
    /// notifications took from guests.
    pub cores: f64,
    /// The 99th percentile of the time that requests took, in parts of their target: that of the
    /// load for which it is the worst.
    pub p99: f64,
    /// Cores that were kept for I/O at the end.
    pub kept: u32,
    /// Requests that were done.
    pub done: u64,
}

impl Window {
    /// What the window cost, in cores.
    pub fn cost(&self) -> f64 {
        self.cores + EXCESS_PRICE * (self.p99 - 1.0).clamp(0.0, EXCESS_MAX)
    }
}

/// Collects the requests of a run, window by window.
#[derive(Debug)]
pub struct Meter {
    /// Times in parts of their target, of the present window, for each load.
    times: Vec<Vec<f32>>,
    /// All times, in parts per thousand of their target.
    all: hdrhistogram::Histogram<u64>,
    /// Their sum, in parts of their target.
    sum: f64,
    windows: Vec<Window>,
}

impl Meter {
    /// Nothing yet, for so many loads.
    pub fn new(loads: usize) -> Self {
        let all = hdrhistogram::Histogram::new_with_bounds(1, 1_000_000, 3)
            .expect("the bounds are valid for any histogram with three digits");
        Self {
            times: vec![Vec::new(); loads],
            all,
            sum: 0.0,
            windows: Vec::new(),
        }
    }

    /// Notes that a request took so long, in parts of its target.
    pub fn note(&mut self, load: usize, time: f32) {
        self.times[load].push(time);
        self.sum += f64::from(time);
        self.all.saturating_record((time * 1000.0) as u64);
    }

    /// Notes that a request was dropped.
    pub fn note_dropped(&mut self, load: usize) {
        self.note(load, DROPPED);
    }

    /// Ends a window.
    pub fn end_window(&mut self, cores: f64, kept: u32) {
        let mut window = Window {
            cores,
            kept,
            ..Window::default()
        };
        for times in &mut self.times {
            window.done += times.len() as u64;
            window.p99 = window.p99.max(percentile(times, 0.99));
            times.clear();
        }
        self.windows.push(window);
    }

    /// What came out.
    pub fn finish(self) -> (Vec<Window>, Percentiles) {
        let at = |share| self.all.value_at_quantile(share) as f64 / 1000.0;
        let percentiles = Percentiles {
            mean: self.sum / self.all.len().max(1) as f64,
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
        };
        (self.windows, percentiles)
    }
}

/// Percentiles of a run, in parts of the target.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Percentiles {
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// The 99th.
    pub p99: f64,
    /// The 99.9th.
    pub p999: f64,
}

fn percentile(times: &mut [f32], share: f64) -> f64 {
    if times.is_empty() {
        return 0.0;
    }
    let index = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len()) - 1;
    let (_, value, _) = times.select_nth_unstable_by(index, f32::total_cmp);
    f64::from(*value)
}

/// What came out of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The windows.
    pub windows: Vec<Window>,
    /// Percentiles of all requests of the run.
    pub time: Percentiles,
    /// Requests that were done, dropped ones included.
    pub done: u64,
    /// Changes of the number of cores: when, in milliseconds, and to how many.
    pub changes: Vec<(f64, u32)>,
    /// Devices that were moved.
    pub moves: u64,
}

impl Outcome {
    /// The mean cost, in cores.
    pub fn cost(&self) -> f64 {
        mean(self.windows.iter().map(Window::cost))
    }

    /// The cores that I/O used on average.
    pub fn cores(&self) -> f64 {
        mean(self.windows.iter().map(|window| window.cores))
    }

    /// The mean of the windows' p99, in parts of the target; windows count as at most five.
    pub fn p99(&self) -> f64 {
        mean(
            self.windows
                .iter()
                .map(|window| window.p99.min(1.0 + EXCESS_MAX)),
        )
    }

    /// The share of windows whose p99 is beyond the target.
    pub fn late(&self) -> f64 {
        mean(
            self.windows
                .iter()
                .map(|window| f64::from(u8::from(window.p99 > 1.0))),
        )
    }
}

/// The mean; 0 of nothing.
pub fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = values.fold((0u32, 0.0), |(count, sum), value| (count + 1, sum + value));
    sum / f64::from(count.max(1))
}
