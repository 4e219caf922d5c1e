// SPDX-License-Identifier: GPL-2.0

//! What the monitor has changed on the host, so that it can be undone whenever the monitor ends.

use super::ground::Found;
use crate::host::topology::{cpu_list, format_cpus, CpuSet};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Who was moved off CPUs, or onto them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// The cgroup of a VM, by its directory below the root of the tree.
    Cgroup(String),
    /// A thread of a VM that has no cgroup of its own.
    Thread {
        /// Its process.
        pid: i32,
        /// Its number.
        tid: i32,
        /// When it was started, since its number is used again: ticks after boot.
        start: u64,
    },
    /// An interrupt of a network card.
    Interrupt(u32),
}

impl Who {
    /// The process of a thread.
    pub fn process(&self) -> Option<i32> {
        match self {
            Self::Thread { pid, .. } => Some(*pid),
            _ => None,
        }
    }
}

/// Where somebody was, and was put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Who.
    pub who: Who,
    /// What was set before the monitor came.
    pub original: String,
    /// The CPUs that this means; they differ from it where an empty list means those of the parent.
    pub allowed: CpuSet,
    /// What the monitor set last, or is about to set.
    pub set: String,
    /// What was set when it did: what is found if the monitor was killed in between.
    pub before: String,
}

impl Place {
    /// Somebody who was found there.
    pub fn new(who: Who, original: String, allowed: CpuSet) -> Self {
        Self {
            set: original.clone(),
            before: original.clone(),
            who,
            original,
            allowed,
        }
    }

    /// Where it is to be while these CPUs are kept for I/O. `None` if there would be no CPU left.
    pub fn wanted(&self, kept: &CpuSet) -> Option<String> {
        let wanted: CpuSet = match self.who {
            // As long as there are such CPUs they handle interrupts as well.
            Who::Interrupt(_) if kept.is_empty() => return Some(self.original.clone()),
            Who::Interrupt(_) => kept.clone(),
            _ if self.allowed.is_disjoint(kept) => return Some(self.original.clone()),
            _ => self.allowed.difference(kept).copied().collect(),
        };
        (!wanted.is_empty()).then(|| format_cpus(&wanted))
    }

    /// Whether it is elsewhere than before the monitor came.
    pub fn is_away(&self) -> bool {
        self.set != self.original
    }

    /// Whether a thread that was not there before is likely to be of this one's making: it has
    /// inherited where the monitor has put this one, and belongs where this one was.
    pub fn made(&self, found: &Found) -> bool {
        let same = self.who.process().is_some() && self.who.process() == found.who.process();
        same && self.is_away() && cpu_list(&self.set) == cpu_list(&found.text)
    }

    /// Whether this is a value that the monitor has set or found.
    pub fn knows(&self, current: &str) -> bool {
        let current = cpu_list(current);
        [&self.original, &self.set, &self.before]
            .into_iter()
            .any(|known| cpu_list(known) == current)
    }
}

/// How far a core is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Guests are leaving it, and the worker is being made.
    Taking,
    /// It has its worker.
    Taken,
    /// The worker is going, and guests come back.
    Returning,
}

/// A CPU that is kept for I/O.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Core {
    /// How far it is.
    pub phase: Phase,
    /// Its worker, once it is known.
    pub worker: Option<u32>,
    /// That worker's thread, by which it is told from another one of the same number after the
    /// module was loaded again; 0 while it is not known.
    pub pid: i32,
    /// Whether the worker was there before, parked, and is to be parked again.
    pub was_parked: bool,
    /// The workers that were there before. One that is bound to the CPU and not among them was
    /// created by the monitor, which died before it could note its number.
    pub others: Vec<u32>,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// CPUs that are kept for I/O.
    pub cores: BTreeMap<u32, Core>,
    /// Who was moved.
    pub places: Vec<Place>,
}

impl Journal {
    /// The CPUs on which guests shall not run.
    pub fn kept(&self) -> CpuSet {
        let kept = self
            .cores
            .iter()
            .filter(|(_, core)| core.phase != Phase::Returning);
        kept.map(|(cpu, _)| *cpu).collect()
    }

    /// The CPUs with a worker that the monitor has put there.
    pub fn taken(&self) -> impl Iterator<Item = u32> + '_ {
        let taken = self
            .cores
            .iter()
            .filter(|(_, core)| core.phase == Phase::Taken);
        taken.map(|(cpu, _)| *cpu)
    }
}
