// SPDX-License-Identifier: GPL-2.0

//! Policies: pure functions from what a host looked like to what is to be done.
//!
//! A policy has no clock, no chance and no file. All that it remembers from one interval to the
//! next is in itself. The daemon and the simulator run the same policies.

pub mod ceiling;
pub mod cores;
pub mod fixed;
pub mod forecast;
pub mod level;
pub mod observation;
pub mod original;
pub mod placement;
pub mod plan;
pub mod polling;
pub mod price;
pub mod regret;
pub mod service;
pub mod standard;
pub mod trend;
pub mod trial;
pub mod weights;

pub use observation::{Core, Device, Limits, Observation, Place, Role, Virtqueue, Worker};
pub use plan::{Action, Plan, Step, Target};

/// Something that decides, once for each interval.
pub trait Policy {
    /// What is to be done after the interval that was observed. A plan that changes nothing is
    /// empty. What was planned need not have happened by the next interval: only the observation
    /// says what is so.
    fn decide(&mut self, observation: &Observation) -> Plan;
}
