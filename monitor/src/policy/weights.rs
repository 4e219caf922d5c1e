// SPDX-License-Identifier: GPL-2.0

//! How a worker's time is divided among VMs.
//!
//! The module divides time among devices. A VM with eight devices on a worker would get eight times
//! the share of one with a single device; with this policy it gets what its owner pays for.

use super::observation::{Observation, Place};
use super::plan::{Action, Plan};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What VMs get.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Whether weights are set at all.
    pub enabled: bool,
    /// The weights of VMs, by the process that owns them; those that are not named get 100.
    pub vms: BTreeMap<String, u32>,
}

/// Sets weights.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    settings: Settings,
}

/// The weight of a VM for which none is set, and the bounds of a device's.
const USUAL: u32 = 100;
const BOUNDS: [u32; 2] = [1, 10_000];

impl Weights {
    /// With these settings.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// Plans the weights of devices: that of their VM, divided among those that it has on the same
    /// worker.
    pub fn adjust(&mut self, observation: &Observation, plan: &mut Plan) {
        if !self.settings.enabled {
            return;
        }
        for device in &observation.devices {
            let place @ Some(Place::Worker(_)) = device.place() else {
                continue;
            };
            let count = observation
                .devices
                .iter()
                .filter(|other| other.vm == device.vm && other.place() == place)
                .count() as u32;
            let vm = self.settings.vms.get(&device.vm.to_string());
            let [least, most] = BOUNDS;
            let weight = (vm.copied().unwrap_or(USUAL) / count.max(1)).clamp(least, most);
            if weight != device.weight {
                let action = Action::SetWeight {
                    device: device.id,
                    weight,
                };
                let reason = format!("its VM has {count} devices on the same worker");
                plan.push(action, reason);
            }
        }
    }
}
