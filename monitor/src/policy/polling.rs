// SPDX-License-Identifier: GPL-2.0

//! What is not polled, although the module would.
//!
//! In mode auto the module polls what has work often and stops what has none, and by itself it does
//! so within microseconds. What it does not know is whether the worker had better things to do:
//! looks that find nothing are no loss while there is time left, and are one when work waits.

use super::observation::{Device, Observation, Place};
use super::plan::{Action, Plan};
use serde::{Deserialize, Serialize};
use vhost_iocm_engine::engine::sched::polling::Mode;

/// The thresholds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Whether anything is decided at all.
    pub enabled: bool,
    /// A worker has no time for vain looks if it serves for more than this part of it.
    pub busy: f64,
    /// A virtqueue is not polled on such a worker if it needs more looks than this for a slice.
    pub looks: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: false,
            busy: 0.9,
            looks: 64,
        }
    }
}

/// Plans the modes of virtqueues. A mode that an operator set to always is left alone.
pub fn adjust(observation: &Observation, settings: &Settings, plan: &mut Plan) {
    if !settings.enabled {
        return;
    }
    let virtqueues = observation.devices.iter().flat_map(Device::virtqueues);
    for virtqueue in virtqueues {
        let Place::Worker(id) = virtqueue.place else {
            continue;
        };
        let Some(worker) = observation.workers.iter().find(|worker| worker.id == id) else {
            continue;
        };
        let share = worker.busy as f64 / worker.total.max(1) as f64;
        let looks = virtqueue.polls_empty / virtqueue.slices.max(1);
        let mode = match virtqueue.poll {
            Mode::Auto if share > settings.busy && looks > settings.looks => Mode::Never,
            // Half of the threshold, so that it does not change to and fro.
            Mode::Never if share < settings.busy / 2.0 => Mode::Auto,
            _ => continue,
        };
        let reason = format!("{id} serves for {share:.2} of its time, {looks} looks for a slice");
        let action = Action::SetPoll {
            virtqueue: virtqueue.id,
            mode,
        };
        plan.push(action, reason);
    }
}
