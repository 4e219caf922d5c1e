// SPDX-License-Identifier: GPL-2.0
//! What a few measurements say together.

/// The value below which this share (0 to 1) of the measurements lies.
///
/// There must be a measurement.
pub fn quantile<T: Copy + PartialOrd>(measurements: &[T], share: f64) -> T {
    let mut sorted = measurements.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    let last = sorted.len() - 1;
    sorted[(last as f64 * share).ceil() as usize]
}

/// The value in the middle. There must be a measurement.
pub fn median<T: Copy + PartialOrd>(measurements: &[T]) -> T {
    quantile(measurements, 0.5)
}

/// Jain's index of fairness: 1 when all have the same, 1/n when one of n has everything.
pub fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    sum * sum / (shares.len() as f64 * squares)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        let measurements: Vec<u32> = (0..=100).rev().collect();
        assert_eq!(median(&measurements), 50);
        assert_eq!(quantile(&measurements, 0.99), 99);
        assert_eq!(quantile(&measurements, 0.0), 0);
        assert_eq!(quantile(&measurements, 1.0), 100);
        assert_eq!(quantile(&[7, 3], 0.99), 7);
        assert_eq!(median(&[3]), 3);
    }

    #[test]
    fn fairness() {
        assert_eq!(jain(&[2.0, 2.0, 2.0]), 1.0);
        assert_eq!(jain(&[1.0, 0.0]), 0.5);
        // One of eight gets a fifth less.
        let index = jain(&[0.8, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert!((0.99..1.0).contains(&index), "{index}");
    }
}
