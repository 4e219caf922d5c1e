// SPDX-License-Identifier: GPL-2.0

//! Trying a core where it cannot be estimated what it is worth.
//!
//! Guests that use all of their cores may compute, or may do nothing but wait for packets and be
//! woken for them, with threads that serve them waiting for the same cores. A core that is taken
//! from the former is lost, and to the latter it may be worth several. Which it is shows in what is
//! moved: so a core is taken for a while, and given back for as long. What was moved with it is
//! compared with what was moved before and after, so that a load that rises meanwhile does not pass
//! for a gain. The core is kept if packets became more by a greater factor than cores of guests
//! became fewer: each core that guests keep then gets more done than before, even if all that they do
//! takes time for each packet. It stays as long as it moves enough, and is compared again now and then.

/// Intervals of each of the three parts.
const WINDOW: u32 = 10;
/// Intervals after a core that was no gain until one is tried again, at least and at most.
const REST: [u32; 2] = [100, 6400];
/// A core that was a gain may go when fewer packets are moved than this part of what it moved, and fewer than
/// without it.
const LESS: f64 = 0.5;
/// The weight of a new interval in what is moved while it is kept: it may be less for a while.
const NEW: f64 = 0.1;
/// Packets are next to none when they are fewer than this part of those that a core has to move.
const NONE: f64 = 0.1;
/// After so many intervals with next to none a core goes however much it had moved before.
const LULL: u32 = 7;
/// Intervals for which a core is kept until it is compared with none again, the first time, and at most. Guests
/// that waited for packets may compute by then, or leave room for home threads.
const REVIEW: [u32; 2] = [1000, 8000];

/// Packets for each interval since a change.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    intervals: u32,
    packets: f64,
}

impl Window {
    /// The average once the window is over.
    fn add(&mut self, packets: f64) -> Option<f64> {
        self.intervals += 1;
        self.packets += packets;
        (self.intervals >= WINDOW).then(|| self.packets / f64::from(self.intervals))
    }
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// As it was before.
    Before,
    /// A core more, which is tried.
    With { before: f64 },
    /// That core was given back.
    After { before: f64, with: f64 },
    /// It was a gain, and is one while no fewer packets than `least` are moved. What is moved lately,
    /// intervals in a row with next to none, and intervals until it is compared again.
    Kept {
        least: f64,
        packets: f64,
        lull: u32,
        review: u32,
    },
}

/// What there was in an interval.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    /// Cores for I/O.
    pub cores: u32,
    /// Cores that guests had.
    pub guests: u32,
    /// Packets that were moved.
    pub packets: f64,
    /// Whether it is not known what one core more would be worth.
    pub is_unknown: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Nothing is tried: the number of cores is decided by what each costs.
    Nothing,
    /// There is to be another number of cores, for this reason.
    Change(u32, String),
    /// The number of cores stays.
    Stay,
    /// The number of cores is decided by what each costs, but fewer than so many are out of the question.
    NoFewer(u32),
}

/// What is remembered from interval to interval.
#[derive(Clone, Debug)]
pub struct Trial {
    phase: Phase,
    /// Cores for I/O without the one that is tried.
    without: u32,
    window: Window,
    /// Intervals until one may be tried.
    rest: u32,
    /// Intervals to rest if the next one is no gain.
    next_rest: u32,
    /// Intervals to keep it if the next one is.
    next_review: u32,
}

impl Default for Trial {
    fn default() -> Self {
        Self {
            phase: Phase::Before,
            without: 0,
            window: Window::default(),
            rest: 0,
            next_rest: REST[0],
            next_review: REVIEW[0],
        }
    }
}

impl Trial {
    /// Goes on by an interval.
    pub fn step(&mut self, interval: Interval) -> Outcome {
        let Interval {
            cores,
            guests,
            packets,
            is_unknown,
        } = interval;
        self.rest = self.rest.saturating_sub(1);
        let expected = match self.phase {
            Phase::Before => cores,
            Phase::With { .. } | Phase::Kept { .. } => self.without + 1,
            Phase::After { .. } => self.without,
        };
        // Somebody else has changed it, or a limit. More than were a gain are another matter.
        if cores < expected || (cores > expected && !matches!(self.phase, Phase::Kept { .. })) {
            self.begin(Phase::Before);
        }
        match self.phase {
            Phase::Before => {
                if !is_unknown || self.rest > 0 || cores != self.without {
                    self.window = Window::default();
                    self.without = cores;
                }
                if !is_unknown || self.rest > 0 {
                    return Outcome::Nothing;
                }
                let Some(before) = self.window.add(packets) else {
                    return Outcome::Nothing;
                };
                self.begin(Phase::With { before });
                let reason = "guests use all of their cores, so it is tried what one more is worth";
                Outcome::Change(cores + 1, reason.to_owned())
            }
            Phase::With { before } => {
                let Some(with) = self.window.add(packets) else {
                    return Outcome::Stay;
                };
                let reason = told(with, before);
                if is_gain(with, before, guests) {
                    self.begin(Phase::After { before, with });
                    let reason = format!("{reason}, which is compared once more");
                    return Outcome::Change(self.without, reason);
                }
                self.give_up();
                let reason = format!("{reason}, which is not worth the core");
                Outcome::Change(self.without, reason)
            }
            Phase::After { before, with } => {
                let Some(after) = self.window.add(packets) else {
                    return Outcome::Stay;
                };
                let best = before.max(after);
                // The core is among those of guests now.
                if !is_gain(with, best, guests.saturating_sub(1)) {
                    self.give_up();
                    return Outcome::Nothing;
                }
                self.next_rest = REST[0];
                self.begin(Phase::Kept {
                    least: best.min(LESS * with),
                    packets: with,
                    lull: 0,
                    review: self.next_review,
                });
                self.next_review = (2 * self.next_review).min(REVIEW[1]);
                Outcome::Change(self.without + 1, told(with, best))
            }
            Phase::Kept {
                least,
                packets: lately,
                lull,
                review,
            } => {
                let lull = if packets < NONE * least { lull + 1 } else { 0 };
                let packets = lately + NEW * (packets - lately);
                if packets < least || lull >= LULL {
                    self.next_review = REVIEW[0];
                    self.begin(Phase::Before);
                    return Outcome::Nothing;
                }
                // With more cores than that one it is not this one that serves.
                if review == 0 && cores == expected {
                    let (before, with) = (0.0, packets);
                    self.begin(Phase::After { before, with });
                    let reason = "it is compared again what the core is worth";
                    return Outcome::Change(self.without, reason.to_owned());
                }
                self.phase = Phase::Kept {
                    least,
                    packets,
                    lull,
                    review: review.saturating_sub(1),
                };
                Outcome::NoFewer(self.without + 1)
            }
        }
    }

    fn begin(&mut self, phase: Phase) {
        self.phase = phase;
        self.window = Window::default();
    }

    fn give_up(&mut self) {
        self.rest = self.next_rest;
        self.next_rest = (2 * self.next_rest).min(REST[1]);
        self.next_review = REVIEW[0];
        self.begin(Phase::Before);
    }
}

/// Whether packets became more by a greater factor than the guests' cores, of which so many are
/// left, became fewer.
fn is_gain(with: f64, without: f64, left: u32) -> bool {
    with * f64::from(left) > without * f64::from(left + 1)
}

fn told(with: f64, without: f64) -> String {
    format!("one core more moved {with:.0} packets in an interval instead of {without:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host with eight cores, the changes that were made there, and the interval of each.
    #[derive(Default)]
    struct Host {
        trial: Trial,
        cores: u32,
        interval: u32,
        changes: Vec<(u32, u32)>,
    }

    impl Host {
        /// Goes on for so many intervals, in each of which so many packets are moved with this number
        /// of cores. Returns the last outcome.
        fn go_on(&mut self, intervals: u32, packets: impl Fn(u32) -> f64) -> Outcome {
            let mut outcome = Outcome::Nothing;
            for _ in 0..intervals {
                self.interval += 1;
                let cores = self.cores;
                outcome = self.trial.step(Interval {
                    cores,
                    guests: 8 - cores,
                    packets: packets(cores),
                    is_unknown: cores == 0,
                });
                if let Outcome::Change(cores, reason) = &outcome {
                    assert!(!reason.is_empty());
                    self.cores = *cores;
                    self.changes.push((self.interval, *cores));
                }
            }
            outcome
        }

        fn cores(&self) -> Vec<u32> {
            self.changes.iter().map(|(_, cores)| *cores).collect()
        }
    }

    #[test]
    fn a_core_that_is_a_gain_is_compared_twice_and_kept() {
        let mut host = Host::default();
        let packets = |cores| if cores > 0 { 116.0 } else { 100.0 };
        assert_eq!(host.go_on(200, packets), Outcome::NoFewer(1));
        assert_eq!(host.changes, [(10, 1), (20, 0), (30, 1)]);
        // As long as there is about as much to do, with intervals in which there is nothing.
        assert_eq!(host.go_on(5, |_| 0.0), Outcome::NoFewer(1));
        assert_eq!(host.go_on(50, |_| 59.0), Outcome::NoFewer(1));
        assert_eq!(host.go_on(50, |_| 57.0), Outcome::Nothing);
        // What was worth it once is tried again at once.
        host.cores = 0;
        host.go_on(10, packets);
        assert_eq!(host.cores, 1);
    }

    #[test]
    fn a_core_goes_seven_intervals_after_the_last_packet_whatever_it_moved() {
        for with in [116.0, 200.0, 300.0, 1000.0, 1e6] {
            let mut host = Host::default();
            host.go_on(40, |cores| if cores > 0 { with } else { 100.0 });
            assert_eq!(host.go_on(6, |_| 0.0), Outcome::NoFewer(1), "{with}");
            assert_eq!(host.go_on(1, |_| 0.0), Outcome::Nothing, "{with}");
        }
    }

    #[test]
    fn a_core_outlasts_lulls_that_end_in_time() {
        let mut host = Host::default();
        host.go_on(40, |cores| if cores > 0 { 300.0 } else { 100.0 });
        for _ in 0..20 {
            assert_eq!(host.go_on(6, |_| 1.0), Outcome::NoFewer(1));
            assert_eq!(host.go_on(6, |_| 500.0), Outcome::NoFewer(1));
        }
    }

    #[test]
    fn a_core_that_still_moves_more_than_there_was_is_kept() {
        let mut host = Host::default();
        host.go_on(40, |cores| if cores > 0 { 300.0 } else { 100.0 });
        assert_eq!(host.cores(), [1, 0, 1]);
        assert_eq!(host.go_on(200, |_| 101.0), Outcome::NoFewer(1));
        assert_eq!(host.go_on(200, |_| 99.0), Outcome::Nothing);
    }

    #[test]
    fn a_core_that_is_kept_is_compared_again_more_and_more_seldom() {
        let mut host = Host::default();
        let packets = |cores| if cores > 0 { 300.0 } else { 100.0 };
        host.go_on(100_000, packets);
        assert_eq!(host.changes[..3], [(10, 1), (20, 0), (30, 1)]);
        let again: Vec<u32> = host.changes[3..].iter().map(|(at, _)| *at).collect();
        let kept: Vec<u32> = std::iter::once(30)
            .chain(again.iter().skip(1).step_by(2).copied())
            .zip(again.iter().step_by(2))
            .map(|(from, to)| to - from - 1)
            .collect();
        assert_eq!(kept[..5], [1000, 2000, 4000, 8000, 8000]);
        assert!(again
            .chunks_exact(2)
            .all(|pair| pair[1] - pair[0] == WINDOW));
        // Where it is no gain any more it is given back.
        host.go_on(10_000, |_| 300.0);
        assert_eq!(host.cores, 0);
    }

    #[test]
    fn a_core_that_is_not_worth_what_guests_lose_is_tried_more_and_more_seldom() {
        let mut host = Host::default();
        // Seven cores of eight would have to move 114.3.
        let packets = |cores| if cores > 0 { 114.0 } else { 100.0 };
        host.go_on(700, packets);
        let expected = [(10, 1), (20, 0), (129, 1), (139, 0), (348, 1), (358, 0)];
        assert_eq!(host.changes, expected);
        host.go_on(100_000, packets);
        let last = host.changes[host.changes.len() - 1].0;
        let before = host.changes[host.changes.len() - 3].0;
        // The interval in which it is given up is one of those of rest.
        assert_eq!(last - before, REST[1] - 1 + 2 * WINDOW);
    }

    #[test]
    fn a_load_that_rises_is_no_gain() {
        let mut host = Host::default();
        host.go_on(10, |_| 100.0);
        host.go_on(100, |_| 200.0);
        assert_eq!(host.cores(), [1, 0]);
    }

    #[test]
    fn nothing_is_tried_where_it_is_known() {
        let mut trial = Trial::default();
        for interval in 0..100 {
            // Nine intervals in a row are not enough.
            let outcome = trial.step(Interval {
                cores: 0,
                guests: 8,
                packets: 100.0,
                is_unknown: interval % 10 != 0,
            });
            assert_eq!(outcome, Outcome::Nothing);
        }
    }

    #[test]
    fn whoever_changes_the_number_meanwhile_ends_it() {
        for (intervals, cores) in [(15, 0), (15, 2), (25, 1), (35, 0)] {
            let mut host = Host::default();
            host.go_on(intervals, |cores| f64::from(100 + 100 * cores));
            let changes = host.changes.len();
            host.cores = cores;
            host.go_on(9, |_| 100.0);
            assert_eq!(host.changes.len(), changes, "{intervals} {cores}");
        }
    }

    #[test]
    fn cores_beyond_the_one_that_was_a_gain_may_go() {
        let mut host = Host::default();
        let packets = |cores| if cores > 0 { 200.0 } else { 100.0 };
        host.go_on(40, packets);
        host.cores = 2;
        assert_eq!(host.go_on(10, packets), Outcome::NoFewer(1));
        host.cores = 1;
        assert_eq!(host.go_on(10, packets), Outcome::NoFewer(1));
    }
}
