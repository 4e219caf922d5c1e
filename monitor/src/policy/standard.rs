// SPDX-License-Identifier: GPL-2.0

//! The default policy: how many cores, which devices on which of them, polling and weights.

use super::cores::{self, Cores};
use super::observation::Observation;
use super::placement::{arrange, Mode};
use super::plan::Plan;
use super::polling;
use super::price::Price;
use super::weights::{self, Weights};
use super::Policy;
use serde::{Deserialize, Serialize};

/// What an operator may set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How many cores.
    pub cores: cores::Settings,
    /// How devices are divided among workers.
    pub placement: Mode,
    /// Whether the policy decides what is polled, beyond what the module does by itself.
    pub polling: polling::Settings,
    /// How time is divided among VMs.
    pub weights: weights::Settings,
}

/// The default policy.
#[derive(Clone, Debug, Default)]
pub struct Standard {
    settings: Settings,
    cores: Cores,
    weights: Weights,
}

impl Standard {
    /// Nothing known yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            cores: Cores::new(settings.cores.clone()),
            weights: Weights::new(settings.weights.clone()),
            settings,
        }
    }

    /// What each number of cores would have cost in the interval that was decided about last, from 0
    /// on; nothing if the number was not to be decided about.
    pub fn prices(&self) -> &[Price] {
        self.cores.prices()
    }

    /// Whether it was decided in the last interval how many cores there are to be, and none would
    /// have been cheaper than the `cores` that there are.
    pub fn is_content(&self, cores: u32) -> bool {
        let prices = self.prices();
        let others = prices.iter().map(|price| price.value());
        let cheapest = others.fold(f64::INFINITY, f64::min);
        prices
            .get(cores as usize)
            .is_some_and(|price| price.value() <= cheapest)
    }
}

impl Policy for Standard {
    fn decide(&mut self, observation: &Observation) -> Plan {
        let age = self.settings.cores.age_us.saturating_mul(1000);
        let congested = observation
            .io_workers()
            .any(|worker| worker.pending_average > age);
        let verdict = self.cores.decide(observation);
        let (cores, reason) = match verdict {
            Some(verdict) => (verdict.cores, verdict.reason),
            None => (
                observation.io_cores(),
                "the device has no worker with a core".to_owned(),
            ),
        };
        let mut plan = arrange(
            observation,
            cores,
            self.settings.placement,
            congested,
            &reason,
        );
        polling::adjust(observation, &self.settings.polling, &mut plan);
        self.weights.adjust(observation, &mut plan);
        plan
    }
}
