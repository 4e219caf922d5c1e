// SPDX-License-Identifier: GPL-2.0

//! Which worker a new device gets.

use super::load::LOAD_MAX;
use crate::engine::abi::WorkerId;

/// How the worker of a new device is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// It is the default worker.
    #[default]
    Default,
    /// The least loaded one of all workers that are not locked.
    LeastLoaded,
    /// The least loaded one of those of a group.
    LeastLoadedOf(u32),
}

impl Rule {
    /// Whether a worker of `group` is one to choose from.
    pub fn considers(self, group: u32) -> bool {
        match self {
            Self::Default => false,
            Self::LeastLoaded => true,
            Self::LeastLoadedOf(wanted) => group == wanted,
        }
    }
}

/// A worker that may be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// The worker.
    pub worker: WorkerId,
    /// Its load in parts per thousand.
    pub load: u32,
    /// The average age of its work when it is served, in nanoseconds.
    pub pending: u64,
    /// Virtqueues that it serves, idle ones included.
    pub virtqueues: u32,
}

/// Loads that differ by less than this, in parts per thousand, count as the same.
const STEP: u32 = 50;

impl Candidate {
    /// What is compared, in this order. Loads are compared in steps: a worker with many devices
    /// that happen to rest must not be preferred to one with a single device that does next to
    /// nothing. If workers have no time left, the age of what waits tells them apart, by powers of
    /// two.
    fn key(&self) -> (u32, u32, u32, WorkerId) {
        let step = self.load.min(LOAD_MAX - 1) / STEP;
        let pending = if step == (LOAD_MAX - 1) / STEP {
            self.pending.max(1).ilog2()
        } else {
            0
        };
        (step, pending, self.virtqueues, self.worker)
    }
}

/// The least loaded worker: the one with the smallest load; among equals the one with the fewest
/// virtqueues; among these the one with the lowest number.
pub fn least_loaded(candidates: impl IntoIterator<Item = Candidate>) -> Option<WorkerId> {
    candidates
        .into_iter()
        .min_by_key(Candidate::key)
        .map(|candidate| candidate.worker)
}
