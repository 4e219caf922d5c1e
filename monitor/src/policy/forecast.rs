// SPDX-License-Identifier: GPL-2.0

//! What the load of an interval would cost with another number of cores.

use super::observation::{Device, Observation, Place};
use super::service::{Counts, Service};
use serde::{Deserialize, Serialize};
use vhost_iocm_engine::engine::abi::DeviceId;

/// What is assumed of the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Assumptions {
    /// What a guest's notification costs it, in nanoseconds.
    pub notification_ns: u64,
    /// The time from a notification until a home thread runs, in nanoseconds.
    pub wake_ns: u64,
    /// A virtqueue with more packets in a second than this is polled by a worker.
    pub poll_rate: u64,
}

impl Default for Assumptions {
    fn default() -> Self {
        Self {
            notification_ns: 1400,
            wake_ns: 8000,
            poll_rate: 20_000,
        }
    }
}

/// The virtqueue for which the backend notifies and not the guest.
const RECEIVE: u32 = 0;
/// Works of a home thread in a row that are looked at.
const WORKS_MAX: usize = 32;

/// What a device wants, and what it took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand {
    /// Counts of a nanosecond; the wake-ups are those of home threads.
    pub counts: Counts,
    /// The part of the packets that its guest notifies of.
    pub transmitted: f64,
    /// Packets of virtqueues that are too slow to be polled, of these.
    pub slow: f64,
    /// Whether there are virtqueues that are not.
    pub is_fast: bool,
    /// Virtqueues that had packets.
    pub virtqueues: f64,
    /// What serving took, in cores.
    pub served: f64,
    /// Notifications of the guest, of a nanosecond.
    pub notifications: f64,
}

impl Demand {
    /// What was seen of a device.
    pub fn of(device: &Device, interval: u64, assumptions: &Assumptions) -> Self {
        let interval = interval.max(1) as f64;
        let mut demand = Self::default();
        let mut transmitted = 0.0;
        for virtqueue in device.virtqueues() {
            let packets = virtqueue.packets as f64 / interval;
            let is_fast = packets * 1e9 >= assumptions.poll_rate as f64;
            demand.is_fast |= is_fast && virtqueue.packets > 0;
            let wakes = match virtqueue.place {
                Place::Home => virtqueue.notifications as f64 / interval,
                Place::Worker(_) => 0.0,
            };
            let kilobytes = virtqueue.bytes as f64 / 1024.0 / interval;
            let slices = virtqueue.slices as f64 / interval;
            for (count, more) in demand
                .counts
                .iter_mut()
                .zip([packets, kilobytes, slices, wakes])
            {
                *count += more;
            }
            demand.served += virtqueue.served as f64 / interval;
            demand.virtqueues += f64::from(u8::from(virtqueue.packets > 0));
            if virtqueue.id.index != RECEIVE {
                demand.notifications += virtqueue.notifications as f64 / interval;
                transmitted += packets;
                if !is_fast {
                    demand.slow += packets;
                }
            }
        }
        demand.transmitted = transmitted / demand.counts[0].max(1e-12);
        demand
    }

    /// What its packets take, without slices and wake-ups, in cores.
    pub fn moving(&self, service: &Service) -> f64 {
        let [packet, kilobyte, ..] = service.parts();
        self.counts[0] * packet + self.counts[1] * kilobyte
    }

    /// What a home thread takes, and what the guest's notifications do, in cores.
    ///
    /// A home thread sleeps until a packet comes, is woken, and serves what has come until then,
    /// then what has come meanwhile, and so on: a queue with a set-up time (Welch, 1964). Arrivals are
    /// taken to be a Poisson process.
    pub fn at_home(&self, service: &Service, assumptions: &Assumptions) -> (f64, f64) {
        let rate = self.counts[0];
        if rate <= 0.0 {
            return (0.0, 0.0);
        }
        let [_, _, slice, wake] = service.parts();
        let packet = self.moving(service) / rate;
        let latency = assumptions.wake_ns as f64;
        let mut length = 1.0 / rate + latency;
        let mut work = 0.0;
        let mut expected = 1.0 + rate * (latency + wake);
        let mut reached = 1.0;
        for index in 0..WORKS_MAX {
            let took = slice + packet * expected + if index == 0 { wake } else { 0.0 };
            work += reached * took;
            length += reached * took;
            expected = rate * took;
            reached *= 1.0 - (-expected).exp();
            // What comes is at least one packet where the thread goes on.
            expected = expected.max(1.0);
        }
        let load = (work / length).max(rate * packet).min(1.0);
        let wakes = 1.0 / length;
        (
            load,
            wakes * self.transmitted * assumptions.notification_ns as f64,
        )
    }

    /// What a worker would take of its time, at least, if each virtqueue is served once in `age`
    /// nanoseconds.
    pub fn at_worker(&self, service: &Service, age: f64) -> f64 {
        let [_, _, slice, _] = service.parts();
        let slices = (self.virtqueues / age).min(self.counts[0]);
        self.moving(service) + slices * slice
    }
}

/// What an interval comes to, and would come to.
#[derive(Clone, Debug, Default)]
pub struct Forecast {
    /// What home threads and notifications would take, in cores.
    pub home: f64,
    /// The load of the busiest home thread.
    pub home_busiest: f64,
    /// What notifications would take of guests with workers, in cores.
    pub notifications: f64,
    /// What workers would take of each device that wants anything, in cores, the largest first.
    pub loads: Vec<f64>,
    /// By what factor the load will be larger soon.
    pub growth: f64,
    /// Packets that were moved.
    pub packets: f64,
    /// Whether workers would poll any of the virtqueues.
    pub is_fast: bool,
}

impl Forecast {
    /// The load of the busiest worker if there are so many and devices are divided by Graham's rule
    /// (1969).
    pub fn busiest(&self, cores: u32) -> f64 {
        let mut workers = vec![0.0f64; cores.max(1) as usize];
        for load in &self.loads {
            if let Some(least) = workers.iter_mut().min_by(|one, other| one.total_cmp(other)) {
                *least += load;
            }
        }
        workers.into_iter().fold(0.0, f64::max)
    }
}

/// What is less than this, in cores, is nothing: processors are slow with numbers that have become so small
/// that they lose digits, and a device that does nothing for long would have one.
const NOTHING: f64 = 1e-12;

/// The most that each device wanted lately that wanted anything, in the order of their numbers.
#[derive(Clone, Debug, Default)]
pub struct Peaks(Vec<(DeviceId, f64)>);

impl Peaks {
    /// Follows the loads, which are in the order of the devices' numbers: at once where they rise, and
    /// by the part `new` where they fall. Returns the peaks that are not 0, the largest first.
    pub fn follow(&mut self, loads: &[(DeviceId, f64)], new: f64) -> Vec<f64> {
        let mut earlier = self.0.iter().peekable();
        let peak = |(device, load): &(DeviceId, f64)| -> Option<(DeviceId, f64)> {
            while earlier.next_if(|(known, _)| known < device).is_some() {}
            let known = earlier.next_if(|(known, _)| known == device);
            let known = known.map_or(0.0, |(_, peak)| *peak);
            let peak = (known + new * (load - known)).max(*load);
            (peak >= NOTHING).then_some((*device, peak))
        };
        let peaks: Vec<(DeviceId, f64)> = loads.iter().filter_map(peak).collect();
        let mut sorted: Vec<f64> = peaks.iter().map(|(_, peak)| *peak).collect();
        sorted.sort_by(|one, other| other.total_cmp(one));
        self.0 = peaks;
        sorted
    }
}

/// The part of the guests' cores that is used.
pub fn guests_busy(observation: &Observation) -> f64 {
    let interval = observation.interval.max(1) as f64;
    observation
        .guest_cores()
        .map(|core| (core.busy as f64 / interval).min(1.0))
        .sum()
}
