// SPDX-License-Identifier: GPL-2.0
//! Devices that always have something to transmit, each of a process of its own, all on one worker.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::control::Control;
use crate::counters::Counters;
use crate::cpu::{self, Left};
use crate::process::{Owner, Packets};
use crate::thread::Thread;
use crate::wait;
use anyhow::{ensure, Context, Result};

/// How long what the devices get is measured.
const TIME: Duration = Duration::from_secs(5);
/// How long they run before, until the rings are full and everything is warm.
const WARM_UP: Duration = Duration::from_secs(1);
/// Of a worker that devices saturate, this much of the time is busy. Less shows that the drivers of this
/// machine are too slow for the test, not that the worker is unfair.
const SATURATED: f64 = 0.95;

/// A worker and the devices on it.
pub struct Load<'a> {
    control: &'a Control,
    /// The worker.
    pub worker: String,
    /// The devices, in the order in which they were made.
    pub devices: Vec<String>,
    owners: Vec<Owner>,
    _left: Left,
}

/// How long the devices were served, and how long they were watched.
pub struct Served {
    /// Seconds of each device.
    pub devices: Vec<f64>,
    /// Seconds in which the worker was busy, as it says itself.
    pub busy: f64,
    /// Seconds for which the worker's thread ran, as the scheduler says.
    pub ran: f64,
    /// Seconds that passed.
    pub elapsed: f64,
}

impl<'a> Load<'a> {
    /// Makes devices of this node, which are idle.
    pub fn new(
        node: &Path,
        control: &'a Control,
        devices: usize,
        packets: Packets,
    ) -> Result<Self> {
        let worker = control.side_core()?;
        let mut load = Self {
            control,
            worker,
            devices: Vec::new(),
            owners: Vec::new(),
            // The drivers run beside the worker.
            _left: cpu::leave(cpu::count()? - 1)?,
        };
        for number in 0..devices {
            let tap = format!("load{number}");
            load.owners.push(Owner::saturate(node, &tap, packets)?);
            load.devices.push(control.device_of(&tap)?);
        }
        Ok(load)
    }

    /// Makes all devices busy.
    pub fn begin(&self) -> Result<()> {
        for owner in &self.owners {
            owner.go_on()?;
            owner.expect_done()?;
        }
        let busy = |device: &String| -> Result<bool> {
            Ok(Counters::of_device(self.control, device)?.get("handled_packets")? > 0)
        };
        wait::until("all devices to be served", || {
            let served: Vec<_> = self.devices.iter().map(busy).collect::<Result<_>>()?;
            Ok(served.into_iter().all(|served| served))
        })?;
        std::thread::sleep(WARM_UP);
        Ok(())
    }

    /// Sets an attribute of a device.
    pub fn set(&self, device: usize, attribute: &str, value: u64) -> Result<()> {
        let file = format!("dev/{}/{attribute}", self.devices[device]);
        self.control.set(&file, &value.to_string())
    }

    /// Watches what the devices get.
    pub fn measure(&self) -> Result<Served> {
        let pid = format!("worker/{}/pid", self.worker);
        let thread = Thread::parse(&self.control.read_line(&pid)?)?;
        let look = || -> Result<(Vec<Counters>, Counters, Duration)> {
            let devices = self.devices.iter();
            Ok((
                devices
                    .map(|device| Counters::of_device(self.control, device))
                    .collect::<Result<_>>()?,
                Counters::of_worker(self.control, &self.worker)?,
                thread.runtime()?,
            ))
        };
        let (start, before) = (Instant::now(), look()?);
        std::thread::sleep(TIME);
        let (elapsed, after) = (start.elapsed(), look()?);
        let seconds = |now: &Counters, before: &Counters, name| -> Result<f64> {
            Ok(now.since(before).get(name)? as f64 / 1e9)
        };
        let devices = after.0.iter().zip(&before.0);
        Ok(Served {
            devices: devices
                .map(|(now, before)| seconds(now, before, "served_ns"))
                .collect::<Result<_>>()?,
            busy: seconds(&after.1, &before.1, "busy_ns")?,
            ran: (after.2 - before.2).as_secs_f64(),
            elapsed: elapsed.as_secs_f64(),
        })
    }

    /// Watches what the devices get of a worker that never rests.
    pub fn measure_saturated(&self) -> Result<Served> {
        let served = self.measure()?;
        ensure!(
            served.busy >= SATURATED * served.elapsed,
            "the devices do not saturate the worker: it was busy {:.1} % of the time",
            100.0 * served.busy / served.elapsed
        );
        Ok(served)
    }

    /// Ends everything.
    pub fn end(self) -> Result<()> {
        for owner in self.owners {
            owner.release().context("end a driver")?;
        }
        self.control.restore().map(drop)
    }
}

impl Served {
    /// Of what all devices got, what each did.
    pub fn shares(&self) -> Vec<f64> {
        let sum: f64 = self.devices.iter().sum();
        self.devices.iter().map(|time| time / sum).collect()
    }
}
