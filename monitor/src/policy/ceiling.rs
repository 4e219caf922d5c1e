// SPDX-License-Identifier: GPL-2.0

//! How busy workers may be expected to become, by what was seen.
//!
//! What is expected of a number of cores is off by some percent. With a load that they could just about
//! serve, work waits although it was expected that they would do, and would wait again each time that the
//! same was expected. So the load for which a number of cores was too few is remembered, and they are not
//! chosen for as much again. This is forgotten, since a load's nature may change, and a burst may have
//! been the cause: the first time soon, and after four times as long each time that it turns out to
//! be true still.

/// Where it is remembered that cores were too few: with a smaller load for the busiest worker it is
/// not the expectation that was wrong, but the load that was uneven.
const NEAR: f64 = 0.85;
/// The same load is expected to be this part larger or smaller in other intervals.
const TOLERANCE: f64 = 0.03;
/// Intervals until it is forgotten, at first and at most.
const REMEMBERED: [u32; 2] = [10, 10_240];
/// By what factor this is longer if work waits again.
const LONGER: u32 = 4;
/// Intervals after which it is longer no more if work has not waited again by then.
const FORGIVE: u32 = 200;

/// What is known of a number of cores.
#[derive(Clone, Copy, Debug)]
struct Ceiling {
    /// The load of the busiest worker that is too much.
    load: f64,
    /// Intervals until it is forgotten; 0 if it is.
    left: u32,
    /// For how many it was remembered the last time.
    remembered: u32,
    /// Intervals since it was forgotten.
    since: u32,
}

/// What is remembered, by the number of cores.
#[derive(Clone, Debug, Default)]
pub struct Ceilings(Vec<Option<Ceiling>>);

impl Ceilings {
    /// Goes on by an interval.
    pub fn step(&mut self) {
        for slot in &mut self.0 {
            let Some(ceiling) = slot else { continue };
            if ceiling.left > 0 {
                ceiling.left -= 1;
            } else if ceiling.since < FORGIVE {
                ceiling.since += 1;
            } else {
                *slot = None;
            }
        }
    }

    /// Learns that so many cores were too few when this was expected to be the load of the busiest
    /// worker, in parts of its time.
    pub fn learn(&mut self, cores: u32, load: f64) {
        if load < NEAR {
            return;
        }
        let index = cores as usize;
        if self.0.len() <= index {
            self.0.resize(index + 1, None);
        }
        let load = load * (1.0 - TOLERANCE);
        self.0[index] = Some(match self.0[index] {
            // Work that goes on waiting tells nothing new.
            Some(known) if known.left > 0 => Ceiling {
                load: known.load.min(load),
                ..known
            },
            known => {
                let remembered = known.map_or(REMEMBERED[0], |known| {
                    known.remembered.saturating_mul(LONGER).min(REMEMBERED[1])
                });
                Ceiling {
                    load,
                    left: remembered,
                    remembered,
                    since: 0,
                }
            }
        });
    }

    /// The load from which on so many cores are too few, in parts of a worker's time; infinity if
    /// there is none that is known.
    pub fn of(&self, cores: u32) -> f64 {
        match self.0.get(cores as usize) {
            Some(Some(ceiling)) if ceiling.left > 0 => ceiling.load,
            _ => f64::INFINITY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Intervals until nothing is known of a core any more.
    fn wait(ceilings: &mut Ceilings) -> u32 {
        let mut intervals = 0;
        while ceilings.of(1).is_finite() {
            ceilings.step();
            intervals += 1;
        }
        intervals
    }

    #[test]
    fn what_was_too_much_is_remembered_for_its_number_of_cores() {
        let mut ceilings = Ceilings::default();
        ceilings.learn(1, 0.95);
        assert!((0.90..0.95).contains(&ceilings.of(1)));
        assert_eq!(ceilings.of(2), f64::INFINITY);
        ceilings.learn(2, 0.5);
        assert_eq!(ceilings.of(2), f64::INFINITY, "it was uneven");
    }

    #[test]
    fn what_is_still_true_is_remembered_for_longer() {
        let mut ceilings = Ceilings::default();
        let mut expected = REMEMBERED[0];
        for _ in 0..10 {
            ceilings.learn(1, 0.95);
            ceilings.learn(1, 0.94);
            assert_eq!(wait(&mut ceilings), expected);
            expected = (expected * LONGER).min(REMEMBERED[1]);
        }
    }

    #[test]
    fn what_was_not_seen_again_is_as_new() {
        let mut ceilings = Ceilings::default();
        ceilings.learn(1, 0.95);
        wait(&mut ceilings);
        for _ in 0..=FORGIVE {
            ceilings.step();
        }
        ceilings.learn(1, 0.95);
        assert_eq!(wait(&mut ceilings), REMEMBERED[0]);
    }
}
