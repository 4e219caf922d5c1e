// SPDX-License-Identifier: GPL-2.0

//! The policy of the original IOcm's monitor, to compare with.
//!
//! Written anew after what its published sources do (dynamic-io-manager of the MIKELANGELO project:
//! throughput_policy.py, io_workers_manager.py, create_configuration_file.py), with the thresholds
//! of its configuration. Among what it does on purpose or not:
//!
//! - Nothing is changed in the first 100 intervals, nor in 100 after a change that paid.
//! - A change has to be asked for in each of 50 intervals. The share that was meant to be enough is
//!   60 %, but the division is one of integers, and so anything below all of them is 0.
//! - After a change 60 intervals pass in which nothing is decided. If the bytes for each cycle, on
//!   the average of the last 50, are not 0.05 more than before, the change is taken back, and not
//!   tried again for 100 intervals, 1,000 the second time, then 5,000.
//! - To stop sharing, or to use fewer cores, cannot make more bytes for each cycle: both are almost
//!   always taken back.
//!
//! Its rule for large packets is not used by that version of the manager, and is left out. Its cycles
//! are those of a clock of 2.2 GHz.

use super::observation::{Observation, Role};
use super::placement::choose_cpus;
use super::plan::{Action, Plan, Target};
use super::Policy;
use std::collections::BTreeMap;
use vhost_iocm_engine::engine::abi::WorkerId;

/// Cores that are idle below this add one; for each number of cores.
const ADD: [f64; 5] = [0.5, 0.12, 0.12, 0.12, 0.12];
/// More cores than this that are idle let one be removed.
const REMOVE: [f64; 5] = [0.0, 0.8, 0.8, 0.8, 1.0];
/// The most cores.
const CORES_MAX: usize = 4;
/// Guests want a core back if fewer of theirs are idle.
const GUESTS_WANT: f64 = 0.05;
/// Guests can give one if more of theirs are idle.
const GUESTS_GIVE: f64 = 1.0;
/// Intervals that are remembered.
const HISTORY: usize = 50;
/// Intervals after a change that do not count.
const GRACE: u32 = 10;
/// Bytes for each cycle that a change has to bring.
const GAIN: f64 = 0.05;
const PENALTY: u64 = 100;
const PENALTY_FACTOR: u64 = 10;
const PENALTY_MAX: u64 = 5000;
const CYCLES_PER_NANOSECOND: f64 = 2.2;

/// A change of which the policy may think.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Move {
    Start,
    Stop,
    Add,
    Remove,
}

/// A change that failed.
#[derive(Clone, Copy, Debug)]
struct Failure {
    penalty: u64,
    epoch: u64,
}

/// A change that is being judged.
#[derive(Clone, Debug)]
struct Judging {
    change: Move,
    /// The number of cores before.
    cores: usize,
    before: f64,
    intervals: u32,
    sum: f64,
}

/// The original's policy.
#[derive(Clone, Debug, Default)]
pub struct Original {
    epoch: u64,
    last_good: u64,
    history: Vec<f64>,
    /// In which of the last intervals each change was asked for.
    requested: BTreeMap<Move, Vec<bool>>,
    failed: BTreeMap<Move, Failure>,
    judging: Option<Judging>,
}

impl Policy for Original {
    fn decide(&mut self, observation: &Observation) -> Plan {
        let cycles = observation.interval.max(1) as f64 * CYCLES_PER_NANOSECOND;
        let bytes: u64 = observation
            .devices
            .iter()
            .flat_map(|device| device.virtqueues())
            .map(|virtqueue| virtqueue.bytes)
            .sum();
        let ratio = bytes as f64 / cycles;
        if let Some(judging) = self.judging.take() {
            return self.judge(judging, ratio, observation);
        }
        self.epoch += 1;
        self.history.push(ratio);
        if self.history.len() > HISTORY {
            self.history.remove(0);
        }
        self.choose(observation)
    }
}

impl Original {
    /// Which change is made.
    fn choose(&mut self, observation: &Observation) -> Plan {
        let interval = observation.interval.max(1) as f64;
        let cores = observation.io_cores() as usize;
        let work: u64 = observation
            .devices
            .iter()
            .map(super::observation::Device::served)
            .sum();
        let work = work as f64 / interval;
        let mut wished = Vec::new();
        let mut count = cores;
        if cores == 0 {
            if work > 1.0 - ADD[0] {
                wished.push(Move::Start);
                count = ((work + 0.9) as usize).clamp(1, CORES_MAX);
            }
        } else {
            let idle = (cores as f64 - work).max(0.0);
            let guests: f64 = observation
                .guest_cores()
                .map(|core| 1.0 - core.busy as f64 / interval)
                .sum();
            let index = cores.min(CORES_MAX);
            if cores == 1 && 1.0 - idle < 1.0 - REMOVE[1] {
                wished.push(Move::Stop);
                count = 0;
            } else if idle < ADD[index] && guests > GUESTS_GIVE && cores < CORES_MAX {
                wished.push(Move::Add);
                count = cores + 1;
            } else if guests < GUESTS_WANT && idle > REMOVE[index] && cores > 1 {
                wished.push(Move::Remove);
                count = cores - 1;
            }
        }
        let mut plan = Plan::default();
        for (change, asked) in &mut self.requested {
            if !wished.contains(change) {
                asked.push(false);
            }
        }
        for change in wished {
            if self.may(change) && plan.is_empty() {
                let before = self.history.iter().sum::<f64>() / self.history.len().max(1) as f64;
                plan = set_cores(observation, count, "as the original's thresholds have it");
                // Several cores at once are never regretted.
                if !(change == Move::Start && count > 1) {
                    self.judging = Some(Judging {
                        change,
                        cores,
                        before,
                        intervals: 0,
                        sum: 0.0,
                    });
                } else {
                    self.requested.clear();
                }
            }
        }
        for asked in self.requested.values_mut() {
            let excess = asked.len().saturating_sub(HISTORY);
            asked.drain(..excess);
        }
        plan
    }

    /// Whether a change that is asked for may be made.
    fn may(&mut self, change: Move) -> bool {
        if self.epoch < self.last_good + 2 * HISTORY as u64 {
            return false;
        }
        let asked = self.requested.entry(change).or_default();
        let enough = asked.len() >= HISTORY && asked.iter().all(|asked| *asked);
        asked.push(true);
        enough
            && self
                .failed
                .get(&change)
                .is_none_or(|failure| self.epoch > failure.epoch + failure.penalty)
    }

    fn judge(&mut self, mut judging: Judging, ratio: f64, observation: &Observation) -> Plan {
        judging.intervals += 1;
        if judging.intervals > GRACE {
            judging.sum += ratio;
        }
        if judging.intervals < GRACE + HISTORY as u32 {
            self.judging = Some(judging);
            return Plan::default();
        }
        if judging.before + GAIN < judging.sum / HISTORY as f64 {
            self.last_good = self.epoch;
            self.requested.clear();
            self.failed.clear();
            return Plan::default();
        }
        let penalty = self.failed.get(&judging.change).map_or(PENALTY, |failure| {
            (failure.penalty * PENALTY_FACTOR).min(PENALTY_MAX)
        });
        let failure = Failure {
            penalty,
            epoch: self.epoch,
        };
        self.failed.insert(judging.change, failure);
        set_cores(observation, judging.cores, "the change is regretted")
    }
}

/// Plans so many cores, with the devices divided among them by turns.
fn set_cores(observation: &Observation, cores: usize, reason: &str) -> Plan {
    let mut plan = Plan::default();
    let workers: Vec<WorkerId> = observation.io_workers().map(|worker| worker.id).collect();
    let mut targets: Vec<Target> = workers.iter().copied().map(Target::Worker).collect();
    targets.truncate(cores);
    if cores > targets.len() {
        let limit = observation.guest_cores().count().saturating_sub(1);
        let wanted = (cores - targets.len()).min(limit);
        for cpu in choose_cpus(observation, wanted) {
            plan.push(Action::AddCore { cpu }, reason);
            targets.push(Target::NewOn(cpu));
        }
    }
    for (index, device) in observation.devices.iter().enumerate() {
        let target = index
            .checked_rem(targets.len())
            .map_or(Target::Home, |place| targets[place]);
        let action = Action::MoveDevice {
            device: device.id,
            target,
        };
        plan.push(action, reason);
    }
    for worker in workers.into_iter().skip(cores) {
        let is_io = observation
            .cores
            .iter()
            .any(|core| core.role == Role::Io(worker));
        if is_io {
            plan.push(Action::GiveCoreBack { worker }, reason);
        }
    }
    plan
}
