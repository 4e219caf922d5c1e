// SPDX-License-Identifier: GPL-2.0

//! Scenarios: a host and what its guests do, as they are written in TOML files.

use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A host and its load.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name, which is that of the file.
    #[serde(default)]
    pub name: String,
    /// What it is about.
    pub description: String,
    /// How long it lasts, in milliseconds.
    pub duration_ms: u64,
    /// The time between two decisions, in milliseconds.
    #[serde(default = "interval")]
    pub interval_ms: u64,
    /// The cores of the host, without those of the host itself.
    pub cores: u32,
    /// The most cores that may be kept for I/O.
    #[serde(default = "cores_max")]
    pub cores_max: u32,
    /// What guests do.
    pub load: Vec<Load>,
}

fn interval() -> u64 {
    10
}

fn cores_max() -> u32 {
    8
}

fn one() -> u32 {
    1
}

fn weight() -> u32 {
    100
}

/// What some VMs do, all of them the same. A request comes through the receive virtqueue, is worked
/// on by the guest, and answered through the transmit virtqueue; each of the three may be missing.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// A name for reports.
    pub name: String,
    /// How many VMs.
    #[serde(default = "one")]
    pub vms: u32,
    /// Devices, which are pairs of virtqueues, of each of them.
    #[serde(default = "one")]
    pub queues: u32,
    /// The weight of the devices.
    #[serde(default = "weight")]
    pub weight: u32,
    /// Bytes that are received for a request; 0: none, the guest begins.
    #[serde(default)]
    pub receive_bytes: u32,
    /// CPU time of the guest for a request, in microseconds: the mean of an exponential
    /// distribution.
    #[serde(default)]
    pub guest_us: f64,
    /// Bytes that are sent for a request; 0: none.
    #[serde(default)]
    pub transmit_bytes: u32,
    /// The time within which 99 % of the requests are to be done, in microseconds.
    pub target_us: f64,
    /// When requests come.
    pub arrival: Arrival,
    /// Threads of each VM that compute all the time.
    #[serde(default)]
    pub compute: f64,
    /// When the first VM is there, in milliseconds.
    #[serde(default)]
    pub from_ms: u64,
    /// When the first VM ends, in milliseconds; 0: never.
    #[serde(default)]
    pub until_ms: u64,
    /// How much later each next VM comes and goes, in milliseconds.
    #[serde(default)]
    pub stagger_ms: u64,
    /// Changes, in the order of their times.
    #[serde(default)]
    pub phase: Vec<Phase>,
}

/// When the requests of a device come.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Arrival {
    /// Whether earlier ones are done or not: a Poisson process.
    Open {
        /// Requests in a second.
        rate: f64,
    },
    /// As `open`, but in bursts: a Poisson process that is switched on and off. The times for
    /// which it is on have a Pareto distribution with shape 1.5, so that their variance is
    /// infinite, as found in network traffic (Willinger and others, 1997).
    Bursts {
        /// Requests in a second while it is on.
        rate: f64,
        /// The mean time for which it is on, in milliseconds.
        on_ms: f64,
        /// The mean time for which it is off, in milliseconds.
        off_ms: f64,
    },
    /// Each client waits for the answer, thinks, and sends the next request.
    Closed {
        /// Clients.
        clients: u32,
        /// The mean of the exponential distribution of the time to think, in microseconds; 0: none.
        #[serde(default)]
        think_us: f64,
    },
}

/// A change of the load.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// When it begins, in milliseconds.
    pub at_ms: u64,
    /// The factor of the rate, or of the number of clients.
    #[serde(default = "factor")]
    pub rate: f64,
    /// The factor of the guest's work for a request.
    #[serde(default = "factor")]
    pub guest: f64,
    /// Threads of each VM that compute all the time, instead of those of the load.
    pub compute: Option<f64>,
}

fn factor() -> f64 {
    1.0
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is no TOML, has unknown keys or numbers without sense.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let mut scenario =
            Self::parse(&text).with_context(|| format!("in the scenario {}", path.display()))?;
        if scenario.name.is_empty() {
            scenario.name = path
                .file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
                .unwrap_or_default();
        }
        Ok(scenario)
    }

    /// Parses a scenario.
    ///
    /// # Errors
    ///
    /// As for [`Scenario::read`].
    pub fn parse(text: &str) -> Result<Self> {
        let scenario: Self = toml::from_str(text)?;
        scenario.check()?;
        Ok(scenario)
    }

    fn check(&self) -> Result<()> {
        ensure!(
            (1..=600_000).contains(&self.duration_ms),
            "duration_ms is not between 1 and 600000"
        );
        ensure!(
            (1..=self.duration_ms).contains(&self.interval_ms),
            "interval_ms is not between 1 and duration_ms"
        );
        ensure!(
            (2..=1024).contains(&self.cores),
            "cores is not between 2 and 1024"
        );
        ensure!(
            self.cores_max < self.cores,
            "cores_max leaves no core for guests"
        );
        let devices: u64 = self
            .load
            .iter()
            .map(|load| u64::from(load.vms) * u64::from(load.queues))
            .sum();
        ensure!(
            (1..=4096).contains(&devices),
            "the scenario has {devices} devices, not 1 to 4096"
        );
        for load in &self.load {
            let (rates, valid) = match load.arrival {
                Arrival::Open { rate } => (vec![rate], true),
                Arrival::Bursts {
                    rate,
                    on_ms,
                    off_ms,
                } => (vec![rate, on_ms, off_ms], on_ms > 0.0 && off_ms > 0.0),
                Arrival::Closed { clients, think_us } => {
                    (vec![think_us], (1..=1_000_000).contains(&clients))
                }
            };
            let numbers = rates
                .into_iter()
                .chain([load.guest_us, load.target_us, load.compute])
                .chain(
                    load.phase
                        .iter()
                        .flat_map(|phase| [phase.rate, phase.guest, phase.compute.unwrap_or(0.0)]),
                );
            let sound = valid
                && load.target_us > 0.0
                && (1..=10_000).contains(&load.weight)
                && numbers
                    .into_iter()
                    .all(|number| number.is_finite() && number >= 0.0);
            ensure!(
                sound,
                "the load {} has a number that is out of range",
                load.name
            );
            ensure!(
                load.receive_bytes > 0 || load.transmit_bytes > 0,
                "the load {} moves nothing",
                load.name
            );
            ensure!(
                load.phase.is_sorted_by_key(|phase| phase.at_ms),
                "the phases of the load {} are not in order",
                load.name
            );
        }
        Ok(())
    }
}
