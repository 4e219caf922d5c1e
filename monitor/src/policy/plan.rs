// SPDX-License-Identifier: GPL-2.0

//! What a policy wants to be done.

use std::fmt;
use vhost_iocm_engine::engine::abi::{DeviceId, VirtqueueId, WorkerId};
use vhost_iocm_engine::engine::sched::polling::Mode;

/// Actions in the order in which they are to be done. A plan that is carried out only in part, from
/// the beginning, leaves every device served.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The actions.
    pub steps: Vec<Step>,
}

/// An action, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What is to be done.
    pub action: Action,
    /// Why, as a sentence without its full stop, with the numbers that led to it.
    pub reason: String,
}

/// Something that is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Keep a CPU for I/O: guests leave it, and a worker is created there, or the one that is
    /// parked there is woken.
    AddCore {
        /// The CPU.
        cpu: u32,
    },
    /// Park or remove a worker and give its CPU back to guests. Earlier steps of the plan have
    /// taken everything from it that it served.
    GiveCoreBack {
        /// The worker.
        worker: WorkerId,
    },
    /// Let another one serve all virtqueues of a device.
    MoveDevice {
        /// The device.
        device: DeviceId,
        /// Who serves it from now on.
        target: Target,
    },
    /// Let another one serve a single virtqueue.
    MoveVirtqueue {
        /// The virtqueue.
        virtqueue: VirtqueueId,
        /// Who serves it from now on.
        target: Target,
    },
    /// Set whether a virtqueue is polled.
    SetPoll {
        /// The virtqueue.
        virtqueue: VirtqueueId,
        /// The mode.
        mode: Mode,
    },
    /// Set a device's share of its workers' time.
    SetWeight {
        /// The device.
        device: DeviceId,
        /// The weight, from 1 to 10,000; 100 is usual.
        weight: u32,
    },
}

/// Where a device or virtqueue goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A worker that is there.
    Worker(WorkerId),
    /// The worker on a CPU for which an earlier step of the plan is [`Action::AddCore`].
    NewOn(u32),
    /// The device's home thread.
    Home,
}

impl Plan {
    /// Appends an action.
    pub fn push(&mut self, action: Action, reason: impl Into<String>) {
        self.steps.push(Step {
            action,
            reason: reason.into(),
        });
    }

    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// How many cores are added and given back.
    pub fn core_changes(&self) -> usize {
        self.steps
            .iter()
            .filter(|step| {
                matches!(
                    step.action,
                    Action::AddCore { .. } | Action::GiveCoreBack { .. }
                )
            })
            .count()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker(worker) => write!(f, "{worker}"),
            Self::NewOn(cpu) => write!(f, "the new worker on CPU {cpu}"),
            Self::Home => write!(f, "its home thread"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddCore { cpu } => write!(f, "keep CPU {cpu} for I/O"),
            Self::GiveCoreBack { worker } => write!(f, "give the CPU of {worker} back"),
            Self::MoveDevice { device, target } => write!(f, "move {device} to {target}"),
            Self::MoveVirtqueue { virtqueue, target } => write!(f, "move {virtqueue} to {target}"),
            Self::SetPoll { virtqueue, mode } => write!(f, "set poll of {virtqueue} to {mode}"),
            Self::SetWeight { device, weight } => {
                write!(f, "set the weight of {device} to {weight}")
            }
        }
    }
}
