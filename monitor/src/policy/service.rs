// SPDX-License-Identifier: GPL-2.0

//! What serving takes on this host: a line through what was measured.
//!
//! The time for which a device was served is taken to be the sum of what its packets, their bytes,
//! its slices and its wake-ups took. The four are learned by recursive least squares, which is
//! Kalman's filter (1960) for something that hardly changes: each interval of each device is a
//! measurement, and what no measurement tells apart stays as it was assumed. So the time that a
//! worker would need is known from what a home thread needs, and the other way round: a worker that is
//! busy is not woken, and moves more packets in a slice.

/// What time is taken for.
pub const PARTS: usize = 4;

/// Counts of an interval: packets, bytes in units of 1,024, slices, and wake-ups of a thread.
pub type Counts = [f64; PARTS];

/// What is assumed of each part at first, in nanoseconds, and how far that may be off.
const ASSUMED: [(f64, f64); PARTS] = [
    (500.0, 300.0),
    (70.0, 40.0),
    (350.0, 200.0),
    (2000.0, 900.0),
];
/// How fast what was learned is forgotten, for each measurement.
const FORGET: f64 = 0.0005;
/// What a measurement is off by: the slices at its ends, in nanoseconds, and a part of it.
const NOISE: (f64, f64) = (5_000.0, 0.02);

/// What is known.
#[derive(Clone, Debug)]
pub struct Service {
    mean: [f64; PARTS],
    covariance: [[f64; PARTS]; PARTS],
}

impl Default for Service {
    fn default() -> Self {
        let mut service = Self {
            mean: [0.0; PARTS],
            covariance: [[0.0; PARTS]; PARTS],
        };
        for (part, (mean, deviation)) in ASSUMED.into_iter().enumerate() {
            service.mean[part] = mean;
            service.covariance[part][part] = deviation * deviation;
        }
        service
    }
}

impl Service {
    /// Learns that these took `time` nanoseconds together.
    pub fn learn(&mut self, counts: &Counts, time: f64) {
        let mut spread = [0.0; PARTS];
        for (row, spread) in self.covariance.iter().zip(&mut spread) {
            *spread = dot(row, counts);
        }
        let noise = NOISE.0 + NOISE.1 * time;
        let variance = dot(&spread, counts) + noise * noise;
        let error = time - dot(&self.mean, counts);
        for part in 0..PARTS {
            self.mean[part] += spread[part] * error / variance;
            for other in 0..PARTS {
                self.covariance[part][other] -= spread[part] * spread[other] / variance;
                // Back towards what was assumed.
                self.covariance[part][other] *= 1.0 - FORGET;
            }
            self.covariance[part][part] += FORGET * ASSUMED[part].1.powi(2);
        }
    }

    /// What one of each takes, in nanoseconds: packets, 1,024 bytes, slices, wake-ups.
    pub fn parts(&self) -> [f64; PARTS] {
        self.mean.map(|mean| mean.max(0.0))
    }
}

fn dot(one: &[f64; PARTS], other: &[f64; PARTS]) -> f64 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}
