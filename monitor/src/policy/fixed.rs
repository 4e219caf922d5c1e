// SPDX-License-Identifier: GPL-2.0

//! A fixed number of cores, which an operator has chosen; devices are balanced.

use super::observation::Observation;
use super::placement::{arrange, Mode};
use super::plan::Plan;
use super::Policy;

/// Keeps so many cores.
#[derive(Clone, Debug)]
pub struct Fixed {
    /// How many.
    pub cores: u32,
}

impl Policy for Fixed {
    fn decide(&mut self, observation: &Observation) -> Plan {
        let reason = format!("{} cores are wanted", self.cores);
        arrange(observation, self.cores, Mode::Spread, false, &reason)
    }
}
